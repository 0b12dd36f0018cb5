"""The signal chain against independent references: scalar math, adaptive quadrature, closed forms."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from her2core.phantom import physics


def parker_scalar(t):
    """Equation 1 of Parker 2006, written again with the math module only."""
    if t < 0:
        return 0.0
    first = 0.809 / (0.0563 * math.sqrt(2 * math.pi)) * math.exp(-((t - 0.17046) ** 2) / (2 * 0.0563**2))
    second = 0.330 / (0.132 * math.sqrt(2 * math.pi)) * math.exp(-((t - 0.365) ** 2) / (2 * 0.132**2))
    return first + second + 1.050 * math.exp(-0.1685 * t) / (1 + math.exp(-38.078 * (t - 0.483)))


def tofts_by_quadrature(t, ktrans, ve, vp, hct):
    """C(t) by adaptive quadrature, with break points where the input or the residue bends."""
    kep = ktrans / ve
    bends = [p for p in (0.17, 0.365, 0.483, t - 1 / kep, t - 5 / kep) if 0 < p < t]
    area, _ = quad(lambda u: parker_scalar(u) * math.exp(-kep * (t - u)), 0, t, points=bends or None, limit=400)
    return (vp * parker_scalar(t) + ktrans * area) / (1 - hct)


def test_parker_agrees_with_the_scalar_formula():
    t = np.linspace(-1, 12, 500)
    expected = [parker_scalar(float(v)) for v in t]
    np.testing.assert_allclose(physics.parker_aif_mM(t), expected, rtol=0, atol=1e-6)


def test_parker_has_the_published_start_and_peak():
    t = np.arange(0, 2, 1e-4)
    curve = physics.parker_aif_mM(t)
    assert curve[0] == pytest.approx(0.0803847, abs=1e-7)
    assert curve.max() == pytest.approx(6.07, abs=0.01)
    assert 60 * t[curve.argmax()] == pytest.approx(10.5, abs=0.3)


def test_parker_is_exactly_zero_before_arrival():
    assert np.all(physics.parker_aif_mM(np.array([-5, -1, -1e-12])) == 0)


def test_plasma_is_blood_without_the_cells():
    np.testing.assert_allclose(physics.plasma_mM(2.0), parker_scalar(2.0) / 0.58, rtol=1e-12)


@pytest.mark.parametrize("ktrans", [0.005, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("ve", [0.01, 0.1, 0.6])
@pytest.mark.parametrize("vp", [0.0, 0.1])
def test_extended_tofts_agrees_with_adaptive_quadrature(ktrans, ve, vp):
    times = np.array([0.1, 0.2, 0.5, 1.0, 2.3, 7.7])
    found = physics.extended_tofts(times, ktrans, ve, vp)
    expected = np.array([tofts_by_quadrature(float(t), ktrans, ve, vp, 0.42) for t in times])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * expected.max())


def test_extended_tofts_keeps_the_shape_of_its_parameters():
    ktrans = np.full((4, 5), 0.2)
    curve = physics.extended_tofts([0.5, 2.0, 15.0], ktrans, np.full((4, 5), 0.4), 0.03)
    assert curve.shape == (3, 4, 5)
    np.testing.assert_allclose(curve[:, 2, 3], physics.extended_tofts([0.5, 2.0, 15.0], 0.2, 0.4, 0.03))


def test_no_agent_reaches_the_tissue_before_arrival():
    assert np.all(physics.extended_tofts([-1.0, 0.0], 0.2, 0.4, 0.0) == 0)


def test_extended_tofts_refuses_an_empty_extracellular_space():
    with pytest.raises(ValueError, match="ve must be positive, found a minimum of 0"):
        physics.extended_tofts([1.0], 0.2, np.array([0.3, 0.0]), 0.03)


def test_spgr_is_full_magnetisation_at_ninety_degrees_and_long_repetition():
    assert physics.spgr(1.0, 50.0, np.pi / 2) == pytest.approx(1.0)
    assert physics.spgr(1.0, 50.0, np.pi / 2, te_s=0.02, t2star_s=0.04) == pytest.approx(math.exp(-0.5))


def test_rician_background_is_rayleigh(rng):
    air = physics.rician(np.zeros(400_000, np.float32), 7.0, rng)
    assert air.mean() == pytest.approx(7 * math.sqrt(math.pi / 2), rel=5e-3)
    assert air.std() == pytest.approx(7 * math.sqrt(2 - math.pi / 2), rel=5e-3)


def test_rician_tends_to_the_signal_with_gaussian_noise(rng):
    strong = physics.rician(np.full(400_000, 500.0, np.float32), 5.0, rng)
    assert strong.mean() == pytest.approx(math.sqrt(500**2 + 5**2), abs=0.05)
    assert strong.std() == pytest.approx(5, rel=1e-2)


def test_relaxation_is_slower_at_the_higher_field_and_fat_is_fastest():
    for tissue in ("fat", "gland", "tumour", "muscle", "blood"):
        assert physics.T10_S[1.5][tissue] < physics.T10_S[3.0][tissue]
    for table in physics.T10_S.values():
        assert min(table, key=table.get) == "fat"


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


def test_dcmri_gives_the_same_input_function_tissue_and_signal():
    dcmri = pytest.importorskip("dcmri", reason="optional cross-check: pip install dcmri")
    t_s = np.arange(0, 600, 0.5)
    aif_M = dcmri.aif_parker(t_s)  # dcmri counts in seconds and mol/l
    np.testing.assert_allclose(1000 * aif_M, physics.parker_aif_mM(t_s / 60), atol=1e-6)
    blood = {"H": 0.42, "vi": 0.3, "vb": 0.03 / (1 - 0.42), "PS": 0.2 / 60}
    theirs = 1000 * dcmri.conc_tissue(aif_M, t=t_s, kinetics="HF", **blood)[60:]
    ours = physics.extended_tofts(t_s[60:] / 60, 0.2, 0.3, 0.03)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.max())
    rates = np.array([0.5, 1.0, 3.0])
    signal = physics.spgr(rates, 0.005, np.deg2rad(10))
    np.testing.assert_allclose(signal, dcmri.signal_ss(1.0, rates, 0.005, 10.0), rtol=1e-12)
