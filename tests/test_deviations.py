"""One deviation at a time: what it changes, that nothing else changes, and what it is said to cost."""

import json
import shutil
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from house import NOTEBOOKS, TOP, code_of, copy_compendium
from prepared_samples import make_run, write_prepared
from sklearn.metrics import roc_auc_score
from small_study import compute

from her2core import deviations
from her2core.auc import EvaluateConfig, auc
from her2core.baselines import ModelConfig
from her2core.cohort import included, patient_table
from her2core.dataset import Prepared, Slices
from her2core.model import ThdaConfig
from her2core.normalize import Window
from her2core.preprocess import PrepareConfig
from her2core.run import run
from her2core.runs import Run
from her2core.train import TrainConfig

CONFIG = EvaluateConfig(bootstrap=200)
PATIENTS = [
    ("a", "train", 1, 2),
    ("b", "train", 0, 1),
    ("c", "test", 1, 3),
    ("d", "test", 0, 4),
    ("e", "external", 1, 2),
]


@pytest.fixture
def prepared(tmp_path, rng):
    return Prepared.open(write_prepared(tmp_path, rng, PATIENTS))


def same(first, second):
    names = ("images", "quantiles", "moments", "patient")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


# --- of packed arrays ---------------------------------------------------------------------------------------


def test_only_test_and_external_patients_are_priced(prepared):
    found = deviations.tested(prepared)
    assert found.patient.tolist() == ["c"] * 3 + ["d"] * 4 + ["e"] * 2
    assert np.array_equal(found.images, prepared.images[3:]) and np.array_equal(found.moments, prepared.moments[3:])


def test_without_a_test_split_nothing_is_priced(prepared):
    with pytest.raises(ValueError, match="expected test: of folds nothing is priced here"):
        deviations.tested(replace(prepared, split=np.array(["folds 0"] * len(prepared.patient))))


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0)])
def test_phases_swapped_twice_are_as_they_were(prepared, order):
    once = deviations.phases_as(prepared, *order)
    assert not same(once, prepared) and same(deviations.phases_as(once, *order), prepared)


def test_swapped_phases_bring_their_statistics_along(prepared):
    once = deviations.phases_as(prepared, 0, 2, 1)
    faithful, swapped = prepared.under("channel_q98").images, once.under("channel_q98").images
    assert torch.equal(swapped, faithful[:, [0, 2, 1]]) and not torch.equal(swapped, faithful)


def test_a_missing_late_phase_is_the_early_one_again(prepared):
    found = deviations.phases_as(prepared, 0, 1, 1)
    assert np.array_equal(found.images[:, 2], prepared.images[:, 1])
    assert np.array_equal(found.quantiles[:, :, 2], prepared.quantiles[:, :, 1])


@pytest.mark.parametrize(("axis", "column"), [(3, (..., 0)), (2, (..., 0, slice(None)))])
def test_images_mirrored_twice_are_as_they_were(prepared, axis, column):
    once = deviations.mirrored(prepared, axis)
    assert np.array_equal(
        once.images[column], prepared.images[column[:-1] + (-1,) if axis == 3 else (..., -1, slice(None))]
    )
    assert same(deviations.mirrored(once, axis), prepared)


def test_the_middle_slice_alone_leaves_one_of_each_patient(prepared):
    found = deviations.middle_alone(prepared)
    assert found.patient.tolist() == list("abcde")
    assert np.array_equal(found.images, prepared.images[[1, 2, 4, 8, 11]])


@pytest.mark.parametrize(
    ("name", "others"),
    [
        (
            "global_minmax",
            {"scope_slice": ("slice", 1), "scope_channel": ("channel", 1), "white_99": ("global", 0.99)},
        ),
        (
            "channel_q98",
            {"scope_global": ("global", 0.98), "white_95": ("channel", 0.95), "white_99": ("channel", 0.99)},
        ),
    ],
)
def test_another_window_has_another_scope_or_another_white(name, others):
    window, levels = Window.parse(name), [0, 0.95, 0.98, 0.99, 1]
    found = deviations.other_windows(window, levels)
    assert {key: (found[key].scope, found[key].upper) for key in others} == others
    assert window not in found.values() and len(found) == (5 if name == "global_minmax" else 4)


def test_a_window_takes_no_quantile_that_is_not_stored_and_nyul_no_slice():
    assert (
        set(deviations.other_windows(Window.parse("global_minmax"), [0, 0.98, 1])) & {"white_99", "white_95"}
        == set()
    )
    assert set(deviations.other_windows(Window.parse("global_nyul"), [0, 0.98, 1])) == {"scope_channel"}


# --- of raw files -------------------------------------------------------------------------------------------

PREPARE = PrepareConfig(64.0, 32, 3, (0.0, 1.0), 150.0, 450.0, ("raw",), False, False, 1)


@pytest.fixture
def mask():
    found = np.zeros((6, 40, 40), bool)
    found[1, 10:14, 6:10] = found[2, 10, 6] = True
    return found


def ways(mask, layout="own"):
    return deviations.other_packs(mask, (3.0, 2.0, 2.0), layout, PREPARE)


def test_each_other_pack_changes_the_mask_or_the_crop_and_nothing_else(mask):
    for name, (other, config) in ways(mask, "dicom_analysis_mask").items():
        changed = (not np.array_equal(other, mask)) + (config != PREPARE)
        assert changed == (name != deviations.FAITHFUL), name
    assert {n: c.crop_mm for n, (_, c) in ways(mask).items() if c != PREPARE} == {
        "crop_smaller": 51.2,
        "crop_larger": 80.0,
        "native_pixels": None,
    }


def test_a_crop_beside_the_lesion_lies_ten_millimetres_towards_the_middle(mask):
    for lesion, step in ((mask, 5), (mask[:, :, ::-1], -5)):
        moved = np.argwhere(ways(lesion)["off_centre"][0]).mean(0) - np.argwhere(lesion).mean(0)
        assert moved.tolist() == [0, 0, step]  # of pixels of 2 mm


def test_a_box_is_the_smallest_around_the_outline(mask):
    found = ways(mask)["box"][0]
    assert found.sum() == 2 * 4 * 4 and found[1:3, 10:14, 6:10].all()


def test_only_the_masks_of_ispy2_can_be_taken_as_they_stand(mask):
    assert np.array_equal(ways(mask, "dicom_analysis_mask")["mask_not_inverted"][0], ~mask)
    assert np.array_equal(ways(mask, "dicom_roi")["mask_not_inverted"][0], mask)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top := tmp_path_factory.mktemp("small"))
        yield compute(top)


@pytest.fixture(scope="module")
def patients(study):
    return included(patient_table(pd.read_csv(study.data("acquire") / "metadata.csv")))


@pytest.fixture(scope="module")
def others(study, patients):
    run, config = Run.of(study), study.params("prepare", PrepareConfig)
    return dict(deviations.repacked(deviations.tested(run.opened), patients, study.data("acquire"), config))


def test_the_raw_files_are_packed_in_every_other_way(study, others):
    found = deviations.tested(Run.of(study).opened)
    assert {"crop_smaller", "crop_larger", "native_pixels", "off_centre", "first_last"} < set(others)
    for name in ("crop_smaller", "crop_larger", "native_pixels", "off_centre"):
        assert np.array_equal(others[name].patient, found.patient)
        assert not np.array_equal(others[name].images, found.images)
        channel = others[name].quantiles[:, 1:]  # statistics of the volume know of no crop
        assert np.array_equal(channel, found.quantiles[:, 1:])


def test_a_mask_taken_as_it_stands_moves_the_crop_of_ispy2_alone(study, others):
    found, other = deviations.tested(Run.of(study).opened), others["mask_not_inverted"]
    moved = {
        str(where): not np.array_equal(other.images[other.dataset == where], found.images[found.dataset == where])
        for where in set(found.dataset)
    }
    assert moved == {"spy2": True, "spy1": False, "ambl": False}


def test_arrays_that_the_raw_files_do_not_give_are_an_error(study, patients):
    config, opened = study.params("prepare", PrepareConfig), deviations.tested(Run.of(study).opened)
    odd = replace(opened, images=opened.images + np.uint16(1))
    with pytest.raises(ValueError, match="does not give the arrays in .*; run: dvc repro prepare"):
        dict(deviations.repacked(odd, patients, study.data("acquire"), config))


# --- predicted and scored -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(study, others):
    return deviations.at_prediction(Run.of(study), others.items())


def test_the_faithful_preparation_gives_the_predictions_of_the_reference(study, table):
    path = study.results / "predictions" / f"{Run.of(study).name}.csv"
    assert deviations.check_faithful(table, [path]) == 0
    known = pd.read_csv(path).query("split == 'test'")
    own = table[(table["run"] == deviations.FAITHFUL) & (table["split"] == "test")]
    assert own["probability"].tolist() == known["probability"].tolist()


def test_predictions_unlike_those_that_were_committed_are_an_error(study, table, tmp_path):
    path = study.results / "predictions" / f"{Run.of(study).name}.csv"
    known = pd.read_csv(path)
    known.assign(probability=(known["probability"] - 0.001).clip(0, 1)).to_csv(
        other := tmp_path / "moved.csv", index=False
    )
    with pytest.raises(
        ValueError, match="up to 0.001000 away from those in .*moved.csv, 0 not there, expected the same"
    ):
        deviations.check_faithful(table, [other])
    with pytest.raises(ValueError, match="2 not there, expected the same ones; run: dvc repro"):
        deviations.check_faithful(table.replace({"patient": {known["patient"].iloc[-1]: "stranger"}}), [path])


def test_every_deviation_that_is_predicted_stands_in_the_table_of_words(table):
    assert set(table["run"]) - {deviations.FAITHFUL} < set(deviations.DEVIATIONS)
    assert {"early_late", "scope_global", "white_99", "n4", "off_centre", "mean", "averaged"} < set(table["run"])
    assert not [words for _, words in deviations.DEVIATIONS.values() if {*"-+_"} & {*words}]


def test_a_deviation_has_a_row_for_each_patient_and_seed(table):
    assert set(table.groupby("run").size()) == {(4 + 2) * 2}


def test_every_second_slice_alone_is_what_a_split_by_slice_leaves_to_be_tested(study):
    run_ = Run.of(study)
    kept = dict(deviations._arrays(deviations.tested(run_.opened)))["second_slices"]
    _, _, left = deviations.split_by_slice(run_.slices())
    at_test = left.split == "test"
    assert kept.patient[kept.split == "test"].tolist() == left.patient[at_test].tolist()
    images = kept.under(run_.window).images[torch.from_numpy(kept.split == "test")]
    assert torch.equal(images, left.images[torch.from_numpy(at_test)])


def test_a_network_after_n4_sees_other_images_and_the_same_weights(study, table):
    run_ = Run.of(study)
    expected = replace(run_, bias_field="n4").slices()
    expected = run_.predict("test", slices=expected)["probability"].tolist()
    found = table[(table["run"] == "n4") & (table["split"] == "test")]["probability"].tolist()
    assert found == pytest.approx(expected, abs=2e-6)


def predictions(probability, run="faithful", split="test", labels=(1, 1, 0, 0)):
    rows = [
        {"patient": f"p{k}", "split": split, "label": labels[k], "run": run, "seed": seed, "probability": p}
        for seed, own in enumerate(probability)
        for k, p in enumerate(own)
    ]
    return pd.DataFrame(rows).assign(cohort="c", model="thda", window="global_minmax", bias_field="raw")


GOOD, BAD = [0.9, 0.8, 0.2, 0.1], [0.1, 0.8, 0.2, 0.9]


def test_one_seed_alone_stands_for_all_and_averages_are_those_of_each_patient():
    found = deviations.of_seeds(predictions([BAD, GOOD]))
    by = {
        name: part.pivot(index="seed", columns="patient", values="probability")
        for name, part in found.groupby("run")
    }
    assert by["best_seed"].to_numpy().tolist() == [GOOD] * 2 and by["worst_seed"].to_numpy().tolist() == [BAD] * 2
    assert by["averaged"].to_numpy() == pytest.approx(np.mean([[BAD] * 2, [GOOD] * 2], 0))


@pytest.mark.parametrize("changes", [{"folds": 5}, {"bias_field": "n4"}])
def test_runs_that_would_need_more_than_is_done_here_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match="expected a run on raw images, without folds and adjacent slices"):
        deviations.at_prediction(make_run(tmp_path, tmp_path, **changes))


# --- in training --------------------------------------------------------------------------------------------


@pytest.fixture
def slices(generator):
    """Eight training, four validation, four test patients of three slices, and two external ones."""
    names = [f"p{k:02d}" for k in range(18)]
    split = np.repeat(["train", "validation", "test", "external"], [8, 4, 4, 2])
    images = torch.randint(0, 255, (54, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Slices(images, np.repeat(names, 3), np.repeat(split, 3), np.repeat(np.arange(18) % 2, 3))


def seen(part):
    return {image.numpy().tobytes() for image in part.images}


def test_a_split_by_slice_shares_patients_and_no_slice(slices):
    train, validation, tested = deviations.split_by_slice(slices)
    assert set(validation.split) == {"validation"} and len(validation.images) == 12
    assert seen(train) & seen(tested) == set()
    at_test = {p for p, split in zip(tested.patient, tested.split, strict=True) if split == "test"}
    assert at_test == {"p12", "p13", "p14", "p15"} and at_test < set(train.patient)
    assert [p for p in tested.patient if p in at_test] == list(np.repeat(sorted(at_test), 2))  # two of three slices


def test_a_split_by_slice_trains_on_as_many_patients_as_before(slices):
    train, _, tested = deviations.split_by_slice(slices)
    assert len(set(train.patient)) == 8 and sorted(set(tested.split)) == ["external", "test"]
    assert (tested.patient == "p16").sum() == 3  # of other sites all slices


def test_where_most_patients_are_tested_a_split_by_slice_trains_on_them_alone(slices):
    few = slices.where(~np.isin(slices.patient, [f"p{k:02d}" for k in range(2, 8)]))
    train, _, _ = deviations.split_by_slice(few)
    assert set(train.patient) == {"p12", "p13", "p14", "p15"}


def test_a_checkpoint_on_test_is_chosen_on_the_test_patients_and_trained_as_before(slices):
    train, validation, tested = deviations.checkpoint_on_test(slices)
    assert seen(train) == seen(slices.of_split("train")) and set(train.split) == {"train"}
    assert seen(validation) == seen(slices.of_split("test")) == seen(tested.of_split("test"))


def test_what_was_trained_otherwise_is_not_trained_again(slices, tmp_path, monkeypatch):
    brief = TrainConfig(seeds=(0, 1), epochs=2, validate_every=1, batch_size=4, device="cpu", jobs=1)
    models = ModelConfig(ThdaConfig(width=8, blocks=(1, 1, 1, 1)))
    run_, path = make_run(None, None, models=models, training=brief), tmp_path / "trained.csv"
    monkeypatch.setattr(Run, "slices", lambda self: slices)
    first = deviations.in_training(run_, path)
    assert first.groupby(["run", "split", "seed"]).size().to_dict() == {
        (name, split, seed): n
        for name in ("split_by_slice", "checkpoint_on_test")
        for split, n in (("test", 4), ("external", 2))
        for seed in (0, 1)
    }
    half = first[first["run"] == "split_by_slice"]
    half.to_csv(path, index=False)
    trained = []
    monkeypatch.setattr(Run, "each_of", lambda self, seeds, train, label: trained.append(label) or [half])
    assert len(deviations.in_training(run_, path)) == 2 * len(half) and trained == ["checkpoint_on_test"]


# --- priced -------------------------------------------------------------------------------------------------


@pytest.fixture
def told():
    faithful = predictions([GOOD, GOOD])
    swapped, same_ = predictions([BAD, GOOD], "early_late"), predictions([GOOD, GOOD], "mean")
    return pd.concat([faithful, swapped, same_, predictions([GOOD] * 2, "faithful", "external", (1, 0, 0, 0))])


def test_a_price_is_the_auc_with_the_deviation_less_the_faithful_one(told):
    row = deviations.priced(told, CONFIG).iloc[0]
    expected = np.mean([auc(np.array([1, 1, 0, 0]), np.array(p)) for p in (BAD, GOOD)])
    assert (row["deviation"], row["where"], row["split"]) == ("early_late", "at prediction", "test")
    assert row["words"] == "early and late phase swapped" and row["faithful_auc"] == 1
    assert row["auc"] == pytest.approx(expected) and row["difference"] == pytest.approx(expected - 1)
    assert row["low"] <= row["difference"] <= row["high"] and row["p_holm"] <= 1
    assert (row["patients"], row["positives"], row["seeds"]) == (4, 2, 2)


def test_what_changes_nothing_has_no_row_and_a_split_with_one_positive_none(told):
    assert list(deviations.priced(told, CONFIG)["deviation"]) == ["early_late"]


def test_prices_are_corrected_for_all_deviations_of_a_split(rng):
    labels = tuple(np.arange(40) % 2)
    noisy = {name: rng.random((2, 40)) + 0.5 * np.array(labels) for name in ("faithful", "early_late", "n4", "max")}
    table = pd.concat([predictions(p / 1.5, name, labels=labels) for name, p in noisy.items()])
    found = deviations.priced(table, CONFIG)
    alone = deviations.priced(table[table["run"].isin(["faithful", "n4"])], CONFIG)
    assert list(found["deviation"]) == ["early_late", "n4", "max"]  # as in the table of words
    assert found["p_holm"].max() <= 1 and alone["p_holm"].item() <= found.set_index("deviation")["p_holm"]["n4"]


def test_the_answer_says_the_dearest_first_with_interval_and_verdict(told):
    found = pd.concat([deviations.priced(told, CONFIG)] * 2, ignore_index=True)
    found["words"], found["detectable"] = ["cheap", "dear"], 0.2
    found[["difference", "low", "high", "verdict"]] = [
        [-0.1, -0.3, 0.1, "no difference detected"],
        [-0.5, -0.6, -0.4, "lower than the reference"],
    ]
    text = deviations.answer(found, "small synthetic cohort")
    assert text.startswith("Small synthetic cohort: ") and "n = 4, 2 of them positive, seeds: 2" in text
    assert "Lower than the reference: dear −0.50 (−0.60 to −0.40)." in text
    assert text.endswith("No difference detected: cheap −0.10 (detectable 0.20).")


RESULTS = TOP / "results/embedded"


def test_the_prices_of_trained_networks_follow_from_the_committed_predictions():
    found = pd.read_csv(RESULTS / "deviations.csv").set_index(["deviation", "split"])
    trained = pd.read_csv(RESULTS / "deviations_trained.csv")
    for (name, split), rows in trained.groupby(["run", "split"]):
        mean = rows.groupby("seed")[["label", "probability"]].apply(
            lambda r: roc_auc_score(r["label"], r["probability"])
        )
        assert found.loc[(name, split), "auc"] == pytest.approx(mean.mean(), abs=2e-6)
    metrics = json.loads((RESULTS / "metrics.json").read_text())
    faithful = found["faithful_auc"].groupby("split").first()
    assert faithful["test"] == pytest.approx(metrics["internal"]["auc"], abs=6e-5)
    assert faithful["external"] == pytest.approx(metrics["external"]["AMBL"]["auc"], abs=6e-5)


def test_the_readme_says_of_deviations_what_their_table_says():
    found = pd.read_csv(RESULTS / "deviations.csv").set_index(["words", "split"])
    readme = (TOP / "README.md").read_text().partition("| one deviation, on the phantom |")[2].partition("\n\n")[0]
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme.splitlines()[2:]]
    assert len(told) >= 5
    for words, *cells in told:
        rows = [found.loc[(words, split)] for split in ("test", "external")]
        ends = ["{difference:+.2f} ({low:+.2f} to {high:+.2f})".format(**row).replace("-", "−") for row in rows]
        assert cells == [*ends, rows[0]["verdict"]], words


# --- the notebook -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_prices_a_small_study_from_its_raw_files(study, patients, tmp_path, monkeypatch):
    copy_compendium(tmp_path)
    for part in ("data", "models", "results"):
        shutil.copytree(study.top / part, tmp_path / part)
    shutil.copyfile(study.top / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "data/embedded/cohort").mkdir()
    patients.to_csv(tmp_path / "data/embedded/cohort/patients.csv", index=False)
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(run("13_deviations", {"train": "no"}), 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert "raw files are at hand" in said and "the committed ones: 0 apart at most" in said
    assert outputs[-1]["data"]["text/markdown"].startswith("**Answer.** Embedded synthetic cohort: ")
    found = pd.read_csv(tmp_path / "results/embedded/deviations.csv")
    assert {"off_centre", "mask_not_inverted", "early_late"} < set(found["deviation"])


def test_the_notebook_compares_the_faithful_predictions_before_it_prices_anything():
    code = code_of(next(n for n in NOTEBOOKS if n.stem == "13_deviations"))
    assert 0 < code.index("deviations.check_faithful(") < code.index("deviations.priced(")
