"""The leakage audit: does anything of a test, validation or external patient stand in another split as well?

Six questions, each answered with what was compared and who offends: the same patient, series, files or pixels
under two splits; nearly the same pixels (a patient scanned or exported twice under two names); intensity
statistics that two patients share, as they would if they were pooled.  Between splits any of it is a leak;
within one split it is counted, as a warning.  Every window is made of the statistics of its own patient; what a
method learns (Nyúl's standard) it learns from the training patients, which `dataset` sees to, not this audit.

Nearly the same: each slice becomes a fingerprint, SIDE × SIDE pixels that no gain, offset or slow shading of a
phase can change: phases are standardised, freed of all that is smoother than SMOOTH pixels, and added.  Pairs
whose block means correlate are compared at full size under small shifts, in all eight orientations of a square.
"""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import fft, ndimage

from her2core.cohort import EXTERNAL, person
from her2core.normalize import SCOPES

SIDE, THUMBNAIL = 32, 16  # pixels of a fingerprint and of its block means
SMOOTH = 3.0  # pixels; sigma of what is taken away
TAPER = 4  # pixels at the edge, so that a shifted image does not end abruptly
BLOCK = 512  # slices, or pairs of them, at once
LISTED = 100  # near duplicates, the most alike first
ORIENTATIONS = (
    "as it is", "turned by 90°", "turned by 180°", "turned by 270°",
    "mirrored", "mirrored and turned by 90°", "mirrored and turned by 180°", "mirrored and turned by 270°",
)  # fmt: skip
NEEDED = {
    "patients": ("patient", "split", "dataset"),
    "files": ("patient", "series_uid", "sha256"),
    "slices": ("patient", "split"),
}


class LeakageError(ValueError):
    """Something of one split stands in another."""


@dataclass(frozen=True)
class AuditConfig:
    """near_duplicate: correlation of two patients' fingerprints from which they count as the same picture.  Of 400
    phantom patients no two reach 0.70; copies with another gain, 10 % noise and a shift of one pixel of 2 mm stay
    above 0.85.  coarse: that of their block means, below which a pair is not looked at.  shift_px: how far
    fingerprints are shifted against each other; the block means bear a shift of one pixel, hardly one of two.
    """

    near_duplicate: float = 0.8
    coarse: float = 0.5
    shift_px: int = 1

    def __post_init__(self):
        if not 0 < self.coarse <= self.near_duplicate < 1:
            raise ValueError(f"audit needs 0 < coarse <= near_duplicate < 1, found {self}")
        if not 0 <= self.shift_px < SIDE // 2:
            raise ValueError(f"shift_px must lie between 0 and {SIDE // 2 - 1}, found {self.shift_px}")


# --- the same -----------------------------------------------------------------------------------------------


def overlap(owners):
    """What several patients own.  owners: columns patient, split and key, NaN where a patient has no key.

    Returns how many keys were compared, the leaks, and how many are shared within one split.
    """
    owners = owners.dropna(subset="key").drop_duplicates(["patient", "split", "key"])
    leaks, within = [], 0
    for key, part in owners[owners.duplicated("key", keep=False)].groupby("key", sort=True):
        if part["split"].nunique() == 1:
            within += 1
        else:
            names = sorted(f"{p} ({s})" for p, s in zip(part["patient"], part["split"], strict=True))
            leaks.append({"patients": names, "share": str(key)})
    return {"compared": int(owners["key"].nunique()), "leaks": leaks, "within_one_split": within}


def same_patient(patients, slices):
    """One patient in two splits, in either table, or in the external site and a split of the others."""
    both = pd.concat([patients[["patient", "split"]], slices[["patient", "split"]]], ignore_index=True)
    found = overlap(both.assign(key=both["patient"].map(person)))
    strays = patients[(patients["dataset"] == EXTERNAL) != (patients["split"] == "external")]
    for row in strays.sort_values("patient").itertuples():
        found["leaks"].append({"patients": [f"{row.patient} ({row.split})"], "share": f"site {row.dataset}"})
    return found


def digests(arrays):
    """A name for each array of a stack, the same for the same values."""
    return [hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16] for a in arrays]


def same_series(owners):
    """owners: `files` with the split; several series of a patient are separated by blanks, NIfTI has none."""
    uids = owners["series_uid"].map(lambda text: str(text).split() if pd.notna(text) else [])
    found = overlap(owners.assign(key=uids).explode("key"))
    return found | {"patients_without_series": int((uids.str.len() == 0).sum())}


def same_statistics(slices, quantiles):
    """quantiles: `(N, scopes, P, L)`, those that the windows are made of."""
    parts = [
        slices.assign(key=[f"{scope} {d}" for d in digests(quantiles[:, k])]) for k, scope in enumerate(SCOPES)
    ]
    return overlap(pd.concat(parts))


# --- nearly the same ----------------------------------------------------------------------------------------


def unit(images):
    """Mean 0 and norm 1 over the last two axes; what has no contrast becomes 0."""
    centred = images - images.mean((-2, -1), keepdims=True)
    norm = np.linalg.norm(centred, axis=(-2, -1), keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-6)


def block_means(images, side):
    """`(…, H, W)` → `(…, side, side)` means of blocks that differ by at most one pixel; a smaller axis stays."""
    for axis in (-2, -1):
        size = images.shape[axis]
        if size > side:
            edges = np.arange(side) * size // side
            lengths = np.diff(edges, append=size)
            sums = np.add.reduceat(images, edges, axis=axis, dtype=np.float64)
            images = sums / (lengths[:, None] if axis == -2 else lengths)
    return images


def fingerprints(images):
    """Slices `(N, P, H, W)` → `(N, SIDE, SIDE)` float64 of norm 1; 0 where a slice has no structure."""
    out = []
    for start in range(0, len(images), BLOCK):
        phases = unit(block_means(images[start : start + BLOCK], SIDE))
        smooth = ndimage.gaussian_filter(phases, (0, 0, SMOOTH, SMOOTH), mode="nearest")
        out.append(unit(phases - smooth).sum(1))
    prints = np.concatenate(out)
    ramp = [np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]) + 1, TAPER) / TAPER for n in prints.shape[1:]]
    return unit(prints * np.outer(*ramp))


def turn(images, k):
    """One of the eight orientations of square images `(N, S, S)`."""
    return np.rot90(images[..., ::-1] if k >= 4 else images, k % 4, axes=(-2, -1))


def alike(thumbnails, turned, patients, coarse):
    """Rows i < j of two patients whose thumbnails, `(N, pixels)` of norm 1, correlate above `coarse`."""
    rows, columns = [], []
    for start in range(0, len(thumbnails), BLOCK):
        i, j = np.nonzero(thumbnails[start : start + BLOCK] @ turned[start:].T > coarse)
        i, j = i + start, j + start
        keep = (i < j) & (patients[i] != patients[j])
        rows.append(i[keep])
        columns.append(j[keep])
    return np.concatenate(rows), np.concatenate(columns)


def shifted_correlation(a, b, shift_px):
    """The highest correlation of `(n, S, S)` fingerprints over shifts of up to `shift_px`, rounded."""
    best = []
    shifts = np.arange(-shift_px, shift_px + 1)
    for start in range(0, len(a), BLOCK):
        left, right = (fft.rfft2(x[start : start + BLOCK]) for x in (a, b))
        over_shifts = fft.irfft2(left * right.conj(), s=a.shape[-2:])
        best.append(over_shifts[:, shifts[:, None], shifts].max((1, 2)))
    return np.round(np.concatenate(best), 3) if best else np.zeros(0)


def similar_pairs(prints, patients, config):
    """Of every two patients that look alike the rows i, j of their most similar slices, the most similar first.

    prints: fingerprints `(N, S, S)`; patients: `(N,)` integers.  Columns i, j, correlation, orientation.
    """
    thumbnails = unit(block_means(prints, THUMBNAIL)).astype(np.float32)
    tables = []
    for k, orientation in enumerate(ORIENTATIONS):
        flat = (t.reshape(len(prints), -1) for t in (thumbnails, turn(thumbnails, k)))
        i, j = alike(*flat, patients, config.coarse)
        correlation = shifted_correlation(prints[i], turn(prints[j], k), config.shift_px)
        low, high = np.sort([patients[i], patients[j]], axis=0)
        columns = {"i": i, "j": j, "correlation": correlation, "low": low, "high": high}
        tables.append(pd.DataFrame(columns).assign(orientation=orientation))
    pairs = pd.concat(tables, ignore_index=True)
    pairs = pairs.sort_values(["correlation", "i", "j"], ascending=[False, True, True], kind="stable")
    return pairs.drop_duplicates(["low", "high"])


def near_duplicates(images, slices, config):
    """Leaks, and of what is not one the pair that comes nearest: is the threshold in the right place?"""
    prints = fingerprints(images)
    pairs = similar_pairs(prints, pd.factorize(slices["patient"])[0], config)
    patient, split = slices["patient"].to_numpy(), slices["split"].to_numpy()
    found = [
        {
            "patients": sorted(f"{patient[r]} ({split[r]})" for r in (p.i, p.j)),
            "share": f"correlation {p.correlation:.3f}, {p.orientation}, rows {p.i} and {p.j} of the slices",
            "across": split[p.i] != split[p.j],
            "leak": p.correlation >= config.near_duplicate,
        }
        for p in pairs.itertuples()
    ]
    leaks = [f for f in found if f["across"] and f["leak"]]
    nearest = [f for f in found if not f["leak"]][:1]
    count = slices["patient"].nunique()
    return {
        "compared": count * (count - 1) // 2,
        "leaks": [{k: f[k] for k in ("patients", "share")} for f in leaks[:LISTED]],
        "leaks_in_all": len(leaks),
        "within_one_split": sum(f["leak"] and not f["across"] for f in found),
        "nearest_of_the_others": {k: f[k] for f in nearest for k in ("patients", "share")},
        "slices_without_structure": int((~prints.any((1, 2))).sum()),
    }


# --- all together -------------------------------------------------------------------------------------------


def check_tables(patients, files, slices, arrays):
    """Raise ValueError unless the tables have their columns and speak of the same patients."""
    for (name, columns), table in zip(NEEDED.items(), (patients, files, slices), strict=True):
        if missing := set(columns) - set(table.columns):
            raise ValueError(f"{name}: lacks {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    for name, array in arrays.items():
        if len(array) != len(slices):
            raise ValueError(f"{name}: expected {len(slices)} slices as the table has, found {len(array)}")
    known = set(patients["patient"])
    if strangers := set(slices["patient"]) ^ known:
        raise ValueError(f"{min(strangers)}: not in both the patient table and the slices; {len(strangers)} such")
    if absent := known - set(files["patient"]):
        raise ValueError(f"{min(absent)}: in use, but no files are listed; {len(absent)} such")


def audit(patients, files, slices, images, quantiles, config):
    """All six checks → a dictionary for JSON, the same for the same data.

    patients: `cohort.included` rows.  files: one row per patient, with series_uid and sha256.  slices, images
    `(N, P, H, W)`, quantiles `(N, scopes, P, L)`: as `preprocess.prepare` writes them.
    """
    check_tables(patients, files, slices, {"images": images, "quantiles": quantiles})
    owners = files.merge(patients[["patient", "split"]], on="patient")
    checks = {
        "patient": same_patient(patients, slices),
        "series": same_series(owners),
        "files": overlap(owners.assign(key=owners["sha256"])),
        "pixels": overlap(slices.assign(key=digests(images))),
        "near_duplicates": near_duplicates(images, slices, config),
        "statistics": same_statistics(slices, quantiles),
    }
    return {
        "config": asdict(config),
        "patients": {str(k): int(n) for k, n in patients["split"].value_counts().sort_index().items()},
        "slices": len(slices),
        "passed": not any(c["leaks"] for c in checks.values()),
        "checks": checks,
    }


def check(result):
    """Raise LeakageError naming who offends, if any check of an audit failed."""
    lines = []
    for name, found in result["checks"].items():
        for leak in found["leaks"][:5]:
            lines.append(f"{name}: {' and '.join(leak['patients'])} share {leak['share']}")
        if len(found["leaks"]) > 5:
            lines.append(f"{name}: {found.get('leaks_in_all', len(found['leaks'])) - 5} more")
    if lines:
        raise LeakageError("leakage between splits:\n" + "\n".join(lines))
