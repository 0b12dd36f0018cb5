"""Volumes → packed arrays: three phases, a lesion-centred crop, a few slices, exact quantiles.

Nothing is normalised here.  What later stages need of a volume's intensities are quantiles, and they are
stored; so every window of the study, and every further one, works from these few files:

data/<cohort>/prepare/
    images_raw.npy, images_n4.npy        (N, P, H, W) uint16, scanner units
    quantiles_raw.npy, quantiles_n4.npy  (N, scopes, P, L) uint16, scopes and meaning as in normalize.SCOPES
    levels.npy                           (L,) which quantiles they are
    pixel_mm.npy                         () edge of a pixel of the images
    slices.csv                           one row per slice: patient, split, her2, dataset, z, tumour_mm2
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from her2core.acquire import check_complete
from her2core.bias_field import N4Config, correct, log_bias_field
from her2core.dicom import read_dce, read_seg
from her2core.nifti import read_breastdcedl
from her2core.normalize import SCOPES, exact_quantiles
from her2core.parallel import each

MEANINGS = {"dicom_analysis_mask": "tumour_is_zero", "dicom_roi": "segments"}


@dataclass(frozen=True)
class PrepareConfig:
    """crop_mm, crop_px: edge of the square crop around the lesion and the pixels it becomes.
    slices: per patient, spread evenly over the lesion's volume.  quantiles: stored levels in [0, 1].
    early_s, late_s: wanted times after the first phase, where the table names no phases.
    bias_fields: "raw" and, for the N4 arms, "n4".  jobs: processes, -1 for one per core.
    """

    crop_mm: float
    crop_px: int
    slices: int
    quantiles: tuple[float, ...]
    early_s: float
    late_s: float
    bias_fields: tuple[str, ...]
    jobs: int
    n4: N4Config = field(default_factory=N4Config)

    def __post_init__(self):
        if self.crop_mm <= 0 or self.crop_px < 1 or self.slices < 1:
            raise ValueError(f"crop and slices must be positive, found {self}")
        if strangers := set(self.bias_fields) - {"raw", "n4"}:
            raise ValueError(f"bias_fields: {', '.join(sorted(strangers))} unknown, expected raw or n4")


def read_patient(row, folder, config):
    """One row of the patient table → pre, early and late phase `(P, Z, Y, X)`, mask `(Z, Y, X)` and geometry."""
    if row["layout"] == "breastdcedl":  # MinCrop keeps only the files of the three phases the table names
        series, mask = read_breastdcedl(folder / row["dataset"], row["patient"], row, phases=named_phases(row))
        return series.array, mask, series.geometry
    home = folder / row["dataset"] / row["patient"]
    series = read_dce(home / "dce")
    mask = read_seg(home / "seg.dcm", series.geometry, series.array.shape[1:], meaning=MEANINGS[row["layout"]])
    return series.array[choose_phases(row, series.times_s, config)], mask, series.geometry


def read_case(folder, config):
    """A case outside any table, `dce/` and `seg.dcm` in `folder` → phases, mask, geometry and phase times."""
    series = read_dce(folder / "dce")
    mask = read_seg(folder / "seg.dcm", series.geometry, series.array.shape[1:], meaning="segments")
    unnamed = {"patient": folder.name, "pre": None, "post_early": None, "post_late": None}
    chosen = choose_phases(unnamed, series.times_s, config)
    return series.array[chosen], mask, series.geometry, [series.times_s[k] for k in chosen]


def named_phases(row):
    """The acquisition indices that the table names as pre, early and late; None where it leaves one open."""
    named = [row[c] for c in ("pre", "post_early", "post_late")]
    return None if any(pd.isna(k) for k in named) else [int(k) for k in named]


def choose_phases(row, times_s, config):
    """Indices of the pre, early and late phase: those the table names, else the nearest in time after the first."""
    chosen = named_phases(row)
    if chosen is None:
        if np.isnan(times_s).any():
            raise ValueError(
                f"{row['patient']}: neither the table nor the files say which phases are early and late"
            )
        after = np.asarray(times_s[1:]) - times_s[0]
        chosen = [0] + [1 + int(np.argmin(np.abs(after - t))) for t in (config.early_s, config.late_s)]
    if not 0 <= chosen[0] < chosen[1] < chosen[2] < len(times_s):
        raise ValueError(f"{row['patient']}: phases {chosen} of {len(times_s)} are not pre < early < late")
    return chosen


def choose_slices(mask, count):
    """z of `count` slices that split the lesion's volume evenly; fewer if the lesion has fewer slices."""
    cumulative = np.cumsum(mask.sum((1, 2)))
    wanted = (np.arange(count) + 0.5) / count * cumulative[-1]
    return np.unique(np.searchsorted(cumulative, wanted))


def crop(volume, z, centre_px, spacing_mm, config):
    """Slice `z` of `(P, Z, Y, X)`: a square of crop_mm around `centre_px` (y, x) on crop_px pixels, linear.

    Beyond the edge the outermost voxel is repeated.  Returns `(P, crop_px, crop_px)` uint16.
    """
    offset = ((np.arange(config.crop_px) + 0.5) / config.crop_px - 0.5) * config.crop_mm
    y, x = (centre_px[k] + offset / spacing_mm[k + 1] for k in (0, 1))
    grid = np.meshgrid(y, x, indexing="ij")
    planes = [ndimage.map_coordinates(v[z].astype(np.float32), grid, order=1, mode="nearest") for v in volume]
    return np.rint(planes).astype(np.uint16)


def quantiles_of(phases, images, levels):
    """Stored quantiles per slice: phases `(P, Z, Y, X)`, images `(n, P, H, W)` → `(n, scopes, P, L)` uint16."""
    channel = np.stack([exact_quantiles(phase, levels) for phase in phases])  # (P, L)
    everything = np.broadcast_to(exact_quantiles(phases, levels), channel.shape)
    out = np.empty((len(images), len(SCOPES), *channel.shape), np.uint16)
    for number, image in enumerate(images):
        own = np.broadcast_to(exact_quantiles(image, levels), channel.shape)
        out[number] = np.stack([{"slice": own, "channel": channel, "global": everything}[s] for s in SCOPES])
    return out


def pack(phases, mask, geometry, config):
    """Three phases of one patient → chosen z, and for each bias field the crops and quantiles."""
    chosen = choose_slices(mask, config.slices)
    centre = np.argwhere(mask).mean(0)[1:]
    packed = {}
    for name in config.bias_fields:
        volume = phases if name == "raw" else correct(phases, log_bias_field(phases[0], geometry, config.n4))
        images = np.stack([crop(volume, z, centre, geometry.spacing_mm, config) for z in chosen])
        packed[name] = images, quantiles_of(volume, images, config.quantiles)
    return chosen, packed


def prepare_patient(row, folder, config):
    """One patient → (rows of slices.csv, {bias field: (images, quantiles)}), or the reason why not, as text."""
    try:
        check_complete(row["patient"], folder)
        phases, mask, geometry = read_patient(row, folder, config)
        chosen, packed = pack(as_uint16(phases, row["patient"]), mask, geometry, config)
    except (ValueError, OSError) as error:
        return str(error)
    keep = {k: row[k] for k in ("patient", "split", "her2", "dataset")}
    area = mask.sum((1, 2)) * geometry.spacing_mm[1] * geometry.spacing_mm[2]
    return [keep | {"z": int(z), "tumour_mm2": round(float(area[z]), 1)} for z in chosen], packed


def as_uint16(phases, patient):
    """Signed or real intensities as uint16; one that does not fit is an error, not a wrap-around."""
    if phases.dtype == np.uint16:
        return phases
    low, high = phases.min(), phases.max()
    if not (np.isfinite([low, high]).all() and low >= 0 and high <= np.iinfo(np.uint16).max):
        raise ValueError(f"{patient}: intensities from {low} to {high}, expected 0 to 65535")
    return np.rint(phases).astype(np.uint16)


def prepare(patients, raw, out, config):
    """Prepare all patients and write the packed arrays.  patients: `cohort.included` rows.

    A patient that fails does not stop the others; in the end all failures are raised together, and no file
    of `out` has its final name.
    """
    rows = patients.to_dict("records")
    results = each(partial(prepare_patient, folder=Path(raw), config=config), rows, config.jobs, "prepare")
    failures = [f"{row['patient']}: {r}" for row, r in zip(rows, results, strict=True) if isinstance(r, str)]
    if failures:
        raise ValueError(f"{len(failures)} of {len(rows)} patients cannot be prepared:\n" + "\n".join(failures))
    table = pd.DataFrame([line for lines, _ in results for line in lines])
    arrays = {"levels": np.asarray(config.quantiles), "pixel_mm": np.asarray(config.crop_mm / config.crop_px)}
    for name in config.bias_fields:
        arrays[f"images_{name}"] = np.concatenate([packed[name][0] for _, packed in results])
        arrays[f"quantiles_{name}"] = np.concatenate([packed[name][1] for _, packed in results])
    save(out, arrays, table)
    return table


def save(out, arrays, table):
    """All files or none: they are written beside and renamed at the end."""
    out.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        with open(out / f".{name}.partial", "wb") as file:
            np.save(file, array)
    table.to_csv(out / ".slices.partial", index=False)
    for name in arrays:
        (out / f".{name}.partial").replace(out / f"{name}.npy")
    (out / ".slices.partial").replace(out / "slices.csv")
