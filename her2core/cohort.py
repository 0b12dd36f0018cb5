"""The patient table: who is in, who is out and why, and which split.

The split is the published one, BreastDCEDL's column `test`: 0 train, 1 test, 2 validation (one public project
swaps 1 and 2; the cross-table with HER2 shows that it is wrong).  Every patient keeps a row; one that cannot
be used has a reason instead of a split.
"""

import re
from textwrap import fill

import pandas as pd

from her2core.cohorts import manifest

SPLITS = {0: "train", 1: "test", 2: "validation"}
SPLIT_ORDER = ("train", "validation", "test")
COLLECTIONS = {"spy1": "I-SPY1", "spy2": "I-SPY2", "ambl": "AMBL"}  # dataset: its name; the last is external
EXTERNAL = "ambl"
LAYOUTS = ("breastdcedl", "dicom_analysis_mask", "dicom_roi")
# of the metadata; a further column, `reason`, says why a patient could not be had
NEEDED = "pid dataset layout test HER2 HR age menopause n_times pre post_early post_late".split()
ALLOWED = {"HER2": (0, 1), "HR": (0, 1), "test": tuple(SPLITS), "dataset": tuple(COLLECTIONS), "layout": LAYOUTS}
IDENTIFIER = re.compile(manifest.COLUMNS["patient"][1])
REAL = {"spy1": r"ISPY1_\d{4}", "spy2": r"(ISPY2-|ACRIN-6698-)\d{6}"}  # of synthetic cohorts none looks so
PUBLISHED = {  # arXiv 2510.13897 and BreastDCEDL's tables
    "patients": 1149, "HER2-positive": 296, "spy1": 167, "spy2": 982, "train": 885, "validation": 132, "test": 132,
}  # fmt: skip
UNKNOWN = "HER2 unknown"


# --- the table ----------------------------------------------------------------------------------------------


def person(patient):
    """What all spellings of one patient's identifier share: ACRIN-6698 is a part of I-SPY2, with its numbers."""
    return re.sub("^acrin-6698-", "ispy2-", patient.casefold())


def check_identifiers(patients):
    """Raise ValueError unless each identifier can be a folder's name and stands for a patient of its own."""
    for patient in patients:
        if not (isinstance(patient, str) and IDENTIFIER.fullmatch(patient)):
            raise ValueError(
                f"patient identifier cannot be {patient!r}: expected 1 to 64 letters, digits, _ or -, "
                "the first not a dash, because it becomes a folder's name"
            )
    double = patients[patients.map(person).duplicated(keep=False)].tolist()
    if double:
        raise ValueError(f"every patient needs one row and one identifier; repeated: {double}")


def check_table(table):
    """Raise ValueError on columns, identifiers, labels, sites or splits that cannot be true."""
    if missing := set(NEEDED) - set(table.columns):
        raise ValueError(f"patient table lacks {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    check_identifiers(table["pid"])
    obtained = given_reasons(table) == ""
    may_lack = {"dataset": False, "layout": ~obtained}
    for column, allowed in ALLOWED.items():
        bad = table[~table[column].isin(allowed) & ~(table[column].isna() & may_lack.get(column, True))]
        if len(bad):
            first = bad.iloc[0]
            raise ValueError(f"{first['pid']}: {column} is {first[column]}, expected one of {allowed}")
    split = table[(table["dataset"] == EXTERNAL) & table["test"].notna()]
    if len(split):
        first = split.iloc[0]
        raise ValueError(
            f"{first['pid']}: an external patient is in no published split, found test {first['test']}"
        )


def given_reasons(metadata):
    """Why a patient could not be had, as the metadata tell it; "" elsewhere."""
    given = metadata["reason"] if "reason" in metadata else pd.Series(index=metadata.index, dtype=object)
    return given.astype(object).where(given.notna(), "")


def reason_out(row):
    """Why a patient that could be had cannot be used, or "" if it can."""
    if pd.isna(row["HER2"]):
        return UNKNOWN
    if pd.isna(row["n_times"]):
        return "number of phases unknown"
    if row["n_times"] < 3:
        return "fewer than three phases"
    if row["dataset"] != EXTERNAL and pd.isna(row["test"]):
        return "no split published"
    return ""


def patient_table(metadata):
    """BreastDCEDL's columns → one row per patient, sorted: patient, dataset, layout, split, her2, reason, …

    `split` is train, validation, test or external, and empty where `reason` says why the patient is out.
    """
    check_table(metadata)
    given = given_reasons(metadata)
    reason = given.where(given != "", metadata.apply(reason_out, axis=1))
    split = metadata["test"].map(SPLITS).where(metadata["dataset"] != EXTERNAL, "external")
    renamed = metadata.rename(columns={"pid": "patient", "HER2": "her2", "HR": "hr"}).drop(columns="test")
    table = renamed.assign(split=split.where(reason == ""), reason=reason)
    return table.sort_values("patient", ignore_index=True)


def included(table):
    """The patients that have a split; their HER2 status as integers."""
    return table[table["split"].notna()].astype({"her2": int}).reset_index(drop=True)


# --- the published cohort -----------------------------------------------------------------------------------


def internal(table):
    return table[table["dataset"] != EXTERNAL]


def is_real(table):
    """Whether any internal patient has an identifier of I-SPY."""
    return any(re.fullmatch(REAL[d], p) for d, p in internal(table)[["dataset", "patient"]].to_numpy())


def is_complete(table):
    """Whether this is the whole real cohort: both collections, and nobody out but for an unknown HER2 status."""
    known = internal(table)[internal(table)["her2"].notna()]
    return is_real(table) and set(known["dataset"]) == set(REAL) and bool(known["split"].notna().all())


def check_published_counts(table):
    """Raise ValueError unless patients, HER2-positives, collections and splits have the published numbers."""
    use = internal(included(table))
    found = {"patients": len(use), "HER2-positive": int(use["her2"].sum())}
    for column in ("dataset", "split"):
        found |= use[column].value_counts().to_dict()
    wrong = [f"{k}: expected {n}, found {found.get(k, 0)}" for k, n in PUBLISHED.items() if found.get(k, 0) != n]
    if wrong:
        raise ValueError(f"not the published cohort; {'; '.join(wrong)}")


def missing_of_published(table):
    """How many of the published patients are not in use, and why; patients of unknown HER2 status were never."""
    part = internal(table)
    out = kinds(part.loc[part["her2"].notna() & part["split"].isna(), "reason"])
    absent = PUBLISHED["patients"] - int(part["split"].notna().sum()) - sum(out.values())
    if absent < 0:
        raise ValueError(
            f"expected at most {PUBLISHED['patients']} patients with HER2 status, found {-absent} more"
        )
    reasons = out | ({"not in the table": absent} if absent else {})
    return {"published": PUBLISHED["patients"], "missing": sum(reasons.values()), "reasons": reasons}


# --- flow and Table 1 ---------------------------------------------------------------------------------------


def kinds(reasons):
    """Reason → patients; what a reason says after a colon is about one patient only."""
    return reasons.str.split(":").str[0].value_counts().sort_index().to_dict()


def count(table):
    """Patients in, out with reasons, and per split, as nested counts that add up."""
    use = included(table)
    per_split = {
        split: {"patients": len(part), "her2_positive": int(part["her2"].sum())}
        for split, part in use.groupby("split", sort=True)
    }
    out = kinds(table.loc[table["reason"] != "", "reason"])
    return {"patients": len(table), "included": len(use), "excluded": out, "splits": per_split}


def flow(table):
    """The flow of patients, overall and by collection; of a real cohort also what it lacks of the published one."""
    by_collection = {dataset: count(part) for dataset, part in table.groupby("dataset", sort=True)}
    whole = count(table) | {"collections": by_collection}
    return whole | {"of_published": missing_of_published(table)} if is_real(table) else whole


def flow_texts(here):
    """Of one collection's counts what the boxes of the diagram say: out with reasons, splits."""
    out = [f"out: {here['patients'] - here['included']}"]
    out += [fill(f"{n} {why}", 18, subsequent_indent="   ") for why, n in here["excluded"].items()]
    splits = [
        f"{split}: {here['splits'][split]['patients']} ({here['splits'][split]['her2_positive']} HER2+)"
        for split in (*SPLIT_ORDER, "external")
        if split in here["splits"]
    ]
    return "\n".join(out), "\n".join(splits or ["nobody"])


def draw_flow(axes, counts):
    """Flow diagram into empty axes: a column per collection, those out to the right.  counts: from `flow`."""
    axes.set(xlim=(0, len(counts["collections"])), ylim=(0, 1))
    axes.set_axis_off()
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": "0.3"}
    style = {"ha": "center", "va": "center", "fontsize": 7, "multialignment": "left", "bbox": box}
    down = {"arrowprops": {"arrowstyle": "<|-", "color": "0.3"}}  # head at the text, tail under the box drawn later
    aside = {"ha": "left", "arrowprops": down["arrowprops"] | {"relpos": (0, 0.5)}}
    for left, dataset in enumerate(d for d in COLLECTIONS if d in counts["collections"]):
        here, x = counts["collections"][dataset], left + 0.28
        out, splits = flow_texts(here)
        axes.annotate(splits, (x, 0.37), (x, 0.10), **style | down)
        axes.annotate(f"in use\nn = {here['included']}", (x, 0.92), (x, 0.37), **style | down)
        axes.annotate(out, (x, 0.64), (left + 0.48, 0.64), **style | aside)
        axes.text(x, 0.92, f"{COLLECTIONS[dataset]}\nn = {here['patients']}", **style)


def values(column):
    """How often each value occurs, in words."""
    return "; ".join(f"{str(v).removesuffix('.0')} {n}" for v, n in column.value_counts().sort_index().items())


def lacking(column):
    return int(column.isna().sum())


def table_one(table):
    """Table 1: per split and collection the patients, events and clinical margins, each with what is missing.

    HER2 status is missing for nobody here: without it a patient is out.  Age in years, median and quartiles.
    """
    grouped = included(table).groupby(["split", "dataset"], sort=True)
    return grouped.agg(
        patients=("patient", "size"),
        her2_positive=("her2", "sum"),
        hr_positive=("hr", lambda v: int(v.sum())),
        hr_missing=("hr", lacking),
        age_median=("age", "median"),
        age_q1=("age", lambda v: v.quantile(0.25)),
        age_q3=("age", lambda v: v.quantile(0.75)),
        age_missing=("age", lacking),
        menopause=("menopause", values),
        menopause_missing=("menopause", lacking),
    ).reset_index()
