"""The phantom against its own truth: what is shared, what carries the label, what the scanner does."""

import dataclasses
import hashlib

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.special import logit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import StandardScaler

from her2core.phantom import patient
from her2core.phantom.anatomy import smooth_field
from her2core.phantom.patient import make_patient
from her2core.phantom.sites import SITES, draw_protocol
from her2core.phantom.truth import draw_clinical, draw_truth, expected_signal, posterior

SMALL = {
    name: dataclasses.replace(site, shape=(12, 64, 64), spacing_mm=(5.0, 2.8, 2.8)) for name, site in SITES.items()
}
N_TRUTHS = 2000


def cohort_of_truths(n=N_TRUTHS, **options):
    """n drawn truths, half of them HER2 positive, as arrays by field name."""
    truths = [draw_truth(i % 2, np.random.default_rng([2026, i]), **options) for i in range(n)]
    return {f.name: np.array([getattr(t, f.name) for t in truths]) for f in dataclasses.fields(truths[0])}


@pytest.fixture(scope="module")
def truths():
    return cohort_of_truths()


@pytest.fixture(scope="module")
def patients():
    """One full-size patient per site."""
    return {name: make_patient(3, 1, name) for name in SITES}


def standard_error(auc, n_pos, n_neg):
    """Hanley and McNeil 1982."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (n_pos - 1) * (q1 - auc**2) + (n_neg - 1) * (q2 - auc**2)
    return np.sqrt(spread / (n_pos * n_neg))


def odds_ratio(sign, label):
    p, q = sign[label == 1].mean(), sign[label == 0].mean()
    return p / (1 - p) / (q / (1 - q))


def near_lesions(*patients, voxels=3):
    mask = np.any([p.lesion_mask for p in patients], axis=0)
    return ndimage.binary_dilation(mask, np.ones((3, 3, 3)), iterations=voxels)


def air_in_front(patient):
    """Voxels clear of the body in the anterior third."""
    air = ~ndimage.binary_dilation(patient.body_mask, iterations=3)
    air[:, air.shape[1] // 3 :] = False
    return air


def digest(patient):
    return hashlib.sha256(patient.series.array.tobytes()).hexdigest()


# --- the label ---


@pytest.mark.parametrize("bayes_auc", [0.65, 0.80, 0.95])
def test_latent_reaches_the_bayes_auc_and_no_more(bayes_auc):
    drawn = cohort_of_truths(bayes_auc=bayes_auc)
    half = N_TRUTHS // 2
    assert abs(roc_auc_score(drawn["her2"], drawn["u"]) - bayes_auc) < 2 * standard_error(bayes_auc, half, half)


@pytest.mark.parametrize(("bayes_auc", "best"), [(0.95, 0.917), (0.80, 0.761)])
def test_the_posterior_is_calibrated_and_above_every_parameter_and_below_the_latent(bayes_auc, best):
    drawn = pd.DataFrame(cohort_of_truths(6000, bayes_auc=bayes_auc))
    found, half = posterior(drawn, 0.5), 3000
    areas = {name: roc_auc_score(drawn["her2"], values) for name, values in found.items()}
    assert abs(areas["p_parameters"] - best) < 2 * standard_error(best, half, half)
    assert areas["p_latent"] > areas["p_parameters"]
    assert areas["p_parameters"] > max(
        roc_auc_score(drawn["her2"], drawn[c]) for c in ("ktrans_per_min", "n_satellites")
    )
    for values in found.to_numpy().T:
        bins = pd.qcut(values, 6)
        off = (
            drawn["her2"].groupby(bins, observed=True).mean()
            - pd.Series(values).groupby(bins, observed=True).mean()
        )
        assert off.abs().max() < 4 * 0.5 / np.sqrt(1000)


def test_a_posterior_knows_the_prevalence_and_how_strong_the_signal_is():
    drawn = pd.DataFrame(cohort_of_truths(50))
    rare, even = posterior(drawn, 0.1), posterior(drawn, 0.5)
    np.testing.assert_allclose(logit(even) - logit(rare), np.log(9), rtol=1e-9)
    shift = np.sqrt(2) * norm.ppf(0.8)
    np.testing.assert_allclose(logit(even["p_latent"]), shift * drawn["u"])


@pytest.mark.parametrize("name", ["radius_mm", "density", "side", "background", "lobulation", "spiculations", "vp"])
def test_nuisance_parameters_do_not_know_the_label(truths, name):
    _, rank = np.unique(truths[name], return_inverse=True)
    half = N_TRUTHS // 2
    assert abs(roc_auc_score(truths["her2"], rank) - 0.5) < 2 * standard_error(0.5, half, half)


def test_twins_differ_only_in_what_the_latent_loads():
    for i in range(100):
        a, b = [draw_truth(her2, np.random.default_rng([5, i])) for her2 in (0, 1)]
        for name in ("radius_mm", "density", "side", "background", "lobulation", "spiculations", "vp"):
            assert getattr(a, name) == getattr(b, name)
        assert a.u < b.u and a.ktrans_per_min <= b.ktrans_per_min and a.n_satellites <= b.n_satellites


def test_drawn_numbers_have_no_digits_in_which_processors_differ():
    for i in range(100):
        drawn = dataclasses.asdict(draw_truth(i % 2, np.random.default_rng([7, i])))
        numbers = [v for name, v in drawn.items() if isinstance(v, float) and name != "volume_ml"]
        assert len(numbers) == 12 and numbers == [round(v, 12) for v in numbers]


def test_without_loading_the_lesion_is_the_same_for_both_labels():
    for i in range(100):
        a, b = [draw_truth(her2, np.random.default_rng([6, i]), loading=0) for her2 in (0, 1)]
        assert dataclasses.replace(a, her2=1, u=b.u) == b


def test_without_loading_even_the_picture_is_the_same():
    assert digest(make_patient(4, 0, SMALL["spy1"], loading=0)) == digest(
        make_patient(4, 1, SMALL["spy1"], loading=0)
    )


@pytest.mark.parametrize("site", SITES)
def test_effect_sizes_lie_in_the_published_intervals(site):
    drawn = cohort_of_truths(8000)
    truth = dataclasses.replace(
        draw_truth(0, np.random.default_rng(0)),
        **{name: drawn[name] for name in ("ktrans_per_min", "ve", "vp")},
    )
    added = expected_signal(truth, SITES[site]) - 1
    pe, ser = added[SITES[site].early_index], added[SITES[site].early_index] / added[-1]
    assert 1.43 < odds_ratio(pe > np.median(pe), drawn["her2"]) < 4.73  # Elias 2014
    assert 1.11 < odds_ratio(ser > 1.1, drawn["her2"]) < 2.21  # Elias 2014
    assert 2.6 < odds_ratio(drawn["n_satellites"] > 0, drawn["her2"]) < 4.6  # Grimm 2015: 3.6


def test_a_strong_latent_can_be_read_from_the_picture():
    rows, label = [], np.arange(120) % 2
    site = SMALL["spy1"]
    for i, her2 in enumerate(label):
        p = make_patient(7000 + i, int(her2), site, bayes_auc=0.95)
        pre, early, late = [p.series.array[k][p.lesion_mask].astype(float) for k in (0, site.early_index, -1)]
        pe = (early.mean() - pre.mean()) / pre.mean()
        ser = (early.mean() - pre.mean()) / (late.mean() - pre.mean())
        rows.append((pe, ser, early.std() / early.mean(), ndimage.label(p.lesion_mask)[1]))
    features = StandardScaler().fit_transform(rows)
    score = cross_val_predict(LogisticRegression(), features, label, cv=5, method="decision_function")
    assert roc_auc_score(label, score) > 0.80


def test_volume_is_no_shortcut():
    volumes = [make_patient(8000 + i, i % 2, SMALL["spy1"]).truth.volume_ml for i in range(150)]
    label = np.arange(150) % 2
    assert abs(roc_auc_score(label, volumes) - 0.5) < 2 * standard_error(0.5, 75, 75)
    assert 9 < np.median(volumes) < 20  # I-SPY2: 14.7 ml


# --- twins and determinism ---


@pytest.mark.parametrize("site", SITES)
def test_equal_seeds_give_equal_bytes(site):
    assert digest(make_patient(11, 1, site)) == digest(make_patient(11, 1, site))
    assert digest(make_patient(12, 1, SMALL[site])) != digest(make_patient(13, 1, SMALL[site]))


@pytest.mark.parametrize("seed", [1, 3, 5])
@pytest.mark.parametrize("site", SITES)
def test_twins_of_equal_morphology_differ_only_near_the_lesions(site, seed):
    a, b = make_patient(seed, 0, site), make_patient(seed, 1, site)
    assert a.truth.n_satellites == b.truth.n_satellites and a.truth.non_mass == b.truth.non_mass
    differs = (a.series.array != b.series.array).any(axis=0)
    assert not differs[~near_lesions(a, b)].any()
    assert differs[a.lesion_mask].mean() > 0.9
    np.testing.assert_array_equal(a.lesion_mask, b.lesion_mask)


def test_twins_share_anatomy_bias_field_and_air():
    a, b = make_patient(2, 0, "spy1"), make_patient(2, 1, "spy1")
    assert a.truth.n_satellites != b.truth.n_satellites
    for name in ("bias_field", "body_mask", "fibroglandular"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    air = air_in_front(a)
    np.testing.assert_array_equal(a.series.array[:, air], b.series.array[:, air])


def test_the_truth_drawn_is_the_one_that_is_painted(monkeypatch):
    site, early = SMALL["spy1"], []
    drawn = make_patient(2, 0, site).truth
    for kinetics in ({"ktrans_per_min": 0.04, "ve": 0.2}, {"ktrans_per_min": 0.5, "ve": 0.6}):
        truth = dataclasses.replace(drawn, **kinetics)
        monkeypatch.setattr(patient, "draw_truth", lambda *_, truth=truth, **__: truth)
        p = make_patient(2, 0, site)
        assert dataclasses.replace(p.truth, volume_ml=0) == dataclasses.replace(truth, volume_ml=0)
        early.append(p.series.array[1][p.lesion_mask].mean())
    assert early[1] > 1.5 * early[0]


# --- masks and geometry ---


@pytest.mark.parametrize("site", SITES)
def test_patient_has_the_shapes_and_types_it_promises(patients, site):
    p, s = patients[site], SITES[site]
    assert p.series.array.dtype == np.uint16 and p.series.array.shape == (len(s.phase_times_s), *s.shape)
    assert p.series.times_s == s.phase_times_s and p.series.geometry.spacing_mm == s.spacing_mm
    for name, kind in {
        "lesion_mask": bool,
        "annotator_mask": bool,
        "body_mask": bool,
        "focus_labels": np.uint8,
        "bias_field": np.float32,
        "fibroglandular": np.float32,
    }.items():
        assert getattr(p, name).dtype == kind and getattr(p, name).shape == s.shape, name


def test_sites_are_told_apart_by_early_and_late_phase():
    found = {name: (s.early_index, s.late_index) for name, s in SITES.items()}
    assert found == {"spy2": (2, 3), "spy1": (1, 2), "ambl": (2, 4)}


@pytest.mark.parametrize("seed", range(6))
def test_every_focus_has_its_label_and_lies_in_the_breast(seed):
    p = make_patient(seed, 1, SMALL["spy2"], bayes_auc=0.95)
    sizes = np.bincount(p.focus_labels.ravel(), minlength=p.truth.n_satellites + 2)[1:]
    assert sizes.argmax() == 0 and len(sizes) == p.truth.n_satellites + 1
    np.testing.assert_array_equal(p.lesion_mask, p.focus_labels > 0)
    assert not p.lesion_mask[~p.body_mask].any()
    assert p.truth.volume_ml == pytest.approx(p.lesion_mask.sum() * 5.0 * 2.8 * 2.8 / 1000)


@pytest.mark.parametrize("site", SITES)
def test_annotator_mask_is_enhanced_ragged_and_inside_the_voi(patients, site):
    p, s = patients[site], SITES[site]
    outside = p.annotator_mask.copy()
    outside[p.voi] = False
    assert not outside.any()
    assert p.lesion_mask[p.voi].sum() == p.lesion_mask.sum()
    pre, early = p.series.array[0].astype(float), p.series.array[s.early_index].astype(float)
    assert np.all(early[p.annotator_mask] >= 1.7 * pre[p.annotator_mask] - 1e-3)
    assert ndimage.label(p.annotator_mask)[1] > ndimage.label(p.lesion_mask)[1]
    assert (p.annotator_mask & p.lesion_mask).sum() > 0.5 * p.lesion_mask.sum()


def test_left_breast_lies_on_the_left_and_points_forwards():
    found = set()
    for seed in range(20, 32):
        p = make_patient(seed, 0, SMALL["spy1"])
        centre = p.series.geometry.position_mm((np.array(p.lesion_mask.shape) - 1) / 2)
        assert np.sign(centre[0]) == (1 if p.truth.side == "left" else -1)
        front = np.argwhere(p.body_mask)[:, 1].min()
        assert p.body_mask[:, front].sum() < p.body_mask[:, -1].sum()
        found.add(p.truth.side)
    assert found == {"left", "right"}


def test_smooth_fields_agree_on_grids_of_different_spacing():
    fine, coarse = np.linspace(-20, 20, 41, dtype=np.float32), np.linspace(-20, 20, 21, dtype=np.float32)
    a = smooth_field((fine, fine, fine), 4.0, np.random.default_rng(1))
    b = smooth_field((coarse, coarse, coarse), 4.0, np.random.default_rng(1))
    np.testing.assert_allclose(a[::2, ::2, ::2], b, atol=0.02)


# --- the scanner ---


@pytest.mark.parametrize("site", SITES)
def test_air_is_rayleigh_with_one_gain_for_all_phases(patients, site):
    p = patients[site]
    air = p.series.array[:, air_in_front(p)].astype(float)
    np.testing.assert_allclose(air.mean(axis=1) / air.std(axis=1), 1.913, atol=0.05)
    np.testing.assert_allclose(air.mean(axis=1), air.mean(), rtol=0.02)
    assert air.std() > 4  # grey levels: rounding does not shape the noise


def small(site):
    """The site with voxels twice as large, over the same field of view."""
    return dataclasses.replace(
        site, shape=tuple(n // 2 for n in site.shape), spacing_mm=tuple(2 * s for s in site.spacing_mm)
    )


def test_gain_varies_between_patients_but_neither_with_the_label_nor_over_phases():
    sites = [small(draw_protocol("spy1", i)) for i in range(6)]
    pairs = [[make_patient(i, her2, sites[i]) for her2 in (0, 1)] for i in range(6)]
    levels = np.array([[[v[air_in_front(p)].mean() for v in p.series.array] for p in pair] for pair in pairs])
    np.testing.assert_array_equal(levels[:, 0], levels[:, 1])  # (patients, labels, phases)
    assert levels[:, 0].mean(1).std() / levels.mean() > 0.05
    np.testing.assert_allclose(levels / levels.mean(2, keepdims=True), 1, atol=0.03)


@pytest.mark.parametrize("site", SITES)
def test_protocols_vary_within_a_collection_and_repeat_for_a_patient(site):
    drawn = [draw_protocol(site, seed) for seed in range(60)]
    assert drawn[7] == draw_protocol(site, 7)
    for name in ("shape", "spacing_mm", "phase_times_s", "gain"):
        assert len({getattr(s, name) for s in drawn}) > 1, name
    assert all(s.name == site and s.early_index < s.late_index for s in drawn)
    view_mm = [s.shape[1] * s.spacing_mm[1] for s in drawn]
    assert 155 < min(view_mm) and max(view_mm) < 205


def test_i_spy2_has_several_manufacturers_fields_depths_and_numbers_of_phases():
    drawn = [draw_protocol("spy2", seed) for seed in range(60)]
    assert {s.field_T for s in drawn} == {1.5, 3.0} and {s.bits for s in drawn} == {12, 16}
    assert {len(s.phase_times_s) for s in drawn} == {4, 5} and len({s.manufacturer for s in drawn}) == 3
    assert {s.early_index for s in drawn} == {2}  # as in 935 of 937 rows of the real table


@pytest.mark.parametrize("site", SITES)
def test_hardly_a_voxel_is_clipped(site):
    clipped = []
    for seed in range(12):
        protocol = small(draw_protocol(site, seed))
        array = make_patient(seed, 1, protocol, bayes_auc=0.95).series.array
        clipped.append(np.mean(array >= 2**protocol.bits - 1))
    assert np.mean(clipped) < 1e-4


@pytest.mark.parametrize("site", SITES)
def test_lesions_enhance_more_than_gland_and_gland_more_than_fat(patients, site):
    p, s = patients[site], SITES[site]
    pre, early = p.series.array[0].astype(float), p.series.array[s.early_index].astype(float)
    away = p.body_mask & ~near_lesions(p)
    gland, fat = away & (p.fibroglandular > 0.7), away & (p.fibroglandular < 0.01)
    gain = [early[m].mean() / pre[m].mean() - 1 for m in (p.lesion_mask, gland)]
    assert gain[0] > 0.7 > gain[1] > 0.05
    assert np.quantile(pre[fat], 0.25) < 0.6 * np.median(pre[gland])  # fat suppression, which fails in places
    assert np.quantile(pre[fat], 0.995) > np.quantile(pre[gland], 0.9)  # where it fails


@pytest.mark.parametrize("site", SITES)
def test_bias_field_is_centred_and_visible(patients, site):
    log = np.log(patients[site].bias_field[patients[site].body_mask])
    assert abs(log.mean()) < 1e-3 and 0.08 < log.std() < 0.35


# --- clinical table and bad input ---


def test_clinical_variables_have_the_margins_of_ispy2():
    rows = [draw_clinical(np.random.default_rng([3, i])) for i in range(2000)]
    age, hr = np.array([r["age"] for r in rows]), np.array([r["hr"] for r in rows])
    assert age.mean() == pytest.approx(48.8, abs=1) and age.std() == pytest.approx(10.5, abs=0.7)
    assert hr.mean() == pytest.approx(0.546, abs=0.035)
    post = np.array([r["menopause"] == "post" for r in rows])
    assert age[post].mean() - age[~post].mean() > 10


def test_bad_input_is_refused_by_name():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown site 'mars'; there are spy2, spy1, ambl"):
        make_patient(0, 0, "mars")
    with pytest.raises(ValueError, match="her2 must be 0 or 1, found 2"):
        draw_truth(2, rng)
    with pytest.raises(ValueError, match=r"bayes_auc must lie in \(0.5, 1\), found 0.5"):
        draw_truth(0, rng, bayes_auc=0.5)
    with pytest.raises(ValueError, match=r"loading must lie in \[0, 1\], found 2"):
        draw_truth(0, rng, loading=2)
    with pytest.raises(ValueError, match="expected ascending times from 0 s"):
        dataclasses.replace(SITES["spy1"], phase_times_s=(10, 144, 456))
    with pytest.raises(ValueError, match="field must be one of"):
        dataclasses.replace(SITES["spy1"], field_T=7.0)
    with pytest.raises(ValueError, match=r"shape must be \(Z, Y, X\) of at least"):
        dataclasses.replace(SITES["spy1"], shape=(1, 64, 64))
