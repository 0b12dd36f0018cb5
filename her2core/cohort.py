"""The patient table: who is in, who is out and why, which split.

The split is the published one, BreastDCEDL's column `test`: 0 train, 1 test, 2 validation (one public project
swaps 1 and 2; the cross-table with HER2 shows that it is wrong).  Every patient keeps a row; one that cannot
be used has a reason instead of a split.
"""

import pandas as pd

SPLITS = {0: "train", 1: "test", 2: "validation"}
LAYOUTS = {"spy2": "dicom_analysis_mask", "spy1": "breastdcedl", "ambl": "dicom_roi"}
EXTERNAL = "ambl"
NEEDED = ("pid", "dataset", "test", "HER2", "HR", "age", "menopause", "n_times", "pre", "post_early", "post_late")


def reason_out(row):
    """Why a patient cannot be used, or "" if it can."""
    if pd.isna(row["HER2"]):
        return "HER2 unknown"
    if row["n_times"] < 3:
        return "fewer than three phases"
    if row["dataset"] != EXTERNAL and pd.isna(row["test"]):
        return "no split published"
    return ""


def check_table(table):
    """Raise ValueError on columns, labels, sites or identifiers that cannot be true."""
    if missing := set(NEEDED) - set(table.columns):
        raise ValueError(f"patient table lacks {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    for column, allowed in {"HER2": (0, 1), "test": tuple(SPLITS), "dataset": tuple(LAYOUTS)}.items():
        bad = table[~table[column].isin(allowed) & table[column].notna()]
        if len(bad):
            first = bad.iloc[0]
            raise ValueError(f"{first['pid']}: {column} is {first[column]}, expected one of {allowed}")
    if table["pid"].isna().any() or table["pid"].duplicated().any():
        double = table.loc[table["pid"].duplicated(), "pid"].tolist()
        raise ValueError(f"every patient needs one row and one identifier; repeated: {double}")


def patient_table(metadata):
    """BreastDCEDL's columns → one row per patient, sorted: patient, dataset, layout, split, her2, reason, …

    `split` is train, validation, test or external, and empty where `reason` says why the patient is out.
    """
    check_table(metadata)
    reason = metadata.apply(reason_out, axis=1)
    split = metadata["test"].map(SPLITS).where(metadata["dataset"] != EXTERNAL, "external")
    renamed = metadata.rename(columns={"pid": "patient", "HER2": "her2", "HR": "hr"}).drop(columns="test")
    table = renamed.assign(layout=renamed["dataset"].map(LAYOUTS), split=split.where(reason == ""), reason=reason)
    return table.sort_values("patient", ignore_index=True)


def included(table):
    """The patients that have a split; their HER2 status as integers."""
    return table[table["split"].notna()].astype({"her2": int}).reset_index(drop=True)


def flow(table):
    """Patients in, out with reasons, and per split, as nested counts that add up."""
    use = included(table)
    out = table.loc[table["reason"] != "", "reason"].value_counts().sort_index()
    per_split = {
        split: {"patients": len(part), "her2_positive": int(part["her2"].sum())}
        for split, part in use.groupby("split", sort=True)
    }
    return {"patients": len(table), "included": len(use), "excluded": out.to_dict(), "splits": per_split}


def table_one(table):
    """Table 1: per split and site the patients, events and clinical margins, with what is missing."""
    grouped = included(table).groupby(["split", "dataset"], sort=True)
    return grouped.agg(
        patients=("patient", "size"),
        her2_positive=("her2", "sum"),
        hr_positive=("hr", "sum"),
        hr_missing=("hr", lambda v: int(v.isna().sum())),
        age_median=("age", "median"),
        age_missing=("age", lambda v: int(v.isna().sum())),
    ).reset_index()
