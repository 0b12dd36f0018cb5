"""From contrast agent in the blood to grey levels: the signal chain of a T1-weighted dynamic series.

Arterial input → extended Tofts tissue → relaxation rate → spoiled gradient echo → Rician noise.  Every
function is pure and works on arrays of any shape.  Units are part of the names: minutes for the kinetics (as in
the literature), seconds for the sequence, mM for concentrations.

Sources: Parker et al., MRM 2006, doi 10.1002/mrm.21066 (input function); Tofts et al., JMRI 1999 (tissue
model); Rohrer 2005 and Szomolanyi 2019 (relaxivities); Rakow-Penner 2006 and Edden 2010 (breast T1).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from her2core.config import read_yaml

_Numbers = float | np.ndarray
_Response = tuple[np.ndarray, np.ndarray, np.ndarray]  # kep nodes (K,) per min, integrals (T, K), plasma (T,) in mM
HAEMATOCRIT = 0.42

# {field strength in tesla: {tissue, or contrast agent: value}}; sources beside the numbers
_TABLES = read_yaml(Path(__file__).with_name("physics.yaml"))
T10_S, T2STAR_S, RELAXIVITY_PER_S_MM = _TABLES["t10_s"], _TABLES["t2star_s"], _TABLES["relaxivity_per_s_mM"]

# Parker's population average, table 1: areas in mM·min, centres and widths in min, rates per min.
_AREAS, _CENTRES, _WIDTHS = (0.809, 0.330), (0.17046, 0.365), (0.0563, 0.132)
_ALPHA_MM, _BETA_PER_MIN, _SLOPE_PER_MIN, _TAU_MIN = 1.050, 0.1685, 38.078, 0.483


def parker_aif_mM(t_min: ArrayLike) -> np.ndarray:
    """Concentration in whole blood, mM, `t_min` minutes after the bolus arrives; exactly 0 before."""
    t = np.asarray(t_min, float)
    after = np.maximum(t, 0)
    bolus = sum(
        area / (width * np.sqrt(2 * np.pi)) * np.exp(-((after - centre) ** 2) / (2 * width**2))
        for area, centre, width in zip(_AREAS, _CENTRES, _WIDTHS, strict=True)
    )
    washout = _ALPHA_MM * np.exp(-_BETA_PER_MIN * after) / (1 + np.exp(-_SLOPE_PER_MIN * (after - _TAU_MIN)))
    return np.where(t < 0, 0.0, bolus + washout)


def plasma_mM(t_min: ArrayLike) -> np.ndarray:
    """Concentration in plasma, mM: the agent stays out of the cells, so blood / (1 - haematocrit)."""
    return parker_aif_mM(t_min) / (1 - HAEMATOCRIT)


def _step(kep_per_min, dt_min, c_start, c_end):
    """Exact ∫ of a linear plasma segment times exp(-kep (end - u)), and the decay over the segment."""
    decay = np.exp(-kep_per_min * dt_min)
    flat = -np.expm1(-kep_per_min * dt_min) / kep_per_min
    ramp = (dt_min - flat) / (kep_per_min * dt_min)
    return c_start * flat + (c_end - c_start) * ramp, decay


@lru_cache(maxsize=4)
def _response_grid(longest_min):
    """∫ Cp(u) exp(-kep (t-u)) du on a grid: node times (N,), kep (K,) per min, integral (N, K).

    Nodes are 0.2 s apart while the bolus passes and 1 s apart later, which leaves an error of 0.05 %.
    """
    bolus_min = min(1.5, longest_min)
    times = np.concatenate([np.arange(0, bolus_min, 0.2 / 60), np.arange(bolus_min, longest_min + 1 / 60, 1 / 60)])
    plasma = plasma_mM(times)
    kep = np.geomspace(1e-3, 1e3, 700)
    integral = np.zeros((len(times), len(kep)))
    for i, dt in enumerate(np.diff(times)):
        added, decay = _step(kep, dt, plasma[i], plasma[i + 1])
        integral[i + 1] = integral[i] * decay + added
    return times, kep, integral


def tissue_response(times_min: ArrayLike) -> _Response:
    """What tissue sees at `times_min` (T,) after arrival: nodes of kep, the integrals at these, and the plasma.

    The integral depends on kep alone, so it is tabulated once and interpolated per voxel.
    """
    times_min = np.atleast_1d(np.asarray(times_min, float))
    nodes, kep, integral = _response_grid(max(12.0, float(np.ceil(times_min.max()))))
    plasma = plasma_mM(times_min)
    table = np.zeros((len(times_min), len(kep)))
    for row, t, c_end in zip(table, times_min, plasma, strict=True):
        if t > 0:  # one more exact step from the node before t to t itself
            i = np.searchsorted(nodes, t) - 1
            added, decay = _step(kep, t - nodes[i], plasma_mM(nodes[i]), c_end)
            row[:] = integral[i] * decay + added
    return kep, table, plasma


def tofts_concentration_mM(
    response: _Response, phase: int, ktrans_per_min: _Numbers, ve: _Numbers, vp: _Numbers
) -> np.ndarray:
    """Tissue concentration at one phase of a `tissue_response`; parameters are scalars or arrays of one shape."""
    kep, integral, plasma = response
    return vp * plasma[phase] + ktrans_per_min * np.interp(ktrans_per_min / ve, kep, integral[phase])


def extended_tofts(times_min: ArrayLike, ktrans_per_min: _Numbers, ve: _Numbers, vp: _Numbers) -> np.ndarray:
    """Tissue concentration in mM, shape (T, *parameters), at `times_min` (T,) after arrival.

    C(t) = vp·Cp(t) + Ktrans ∫ Cp(u) exp(-Ktrans/ve·(t-u)) du.  ve and vp are volume fractions; ValueError where ve
    is not positive.
    """
    if np.any(np.asarray(ve) <= 0):
        raise ValueError(f"ve must be positive, found a minimum of {np.min(ve)}")
    response = tissue_response(times_min)
    phases = range(len(response[2]))
    return np.stack([tofts_concentration_mM(response, i, ktrans_per_min, ve, vp) for i in phases])


def spgr(
    r1_per_s: _Numbers, tr_s: float, flip_rad: _Numbers, te_s: float = 0.0, t2star_s: float = np.inf
) -> np.ndarray:
    """Steady-state spoiled gradient echo signal for unit proton density.

    sin a (1 - E) / (1 - cos a E) · exp(-TE/T2*), with E = exp(-TR·R1).
    """
    e1 = np.exp(-tr_s * r1_per_s)
    decay = float(np.exp(-te_s / t2star_s))
    return np.sin(flip_rad) * (1 - e1) / (1 - np.cos(flip_rad) * e1) * decay


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of `signal` with complex Gaussian noise of `sigma` per channel; Rayleigh where signal is 0."""
    noise = rng.standard_normal((2, *np.shape(signal)), dtype=np.float32) * sigma
    return np.hypot(signal + noise[0], noise[1])
