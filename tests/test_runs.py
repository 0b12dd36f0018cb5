"""Runs: names, weights, predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from her2core.baselines import ModelConfig, VitConfig
from her2core.dataset import Slices
from her2core.evaluate import COLUMNS, auc, read_predictions
from her2core.model import ThdaConfig
from her2core.runs import (
    Run,
    aggregated,
    attention_inside,
    check_weights,
    digests,
    load_seeds,
    predictions,
    save_weights,
    sees_neighbours,
    spatial_attention,
    train_run,
    untrained,
)
from her2core.train import TrainConfig

RUN = Run.parse("thda-channel_q98-raw", None)
MODELS = ModelConfig(ThdaConfig(width=8), VitConfig(8, 32, 2, 2, 64))
CONFIG = TrainConfig(seeds=(0, 5), epochs=2, batch_size=4, validate_every=1, device="cpu", threads=1, jobs=2)


@pytest.fixture(scope="module")
def slices():
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = np.repeat(["train", "train", "validation", "test"], 6)
    return Slices(images, np.array([f"p{k // 2:02d}" for k in range(24)]), split, np.arange(24) // 2 % 2)


@pytest.fixture(scope="module")
def trained(slices):
    return train_run(RUN, slices, MODELS, CONFIG)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("thda-channel_q98-n4", ("thda", "channel_q98", "n4")),
        ("thda_plain-global_q99", ("thda_plain", "global_q99", "raw")),
        ("thda-n4", ("thda", "slice_minmax", "n4")),
        ("vit", ("vit", "slice_minmax", "raw")),
    ],
)
def test_a_name_is_taken_apart_and_what_it_leaves_out_is_the_references(name, parts):
    assert Run.parse(name, "slice_minmax") == Run(name, *parts)


@pytest.mark.parametrize(
    "name", ["cnn-channel_q98-raw", "thda-channel_q98-n5", "thda-channel-raw", "thda-a-n4", ""]
)
def test_a_name_that_is_no_run_is_refused(name):
    with pytest.raises(ValueError, match="expected (model\\[-window\\]|scope_limits)"):
        Run.parse(name, "slice_minmax")


def test_each_seed_is_trained_and_has_its_history(trained):
    weights, history = trained
    assert list(weights) == [0, 5]
    assert history.groupby("seed")["epoch"].apply(list).to_dict() == {0: [1, 2], 5: [1, 2]}


def test_seeds_side_by_side_give_the_bytes_of_seeds_one_by_one(slices, trained):
    alone, _ = train_run(RUN, slices, MODELS, replace(CONFIG, jobs=1))
    assert all(torch.equal(trained[0][s][k], alone[s][k]) for s in alone for k in alone[s])


def test_a_run_goes_on_from_its_checkpoints_and_removes_them_at_its_end(slices, trained, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    one = replace(CONFIG, jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr("her2core.runs.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train_run(RUN, slices, MODELS, one, tmp_path)
    assert sorted(p.name for p in (tmp_path / RUN.name).iterdir()) == ["seed0.safetensors", "seed5.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr("her2core.train.train_one_epoch", killed)  # both seeds had ended: no step is left
        weights, history = train_run(RUN, slices, MODELS, one, tmp_path)
    assert all(torch.equal(trained[0][s][k], weights[s][k]) for s in weights for k in weights[s])
    assert history.equals(trained[1]) and list(tmp_path.iterdir()) == []


def test_seeds_side_by_side_each_keep_a_checkpoint(slices, trained, tmp_path):
    weights, _ = train_run(RUN, slices, MODELS, CONFIG, tmp_path)
    assert all(torch.equal(trained[0][s][k], weights[s][k]) for s in weights for k in weights[s])
    assert list(tmp_path.iterdir()) == []


def study(shuffled, folder):
    """Test AUC, after training and prediction, of a bright early phase that marks HER2 or not."""
    rng = np.random.default_rng(0)
    split = np.repeat(["train", "validation", "test"], (64, 32, 200))
    her2 = np.arange(split.size) % 2
    images = rng.integers(0, 120, (split.size, 3, 16, 16))
    images[her2 == 1, 1, 4:12, 4:12] += 100
    within = [
        rng.permutation(part) for part in np.split(her2, (64, 96))
    ]  # across, one split's gain is another's loss
    labels = np.concatenate(within) if shuffled else her2
    names = np.array([f"p{k:03d}" for k in range(split.size)])
    slices = Slices(torch.from_numpy(images.astype(np.uint8)), names, split, labels)
    config = replace(CONFIG, seeds=(0,), epochs=10, batch_size=8, lr=3e-3, validate_every=2)
    models = replace(MODELS, thda=ThdaConfig(width=8, blocks=(1, 1, 1, 1), dropout=0.0))
    save_weights(train_run(RUN, slices, models, config)[0], folder)
    table = predictions(RUN, "c", slices, ("test",), models, config, folder)
    return auc(table["her2"], table["probability"])


def test_a_planted_signal_is_found_in_patients_never_seen(tmp_path):
    assert study(shuffled=False, folder=tmp_path) > 0.95


def test_shuffled_labels_give_an_auc_of_one_half_in_patients_never_seen(tmp_path):
    n = 200
    standard_error = np.sqrt((n + 1) / (3 * n * n))  # of the AUC under no difference, n/2 against n/2
    assert abs(study(shuffled=True, folder=tmp_path) - 0.5) < 2 * standard_error


def test_weights_survive_the_disk_and_are_the_same_file_twice(trained, tmp_path):
    save_weights(trained[0], tmp_path / "a")
    save_weights(trained[0], tmp_path / "b")
    first, second = ((tmp_path / d / "seed5.safetensors").read_bytes() for d in "ab")
    assert first == second and not list(tmp_path.glob("*/.*"))
    models = load_seeds(tmp_path / "a", RUN, MODELS, 16)
    assert torch.equal(models[1].classifier.weight, trained[0][5]["classifier.weight"])


def test_the_prediction_table_has_a_row_per_patient_split_and_seed(slices, trained, tmp_path):
    save_weights(trained[0], tmp_path / "w")
    table = predictions(RUN, "c", slices, ("validation", "test"), MODELS, CONFIG, tmp_path / "w")
    assert tuple(table.columns) == COLUMNS or set(table.columns) == set(COLUMNS)
    assert table.groupby(["split", "seed"])["patient"].nunique().tolist() == [3, 3, 3, 3]
    assert "train" not in set(table["split"])
    table.to_csv(tmp_path / "t.csv", index=False)
    assert len(read_predictions([tmp_path / "t.csv"])) == 12


def test_attention_is_averaged_to_a_map_per_phase_of_the_images_size(slices, trained, tmp_path):
    save_weights(trained[0], tmp_path)
    maps = spatial_attention(load_seeds(tmp_path, RUN, MODELS, 16), slices.images[:2])
    assert maps.shape == (2, 3, 16, 16) and 0 <= maps.min() <= maps.max() <= 1


def test_weights_that_changed_since_training_are_refused(trained, tmp_path):
    folder = tmp_path / RUN.name
    save_weights(trained[0], folder)
    digests(folder).to_csv(tmp_path / "run.csv", index=False)
    check_weights(folder, tmp_path / "run.csv")
    save_weights({5: trained[0][0]}, folder)
    with pytest.raises(ValueError, match="thda-channel_q98-raw/seed5.safetensors: not the weights that training"):
        check_weights(folder, tmp_path / "run.csv")


def test_slices_are_aggregated_as_asked_by_the_same_weights(slices, trained, tmp_path):
    save_weights(trained[0], tmp_path)
    table = aggregated(RUN, "c", slices, ("test",), MODELS, CONFIG, tmp_path)
    assert set(table["run"]) == {"aggregate_mean", "aggregate_max"}
    wide = table.pivot_table(index=["seed", "patient"], columns="model", values="probability")
    assert (wide["aggregate_max"] >= wide["aggregate_mean"]).all()
    median = predictions(RUN, "c", slices, ("test",), MODELS, CONFIG, tmp_path)
    mean = wide["aggregate_mean"].to_numpy()  # of two slices the median is the mean
    np.testing.assert_allclose(median.sort_values(["seed", "patient"])["probability"], mean, atol=2e-6)


def test_only_a_variant_whose_heads_see_adjacent_slices_needs_neighbours():
    models = replace(MODELS, variants={"adjacent": {"head_input": "adjacent_slices"}})
    assert [sees_neighbours(m, models) for m in ("thda", "thda_adjacent", "vit")] == [False, True, False]


def test_attention_inside_a_lesion_is_its_share_of_the_map():
    maps, masks = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, :2, :2] = True
    maps[0, :, :2, :2] = 1.0  # all of it inside
    maps[1] = 0.5 + 0.25 * (torch.arange(4) % 2)  # every other column open: a quarter of it inside
    inside, chance = attention_inside(maps, masks)
    torch.testing.assert_close(inside, torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(chance, torch.tensor([0.25, 0.25]))


def test_untrained_networks_differ_by_seed_and_repeat():
    a, b = untrained(RUN, MODELS, 16, (0, 1))
    c, _ = untrained(RUN, MODELS, 16, (0, 1))
    assert torch.equal(a.classifier.weight, c.classifier.weight)
    assert not torch.equal(a.classifier.weight, b.classifier.weight)


def test_missing_weights_say_which_stage_makes_them(tmp_path):
    with pytest.raises(ValueError, match="no weights of thda-channel_q98-raw.*run the training stage"):
        load_seeds(tmp_path, RUN, MODELS, 16)
