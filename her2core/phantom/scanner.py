"""From tissue to grey levels: flip angle, fat suppression, signal of the tissues, motion, coil and noise."""

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from her2core.phantom import physics
from her2core.phantom.anatomy import Anatomy, Fields, Grid, smoothstep
from her2core.phantom.lesions import Lesions
from her2core.phantom.sites import Site
from her2core.phantom.truth import Truth

_BACKGROUND_KTRANS = {"minimal": 0.007, "mild": 0.014, "moderate": 0.025, "marked": 0.045}  # per min


def _transmit_field(grid, site, side):
    """Relative flip angle B1+: uneven between the breasts and across them (Radiology 2013, PMID 23401582)."""
    mean = {1.5: {"left": 0.911, "right": 1.054}, 3.0: {"left": 0.863, "right": 1.027}}[site.field_T][side]
    slope = 0.03 + 0.02 * site.field_T
    plane = 0.6 * grid.lateral / np.abs(grid.lateral).max() - (grid.y / grid.depth_mm - 0.5)
    return np.broadcast_to(mean * (1 + slope * plane), grid.shape)


def _receive_field(grid, site, body, rng):
    """Coil sensitivity: bright in front and to the side, dark at the wall; log-mean 0 in the body."""
    y = (grid.y / grid.depth_mm - 0.45) * 2
    lateral = grid.lateral / np.abs(grid.lateral).max()
    z = grid.z / max(np.abs(grid.z).max(), 1)
    a, b, c, d = rng.normal(0, (0.25, 0.2, 0.2, 0.15))
    log = -0.9 * y + 0.35 * lateral**2 + a * lateral + b * z + c * lateral * y + d * z * z - 0.15 * y * y
    return np.exp(site.bias * (log - log[body].mean())).astype(np.float32)


def _fat_residue(grid, site, fat, fields: Fields, rng):
    """What fat suppression leaves of the fat signal (Z, Y, X): little and uneven, nearly all where it fails.

    It fails off resonance, where the body's outline turns: at the fold under the breast, towards the axilla.
    Such fat is brighter than most enhancing lesions, so that it holds much of what lies above an image's upper
    quantiles.  The share of fat concerned differs between patients.
    """
    residue = site.fat_suppression * np.exp(0.22 * fields.coarse + 0.14 * fields.medium + 0.12 * fields.fine)
    fold, axilla = rng.uniform(0.3, 1.7, 2)
    share = float(np.clip(site.fat_unsuppressed * np.exp(0.7 * rng.standard_normal()), 0.02, 0.45))
    off_resonance = (
        -fold * grid.z / np.abs(grid.z).max()
        + axilla * grid.lateral / np.abs(grid.lateral).max()
        + 0.8 * grid.y / grid.depth_mm
        + 0.45 * fields.coarse
    )
    threshold = np.quantile(off_resonance[fat > 0.5], 1 - share)
    return residue + (0.9 - residue) * smoothstep(off_resonance, threshold - 0.12, threshold + 0.12)


def _tissue_table(grid, site, truth, anatomy, lesions, rng):
    """Rows of (fraction, tissue for T1, proton density, Ktrans, ve, vp); parameters are scalars or volumes.

    No draw depends on the lesion; otherwise twins would differ everywhere.
    """
    a, fields = anatomy, anatomy.fields
    solid, free = lesions.fraction, 1 - lesions.fraction
    fat = np.clip(a.body - a.skin - a.gland - a.ligament - a.muscle - a.vessel - a.node - a.lung, 0, 1)
    background = _BACKGROUND_KTRANS[truth.background] * float(np.exp(0.25 * rng.standard_normal()))
    gland_rate = background * np.exp(0.30 * fields.medium + 0.25 * fields.fine + 0.25 * fields.coarse)
    return [
        (fat * free * _fat_residue(grid, site, fat, fields, rng), "fat", 1.0, 0.006, 0.08, 0.003),
        (a.gland * free * (1 + 0.04 * fields.medium), "gland", 0.82, gland_rate, 0.30, 0.006),
        (a.ligament * free, "gland", 0.60, 0.006, 0.20, 0.003),
        (a.muscle * free * (1 + 0.07 * fields.fine), "muscle", 0.64, 0.035, 0.15, 0.015),
        (a.skin * free, "skin", 0.65, 0.060, 0.35, 0.010),
        (a.node * free, "gland", 0.80, 0.20, 0.35, 0.030),
        (a.vessel * free, "blood", 0.85, 0.0, 1.0, 1 - physics.HAEMATOCRIT),
        (solid * lesions.water, "tumour", 0.88, lesions.ktrans_per_min, truth.ve, truth.vp),
    ]


def _noise_free(site, table, flip, arrival_s):
    """Signal (T, Z, Y, X) float32: every tissue has its own T1 and kinetics, and the signals add."""
    minutes = (np.asarray(site.phase_times_s) - arrival_s) / 60  # below 0 in the first phase
    response = physics.tissue_response(minutes)
    t10, t2star = physics.T10_S[site.field_T], physics.T2STAR_S[site.field_T]
    signal = np.zeros((len(minutes), *flip.shape), np.float32)
    for fraction, tissue, density, ktrans, ve, vp in table:
        where = np.nonzero(fraction > 2e-3)
        amount, angle = fraction[where] * np.float32(density), flip[where]
        rate = ktrans[where] if np.ndim(ktrans) else ktrans
        for phase in range(len(minutes)):
            conc = physics.tofts_concentration_mM(response, phase, rate, ve, vp) if minutes[phase] > 0 else 0.0
            r1 = np.asarray(1 / t10[tissue] + site.relaxivity_per_s_mM * conc, np.float32)
            signal[phase][where] += amount * physics.spgr(r1, site.tr_s, angle, site.te_s, t2star[tissue])
    return signal


def _receive(site, signal, coil, noise_rng):
    """Noise-free signal (T, Z, Y, X) → grey levels uint16: motion, coil, one gain for all phases, Rician noise."""
    # gland before contrast at the nominal flip angle fixes grey levels, whatever the lesion
    t10, t2star = physics.T10_S[site.field_T]["gland"], physics.T2STAR_S[site.field_T]["gland"]
    gland = 0.82 * physics.spgr(1 / t10, site.tr_s, np.deg2rad(site.flip_deg), site.te_s, t2star)
    scale = coil * np.float32(site.gain / float(gland))
    sigma = np.float32(site.noise * site.gain)
    out = np.empty(signal.shape, np.uint16)
    for phase, volume in enumerate(signal):
        if phase:
            shift = (0, *noise_rng.normal(0, 0.16, 2))
            volume = ndimage.shift(volume, shift, order=1, mode="nearest", prefilter=False)
        grey = np.rint(physics.rician(volume * scale, sigma, noise_rng))
        out[phase] = np.clip(grey, 0, 2**site.bits - 1)
    return out


def scan(
    site: Site, grid: Grid, truth: Truth, anatomy: Anatomy, lesions: Lesions, rng: Generator, noise_rng: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels (T, Z, Y, X) uint16 of one examination, and the receive field (Z, Y, X) float32 that shades them.

    rng: for shading, fat suppression, background enhancement and the arrival of the bolus, which twins share.
    """
    flip = (np.deg2rad(site.flip_deg) * _transmit_field(grid, site, truth.side)).astype(np.float32)
    coil = _receive_field(grid, site, anatomy.body > 0.5, rng)
    table = _tissue_table(grid, site, truth, anatomy, lesions, rng)
    signal = _noise_free(site, table, flip, arrival_s=float(rng.uniform(17, 30)))
    return _receive(site, signal, coil, noise_rng), coil
