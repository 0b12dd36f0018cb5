"""BreastDCEDL's NIfTI layout in and out: one file per phase and one mask per patient, voxels only.

The files were saved with an identity affine from arrays in `(z, row, column)` order, so their headers say
nothing true about space (Sci Data 13, 264, 2026): spacing comes from the metadata table, and position and
orientation are lost.  File names carry the acquisition index k: `<pid>_spy2_vis1_dce_aqc_<k>.nii.gz` ("aqc" is
their spelling) or, in the full I-SPY1 release, `<pid>_spy1_vis1_acq<k>.nii.gz`.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from her2core.formats.volume import PHASE_COLUMNS, DceSeries, Geometry
from her2core.records import whole

_HEADER_BYTES = 352  # of a NIfTI-1 file


def _stored_bytes(path):
    """Length of the file once decompressed; as much as can be decompressed where it is damaged."""
    length = 0
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        with suppress(EOFError, OSError, zlib.error):
            while chunk := file.read(1 << 16):
                length += len(chunk)
    return length


def _announced_bytes(path):
    """The length before compression, with which gzip ends, modulo 2³²."""
    return int(np.fromfile(path, "<u4", offset=max(path.stat().st_size - 4, 0))[0])


def _refuse_truncated(path, image):
    """SimpleITK fills up a file that was cut off, and says nothing: its length is checked here."""
    bits, offset = (float(image.GetMetaData(key)) for key in ("bitpix", "vox_offset"))
    expected = int(offset + image.GetNumberOfPixels() * bits / 8)
    if path.suffix == ".gz" and _announced_bytes(path) == expected % 2**32:
        return
    found = _stored_bytes(path)
    if found < expected:
        raise ValueError(f"{path}: truncated, {found} bytes once decompressed, expected {expected}")


def _read_voxels(path):
    """File in `(z, row, column)` order → array `(Z, Y, X)`; integers keep their type, floats become float32."""
    path = Path(path)
    try:
        image = sitk.ReadImage(str(path), imageIO="NiftiImageIO")
    except RuntimeError as error:
        raise ValueError(f"{path}: not a readable NIfTI file ({str(error).splitlines()[-1]})") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        found = f"size {image.GetSize()}, {image.GetNumberOfComponentsPerPixel()} component(s)"
        raise ValueError(f"{path}: {found}, expected one three-dimensional volume")
    _refuse_truncated(path, image)
    array = np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0))  # SimpleITK reverses the order
    return array if array.dtype.kind in "iu" else array.astype(np.float32)


def phase_files(folder: Path, patient_id: str) -> dict[int, Path]:
    """Acquisition index k → file of that phase, k ascending as a number (2 before 10)."""
    name = re.compile(rf"{re.escape(patient_id)}_\w+?_vis1_(?:dce_aqc_|dce_acq_?|aqc_?|acq_?)(\d+)\.nii(?:\.gz)?")
    found = {}
    for path in sorted(Path(folder).glob("*dce/*")):
        match = name.fullmatch(path.name)
        if match and (first := found.setdefault(int(match[1]), path)) != path:
            raise ValueError(f"{patient_id}: two files of phase {match[1]}: {first} and {path}")
    if not found:
        raise ValueError(
            f"{patient_id}: no phase files under {folder}/dce, expected {patient_id}_*_vis1_dce_aqc_<k>.nii.gz"
        )
    return dict(sorted(found.items()))


def mask_file(folder: Path, patient_id: str) -> Path:
    """The one mask of a patient below `folder`."""
    paths = [p for ext in (".nii", ".nii.gz") for p in Path(folder).glob(f"*mask/{patient_id}_*_vis1_mask{ext}")]
    if len(paths) != 1:
        raise ValueError(
            f"{patient_id}: {len(paths)} mask files under {folder}/mask, expected one "
            f"{patient_id}_*_vis1_mask.nii.gz"
        )
    return paths[0]


def _wanted_phases(files, patient_id, row, phases):
    """The acquisition indices to read, all of which must have a file."""
    named = [row[c] for c in PHASE_COLUMNS if c in row and not np.isnan(float(row[c]))]
    required = sorted({int(k) for k in (named if phases is None else phases)})
    if missing := [k for k in required if k not in files]:
        raise ValueError(
            f"{patient_id}: missing phase file {missing}, found phases {list(files)}, expected {required}"
        )
    return list(files) if phases is None else required


def _geometry(patient_id, row):
    """Spacing from the table, the only place that has it."""
    spacing = (float(row["slice_thick"]), float(row["xy_spacing"]), float(row["xy_spacing"]))
    if not all(s > 0 and np.isfinite(s) for s in spacing):
        raise ValueError(
            f"{patient_id}: slice_thick {row['slice_thick']}, xy_spacing {row['xy_spacing']}, expected positive mm"
        )
    return Geometry(spacing)


def read_mask(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Mask file → bool `(Z, Y, X)`; it must hold 0 and 1 only, some 1, and have the series' shape if given."""
    array = _read_voxels(path)
    if shape is not None and array.shape != tuple(shape):
        raise ValueError(f"{path}: mask of shape {array.shape}, expected that of the series, {tuple(shape)}")
    mask = array == 1
    if not np.array_equal(mask, array != 0):
        raise ValueError(f"{path}: mask holds the values {np.unique(array)[:8].tolist()}, expected 0 and 1")
    if not mask.any():
        raise ValueError(f"{path}: empty mask, expected at least one tumour voxel")
    return mask


def read_breastdcedl(
    folder: Path, patient_id: str, row: Mapping, *, phases: Iterable[int] | None = None
) -> tuple[DceSeries, np.ndarray]:
    """One patient of BreastDCEDL → `(DceSeries, mask)`, the mask bool `(Z, Y, X)`.

    folder: holds `dce/` and `mask/`.  row: the patient's line of the metadata table (any mapping), of which
    `slice_thick` and `xy_spacing` in mm are needed; the phases it names as pre, post_early and post_late must
    be there.  phases: acquisition indices to read, by default all that are found; ascending either way (MinCrop
    keeps three, for example 0, 2, 6, so they are pre, early, late).  Times are unknown: NaN.
    """
    geometry = _geometry(patient_id, row)
    files = phase_files(folder, patient_id)
    paths = [files[k] for k in _wanted_phases(files, patient_id, row, phases)]
    volumes = [_read_voxels(path) for path in paths]
    for path, volume in zip(paths, volumes, strict=True):
        if volume.shape != volumes[0].shape:
            raise ValueError(f"{path}: shape {volume.shape}, expected {volumes[0].shape} as {paths[0].name}")
    array = np.stack(volumes)  # (T, Z, Y, X)
    mask = read_mask(mask_file(folder, patient_id), array.shape[1:])
    return DceSeries(array, geometry, (float("nan"),) * len(array)), mask


def min_crop(
    phases: np.ndarray, mask: np.ndarray, margin_slices: int = 2, size_px: int = 256
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """As the MinCrop release: `margin_slices` beyond the tumour, `size_px` square around it, nothing resampled.

    phases `(P, Z, Y, X)`, mask `(Z, Y, X)` → both cropped, and the (z, y, x) of their first voxel in the original.
    The square is centred on the tumour's box and shifted inside the image; an image smaller than it stays whole.
    """
    if not mask.any():
        raise ValueError("empty mask, expected at least one tumour voxel")
    (tumour,) = ndimage.find_objects(mask.astype(np.uint8))
    box = [slice(max(tumour[0].start - margin_slices, 0), tumour[0].stop + margin_slices)]
    for inside, length in zip(tumour[1:], mask.shape[1:], strict=True):
        low = int(np.clip((inside.start + inside.stop - size_px) // 2, 0, max(length - size_px, 0)))
        box.append(slice(low, low + size_px))
    return phases[:, *box], mask[*box], tuple(s.start for s in box)


def _write_voxels(array, path):
    """Array `(Z, Y, X)` → file in `(z, row, column)` order with an identity affine; complete or absent."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))  # RAS, as NIfTI has it, turned into LPS
    with whole(path) as part:
        sitk.WriteImage(image, str(part), useCompression=True, compressionLevel=1)
        if _announced_bytes(part) != (_HEADER_BYTES + array.nbytes) % 2**32:  # SimpleITK is silent on a full disk
            raise OSError(f"{path}: could not be written whole; is the disk full?")


def write_breastdcedl(
    series: DceSeries,
    mask: np.ndarray,
    folder: Path,
    *,
    patient_id: str,
    cohort: str = "spy2",
    phases: Iterable[int] | None = None,
) -> None:
    """Write one patient in BreastDCEDL's layout; spacing, position and times are lost, as in the original.

    mask: bool `(Z, Y, X)`, stored as int32 like the originals.  phases: acquisition index of each phase,
    0, 1, 2 … by default.
    """
    _, row_mm, column_mm = series.geometry.spacing_mm
    if not np.isclose(row_mm, column_mm):
        raise ValueError(f"{patient_id}: pixels of {row_mm} × {column_mm} mm, expected squares (one xy_spacing)")
    if mask.shape != series.array.shape[1:]:
        raise ValueError(f"{patient_id}: mask of shape {mask.shape}, expected {series.array.shape[1:]}")
    count = len(series.array)
    phases = tuple(range(count) if phases is None else phases)
    if len(phases) != count:
        raise ValueError(f"{patient_id}: {count} phases with the indices {phases}, expected one for each")
    for k, volume in zip(phases, series.array, strict=True):
        _write_voxels(volume, Path(folder) / "dce" / f"{patient_id}_{cohort}_vis1_dce_aqc_{k}.nii.gz")
    _write_voxels(mask.astype(np.int32), Path(folder) / "mask" / f"{patient_id}_{cohort}_vis1_mask.nii.gz")
