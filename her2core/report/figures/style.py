"""What all figures share: print sizes, colours, title lines, and saving."""

from pathlib import Path
from textwrap import fill

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from her2core.records import whole

plt.style.use(Path(__file__).with_name("her2.mplstyle"))

COLOURS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
PHASE_NAMES = ("pre-contrast", "early post-contrast", "late post-contrast")
GUIDE = {"color": "0.6", "linewidth": 0.8, "zorder": 0}  # chance, no difference, perfect calibration
BEST = {"color": "0.3", "linewidth": 0.8, "linestyle": "--", "zorder": 0}  # what no model can be expected to pass


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


def titled(figure: Figure, cohort: str, first: str, *others: str) -> Figure:
    """The figure with the cohort's name, and what else is to be known, above all panels, wrapped to its width."""
    width = int(15 * figure.get_figwidth())  # characters of 8 points
    lines = [f"{first}; {cohort}"] if len(first + cohort) < width - 2 else [f"{first};", cohort]
    figure.suptitle("\n".join(fill(line, width) for line in (*lines, *others)))
    return figure


def beside(axes: Axes, y: float, text: str) -> None:
    """A text to the right of the axes, at height y of the data."""
    axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=7)
