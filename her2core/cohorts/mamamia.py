"""MAMA-MIA's release (Sci Data 12:453, CC BY-NC 4.0) → a table for `source: folder`:

    python -m her2core.cohorts.mamamia FOLDER [ENDPOINT]

ENDPOINT is what the labels say, as `cohort.endpoint` of the study: her2 (without it), hr, triple_negative or pcr.
FOLDER is the release as its user downloaded it: images/<ID>/<id>_000k.nii.gz, segmentations/expert/<id>.nii.gz,
clinical_and_imaging_info.xlsx, train_test_splits.csv.  The table, FOLDER/patients.csv, has a line for each patient
with expert segmentation; phases are those nearest to the wanted times by the sheet's acquisition_times.  The
release has no validation patients: they are drawn from its training patients, evenly over sites and labels."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from her2core.cohorts.ambl import workbook
from her2core.cohorts.own import draw_splits
from her2core.cohorts.tables import by_patient, need_columns, plain_text, read_texts, refuse
from her2core.config import ENDPOINTS
from her2core.formats.boundary import reading
from her2core.formats.volume import PHASE_COLUMNS, nearest_phases
from her2core.records import whole

_SHEET, _ID = "dataset_info", r"(ISPY1|ISPY2|DUKE|NACT)_\w{2,12}"
_NEEDED = ("patient_id", "dataset", "her2", "hr", "pcr", "age", "menopause", "acquisition_times", "tcia_series_uid")
_SITES = {"DUKE": "Duke", "ISPY1": "I-SPY1", "ISPY2": "I-SPY2", "NACT": "NACT"}
_VALIDATION, _SEED = 0.15, 1  # share of the training patients; of their draw
_EARLY_S, _LATE_S = 150.0, 450.0


def _read_info(path: Path) -> pd.DataFrame:
    """The sheet `dataset_info` as text, indexed by patient."""
    with reading(path, f"an .xlsx spreadsheet with a sheet {_SHEET}", "download it again"):
        header, *rows = workbook(path)[_SHEET]
        table = pd.DataFrame(rows, columns=[str(h).strip().lower() for h in header], dtype=object).map(plain_text)
    need_columns(table, _NEEDED, path)
    return by_patient(table.assign(patient_id=table["patient_id"].str.upper()), "patient_id", _ID, path)


def _masks(folder):
    """{patient: expert mask}."""
    return {path.name.partition(".")[0].upper(): path for path in folder.glob("segmentations/expert/*.nii.gz")}


def masks_by_series(folder: Path) -> dict[str, Path]:
    """{SeriesInstanceUID of the first phase: expert mask}: so that masks can be laid on images of the archive."""
    info = _read_info(folder / "clinical_and_imaging_info.xlsx")
    return {info.loc[p, "tcia_series_uid"]: path for p, path in _masks(folder).items() if p in info.index}


def _phases_of(text):
    """The columns pre, post_early and post_late, and the times, of a list like "[0, 584, 714]"."""
    with reading(Path("acquisition_times"), "three or more numbers like [0, 90, 180] in seconds"):
        seconds = [float(s) for s in json.loads("[]" if pd.isna(text) else text)]
        if len(seconds) < 3:
            raise ValueError(f"{len(seconds)} phases")
        chosen = list(nearest_phases(seconds, _EARLY_S, _LATE_S)) if len(seconds) > 3 else [0, 1, 2]
    early_s, late_s = (round(seconds[k] - seconds[0], 3) for k in chosen[1:])
    return dict(zip(PHASE_COLUMNS, chosen, strict=True)) | {"early_s": early_s, "late_s": late_s}


def _phases(times):
    """`_phases_of` each patient, with its warnings; nothing, and a warning, where a list tells no three phases."""
    found, doubts = {patient: {} for patient in times.index}, []
    for patient, text in times.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found[patient] = _phases_of(text)
            except ValueError as error:
                doubts.append(f"{patient}: {error}; name its phases in the table, or leave it out")
        doubts += [f"{patient}: {doubt.message}" for doubt in caught]
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=3)
    table = pd.DataFrame.from_dict(found, orient="index", columns=[*PHASE_COLUMNS, "early_s", "late_s"])
    return table.astype(dict.fromkeys(PHASE_COLUMNS, "Int64"))


def _labels(info, endpoint):
    """1 or 0 as text, missing where unknown."""
    if endpoint != "triple_negative":
        return info[endpoint]
    known = info[["her2", "hr"]]
    either, neither = (known == "1").any(axis=1), (known == "0").all(axis=1)
    return pd.Series(np.select([either, neither], ["0", "1"], None), info.index)


def _published(path, patients):
    """train or test of each patient."""
    table = read_texts(path)
    need_columns(table, ("train_split", "test_split"), path)
    named = {split: set(table[f"{split}_split"].dropna().str.upper()) for split in ("train", "test")}
    if both := named["train"] & named["test"]:
        raise ValueError(f"{path}: {min(both)} is in training and test")
    split = patients.to_series().map({p: split for split, listed in named.items() for p in listed})
    refuse(split.isna(), patients.to_series(), "patient", "one of train_split or test_split", path)
    return split


def table_of(folder: Path, endpoint: str = "her2") -> pd.DataFrame:
    """The table for `source: folder`, its labels of one of `ENDPOINTS`; ValueError where the release contradicts
    itself or has not what it should."""
    path = folder / "clinical_and_imaging_info.xlsx"
    info = _read_info(path)
    images = {p.name.upper(): p for p in folder.glob("images/*") if p.is_dir()}
    masks = _masks(folder)
    here = info.index.intersection(sorted(images.keys() & masks.keys()))
    if here.empty:
        raise ValueError(f"{folder}: no patient with images/<ID>/ and segmentations/expert/<id>.nii.gz")
    info = info.loc[here]
    table = pd.DataFrame({"site": info["dataset"].str.upper().map(_SITES), "label": _labels(info, endpoint)})
    table["dce"] = [images[p].relative_to(folder).as_posix() for p in here]
    table["mask"] = [masks[p].relative_to(folder).as_posix() for p in here]
    table = table.join(_phases(info["acquisition_times"]))
    table["hr"], table["age"] = info["hr"], info["age"]
    table["menopause"] = info["menopause"].str.extract("(?i)(pre|post)")[0].str.lower()
    split = _published(folder / "train_test_splits.csv", here)
    train = table[split == "train"].assign(split=None)
    split.update(draw_splits(train, (1 - _VALIDATION, _VALIDATION, 0.0), _SEED))
    table.insert(1, "split", split)
    return table.rename_axis("patient").reset_index()


def main(arguments: list[str]) -> None:
    """The command line."""
    folder, endpoint, *more = map(str, [*arguments, *["", "her2"][len(arguments) :]])
    if more or not folder or folder.startswith("-") or endpoint not in ENDPOINTS:
        sys.exit(__doc__)
    folder, warnings.showwarning = Path(folder), lambda message, *_: print(f"mamamia: {message}", file=sys.stderr)
    try:
        table = table_of(folder, endpoint)
        with whole(folder / "patients.csv") as part:
            table.to_csv(part, index=False)
    except (ValueError, OSError) as error:
        sys.exit(f"mamamia: {error}")
    print(f"{folder / 'patients.csv'}: {len(table)} patients; acquire.table in studies/<name>/params.yaml")


if __name__ == "__main__":
    main(sys.argv[1:])
