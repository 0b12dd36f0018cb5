"""From scanner units to 8 bits: every normalisation of the study is a window.

A window is two limits per phase, taken from exact quantiles of the patient's own intensities, and
`round(255 · clip((x − lo) / (hi − lo), 0, 1))`.  Nothing is fitted on other patients, so nothing leaks.
The quantiles are stored once (`preprocess.py`); a further window never reads a volume again.

Names: `scope_limits`, for instance `channel_q98` (minimum to 98 % quantile), `global_q02_q99`, `slice_minmax`.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch

SCOPES = ("slice", "channel", "global")
NAME = re.compile(r"(slice|channel|global)_(?:minmax|(?:q(\d{2,3})_)?q(\d{2,3}))")


@dataclass(frozen=True)
class Window:
    """Where black and white lie.

    scope: whose intensities count: "slice": the three phases of one slice together; "channel": each phase
        of the patient's volume by itself; "global": the three phases of the volume together.
    lower, upper: quantiles in [0, 1]; 0 is the minimum, 1 the maximum.
    """

    scope: str
    lower: float
    upper: float

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r}: expected one of {', '.join(SCOPES)}")
        if not 0 <= self.lower < self.upper <= 1:
            raise ValueError(f"window needs 0 <= lower < upper <= 1, found {self.lower}, {self.upper}")

    @classmethod
    def parse(cls, name):
        """`channel_q98` → Window("channel", 0, 0.98); q995 is 99.5 %."""
        match = NAME.fullmatch(name)
        if not match:
            raise ValueError(
                f"window {name!r}: expected scope_limits such as channel_q98, global_q02_q99 or slice_minmax; "
                f"scopes are {', '.join(SCOPES)}"
            )
        scope, lower, upper = match.groups()
        return cls(scope, fraction(lower) if lower else 0.0, fraction(upper) if upper else 1.0)


def fraction(digits):
    """Digits after the decimal point: "98" → 0.98, "995" → 0.995."""
    return int(digits) / 10 ** len(digits)


def exact_quantiles(values, levels):
    """Quantiles of unsigned 16-bit values, any shape, without sorting or sampling: one pass of counting.

    The smallest value whose share of values at or below it reaches the level, as
    `numpy.quantile(method="inverted_cdf")`; level 0 is the minimum.  Returns `(len(levels),)` uint16.
    """
    if values.dtype != np.uint16 or values.size == 0:
        raise ValueError(f"expected a non-empty uint16 array, found {values.dtype} of shape {values.shape}")
    cumulative = np.cumsum(np.bincount(values.ravel(), minlength=1))
    # the counts are integers below 2**53: a level times the size is rounded up without a half-count's slip
    ranks = np.maximum(np.ceil(np.asarray(levels) * values.size - 1e-9), 1)
    return np.searchsorted(cumulative, ranks).astype(np.uint16)


def limits(window, quantiles, levels):
    """The window's limits for every slice.

    quantiles: `(N, scopes, P, L)` as `preprocess.py` stores them; levels: the L quantiles they are.
    Returns lo, hi: `(N, P)` float32 each.
    """
    scope = SCOPES.index(window.scope)
    missing = [q for q in (window.lower, window.upper) if not np.any(np.isclose(levels, q))]
    if missing:
        raise ValueError(f"no stored quantile {missing}; stored are {list(levels)}: add it to prepare.quantiles")
    lo, hi = (np.argmin(np.abs(np.asarray(levels) - q)) for q in (window.lower, window.upper))
    return quantiles[:, scope, :, lo].astype(np.float32), quantiles[:, scope, :, hi].astype(np.float32)


def to_8bit(images, lo, hi):
    """Images `(N, P, H, W)` of any dtype and limits `(N, P)` → uint8 of the same shape.

    A constant window (hi = lo) gives 0 everywhere: there is no contrast to show.
    """
    lo, width = lo[:, :, None, None], (hi - lo)[:, :, None, None]
    scale = np.where(width > 0, width, np.float32(np.inf))
    unit = np.clip((images.astype(np.float32) - lo) / scale, 0, 1)
    return np.rint(unit * np.float32(255)).astype(np.uint8)


def to_8bit_torch(images, lo, hi):
    """As `to_8bit`, byte for byte, on the tensors' device."""
    lo, width = lo[:, :, None, None], (hi - lo)[:, :, None, None]
    scale = torch.where(width > 0, width, torch.inf)
    unit = ((images.float() - lo) / scale).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8)
