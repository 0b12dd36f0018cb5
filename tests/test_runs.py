"""Runs: names, weights, predictions."""

import hashlib
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from house import PARAMS
from prepared_samples import make_run, sealed, write_prepared
from safetensors.torch import load_file, save_file

from her2core.auc import auc
from her2core.baselines import ModelConfig, VitConfig
from her2core.config import Study, merge
from her2core.dataset import Slices, seen_by
from her2core.evaluate import COLUMNS, read_predictions
from her2core.model import ThdaConfig
from her2core.runs import (
    Run,
    aggregated,
    attention_inside,
    gates,
    parse_run,
    spatial_attention,
    train_run,
)
from her2core.train import TrainConfig, predict

NAME = "thda-channel_q98-raw"
MODELS = ModelConfig(ThdaConfig(width=8), VitConfig(8, 32, 2, 2, 64))
CONFIG = TrainConfig(seeds=(0, 5), epochs=2, batch_size=4, validate_every=1, device="cpu", threads=1, jobs=1)
SPLITS = ["train"] * 6 + ["validation"] * 3 + ["test"] * 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    patients = [(f"p{k:02d}", split, k % 2, 2) for k, split in enumerate(SPLITS)]
    return write_prepared(tmp_path_factory.mktemp("prepare"), np.random.default_rng(0), patients, px=16)


@pytest.fixture
def run(prepared, tmp_path):
    """A run without weights yet."""
    return make_run(prepared, tmp_path / NAME, models=MODELS, training=CONFIG)


@pytest.fixture(scope="module")
def slices(prepared):
    return make_run(prepared, None).slices()


@pytest.fixture(scope="module")
def trained(prepared, slices):
    return train_run(make_run(prepared, None, models=MODELS, training=CONFIG), slices)


@pytest.fixture
def frozen(run, trained):
    """A run whose weights lie in its folder."""
    run.freeze(trained[0])
    return run


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
    assert parse_run(name, "slice_minmax") == parts


@pytest.mark.parametrize("name", ["cnn-channel_q98-raw", "thda-channel_q98-n5", ""])
def test_a_name_that_is_no_run_is_refused(name):
    with pytest.raises(ValueError, match="expected model\\[-window\\]"):
        parse_run(name, "slice_minmax")


@pytest.fixture
def study(tmp_path):
    values = merge(PARAMS, {"train": {"window": "slice_minmax", "epochs": 3}, "models": {"thda": {"width": 24}}})
    return Study("mine", tmp_path, values)


def test_a_run_of_a_study_has_its_networks_its_training_and_its_folders(study, tmp_path):
    run = Run.of(study, "thda-n4")
    assert (run.name, run.model, run.window, run.bias_field) == ("thda-n4", "thda", "slice_minmax", "n4")
    assert run.models.thda.width == 24 and run.training.epochs == 3 and run.cohort == "mine"
    assert run.frozen == tmp_path / "results/mine/weights/thda-n4.csv" and run.stage.endswith("train@thda-n4")
    assert run.prepared == tmp_path / "data/mine/prepare" and run.folder == tmp_path / "models/mine/thda-n4"


def test_without_a_name_the_run_of_a_study_is_its_reference(study, tmp_path):
    run = Run.of(study)
    assert run == Run.of(study, "thda-slice_minmax-raw") and run.name == run.training.reference
    assert run.folder == tmp_path / "models/mine/thda-slice_minmax-raw"


def test_a_study_has_no_run_of_a_name_that_is_none(study):
    with pytest.raises(ValueError, match="run 'cnn': expected model"):
        Run.of(study, "cnn")


def test_the_slices_of_a_run_are_those_of_its_window_and_some_of_them_are_some_rows(run, slices):
    expected = run.opened.under("channel_q98")
    assert torch.equal(slices.images, expected.images) and slices.images.shape == (24, 3, 16, 16)
    assert slices.split.tolist() == np.repeat(SPLITS, 2).tolist() and run.image_px == 16
    some = run.slices(np.array([20, 3]))
    assert torch.equal(some.images, slices.images[[20, 3]]) and some.patient.tolist() == ["p10", "p01"]


def test_a_run_whose_heads_see_adjacent_slices_is_fed_them(run, slices, rng):
    np.save(run.prepared / "neighbours_raw.npy", rng.integers(0, 900, (24, 2, 3, 16, 16)).astype(np.uint16))
    sealed(run.prepared)
    models = replace(MODELS, variants={"adjacent": {"head_input": "adjacent_slices"}})
    adjacent = replace(run, model="thda_adjacent", models=models)
    images = adjacent.slices(np.arange(5)).images
    assert images.shape == (5, 9, 16, 16) and torch.equal(images[:, 1::3], slices.images[:5])
    assert torch.isfinite(adjacent.fresh(0)(images / 255)).all()


def test_each_seed_is_trained_and_has_its_history(trained):
    weights, history = trained
    assert list(weights) == [(0, None), (5, None)]
    assert history.groupby("seed")["epoch"].apply(list).to_dict() == {0: [1, 2], 5: [1, 2]}


def test_a_run_trains_on_its_device_wherever_its_slices_lie(run, slices, monkeypatch):
    seen = []

    def fit(build, train, validation, *_):
        seen.append((train.images.device.type, validation.images.device.type))
        return torch.nn.Linear(1, 1), []

    # "meta" stands for a GPU: another device, which every machine has
    monkeypatch.setattr("her2core.runs.choose_device", lambda name: torch.device("meta"))
    monkeypatch.setattr("her2core.runs.fit", fit)
    train_run(run, slices)
    assert seen == [("meta", "meta")] * 2


@pytest.mark.slow
def test_seeds_side_by_side_give_the_bytes_of_seeds_one_by_one(run, slices, trained):
    weights, _ = train_run(replace(run, training=replace(CONFIG, jobs=2)), slices)
    assert all(torch.equal(trained[0][s][k], weights[s][k]) for s in weights for k in weights[s])


def test_a_run_goes_on_from_its_checkpoints_which_go_when_its_weights_are_safe(
    run, slices, trained, tmp_path, monkeypatch
):
    def killed(*arguments):
        raise KeyboardInterrupt

    checkpoints, run = (
        tmp_path / ".checkpoints",
        replace(run, folder=tmp_path / NAME, frozen=tmp_path / "frozen.csv"),
    )
    weights, _ = train_run(run, slices, checkpoints)
    with monkeypatch.context() as patch:
        patch.setattr("her2core.runs.write_digests", killed)
        with pytest.raises(KeyboardInterrupt):
            run.freeze(weights)
    assert sorted(p.name for p in (checkpoints / NAME).iterdir()) == ["seed0.safetensors", "seed5.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr("her2core.train.train_one_epoch", killed)  # both seeds had ended: no step is left
        weights, history = train_run(run, slices, checkpoints)
    assert all(torch.equal(trained[0][s][k], weights[s][k]) for s in weights for k in weights[s])
    run.freeze(weights)
    assert history.equals(trained[1]) and list(checkpoints.iterdir()) == [] and run.frozen.is_file()


@pytest.mark.slow
def test_seeds_side_by_side_each_keep_a_checkpoint(run, slices, trained, tmp_path):
    weights, _ = train_run(replace(run, training=replace(CONFIG, jobs=2)), slices, tmp_path)
    assert all(torch.equal(trained[0][s][k], weights[s][k]) for s in weights for k in weights[s])
    assert sorted(p.name for p in (tmp_path / NAME).iterdir()) == ["seed0.safetensors", "seed5.safetensors"]


def auc_of_a_study(run, shuffled):
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
    run = replace(run, models=models, training=config)
    run.freeze(train_run(run, slices)[0])
    table = run.predict("test", slices=slices)
    return auc(table["label"], table["probability"])


def test_a_planted_signal_is_found_in_patients_never_seen(run):
    assert auc_of_a_study(run, shuffled=False) > 0.95


def test_shuffled_labels_give_an_auc_of_one_half_in_patients_never_seen(run):
    n = 200
    standard_error = np.sqrt((n + 1) / (3 * n * n))  # of the AUC under no difference, n/2 against n/2
    assert abs(auc_of_a_study(run, shuffled=True) - 0.5) < 2 * standard_error


def test_weights_survive_the_disk_and_are_the_same_file_twice(run, trained, tmp_path):
    runs = [replace(run, folder=tmp_path / d, frozen=tmp_path / f"{d}.csv") for d in "ab"]
    for one in runs:
        one.freeze(trained[0])
    first, second = ((one.folder / "seed5.safetensors").read_bytes() for one in runs)
    assert first == second and not list(tmp_path.glob("*/.*")) and not list(tmp_path.glob(".*"))
    save_file(trained[0][5, None], tmp_path / "as the library writes it")
    assert first == (tmp_path / "as the library writes it").read_bytes()
    networks = runs[0].networks()
    assert torch.equal(networks[1].classifier.weight, trained[0][5, None]["classifier.weight"])
    assert [network.training for network in networks] == [False, False]


def test_new_weights_replace_the_folder_whole_and_their_table(run, trained):
    weights, other = trained[0], {k: v + 1 for k, v in trained[0][5, None].items()}
    one, two = weights.values()
    run.freeze({(0, None): one, (1, None): one, (5, None): two})  # of a configuration with three seeds
    run.freeze({(0, None): one, (5, None): other})
    assert [path.name for path in sorted(run.folder.iterdir())] == ["seed0.safetensors", "seed5.safetensors"]
    assert torch.equal(run.networks()[1].classifier.weight, other["classifier.weight"])


def test_weights_that_cannot_be_written_whole_leave_the_former_ones(frozen, trained, monkeypatch):
    former = {path.name: path.read_bytes() for path in frozen.folder.iterdir()}

    def power_cut(tensors):
        raise KeyboardInterrupt

    monkeypatch.setattr("her2core.runs.save", power_cut)
    with pytest.raises(KeyboardInterrupt):
        frozen.freeze(trained[0])
    assert {path.name: path.read_bytes() for path in frozen.folder.iterdir()} == former
    assert sorted(frozen.folder.parent.iterdir()) == [frozen.folder, frozen.frozen]
    assert len(frozen.networks()) == 2


def test_the_prediction_table_has_a_row_per_patient_split_and_seed(frozen, slices, tmp_path):
    table = frozen.predict("validation", "test", slices=slices)
    assert set(table.columns) == set(COLUMNS)
    assert table.groupby(["split", "seed"])["patient"].nunique().tolist() == [3, 3, 3, 3]
    assert "train" not in set(table["split"])
    named = table[["cohort", "run", "model", "window", "bias_field"]].drop_duplicates()
    assert named.values.tolist() == [["c", NAME, "thda", "channel_q98", "raw"]]
    assert dict(zip(table["patient"], table["label"], strict=True)) == {f"p{k:02d}": k % 2 for k in range(6, 12)}
    table.to_csv(tmp_path / "t.csv", index=False)
    assert len(read_predictions([tmp_path / "t.csv"])) == 12


def test_without_slices_at_hand_a_run_predicts_on_its_own(frozen, slices):
    pd.testing.assert_frame_equal(frozen.predict("test"), frozen.predict("test", slices=slices))


# two partitions of three folds, numbered through; two external patients
FOLDS = ["folds 0 3", "folds 0 4", "folds 1 5", "folds 1 3", "folds 2 4", "folds 2 5"] * 2 + ["external"] * 2


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A run of two seeds under folds, frozen; its weights and history."""
    patients = [(f"p{k:02d}", split, k // 6 % 2, 2) for k, split in enumerate(FOLDS)]
    folder = tmp_path_factory.mktemp("folded")
    (folder / "prepare").mkdir()
    prepared = write_prepared(folder / "prepare", np.random.default_rng(0), patients, px=16)
    run = make_run(prepared, folder / NAME, models=MODELS, training=CONFIG, folds=3, repeats=2)
    weights, history = train_run(run, run.slices(fold=0), folder / ".checkpoints")
    run.freeze(weights)
    return run, weights, history


def test_under_folds_each_seed_has_a_network_for_each_fold_of_its_partition(folded):
    run, weights, history = folded
    assert run.members == [(0, 0), (0, 1), (0, 2), (5, 3), (5, 4), (5, 5)] == list(weights)
    names = [f"seed{seed}-fold{fold}.safetensors" for seed, fold in run.members]
    assert pd.read_csv(run.frozen)["file"].tolist() == names == sorted(p.name for p in run.folder.iterdir())
    assert [*history] == ["seed", "fold", "epoch", "loss", "validation_auc"] and len(history) == 12
    assert not list((run.folder.parent / ".checkpoints").iterdir())
    replaced = replace(run, training=replace(CONFIG, seeds=(0, 5, 7)))
    assert replaced.members[6:] == [(7, 0), (7, 1), (7, 2)]


def test_a_network_of_a_fold_sees_no_test_patient_in_training_and_keeps_to_its_validation_fold(folded, monkeypatch):
    run, seen = folded[0], {}

    def fit(build, train, validation, config, seed, *_):
        seen[seed, len(seen)] = [sorted(set(part.patient)) for part in (train, validation)]
        return torch.nn.Linear(1, 1), []

    monkeypatch.setattr("her2core.runs.fit", fit)
    train_run(run, None)
    train, validation = seen[5, 4]  # fold 4; fold 5 chooses the epoch, fold 3 trains
    assert train == ["p00", "p03", "p06", "p09"] and validation == ["p02", "p05", "p08", "p11"]


def test_under_folds_each_patient_has_a_test_and_a_validation_row_per_seed_and_external_ones_the_mean(
    folded, tmp_path
):
    run = folded[0]
    table, outside = run.predict("validation", "test"), run.predict("external")
    assert [*table] == [*COLUMNS[:-1], "fold", "probability"] and [*outside] == [*COLUMNS]
    test = table[table["split"] == "test"].set_index(["seed", "patient"])["fold"]
    assert {p: (test[0, p], test[5, p]) for p in ("p00", "p01", "p02")} == {
        "p00": (0, 3),
        "p01": (0, 4),
        "p02": (1, 5),
    }
    chosen = table[table["split"] == "validation"].set_index(["seed", "patient"])["fold"]
    assert (chosen[0, "p00"], chosen[5, "p00"], chosen[5, "p01"]) == (2, 5, 3)
    table.to_csv(tmp_path / "t.csv", index=False)
    cohort = [(f"p{k:02d}", split, k // 6 % 2) for k, split in enumerate(FOLDS)]
    assert read_predictions([tmp_path / "t.csv"], cohort).equals(table) and len(table) == 48
    slices = run.slices().of_split("external")
    singly = [predict(network, slices)[2].round(6) for network in run.networks()]
    expected = [np.mean(singly[:3], axis=0), np.mean(singly[3:], axis=0)]
    np.testing.assert_allclose(outside["probability"].to_numpy().reshape(2, 2), expected, atol=1e-6)


def test_a_table_is_seen_as_each_folds_networks_see_it(folded, run):
    table = pd.DataFrame({"split": FOLDS})
    views = {fold: (seeds, seen["split"].tolist()[-3:]) for fold, seeds, seen in folded[0].views(table)}
    assert list(views) == [0, 1, 2, 3, 4, 5] and views[2] == ([0], ["test", "external", "external"])
    ((fold, seeds, seen),) = run.views(table)
    assert (fold, seeds) == (None, [0, 5]) and seen is table


def test_a_window_learns_from_the_training_patients_of_its_fold(folded):
    run = replace(folded[0], window="channel_nyul")
    first, second = (run.slices(np.arange(4), fold).images for fold in (0, 1))
    assert not torch.equal(first, second)
    prepared = run.opened
    expected = replace(prepared, split=seen_by(prepared.split, 0, 3)).under("channel_nyul", rows=np.arange(4))
    assert torch.equal(first, expected.images) and expected.split.tolist() == ["test"] * 4


def test_more_partitions_than_seeds_are_refused(study):
    values = merge(study.values, {"cohort": {"folds": 5, "repeats": 4}})
    assert Run.of(replace(study, values=merge(values, {"cohort": {"repeats": 3}}))).members[5:7] == [(1, 5), (1, 6)]
    with pytest.raises(ValueError, match=r"cohort.repeats: 4, expected a seed for each in \(0, 1, 2\)"):
        Run.of(replace(study, values=values))


def test_attention_is_averaged_to_a_map_per_phase_of_the_images_size(frozen, slices):
    maps = spatial_attention(frozen.networks(), slices.images[:2])
    assert maps.shape == (2, 3, 16, 16) and 0 <= maps.min() <= maps.max() <= 1


def test_gates_are_averaged_over_networks_stage_by_stage(frozen, slices):
    networks, images = frozen.networks(), slices.images[:2]
    found = gates(networks, images)
    assert list(found) == ["stage1", "stage2", "stage3", "stage4"]
    for stage, channels, size in (("stage1", 8, 4), ("stage2", 16, 2), ("stage3", 32, 1), ("stage4", 64, 1)):
        assert found[stage]["channel"].shape == (2, 3, channels)
        assert found[stage]["spatial"].shape == (2, 3, size, size)
    singly = [gates([network], images) for network in networks]
    for kind in ("channel", "spatial"):
        one, other = (each["stage1"][kind] for each in singly)
        assert not torch.equal(one, other)
        torch.testing.assert_close(found["stage1"][kind], (one + other) / 2)


def test_what_is_frozen_is_a_table_of_each_files_size_and_sha256(frozen):
    table = pd.read_csv(frozen.frozen)
    assert table.columns.tolist() == ["file", "bytes", "sha256"]
    assert table["file"].tolist() == ["seed0.safetensors", "seed5.safetensors"]
    for name, size, sha256 in table.itertuples(index=False):
        content = (frozen.folder / name).read_bytes()
        assert size == len(content) and sha256 == hashlib.sha256(content).hexdigest()


def changed_bias(path):
    tensors = load_file(path)
    tensors["classifier.bias"] += 20
    save_file(tensors, path)


def flipped(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (changed_bias, "its SHA-256 is [0-9a-f]{12}, not [0-9a-f]{12}"),
        (flipped, "its SHA-256 is"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its SHA-256 is"),
        (lambda path: path.write_bytes(b""), "its SHA-256 is"),
        (lambda path: path.write_bytes((path.parent / "seed0.safetensors").read_bytes()), "its SHA-256 is"),
        (lambda path: path.unlink(), "no such file"),
    ],
    ids=["a bias", "a bit", "cut off", "empty", "another seed's", "deleted"],
)
def test_weights_other_than_training_froze_are_refused_at_every_use(frozen, slices, damage, found):
    damage(frozen.folder / "seed5.safetensors")
    expected = f"seed5.safetensors: {found}.*, expected the weights of {NAME} that training froze; run: dvc repro "
    for use in (frozen.networks, partial(frozen.predict, "test", slices=slices)):
        with pytest.raises(ValueError, match=f"{expected}train@{NAME}$"):
            use()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:2], "seed5.safetensors is missing or not expected, one per network is"),
        (lambda lines: [*lines, lines[2].replace("5", "7", 1)], "seed7.safetensors is missing or not expected"),
        (
            lambda lines: [line.rpartition(",")[0] for line in lines],
            "'sha256', expected columns file, bytes, sha256",
        ),
        (lambda lines: [*lines[:2], "\udcff\udcfe"], "codec can't decode"),
        (lambda lines: [*lines[:2], lines[2][:-9]], "seed5.safetensors: its SHA-256 is"),
    ],
    ids=["a seed lacks", "a seed too many", "no digests", "no text", "cut off"],
)
def test_a_table_of_weights_that_is_not_of_these_seeds_is_refused(frozen, edit, message):
    lines = edit(frozen.frozen.read_text().splitlines())
    frozen.frozen.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"(?s){message}.*; run: dvc repro train@{NAME}$"):
        frozen.networks()


def test_recorded_weights_may_stand_in_any_order(frozen):
    header, *rows = frozen.frozen.read_text().splitlines()
    frozen.frozen.write_text("\n".join([header, *rows[::-1]]) + "\n")
    assert len(frozen.networks()) == 2


def test_weights_of_another_architecture_are_refused_by_name(frozen):
    wider = replace(frozen, models=replace(MODELS, thda=ThdaConfig(width=16)))
    with pytest.raises(ValueError, match=f"seed0.safetensors: .*size mismatch.*; run: dvc repro train@{NAME}$"):
        wider.networks()


def test_slices_are_aggregated_as_asked_by_the_same_weights(frozen, slices):
    table = aggregated(frozen, "test", slices=slices)
    assert set(table["run"]) == {"aggregate_mean", "aggregate_max"}
    wide = table.pivot_table(index=["seed", "patient"], columns="model", values="probability")
    assert (wide["aggregate_max"] >= wide["aggregate_mean"]).all()
    median = frozen.predict("test", slices=slices)
    mean = wide["aggregate_mean"].to_numpy()  # of two slices the median is the mean
    np.testing.assert_allclose(median.sort_values(["seed", "patient"])["probability"], mean, atol=2e-6)


def test_only_a_variant_whose_heads_see_adjacent_slices_needs_neighbours(run):
    models = replace(MODELS, variants={"adjacent": {"head_input": "adjacent_slices"}})
    found = [replace(run, model=m, models=models).sees_neighbours for m in ("thda", "thda_adjacent", "vit")]
    assert found == [False, True, False]


def test_attention_inside_a_lesion_is_its_share_of_the_map():
    maps, masks = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, :2, :2] = True
    maps[0, :, :2, :2] = 1.0  # all of it inside
    maps[1] = 0.5 + 0.25 * (torch.arange(4) % 2)  # every other column open: a quarter of it inside
    inside, chance = attention_inside(maps, masks)
    torch.testing.assert_close(inside, torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(chance, torch.tensor([0.25, 0.25]))


def test_fresh_networks_differ_by_seed_repeat_and_are_ready_to_predict(run):
    a, b, c = run.fresh(0), run.fresh(1), run.fresh(0)
    assert torch.equal(a.classifier.weight, c.classifier.weight)
    assert not torch.equal(a.classifier.weight, b.classifier.weight)
    assert not a.training  # batch normalisation would mix the slices of a batch


def test_weights_that_were_never_trained_say_which_stage_makes_them(run):
    with pytest.raises(ValueError, match=f"{NAME}.csv: no such file, .*; run: dvc repro train@{NAME}$"):
        run.networks()
