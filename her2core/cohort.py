"""The patient table: who is in, who is out and why, and which split.

The split is the published one, BreastDCEDL's column `test`: 0 train, 1 test, 2 validation (one public project
swaps 1 and 2; the cross-table with HER2 shows that it is wrong).  Every patient keeps a row; one that cannot
be used has a reason instead of a split.
"""

import re

import pandas as pd

from her2core.records import PATIENT_ID

_SPLITS = {0: "train", 1: "test", 2: "validation"}
COLLECTIONS = {"spy1": "I-SPY1", "spy2": "I-SPY2", "ambl": "AMBL"}  # dataset: its name; the last is external
EXTERNAL = "ambl"
_LAYOUTS = ("breastdcedl", "dicom_analysis_mask", "dicom_roi")
# the metadata's columns; one more, `reason`, says why a patient could not be obtained
_NEEDED = "pid dataset layout test HER2 HR age menopause n_times pre post_early post_late".split()
_ALLOWED = {"HER2": (0, 1), "HR": (0, 1), "test": tuple(_SPLITS), "dataset": tuple(COLLECTIONS), "layout": _LAYOUTS}
_REAL = {"spy1": r"ISPY1_\d{4}", "spy2": r"(ISPY2-|ACRIN-6698-)\d{6}"}  # no synthetic identifier looks like these
PUBLISHED = {  # arXiv 2510.13897 and BreastDCEDL's tables
    "patients": 1149, "HER2-positive": 296, "spy1": 167, "spy2": 982, "train": 885, "validation": 132, "test": 132,
}  # fmt: skip


def person(patient: str) -> str:
    """One text for all spellings of a patient's identifier: ACRIN-6698 is a part of I-SPY2, with its numbers."""
    return re.sub("^acrin-6698-", "ispy2-", patient.casefold())


def _check_identifiers(patients):
    """Raise ValueError unless each identifier can be a folder's name and stands for a patient of its own."""
    for patient in patients:
        if not (isinstance(patient, str) and re.fullmatch(PATIENT_ID, patient)):
            raise ValueError(
                f"patient identifier cannot be {patient!r}: expected 1 to 64 letters, digits, _ or -, not starting "
                "with a dash, because it becomes a folder's name"
            )
    if double := patients[patients.map(person).duplicated(keep=False)].tolist():
        raise ValueError(f"every patient needs one row and one identifier; repeated: {double}")


def _check_table(table):
    """Raise ValueError for columns, identifiers, labels, sites or splits that cannot be true."""
    if missing := set(_NEEDED) - set(table.columns):
        raise ValueError(f"patient table lacks {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    _check_identifiers(table["pid"])
    may_lack = {"dataset": False, "layout": _given_reasons(table) != ""}
    for column, allowed in _ALLOWED.items():
        bad = table[~table[column].isin(allowed) & ~(table[column].isna() & may_lack.get(column, True))]
        if len(bad):
            first = bad.iloc[0]
            raise ValueError(f"{first['pid']}: {column} is {first[column]}, expected one of {allowed}")
    split = table[(table["dataset"] == EXTERNAL) & table["test"].notna()]
    if len(split):
        row = split.iloc[0]
        raise ValueError(f"{row['pid']}: an external patient is in no published split, found test {row['test']}")


def _given_reasons(metadata):
    """The metadata's reasons why a patient could not be obtained; "" elsewhere."""
    given = metadata["reason"] if "reason" in metadata else pd.Series(index=metadata.index, dtype=object)
    return given.astype(object).where(given.notna(), "")


def _reason_out(row):
    """Why a patient that was obtained cannot be used, or "" if it can."""
    if pd.isna(row["HER2"]):
        return "HER2 unknown"
    if pd.isna(row["n_times"]):
        return "number of phases unknown"
    if row["n_times"] < 3:
        return "fewer than three phases"
    if row["dataset"] != EXTERNAL and pd.isna(row["test"]):
        return "no split published"
    return ""


def patient_table(metadata: pd.DataFrame) -> pd.DataFrame:
    """BreastDCEDL's columns → one row per patient, sorted: patient, dataset, layout, split, her2, reason, …

    `split` is train, validation, test or external, and empty where `reason` says why the patient is out.  Raises
    ValueError for a table that cannot be true.
    """
    _check_table(metadata)
    given = _given_reasons(metadata)
    reason = given.where(given != "", metadata.apply(_reason_out, axis=1))
    split = metadata["test"].map(_SPLITS).where(metadata["dataset"] != EXTERNAL, "external")
    renamed = metadata.rename(columns={"pid": "patient", "HER2": "her2", "HR": "hr"}).drop(columns="test")
    table = renamed.assign(split=split.where(reason == ""), reason=reason)
    return table.sort_values("patient", ignore_index=True)


def included(table: pd.DataFrame) -> pd.DataFrame:
    """The patients that have a split; their HER2 status as integers."""
    return table[table["split"].notna()].astype({"her2": int}).reset_index(drop=True)


def _internal(table):
    return table[table["dataset"] != EXTERNAL]


def is_real(table: pd.DataFrame) -> bool:
    """Whether any internal patient has an identifier of I-SPY."""
    return any(re.fullmatch(_REAL[d], p) for d, p in _internal(table)[["dataset", "patient"]].to_numpy())


def is_complete(table: pd.DataFrame) -> bool:
    """Whether this is the whole real cohort: both collections, and only an unknown HER2 status excludes anybody."""
    known = _internal(table)[_internal(table)["her2"].notna()]
    return is_real(table) and set(known["dataset"]) == set(_REAL) and bool(known["split"].notna().all())


def check_published_counts(table: pd.DataFrame) -> None:
    """Raise ValueError unless patients, HER2-positives, collections and splits have the published numbers."""
    use = _internal(included(table))
    found = {"patients": len(use), "HER2-positive": int(use["her2"].sum())}
    for column in ("dataset", "split"):
        found |= use[column].value_counts().to_dict()
    wrong = [f"{k}: expected {n}, found {found.get(k, 0)}" for k, n in PUBLISHED.items() if found.get(k, 0) != n]
    if wrong:
        raise ValueError(f"not the published cohort; {'; '.join(wrong)}")


def _missing_of_published(table):
    """How many of the published patients are not in use, and why.  Those of unknown HER2 status never were."""
    part = _internal(table)
    out = _kinds(part.loc[part["her2"].notna() & part["split"].isna(), "reason"])
    published = PUBLISHED["patients"]
    absent = published - int(part["split"].notna().sum()) - sum(out.values())
    if absent < 0:
        raise ValueError(f"expected at most {published} patients with HER2 status, found {-absent} more")
    reasons = out | ({"not in the table": absent} if absent else {})
    return {"published": published, "missing": sum(reasons.values()), "reasons": reasons}


def _kinds(reasons):
    """{reason: patients}; what follows a colon is about one patient only and left out."""
    return reasons.str.split(":").str[0].value_counts().sort_index().to_dict()


def _count(table):
    """Patients in, out with reasons, and per split, as nested counts that add up."""
    use = included(table)
    per_split = {
        split: {"patients": len(part), "her2_positive": int(part["her2"].sum())}
        for split, part in use.groupby("split", sort=True)
    }
    out = _kinds(table.loc[table["reason"] != "", "reason"])
    return {"patients": len(table), "included": len(use), "excluded": out, "splits": per_split}


def flow(table: pd.DataFrame) -> dict:
    """The flow of patients, overall and by collection; of a real cohort also what it lacks of the published one."""
    by_collection = {dataset: _count(part) for dataset, part in table.groupby("dataset", sort=True)}
    counts = _count(table) | {"collections": by_collection}
    return counts | {"of_published": _missing_of_published(table)} if is_real(table) else counts


def _values(column):
    """How often each value occurs, in words."""
    return "; ".join(f"{str(v).removesuffix('.0')} {n}" for v, n in column.value_counts().sort_index().items())


def _lacking(column):
    return int(column.isna().sum())


def table_one(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1: per split and collection the patients, events and clinical margins, each with what is missing.

    HER2 status is never missing here: a patient without it is out.  Age in years, median and quartiles.
    """
    grouped = included(table).groupby(["split", "dataset"], sort=True)
    return grouped.agg(
        patients=("patient", "size"),
        her2_positive=("her2", "sum"),
        hr_positive=("hr", lambda v: int(v.sum())),
        hr_missing=("hr", _lacking),
        age_median=("age", "median"),
        age_q1=("age", lambda v: v.quantile(0.25)),
        age_q3=("age", lambda v: v.quantile(0.75)),
        age_missing=("age", _lacking),
        menopause=("menopause", _values),
        menopause_missing=("menopause", _lacking),
    ).reset_index()
