"""From the label to what is drawn for a patient, and the enhancement to be expected of it.

The HER2 label y reaches the picture through one number only, the latent u = d(y - 1/2) + N(0, 1) with
d = √2 Φ⁻¹(Bayes AUC): no classifier of the images can beat that AUC in expectation, and one that does has found a
leak.  Size, side, density, site and gain carry no label signal.  Effect sizes imitate Elias (CEBP 2014), Grimm
(Radiology 2015) and smaller studies; they make a test bed, not evidence about patients.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit, logsumexp
from scipy.stats import norm

from her2core.phantom import physics
from her2core.phantom.sites import Site

_DENSITY_SHARES = {0.10: 0.10, 0.22: 0.40, 0.38: 0.40, 0.55: 0.10}  # gland share of the breast: BI-RADS a to d
_BACKGROUND_SHARES = {"minimal": 0.18, "mild": 0.46, "moderate": 0.26, "marked": 0.10}  # IMAGINE, BCR 2020
_LOADINGS = {"ktrans": 0.75, "kep": 0.35, "het": 0.60, "rim": 0.25}  # of each drawn number on the latent
# what the drawn numbers mean: median and spread of the log, or mean and spread; then the limits
_KTRANS, _KTRANS_LIMITS = (0.145, 0.42), (0.04, 0.9)
_KEP, _VE_LIMITS = (0.29, 0.30), (0.08, 0.80)
_SPREAD, _SPREAD_LIMITS = (0.36, 0.15), (0.06, 0.85)
_RIM = 0.9, 2.2, 0.7  # highest, slope, centre
_MULTIFOCAL, _NON_MASS = (-0.42, 1.45), (-1.75, 0.45)  # logit: intercept, slope on the latent
_HR_SHARES = {None: 536 / 982, 0: 381 / 740, 1: 155 / 242}  # I-SPY2: hormone receptor positive by HER2


@dataclass(frozen=True)
class Truth:
    """What was drawn for one patient.  Rates per minute; ve, vp and density are volume fractions.

    heterogeneity: sd of log Ktrans inside the lesion.  rim: share of Ktrans missing in the core.  radius_mm: of the
    main lesion.  Once a patient is made, volume_ml and n_satellites are those of the finished picture.
    """

    her2: int
    u: float
    bayes_auc: float
    loading: float
    ktrans_per_min: float
    kep_per_min: float
    ve: float
    vp: float
    n_satellites: int
    heterogeneity: float
    rim: float
    radius_mm: float
    spiculations: int
    lobulation: float
    non_mass: bool
    density: float
    background: str
    side: str
    volume_ml: float = float("nan")


def _check_arguments(her2, bayes_auc, loading):
    if her2 not in (0, 1):
        raise ValueError(f"her2 must be 0 or 1, found {her2!r}")
    if not 0.5 < bayes_auc < 1:
        raise ValueError(f"bayes_auc must lie in (0.5, 1), found {bayes_auc}")
    if not 0 <= loading <= 1:
        raise ValueError(f"loading must lie in [0, 1], found {loading}")


def draw_truth(her2: int, rng: np.random.Generator, *, bayes_auc: float = 0.80, loading: float = 1.0) -> Truth:
    """Label → latent → lesion.  `loading` 0 cuts every path from the latent to the lesion.

    Every draw is made whatever the label, so the same generator state gives counterfactual twins.  ValueError for
    a her2 other than 0 and 1, and for a bayes_auc or loading out of range.
    """
    _check_arguments(her2, bayes_auc, loading)
    u = float(np.sqrt(2) * norm.ppf(bayes_auc) * (her2 - 0.5) + rng.standard_normal())
    noise = dict(zip(("ktrans", "kep", "vp", "het", "rim", "size"), rng.standard_normal(6), strict=True))
    chance = dict(zip(("multi", "count", "nme", "spic", "lob"), rng.random(5), strict=True))

    def loaded(name):  # unit variance within a class
        weight = _LOADINGS[name] * loading
        return weight * u + np.sqrt(1 - weight**2) * noise[name]

    ktrans = float(np.clip(_KTRANS[0] * np.exp(_KTRANS[1] * loaded("ktrans")), *_KTRANS_LIMITS))
    ve = float(np.clip(ktrans / (_KEP[0] * np.exp(_KEP[1] * loaded("kep"))), *_VE_LIMITS))
    multifocal = chance["multi"] < expit(_MULTIFOCAL[0] + _MULTIFOCAL[1] * loading * u)
    drawn = dict(
        her2=int(her2),
        u=u,
        bayes_auc=bayes_auc,
        loading=loading,
        ktrans_per_min=ktrans,
        kep_per_min=ktrans / ve,
        ve=ve,
        vp=float(np.clip(0.030 + 0.012 * noise["vp"], 0.005, 0.08)),
        n_satellites=int(1 + 4 * chance["count"]) if multifocal else 0,
        heterogeneity=float(np.clip(_SPREAD[0] + _SPREAD[1] * loaded("het"), *_SPREAD_LIMITS)),
        rim=float(_RIM[0] * expit(_RIM[1] * (loaded("rim") - _RIM[2]))),
        radius_mm=float(np.clip(14.5 * np.exp(0.36 * noise["size"]), 5.5, 24)),
        spiculations=int(8 + 20 * chance["spic"]) if chance["spic"] < 0.40 else 0,
        lobulation=float(0.10 + 0.18 * chance["lob"]),
        non_mass=bool(chance["nme"] < expit(_NON_MASS[0] + _NON_MASS[1] * loading * u)),
        density=float(rng.choice(list(_DENSITY_SHARES), p=list(_DENSITY_SHARES.values()))),
        background=str(rng.choice(list(_BACKGROUND_SHARES), p=list(_BACKGROUND_SHARES.values()))),
        side=str(rng.choice(["left", "right"])),
    )
    # 12 decimals: the last bits of exp and log are not the same on every processor
    return Truth(**{name: round(v, 12) if isinstance(v, float) else v for name, v in drawn.items()})


def _seen_through(truth):
    """What each label-carrying number says of the latent: its name, the value it was drawn as, and its limits."""
    kep = truth["ktrans_per_min"] / truth["ve"]
    below_ve, above_ve = (truth["ktrans_per_min"] / limit for limit in _VE_LIMITS)
    log, (centre, spread) = np.log, _SPREAD
    ktrans_limits = [log(limit / _KTRANS[0]) / _KTRANS[1] for limit in _KTRANS_LIMITS]
    yield "ktrans", log(truth["ktrans_per_min"] / _KTRANS[0]) / _KTRANS[1], *ktrans_limits
    kep_limits = [log(limit / _KEP[0]) / _KEP[1] for limit in (above_ve, below_ve)]
    yield "kep", log(kep / _KEP[0]) / _KEP[1], *kep_limits
    limits = [(limit - centre) / spread for limit in _SPREAD_LIMITS]
    yield "het", (truth["heterogeneity"] - centre) / spread, *limits
    yield "rim", logit(truth["rim"] / _RIM[0]) / _RIM[1] + _RIM[2], -np.inf, np.inf


def posterior(truth: pd.DataFrame, prevalence: float) -> pd.DataFrame:
    """The probability of HER2+ that is right, from the latent and from all that carries it into the picture.

    truth: one row per patient, columns of `Truth`, drawn with full loading.  A classifier that reads every
    label-carrying parameter without error has the column `p_parameters`; `p_latent` knows the latent itself.  The
    latent is integrated out on a grid; a parameter at its limit says only that it lies beyond."""
    d = np.sqrt(2) * norm.ppf(truth["bayes_auc"].to_numpy(float))
    grid = np.linspace(-8, 8, 801)
    of_latent = np.zeros((len(truth), grid.size))
    for name, drawn, low, high in _seen_through(truth):
        weight = _LOADINGS[name]
        spread = np.sqrt(1 - weight**2)
        z, low, high = (np.broadcast_to(v, len(truth))[:, None] for v in (drawn, low, high))
        inside = norm.logpdf(z, weight * grid, spread)
        beyond = norm.logcdf(low, weight * grid, spread), norm.logsf(high, weight * grid, spread)
        of_latent += np.select([z <= low + 1e-9, z >= high - 1e-9], beyond, inside)
    for seen, (intercept, slope) in ((truth["n_satellites"] > 0, _MULTIFOCAL), (truth["non_mass"], _NON_MASS)):
        sign = np.where(seen.astype(bool), 1, -1)[:, None]
        of_latent -= np.logaddexp(0, -sign * (intercept + slope * grid))
    negative, positive = (logsumexp(of_latent + norm.logpdf(grid, s * d[:, None] / 2), axis=1) for s in (-1, 1))
    odds = {"p_latent": d * truth["u"].to_numpy(float), "p_parameters": positive - negative}
    return pd.DataFrame({k: expit(v + logit(prevalence)) for k, v in odds.items()}, index=truth.index)


def draw_clinical(rng: np.random.Generator, *, her2: int | None = None) -> dict[str, int | str]:
    """Age, hormone receptor and menopause with the margins of the I-SPY2 table; none of them changes the picture.

    Without a label, HR has the overall share; with one, that of the HER2 group.  Age is independent of both.
    """
    age = int(np.clip(np.rint(rng.normal(48.8, 10.5)), 23, 80))
    hr_positive = rng.random() < _HR_SHARES[her2]
    postmenopausal = rng.random() < expit((age - 51) / 2.5)
    return {"age": age, "hr": int(hr_positive), "menopause": "post" if postmenopausal else "pre"}


def expected_signal(truth: Truth, site: Site) -> np.ndarray:
    """Noise-free signal of the lesion in every phase, relative to the first: (T, *parameters)."""
    minutes = (np.asarray(site.phase_times_s) - 24) / 60  # since the agent has arrived
    conc = physics.extended_tofts(minutes, truth.ktrans_per_min, truth.ve, truth.vp)
    rate = 1 / physics.T10_S[site.field_T]["tumour"] + site.relaxivity_per_s_mM * conc
    signal = physics.spgr(rate, site.tr_s, np.deg2rad(site.flip_deg))
    return signal / signal[0]
