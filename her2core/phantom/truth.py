"""From the label to what is drawn for a patient, and the enhancement to be expected of it.

The HER2 label y reaches the picture through one number only, the latent u = d(y - 1/2) + N(0, 1) with
d = √2 Φ⁻¹(Bayes AUC): no classifier can beat that AUC in expectation, and one that does has found a leak.  Size,
side, density, site and gain carry no label signal.  Effect sizes imitate Elias (CEBP 2014), Grimm (Radiology 2015)
and smaller studies; they make a test bed, not evidence about patients.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from her2core.phantom import physics
from her2core.phantom.sites import Site

_DENSITY_SHARES = {0.10: 0.10, 0.22: 0.40, 0.38: 0.40, 0.55: 0.10}  # gland share of the breast: BI-RADS a to d
_BACKGROUND_SHARES = {"minimal": 0.18, "mild": 0.46, "moderate": 0.26, "marked": 0.10}  # IMAGINE, BCR 2020
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

    def loaded(name, weight):  # unit variance within a class
        weight *= loading
        return weight * u + np.sqrt(1 - weight**2) * noise[name]

    ktrans = float(np.clip(0.145 * np.exp(0.42 * loaded("ktrans", 0.75)), 0.04, 0.9))
    ve = float(np.clip(ktrans / (0.29 * np.exp(0.30 * loaded("kep", 0.35))), 0.08, 0.80))
    multifocal = chance["multi"] < expit(-0.42 + 1.45 * loading * u)
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
        heterogeneity=float(np.clip(0.36 + 0.15 * loaded("het", 0.60), 0.06, 0.85)),
        rim=float(0.9 * expit(2.2 * (loaded("rim", 0.25) - 0.7))),
        radius_mm=float(np.clip(14.5 * np.exp(0.36 * noise["size"]), 5.5, 24)),
        spiculations=int(8 + 20 * chance["spic"]) if chance["spic"] < 0.40 else 0,
        lobulation=float(0.10 + 0.18 * chance["lob"]),
        non_mass=bool(chance["nme"] < expit(-1.75 + 0.45 * loading * u)),
        density=float(rng.choice(list(_DENSITY_SHARES), p=list(_DENSITY_SHARES.values()))),
        background=str(rng.choice(list(_BACKGROUND_SHARES), p=list(_BACKGROUND_SHARES.values()))),
        side=str(rng.choice(["left", "right"])),
    )
    # 12 decimals: the last bits of exp and log are not the same on every processor
    return Truth(**{name: round(v, 12) if isinstance(v, float) else v for name, v in drawn.items()})


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
