"""Training learns what is there, nothing else, and the same each time."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from her2core.dataset import Slices
from her2core.model import ThdaConfig, ThdaResNet
from her2core.train import (
    TrainConfig,
    choose_device,
    fit,
    learning_rate,
    positive_weight,
    predict,
    train_one_epoch,
)

BUILD = partial(ThdaResNet, ThdaConfig(width=8, dropout=0.0))
CONFIG = TrainConfig(seeds=(0,), epochs=6, batch_size=8, lr=3e-3, validate_every=2, device="cpu", threads=1)


def planted(patients, seed, signal=True):
    """Noise, in which positives have a brighter early phase; two slices a patient."""
    rng = np.random.default_rng(seed)
    her2 = np.arange(patients) % 2
    images = rng.integers(0, 120, (patients, 2, 3, 16, 16))
    if signal:
        images[her2 == 1, :, 1, 4:12, 4:12] += 100
    names = np.repeat([f"p{k}" for k in range(patients)], 2)
    tensor = torch.from_numpy(images.reshape(-1, 3, 16, 16).astype(np.uint8))
    return Slices(tensor, names, np.repeat("x", patients * 2), np.repeat(her2, 2))


def auc(model, data):
    from her2core.evaluate import auc as area

    return area(*predict(model, data)[1:])


def test_a_planted_signal_is_found():
    model, history = fit(BUILD, planted(48, 0), planted(24, 1), CONFIG, seed=0)
    assert auc(model, planted(40, 2)) > 0.95
    assert [h["epoch"] for h in history] == [2, 4, 6]


def test_labels_without_a_signal_give_an_auc_of_one_half():
    model, _ = fit(BUILD, planted(48, 0, signal=False), planted(24, 1, signal=False), CONFIG, seed=0)
    n = 200
    standard_error = np.sqrt((n + 1) / (3 * n * n))  # of the AUC under no difference, n/2 against n/2
    assert abs(auc(model, planted(n, 2, signal=False)) - 0.5) < 2 * standard_error


def test_one_seed_gives_the_same_bytes_twice_and_another_seed_others():
    first, again, other = (fit(BUILD, planted(16, 0), planted(8, 1), CONFIG, seed=s)[0] for s in (0, 0, 1))
    states = [m.state_dict() for m in (first, again, other)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["classifier.weight"], states[2]["classifier.weight"])


def test_the_kept_weights_are_those_of_the_best_validation():
    validation = planted(24, 1)
    model, history = fit(BUILD, planted(24, 0), validation, CONFIG, seed=0)
    assert auc(model, validation) == pytest.approx(max(h["validation_auc"] for h in history))


def test_a_loss_that_is_not_finite_stops_and_names_the_patients(generator):
    data = planted(4, 0)
    model = BUILD()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match=r"loss is nan in batch 0 of patients \['p0', 'p1'\]"):
        train_one_epoch(
            model, data, [torch.tensor([0, 2])], optimizer, schedule, torch.tensor(1.0), CONFIG, generator
        )


def test_a_patient_gets_the_median_of_its_slices():
    data = planted(4, 0)
    model = BUILD().eval()
    with torch.inference_mode():
        slices = model(data.images.float() / 255).sigmoid().numpy().reshape(4, 2)
    patient, her2, probability = predict(model, data, "median")
    assert patient.tolist() == ["p0", "p1", "p2", "p3"] and her2.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(probability, np.median(slices, 1), rtol=1e-5)


def test_positives_weigh_as_much_as_negatives():
    data = planted(10, 0)
    few = Slices(data.images, data.patient, data.split, np.repeat([1, 0, 0, 0, 0, 0, 0, 0, 1, 0], 2))
    assert positive_weight(few, CONFIG).item() == 4
    assert positive_weight(few, replace(CONFIG, class_weight="none")).item() == 1


def test_training_patients_of_one_class_are_refused():
    data = planted(4, 0)
    with pytest.raises(ValueError, match="0 of 4 training patients are HER2-positive"):
        positive_weight(Slices(data.images, data.patient, data.split, 0 * data.her2), CONFIG)


def test_the_learning_rate_warms_up_and_ends_near_zero():
    rates = [learning_rate(s, 100, CONFIG) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1 and rates.index(1) == 9
    assert rates[-1] < 0.001 and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weight": "focal"}, "class_weight='focal'"),
        ({"aggregate": "sum"}, "aggregate='sum'"),
        ({"seeds": ()}, "needs a seed"),
    ],
    ids=str,
)
def test_a_training_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_auto_finds_a_device_and_a_name_is_taken_as_given():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
