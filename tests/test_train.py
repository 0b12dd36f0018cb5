"""Training learns what is there, nothing else, and the same each time."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

import her2core.train
from her2core.dataset import Slices, augment, draw_augmentation, epoch_batches
from her2core.model import ThdaConfig, ThdaResNet
from her2core.train import (
    TrainConfig,
    Training,
    _learning_rate,
    _learning_rates,
    _positive_weight,
    _read_checkpoint,
    begin,
    choose_device,
    fit,
    predict,
    predict_slices,
    train_one_epoch,
)

BUILD = partial(ThdaResNet, ThdaConfig(width=8, dropout=0.0))
DROPOUT = partial(ThdaResNet, ThdaConfig(width=8, blocks=(1, 1, 1, 1), dropout=0.5))
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
    from her2core.auc import auc as area

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


class Brightness(nn.Module):
    """One weight on the mean of the early phase; a white image gives no number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        early = x[:, 1].mean((1, 2))
        return self.weight * torch.where(early == 1, torch.nan, early)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_batch_and_its_patients():
    data = planted(40, 0)
    data.images[data.patient == "p7"] = 255
    batches = her2core.train.epoch_batches(data, CONFIG.batch_size, torch.Generator().manual_seed(0))
    patients = data.patient[batches[3]].tolist()
    assert "p7" in patients
    with pytest.raises(ValueError, match=re.escape(f"loss is nan in batch 3 of patients {patients}")):
        train_one_epoch(begin(Brightness, torch.device("cpu"), CONFIG, seed=0), data, CONFIG)


def test_every_training_patient_is_seen_once_in_each_epoch(monkeypatch):
    data, seen = planted(21, 0), []

    def spy(images, maps):
        seen.extend(images[:, 0, 0, 0].tolist())
        return images.float() / 255

    data.images[:, 0, 0, 0] = torch.arange(21, dtype=torch.uint8).repeat_interleave(2)
    monkeypatch.setattr(her2core.train, "augment", spy)
    fit(Brightness, data, planted(8, 1), CONFIG, seed=0)
    assert [sorted(seen[k : k + 21]) for k in range(0, len(seen), 21)] == [list(range(21))] * CONFIG.epochs


def test_augmentation_for_a_whole_epoch_draws_what_it_would_batch_by_batch(monkeypatch):
    data, maps = planted(20, 0), []
    monkeypatch.setattr(her2core.train, "augment", lambda images, m: maps.append(m) or images.float() / 255)
    train_one_epoch(begin(Brightness, torch.device("cpu"), CONFIG, seed=3), data, CONFIG)
    generator = torch.Generator().manual_seed(3)
    for rows, drawn in zip(her2core.train.epoch_batches(data, 8, generator), maps, strict=True):
        assert torch.equal(her2core.train.draw_augmentation(len(rows), CONFIG.augment, generator), drawn)


def test_training_stops_after_as_many_validations_without_a_better_auc_as_its_patience():
    config = replace(CONFIG, validate_every=1, patience=2)  # the order of brightness is the same at every epoch
    _, history = fit(Brightness, planted(16, 0), planted(8, 1), config, seed=0)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    _, history = fit(Brightness, planted(16, 0), planted(8, 1), replace(config, patience=None), seed=0)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("aucs", "stops"), [([], False), ([0.6, 0.5], False), ([0.6, 0.6, 0.5], True), ([0.6, 0.5, 0.7], False)]
)
def test_an_equal_auc_is_no_better_one(aucs, stops):
    training = Training(*[None] * 5, history=[{"validation_auc": auc} for auc in aucs])
    assert training.exhausted(2) is stops and training.exhausted(None) is False


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import her2core.train
from her2core.train import _read_checkpoint, fit
from test_train import CONFIG, DROPOUT, planted

checkpoint = Path(sys.argv[2])
her2core.train._CHECKPOINT_S, her2core.train._CHECKPOINT_SHARE = 0.0, 1e9  # at each validation

def killed_at(step):
    left = [step]
    def count(module, images):
        left[0] -= module.training
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def build():
        model = DROPOUT()
        model.register_forward_pre_hook(count)
        return model
    return build

for step in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        fit(killed_at(step), planted(24, 0), planted(10, 1), CONFIG, 0, checkpoint=checkpoint)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status), _read_checkpoint(checkpoint)[0]["epoch"])
"""


def bytes_of(model):
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
def test_a_training_that_was_killed_twice_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    train, validation, checkpoint = planted(24, 0), planted(10, 1), tmp_path / "seed0.safetensors"
    command = [sys.executable, "-c", KILLED, Path(__file__).parent, checkpoint, "9", "7"]  # steps of 3 an epoch
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert killed.stdout == "9 2\n9 4\n", killed.stderr  # SIGKILL, and the epoch of the last checkpoint
    resumed, history = fit(DROPOUT, train, validation, CONFIG, 0, checkpoint=checkpoint)
    straight, expected = fit(DROPOUT, train, validation, CONFIG, 0)
    assert bytes_of(resumed) == bytes_of(straight) and history == expected
    assert (predict_slices(resumed, validation.images) == predict_slices(straight, validation.images)).all()


def test_a_training_that_had_ended_returns_its_result_without_another_step(tmp_path, monkeypatch):
    arguments = Brightness, planted(16, 0), planted(8, 1), CONFIG, 0, iter, tmp_path / "c"
    model, history = fit(*arguments)
    monkeypatch.setattr(her2core.train, "train_one_epoch", None)
    again, same = fit(*arguments)
    assert bytes_of(again) == bytes_of(model) and same == history


@pytest.mark.parametrize("other", ["config", "seed", "data", "network", "version"])
def test_a_checkpoint_of_another_training_is_not_continued(other, tmp_path):
    train, validation = planted(16, 0), planted(8, 1)
    fit(DROPOUT, train, validation, replace(CONFIG, epochs=2), 0, checkpoint=tmp_path / "c", version="a")
    config = replace(CONFIG, epochs=2, lr=1e-3 if other == "config" else CONFIG.lr)
    if other == "data":
        train.images[0, 0, 0, 0] += 1
    build = Brightness if other == "network" else DROPOUT
    seed, version = int(other == "seed"), "b" if other == "version" else "a"
    started = []
    model, _ = fit(
        build, train, validation, config, seed, lambda e: started.append(e) or e, tmp_path / "c", version
    )
    assert started == [range(1, 3)]
    assert bytes_of(model) == bytes_of(fit(build, train, validation, config, seed)[0])


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    training = begin(Brightness, torch.device("cpu"), CONFIG, seed=0)
    train_one_epoch(training, planted(16, 0), CONFIG)
    training.save(tmp_path / "c", "key")
    whole = (tmp_path / "c").read_bytes()

    def power_cut(tensors, path, header):
        path.write_bytes(whole[: len(whole) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(her2core.train, "save_file", power_cut)
    with pytest.raises(KeyboardInterrupt):
        training.save(tmp_path / "c", "key")
    assert (tmp_path / "c").read_bytes() == whole and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(her2core.train, "save_file", full)
    with pytest.raises(
        OSError, match="c: cannot be written .No space left on device.; make room and run the stage"
    ):
        fit(Brightness, planted(16, 0), planted(8, 1), CONFIG, 0, checkpoint=tmp_path / "c")


@pytest.mark.parametrize(
    ("writing_s", "written"), [(1, [3, 6, 9, 12]), (7, [3, 10, 12]), (100, [3, 12])], ids="{} s".format
)
def test_checkpoints_take_a_tenth_of_the_time_at_most_and_the_end_has_one(
    writing_s, written, tmp_path, monkeypatch
):
    now, epochs = [time.monotonic()], []

    def one_epoch(training, *_):
        training.epoch += 1
        now[0] += 11
        return 0.5

    def write(tensors, path, header):
        now[0] += writing_s
        epochs.append(json.loads(header["training"])["epoch"])
        path.touch()

    monkeypatch.setattr(her2core.train, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(her2core.train, "train_one_epoch", one_epoch)
    monkeypatch.setattr(her2core.train, "save_file", write)
    config = replace(CONFIG, epochs=12, validate_every=1)
    fit(Brightness, planted(16, 0), planted(8, 1), config, 0, checkpoint=tmp_path / "c")
    assert epochs == written


def test_a_training_that_ends_early_leaves_its_last_validation(tmp_path, monkeypatch):
    config = replace(CONFIG, validate_every=1, patience=2)
    arguments = Brightness, planted(16, 0), planted(8, 1), config, 0, iter, tmp_path / "c"
    _, history = fit(*arguments)
    monkeypatch.setattr(her2core.train, "train_one_epoch", None)
    assert fit(*arguments)[1] == history and len(history) == 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of `Brightness`, and the call that continues it."""
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    again = partial(fit, Brightness, planted(16, 0), planted(8, 1), CONFIG, 0, checkpoint=path)
    again()
    return path.read_bytes(), path, again


def test_a_checkpoint_that_changed_by_one_bit_anywhere_is_refused(checkpoint):
    whole, path, _ = checkpoint
    for at in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"c: .*, expected an undamaged checkpoint; delete it to start anew"):
            _read_checkpoint(path)
    path.write_bytes(whole)
    assert _read_checkpoint(path)[0]["epoch"] == CONFIG.epochs


def tensors_of(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def rewritten(path, tensors=None, **header):
    found, said = tensors_of(path)
    save_file(found | (tensors or {}), path, said | header)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"half"),
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: rewritten(path, training="{"),
        lambda path: rewritten(path, training="[]"),
        lambda path: rewritten(path, training=json.dumps({"key": "", "epoch": 3, "history": []})),
        lambda path: rewritten(path, {"model/more": torch.zeros(2)}),
        lambda path: rewritten(path, {"best/": torch.zeros(())}),
        lambda path: save_file(tensors_of(path)[0], path),
        lambda path: rewritten(path, {"random/torch": tensors_of(path)[0]["random/torch"][None]}),
        lambda path: rewritten(path, {"random/torch": tensors_of(path)[0]["random/torch"].view(torch.int8)}),
    ],
    ids=[
        *("no tensors", "cut off", "broken header", "a list", "another key", "another tensor", "an empty name"),
        *("no header", "another shape", "another type"),
    ],
)
def test_a_damaged_checkpoint_is_an_error_that_names_the_file(checkpoint, damage):
    whole, path, again = checkpoint
    path.write_bytes(whole)
    damage(path)
    with pytest.raises(ValueError, match=r"c: .*, expected an undamaged checkpoint; delete it to start anew"):
        again()


def test_a_compiled_network_trains_and_its_model_predicts(monkeypatch):
    calls = []

    class Compiled(nn.Module):
        def __init__(self, model, dynamic):
            super().__init__()
            self.model = model

        def forward(self, x):
            calls.append(self.training)
            return self.model(x)

    monkeypatch.setattr(torch, "compile", Compiled)
    monkeypatch.setattr(torch.compiler, "reset", list)
    train, validation = planted(16, 0), planted(8, 1)
    model, _ = fit(BUILD, train, validation, replace(CONFIG, epochs=2, compile=True), seed=0)
    assert calls == [True] * 4 and isinstance(model, ThdaResNet)
    assert bytes_of(model) == bytes_of(fit(BUILD, train, validation, replace(CONFIG, epochs=2), seed=0)[0])


def test_validation_patients_of_one_class_are_refused():
    data = planted(8, 1)
    with pytest.raises(ValueError, match="all 8 validation patients are of one class"):
        fit(BUILD, planted(16, 0), Slices(data.images, data.patient, data.split, 0 * data.label), CONFIG, seed=0)


def test_a_patient_gets_the_median_of_its_slices():
    data = planted(4, 0)
    model = BUILD().eval()
    with torch.inference_mode():
        slices = model(data.images.float() / 255).sigmoid().numpy().reshape(4, 2)
    patient, label, probability = predict(model, data, "median")
    assert patient.tolist() == ["p0", "p1", "p2", "p3"] and label.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(probability, np.median(slices, 1), rtol=1e-5)


def test_positives_weigh_as_much_as_negatives():
    data = planted(10, 0)
    few = Slices(data.images, data.patient, data.split, np.repeat([1, 0, 0, 0, 0, 0, 0, 0, 1, 0], 2))
    assert _positive_weight(few, CONFIG).item() == 4
    assert _positive_weight(few, replace(CONFIG, class_weight="none")).item() == 1


def test_training_patients_of_one_class_are_refused():
    data = planted(4, 0)
    with pytest.raises(ValueError, match="0 of 4 training patients are positive"):
        _positive_weight(Slices(data.images, data.patient, data.split, 0 * data.label), CONFIG)


def test_the_learning_rate_warms_up_and_ends_near_zero():
    rates = [_learning_rate(s, 100, CONFIG) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1 and rates.index(1) == 9
    assert rates[-1] < 0.001 and rates[10:] == sorted(rates[10:], reverse=True)


def test_each_epoch_has_its_part_of_the_learning_rates():
    parts = [rate for done in range(CONFIG.epochs) for rate in _learning_rates(done, 5, CONFIG)]
    assert parts == [CONFIG.lr * _learning_rate(step, 30, CONFIG) for step in range(30)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weight": "focal"}, "class_weight='focal'"),
        ({"aggregate": "sum"}, "aggregate='sum'"),
        ({"seeds": ()}, "needs a seed"),
        ({"precision": "float16"}, "precision='float16': expected auto or float32"),
        ({"patience": 0}, "patience=0: expected one validation or more, or null"),
    ],
    ids=str,
)
def test_a_training_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_auto_finds_a_device_and_a_name_is_taken_as_given():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_a_model_has_its_own_rate_weight_and_patients_and_shares_the_rest():
    config = TrainConfig(lr=0.004, of={"vit": {"lr": 0.001}, "thda_half": {"patients": 300, "redraw": True}})
    assert config.of_model("vit") == replace(config, lr=0.001)
    assert config.of_model("thda_half") == replace(config, patients=300, redraw=True)
    assert config.of_model("thda") == config
    assert TrainConfig(of={"vit": {"seeds": [3, 4]}}).of_model("vit").seeds == (3, 4)


def test_what_all_models_share_no_model_has_for_itself():
    config = TrainConfig(of={"vit": {"epochs": 3}})
    with pytest.raises(ValueError, match="train.of.vit: epochs unknown, expected seeds, lr, class_weight"):
        config.of_model("vit")


def plain_epoch(data, config):
    """The network after an epoch as PyTorch's documentation would write it."""
    training = begin(BUILD, torch.device("cpu"), config, 0)
    network, weight = training.model.train(), _positive_weight(data, config)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    batches = epoch_batches(data, config.batch_size, training.generator)
    maps = [draw_augmentation(len(rows), config.augment, training.generator) for rows in batches]
    for rows, moved, rate in zip(batches, maps, _learning_rates(0, len(batches), config), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        target = torch.as_tensor(data.label, dtype=torch.float32)[rows]
        logits = network(augment(data.images[rows], moved))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()
    return network


def test_an_epoch_is_adamw_on_the_weighted_loss_with_clipped_gradients():
    """Each part matters here: one positive of 12 patients, a clip far below the gradients, a large decay."""
    config = replace(CONFIG, gradient_clip=0.01, weight_decay=0.5, class_weight="balanced")
    data = planted(12, 0)
    data = replace(data, label=(data.patient == "p0").astype(int))
    assert _positive_weight(data, config) == 11
    ours = begin(BUILD, torch.device("cpu"), config, 0)
    train_one_epoch(ours, data, config)
    for a, b in zip(ours.model.parameters(), plain_epoch(data, config).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_training_takes_the_threads_that_are_configured():
    begin(BUILD, torch.device("cpu"), replace(CONFIG, threads=2), 0)
    assert torch.get_num_threads() == 2
    begin(BUILD, torch.device("cpu"), CONFIG, 0)
    assert torch.get_num_threads() == 1
