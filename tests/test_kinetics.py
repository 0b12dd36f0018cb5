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


MODELS = {"kinetics": k.FEATURES, "clinical": ("age", "hr"), "clinical_kinetics": ("age", "hr", *k.FEATURES)}


@pytest.fixture
def table(rng):
    label = np.arange(300) % 2
    rows = pd.DataFrame({f: rng.normal(size=300) for f in (*k.FEATURES, "age", "hr")})
    rows["washout"] -= 3 * label
    rows["patient"], rows["label"] = [f"P{i:03d}" for i in range(300)], label
    return rows.assign(split=np.repeat(["train", "validation", "test"], (120, 100, 80)))


def told(table, **models):
    return k.simple_predictions(table, "embedded", ["validation", "test"], (0, 1), models or MODELS)


def test_the_line_finds_the_features_that_tell_and_majority_tells_nothing(table):
    found = told(table).query("split == 'test'")
    assert found.groupby(["run", "seed"]).size().to_dict() == {
        (f"{m}-none-raw", s): 80 for m in ("kinetics", "clinical", "clinical_kinetics", "majority") for s in (0, 1)
    }
    gap = found[found["seed"] == 0].groupby(["model", "label"])["probability"].mean().unstack().diff(axis=1)[1]
    assert gap["kinetics"] > 0.7 and gap["clinical_kinetics"] > 0.7 and abs(gap["clinical"]) < 0.1
    assert set(found.loc[found["model"] == "majority", "probability"]) == {0.5}


def test_nothing_but_training_patients_is_fitted(table):
    other = table.copy()
    other.loc[(other["split"] == "test") & (other["patient"] != "P299"), "washout"] = 99.0
    last = [told(t, kinetics=k.FEATURES).query("patient == 'P299'") for t in (table, other)]
    pd.testing.assert_frame_equal(*last)


def test_who_lacks_a_value_has_the_training_patients_median(table):
    other = table.copy()
    other.loc[other.index[-1], "age"] = np.nan
    as_median = table.copy()
    as_median.loc[as_median.index[-1], "age"] = table.loc[table["split"] == "train", "age"].median()
    found = [told(t, clinical=("age", "hr")) for t in (other, as_median)]
    pd.testing.assert_frame_equal(*found)


def test_one_class_cannot_be_fitted(table):
    with pytest.raises(ValueError, match=r"120 training patients with the labels \[1\], expected 0 and 1"):
        told(table.assign(label=1))


def test_clinical_columns_are_those_known_beforehand(table):
    patients = pd.DataFrame(
        {"patient": ["a", "b"], "age": [51, None], "menopause": ["pre", "post"], "hr": [1, 0], "her2": [0, 1]}
    )
    found = k.clinical(patients, "her2")
    assert [*found] == ["age", "menopause", "hr"] and found.loc["b"].tolist()[1:] == [1.0, 0.0]
    assert [*k.clinical(patients, "hr")] == [*k.clinical(patients, "triple_negative")] == ["age", "menopause"]
    assert [*k.clinical(patients.assign(menopause=None), "pcr")] == ["age", "hr"]


def test_what_a_network_adds_is_the_logistic_regression_of_statsmodels(table, rng):
    import statsmodels.api as sm
    from scipy.special import expit, logit

    baseline = told(table, kinetics=k.FEATURES).query("model == 'kinetics'")
    noise = rng.normal(size=len(baseline))
    network = baseline.assign(run="thda", model="thda", probability=expit(0.5 * baseline["label"] + noise).round(6))
    found = k.combined(network, baseline)
    assert found["model"].unique() == ["kinetics+thda"] and len(found) == len(network)
    for seed in (0, 1):
        x, z = (logit(t[t["seed"] == seed]["probability"].clip(1e-6, 1 - 1e-6)) for t in (network, baseline))
        design = sm.add_constant(np.column_stack([x, z]))
        labels = baseline[baseline["seed"] == seed]["label"].to_numpy()
        order = baseline[baseline["seed"] == seed]["split"].to_numpy() == "validation"
        model = sm.Logit(labels[order], design[order]).fit(disp=0)
        expected = model.predict(design)
        mine = found[found["seed"] == seed].set_index("patient").loc[baseline[baseline["seed"] == seed]["patient"]]
        np.testing.assert_allclose(mine["probability"], expected, atol=2e-6)


def test_what_is_not_paired_cannot_be_combined(table):
    baseline = told(table, kinetics=k.FEATURES).query("model == 'kinetics'")
    with pytest.raises(ValueError, match="seed 0: 0 validation patients, expected some of both labels"):
        k.combined(baseline.query("split == 'test'"), baseline)
    with pytest.raises(pd.errors.MergeError):
        k.combined(pd.concat([baseline, baseline]), baseline)
