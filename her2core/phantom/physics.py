"""From contrast agent in the blood to grey levels: the signal chain of a T1-weighted dynamic series.

Arterial input → extended Tofts tissue → relaxation rate → spoiled gradient echo → Rician noise.  Every
function is pure and works on arrays of any shape.  Units stand in the names: minutes for the kinetics (as in
the literature), seconds for the sequence, mM for concentrations.

Sources: Parker et al., MRM 2006, doi 10.1002/mrm.21066 (input function); Tofts et al., JMRI 1999 (tissue
model); Rohrer 2005 and Szomolanyi 2019 (relaxivities); Rakow-Penner 2006 and Edden 2010 (breast T1).
"""

from functools import lru_cache

import numpy as np

HAEMATOCRIT = 0.42

# Longitudinal relaxation times without contrast agent, in seconds, by field strength in tesla.  Fat and gland:
# Rakow-Penner 2006 (1.5 T as in the defaults of the UW breast reference object); tumour at 3 T: 1.61 s, SyMRI,
# Cancer Imaging 2020, s40644-020-00365-4; muscle and blood: the tables of dcmri.  Our choices, not measured:
# tumour at 1.5 T (scaled like gland) and skin (long enough to look as it does in real fat-suppressed series).
T10_S = {
    1.5: {"fat": 0.296, "gland": 1.266, "tumour": 1.30, "muscle": 1.008, "skin": 0.90, "blood": 1.441},
    3.0: {"fat": 0.367, "gland": 1.445, "tumour": 1.60, "muscle": 1.412, "skin": 1.10, "blood": 1.628},
}

# Effective transverse relaxation times in seconds.  3 T fat and gland: KJSMRM 2014; the others are estimates.
T2STAR_S = {
    1.5: {"fat": 0.050, "gland": 0.035, "tumour": 0.040, "muscle": 0.030, "skin": 0.015, "blood": 0.080},
    3.0: {"fat": 0.0364, "gland": 0.0224, "tumour": 0.028, "muscle": 0.022, "skin": 0.010, "blood": 0.045},
}

# Longitudinal relaxivity in plasma at 37 °C, 1/(s·mM): Rohrer 2005 (1.5 T), Szomolanyi 2019 (3 T).
RELAXIVITY_PER_S_MM = {
    1.5: {"gadopentetate": 4.1, "gadobutrol": 5.2, "gadoterate": 3.6, "gadoteridol": 4.1, "gadobenate": 6.3},
    3.0: {"gadopentetate": 3.7, "gadobutrol": 5.0, "gadoterate": 3.5, "gadoteridol": 3.7, "gadobenate": 5.5},
}

# Parker's population average, table 1: areas in mM·min, centres and widths in min, rates per min.
_AREAS, _CENTRES, _WIDTHS = (0.809, 0.330), (0.17046, 0.365), (0.0563, 0.132)
_ALPHA_MM, _BETA_PER_MIN, _SLOPE_PER_MIN, _TAU_MIN = 1.050, 0.1685, 38.078, 0.483


def parker_aif_mM(t_min):
    """Concentration in whole blood, mM, `t_min` minutes after the bolus arrives; exactly 0 before."""
    t = np.asarray(t_min, float)
    after = np.maximum(t, 0)
    bolus = sum(
        area / (width * np.sqrt(2 * np.pi)) * np.exp(-((after - centre) ** 2) / (2 * width**2))
        for area, centre, width in zip(_AREAS, _CENTRES, _WIDTHS, strict=True)
    )
    washout = _ALPHA_MM * np.exp(-_BETA_PER_MIN * after) / (1 + np.exp(-_SLOPE_PER_MIN * (after - _TAU_MIN)))
    return np.where(t < 0, 0.0, bolus + washout)


def plasma_mM(t_min, hct=HAEMATOCRIT):
    """Concentration in plasma: the agent stays out of the cells, so blood / (1 - haematocrit)."""
    return parker_aif_mM(t_min) / (1 - hct)


def _step(kep_per_min, dt_min, c_start, c_end):
    """Exact ∫ of a linear plasma segment times exp(-kep (end - u)), and the decay over the segment."""
    decay = np.exp(-kep_per_min * dt_min)
    flat = -np.expm1(-kep_per_min * dt_min) / kep_per_min
    ramp = (dt_min - flat) / (kep_per_min * dt_min)
    return c_start * flat + (c_end - c_start) * ramp, decay


@lru_cache(maxsize=4)
def _response_grid(longest_min, hct):
    """∫ Cp(u) exp(-kep (t-u)) du on a grid: node times (N,), kep (K,) per min, integral (N, K).

    Nodes are 0.2 s apart while the bolus passes and 1 s apart later, which leaves an error of 0.05 %.
    """
    bolus_min = min(1.5, longest_min)
    times = np.concatenate([np.arange(0, bolus_min, 0.2 / 60), np.arange(bolus_min, longest_min + 1 / 60, 1 / 60)])
    plasma = plasma_mM(times, hct)
    kep = np.geomspace(1e-3, 1e3, 700)
    integral = np.zeros((len(times), len(kep)))
    for i, dt in enumerate(np.diff(times)):
        added, decay = _step(kep, dt, plasma[i], plasma[i + 1])
        integral[i + 1] = integral[i] * decay + added
    return times, kep, integral


def tissue_response(times_min, hct=HAEMATOCRIT, longest_min=12.0):
    """What tissue sees at `times_min` (T,) after arrival: kep nodes (K,), integrals (T, K), plasma (T,) in mM.

    The integral depends on kep alone, so it is tabulated once and interpolated per voxel.
    """
    times_min = np.atleast_1d(np.asarray(times_min, float))
    if times_min.max() > longest_min:
        longest_min = float(np.ceil(times_min.max()))
    nodes, kep, integral = _response_grid(longest_min, hct)
    plasma = plasma_mM(times_min, hct)
    table = np.zeros((len(times_min), len(kep)))
    for row, t, c_end in zip(table, times_min, plasma, strict=True):
        if t > 0:  # one more exact step from the node before t to t itself
            i = np.searchsorted(nodes, t) - 1
            added, decay = _step(kep, t - nodes[i], plasma_mM(nodes[i], hct), c_end)
            row[:] = integral[i] * decay + added
    return kep, table, plasma


def tofts_concentration_mM(response, phase, ktrans_per_min, ve, vp):
    """Tissue concentration at one phase of a `tissue_response`; parameters are scalars or arrays of one shape."""
    kep, integral, plasma = response
    return vp * plasma[phase] + ktrans_per_min * np.interp(ktrans_per_min / ve, kep, integral[phase])


def extended_tofts(times_min, ktrans_per_min, ve, vp, hct=HAEMATOCRIT):
    """Tissue concentration in mM, shape (T, *parameters), at `times_min` (T,) after arrival.

    C(t) = vp·Cp(t) + Ktrans ∫ Cp(u) exp(-Ktrans/ve·(t-u)) du.  ve and vp are volume fractions, ve > 0.
    """
    if np.any(np.asarray(ve) <= 0):
        raise ValueError(f"ve must be positive, found a minimum of {np.min(ve)}")
    response = tissue_response(times_min, hct)
    phases = range(len(response[2]))
    return np.stack([tofts_concentration_mM(response, i, ktrans_per_min, ve, vp) for i in phases])


def spgr(r1_per_s, tr_s, flip_rad, te_s=0.0, t2star_s=np.inf):
    """Steady-state spoiled gradient echo signal for unit proton density.

    sin a (1 - E) / (1 - cos a E) · exp(-TE/T2*), with E = exp(-TR·R1).
    """
    e1 = np.exp(-tr_s * r1_per_s)
    decay = float(np.exp(-te_s / t2star_s))
    return np.sin(flip_rad) * (1 - e1) / (1 - np.cos(flip_rad) * e1) * decay


def spgr_inverse(signal_ratio, r10_per_s, tr_s, flip_rad):
    """R1 in 1/s from the signal relative to a baseline of known rate `r10_per_s`."""
    e10 = np.exp(-tr_s * np.asarray(r10_per_s, float))
    k = np.asarray(signal_ratio, float) * (1 - e10) / (1 - np.cos(flip_rad) * e10)
    if np.any(k >= 1):
        raise ValueError(f"no R1 gives a signal ratio of {np.max(signal_ratio):.3g}: it exceeds full relaxation")
    return -np.log((1 - k) / (1 - k * np.cos(flip_rad))) / tr_s


def rician(signal, sigma, rng):
    """Magnitude of `signal` with complex Gaussian noise of `sigma` per channel; Rayleigh where signal is 0."""
    noise = rng.standard_normal((2, *np.shape(signal)), dtype=np.float32) * sigma
    return np.hypot(signal + noise[0], noise[1])
