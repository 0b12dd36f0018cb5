"""Size and kinetics of a lesion, and the line through them."""

import numpy as np
import pandas as pd
import pytest

from her2core import kinetics as k


@pytest.fixture
def lesion():
    """A cube of eight voxels of 2 × 1 × 1 mm: 100 before contrast, 250 early, 200 late; 50 around it."""
    mask = np.zeros((4, 8, 8), bool)
    mask[1:3, 3:5, 3:5] = True
    phases = np.full((3, 4, 8, 8), 50, np.uint16)
    for phase, value in zip(phases, (100, 250, 200), strict=True):
        phase[mask] = value
    return phases, mask


def test_features_are_those_of_the_definition(lesion):
    found = k.lesion_features(*lesion, (2.0, 1.0, 1.0))
    assert found == pytest.approx(
        {"log_volume_ml": np.log(0.016), "pe_early": 1.5, "pe_late": 1.0, "ser": 1.5, "washout": -0.2}
    )
    assert tuple(found) == k.FEATURES


def test_kinetics_do_not_change_with_the_scanners_gain(lesion):
    phases, mask = lesion
    assert k.lesion_features(phases * 7, mask, (2, 1, 1)) == pytest.approx(
        k.lesion_features(phases, mask, (2, 1, 1))
    )


@pytest.mark.parametrize(("late", "ser"), [(100, 3.0), (90, 3.0), (101, 3.0), (400, 0.5)])
def test_a_lesion_that_hardly_enhances_late_has_a_bounded_ratio(lesion, late, ser):
    phases, mask = lesion
    phases[2][mask] = late
    assert k.lesion_features(phases, mask, (2, 1, 1))["ser"] == ser


def test_a_lesion_without_signal_has_finite_features(lesion):
    phases, mask = lesion
    assert np.isfinite(list(k.lesion_features(np.zeros_like(phases), mask, (2, 1, 1)).values())).all()


def test_what_is_no_lesion_is_refused(lesion):
    phases, mask = lesion
    with pytest.raises(ValueError, match="empty mask"):
        k.lesion_features(phases, np.zeros_like(mask), (2, 1, 1))
    with pytest.raises(ValueError, match=r"phases \(2, 4, 8, 8\) and mask"):
        k.lesion_features(phases[:2], mask, (2, 1, 1))


@pytest.fixture
def table(rng):
    her2 = np.arange(200) % 2
    rows = pd.DataFrame({f: rng.normal(size=200) for f in k.FEATURES})
    rows["washout"] -= 3 * her2
    rows["patient"], rows["her2"] = [f"P{i:03d}" for i in range(200)], her2
    return rows.assign(split=np.where(np.arange(200) < 120, "train", "test"))


def test_the_line_finds_the_feature_that_tells_and_majority_tells_nothing(table):
    found = k.simple_predictions(table, "embedded", ["test"], (0, 1))
    assert found.groupby(["run", "seed"]).size().to_dict() == {
        (f"{m}-none-raw", s): 80 for m in ("kinetics", "majority") for s in (0, 1)
    }
    line = found[(found["model"] == "kinetics") & (found["seed"] == 0)]
    assert line.groupby("label")["probability"].mean().diff().iloc[1] > 0.7
    assert set(found.loc[found["model"] == "majority", "probability"]) == {0.5}


def test_nothing_but_training_patients_is_fitted(table):
    other = table.copy()
    other.loc[other["split"] == "test", "washout"] = 99.0
    for model in (k.fit_kinetics(table), k.fit_kinetics(other)):
        np.testing.assert_array_equal(model[-1].coef_, k.fit_kinetics(table)[-1].coef_)


def test_one_class_cannot_be_fitted(table):
    with pytest.raises(ValueError, match=r"120 training patients with HER2 \[1\], expected 0 and 1"):
        k.fit_kinetics(table.assign(her2=1))
