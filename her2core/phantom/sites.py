"""The scanners and protocols of three collections, and how they vary between patients: sites.yaml has the numbers.

Manufacturers and matrices of spy2 follow the 982 baseline examinations of I-SPY2 (matrices at half their size);
I-SPY1 and AMBL were acquired at 1.5 T, AMBL on one GE model.  Field strengths of spy2 and the numbers of slices are
chosen here.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from her2core.config import read_yaml
from her2core.phantom.physics import RELAXIVITY_PER_S_MM, T10_S

_STREAMS = ("anatomy", "lesion", "noise", "truth", "protocol")
_GAIN_OF_12_BITS = 330  # leaves room for an enhanced lesion below 4095


def random_stream(seed: int, name: str, *number: int) -> np.random.Generator:
    """One of a patient's independent generators.  The label is no part of its seed, so that twins share it."""
    return np.random.default_rng([seed, _STREAMS.index(name), *number])


@dataclass(frozen=True)
class Site:
    """One scanner and protocol.

    gain: mean grey level of fibroglandular tissue before contrast.  noise: sigma per channel relative to it.
    bias: strength of the receive field (about 3 × its coefficient of variation).  fat_suppression: share of the fat
    signal that is left.  fat_unsuppressed: share of the fat, in the median over patients, where suppression fails.
    phase_times_s: seconds after injection; the first, 0, is the pre-contrast phase.
    spacing_mm, shape: (z, y, x).  ValueError for values that cannot be scanned.
    """

    name: str
    field_T: float
    tr_s: float
    te_s: float
    flip_deg: float
    relaxivity_per_s_mM: float
    fat_suppression: float
    fat_unsuppressed: float
    gain: float
    noise: float
    bias: float
    phase_times_s: tuple[float, ...]
    bits: int
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int] = (24, 128, 128)
    manufacturer: str = "GE MEDICAL SYSTEMS"

    def __post_init__(self):
        if self.field_T not in T10_S:
            raise ValueError(f"{self.name}: field must be one of {list(T10_S)} T, found {self.field_T}")
        times = np.asarray(self.phase_times_s)
        if len(times) < 3 or times[0] != 0 or np.any(np.diff(times) <= 0):
            raise ValueError(f"{self.name}: expected ascending times from 0 s, found {self.phase_times_s}")
        if len(self.shape) != 3 or np.any(np.less(self.shape, (8, 32, 32))):
            raise ValueError(f"{self.name}: shape must be (Z, Y, X) of at least (8, 32, 32), found {self.shape}")

    @property
    def early_index(self) -> int:
        """The phase nearest to 2.3 minutes, where enhancement is read."""
        return 1 + int(np.argmin(np.abs(np.asarray(self.phase_times_s[1:]) - 138)))

    @property
    def late_index(self) -> int:
        """The last phase."""
        return len(self.phase_times_s) - 1


def _site(name, table):
    """A collection's table in sites.yaml → its `Site`."""
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in table["site"].items()}
    return Site(name, relaxivity_per_s_mM=RELAXIVITY_PER_S_MM[fields["field_T"]][table["agent"]], **fields)


_TABLES = read_yaml(Path(__file__).with_name("sites.yaml"))
SITES = {name: _site(name, table) for name, table in _TABLES.items()}


def find_site(site: Site | str) -> Site:
    """A `Site` as it is, or one of `SITES` by its name; ValueError for an unknown name."""
    if isinstance(site, Site):
        return site
    if site not in SITES:
        raise ValueError(f"unknown site {site!r}; there are {', '.join(SITES)}")
    return SITES[site]


def _choose(pairs, rng):
    """One of the values, each with its share."""
    shares = np.array([share for _, share in pairs], float)
    return pairs[rng.choice(len(pairs), p=shares / shares.sum())][0]


def draw_protocol(name: str, seed: int) -> Site:
    """The scanner and protocol of one patient of collection `name`: a variation on `SITES`, whatever the label."""
    site = find_site(name)
    rng = random_stream(seed, "protocol")
    drawn = {key: _choose(pairs, rng) for key, pairs in _TABLES[name]["varies"].items()}
    view, slab, pace = rng.uniform((0.95, 0.95, 0.92), (1.08, 1.08, 1.08))
    manufacturer, field_T = drawn.get("manufacturer", site.manufacturer), drawn.get("field_T", site.field_T)
    bits = 12 if manufacturer != "GE MEDICAL SYSTEMS" else site.bits
    gain = (_GAIN_OF_12_BITS if bits == 12 else site.gain) * np.exp(0.18 * rng.standard_normal())
    times = [*site.phase_times_s[:-1], *drawn.get("late_phases", site.phase_times_s[-1:])]
    slice_mm = round(float(slab * site.shape[0] * site.spacing_mm[0] / drawn["slices"]), 3)
    pixel_mm = round(float(view * site.shape[1] * site.spacing_mm[1] / drawn["matrix"]), 4)
    return replace(
        site,
        field_T=field_T,
        manufacturer=manufacturer,
        relaxivity_per_s_mM=RELAXIVITY_PER_S_MM[field_T].get(drawn.get("agent"), site.relaxivity_per_s_mM),
        bits=bits,
        gain=round(float(gain), 1),
        phase_times_s=tuple(round(t * float(pace)) for t in times),
        shape=(drawn["slices"], drawn["matrix"], drawn["matrix"]),
        spacing_mm=(slice_mm, pixel_mm, pixel_mm),
    )
