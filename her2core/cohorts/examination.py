"""One patient of the real cohort: its files, read, compared with the tables, and cropped as MinCrop crops.

A patient that cannot be used is `Unusable`; its reason is `kind: details`, and the flow of patients counts kinds.
A network or a disk that fails is never a reason: it is an OSError and ends the run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from her2core.cohorts.collections import collections
from her2core.cohorts.labels import breastdcedl_phases
from her2core.formats.dicom import read_dce
from her2core.formats.examination import is_nifti
from her2core.formats.nifti import (
    mask_file,
    min_crop,
    phase_files,
    read_breastdcedl,
    read_mask_of,
    write_breastdcedl,
)
from her2core.formats.seg import read_seg, read_seg_labels
from her2core.formats.volume import PHASE_COLUMNS, DceSeries, Phases, nearest_phases

_SAME = 0.02  # of a count of voxels: the table's masks are those of the archive
_ALIKE = 0.1  # of a length: rounded numbers agree, a spacing that is twice another's does not
_OVERLAP = 0.4  # of a slice, and of a volume: those of ISPY2-427321 are 3 mm thick and 2 mm apart
_MIDLINE_MM = 10.0  # a lesion nearer to it may be said to lie on either side


class Unusable(ValueError):
    """A patient cannot be used: `kind: details`."""


@contextmanager
def because(kind: str) -> Iterator[None]:
    """Bad data inside the block make the patient unusable, for a reason of this kind."""
    try:
        yield
    except ValueError as error:
        raise Unusable(f"{kind}: {error}") from error


@dataclass(frozen=True)
class Recipe:
    """All that a patient's stored files depend on beside its series."""

    early_s: float  # wanted times after the first phase, in seconds, where no table names the phases (AMBL)
    late_s: float
    ambl_phases: tuple[int, int, int] | None  # the three phases instead, where the files have no times
    crop_px: int  # MinCrop keeps 256 × 256 pixels around the tumour
    margin_slices: int  # and two slices beyond it


def _phases_of(row, times_s, recipe):
    """Pre, early and late: the table's, else by the collection's rule."""
    if named := Phases.named(row):
        return named
    rule = collections()[row["dataset"]].phases
    if rule != "time":
        return Phases(*(breastdcedl_phases(len(times_s)) if rule == "table" else range(3)))
    if recipe.ambl_phases is not None:
        return Phases(*recipe.ambl_phases)
    return nearest_phases(times_s, recipe.early_s, recipe.late_s)


def _tumour(row, lesions, seg, series):
    """The mask of a patient's tumour, bool `(Z, Y, X)`; an expert's is NIfTI.

    AMBL has a segment per lesion, benign ones too, and its table counts lesions: where both count as many, the
    segments are in the table's order; otherwise nothing tells which is which, and that is a ValueError.
    """
    shape, meaning = series.array.shape[1:], collections()[row["dataset"]].mask
    if is_nifti(seg):
        return read_mask_of(seg, shape, series.geometry)
    if meaning != "lesions":
        return read_seg(seg, series.geometry, shape, meaning=meaning, source=series.source)
    labels = read_seg_labels(seg, series.geometry, shape, source=series.source)
    found = len(np.unique(labels)) - 1
    if found != lesions["count"]:
        raise ValueError(f"{seg.name}: {found} segments, expected {lesions['count']}, one per lesion of the table")
    for number, side in zip(lesions["malignant"], lesions["sides"], strict=True):
        _check_side(seg, labels == number, number, side, series.geometry)
    return np.isin(labels, lesions["malignant"])


def _check_side(seg, mask, number, side, geometry):
    """ValueError where a segment is empty or lies in the other breast than the sheet says."""
    if not mask.any():
        raise ValueError(f"{seg.name}: segment {number}, a malignant lesion, is empty")
    middle = (np.array(mask.shape) - 1) / 2
    left_mm = geometry.position_mm(np.argwhere(mask).mean(0))[0] - geometry.position_mm(middle)[0]
    if side in ("L", "R") and abs(left_mm) > _MIDLINE_MM and (left_mm > 0) != (side == "L"):
        where = f"{abs(left_mm):.0f} mm to the {'left' if left_mm > 0 else 'right'} of the middle"
        raise ValueError(f"{seg.name}: segment {number} lies {where}, the sheet says {side}")


def contradictions(
    row: Mapping,
    mask: np.ndarray,
    spacing_mm: tuple[float, ...] | None = None,
    phases: int | None = None,
    whole: tuple[int, ...] = (),
) -> list[str]:
    """What a patient's row of BreastDCEDL's table says otherwise than its images do, with both numbers.

    mask: the cropped one, bool `(Z, Y, X)`.  spacing_mm: of the series, None where the files do not say.
    phases: how many the series has.  whole: (z, y, x) of the uncropped images, which the repository's table has in
    n_z and n_xy.  What the table leaves open is not compared.
    """
    z = np.flatnonzero(mask.any((1, 2)))
    extent, voxels = int(z[-1] - z[0] + 1), int(mask.sum())
    found = {"mask_count": (voxels, _SAME), "n_times": (phases, 0)}
    if spacing_mm is not None:
        found |= {"slice_thick": (spacing_mm[0], _OVERLAP), "xy_spacing": (spacing_mm[2], _ALIKE)}
        found["tum_vol"] = (voxels * float(np.prod(spacing_mm)), _OVERLAP)
    wrong = {
        name: (value, row[name])
        for name, (value, tolerance) in found.items()
        if None not in (value, row.get(name)) and abs(value - row[name]) > tolerance * row[name]
    }
    if row.get("n_xy") not in (None, *mask.shape[1:], *whole[1:]):
        wrong["n_xy"] = (mask.shape[2], row["n_xy"])
    if row.get("n_z") not in (None, z.size, extent, len(mask), *whole[:1]):  # the table counts slices with tumour
        wrong["n_z"] = (extent, row["n_z"])
    return [f"{name} {value:g}, the table says {told:g}" for name, (value, told) in wrong.items()]


def _agree(row, mask, **found):
    if wrong := contradictions(row, mask, **found):
        raise Unusable(f"images contradict the table: {'; '.join(wrong)}")


def crop_patient(
    row: Mapping, lesions: Mapping | None, dce: list[Path], seg: Path, folder: Path, recipe: Recipe
) -> tuple[list[Path], dict]:
    """Write a patient's three cropped phases and mask in BreastDCEDL's layout below folder/<dataset>.

    row: of the patient's table.  lesions: of AMBL's sheet: count, malignant (numbers of the segments), sides.
    dce: folders of the series.  seg: a SEG, or an expert's NIfTI, of which the table knows nothing.  Returns the
    paths, and what the images say of the patient in the table's columns.
    Early and late may be one phase, and are then one file.  Raises `Unusable`.
    """
    with because("images unusable"):
        series = read_dce(*dce)
    with because("mask unusable"):
        mask = _tumour(row, lesions, seg, series)
    with because("phases unclear"):
        chosen = _phases_of(row, series.times_s, recipe)
        chosen.check(len(series.array))
    with because("mask unusable"):
        phases, cropped, _ = min_crop(series.array[list(chosen)], mask, recipe.margin_slices, recipe.crop_px)
    spacing_mm = series.geometry.spacing_mm
    known = {k: v for k, v in row.items() if not (is_nifti(seg) and k in ("mask_count", "tum_vol", "n_z"))}
    _agree(known, cropped, spacing_mm=spacing_mm, phases=len(series.array), whole=mask.shape)
    home = folder / row["dataset"]
    for stale in home.glob(f"dce/{row['pid']}_*"):  # of an earlier recipe, perhaps with other phases
        stale.unlink()
    small = DceSeries(phases, series.geometry, (float("nan"),) * 3)
    with because("images unusable"):
        write_breastdcedl(small, cropped, home, patient_id=row["pid"], cohort=row["dataset"], phases=chosen)
    paths = [*phase_files(home, row["pid"]).values(), mask_file(home, row["pid"])]
    found = dict(zip(PHASE_COLUMNS, chosen, strict=True)) | {"n_times": len(series.array), "layout": "breastdcedl"}
    found |= {"slice_thick": spacing_mm[0], "xy_spacing": spacing_mm[2], "mask_voxels": int(mask.sum())}
    return paths, found


def check_release(row: Mapping, folder: Path) -> tuple[list[Path], dict]:
    """A patient of an unpacked MinCrop release below folder/<dataset>: its files are read and compared with the
    table.  Returns as `crop_patient`; raises `Unusable`."""
    home, patient = folder / row["dataset"], row["pid"]
    with because("not in the release"):
        files, mask_path = phase_files(home, patient), mask_file(home, patient)
    known = {name: np.nan if value is None else value for name, value in row.items()}
    with because("images unusable"):
        _, mask = read_breastdcedl(home, patient, known, phases=Phases.named(row))
    _agree(row, mask)
    found = {"layout": "breastdcedl", "mask_voxels": int(mask.sum())}
    return [*files.values(), mask_path], found | dict(zip(PHASE_COLUMNS, files, strict=False))
