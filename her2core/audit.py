"""The leakage audit: is anything of a test, validation or external patient found in another split as well?

Six questions, each answered with what was compared and which patients are concerned: the same patient, series,
files or pixels under two splits; nearly the same pixels (a patient scanned or exported twice under two names);
intensity statistics that two patients share, as they would if they were pooled.  Between splits each of these is a
leak; within one split it is counted, as a warning.  Every window is made of the statistics of its own patient; what
a method learns (Nyúl's standard) comes from the training patients: `dataset` ensures that, not this audit.

Nearly the same: each slice becomes a fingerprint, 32 × 32 pixels that no gain, offset or slow shading of a phase
changes: phases are standardised, all that is smoother than 3 pixels is subtracted, and they are added.  Pairs whose
block means correlate are compared at full size under small shifts, in all eight orientations of a square.
"""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import fft, ndimage

from her2core.cohort import person
from her2core.normalize import SCOPES

_SIDE, _THUMBNAIL = 32, 16  # pixels of a fingerprint and of its block means
_SMOOTH = 3.0  # pixels; sigma of what is taken away
_TAPER = 4  # pixels at the edge, so that a shifted image does not end abruptly
_BLOCK = 512  # slices, or pairs of them, at once
_LISTED = 100  # near duplicates, the most similar first
_ORIENTATIONS = (
    "as it is", "turned by 90°", "turned by 180°", "turned by 270°",
    "mirrored", "mirrored and turned by 90°", "mirrored and turned by 180°", "mirrored and turned by 270°",
)  # fmt: skip
_NEEDED = {
    "patients": ("patient", "split", "dataset"),
    "files": ("patient", "series_uid", "sha256"),
    "slices": ("patient", "split"),
}


class LeakageError(ValueError):
    """Something of one split is found in another."""


@dataclass(frozen=True)
class AuditConfig:
    """near_duplicate: correlation of two patients' fingerprints from which they count as the same picture.  Of 400
    phantom patients no two reach 0.70; copies with another gain, 10 % noise and a shift of one pixel of 2 mm stay
    above 0.85.  coarse: correlation of their block means below which a pair is not compared.  shift_px: how far
    fingerprints are shifted against each other; block means tolerate one pixel, hardly two.
    """

    near_duplicate: float = 0.8
    coarse: float = 0.5
    shift_px: int = 1

    def __post_init__(self):
        if not 0 < self.coarse <= self.near_duplicate < 1:
            raise ValueError(f"audit needs 0 < coarse <= near_duplicate < 1, found {self}")
        if not 0 <= self.shift_px < _SIDE // 2:
            raise ValueError(f"shift_px must lie between 0 and {_SIDE // 2 - 1}, found {self.shift_px}")


def _overlap(owners):
    """Keys that several patients have.  owners: columns patient, split and key, NaN where a patient has no key.

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


def _same_patient(patients, slices):
    """One patient in two splits, in either table, or in the external site and a split of the others."""
    both = pd.concat([patients[["patient", "split"]], slices[["patient", "split"]]], ignore_index=True)
    found = _overlap(both.assign(key=both["patient"].map(person)))
    is_external = patients["split"] == "external"
    strays = patients[patients["dataset"].isin(patients.loc[is_external, "dataset"]) & ~is_external]
    for row in strays.sort_values("patient").itertuples():
        found["leaks"].append({"patients": [f"{row.patient} ({row.split})"], "share": f"site {row.dataset}"})
    return found


def _digests(arrays):
    """A digest for each array of a stack, the same for the same values."""
    return [hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16] for a in arrays]


def _same_series(owners):
    """owners: the table `files` with the split; a patient's series are separated by blanks, NIfTI has none."""
    uids = owners["series_uid"].map(lambda text: str(text).split() if pd.notna(text) else [])
    found = _overlap(owners.assign(key=uids).explode("key"))
    return found | {"patients_without_series": int((uids.str.len() == 0).sum())}


def _same_statistics(slices, quantiles):
    """quantiles: `(N, scopes, P, L)`, as the windows use them."""
    keys = ([f"{scope} {d}" for d in _digests(quantiles[:, k])] for k, scope in enumerate(SCOPES))
    return _overlap(pd.concat(slices.assign(key=key) for key in keys))


def _unit(images):
    """Mean 0 and norm 1 over the last two axes; an image without contrast becomes 0."""
    centred = images - images.mean((-2, -1), keepdims=True)
    norm = np.linalg.norm(centred, axis=(-2, -1), keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-6)


def _block_means(images, side):
    """`(…, H, W)` → `(…, side, side)` means of blocks that differ by at most one pixel; a smaller axis stays."""
    for axis in (-2, -1):
        size = images.shape[axis]
        if size > side:
            edges = np.arange(side) * size // side
            lengths = np.diff(edges, append=size)
            sums = np.add.reduceat(images, edges, axis=axis, dtype=np.float64)
            images = sums / (lengths[:, None] if axis == -2 else lengths)
    return images


def _fingerprints(images):
    """Slices `(N, P, H, W)` → `(N, 32, 32)` float64 of norm 1; 0 where a slice has no structure."""
    out = []
    for start in range(0, len(images), _BLOCK):
        phases = _unit(_block_means(images[start : start + _BLOCK], _SIDE))
        smooth = ndimage.gaussian_filter(phases, (0, 0, _SMOOTH, _SMOOTH), mode="nearest")
        out.append(_unit(phases - smooth).sum(1))
    prints = np.concatenate(out)
    ramp = [np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]) + 1, _TAPER) / _TAPER for n in prints.shape[1:]]
    return _unit(prints * np.outer(*ramp))


def _turn(images, k):
    """One of the eight orientations of square images `(N, S, S)`."""
    return np.rot90(images[..., ::-1] if k >= 4 else images, k % 4, axes=(-2, -1))


def _alike(thumbnails, turned, patients, coarse):
    """Rows i < j of two patients whose thumbnails, `(N, pixels)` of norm 1, correlate above `coarse`."""
    pairs = []
    for start in range(0, len(thumbnails), _BLOCK):
        i, j = start + np.array(np.nonzero(thumbnails[start : start + _BLOCK] @ turned[start:].T > coarse))
        keep = (i < j) & (patients[i] != patients[j])
        pairs.append((i[keep], j[keep]))
    return np.concatenate(pairs, axis=1)


def _shifted_correlation(a, b, shift_px):
    """The highest correlation of `(n, S, S)` fingerprints over shifts of up to `shift_px`, rounded."""
    best = []
    shifts = np.arange(-shift_px, shift_px + 1)
    for start in range(0, len(a), _BLOCK):
        left, right = (fft.rfft2(x[start : start + _BLOCK]) for x in (a, b))
        over_shifts = fft.irfft2(left * right.conj(), s=a.shape[-2:])
        best.append(over_shifts[:, shifts[:, None], shifts].max((1, 2)))
    return np.round(np.concatenate(best), 3) if best else np.zeros(0)


def _similar_pairs(prints, patients, config):
    """Of every two patients that look alike the rows i, j of their most similar slices, the most similar first.

    prints: fingerprints `(N, S, S)`; patients: `(N,)` integers.  Columns i, j, correlation, orientation.
    """
    thumbnails = _unit(_block_means(prints, _THUMBNAIL)).astype(np.float32)
    tables = []
    for k, orientation in enumerate(_ORIENTATIONS):
        flat = (t.reshape(len(prints), -1) for t in (thumbnails, _turn(thumbnails, k)))
        i, j = _alike(*flat, patients, config.coarse)
        correlation = _shifted_correlation(prints[i], _turn(prints[j], k), config.shift_px)
        low, high = np.sort([patients[i], patients[j]], axis=0)
        columns = {"i": i, "j": j, "correlation": correlation, "low": low, "high": high}
        tables.append(pd.DataFrame(columns).assign(orientation=orientation))
    pairs = pd.concat(tables, ignore_index=True)
    pairs = pairs.sort_values(["correlation", "i", "j"], ascending=[False, True, True], kind="stable")
    return pairs.drop_duplicates(["low", "high"])


def _near_duplicates(images, slices, config):
    """Leaks, and the most similar pair below the threshold, which shows whether it is in the right place."""
    prints = _fingerprints(images)
    pairs = _similar_pairs(prints, pd.factorize(slices["patient"])[0], config)
    patient, split = slices["patient"].to_numpy(), slices["split"].to_numpy()
    alike = pairs["correlation"] >= config.near_duplicate
    across = split[pairs["i"]] != split[pairs["j"]]

    def told(p):  # a row of `pairs`, in words
        share = f"correlation {p.correlation:.3f}, {p.orientation}, rows {p.i} and {p.j} of the slices"
        return {"patients": sorted(f"{patient[r]} ({split[r]})" for r in (p.i, p.j)), "share": share}

    count = slices["patient"].nunique()
    return {
        "compared": count * (count - 1) // 2,
        "leaks": [told(p) for p in pairs[alike & across][:_LISTED].itertuples()],
        "leaks_in_all": int((alike & across).sum()),
        "within_one_split": int((alike & ~across).sum()),
        "nearest_of_the_others": next(map(told, pairs[~alike].itertuples()), {}),
        "slices_without_structure": int((~prints.any((1, 2))).sum()),
    }


def _check_tables(patients, files, slices, arrays):
    """Raise ValueError unless the tables have their columns and hold the same patients."""
    for (name, columns), table in zip(_NEEDED.items(), (patients, files, slices), strict=True):
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


def audit(
    patients: pd.DataFrame,
    files: pd.DataFrame,
    slices: pd.DataFrame,
    images: np.ndarray,
    quantiles: np.ndarray,
    config: AuditConfig,
) -> dict:
    """All six checks → a dictionary for JSON, the same for the same data.

    patients: `cohort.included` rows.  files: one row per patient, with series_uid and sha256.  slices, images
    `(N, P, H, W)`, quantiles `(N, scopes, P, L)`: as `preprocess.prepare` writes them.
    """
    _check_tables(patients, files, slices, {"images": images, "quantiles": quantiles})
    owners = files.merge(patients[["patient", "split"]], on="patient")
    checks = {
        "patient": _same_patient(patients, slices),
        "series": _same_series(owners),
        "files": _overlap(owners.assign(key=owners["sha256"])),
        "pixels": _overlap(slices.assign(key=_digests(images))),
        "near_duplicates": _near_duplicates(images, slices, config),
        "statistics": _same_statistics(slices, quantiles),
    }
    return {
        "config": asdict(config),
        "patients": {str(k): int(n) for k, n in patients["split"].value_counts().sort_index().items()},
        "slices": len(slices),
        "passed": not any(c["leaks"] for c in checks.values()),
        "checks": checks,
    }


def check(result: dict) -> None:
    """Raise LeakageError that names the patients concerned, if any check of an audit failed."""
    lines = []
    for name, found in result["checks"].items():
        lines += [f"{name}: {' and '.join(x['patients'])} share {x['share']}" for x in found["leaks"][:5]]
        if len(found["leaks"]) > 5:
            lines.append(f"{name}: {found.get('leaks_in_all', len(found['leaks'])) - 5} more")
    if lines:
        raise LeakageError("leakage between splits:\n" + "\n".join(lines))
