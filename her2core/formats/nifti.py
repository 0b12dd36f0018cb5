"""NIfTI in and out: one file per phase and one mask per patient, in BreastDCEDL's folders and under its names.

BreastDCEDL's files were saved with an identity affine and no unit from arrays in `(z, row, column)` order, so
their headers say nothing true about space (Sci Data 13, 264, 2026).  Just that is their signature: spacing comes
from the metadata table, and position and orientation are lost.  Any other header counts, see `_read_volume`.
File names carry the acquisition index k: `<pid>_spy2_vis1_dce_aqc_<k>.nii.gz` ("aqc" is their spelling) or, in
the full I-SPY1 release, `<pid>_spy1_vis1_acq<k>.nii.gz`.
"""

import gzip
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

from her2core.formats.boundary import reading
from her2core.formats.volume import PHASE_COLUMNS, DceSeries, Geometry, refuse_odd_mask, window
from her2core.records import whole

_HEADER_BYTES, _MOST_BYTES, _DEFLATE = 348, 1 << 31, 1032  # of NIfTI-1; of one volume; gzip expands no further
_MOST_PHASES = 100  # in one file
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: unknown, taken as mm; metre; mm; micrometre
# where axes run, by where slices follow each other
_ORDERS = dict.fromkeys("SI", "SPL") | dict.fromkeys("RL", "RIP") | dict.fromkeys("AP", "PIL")
_SLOPES = (1e-12, 1e12)  # of stored values; 0 to 1 in four bytes has 2e-10
_COARSER = 1.1  # times the next spacing: then slices follow each other along this axis
_ROUNDED = 0.02  # of a length that somebody wrote down
_LEAST_KEPT = 0.9  # of a lesion, by a crop; less means parts far apart


def _header(block, most):
    """The first bytes of a file of at most that many volumes → its header, which must not contradict itself."""
    if (magic := block[344:347]) != b"n+1":
        known = {b"ni1": "half of a pair of .hdr and .img", b"n+2": "NIfTI-2", b"ni2": "NIfTI-2"}
        raise ValueError(known.get(magic) or known.get(block[4:7], "not a readable NIfTI file"))
    header = nib.Nifti1Header(block, check=False)
    dtype, (n, *size) = header.get_data_dtype(), header["dim"].tolist()
    right = {
        "sizeof_hdr": header["sizeof_hdr"] == _HEADER_BYTES,
        "dim": 3 <= n <= 7 and min(size[:n]) > 0 and math.prod(size[3:n]) <= most and set(size[4:n]) <= {1},
        "datatype": dtype.kind in "iuf" and dtype.itemsize <= 8,
        "bitpix": header["bitpix"] == 8 * dtype.itemsize,
        "vox_offset": header["vox_offset"] >= _HEADER_BYTES + 4 and float(header["vox_offset"]).is_integer(),
        "scl_slope": header["scl_slope"] == 0 or _SLOPES[0] <= header["scl_slope"] <= _SLOPES[1],  # 0: none
        "scl_inter": np.isfinite(header["scl_inter"]),
        "xyzt_units": int(header["xyzt_units"]) & 7 in _UNIT_MM,
    }
    if wrong := [f"{key} {header[key].tolist()}" for key, is_right in right.items() if not is_right]:
        raise ValueError(f"a header with {', '.join(wrong)}")
    return header


def _stored(path, most, pixels):
    """A file → its header, and its voxels `(i, j, k, t)`: all of them, and nothing beside; zeros without pixels."""
    is_gzip, length = path.suffix == ".gz", path.stat().st_size
    with (gzip.open if is_gzip else open)(path, "rb") as file:
        header = _header(file.read(_HEADER_BYTES), most)
        n, *size = header["dim"].tolist()
        size, dtype = [*size[:3], math.prod(size[3:n])], header.get_data_dtype()
        end = int(header["vox_offset"]) + math.prod(size) * dtype.itemsize
        if end > min(_MOST_BYTES * size[3], length * (_DEFLATE if is_gzip else 1)):
            raise ValueError(f"truncated, or too large: {length} bytes, of {end} announced")
        if not pixels:
            return header, np.broadcast_to(np.zeros((), dtype), size)
        array = header.data_from_fileobj(file)
        if file.read(1):  # and the checksum with which gzip ends
            raise ValueError(f"longer than the {end} bytes that its header announces")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("voxels that are not finite numbers")
    native = dtype.newbyteorder("=") if array.dtype.kind in "iu" else np.float32  # float64 where it was rescaled
    return header, array.astype(native, copy=False).reshape(size)


def _geometry_of(affine):
    """Affine into RAS → geometry of the same axes, in LPS; more decimals are rounding errors."""
    spacing, columns = voxel_sizes(affine), np.diag([-1, -1, 1]) @ affine[:3]
    direction = map(tuple, (columns[:, :3] / spacing).round(6).tolist())
    return Geometry(tuple(spacing.round(6).tolist()), tuple(columns[:, 3].round(6).tolist()), tuple(direction))


def _alike(one, other):
    """Whether two geometries are one, but for rounding; never where a number is not finite."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs)


def _affine(header):
    """Indices (i, j, k) → RAS mm, by sform or else by qform; None for BreastDCEDL's signature."""
    unit = int(header["xyzt_units"]) & 7
    to_mm, pixdim = np.diag([*[_UNIT_MM[unit]] * 3, 1.0]), header["pixdim"][1:4] * _UNIT_MM[unit]
    given = header.get_sform(coded=True), header.get_qform(coded=True)
    given = [to_mm @ affine for affine, code in given if code > 0]
    if not given:
        raise ValueError("neither sform nor qform, so that nothing says where the voxels lie")
    first, last = _geometry_of(given[0]), _geometry_of(given[-1])
    if not _alike(first, last):
        raise ValueError(f"sform {first} and qform {last}")
    if not np.allclose(first.spacing_mm, pixdim, rtol=1e-3, atol=0):
        raise ValueError(f"pixdim {pixdim.tolist()} mm and an affine with the spacing {first.spacing_mm} mm")
    return None if unit == 0 and np.array_equal(given[0], np.eye(4)) else given[0]


def _orders(affine):
    """Orientation of the axes as they are, and as they shall be.

    Slices follow each other along the axis with clearly the largest spacing, else along that nearest to head-feet.
    Axial ones then run to S, P and L, sagittal ones to R, I and P, coronal ones to P, I and L.
    """
    spacing = voxel_sizes(affine)
    *_, next_mm, largest_mm = sorted(spacing)
    letter = nib.aff2axcodes(affine)[np.argmax(spacing)] if largest_mm > _COARSER * next_mm else "S"
    return io_orientation(affine), axcodes2ornt(_ORDERS[letter])


def _upright(array, affine):
    """`(i, j, k, …)` → `(Z, Y, X, …)`: axes are exchanged and reversed, never resampled, until they run as is usual
    in DICOM."""
    turn = ornt_transform(*_orders(affine))
    return apply_orientation(array, turn), _geometry_of(affine @ inv_ornt_aff(turn, array.shape))


def _affine_of(geometry):
    """Indices (z, y, x) → RAS mm: the inverse of `_geometry_of`."""
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    axes = np.asarray(geometry.direction) * geometry.spacing_mm
    return to_ras @ np.block([[axes, np.reshape(geometry.origin_mm, (3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])


def upright(array: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
    """A volume `(Z, Y, X)`, or several `(T, Z, Y, X)`, of any plane and order of axes → turned as `read_volumes`
    turns a file, and where its voxels lie then; the same array where that changes nothing."""
    affine = _affine_of(geometry)
    if np.array_equal(*_orders(affine)):
        return array, geometry
    last = np.moveaxis(array, range(-3, 0), range(3))
    turned, place = _upright(last, affine)
    return np.ascontiguousarray(np.moveaxis(turned, range(3), range(-3, 0))), place


def _contiguous(array):
    """`(Z, Y, X)` in memory in that order; zeros without pixels, which take no memory, stay as they are."""
    if not any(array.strides):
        return array
    turned = np.empty(array.shape, array.dtype)
    for k in range(array.shape[2]):  # much faster than all at once where files have them the other way round
        turned[..., k] = array[..., k]
    return turned


def read_volumes(
    path: Path, pixels: bool = True, most: int = _MOST_PHASES
) -> tuple[list[np.ndarray], Geometry | None]:
    """One file → its volumes `(Z, Y, X)`, and their geometry, None where the header has BreastDCEDL's signature.

    pixels: false reads the header alone, and the volumes are zeros.  ValueError for more volumes than `most`.
    """
    expected = "one three-dimensional volume" if most == 1 else f"at most {most} volumes"
    with reading(path, f"{expected} as NIfTI-1", "export each phase as one .nii.gz"), np.errstate(all="ignore"):
        header, array = _stored(Path(path), most, pixels)
        volumes, affine, place = np.moveaxis(array, 3, 0), _affine(header), None
        if affine is not None:
            volumes, (*_, place) = zip(*(_upright(volume, affine) for volume in volumes), strict=True)
        return [_contiguous(volume) for volume in volumes], place


def phase_files(folder: Path, patient_id: str) -> dict[int, Path]:
    """Acquisition index k → file of that phase, k ascending as a number (2 before 10)."""
    name = re.compile(rf"{re.escape(patient_id)}_\w+?_vis1_(?:dce_)?(?:aqc|acq)_?(\d+)\.(?:nii(?:\.gz)?|hdr)")
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
    names = (f"*mask/{patient_id}_*_vis1_mask{ext}" for ext in (".nii", ".nii.gz", ".hdr"))
    paths = [path for name in names for path in Path(folder).glob(name)]
    if len(paths) != 1:
        raise ValueError(
            f"{patient_id}: {len(paths)} mask files under {folder}/mask, expected one "
            f"{patient_id}_*_vis1_mask.nii.gz"
        )
    return paths[0]


def wanted_files(files: Mapping[int, Path], phases: Iterable[int] | None, name: str) -> dict[int, Path]:
    """The files of these phases, or all where they are None, in order; `ValueError` for one that is missing."""
    wanted = sorted(set(files if phases is None else phases))
    if missing := [k for k in wanted if k not in files]:
        found = f"missing phase file {missing}, found {list(files)}, expected {wanted}"
        raise ValueError(f"{name}: {found}; a phase is named by the number at the end of its file's name")
    return {k: files[k] for k in wanted}


def _geometry(patient_id, row, found):
    """The files' geometry, which the table must not contradict; spacing from the table where they have none."""
    told = [row.get(name) for name in ("slice_thick", "xy_spacing", "xy_spacing")]
    told = [np.nan if mm is None else float(mm) for mm in told]
    if found is None and not all(mm > 0 and np.isfinite(mm) for mm in told):
        said = f"slice_thick {told[0]}, xy_spacing {told[1]} in the table or case.json"
        raise ValueError(f"{patient_id}: {said}, expected positive mm, as these NIfTI files do not say")
    if found is None:
        return Geometry(tuple(told))
    if any(abs(mm - said) > _ROUNDED * mm for mm, said in zip(found.spacing_mm, told, strict=True)):
        said = f"{told} mm in the table or case.json"
        raise ValueError(f"{patient_id}: spacing {found.spacing_mm} mm in the files, {said}")
    return found


def _said(place):
    """What a header says of space; None of BreastDCEDL's signature."""
    if place is None:
        return {"spacing": "unknown (identity affine without unit)"}
    names = {"spacing_mm": "spacing", "origin_mm": "origin", "direction": "direction"}
    return {names[key]: np.round(value, 3).tolist() for key, value in vars(place).items()}


def _told_apart(found, expected):
    """What differs between two descriptions, of each in words."""
    keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
    return [", ".join(f"{key} {told[key]}" for key in keys if key in told) for told in (found, expected)]


@dataclass(frozen=True)
class ImageGrid:
    """Where a mask has to lie.  place: None where the images have BreastDCEDL's signature.  of: the images."""

    shape: tuple[int, ...]
    place: Geometry | None
    of: str

    def refuse_other(self, path: Path, shape: tuple[int, ...], place: Geometry | None) -> None:
        """ValueError for a file of another shape, or in another place."""
        same = _alike(place, self.place) if place and self.place else place == self.place
        if shape != self.shape or not same:
            found, expected = _told_apart(
                {"shape": shape, **_said(place)}, {"shape": self.shape, **_said(self.place)}
            )
            raise ValueError(f"{path}: {found}; expected {expected} as {self.of}")


def read_series(
    paths: Sequence[Path], name: str, told: Mapping, pixels: bool = True
) -> tuple[DceSeries, ImageGrid]:
    """The phases of a patient, in order, a file each or several in one, and where its mask has to lie.

    name: of the patient, for messages.  told: a line of a table, of which `slice_thick` and `xy_spacing` in mm are
    needed where the headers do not say.  All files must lie on one grid.  Times are unknown: NaN.
    """
    phases, grid = [], None
    for path in paths:
        volumes, place = read_volumes(path, pixels, 1 if len(paths) > 1 else _MOST_PHASES)
        grid = grid or ImageGrid(volumes[0].shape, place, path.name)
        grid.refuse_other(path, volumes[0].shape, place)
        phases += volumes
    array = np.stack(phases) if pixels else np.broadcast_to(phases[0], (len(phases), *grid.shape))
    return DceSeries(array, _geometry(name, told, grid.place), (math.nan,) * len(phases)), grid


def read_mask(path: Path, grid: ImageGrid | None = None) -> np.ndarray:
    """Mask file → bool `(Z, Y, X)` on the grid of the images; it must hold 0 and 1 only, and some 1."""
    (array,), place = read_volumes(path, most=1)
    if grid:
        grid.refuse_other(path, array.shape, place)
    mask = array == 1
    if not np.array_equal(mask, array != 0):
        raise ValueError(f"{path}: mask holds the values {np.unique(array)[:8].tolist()}, expected 0 and 1")
    refuse_odd_mask(mask, path)
    return mask


def read_mask_of(path: Path, shape: tuple[int, int, int], geometry: Geometry) -> np.ndarray:
    """A mask file → bool `(Z, Y, X)` on the grid of DICOM images, whose axes may run otherwise than the file's."""
    turned, place = upright(np.broadcast_to(np.zeros((), bool), shape), geometry)
    mask = read_mask(path, ImageGrid(turned.shape, place, "the images"))
    return apply_orientation(mask, ornt_transform(*reversed(_orders(_affine_of(geometry)))))


def read_breastdcedl(
    folder: Path, patient_id: str, row: Mapping, *, phases: Iterable[int] | None = None
) -> tuple[DceSeries, np.ndarray]:
    """One patient of BreastDCEDL, or exported in its layout → `(DceSeries, mask)`, the mask bool `(Z, Y, X)`.

    folder: holds `dce/` and `mask/`.  row: its line of the metadata table, as `told` of `read_series`; the
    phases it names as pre, post_early and post_late must be there.  phases: acquisition indices to read, by default
    all that are found; ascending either way.
    """
    files = phase_files(folder, patient_id)
    named = [int(row[c]) for c in PHASE_COLUMNS if c in row and not np.isnan(float(row[c]))]
    wanted = wanted_files(files, named if phases is None else phases, patient_id)
    paths = files if phases is None else wanted
    series, grid = read_series([*paths.values()], patient_id, row)
    return series, read_mask(mask_file(folder, patient_id), grid)


def min_crop(
    phases: np.ndarray, mask: np.ndarray, margin_slices: int = 2, size_px: int = 256
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """As the MinCrop release: `margin_slices` beyond the tumour, `size_px` square around it, nothing resampled.

    phases `(P, Z, Y, X)`, mask `(Z, Y, X)` → both cropped, and the (z, y, x) of their first voxel in the original.
    The square is a `window` around the middle of the tumour's box.  ValueError where it leaves out parts of the
    tumour, as of lesions in both breasts.
    """
    if not mask.any():
        raise ValueError("empty mask, expected at least one tumour voxel")
    (tumour,) = ndimage.find_objects(mask.astype(np.uint8))
    box = [slice(max(tumour[0].start - margin_slices, 0), tumour[0].stop + margin_slices)]
    for inside, length in zip(tumour[1:], mask.shape[1:], strict=True):
        box.append(window((inside.start + inside.stop - 1) / 2, size_px, length))
    kept, voxels = mask[*box].sum(), mask.sum()
    if kept < _LEAST_KEPT * voxels:
        found = f"{kept} of {voxels} tumour voxels lie in the {size_px} × {size_px} pixels around its middle"
        raise ValueError(f"tumour in parts far apart: {found}, expected all; outline one lesion")
    return phases[:, *box], mask[*box], tuple(s.start for s in box)


def _write_voxels(array, path):
    """Array `(Z, Y, X)` → file with BreastDCEDL's signature."""
    with whole(path) as part:
        nib.Nifti1Image(array, np.eye(4), dtype=array.dtype).to_filename(part)


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
