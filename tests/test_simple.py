"""First-order and shape numbers against constructed images, and the simple models as prediction tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from prepared_samples import make_run, write_prepared

from her2core import simple
from her2core.dataset import Prepared

LESION = np.zeros((40, 40), bool)
LESION[10:20, 5:25] = True  # 10 × 20 pixels


def image():
    """Background 10, 20, 30; lesion with greys 100 to 199, each as often, plus 20 a phase."""
    picture = np.full((3, 40, 40), [[[10]], [[20]], [[30]]], np.uint8)
    picture[:, LESION] = np.repeat(np.arange(100, 200), 2) // 2 + np.array([[0], [20], [40]])
    return picture


def test_greys_inside_the_lesion_and_of_the_crop_are_numpys():
    found, pixels = simple.first_order_of_slice(image(), LESION), image().astype(float)
    for k, phase in enumerate(("pre", "early", "late")):
        for where, values in (("lesion", pixels[k][LESION]), ("crop", pixels[k].ravel())):
            assert found[f"{where}_{phase}_mean"] == pytest.approx(values.mean())
            assert found[f"{where}_{phase}_sd"] == pytest.approx(values.std())
            assert found[f"{where}_{phase}_p90"] == pytest.approx(np.percentile(values, 90))
    assert list(found) == [*simple.LESION, *simple.CROP]
    assert len(simple.LESION) == len(simple.CROP) == 15


def test_the_outline_of_a_rectangle_and_of_a_disc_are_known():
    found = simple.first_order_of_slice(image(), LESION)
    assert found["log_area"] == pytest.approx(np.log(200))
    assert found["elongation"] == pytest.approx(2)
    y, x = np.indices((201, 201)) - 100
    disc = simple.first_order_of_slice(np.zeros((3, 201, 201), np.uint8), y**2 + x**2 <= 80**2)
    assert disc["compactness"] == pytest.approx(1, abs=0.02) and disc["elongation"] == pytest.approx(1, abs=0.001)
    assert found["compactness"] == pytest.approx((60 * np.pi / 4) ** 2 / (4 * np.pi * 200))  # 60 edges of pixels


def test_one_pixel_has_an_outline_too():
    mask = np.zeros((40, 40), bool)
    mask[3, 4] = True
    found = simple.first_order_of_slice(image(), mask)
    assert found["elongation"] == pytest.approx(1) and np.isfinite([*found.values()]).all()


def test_a_slice_without_lesion_is_refused():
    with pytest.raises(ValueError, match="empty mask, expected at least one pixel"):
        simple.first_order_of_slice(image(), np.zeros((40, 40), bool))


SPLITS = ["train"] * 12 + ["validation"] * 4 + ["test"] * 6 + ["external"] * 6


@pytest.fixture
def run(tmp_path, rng):
    patients = [(f"p{k:02d}", split, k % 2, 2) for k, split in enumerate(SPLITS)]
    (tmp_path / "prepare").mkdir()
    return make_run(write_prepared(tmp_path / "prepare", rng, patients, px=8), tmp_path / "frozen")


def test_a_patients_numbers_are_the_mean_of_its_slices(run):
    found, prepared = simple.first_order(run.opened, run.window), run.opened
    assert found.index.tolist() == sorted(set(prepared.patient)) and list(found) == [*simple.LESION, *simple.CROP]
    rows = np.flatnonzero(prepared.patient == "p03")
    images = prepared.under(run.window, rows=rows).images.numpy()
    slices = [simple.first_order_of_slice(i, m) for i, m in zip(images, prepared.masks[rows], strict=True)]
    assert found.loc["p03"].tolist() == pytest.approx(pd.DataFrame(slices).mean().tolist())


def sheet_of(run, rng, splits=SPLITS):
    """A worksheet with one column that tells the label and one that does not."""
    label = np.arange(len(splits)) % 2
    told = {"told": label + 0.1 * rng.standard_normal(len(splits)), "noise": rng.standard_normal(len(splits))}
    patients = [f"p{k:02d}" for k in range(len(splits))]
    return pd.DataFrame({"patient": patients, "split": splits, "label": label, "dataset": "a"} | told)


def test_the_simple_models_predict_every_split_asked_for_with_the_runs_seeds(run, rng):
    models = {"good": ("told",), "poor": ("noise",)}
    table = simple.simple_table(run, sheet_of(run, rng), models, "test", "external")
    assert set(table["split"]) == {"test", "external"} and "fold" not in table
    assert set(table["model"]) == {"majority", "good", "poor"} and set(table["seed"]) == set(run.training.seeds)
    good = table[table["model"] == "good"]
    assert ((good["probability"] > 0.5) == (good["label"] == 1)).all()


def test_under_folds_an_external_patient_has_the_mean_of_all_folds(run, rng):
    folded = replace(run, folds=4, repeats=1)
    splits = [f"folds {k // 2 % 4}" for k in range(22)] + ["external"] * 6
    table = simple.simple_table(folded, sheet_of(run, rng, splits), {"good": ("told",)}, "test", "external")
    external = table[table["split"] == "external"]
    assert len(external) == 6 * 2 * len(run.training.seeds) and external["fold"].isna().all()
    inside = table[table["split"] == "test"]
    assert len(inside) == 22 * 2 * len(run.training.seeds) and set(inside["fold"]) == {0, 1, 2, 3}


def test_what_a_window_clips_is_the_share_of_the_lesions_pixels_that_are_white(tmp_path, rng):
    prepared = write_prepared(tmp_path, rng, px=16)
    opened = Prepared.open(prepared)
    found = simple.clipped(opened, ["channel_q95", "global_minmax"], ["a", "c"]).set_index("window")
    early, lesion = opened.images[:, 1].astype(float), opened.masks
    for window, level, scope in (("channel_q95", 0.95, "channel"), ("global_minmax", 1.0, "global")):
        above = early >= opened.quantile(scope, "early", level)[:, None, None]
        of = [opened.patient == name for name in "ac"]
        inside = [(above & lesion)[its].sum() / lesion[its].sum() for its in of]
        assert found.loc[window, "white"] == pytest.approx(np.mean(inside), abs=0.02)
        assert found.loc[window, "patients"] == 2
    assert found.loc["channel_q95", "white"] > found.loc["global_minmax", "white"]
