"""A digital breast with a known answer: anatomy in millimetres, lesions, contrast kinetics, scanner.

Arrays are `(T, Z, Y, X)`; z grows to the head, y to posterior, x to the patient's left (LPS).  The HER2 label y
reaches the picture through one number only, the latent u = d(y - 1/2) + N(0, 1) with d = √2 Φ⁻¹(Bayes AUC): no
classifier can beat that AUC in expectation, and whatever does has found a leak.  Size, side, density, site and
gain carry no label signal.  Effect sizes imitate Elias (CEBP 2014), Grimm (Radiology 2015) and smaller studies;
they make a test bed, not evidence about patients.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.special import expit
from scipy.stats import norm

from her2core.formats.volume import DceSeries, Geometry
from her2core.phantom import physics
from her2core.phantom.physics import RELAXIVITY_PER_S_MM

DENSITY_SHARES = {0.10: 0.10, 0.22: 0.40, 0.38: 0.40, 0.55: 0.10}  # gland share of the breast: BI-RADS a to d
BACKGROUND_SHARES = {"minimal": 0.18, "mild": 0.46, "moderate": 0.26, "marked": 0.10}  # IMAGINE, BCR 2020
BACKGROUND_KTRANS = {"minimal": 0.007, "mild": 0.014, "moderate": 0.025, "marked": 0.045}  # per min
HR_SHARES = {None: 536 / 982, 0: 381 / 740, 1: 155 / 242}  # I-SPY2: hormone receptor positive by HER2
STREAMS = (
    "anatomy",
    "lesion",
    "noise",
    "truth",
    "protocol",
)  # independent generators: twins share all but the lesion
ENHANCEMENT_THRESHOLD = 0.70  # percent enhancement / 100 of the functional tumour volume (Hylton 2016)


@dataclass(frozen=True)
class Site:
    """One scanner and protocol.

    gain: mean grey level of fibroglandular tissue before contrast.  noise: sigma per channel relative to it.
    bias: strength of the receive field (about 3 × the coefficient of variation).  fat_suppression: factor left
    of the fat signal.  phase_times_s: seconds after injection; the first is the pre-contrast phase.
    """

    name: str
    field_T: float
    tr_s: float
    te_s: float
    flip_deg: float
    relaxivity_per_s_mM: float
    fat_suppression: float
    gain: float
    noise: float
    bias: float
    phase_times_s: tuple[float, ...]
    bits: int
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int] = (24, 128, 128)
    manufacturer: str = "GE MEDICAL SYSTEMS"

    def __post_init__(self):
        if self.field_T not in physics.T10_S:
            raise ValueError(f"{self.name}: field must be one of {list(physics.T10_S)} T, found {self.field_T}")
        times = np.asarray(self.phase_times_s)
        if len(times) < 3 or times[0] != 0 or np.any(np.diff(times) <= 0):
            raise ValueError(f"{self.name}: expected ascending times from 0 s, found {self.phase_times_s}")
        if len(self.shape) != 3 or np.any(np.less(self.shape, (8, 32, 32))):
            raise ValueError(f"{self.name}: shape must be (Z, Y, X) of at least (8, 32, 32), found {self.shape}")

    @property
    def early_index(self):
        """The phase nearest to 2.3 minutes, where enhancement is read."""
        return 1 + int(np.argmin(np.abs(np.asarray(self.phase_times_s[1:]) - 138)))

    @property
    def late_index(self):
        return len(self.phase_times_s) - 1


SITES = {
    site.name: site
    for site in (
        Site(
            "spy2", phase_times_s=(0, 60, 138, 462), spacing_mm=(2.5, 1.40, 1.40), bits=16,
            field_T=3.0, tr_s=0.0050, te_s=0.0022, flip_deg=10,
            relaxivity_per_s_mM=RELAXIVITY_PER_S_MM[3.0]["gadobutrol"],
            fat_suppression=0.13, gain=620, noise=0.045, bias=0.42,
        ),
        Site(
            "spy1", phase_times_s=(0, 144, 456), spacing_mm=(2.4, 1.35, 1.35), bits=12,
            field_T=1.5, tr_s=0.0080, te_s=0.0042, flip_deg=20,
            relaxivity_per_s_mM=RELAXIVITY_PER_S_MM[1.5]["gadopentetate"],
            fat_suppression=0.17, gain=330, noise=0.055, bias=0.30,
        ),
        Site(
            "ambl", phase_times_s=(0, 72, 144, 216, 390), spacing_mm=(2.6, 1.45, 1.45), bits=16,
            field_T=1.5, tr_s=0.0062, te_s=0.0029, flip_deg=12,
            relaxivity_per_s_mM=RELAXIVITY_PER_S_MM[1.5]["gadobenate"],
            fat_suppression=0.22, gain=1050, noise=0.040, bias=0.50,
        ),
    )
}  # fmt: skip


# What differs between the patients of a collection, as (value, share) pairs.  Manufacturers and matrices of spy2
# follow the 982 baseline examinations of I-SPY2 (matrices at half their size); I-SPY1 and AMBL were acquired at
# 1.5 T, AMBL on one GE model.  Field strengths of spy2 and the slice counts are our choice.
PROTOCOLS = {
    "spy2": {
        "manufacturer": (("GE MEDICAL SYSTEMS", 611), ("SIEMENS", 252), ("Philips Medical Systems", 119)),
        "field_T": ((1.5, 0.6), (3.0, 0.4)),
        "matrix": ((128, 767), (144, 140), (112, 75)),
        "slices": ((24, 0.6), (20, 0.2), (28, 0.2)),
        "late_phases": (((462,), 0.7), ((300, 462), 0.3)),
        "agent": (("gadobutrol", 0.5), ("gadopentetate", 0.3), ("gadobenate", 0.2)),
    },
    "spy1": {
        "manufacturer": (("GE MEDICAL SYSTEMS", 0.8), ("SIEMENS", 0.2)),
        "matrix": ((128, 0.8), (112, 0.2)),
        "slices": ((24, 0.7), (28, 0.3)),
    },
    "ambl": {"matrix": ((128, 0.9), (144, 0.1)), "slices": ((24, 0.8), (20, 0.2))},
}
GAIN_OF_12_BITS = 330  # leaves room for an enhanced lesion below 4095


def draw_protocol(name, seed):
    """The scanner and protocol of one patient of collection `name`: variations on `SITES`, whatever the label.

    Matrix, slices, field of view, timing, field strength, manufacturer, contrast agent, bit depth and gain.
    """
    site = find_site(name)
    rng = np.random.default_rng([seed, STREAMS.index("protocol")])
    drawn = {key: choose(pairs, rng) for key, pairs in PROTOCOLS[name].items()}
    view, slab, pace = rng.uniform((0.95, 0.95, 0.92), (1.08, 1.08, 1.08))
    manufacturer, field_T = drawn.get("manufacturer", site.manufacturer), drawn.get("field_T", site.field_T)
    bits = 12 if manufacturer != "GE MEDICAL SYSTEMS" else site.bits
    gain = (GAIN_OF_12_BITS if bits == 12 else site.gain) * np.exp(0.18 * rng.standard_normal())
    times = site.phase_times_s[:-1] + drawn["late_phases"] if "late_phases" in drawn else site.phase_times_s
    edge_mm = view * site.shape[1] * site.spacing_mm[1] / drawn["matrix"]
    return replace(
        site,
        field_T=field_T,
        manufacturer=manufacturer,
        relaxivity_per_s_mM=RELAXIVITY_PER_S_MM[field_T].get(drawn.get("agent"), site.relaxivity_per_s_mM),
        bits=bits,
        gain=round(float(gain), 1),
        phase_times_s=tuple(round(t * float(pace)) for t in times),
        shape=(drawn["slices"], drawn["matrix"], drawn["matrix"]),
        spacing_mm=(
            round(float(slab * site.shape[0] * site.spacing_mm[0] / drawn["slices"]), 3),
            *(round(float(edge_mm), 4),) * 2,
        ),
    )


def choose(pairs, rng):
    """One of the values, each with its share."""
    shares = np.array([share for _, share in pairs], float)
    return pairs[rng.choice(len(pairs), p=shares / shares.sum())][0]


def find_site(site):
    """A `Site` as it is, or one of `SITES` by its name."""
    if isinstance(site, Site):
        return site
    if site not in SITES:
        raise ValueError(f"unknown site {site!r}; there are {', '.join(SITES)}")
    return SITES[site]


@dataclass(frozen=True)
class Truth:
    """What was drawn for one patient.  Rates per minute, volume fractions, millimetres.

    heterogeneity: sd of log Ktrans inside the lesion.  rim: share of Ktrans missing in the core.  volume_ml and
    n_satellites are those of the finished picture once a patient is made.
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


def check_truth_arguments(her2, bayes_auc, loading):
    if her2 not in (0, 1):
        raise ValueError(f"her2 must be 0 or 1, found {her2!r}")
    if not 0.5 < bayes_auc < 1:
        raise ValueError(f"bayes_auc must lie in (0.5, 1), found {bayes_auc}")
    if not 0 <= loading <= 1:
        raise ValueError(f"loading must lie in [0, 1], found {loading}")


def draw_truth(her2, rng, *, bayes_auc=0.80, loading=1.0):
    """Label → latent → lesion.  `loading` 0 cuts every path from the latent to the lesion.

    Every draw is made whatever the label, so the same generator state gives counterfactual twins.
    """
    check_truth_arguments(her2, bayes_auc, loading)
    u = float(np.sqrt(2) * norm.ppf(bayes_auc) * (her2 - 0.5) + rng.standard_normal())
    noise = dict(zip(("ktrans", "kep", "vp", "het", "rim", "size"), rng.standard_normal(6), strict=True))
    chance = dict(zip(("multi", "count", "nme", "spic", "lob"), rng.random(5), strict=True))

    def loaded(name, weight):  # unit variance within a class
        weight *= loading
        return weight * u + np.sqrt(1 - weight**2) * noise[name]

    ktrans = float(np.clip(0.145 * np.exp(0.42 * loaded("ktrans", 0.75)), 0.04, 0.9))
    ve = float(np.clip(ktrans / (0.29 * np.exp(0.30 * loaded("kep", 0.35))), 0.08, 0.80))
    multifocal = chance["multi"] < expit(-0.42 + 1.45 * loading * u)
    spiculated = chance["spic"] < 0.40
    return Truth(
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
        spiculations=int(8 + 20 * chance["spic"]) if spiculated else 0,
        lobulation=float(0.10 + 0.18 * chance["lob"]),
        non_mass=bool(chance["nme"] < expit(-1.75 + 0.45 * loading * u)),
        density=float(rng.choice(list(DENSITY_SHARES), p=list(DENSITY_SHARES.values()))),
        background=str(rng.choice(list(BACKGROUND_SHARES), p=list(BACKGROUND_SHARES.values()))),
        side=str(rng.choice(["left", "right"])),
    )


def draw_clinical(rng, *, her2=None):
    """Age, hormone receptor and menopause with the margins of the I-SPY2 table; none touches the picture.

    Without a label HR has the overall share; with one, that of the HER2 group.  Age is independent of both.
    """
    age = int(np.clip(np.rint(rng.normal(48.8, 10.5)), 23, 80))
    hr_positive = rng.random() < HR_SHARES[her2]
    postmenopausal = rng.random() < expit((age - 51) / 2.5)
    return {"age": age, "hr": int(hr_positive), "menopause": "post" if postmenopausal else "pre"}


def expected_signal(truth, site, arrival_s=24):
    """Noise-free signal of the lesion in every phase, relative to the first: (T, …) for truths of any shape."""
    minutes = (np.asarray(site.phase_times_s[1:]) - arrival_s) / 60
    conc = physics.extended_tofts(minutes, truth.ktrans_per_min, truth.ve, truth.vp)
    conc = np.concatenate([np.zeros_like(conc[:1]), conc])
    rate = 1 / physics.T10_S[site.field_T]["tumour"] + site.relaxivity_per_s_mM * conc
    signal = physics.spgr(rate, site.tr_s, np.deg2rad(site.flip_deg))
    return signal / signal[0]


def expected_enhancement(truth, site, arrival_s=24):
    """Noise-free early enhancement (PE, as a fraction) and signal enhancement ratio (SER) of the lesion."""
    added = expected_signal(truth, site, arrival_s) - 1
    return added[site.early_index], added[site.early_index] / added[site.late_index]


# --- grids, fields and edges ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Voxel centres in mm, each axis shaped to broadcast over (Z, Y, X): z from the middle, y from the front
    edge, x from the middle towards the patient's left, lateral from the middle towards the arm."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    lateral: np.ndarray
    spacing_mm: tuple[float, float, float]

    @property
    def shape(self):
        return self.z.size, self.y.size, self.x.size

    @property
    def axes(self):
        return self.z.ravel(), self.y.ravel(), self.lateral.ravel()

    @property
    def depth_mm(self):
        return self.y.size * self.spacing_mm[1]

    def index(self, point_mm):
        """Nearest voxel of a (z, y, lateral) point; may lie outside."""
        return tuple(int(np.abs(a - p).argmin()) for a, p in zip(self.axes, point_mm, strict=True))


def make_grid(site, side):
    z, y, x = [
        np.arange(n, dtype=np.float32) * np.float32(d) for n, d in zip(site.shape, site.spacing_mm, strict=True)
    ]
    z, x = z - z.mean(), x - x.mean()
    lateral = x if side == "left" else -x
    return Grid(z[:, None, None], y[None, :, None], x[None, None, :], lateral[None, None, :], site.spacing_mm)


def _bumps(axis_mm, sigma_mm):
    """Gaussian bumps (voxels, nodes) on a lattice anchored in mm, so that grids of any spacing agree."""
    step = 1.25 * sigma_mm
    first, last = np.floor(axis_mm.min() / step) - 3, np.ceil(axis_mm.max() / step) + 3
    nodes = np.arange(first, last + 1, dtype=np.float32) * np.float32(step)
    return np.exp(-(((axis_mm[:, None] - nodes) / np.float32(sigma_mm)) ** 2) / 2)


def smooth_field(axes_mm, sigma_mm, rng):
    """Gaussian random field over the product of `axes_mm`, unit variance, correlation about 2 sigma_mm.

    White noise on a lattice times separable bumps: three small matrix products instead of a filter.
    """
    bumps = [_bumps(np.ravel(axis), sigma_mm) for axis in axes_mm]
    field = rng.standard_normal([b.shape[1] for b in bumps], dtype=np.float32)
    for b in bumps:  # each product consumes the first axis and appends the finished one
        field = np.tensordot(field, b, axes=(0, 1))
    scale = np.prod([np.mean(np.sum(b * b, axis=1)) for b in bumps])
    return field / np.float32(np.sqrt(scale))


def smoothstep(x, low, high):
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# --- anatomy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fields:
    """Three scales of random texture (Z, Y, X), unit variance, shared by all tissues: 7.5, 3.2 and 1.6 mm."""

    coarse: np.ndarray
    medium: np.ndarray
    fine: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """The breast without its lesions; (Z, Y, X) float32.  What the tissue fractions leave of `body` is fat.

    skin_depth_mm: along the surface normal, from the skin inwards.  wall_depth_mm: along y, behind the front of
    the pectoral muscle.
    """

    body: np.ndarray
    skin: np.ndarray
    gland: np.ndarray
    ligament: np.ndarray
    muscle: np.ndarray
    vessel: np.ndarray
    node: np.ndarray
    lung: np.ndarray
    skin_depth_mm: np.ndarray
    wall_depth_mm: np.ndarray
    fields: Fields


def surfaces(grid, rng):
    """Skin and chest wall as depths y in mm over (Z, 1, X), the nipple (z, y, lateral) and the half-width."""
    z, lat, depth = grid.z, grid.lateral, grid.depth_mm
    plane = (grid.z, grid.lateral)
    ripple = [smooth_field(plane, s, rng)[:, None, :] for s in (9.0, 8.0, 6.0)]
    base = depth * rng.uniform(0.68, 0.72)
    wall = base + 0.0026 * (lat + 30) ** 2 + 0.0016 * z**2 + 1.5 * ripple[0]
    width, tall = rng.uniform(58, 70), rng.uniform(78, 100)
    height = rng.uniform(0.60, 0.90) * base
    lat0, z0, power = rng.uniform(-4, 9), rng.uniform(-6, 6), rng.uniform(1.9, 2.5)
    dome = 1 - (np.hypot((lat - lat0) / width, (z - z0) / tall) + 1e-4) ** power
    breast = base + 0.0016 * z**2 - height * np.sign(dome) * np.abs(dome) ** 0.62 + 0.8 * ripple[1]
    beside = wall - rng.uniform(11, 18) + 1.0 * ripple[2]
    skin = np.minimum(breast, beside) - 5 * np.log1p(np.exp(-np.abs(breast - beside) / 5))  # smooth minimum
    bump = np.exp(-(((lat - lat0) / 4.2) ** 2 + ((z - z0) / 4.2) ** 2))
    nipple = (z0, float(base - height), lat0)
    return (skin - 6 * bump).astype(np.float32), wall.astype(np.float32), bump, nipple, width


def gland_tissue(grid, skin_depth, wall_depth, fields, nipple, density, rng):
    """Fibroglandular fraction: lobes that run to the nipple between fat, kept off the skin and the wall."""
    coarse, medium, fine = fields.coarse, fields.medium, fields.fine
    dz, dy, dlat = grid.z - nipple[0], grid.y - nipple[1] - 6, grid.lateral - nipple[2]
    radius = np.sqrt(dz**2 + dy**2 + dlat**2) + 1
    angle = np.arctan2(dlat + 5 * coarse, dy + 14 + 5 * medium)
    ducts = np.cos(angle * rng.uniform(12, 18) + 1.7 * coarse + medium + 0.12 * dz)
    ducts += 0.6 * np.cos(angle * rng.uniform(26, 36) + 1.5 * medium - 0.2 * dz)
    envelope = smoothstep(skin_depth, 4, np.maximum(14 + 5 * coarse, 7))
    envelope *= smoothstep(-wall_depth, 2, np.maximum(13 + 3 * coarse, 5))
    envelope *= 1 - smoothstep(np.abs(angle), 0.75, 1.3)
    score = 0.85 * coarse + 0.5 * medium + 0.42 * fine + 0.55 * ducts * smoothstep(radius, 5, 28)
    score += 2.2 * np.exp(-radius / 16) - 0.022 * np.maximum(radius - 34, 0) - 0.85 * angle**2
    score += 1.6 * (envelope - 1)
    inside = envelope > 0.3
    cut = np.quantile(score[inside][::5], 1 - density)
    lobes = 0.85 * smoothstep(score, cut - 0.40, cut + 0.35) + 0.15 * smoothstep(score + fine, cut, cut + 1.2)
    creases = 1 - 0.24 * np.exp(-((fine / 0.28) ** 2))  # fat between the lobules
    return lobes * creases * (envelope > 0.02)


def ligaments(skin_depth, wall_depth, fields):
    """Cooper's ligaments: thin curved sheets, the zero sets of smooth fields, tied to the skin."""
    sheets = 0.30 * np.exp(-(((fields.medium + 0.3 * fields.fine) / 0.11) ** 2))
    sheets += 0.28 * np.exp(-((fields.coarse / 0.045) ** 2))
    return sheets * smoothstep(-wall_depth, 1, 6) * smoothstep(skin_depth, 1, 4)


def winding_path(start, end, wander_mm, rng):
    """Points every 0.5 mm or so from start to end, bent by a few slow sine waves: (N, 3)."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    t = np.linspace(0, 1, max(8, int(np.linalg.norm(end - start) / 0.5)))[:, None]
    bend = sum(np.sin(np.pi * k * t) * rng.normal(0, wander_mm / k**1.1, 3) * (0.7, 1, 1) for k in range(1, 6))
    return start + (end - start) * t + bend


def draw_tubes(grid, paths, radii_mm):
    """Volume fraction of tubes: each centreline point deposits its cross-section into the point spread of the
    voxel.  Depositing instead of sampling is what keeps thin oblique vessels from looking beaded."""
    points = np.concatenate(paths)
    steps = np.concatenate([np.linalg.norm(np.gradient(p, axis=0), axis=1) for p in paths])
    area = np.pi * np.concatenate(radii_mm) ** 2
    origin = np.array([a[0] for a in (grid.z.ravel(), grid.y.ravel(), grid.lateral.ravel())], float)
    spacing = np.array(grid.spacing_mm) * (1, 1, np.sign(grid.lateral.ravel()[1] - grid.lateral.ravel()[0]))
    sigma = np.sqrt((0.55 * np.array(grid.spacing_mm)) ** 2 + 0.25 * np.concatenate(radii_mm)[:, None] ** 2)
    at = (points - origin) / spacing
    reach = np.arange(-3, 4)
    near = np.rint(at).astype(int)[:, :, None] + reach  # (N, 3, 7)
    kernel = np.exp(-((((near - at[:, :, None]) * spacing[:, None]) / sigma[:, :, None]) ** 2) / 2)
    kernel /= sigma[:, :, None] * np.sqrt(2 * np.pi)
    size = np.array(grid.shape)[:, None]
    kernel *= (near >= 0) & (near < size)
    near = np.clip(near, 0, size - 1)
    flat = (near[:, 0, :, None, None] * size[1] + near[:, 1, None, :, None]) * size[2] + near[:, 2, None, None, :]
    weight = np.einsum("n,na,nb,nc->nabc", area * steps, kernel[:, 0], kernel[:, 1], kernel[:, 2])
    volume = np.bincount(flat.ravel(), weight.ravel(), minlength=int(np.prod(grid.shape)))
    return np.minimum(volume, 1).reshape(grid.shape).astype(np.float32)


def vessels(grid, nipple, width, rng):
    """Perforators from the internal mammary (medial) and lateral thoracic vessels, branching to the nipple."""
    paths, radii = [], []
    z0, y0, lat0 = nipple
    slab = float(np.abs(grid.z).max())
    for _ in range(rng.integers(4, 8)):
        medial = rng.random() < 0.45
        start = (rng.uniform(-slab, slab), grid.depth_mm * 0.66, lat0 + width * (-0.72 if medial else 0.80))
        end = (z0 + rng.normal(0, 12), y0 + rng.uniform(18, 45), lat0 + rng.normal(0, 14))
        trunk = winding_path(start, end, 6.5, rng)
        thick = rng.uniform(0.8, 1.5)
        paths.append(trunk)
        radii.append(np.linspace(thick, 0.45 * thick, len(trunk)))
        for _ in range(rng.integers(1, 4)):
            k = rng.integers(len(trunk) // 5, 4 * len(trunk) // 5)
            twig = winding_path(trunk[k], trunk[k] + rng.normal(0, (9, 20, 20)), 4, rng)
            paths.append(twig)
            radii.append(np.linspace(radii[-1][0] * 0.6, 0.35, len(twig)))
    mammary = winding_path((-slab - 4, 0.78 * grid.depth_mm, -56), (slab + 4, 0.78 * grid.depth_mm, -56), 1.5, rng)
    paths.append(mammary)
    radii.append(np.full(len(mammary), 1.6))
    return draw_tubes(grid, paths, radii)


def lymph_node(grid, wall_y, width, medium, rng):
    """Fraction of a bean with a fatty hilum, low in the axilla beside the chest wall; in most slabs."""
    present, size = rng.random() < 0.7, rng.uniform(3.5, 6.5)
    z0, lat0 = rng.uniform(0, 0.9) * float(grid.z.max()), width * rng.uniform(0.90, 1.05)
    iz, _, ix = grid.index((z0, 0, lat0))
    y0 = float(wall_y[iz, 0, ix]) - rng.uniform(7, 9)
    dz, dy, dlat = grid.z - z0, (grid.y - y0) * 1.4, (grid.lateral - lat0) / 1.2
    shell = np.sqrt(dz**2 + dy**2 + dlat**2) / size * (1 + 0.12 * medium)
    hilum = np.sqrt(dz**2 + (dy + 0.5 * size) ** 2 + (dlat + 0.3 * size) ** 2) / (0.6 * size)
    edge = 0.8 * grid.spacing_mm[1] / size
    return present * (1 - smoothstep(shell, 1 - edge, 1 + edge)) * smoothstep(hilum, 0.6, 1.3)


def chest(grid, wall_depth, side, fine, rng):
    """Fractions behind the breast: muscle (pectoral, with ribs and their muscles), lung, heart."""
    edge = 0.6 * grid.spacing_mm[1]
    thickness = 9 + 0.05 * grid.lateral + 2 * smooth_field((grid.z, grid.lateral), 8.0, rng)[:, None, :]
    pectoral = smoothstep(wall_depth, -edge, edge) * (1 - smoothstep(wall_depth, thickness - 1, thickness + 1))
    pectoral = pectoral * (1 - 0.35 * np.exp(-(((wall_depth - 0.55 * thickness) / 1.2) ** 2)))  # fat plane
    lung = smoothstep(wall_depth, thickness + 11, thickness + 14)
    behind = smoothstep(wall_depth, thickness - 1, thickness + 1) * (1 - lung)
    beat = (grid.lateral * 0.5 + grid.z * 1.1) / 9 + rng.uniform(0, 6)
    ribs = behind * smoothstep(np.cos(beat + 0.15 * fine), -0.25, 0.35)
    heart = np.zeros_like(lung)
    if side == "left":
        reach = np.sqrt(((grid.lateral + 62) / 46) ** 2 + ((grid.y - grid.depth_mm * 1.10) / 34) ** 2)
        heart = lung * (1 - smoothstep(reach, 0.95, 1.05))
    return pectoral + 0.55 * ribs, lung - heart, heart


def make_anatomy(grid, truth, rng):
    fields = Fields(*[smooth_field((grid.z, grid.y, grid.lateral), s, rng) for s in (7.5, 3.2, 1.6)])
    skin_y, wall_y, bump, nipple, width = surfaces(grid, rng)
    slope = np.hypot(*np.gradient(skin_y[:, 0, :], grid.spacing_mm[0], grid.spacing_mm[2]))[:, None, :]
    skin_depth, wall_depth = (grid.y - skin_y) / np.sqrt(1 + slope**2), grid.y - wall_y
    edge = 0.6 * grid.spacing_mm[1]
    body = smoothstep(skin_depth, -edge, edge)
    below_skin = smoothstep(skin_depth, 1.9 + 2 * bump - edge, 1.9 + 2 * bump + edge)
    breast = body * below_skin * (1 - smoothstep(wall_depth, -edge, edge))
    muscle, lung, heart = chest(grid, wall_depth, truth.side, fields.fine, rng)
    gland = breast * gland_tissue(grid, skin_depth, wall_depth, fields, nipple, truth.density, rng)
    sheets = np.clip(breast * ligaments(skin_depth, wall_depth, fields) - gland, 0, 1)
    node = breast * lymph_node(grid, wall_y, width, fields.medium, rng)
    vessel = np.maximum(vessels(grid, nipple, width, rng) * body * (1 - lung), 0.85 * heart)
    room = (1 - vessel) * (1 - node)
    fractions = {
        "skin": body * (1 - below_skin) * room,
        "gland": gland * room,
        "ligament": sheets * room,
        "muscle": muscle * body * room,
        "vessel": vessel * (1 - node),
        "node": node,
        "lung": lung * body,
    }
    fractions = {name: fraction.astype(np.float32) for name, fraction in fractions.items()}
    return Anatomy(body=body, skin_depth_mm=skin_depth, wall_depth_mm=wall_depth, fields=fields, **fractions)


# --- lesions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Focus:
    """One focus in its box: fraction, relative depth (0 at the edge, 1 in the centre), log Ktrans texture."""

    box: tuple[slice, slice, slice]
    fraction: np.ndarray
    core: np.ndarray
    texture: np.ndarray


def star_radius(direction, radius_mm, lobulation, n_spikes, rng):
    """Relative radius over unit vectors (z, y, lateral): a random star-shaped solid with optional spicules.

    Plane waves on the sphere stand for a Gaussian random sphere (de Sisternes 2015, the mass of VICTRE).
    """
    radius = np.ones_like(direction[0])
    for k in range(9):
        wave = rng.standard_normal(3).astype(np.float32) * np.float32(1.2 + 0.35 * k)
        phase = sum(w * n for w, n in zip(wave, direction, strict=True)) + np.float32(rng.uniform(0, 2 * np.pi))
        radius += np.float32(0.45 * lobulation / (1 + 0.12 * k)) * np.cos(phase)
    for _ in range(n_spikes):  # spicules keep their width of 1-2 mm whatever the size of the lesion
        axis = rng.standard_normal(3) * (0.6, 1, 1)
        axis = (axis / np.linalg.norm(axis)).astype(np.float32)
        along = sum(a * n for a, n in zip(axis, direction, strict=True))
        sharpness = np.float32(rng.uniform(0.7, 1.7) * max(radius_mm, 8) ** 2)
        length = np.float32(rng.uniform(0.3, 0.9) * min(1, 12 / radius_mm))
        radius += length * np.exp(sharpness * (along - 1))
    return np.maximum(radius, 0.35)


def make_focus(grid, centre_mm, radius_mm, rng, *, lobulation, spiculations=0, non_mass=False):
    """A mass, or a stretched and clumped non-mass enhancement, about a (z, y, lateral) centre."""
    stretch = np.array((0.85, 1.7, 1.13) if non_mass else (0.92, 1.1, 1.0)) * np.exp(rng.normal(0, 0.06, 3))
    reach = radius_mm * stretch.max() * (1.35 + 2 * lobulation + 0.4 * (spiculations > 0)) + 4
    near = [np.flatnonzero(np.abs(a - c) <= reach) for a, c in zip(grid.axes, centre_mm, strict=True)]
    box = tuple(slice(n[0], n[-1] + 1) for n in near)
    axes = [axis[s] for axis, s in zip(grid.axes, box, strict=True)]
    relative = [(a - np.float32(c)) / np.float32(f) for a, c, f in zip(axes, centre_mm, stretch, strict=True)]
    offset = np.meshgrid(*relative, indexing="ij", sparse=True)
    distance = np.sqrt(sum(o**2 for o in offset)) + np.float32(1e-3)
    direction = [o / distance for o in offset]
    rho = distance / (np.float32(radius_mm) * star_radius(direction, radius_mm, lobulation, spiculations, rng))
    clumps, grain = smooth_field(axes, 2.6, rng), smooth_field(axes, 1.5, rng)
    rho = rho * (1 + 0.05 * clumps + 0.02 * grain)  # a margin that is nowhere quite smooth
    if non_mass:  # clumps with normal tissue between them
        rho = rho * (1 + smoothstep(smooth_field(axes, 3.2, rng), -0.2, 0.9))
    edge = np.float32(0.75 * grid.spacing_mm[1] / radius_mm)
    return Focus(box, 1 - smoothstep(rho, 1 - edge, 1 + edge), np.clip(1 - rho, 0, 1), 0.8 * clumps + 0.6 * grain)


def place_main(grid, anatomy, radius_mm, rng):
    """Centre (z, y, lateral) mm of the main lesion: in gland where possible, with room on all sides."""
    room = np.minimum(anatomy.skin_depth_mm, -anatomy.wall_depth_mm)
    room = room[:, ::2, ::2]
    slab = float(grid.z.max()) + grid.spacing_mm[0] / 2
    fits = (room > 0.85 * radius_mm + 4) & (np.abs(grid.z) < max(slab - 0.95 * radius_mm, grid.spacing_mm[0]))
    if not fits.any():
        fits = room >= room[np.broadcast_to(np.abs(grid.z) < slab / 3, room.shape)].max() - 1
    weight = np.cumsum((fits * (anatomy.gland[:, ::2, ::2] + 0.06)).ravel(), dtype=np.float64)
    pick = min(int(np.searchsorted(weight, rng.random() * weight[-1], side="right")), weight.size - 1)
    z, y, x = np.unravel_index(pick, room.shape)
    return np.array([a[i] for a, i in zip(grid.axes, (z, 2 * y, 2 * x), strict=True)], float)


def place_satellite(grid, anatomy, centre_mm, main_radius_mm, radius_mm, taken, rng):
    """A free place near the main lesion and inside the breast, or None after 20 tries."""
    for _ in range(20):
        way = rng.standard_normal(3) * (0.55, 1, 1)
        gap = main_radius_mm * 1.2 + radius_mm + rng.uniform(4, 18)
        point = centre_mm + way / np.linalg.norm(way) * gap
        k = grid.index(point)
        free = all(np.linalg.norm(point - other) > radius_mm + size + 3 for other, size in taken)
        inside = np.abs(point[0]) < grid.z.max() and np.abs(point[2]) < np.abs(grid.lateral).max()
        if free and inside and min(anatomy.skin_depth_mm[k], -anatomy.wall_depth_mm[k]) > radius_mm + 2:
            return point
    return None


def make_foci(grid, anatomy, truth, seed):
    """Main lesion and satellites; every focus has its own stream, so a twin's main lesion keeps its shape."""
    rng = np.random.default_rng([seed, STREAMS.index("lesion"), 0])
    centre = place_main(grid, anatomy, truth.radius_mm, rng)
    shape = {name: getattr(truth, name) for name in ("lobulation", "spiculations", "non_mass")}
    foci = [make_focus(grid, centre, truth.radius_mm, rng, **shape)]
    taken = []
    for i in range(truth.n_satellites):
        rng = np.random.default_rng([seed, STREAMS.index("lesion"), i + 1])
        radius = rng.uniform(3.0, 6.0)
        point = place_satellite(grid, anatomy, centre, truth.radius_mm, radius, taken, rng)
        if point is not None:
            foci.append(make_focus(grid, point, radius, rng, lobulation=0.2))
            taken.append((point, radius))
    return foci


@dataclass(frozen=True)
class Lesions:
    """All foci on the full grid (Z, Y, X): fraction, Ktrans per min and relative proton density, float32;
    labels uint8."""

    fraction: np.ndarray
    ktrans_per_min: np.ndarray
    water: np.ndarray
    labels: np.ndarray


def merge_foci(grid, anatomy, truth, foci):
    """Put the foci on the grid; where two meet, the larger fraction wins."""
    fraction, ktrans, water = [np.full(grid.shape, v, np.float32) for v in (0, 0, 1)]
    labels = np.zeros(grid.shape, np.uint8)
    allowed = anatomy.body * (1 - anatomy.skin) * (1 - smoothstep(anatomy.wall_depth_mm, -1, 1))
    for number, focus in enumerate(foci, 1):
        box = focus.box
        inside = focus.fraction * allowed[box]
        # spicules thinner than a voxel end two voxels beyond the mask: so far and no further do twins differ
        inside = inside * ndimage.binary_dilation(inside > 0.5, iterations=2)
        outgrown = 0.5 if number > 1 else 0.2 if truth.non_mass else 1.0  # small or loose tissue stays supplied
        rim = truth.rim * outgrown
        core = smoothstep(focus.core, 0.18, 0.55)
        log_rate = truth.heterogeneity * focus.texture - truth.heterogeneity**2 / 2
        rate = truth.ktrans_per_min * np.exp(log_rate) * (1 - rim * core) * (1 + 0.25 * rim)
        wins = inside > fraction[box]
        ktrans[box] = np.where(wins, np.clip(rate, 0.005, 1.8), ktrans[box])
        water[box] = np.where(wins, 1 + 0.04 * focus.texture - 0.08 * rim * core, water[box])
        labels[box] = np.where(wins & (inside > 0.5), number, labels[box])
        fraction[box] = np.maximum(inside, fraction[box])
    return Lesions(fraction, ktrans, water, labels)


# --- scanner ----------------------------------------------------------------------------------------------


def transmit_field(grid, site, side):
    """Relative flip angle B1+: uneven between the breasts and across them (Radiology 2013, PMID 23401582)."""
    mean = {1.5: {"left": 0.911, "right": 1.054}, 3.0: {"left": 0.863, "right": 1.027}}[site.field_T][side]
    slope = 0.03 + 0.02 * site.field_T
    plane = 0.6 * grid.lateral / np.abs(grid.lateral).max() - (grid.y / grid.depth_mm - 0.5)
    return np.broadcast_to(mean * (1 + slope * plane), grid.shape)


def receive_field(grid, site, body, rng):
    """Coil sensitivity: bright in front and to the side, dark at the wall; log-mean 0 in the body."""
    y = (grid.y / grid.depth_mm - 0.45) * 2
    lateral = grid.lateral / np.abs(grid.lateral).max()
    z = grid.z / max(np.abs(grid.z).max(), 1)
    a, b, c, d = rng.normal(0, (0.25, 0.2, 0.2, 0.15))
    log = -0.9 * y + 0.35 * lateral**2 + a * lateral + b * z + c * lateral * y + d * z * z - 0.15 * y * y
    log = site.bias * (log - log[body].mean())
    return np.exp(log).astype(np.float32)


def fat_residue(grid, site, fat, fields, rng):
    """What fat suppression leaves of the fat signal (Z, Y, X): little and uneven, nearly all where it fails.

    It fails off resonance, where the body's outline turns: at the fold under the breast, towards the axilla.
    Such fat is brighter than an enhancing lesion, so that most upper quantiles of these images lie outside the
    lesion.  The share of fat concerned differs between patients.
    """
    residue = site.fat_suppression * np.exp(0.22 * fields.coarse + 0.14 * fields.medium + 0.12 * fields.fine)
    fold, axilla = rng.uniform(0.3, 1.7, 2)
    share = float(np.clip(0.15 * np.exp(0.5 * rng.standard_normal()), 0.03, 0.35))
    off_resonance = (
        -fold * grid.z / np.abs(grid.z).max()
        + axilla * grid.lateral / np.abs(grid.lateral).max()
        + 0.8 * grid.y / grid.depth_mm
        + 0.45 * fields.coarse
    )
    threshold = np.quantile(off_resonance[fat > 0.5], 1 - share)
    return residue + (0.9 - residue) * smoothstep(off_resonance, threshold - 0.12, threshold + 0.12)


def tissue_table(grid, site, truth, anatomy, lesions, rng):
    """Rows of (fraction, tissue for T1, proton density, Ktrans, ve, vp); parameters are scalars or volumes.

    The draws do not depend on the lesion, or twins would differ everywhere.
    """
    a, fields = anatomy, anatomy.fields
    solid, free = lesions.fraction, 1 - lesions.fraction
    fat = np.clip(a.body - a.skin - a.gland - a.ligament - a.muscle - a.vessel - a.node - a.lung, 0, 1)
    background = BACKGROUND_KTRANS[truth.background] * float(np.exp(0.25 * rng.standard_normal()))
    gland_rate = background * np.exp(0.30 * fields.medium + 0.25 * fields.fine + 0.25 * fields.coarse)
    return [
        (fat * free * fat_residue(grid, site, fat, fields, rng), "fat", 1.0, 0.006, 0.08, 0.003),
        (a.gland * free * (1 + 0.04 * fields.medium), "gland", 0.82, gland_rate, 0.30, 0.006),
        (a.ligament * free, "gland", 0.60, 0.006, 0.20, 0.003),
        (a.muscle * free * (1 + 0.07 * fields.fine), "muscle", 0.64, 0.035, 0.15, 0.015),
        (a.skin * free, "skin", 0.48, 0.030, 0.35, 0.010),
        (a.node * free, "gland", 0.80, 0.20, 0.35, 0.030),
        (a.vessel * free, "blood", 0.85, 0.0, 1.0, 1 - physics.HAEMATOCRIT),
        (solid * lesions.water, "tumour", 0.88, lesions.ktrans_per_min, truth.ve, truth.vp),
    ]


def noise_free(site, table, flip, arrival_s):
    """Signal (T, Z, Y, X) float32: every tissue has its own T1 and kinetics, and the signals add."""
    minutes = (np.asarray(site.phase_times_s) - arrival_s) / 60
    minutes[0] = -1  # the first phase is taken before the injection
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


def reference_signal(site):
    """Fibroglandular signal before contrast at the nominal flip angle: fixes grey levels whatever the lesion."""
    t10, t2star = physics.T10_S[site.field_T]["gland"], physics.T2STAR_S[site.field_T]["gland"]
    return float(0.82 * physics.spgr(1 / t10, site.tr_s, np.deg2rad(site.flip_deg), site.te_s, t2star))


def acquire(site, signal, coil, noise_rng):
    """Noise-free signal (T, Z, Y, X) → grey levels uint16: motion, coil, one gain for all phases, Rician noise."""
    scale = coil * np.float32(site.gain / reference_signal(site))
    sigma = np.float32(site.noise * site.gain)
    out = np.empty(signal.shape, np.uint16)
    for phase, volume in enumerate(signal):
        if phase:
            shift = (0, *noise_rng.normal(0, 0.16, 2))
            volume = ndimage.shift(volume, shift, order=1, mode="nearest", prefilter=False)
        grey = np.rint(physics.rician(volume * scale, sigma, noise_rng))
        out[phase] = np.clip(grey, 0, 2**site.bits - 1)
    return out


# --- patients ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patient:
    """One examination and everything that is known about it; masks and maps are (Z, Y, X).

    lesion_mask: geometric truth.  annotator_mask: ragged, percent enhancement of at least 70 % inside `voi`
    (z0, z1, y0, y1, x0, x1; half-open), as in functional tumour volume.  focus_labels: 1 main lesion, 2..
    satellites.
    """

    series: DceSeries
    lesion_mask: np.ndarray
    annotator_mask: np.ndarray
    voi: tuple[int, int, int, int, int, int]
    focus_labels: np.ndarray
    bias_field: np.ndarray
    body_mask: np.ndarray
    fibroglandular: np.ndarray
    truth: Truth


def bounding_voi(mask, spacing_mm, margin_mm=5.0):
    voi = []
    for axis, (size, step) in enumerate(zip(mask.shape, spacing_mm, strict=True)):
        hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        pad = int(np.ceil(margin_mm / step))
        voi += [max(0, int(hit[0]) - pad), min(size, int(hit[-1]) + 1 + pad)]
    return tuple(voi)


def annotate(array, site, voi):
    """Functional tumour volume: enhanced by 70 % or more and, before contrast, no darker than half of tissue.

    Tissue is what enhances most in the box; unsuppressed fat may be brighter.
    """
    z0, z1, y0, y1, x0, x1 = voi
    box = np.s_[z0:z1, y0:y1, x0:x1]
    pre, early = array[0][box].astype(np.float32), array[site.early_index][box].astype(np.float32)
    added = early - pre
    tissue = np.median(pre[added >= np.percentile(added, 75)])
    mask = np.zeros(array.shape[1:], bool)
    mask[box] = (pre > 0.5 * tissue) & (added >= ENHANCEMENT_THRESHOLD * pre)
    return mask


def make_geometry(site, side):
    """LPS grid with the breast 85 mm beside the midline and the front edge 110 mm before the origin."""
    z, y, x = [(n - 1) * d for n, d in zip(site.shape, site.spacing_mm, strict=True)]
    centre = 85.0 if side == "left" else -85.0
    return Geometry(site.spacing_mm, (centre - x / 2, -110.0, -z / 2))


def make_patient(seed, her2, site, *, bayes_auc=0.80, loading=1.0, truth=None):
    """One patient at a site (name or `Site`).  Equal arguments give equal bytes.

    The same seed with the other label is the counterfactual twin: all but the lesions is shared.
    """
    site = find_site(site)
    streams = {name: np.random.default_rng([seed, i]) for i, name in enumerate(STREAMS)}
    if truth is None:
        truth = draw_truth(her2, streams["truth"], bayes_auc=bayes_auc, loading=loading)
    elif truth.her2 != her2:
        raise ValueError(f"the given truth has her2 {truth.her2}, but her2 {her2} was asked for")
    grid = make_grid(site, truth.side)
    rng = streams["anatomy"]
    anatomy = make_anatomy(grid, truth, rng)
    foci = make_foci(grid, anatomy, truth, seed)
    lesions = merge_foci(grid, anatomy, truth, foci)
    body = anatomy.body > 0.5
    flip = (np.deg2rad(site.flip_deg) * transmit_field(grid, site, truth.side)).astype(np.float32)
    coil = receive_field(grid, site, body, rng)
    table = tissue_table(grid, site, truth, anatomy, lesions, rng)
    signal = noise_free(site, table, flip, arrival_s=float(rng.uniform(17, 30)))
    array = acquire(site, signal, coil, streams["noise"])
    mask = lesions.labels > 0
    voi = bounding_voi(mask, site.spacing_mm)
    volume_ml = float(mask.sum() * np.prod(site.spacing_mm) / 1000)
    return Patient(
        series=DceSeries(array, make_geometry(site, truth.side), site.phase_times_s),
        lesion_mask=mask,
        annotator_mask=annotate(array, site, voi),
        voi=voi,
        focus_labels=lesions.labels,
        bias_field=coil,
        body_mask=body,
        fibroglandular=anatomy.gland,
        truth=replace(truth, volume_ml=volume_ml, n_satellites=len(foci) - 1),
    )
