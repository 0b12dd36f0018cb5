"""Figures of the phantom's tour.  A phantom belongs to no cohort: every title says what it is."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.report.figures import require
from her2core.report.figures.images import most_tumour, rows_of_volumes, show_row, show_small
from her2core.report.figures.style import COLOURS, ONE_COLUMN, PHASE_NAMES, TWO_COLUMNS, titled

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
    """Phantoms that differ in their label alone: three phases, and the uptake projected along the slices.

    examples: label → (phases `(3, Z, Y, X)`, mask `(Z, Y, X)`, `Geometry`).  White is 120 % of the lesion's 98 %
    quantile in the early phase.
    """
    require.some("examples", examples, 3)
    figure, axes = rows_of_volumes(examples, (*PHASE_NAMES, "early − pre, projected"))
    for row, (label, (volumes, mask, geometry)) in zip(axes, examples.items(), strict=True):
        volumes, z = np.asarray(volumes, float), most_tumour(mask)
        white = 1.2 * np.quantile(volumes[1][mask], 0.98)
        projected = (volumes[1] - volumes[0]).max(0)
        show_row(row, (*volumes[:, z], projected), geometry.spacing_mm[1:], white)
        row[0].set_ylabel(f"{label}, slice {z}\n(mm)")
    white = "white: 120 % of the lesion's 98 % quantile in the early phase"
    return titled(figure, _PHANTOM, "Twins: one seed, either label", white)


def kinetic_curves(minutes: Sequence[float], curves: Mapping[str, tuple]) -> Figure:
    """Enhancement of a lesion over time: as its kinetics imply it, and as the images have it.

    minutes: of the phases, after injection.  curves: label → (expected, measured), both relative to pre-contrast.
    """
    require.some("curves", curves, len(COLOURS))
    figure, axes = plt.subplots(figsize=(ONE_COLUMN, 2.6))
    for (label, (expected, measured)), colour, marker in zip(curves.items(), COLOURS, "os^Dv<>", strict=False):
        axes.plot(minutes, expected, color=colour)
        axes.plot(minutes, measured, marker, color=colour, label=label)
    axes.set(xlabel="Time after injection (min)", ylabel="Signal of the lesion / pre-contrast")
    axes.legend()
    return titled(figure, _PHANTOM, "Dots: median of the lesion; lines: its kinetics")
