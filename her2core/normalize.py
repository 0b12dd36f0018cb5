"""From scanner units to 8 bits: every normalisation of the study is a map made of straight lines.

A map rises from black to white through knots (intensity, grey level); most have two, the limits of a window:

scope_minmax, scope_q98, scope_q02_q99    limits at exact quantiles of the patient's own intensities
scope_zscore                              limits at multiples of the standard deviation around the mean
channel_nyul, global_nyul                 inner knots too: quantiles are moved to standard grey levels, the mean
                                          over the training patients (Nyúl & Udupa, Magn Reson Med 42:1072, 1999;
                                          Nyúl, Udupa & Zhang, IEEE Trans Med Imaging 19:143, 2000)

Only the standard of Nyúl's method is learnt, and from training patients alone; every other map depends on its own
patient only.  `preprocess.py` stores once what the maps need of a volume: a new map never reads the volume again.

Intensities are unsigned 16-bit integers; `statistics` refuses all others, so that none wraps around.  Below black
is black, above white is white.  Without contrast between black and white (an empty or constant image, or a bright
spot too small to reach the upper quantile) all is black.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

PHASES = ("pre", "early", "late")
SCOPES = ("slice", "channel", "global")
_NAME = re.compile(r"(slice|channel|global)_(?:(zscore)|(nyul)|minmax|(?:q(\d{2,3})_)?q(\d{2,3}))")
# Half of a breast volume is air: the darkest voxel lies 0.6 to 0.8 sd below the mean, the lesion up to 6 above.
_ZSCORE_LIMITS = (-1.0, 5.0)
# Deciles as Nyúl 2000, ends as Shah et al., Med Image Anal 15:267, 2011; of the whole volume, air included.
LANDMARKS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
_BLOCK = 1 << 19  # voxels that are worked on at once: what fits the cache of a core


@dataclass(frozen=True)
class Window:
    """Where black and white lie.

    scope: whose intensities count: "slice": the three phases of one slice together; "channel": each phase
        of the patient's volume by itself; "global": the three phases of the volume together.
    lower, upper: quantiles in [0, 1], 0 is the minimum, 1 the maximum; for "zscore" standard deviations from the
        mean.
    method: "quantile", "zscore" or "nyul", whose black and white are the outermost landmarks.
    """

    scope: str
    lower: float
    upper: float
    method: str = "quantile"

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r}: expected one of {', '.join(SCOPES)}")
        if self.method not in ("quantile", "zscore", "nyul"):
            raise ValueError(f"method={self.method!r}: expected quantile, zscore or nyul")
        if self.method == "nyul" and self.scope == "slice":
            raise ValueError("slice_nyul: landmarks are those of a volume; expected channel_nyul or global_nyul")
        least, most = (-math.inf, math.inf) if self.method == "zscore" else (0, 1)
        if not least <= self.lower < self.upper <= most:
            raise ValueError(f"window needs {least} <= lower < upper <= {most}, found {self.lower}, {self.upper}")

    @classmethod
    def parse(cls, name: str) -> "Window":
        """`channel_q98` → Window("channel", 0, 0.98); q995 is 99.5 %.  ValueError for a name that is none."""
        match = _NAME.fullmatch(name)
        if not match:
            raise ValueError(
                f"window {name!r}: expected scope_limits such as channel_q98, global_q02_q99, slice_minmax, "
                f"channel_zscore or channel_nyul; scopes are {', '.join(SCOPES)}"
            )
        scope, zscore, nyul, lower, upper = match.groups()
        if zscore:
            return cls(scope, *_ZSCORE_LIMITS, zscore)
        if nyul:
            return cls(scope, LANDMARKS[0], LANDMARKS[-1], nyul)
        return cls(scope, _fraction(lower) if lower else 0.0, _fraction(upper) if upper else 1.0)


def _fraction(digits):
    """Digits after the decimal point: "98" → 0.98, "995" → 0.995."""
    return int(digits) / 10 ** len(digits)


def _count(values):
    """How often each intensity occurs in unsigned 16-bit values: int64, from 0 to the largest that does."""
    if values.dtype != np.uint16 or values.size == 0:
        raise ValueError(f"expected a non-empty uint16 array, found {values.dtype} of shape {values.shape}")
    flat = values.ravel()
    # PyTorch counts signed integers of any size; NumPy would copy to 64 bits first
    signed = flat.view(np.int16) if flat.max() < 1 << 15 else flat.astype(np.int32)
    return torch.bincount(torch.from_numpy(np.require(signed, requirements="W"))).numpy()


def _quantiles_of(counts, levels):
    """The smallest intensity whose share of values at or below it reaches the level: `(len(levels),)` uint16."""
    cumulative = np.cumsum(counts)
    # the counts are integers below 2**53: a level times the size is rounded up without a half-count's slip
    ranks = np.maximum(np.ceil(np.asarray(levels) * cumulative[-1] - 1e-9), 1)
    return np.searchsorted(cumulative, ranks).astype(np.uint16)


def _moments_of(counts):
    """Mean and standard deviation (the population's): `(2,)` float64, from integer sums and so exact."""
    intensity = np.arange(counts.size)
    size, total, squares = int(counts.sum()), int(counts @ intensity), int(counts @ intensity**2)
    variance = (size * squares - total**2) / size**2  # Python's integers do not overflow
    return np.array([total / size, math.sqrt(variance)])


def statistics(values: np.ndarray, levels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """All that any map needs of unsigned 16-bit values of any shape, from one pass of counting, without sampling.

    Returns quantiles `(len(levels),)` uint16, as `numpy.quantile(method="inverted_cdf")`, level 0 being the
    minimum; and moments `(2,)` float64, mean and standard deviation.
    """
    counts = _count(values)
    return _quantiles_of(counts, levels), _moments_of(counts)


def columns(levels: Sequence[float], wanted: Sequence[float]) -> np.ndarray:
    """Index of each wanted quantile among the stored `levels`; ValueError where one is missing."""
    apart = np.abs(np.asarray(levels)[None] - np.asarray(wanted)[:, None])
    if missing := [q for q, row in zip(wanted, apart, strict=True) if not np.any(row < 1e-6)]:
        raise ValueError(f"no stored quantile {missing}; stored are {list(levels)}: add it to prepare.quantiles")
    return apart.argmin(1)


def limits(
    window: Window, quantiles: np.ndarray, levels: Sequence[float], moments: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Black and white of every slice under any window.

    quantiles: `(N, scopes, P, L)` as `preprocess.py` stores them; levels: the L quantiles they are; moments:
    `(N, scopes, P, 2)`, mean and standard deviation, for "zscore" alone.  Returns lo, hi: `(N, P)` float32 each.
    """
    scope = SCOPES.index(window.scope)
    if window.method == "zscore":
        if moments is None:
            raise ValueError(f"{window.scope}_zscore needs the stored moments, found none")
        mean, sd = np.moveaxis(np.asarray(moments, np.float32)[:, scope], -1, 0)
        return mean + np.float32(window.lower) * sd, mean + np.float32(window.upper) * sd
    lo, hi = columns(levels, (window.lower, window.upper))
    return quantiles[:, scope, :, lo].astype(np.float32), quantiles[:, scope, :, hi].astype(np.float32)


def learn_standard(
    window: Window, quantiles: np.ndarray, levels: Sequence[float], patients: Sequence[str]
) -> np.ndarray:
    """Grey levels of Nyúl's landmarks: where they lie between black and white, averaged over training patients.

    quantiles: `(n, scopes, P, L)`, one row for each of the n training patients.  Returns `(P, landmarks)` float64
    from 0 to 255.  A patient without contrast between the outermost landmarks is an error.
    """
    own = quantiles[:, SCOPES.index(window.scope)][..., columns(levels, LANDMARKS)].astype(float)
    if not len(own):
        raise ValueError(f"{window.scope}_nyul: no training patient to learn the standard from")
    black, white = own[..., :1], own[..., -1:]
    if flat := [str(patients[k]) for k in np.flatnonzero((black == white).any((1, 2)))]:
        raise ValueError(f"{', '.join(flat)}: no contrast between {LANDMARKS[0]} and {LANDMARKS[-1]} quantile")
    return 255 * ((own - black) / (white - black)).mean(0)


def line(lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits `(N, P)` as two knots: `round(255 · clip((x − lo) / (hi − lo), 0, 1))`, 0 without contrast."""
    return np.stack([lo, hi], -1), np.broadcast_to(np.float32([0, 255]), (*lo.shape, 2))


def knots(
    window: Window,
    quantiles: np.ndarray,
    levels: Sequence[float],
    moments: np.ndarray | None = None,
    standard: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The map of every slice under any window, for `piecewise`.

    quantiles, levels, moments: as for `limits`; standard: what `learn_standard` returned, for "nyul" alone.
    Returns intensities and grey levels, `(N, P, K)` float32 each, both rising.

    Landmarks that coincide in a patient share the middle of their grey levels, but the darkest intensity stays
    black (background cut off at 0) and the brightest white (saturation).
    """
    if window.method != "nyul":
        return line(*limits(window, quantiles, levels, moments))
    if standard is None:
        raise ValueError(f"{window.scope}_nyul needs the standard learnt on the training patients, found none")
    x = quantiles[:, SCOPES.index(window.scope)][..., columns(levels, LANDMARKS)].astype(np.float32)
    same = x[..., :, None] == x[..., None, :]  # (N, P, K, K): which landmarks coincide
    first, last = same.argmax(-1), x.shape[-1] - 1 - same[..., ::-1].argmax(-1)
    phase = np.arange(x.shape[1])[:, None]
    y = (standard[phase, first] + standard[phase, last]) / 2
    y = np.where(x == x[..., :1], 0, np.where(x == x[..., -1:], 255, y))
    return x, y.astype(np.float32)


def maps(
    window: Window | str,
    quantiles: np.ndarray,
    levels: Sequence[float],
    moments: np.ndarray,
    training: tuple[np.ndarray, Sequence[str]],
) -> tuple[np.ndarray, np.ndarray]:
    """The `knots` of every slice under a window, or its name, which learns first what it needs.

    quantiles, levels, moments: as for `limits`.  training: `(n, scopes, P, L)` quantiles of n training patients and
    their names.
    """
    window = Window.parse(window) if isinstance(window, str) else window
    standard = learn_standard(window, training[0], levels, training[1]) if window.method == "nyul" else None
    return knots(window, quantiles, levels, moments, standard)


def _grey_levels(images, x, y):
    """Float32 images `(N, P, H, W)` through knots `(N, P, K)`: the sum of one clipped ramp from knot to knot.

    The images are overwritten.
    """
    x, y = x[..., None, None], y[..., None, None]
    total = None
    for k in range(x.shape[2] - 1):
        low, width, rise = x[:, :, k], x[:, :, k + 1] - x[:, :, k], y[:, :, k + 1] - y[:, :, k]
        unit = np.subtract(images, low, out=None if k < x.shape[2] - 2 else images)
        unit /= np.where(width > 0, width, np.inf)  # between knots that coincide nothing rises
        np.clip(unit, 0, 1, out=unit)
        unit *= rise
        total = unit if total is None else total + unit
    return total


def piecewise(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integer images `(N, P, H, W)` of any type through their knots `(N, P, K)` → uint8 of the same shape."""
    out = np.empty_like(images, np.uint8)  # laid out as the images: a transposed volume stays one
    step = max(_BLOCK // max(math.prod(images.shape[1:]), 1), 1)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        grey = _grey_levels(images[part].astype(np.float32), x[part], y[part])
        out[part] = np.rint(grey, out=grey)
    return out
