"""What all figures share: print sizes, colours, title lines, checks of what they are given, and saving."""

from collections.abc import Iterable, Sized
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from her2core.records import whole

plt.style.use(Path(__file__).with_name("her2.mplstyle"))

COLOURS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
PHASE_NAMES = ("pre-contrast", "early post-contrast", "late post-contrast")
GUIDE = {"color": "0.6", "linewidth": 0.8, "zorder": 0}  # chance, no difference, perfect calibration


def settle(figure: Figure) -> None:
    """Lay the figure out; panels of a fixed aspect leave room for their titles only in the second pass."""
    for _ in range(2):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def save(figure: Figure, name: str, folder: Path) -> None:
    """folder/name.png at 300 dpi and folder/name.pdf; the same bytes for the same figure."""
    settle(figure)
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        with whole(Path(folder) / f"{name}.{kind}") as part:
            figure.savefig(part, format=kind, metadata=metadata)
    plt.close(figure)


def headline(figure: Figure, cohort: str, first: str, *others: str) -> None:
    """The cohort's name and what else is to be known, above all panels, wrapped to the figure's width."""
    width = int(15 * figure.get_figwidth())  # characters of 8 points
    lines = [f"{first}; {cohort}"] if len(first + cohort) < width - 2 else [f"{first};", cohort]
    figure.suptitle("\n".join(fill(line, width) for line in (*lines, *others)))


def beside(axes: Axes, y: float, text: str) -> None:
    """A text to the right of the axes, at height y of the data."""
    axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=7)


def require_shape(name: str, array: np.ndarray, *shape: int | None) -> None:
    """None stands for any size but 0."""
    found = np.shape(array)
    if len(found) != len(shape) or not all(n if s is None else n == s for n, s in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: shape {found}, expected ({wanted})")


def require_8bit(name: str, array: np.ndarray, *shape: int | None) -> None:
    """An array of uint8 of this shape."""
    require_shape(name, array, *shape)
    if array.dtype != np.uint8:
        raise ValueError(f"{name}: found {array.dtype}, expected uint8")


def require_columns(name: str, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """A table that has these columns."""
    if missing := [c for c in columns if c not in table]:
        raise ValueError(f"{name}: lacks {', '.join(missing)}; it has {', '.join(map(str, table))}")


def require_values(name: str, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """A table with rows, and a number or a word in each of these columns."""
    require_columns(name, table, columns)
    if table.empty or table[list(columns)].isna().any(axis=None):
        raise ValueError(f"{name}: {len(table)} rows, expected at least one and no missing value")


def require_some(name: str, items: Sized, most: int) -> None:
    """One of them at least, and not too many to be drawn."""
    if not 0 < len(items) <= most:
        raise ValueError(f"{name}: found {len(items)}, expected 1 to {most}")


def patients_of(name: str, estimates: Iterable) -> str:
    """ "n = 180, 72 HER2+"; all must rest on the same patients, or one n would not do."""
    found = sorted({(int(e.patients), int(e.positives)) for e in estimates})
    if len(found) != 1:
        raise ValueError(f"{name}: patients and positives differ from row to row: {found}")
    return f"n = {found[0][0]}, {found[0][1]} HER2+"


def _number(value, sign=""):
    return f"{round(value, 2) + 0.0:{sign}.2f}".replace("-", "−")  # adding 0 turns −0 into 0


def interval(value: float, low: float, high: float, sign: str = "") -> str:
    """0.72 (0.65–0.79); where a dash could be a minus, −0.05 (−0.09 to −0.01)."""
    dash = " to " if sign or low < 0 else "–"
    return f"{_number(value, sign)} ({_number(low, sign)}{dash}{_number(high, sign)})"
