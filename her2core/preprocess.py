"""Volumes → packed arrays: three phases, a lesion-centred crop, a few slices, exact statistics.

Nothing is normalised here.  What later stages need of a volume's intensities are quantiles and moments, and they
are stored; so every window of the study, and every further one, works from these few files:

data/<cohort>/prepare/
    images_raw.npy, images_n4.npy        (N, P, H, W) uint16, scanner units
    quantiles_raw.npy, quantiles_n4.npy  (N, scopes, P, L) uint16, scopes and meaning as in normalize.SCOPES
    moments_raw.npy, moments_n4.npy      (N, scopes, P, 2) float32, mean and standard deviation
    neighbours_raw.npy, neighbours_n4.npy  (N, 2, P, H, W) uint16, the slices below and above; if configured
    masks.npy                            (N, H, W) bool, the tumour in the images
    levels.npy                           (L,) which quantiles they are
    slices.csv                           one row per slice: patient, split, label, dataset, z, tumour_mm2, pixel_mm
    kinetics.csv                         one row per patient: size and kinetics of the lesion, voxels and times
    digests.csv                          size and SHA-256 of each file above, compared before any use
data/<cohort>/.prepare-parts/            <patient>.<key>.npz of finished patients, until the files above stand
"""

import hashlib
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
from scipy import ndimage

from her2core.audit import AuditConfig
from her2core.bias_field import N4Config, correct_patient
from her2core.formats.boundary import reading
from her2core.formats.examination import Examination, Told, anonymous, read_examination
from her2core.formats.nifti import mask_file, phase_files
from her2core.formats.volume import Geometry, as_uint16, native_crop
from her2core.kinetics import lesion_features
from her2core.normalize import SCOPES, statistics
from her2core.parallel import CODE_DIGEST, each
from her2core.records import Incomplete, check_complete, record_path, whole, write_digests

_KEPT = ("patient", "split", "label", "dataset")  # columns of the patient table that go on into those of slices
_LEAST_SHOWN = 0.5  # of a lesion, by a crop around its middle
_MEANINGS = {"dicom_analysis_mask": "tumour_is_zero", "dicom_roi": "segments"}


@dataclass(frozen=True)
class PrepareConfig:
    """crop_mm, crop_px: edge of the square crop around the lesion and the pixels it becomes; crop_mm None takes
    crop_px pixels as they are.
    slices: per patient, spread evenly over the lesion's volume.  quantiles: stored levels in [0, 1].
    early_s, late_s: wanted times after the first phase, where the table names no phases.
    bias_fields: "raw" and, for the N4 arms, "n4".  neighbours: store the slices below and above each slice too,
    for networks whose heads see adjacent slices.
    allow_missing: false ends with an error when a patient cannot be prepared; true goes on without.
    jobs: processes, -1 for one per core.
    """

    crop_mm: float | None
    crop_px: int
    slices: int
    quantiles: tuple[float, ...]
    early_s: float
    late_s: float
    bias_fields: tuple[str, ...]
    neighbours: bool
    allow_missing: bool
    jobs: int
    audit: AuditConfig = field(default_factory=AuditConfig)
    n4: N4Config = field(default_factory=N4Config)

    def __post_init__(self):
        if (self.crop_mm is not None and self.crop_mm <= 0) or self.crop_px < 1 or self.slices < 1:
            raise ValueError(f"crop and slices must be positive, found {self}")
        if not all(0 <= level <= 1 for level in self.quantiles):
            raise ValueError(f"quantiles must lie in [0, 1], found {self.quantiles}")
        if strangers := set(self.bias_fields) - {"raw", "n4"}:
            raise ValueError(f"bias_fields: {', '.join(sorted(strangers))} unknown, expected raw or n4")


def read_patient(row: Mapping, folder: Path, config: PrepareConfig) -> Examination:
    """The examination of one row of the patient table; folder: of the stage `acquire`."""
    home, patient = folder / row["dataset"], row["patient"]
    if row["layout"] == "breastdcedl":  # MinCrop keeps only the files of the three phases the table names
        images, mask = phase_files(home, patient), mask_file(home, patient)
    elif row["layout"] == "own":
        images = folder / "files" / row["dce"]
        mask = None if pd.isna(row["mask"]) else folder / "files" / row["mask"]
    else:
        images, mask = home / patient / "dce", home / patient / "seg.dcm"
    try:
        told = Told.of(row)
    except ValueError as error:
        raise ValueError(f"{patient}: the table's {error}") from error
    wanted = {"early_s": config.early_s, "late_s": config.late_s, "name": patient, "strict": row["layout"] == "own"}
    found = read_examination(images, mask, told, meaning=_MEANINGS.get(row["layout"], "segments"), **wanted)
    for remark in found.remarks:
        warnings.warn(remark, stacklevel=2)
    return found


def largest_part(mask: np.ndarray, geometry: Geometry, config: PrepareConfig) -> tuple[np.ndarray, str]:
    """The part of a lesion around which images are cut, bool `(Z, Y, X)`, and a remark where it is not all of it.

    All of it, or its largest focus where a crop around the middle of all foci would hold less than half of them.
    """
    voxels = np.argwhere(mask)[:, 1:]
    edge_px = config.crop_px if config.crop_mm is None else config.crop_mm / np.array(geometry.spacing_mm[1:])
    inside = (np.abs(voxels - voxels.mean(0)) <= edge_px / 2).all(1)
    if inside.mean() >= _LEAST_SHOWN:
        return mask, ""
    foci, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    focus = foci == np.bincount(foci[mask]).argmax()
    share = focus.sum() / mask.sum()
    return focus, f"foci far apart: the images lie around the largest, {share:.0%} of the lesion"


def _choose_slices(mask, count):
    """z of `count` slices that split the lesion's volume evenly; fewer if the lesion has fewer slices."""
    cumulative = np.cumsum(mask.sum((1, 2)))
    wanted = (np.arange(count) + 0.5) / count * cumulative[-1]
    return np.unique(np.searchsorted(cumulative, wanted))


def _crop(volume, z, centre_px, spacing_mm, config):
    """Slice `z` of `(P, Z, Y, X)`: a square around `centre_px` (y, x) as `(P, crop_px, crop_px)` uint16.

    With crop_mm it is centred on the very point and interpolated linearly; without, it is whole pixels, shifted
    inside the image.  Beyond the edge of the image the outermost voxel is repeated.
    """
    if config.crop_mm is None:
        return native_crop(volume[:, z], centre_px, config.crop_px)
    offset = ((np.arange(config.crop_px) + 0.5) / config.crop_px - 0.5) * config.crop_mm
    y, x = (centre_px[k] + offset / spacing_mm[k + 1] for k in (0, 1))
    grid = np.meshgrid(y, x, indexing="ij")
    planes = [ndimage.map_coordinates(v[z].astype(np.float32), grid, order=1, mode="nearest") for v in volume]
    return np.rint(planes).astype(np.uint16)


def pixel_mm(geometry: Geometry, config: PrepareConfig) -> float:
    """Edge of a pixel of the images."""
    if config.crop_mm is not None:
        return config.crop_mm / config.crop_px
    _, row_mm, column_mm = geometry.spacing_mm
    if not np.isclose(row_mm, column_mm, rtol=0.01):
        raise ValueError(f"pixels of {row_mm} × {column_mm} mm, expected squares where crop_mm is null")
    return row_mm


def _statistics_of(phases, images, levels):
    """Stored statistics per slice: phases `(P, Z, Y, X)`, images `(n, P, H, W)`.

    Returns quantiles `(n, scopes, P, L)` uint16 and moments `(n, scopes, P, 2)` float32.
    """

    def of_all_phases(values):
        return [np.tile(s, (len(phases), 1)) for s in statistics(values, levels)]

    channel = [np.stack(s) for s in zip(*(statistics(phase, levels) for phase in phases), strict=True)]
    everything = of_all_phases(phases)
    quantiles = np.empty((len(images), len(SCOPES), len(phases), len(levels)), np.uint16)
    moments = np.empty((*quantiles.shape[:3], 2), np.float32)
    for number, image in enumerate(images):
        found = {"slice": of_all_phases(image), "channel": channel, "global": everything}
        for k, scope in enumerate(SCOPES):
            quantiles[number, k], moments[number, k] = found[scope]
    return quantiles, moments


def pack(
    phases: np.ndarray, mask: np.ndarray, geometry: Geometry, config: PrepareConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Three phases `(3, Z, Y, X)` of one patient → chosen z, masks `(n, H, W)`, and {bias field: {"images",
    "quantiles", "moments"}}, with neighbours too where configured.  Around `largest_part`."""
    shown, _ = largest_part(mask, geometry, config)
    chosen = _choose_slices(shown, config.slices)
    centre = np.argwhere(shown).mean(0)[1:]

    def crops(volume, z):
        return np.stack([_crop(volume, k, centre, geometry.spacing_mm, config) for k in z])

    masks = crops(mask[None].astype(np.float32) * 255, chosen)[:, 0] > 127
    packed = {}
    for name in config.bias_fields:
        volume = phases if name == "raw" else correct_patient(phases, geometry, config.n4)
        images = crops(volume, chosen)
        quantiles, moments = _statistics_of(volume, images, config.quantiles)
        packed[name] = {"images": images, "quantiles": quantiles, "moments": moments}
        if config.neighbours:
            beside = [np.clip(chosen + step, 0, len(mask) - 1) for step in (-1, 1)]
            packed[name]["neighbours"] = np.stack([crops(volume, z) for z in beside], 1)  # (n, 2, P, H, W)
    return chosen, masks, packed


@dataclass(frozen=True)
class Part:
    """One prepared patient, n slices.

    z, tumour_mm2, pixel_mm: `(n,)`.  arrays: {"masks": bool `(n, H, W)`, "images_raw": `(n, P, H, W)`, …}, a row a
    slice, as in the files of the stage.  kinetics: {name: value} of the lesion.
    """

    z: np.ndarray
    tumour_mm2: np.ndarray
    pixel_mm: np.ndarray
    arrays: Mapping[str, np.ndarray]
    kinetics: dict[str, float]

    def save(self, path: Path) -> None:
        """Write one npz file."""
        own = {name: getattr(self, name) for name in ("z", "tumour_mm2", "pixel_mm")}
        with whole(path, uuid4().hex) as part, open(part, "wb") as file:  # a cluster may run one task twice
            np.savez(file, kinetics=json.dumps(self.kinetics, default=float), **own, **self.arrays)

    @classmethod
    def load(cls, path: Path) -> "Part":
        """What `save` wrote."""
        with reading(path, "a prepared patient", "delete it and run again"), np.load(path) as stored:
            arrays = dict(stored)
            own = [arrays.pop(name) for name in ("z", "tumour_mm2", "pixel_mm")]
            return cls(*own, arrays, json.loads(str(arrays.pop("kinetics"))))


def prepare_patient(row: Mapping, raw: Path, config: PrepareConfig) -> Part:
    """One patient, a row of the patient table; raw: the folder of the stage `acquire`."""
    check_complete(row["patient"], raw)
    found = read_patient(row, raw, config)
    mask, geometry, times_s = found.mask, found.geometry, found.times_s
    phases, factor = as_uint16(found.phases, row["patient"])
    if remark := largest_part(mask, geometry, config)[1]:
        warnings.warn(f"{row['patient']}: {remark}", stacklevel=2)
    chosen, masks, packed = pack(phases, mask, geometry, config)
    if not (seen := masks.any((1, 2))).all():
        where = f"not seen in the images of slices {chosen[~seen].tolist()}"
        raise ValueError(f"lesion {where}: outline one focus, or change prepare.crop_mm and crop_px")
    area = mask.sum((1, 2)) * geometry.spacing_mm[1] * geometry.spacing_mm[2]
    kinetics = lesion_features(phases, mask, geometry.spacing_mm) | {
        "slice_mm": geometry.spacing_mm[0],
        "pixel_native_mm": geometry.spacing_mm[1],
        "early_s": times_s[1],
        "late_s": times_s[2],
        "intensity_factor": factor,
    }
    arrays = {f"{kind}_{name}": values for name, kinds in packed.items() for kind, values in kinds.items()}
    edges = np.full(len(chosen), pixel_mm(geometry, config))
    return Part(chosen, area[chosen], edges, {"masks": masks} | arrays, kinetics)


def _make_part(job, raw, config):
    """Prepare one patient (row, part), if need be → why it cannot be, "" if it can; is this machine at fault."""
    row, part = job
    if zipfile.is_zipfile(part):
        return "", False
    begun = part.with_suffix(".begun")
    try:
        begun.touch()  # names the patient, as a process that is killed cannot
        prepare_patient(row, raw, config).save(part)
        return "", False
    except (Incomplete, OSError) as error:
        return str(error), True
    except (ValueError, RuntimeError, MemoryError) as error:  # RuntimeErrors are SimpleITK's, with addresses
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return f"out of memory ({error}); lower prepare.jobs", True
        said = re.sub(r"\(0x\w+\)", "", str(error).strip().rpartition("\n")[2]).replace(f"{raw}/", "")
        places = [row[column] for column in ("dce", "mask") if row["layout"] == "own" and not pd.isna(row[column])]
        return anonymous(said, raw / "files", places), False
    finally:
        begun.unlink(missing_ok=True)


def _part_key(row, raw, config):
    """Digest of all that a part depends on: sources, parameters, the patient's row and the record of its files."""
    record = record_path(raw, row["patient"])
    parameters = {k: v for k, v in asdict(config).items() if k not in ("jobs", "audit", "allow_missing")}
    text = json.dumps([CODE_DIGEST, parameters, row, record.is_file() and record.read_bytes()], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare(
    patients: pd.DataFrame, raw: Path, out: Path, config: PrepareConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prepare all patients and write the packed arrays.  patients: `cohort.included` rows.

    Returns the table of slices, and the patients that cannot be prepared with the reason: an error unless
    `allow_missing`, which lists them all.  A file that is damaged, or a disk that fails, always is one.  After an
    error `out` is as it was, and finished patients are kept beside it, so that the next run goes on there.
    """
    raw, out = Path(raw).absolute(), Path(out).absolute()  # workers have a working directory of their own
    rows = patients.to_dict("records")
    if not rows:
        raise ValueError("no patients to prepare")
    scratch = out.with_name(f".{out.name}-parts")
    parts = [scratch / f"{row['patient']}.{_part_key(row, raw, config)}.npz" for row in rows]
    scratch.mkdir(parents=True, exist_ok=True)
    for stale in set(scratch.iterdir()) - set(parts):  # of other parameters, or of a writer that was killed
        stale.unlink()
    make = partial(_make_part, raw=raw, config=config)
    try:
        answers = each(make, zip(rows, parts, strict=True), config.jobs, "prepare")
    except (RuntimeError, ConnectionError, ChildProcessError) as error:  # a process was killed
        at = ", ".join(sorted(path.name.partition(".")[0] for path in scratch.glob("*.begun"))) or out
        said = str(error).partition("\n")[0]
        raise ValueError(f"{at}: {said}; if memory is short, lower prepare.jobs and run again") from error
    unprepared = _unprepared(rows, answers, config)
    done = [(row, part) for row, part, (reason, _) in zip(rows, parts, answers, strict=True) if not reason]
    if lost := [part for _, part in done if not part.is_file()]:
        raise ValueError(
            f"{len(lost)} of {len(rows)} patients were prepared, but {lost[0]} is not here: "
            "the workers of a cluster need this file system under the same path"
        )
    table = _assemble(*zip(*done, strict=True), out, config)
    shutil.rmtree(scratch)
    return table, unprepared


def _unprepared(rows, answers, config):
    """Who cannot be prepared, and why; ValueError where that is no reason to go on without."""
    both = zip(rows, answers, strict=True)
    reasons = [(row, why.removeprefix(f"{row['patient']}: ")) for row, (why, _) in both if why]
    said = "\n".join(f"{row['patient']}: {text}" for row, text in reasons)
    if faults := sum(is_fault for _, is_fault in answers):
        raise ValueError(f"{len(reasons)} of {len(rows)} patients, {faults} because of files or memory:\n{said}")
    if reasons and (not config.allow_missing or len(reasons) == len(rows)):
        how = "prepare.allow_missing: true goes on without them"
        raise ValueError(f"{len(reasons)} of {len(rows)} patients cannot be prepared; {how}:\n{said}")
    lines = [{k: row[k] for k in _KEPT} | {"reason": f"cannot be prepared: {why}"} for row, why in reasons]
    return pd.DataFrame(lines, columns=[*_KEPT, "reason"])


def _assemble(rows, paths, out, config):
    """Parts → the files of `out`, which replace it when all are written; returns the table of slices."""
    lines, kinetics = [], []
    with whole(out) as fresh:
        fresh.mkdir()
        for row, path in zip(rows, paths, strict=True):
            part, keep = Part.load(path), {k: row[k] for k in _KEPT}
            of_slices = zip(part.z.tolist(), part.tumour_mm2.tolist(), part.pixel_mm.tolist(), strict=True)
            lines += [keep | {"z": z, "tumour_mm2": round(a, 1), "pixel_mm": p} for z, a, p in of_slices]
            kinetics.append(keep | part.kinetics)
            for name, values in part.arrays.items():
                _append(values, len(lines), fresh / f"{name}.npy")
        (table := pd.DataFrame(lines)).to_csv(fresh / "slices.csv", index=False)
        np.save(fresh / "levels.npy", np.asarray(config.quantiles))
        pd.DataFrame(kinetics).round(6).to_csv(fresh / "kinetics.csv", index=False)
        write_digests(fresh / "digests.csv", sorted(fresh.iterdir()))
    return table


def _append(values, count, path):
    """Rows behind those of an npy file, which has `count` rows then."""
    header = np.lib.format.header_data_from_array_1_0(values) | {"shape": (count, *values.shape[1:])}
    with open(path, "r+b" if path.exists() else "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)  # of one length for all counts
        file.seek(0, 2)  # to the end
        file.write(values.tobytes())
