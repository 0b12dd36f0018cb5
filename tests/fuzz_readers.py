"""What tests/fuzz.py mutates: of every reader small valid folders, the call, and an independent reading.

A reader's value is dictionaries, lists, numbers and arrays.  `right` gives what it may be for the bytes in a
folder, found another way (SimpleITK's GDCM and NIfTI, pydicom's pixels, csv, json, PyYAML, openpyxl); it raises
where nothing may be read.  Readers that must notice any change have none: digests guard their bytes, or should.
"""

import csv
import gzip
import hashlib
import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dicom_samples as dicom
import numpy as np
import openpyxl
import pandas as pd
import pydicom
import SimpleITK as sitk
import test_labels as labels
import torch
import yaml
from prepared_samples import make_run, write_prepared
from pydicom.tag import Tag
from safetensors.torch import save_file

from her2core import records
from her2core.baselines import ModelConfig
from her2core.case import read_case
from her2core.cohort import CohortConfig
from her2core.cohorts.acquire import SOURCES
from her2core.cohorts.ambl import read_ambl_clinical
from her2core.cohorts.labels import TABLE_RULES, read_breastdcedl_table, read_idc_clinical
from her2core.cohorts.manifest import read_manifest, read_releases
from her2core.config import MERGED, Study, merge
from her2core.dataset import Prepared
from her2core.evaluate import EvaluateConfig
from her2core.formats import weights
from her2core.formats.dicom import read_dce
from her2core.formats.dicom_write import write_dce, write_seg
from her2core.formats.nifti import read_breastdcedl
from her2core.formats.seg import read_seg, read_seg_labels
from her2core.formats.volume import Geometry, to_sitk
from her2core.model import ThdaConfig
from her2core.preprocess import PrepareConfig
from her2core.train import TrainConfig, begin

TOP = Path(__file__).resolve().parents[1]
GRID, SHAPE = dicom.geometry(), (3, 3, 6, 8)  # (T, Z, Y, X)
LESIONS, CODES = dicom.lesions()[1:4], dicom.analysis_mask()[1:4]
ROW = {"slice_thick": 2.5, "xy_spacing": 0.8, "pre": 0, "post_early": 1, "post_late": 2}
_FIELDS = """sizeof_hdr i4, data_type S10, db_name S18, extents i4, session_error i2, regular u1, dim_info u1,
dim 8i2, intent_p 3f4, intent_code i2, datatype i2, bitpix i2, slice_start i2, pixdim 8f4, vox_offset f4,
scl_slope f4, scl_inter f4, slice_end i2, slice_code u1, xyzt_units u1, cal_max f4, cal_min f4, slice_duration f4,
toffset f4, glmax i4, glmin i4, descrip S80, aux_file S24, qform_code i2, sform_code i2, quatern 3f4, qoffset 3f4,
srow 12f4, intent_name S16, magic S4"""
NIFTI = np.dtype([tuple(field.split()) for field in _FIELDS.split(",")])  # the header


@dataclass(frozen=True)
class Reader:
    """samples: {name: {path: content}}, the files of a folder called P1 when it is read.  share: of all inputs."""

    samples: Callable[[], dict[str, dict[str, bytes]]]
    read: Callable[[Path], Any]
    right: Callable[[Path], list] | None
    share: int


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(write, *args, **kwargs):
    """The files that a writer leaves in a new folder, its first argument."""
    with TemporaryDirectory(dir="/dev/shm") as home:
        folder = Path(home) / "P1"
        folder.mkdir()
        write(folder, *args, **kwargs)
        return files_in(folder)


# ---------------------------------------------------------------------------------------------------- DICOM series


def write_series(folder, kind, number=0):
    """kind: the element that tells the phases; or how pixels are stored."""
    whole = dicom.series(shape=SHAPE, dtype=np.int16 if kind == "rescaled" else np.uint16)
    data, clock = replace(whole, array=np.roll(whole.array, number)), kind in ("TriggerTime", "AcquisitionTime")
    if number:
        return write_dce(data, folder / "dce", patient_id="P2", acquisition=dicom.ACQUISITION)
    dicom.write(folder / "dce", data, trigger=kind == "TriggerTime")
    if clock:
        dicom.edit(folder / "dce", dicom.put(TemporalPositionIdentifier=None))
    if kind == "rescaled":
        dicom.edit(folder / "dce", dicom.put(RescaleSlope="0.5", RescaleIntercept="-3"))
    if kind == "RLE":
        dicom.edit(folder / "dce", lambda ds: ds.compress(pydicom.uid.RLELossless, generate_instance_uid=False))


def series_samples():
    kinds = ("TemporalPositionIdentifier", "TriggerTime", "AcquisitionTime", "rescaled", "RLE")
    return {k: written(write_series, k) for k in kinds} | {"other": written(write_series, kinds[0], 7)}


def write_enhanced(folder, timing):
    (folder / "dce").mkdir()
    data, path = dicom.series(shape=SHAPE), folder / "dce" / "e.dcm"
    dicom.write_enhanced(path, data, list(np.ndindex(SHAPE[:2])), timing)
    ds = pydicom.dcmread(path)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    ds.PatientID, ds.Modality, ds.ImageType = "P1", "MR", ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    ds.save_as(path)


def enhanced_samples():
    timings = ("TemporalPositionIndex", "FrameAcquisitionDateTime", "NominalCardiacTriggerDelayTime")
    return {timing: written(write_enhanced, timing) for timing in timings}


def volume(series):
    g = series.geometry
    place = {"spacing": g.spacing_mm, "origin": g.origin_mm, "direction": np.array(g.direction)}
    return {"array": series.array, "times": list(series.times_s)} | place


def read_series(folder):
    return volume(read_dce(folder / "dce"))


def _seconds(text):
    digits = re.fullmatch(
        r"(?:\d{8})?([01]\d|2[0-3])([0-5]\d)([0-5]\d(?:\.\d*)?)(?:[+-]\d{4})?", (text or "").strip()
    )
    return float(digits[1]) * 3600 + float(digits[2]) * 60 + float(digits[3]) if digits else None


def _number(text):
    return float(text) if (text or "").strip() else None


def _slices_of_one(path):
    """GDCM's reading of a file of one slice: pixels, position, axes and pixel spacing (x, y), keys of the phase."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError:  # GDCM has no decoder for it, or is right
        plain = path.parents[1] / "plain"
        ds = pydicom.dcmread(path)
        ds.decompress(generate_instance_uid=False)
        ds.save_as(plain)
        reader.SetFileName(str(plain))
        image = reader.Execute()
        plain.unlink()
    tags = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    trigger = _number(tags.get("0018|1060"))
    keys = (
        _seconds(tags.get("0008|0032")),
        None if trigger is None else trigger / 1000,
        _number(tags["0020|0013"]),
    )
    axes = np.array(image.GetDirection()).reshape(3, 3).T[:2]
    pixels = sitk.GetArrayFromImage(image)
    if len(pixels) > 1:
        raise ValueError("several frames")
    yield pixels[0], image.GetOrigin(), axes, image.GetSpacing()[:2], (_number(tags.get("0020|0100")), *keys)


def _slices_of_many(ds):
    """pydicom's reading of an Enhanced MR, frame by frame."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    (dy, dx), axes = shared.PixelMeasuresSequence[0].PixelSpacing, shared.PlaneOrientationSequence[0]
    axes = np.array(axes.ImageOrientationPatient, float).reshape(2, 3)
    groups = ds.PerFrameFunctionalGroupsSequence
    for number, (pixels, group) in enumerate(zip(ds.pixel_array, groups, strict=True)):
        content, scale = group.FrameContentSequence[0], group.PixelValueTransformationSequence[0]
        heart = group.get("CardiacSynchronizationSequence")
        trigger = heart[0].NominalCardiacTriggerDelayTime / 1000 if heart else None
        clock = _seconds(content.get("FrameAcquisitionDateTime"))
        keys = content.get("TemporalPositionIndex"), clock, trigger, number
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        yield pixels * float(scale.RescaleSlope) + float(scale.RescaleIntercept), position, axes, (dx, dy), keys


def _apart(table):
    """Whether all of a column comes before all of the next."""
    return bool((table.max(0)[:-1] < table.min(0)[1:]).all())


def right_series(folder):
    """The volume as assembled from what GDCM reads of each file, pydicom of an Enhanced MR."""
    paths = [p for p in sorted((folder / "dce").iterdir()) if not p.name.startswith(".")]
    many = [pydicom.dcmread(p) for p in paths if p.name == "e.dcm"]
    slices = [s for p in paths for s in (_slices_of_many(many[0]) if many else _slices_of_one(p))]
    pixels, positions, axes, spacing, keys = (list(part) for part in zip(*slices, strict=True))
    if np.ptp(axes, axis=0).max() > 1e-3 or np.ptp(spacing, axis=0).max() > 1e-3:
        raise ValueError("several planes")
    heights = np.array(positions) @ np.cross(*axes[0])
    z = np.unique(heights.round(1), return_inverse=True)[1]  # 0.1 mm are granted
    levels = np.array([heights[z == k].min() for k in range(z.max() + 1)])
    count = len(slices) // len(levels)
    known = [np.array(k) for k in zip(*keys, strict=True) if None not in k and len(set(k)) >= count]
    orders = [np.lexsort((k, z)).reshape(len(levels), count) for k in known]  # [z, t]
    order = next(o for k, o in zip(known, orders, strict=True) if _apart(k[o]) or k is known[-1] and _apart(k[o].T))
    if not np.array_equal(z[order], np.repeat(np.arange(len(levels)), count).reshape(order.shape)):
        raise ValueError("gaps")
    clocks = [np.array(k)[order].min(0) for k in list(zip(*keys, strict=True))[1:3] if None not in k]
    clocks = [c - c[0] for c in clocks if (np.diff(c) > 0).all()] or [np.full(count, np.nan)]
    direction = np.column_stack([np.cross(*axes[0]), axes[0][1], axes[0][0]])
    place = {"spacing": [np.diff(levels).mean(), *spacing[0][::-1]], "direction": direction}
    place["origin"] = np.array(positions[order[0, 0]])
    found = {
        "array": np.array([[pixels[i] for i in phase] for phase in order.T]),
        "times": clocks[0].tolist(),
    } | place
    return [found] + [found | {"times": [math.nan] * count}] * any(map(_has_a_broken_time, paths))


def _has_a_broken_time(path):
    """Whether AcquisitionTime holds bytes that are no text, where GDCM cuts it off: it may count as unknown."""
    element = pydicom.dcmread(path, stop_before_pixels=True)._dict.get(Tag("AcquisitionTime"))
    value = getattr(element, "value", None)
    return isinstance(value, bytes) and b"\0" in value.rstrip(b"\0 ")


# ------------------------------------------------------------------------------------------------------------- SEG


def write_masks(folder, kind, patient="P1"):
    """roi: lesions as segments.  mask: the inverse analysis mask.  prob: a probability per voxel."""
    array, meaning = (LESIONS, "segments") if kind == "roi" else (CODES, "tumour_is_zero")
    if kind == "prob":
        array = np.where(LESIONS, 250, 40 * (np.roll(LESIONS, 1, axis=2) > 0)).astype(np.uint8)
    path = folder / f"{kind}.dcm"
    write_seg(array, GRID, path, meaning=meaning, **dicom.SEG | {"patient_id": patient})
    if kind == "prob":
        ds = pydicom.dcmread(path)
        ds.SegmentationFractionalType = "PROBABILITY"
        ds.save_as(path)


def _mask_in(folder):
    return next(
        (p for p in sorted(folder.iterdir()) if p.name in ("roi.dcm", "mask.dcm", "prob.dcm")), folder / "roi.dcm"
    )


def read_masks(folder):
    path = _mask_in(folder)
    meaning = "tumour_is_zero" if path.name == "mask.dcm" else "segments"
    found = {"mask": read_seg(path, GRID, SHAPE[1:], meaning=meaning)}
    return found | ({"labels": read_seg_labels(path, GRID, SHAPE[1:])} if path.name == "roi.dcm" else {})


def right_masks(folder):
    """Each pixel drawn where pydicom says that it lies."""
    path = _mask_in(folder)
    ds, drawn = pydicom.dcmread(path), np.zeros(SHAPE[1:], np.uint8)
    shared, level = ds.SharedFunctionalGroupsSequence[0], 1
    down_mm, across_mm = shared.PixelMeasuresSequence[0].PixelSpacing
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    if ds.get("SegmentationFractionalType") == "PROBABILITY" and path.name == "prob.dcm":
        level = int(ds.MaximumFractionalValue) / 2
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    for frame, group in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        rows, columns = np.nonzero(frame == 0 if path.name == "mask.dcm" else frame >= level)
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        places = corner + np.outer(rows * down_mm, axes[1]) + np.outer(columns * across_mm, axes[0])
        index = (places - GRID.origin_mm) @ np.array(GRID.direction) / GRID.spacing_mm
        z, y, x = index.round().astype(int).T
        if np.abs(index - index.round()).max(initial=0) > 0.1 or index.min(initial=0) < -0.5:
            raise ValueError("beside the grid")
        drawn[z, y, x] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return [{"mask": drawn > 0} | ({"labels": drawn} if path.name == "roi.dcm" else {})]


# ----------------------------------------------------------------------------------------------------------- NIfTI


def nifti(array, affine=None):
    """A file of an array `(z, row, column)`: BreastDCEDL's header or, with an affine, an ordinary one."""
    head, kept = np.zeros((), NIFTI), array if affine is None else array.transpose(2, 1, 0)
    head["sizeof_hdr"], head["magic"], head["vox_offset"], head["scl_slope"] = 348, b"n+1", 352, 1
    head["dim"], head["pixdim"] = [3, *kept.shape, 1, 1, 1, 1], 1
    head["datatype"] = {"uint16": 512, "int16": 4, "int32": 8, "float32": 16}[array.dtype.name]
    head["bitpix"], head["sform_code"], head["srow"] = 8 * array.itemsize, 2, np.eye(4)[:3].ravel()
    if affine is not None:
        head["xyzt_units"], head["srow"], head["sform_code"] = 10, affine[:3].ravel(), 1
        head["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    return head.tobytes() + b"\0" * 4 + kept.tobytes("F")


def nifti_folder(ext, dtype=np.uint16, affine=None, number=0):
    phases = np.roll(dicom.series(shape=SHAPE).array, number).astype(dtype)
    found = {f"dce/P1_spy2_vis1_dce_aqc_{k}{ext}": nifti(phase, affine) for k, phase in enumerate(phases)}
    found[f"mask/P1_spy2_vis1_mask{ext}"] = nifti((LESIONS > 0).astype(np.int32), affine)
    return {n: gzip.compress(c, mtime=0) for n, c in found.items()} if ext.endswith("gz") else found


def nifti_samples():
    affine = np.diag([-0.8, -0.8, 2.5, 1.0])
    affine[:3, 3] = 80, 60, -20
    plain = {ext: nifti_folder(ext) for ext in (".nii", ".nii.gz")}
    more = {"float": nifti_folder(".nii", np.float32), "other": nifti_folder(".nii", number=7)}
    return plain | more | {"with an affine": nifti_folder(".nii.gz", affine=affine)}


def _upright(image):
    """Array, spacing and origin along LPS, whichever way the file has it."""
    image = sitk.DICOMOrient(image, "LPS")
    place = {"spacing": image.GetSpacing()[::-1], "origin": image.GetOrigin(), "axes": image.GetDirection()}
    return {"array": sitk.GetArrayFromImage(image)} | place


def read_nifti(folder):
    series, mask = read_breastdcedl(folder, "P1", ROW)
    phases = [_upright(to_sitk(phase, series.geometry)) for phase in series.array]
    return {"phases": phases, "mask": _upright(to_sitk(mask, series.geometry))}


def _image(path):
    """SimpleITK's reading of a file that is whole; BreastDCEDL's gets its geometry from the table."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content  # all of it, with its checksum
    head = np.frombuffer(content[:348], NIFTI)[0]
    voxels = math.prod(head["dim"][1 : 1 + head["dim"][0]].tolist())
    if len(content) < head["vox_offset"] + voxels * head["bitpix"] / 8:
        raise ValueError("cut off")
    image = sitk.ReadImage(str(path), imageIO="NiftiImageIO")
    place = (*image.GetDirection(), *image.GetSpacing(), *image.GetOrigin())
    if head["xyzt_units"] & 7 or place != (-1, 0, 0, 0, -1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0):
        return image
    return to_sitk(sitk.GetArrayFromImage(image).transpose(2, 1, 0), Geometry((2.5, 0.8, 0.8)))


def right_nifti(folder):
    phases = [_image(folder / n) for n in sorted(files_in(folder)) if n.startswith("dce/P1_")]
    (mask,) = (_image(p) for p in (folder / "mask").glob("P1_*"))
    if any(p.GetSize() != phases[0].GetSize() or p.GetDirection() != phases[0].GetDirection() for p in phases):
        raise ValueError("several grids")
    mask = sitk.Resample(mask, phases[0], sitk.Transform(), sitk.sitkNearestNeighbor)
    values = sitk.GetArrayFromImage(mask)
    if set(np.unique(values).tolist()) != {0, 1}:
        raise ValueError("no mask")
    return [{"phases": [_upright(p) for p in phases], "mask": _upright(mask)}]


# ---------------------------------------------------------------------------------------------------------- tables


def _float(cell):
    if not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*|", cell):
        raise ValueError(f"no number: {cell!r}")
    return float(cell) if cell.strip() else math.nan


def rows_of(path):
    """csv's reading: a list of dicts; every row complete, every column once."""
    header, *rows = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))
    return [dict(zip(header, row, strict=True)) for row in rows]


def breastdcedl_samples():
    rows = labels.release_rows()[:3]
    duke = labels.release_rows()[3]
    spy2 = [{**row, "HER2pos": row.get("HER2") or 0} for row in rows[:2]]
    table = pd.DataFrame([labels.row(labels.REPOSITORY, mask_count=500, **row) for row in spy2])
    write = lambda folder: table.to_csv(folder / "BreastDCEDL_metadata.csv", index=False)  # noqa: E731
    return {"release": written(lambda f: labels.release(f, *rows, duke)), "repository": written(write)}


def read_breastdcedl_csv(folder):
    table = read_breastdcedl_table(folder / "BreastDCEDL_metadata.csv").set_index("pid")
    table["menopause"] = table["menopause"].map({"pre": 0, "post": 1})
    return {pid: {c: _plain(row.get(c)) for c in TABLE_RULES} for pid, row in table.iterrows()}


def _plain(value):
    return math.nan if value is None or pd.isna(value) else float(value)


def right_breastdcedl_csv(folder):
    found = {}
    for row in rows_of(folder / "BreastDCEDL_metadata.csv"):
        names = {c: c for c in TABLE_RULES} | {"HER2": "HER2" if "HER2" in row else "HER2pos"}
        if not row["pid"].startswith("Breast_MRI_") and row["pid"] not in found:
            found[row["pid"]] = {c: _float(row.get(name, "")) for c, name in names.items()}
    return [found]


def ambl_samples():
    def write(folder):
        path = labels.ambl_sheet(folder, *labels.ambl_rows())
        with zipfile.ZipFile(path) as book:
            members = [(name, book.read(name)) for name in sorted(book.namelist())]
        core = [(n, re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"2000-01-01T00:00:00Z", c)) for n, c in members]
        path.write_bytes(zipped(core))

    return {"sheet": written(write)}


def zipped(members):
    """A zip of (name, content), the same bytes each time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as book:
        for name, content in members:
            book.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def read_ambl_sheet(folder):
    table = read_ambl_clinical(folder, labels.CODES, labels.OUT)
    shown = table[["malignant", "HER2", "slice_coord", "laterality"]].astype(object)
    cells = [[None if pd.isna(v) else v for v in row] for row in shown.to_numpy().tolist()]
    names = [f"{p} {n}" for p, n in table[["patient", "lesion"]].itertuples(index=False)]
    return {name: row for name, row in zip(names, cells, strict=True) if any(v is not None for v in row)}


def right_ambl_sheet(folder):
    """openpyxl's cells."""
    book = openpyxl.load_workbook(folder / "AMBL-Clinical.xlsx", data_only=True)
    rows = [list(row) for row in book["MRI BREASTS with Delay"].iter_rows(values_only=True)]
    start = next(i for i, row in enumerate(rows) if "Patient ID" in row)
    codes, found = {str(k): v for k, v in labels.CODES.items()}, {}
    for row in rows[start + 1 :]:
        cells = {k: None if v in (-1, "-1", "", None) else v for k, v in zip(rows[start], row, strict=True)}
        for i in range(1, 7):
            place = "".join(str(cells[f"Pos{i}"] or "").split())
            her2 = str(cells.get(f"{'HER' if i == 3 else 'HER2'} [SII] {i}")).strip().lower()
            coord = float(place[1:]) if place[1:] else None
            malignant = cells[f"tumor/benign{i}"]
            lesion = [malignant if malignant is None else int(malignant), codes.get(her2), coord, place[:1] or None]
            if any(v is not None for v in lesion):
                found[f"{cells['Patient ID']} {i}"] = lesion
    return [found]


def idc_samples():
    texts = ["HR + / HER2 +", "HR + / HER2 -", "HR - / HER2 +", "NA", "HR neg/HER2 positive"]
    one = {"dicom_patient_id": [f"ACRIN-6698-10221{n}" for n in range(5)], "hrher4g": texts}
    two = {"patient_id": [102212, 550421, 550422], "hr": [1.0, None, 0.0], "her2": [0, 1, 1]}
    return {n: written(lambda f, c=c: labels.idc_table(f, c)) for n, c in {"hrher4g": one, "hr, her2": two}.items()}


def read_idc(folder):
    table = read_idc_clinical(folder / "clinical.csv")
    return {
        pid: [_plain(hr), _plain(her2)] for pid, hr, her2 in table[["pid", "HR", "HER2"]].itertuples(index=False)
    }


def right_idc(folder):
    signs = {"+": 1, "positive": 1, "pos": 1, "1": 1, "-": 0, "neg": 0, "negative": 0, "0": 0}
    signs |= dict.fromkeys(("", "2", "?", "na", "n/a", "nan", "unknown", "indeterminate"), math.nan)
    found = {}
    for row in rows_of(folder / "clinical.csv"):
        row = {k.strip().lower(): v.strip().lower() for k, v in row.items()}
        if "hrher4g" in row:
            both = re.fullmatch(r"hr\s*(\S*?)\s*[/,]?\s*her2\s*(\S*?)\s*(?:\(tn\))?", row["hrher4g"])
            status = [signs[both[1]], signs[both[2]]] if both else [signs[row["hrher4g"]]] * 2
        else:
            status = [signs[re.sub(r"\.0$", "", row[c])] for c in ("hr", "her2")]
        pid = row.get("dicom_patient_id", row.get("patient_id")).upper()
        found[re.sub(r"^(\d{4})$", r"ISPY1_\1", re.sub(r"^(\d{6})$", r"ISPY2-\1", pid))] = status
    return [found]


def manifest_samples():
    lines = (TOP / "manifests/ispy1.csv").read_text().splitlines()[:7]
    releases = (TOP / "manifests/releases.csv").read_bytes()
    return {"manifest": {"ispy1.csv": "\n".join([*lines, ""]).encode(), "releases.csv": releases}}


def read_manifests(folder):
    rows = read_manifest(folder / "ispy1.csv").astype(object).to_dict("records")
    return {"rows": rows, "releases": {k: list(v) for k, v in read_releases(folder / "releases.csv").items()}}


def right_manifests(folder):
    rows, numbers = rows_of(folder / "ispy1.csv"), ("instances", "size_MB", "idc_version")
    rows = [{k: float(v) if k in numbers else v for k, v in row.items()} for row in rows]
    releases = [(r["dataset"], [r["file"], r["md5"]]) for r in rows_of(folder / "releases.csv")]
    if len(dict(releases)) < len(releases) or not all(re.fullmatch("[0-9a-f]{32}", r[1][1]) for r in releases):
        raise ValueError("no digest, or two")
    return [{"rows": rows, "releases": dict(releases)}]


# ------------------------------------------------------------------------------------------- JSON, YAML and records


def strict_json(text):
    """json's reading without its liberties: a key twice, NaN."""

    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def case_samples():
    side = {"pre": 0, "post_early": 1, "post_late": 2}
    names = {"early_s": 90.5, "late_s": 181.5}
    roi = {"seg.dcm": written(write_masks, "roi")["roi.dcm"]}
    dce, other = series_samples()["TemporalPositionIdentifier"], series_samples()["other"]
    sidecar = {"case.json": json.dumps(side | names, indent=1).encode()}
    spacing = {"case.json": json.dumps(ROW | names, indent=1).encode()}
    both = {"DICOM": dce | roi | sidecar, "NIfTI": nifti_folder(".nii") | spacing}
    return both | {"other": other | {"seg.dcm": written(write_masks, "roi", "P2")["roi.dcm"]} | sidecar}


@cache
def _prepare():
    return PrepareConfig(
        **yaml.safe_load((TOP / "params.yaml").read_text())["prepare"] | {"audit": None, "n4": None}
    )


def read_one_case(folder):
    case = read_case(folder, _prepare())
    for remark in case.remarks:
        warnings.warn(f"{folder}: {remark}", stacklevel=1)
    found = {"phases": case.phases, "mask": case.mask, "spacing": case.geometry.spacing_mm}
    return found | {"times": case.times_s}


def right_case(folder):
    """What case.json says of the volumes that were not mutated."""
    told, is_dicom = folder / "case.json", (folder / "seg.dcm").is_file()
    side = strict_json(told.read_bytes()) if told.is_file() else {}
    chosen = [side.pop(k, None) for k in ("pre", "post_early", "post_late")]
    times = [side.pop(k, None) for k in ("early_s", "late_s")]
    spacing = [side.pop(k, None) for k in ("slice_thick", "xy_spacing")]
    typed = [isinstance(v, int | float) and not isinstance(v, bool) for v in [*times, *spacing] if v is not None]
    if side or not all(typed):
        raise ValueError("unknown keys or types")
    series = dicom.series(shape=SHAPE)
    chosen = [0, 1, 2] if chosen == [None] * 3 and is_dicom else [int(k) for k in chosen]
    known = [series.times_s[k] - series.times_s[chosen[0]] if is_dicom else math.nan for k in chosen]
    times = [0.0, *(k if t is None else float(t) for t, k in zip(times, known[1:], strict=True))]
    spacing = GRID.spacing_mm if is_dicom else [spacing[0], spacing[1], spacing[1]]
    found = {"phases": series.array[chosen], "mask": LESIONS > 0, "spacing": [float(s) for s in spacing]}
    return [found | {"times": times}]


CLASSES = {"cohort": CohortConfig, "prepare": PrepareConfig, "models": ModelConfig}
CLASSES |= {"train": TrainConfig, "evaluate": EvaluateConfig}


def params_samples():
    text = re.sub(r"(?m)\s*#.*$", "", (TOP / "params.yaml").read_text())
    acquire = text[text.index("acquire:") : text.index("prepare:")]
    own = f"name: P1\nruns:\n  - thda-n4\n  - vit\n{acquire}prepare:\n  slices: 3\nmodels: {{}}\n"
    own += "train:\n  lr: 0.002\n  of: { vit: { lr: 0.003 } }\nevaluate: {}\n"
    return {"study": {"params.yaml": text.encode(), "studies/P1/params.yaml": own.encode()}}


def _as_json(value):
    return json.loads(json.dumps(value))  # tuples become lists


def read_params(folder):
    with chdir(folder):
        study = Study.open("P1")
    found = {name: asdict(study.params(name, into)) for name, into in (CLASSES | {"acquire": SOURCES}).items()}
    return _as_json(found | {"runs": list(study.runs), "name": study.name})


class _Yaml12(yaml.CSafeLoader):
    """PyYAML without what YAML 1.1 had: 1e-5 is a text there, and yes is true."""

    yaml_implicit_resolvers = {
        letter: [(tag, form) for tag, form in forms if letter in "tTfF" or not tag.endswith(":bool")]
        for letter, forms in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


_Yaml12.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def right_params(folder):
    top, own = (yaml.load((folder / n).read_bytes(), _Yaml12) for n in ("params.yaml", "studies/P1/params.yaml"))
    return [_as_json({k: merge(top[k], v) if k in MERGED else v for k, v in own.items()})]


def write_records(folder):
    for n, patient in enumerate(("P1", "P2")):
        paths = [folder / f"{patient}/dce/{k}.dcm" for k in range(2)]
        for k, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"DICM%d%d" % (n, k) * 20)
        row = {"pid": patient, "dataset": "spy2", "HER2": 1 - n, "n_times": 3}
        records.write_record(folder, patient, paths, series_uid=f"1.2.{n}", metadata=row)


def read_records(folder):
    records.check_complete("P1", folder)
    return records.read_record(folder, "P1")


def right_records(folder):
    record = strict_json((folder / "records/P1.json").read_bytes())
    contents = sorted(hashlib.sha256((folder / name).read_bytes()).digest() for name in record["files"])
    if record["patient"] != "P1" or record["sha256"] != hashlib.sha256(b"".join(contents)).hexdigest():
        raise ValueError("another's")
    return [record]


# ------------------------------------------------------------------------- guarded by digests: base or refused


SEEDS = TrainConfig(seeds=(0, 1), epochs=2, device="cpu", jobs=1)


def tiny_run(folder):
    """A run with its weights in the folder; images of the stage `prepare`, which tell it their size, beside it."""
    prepared = folder.parent / "prepare"
    if not prepared.is_dir():
        prepared.mkdir()
        write_prepare(prepared)
    models = ModelConfig(ThdaConfig(width=8, blocks=(1, 1, 1, 1)))
    return make_run(prepared, folder / "weights", models=models, training=SEEDS)


def write_weights(folder):
    run = tiny_run(folder)
    run.freeze({member: run.fresh(member[0]).state_dict() for member in run.members})


def read_weights(folder):
    """As every notebook uses them."""
    return [dict(network.state_dict()) for network in tiny_run(folder).networks()]


PRETRAINED = {"w": torch.arange(12.0).reshape(3, 4)}


def write_pretrained(folder):
    save_file(PRETRAINED, folder / weights.FILES["cvt_13"])
    torch.save(PRETRAINED, folder / weights.FILES["resnet34"])


def pretrained_samples():
    files = written(write_pretrained)
    digests = {n: hashlib.sha256(files[weights.FILES[n]]).hexdigest() for n in ("cvt_13", "resnet34")}
    return {"published": files | {"digests.json": json.dumps(digests).encode()}}


@cache
def _digests():
    return json.loads(pretrained_samples()["published"]["digests.json"])


def read_pretrained(folder):
    return [weights.load(name, weights.Weights(folder=str(folder), **_digests())) for name in _digests()]


def untrained():
    return begin(lambda: torch.nn.Linear(4, 2), torch.device("cpu"), SEEDS, 0)


def write_checkpoint(folder):
    training = untrained()
    training.network(torch.ones(3, 4)).sum().backward()
    training.optimizer.step()
    training.epoch, training.best = 2, {k: 2 * v for k, v in training.model.state_dict().items()}
    training.history = [{"seed": 0, "epoch": 2, "loss": 0.5, "validation_auc": 0.75}]
    training.save(folder / "seed0.safetensors", "key")


def read_checkpoint(folder):
    training = untrained()
    training.resume(folder / "seed0.safetensors", "key")
    moments = {str(k): v for k, v in training.optimizer.state_dict()["state"].items()}
    found = {"model": dict(training.model.state_dict()), "best": training.best, "moments": moments}
    random = {name: get() for name, (get, _) in training.random_states().items()}
    return found | {"epoch": training.epoch, "history": training.history, "random": random}


@cache
def _checkpoint():
    with TemporaryDirectory(dir="/dev/shm") as folder:
        write_checkpoint(Path(folder))
        return read_checkpoint(Path(folder))


def right_checkpoint(folder):
    return [_checkpoint(), read_checkpoint(folder / "absent")]  # as it was, or begun anew


def write_prepare(folder):
    patients = [("a", "train", 1, 2), ("b", "test", 0, 2), ("c", "validation", 1, 1)]
    write_prepared(folder, np.random.default_rng(0), patients)


def read_prepared(folder):
    opened = vars(Prepared.open(folder))
    return {k: np.array(v) for k, v in opened.items() if isinstance(v, np.ndarray)}


READERS = {
    "dicom": Reader(series_samples, read_series, right_series, 24),
    "enhanced": Reader(enhanced_samples, read_series, right_series, 10),
    "seg": Reader(
        lambda: {k: written(write_masks, k) for k in ("roi", "mask", "prob")}, read_masks, right_masks, 14
    ),
    "nifti": Reader(nifti_samples, read_nifti, right_nifti, 18),
    "breastdcedl": Reader(breastdcedl_samples, read_breastdcedl_csv, right_breastdcedl_csv, 5),
    "ambl": Reader(ambl_samples, read_ambl_sheet, right_ambl_sheet, 4),
    "idc": Reader(idc_samples, read_idc, right_idc, 4),
    "manifest": Reader(manifest_samples, read_manifests, right_manifests, 4),
    "case": Reader(case_samples, read_one_case, right_case, 4),
    "params": Reader(params_samples, read_params, right_params, 3),
    "records": Reader(lambda: {"records": written(write_records)}, read_records, right_records, 3),
    "checkpoint": Reader(lambda: {"Linear": written(write_checkpoint)}, read_checkpoint, right_checkpoint, 3),
    "weights": Reader(lambda: {"thda": written(write_weights)}, read_weights, None, 1),
    "pretrained": Reader(pretrained_samples, read_pretrained, None, 1),
    "prepared": Reader(lambda: {"arrays": written(write_prepare)}, read_prepared, None, 2),
}
