"""Figures of the phantom's tour.  A phantom belongs to no cohort: every title says what it is."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.report.figures import require
from her2core.report.figures.images import show_breasts, show_small
from her2core.report.figures.style import COLOURS, ONE_COLUMN, TWO_COLUMNS, titled

_PHANTOM = "phantom, no patients"


def phantom_gallery(patients: Mapping[str, Sequence[tuple[np.ndarray, float, float, str]]]) -> Figure:
    """The variety of the sites: a row per site, a slice per phantom.

    patients: site → (early phase `(Y, X)`, white, pixel_mm, what stands above it) of as many phantoms at each.
    """
    require.some("patients", patients, 4)
    columns = max(map(len, patients.values()))
    size = (TWO_COLUMNS, 0.3 + (0.36 + TWO_COLUMNS / columns) * len(patients))
    figure, axes = plt.subplots(len(patients), columns, figsize=size, squeeze=False)
    for row, (site, shown) in zip(axes, patients.items(), strict=True):
        for panel, (image, white, pixel_mm, text) in zip(row, shown, strict=True):
            show_small(panel, image, pixel_mm, vmin=0, vmax=white)
            panel.set_title(text, fontsize=7)
        row[0].set_ylabel(site)
    what = "Early post-contrast phase, slice with most tumour, each in its own grey window"
    return titled(figure, _PHANTOM, what)


def twins(examples: Mapping[str, tuple]) -> Figure:
    """Phantoms that differ in their label alone, in the views of `images.show_breasts`.

    examples: label → (phases `(3, Z, Y, X)`, mask `(Z, Y, X)`, `Geometry`).  White, the same for all, is 120 % of
    the 98 % quantile of the brightest lesion in the early phase.
    """
    require.some("examples", examples, 3)
    white = max(1.2 * np.quantile(volumes[1][mask], 0.98) for volumes, mask, _ in examples.values())
    grey = "white, the same in all: 120 % of the brightest lesion's 98 % quantile in the early phase; line: lesion"
    return titled(show_breasts(examples, white), _PHANTOM, "Twins: one seed, either label", grey)


def kinetic_curves(minutes: Sequence[float], curves: Mapping[str, tuple]) -> Figure:
    """Enhancement of a lesion over time: as its kinetics imply it, and as the images have it.

    minutes: of the phases, after the first.  curves: label → (expected, measured), both relative to pre-contrast.
    """
    require.some("curves", curves, len(COLOURS))
    figure, axes = plt.subplots(figsize=(ONE_COLUMN, 2.6))
    for (label, (expected, measured)), colour, marker in zip(curves.items(), COLOURS, "os^Dv<>", strict=False):
        axes.plot(minutes, 100 * (np.asarray(expected) - 1), color=colour)
        axes.plot(minutes, 100 * (np.asarray(measured) - 1), marker, color=colour, label=label)
    axes.set(xlabel="Time after the first phase (min)", ylabel="Enhancement of the lesion (%)")
    axes.legend()
    return titled(figure, _PHANTOM, "One phantom of each label; dots: median of the lesion; lines: its kinetics")
