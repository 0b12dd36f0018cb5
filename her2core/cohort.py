"""The patient table: who is in, who is out and why, and which split.

The split of I-SPY is the published one, BreastDCEDL's column `test`: 0 train, 1 test, 2 validation (one public
project swaps 1 and 2; the cross-table with HER2 shows that it is wrong).  A site whose patients are `external` is a
test set of its own.  Every patient keeps a row; one that cannot be used has a reason instead of a split.

Under folds an internal patient's split is "folds 3 8": its fold in each partition, numbered through, 0 to 4 and 5
to 9.  Its network has a fold as test split, the next as validation, and trains on the others: `dataset.seen_by`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from her2core.config import ENDPOINTS
from her2core.records import PATIENT_ID

SPLIT_OF_CODE = {0: "train", 1: "test", 2: "validation"}
_SPLITS = (*SPLIT_OF_CODE.values(), "external")
_LAYOUTS = ("breastdcedl", "dicom_analysis_mask", "dicom_roi", "own")
# the metadata's columns; one more, `reason`, says why a patient could not be obtained
_NEEDED = "pid dataset site layout split HER2 HR age menopause n_times pre post_early post_late".split()
_ALLOWED = {"HER2": (0, 1), "HR": (0, 1), "split": _SPLITS, "layout": _LAYOUTS}
_REAL = {"spy1": r"ISPY1_\d{4}", "spy2": r"(ISPY2-|ACRIN-6698-)\d{6}"}  # no synthetic identifier looks like these
PUBLISHED = {  # arXiv 2510.13897 and BreastDCEDL's tables
    "patients": 1149, "HER2-positive": 296, "spy1": 167, "spy2": 982, "train": 885, "validation": 132, "test": 132,
}  # fmt: skip


@dataclass(frozen=True)
class CohortConfig:
    """endpoint: what is predicted, one of ENDPOINTS.  folds: None takes the published split; k makes each internal
    patient a test patient, in one of k folds.  repeats: partitions into folds, which the seeds of a training take
    in turn.  seed: of the partitions."""

    endpoint: str
    folds: int | None = None
    repeats: int = 1
    seed: int = 2510

    def __post_init__(self):
        if (self.folds is not None and self.folds < 3) or self.repeats < 1 or self.seed < 0:
            raise ValueError(f"expected folds >= 3 or null, repeats >= 1 and seed >= 0, found {self}")
        if self.endpoint not in ENDPOINTS:
            raise ValueError(f"endpoint {self.endpoint!r}, expected one of {', '.join(ENDPOINTS)}")


def person(patient: str) -> str:
    """One text for all spellings of a patient's identifier: ACRIN-6698 is a part of I-SPY2, with its numbers, and
    MAMA-MIA writes ISPY2_100899 and DUKE_001."""
    text = re.sub("^(acrin-6698|ispy2)[-_]", "ispy2-", patient.casefold())
    return re.sub("^(duke|breast_mri)_", "duke-", text)


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
    may_lack = {"layout": _given_reasons(table) != ""}
    for column, allowed in _ALLOWED.items():
        bad = table[~table[column].isin(allowed) & ~(table[column].isna() & may_lack.get(column, True))]
        if len(bad):
            first = bad.iloc[0]
            raise ValueError(f"{first['pid']}: {column} is {first[column]}, expected one of {allowed}")
    if (nowhere := table[["dataset", "site"]].isna().any(axis=1)).any():
        raise ValueError(f"{table['pid'][nowhere].iloc[0]}: dataset or site is missing, expected both")
    external = table["split"].eq("external")
    mixed = table[table["dataset"].isin(table["dataset"][external]) & ~external]
    if len(mixed):
        row = mixed.iloc[0]
        found = f"{row['dataset']} is external, found split {row['split']}"
        raise ValueError(f"{row['pid']}: {found}; a site is one or none")


def _given_reasons(metadata):
    """The metadata's reasons why a patient could not be obtained; "" elsewhere."""
    given = metadata["reason"] if "reason" in metadata else pd.Series(index=metadata.index, dtype=object)
    return given.astype(object).where(given.notna(), "")


def _labels(metadata, endpoint):
    """The status of each patient, 1 or 0, NaN where unknown: the table's own, or from its receptors and
    response."""
    unknown = pd.Series(np.nan, metadata.index)
    known = {c: pd.to_numeric(metadata.get(c, unknown)).astype(float) for c in ("HER2", "HR", "pCR", "label")}
    neither = ((known["HER2"] == 0) & (known["HR"] == 0)).astype(float)
    either = (known["HER2"] == 1) | (known["HR"] == 1)
    known["triple_negative"] = neither.where(known["HER2"].notna() & known["HR"].notna() | either)
    names = {"her2": "HER2", "hr": "HR", "pcr": "pCR"}
    return known["label"].fillna(known[names.get(endpoint, endpoint)])


def _reason_out(row, endpoint):
    """Why a patient that was obtained cannot be used, or "" if it can."""
    if pd.isna(row["label"]):
        return ENDPOINTS[endpoint].unknown
    if pd.isna(row["n_times"]):
        return "number of phases unknown"
    if row["n_times"] < 3:
        return "fewer than three phases"
    if pd.isna(row["split"]):
        return "no split published"
    return ""


def patient_table(metadata: pd.DataFrame, endpoint: str = "her2") -> pd.DataFrame:
    """BreastDCEDL's columns → one row per patient, sorted: patient, dataset, layout, split, label, reason, …

    `label` is the status of the endpoint.  `split` is train, validation, test or external, and empty where `reason`
    says why the patient is out; `external` says whether the site is.  Raises ValueError for a table that cannot be
    true."""
    _check_table(metadata)
    metadata = metadata.assign(label=_labels(metadata, endpoint))
    given = _given_reasons(metadata)
    reason = given.where(given != "", metadata.apply(_reason_out, axis=1, endpoint=endpoint))
    split, external = metadata["split"].where(reason == ""), metadata["split"].eq("external")
    table = metadata.rename(columns={"pid": "patient", "HER2": "her2", "HR": "hr", "pCR": "pcr"})
    table = table.assign(split=split, external=external, reason=reason)
    return table.sort_values("patient", ignore_index=True)


def draw_folds(table: pd.DataFrame, config: CohortConfig) -> pd.DataFrame:
    """The patient table with folds as splits, or as it is where `config` has none.

    Patients of every label and site are dealt out in turn.  ValueError where a class is too small for all folds."""
    if (k := config.folds) is None:
        return table
    use = _internal(table[table["split"].notna()])
    if (fewest := min(int((use["label"] == label).sum()) for label in (0, 1))) < k:
        raise ValueError(f"{fewest} patients of a class, expected {k} or more for {k} folds; lower cohort.folds")
    split = pd.Series("folds", use.index)
    for repeat in range(config.repeats):
        rng = np.random.default_rng([config.seed, repeat])
        order = np.concatenate([rng.permutation(part.index) for _, part in use.groupby(["label", "site"])])
        split[order] += [f" {repeat * k + place % k}" for place in range(len(order))]
    return table.assign(split=split.reindex(table.index).fillna(table["split"]))


def check_classes(table: pd.DataFrame) -> None:
    """Raise ValueError where train, validation or test has fewer than two patients of either class."""
    for split, part in included(table).groupby("split"):
        positives, anew = int(part["label"].sum()), "add patients or draw anew (acquire.seed, acquire.shares)"
        if split in ("train", "validation", "test") and min(positives, len(part) - positives) < 2:
            found = f"{positives} of {len(part)} patients are positive"
            raise ValueError(f"split {split}: {found}, expected two or more of either class; {anew}")


def kind_of(split: Iterable[str]) -> np.ndarray:
    """Splits `(n,)` without the numbers of folds: train, validation, test, external or folds."""
    return np.array([text.partition(" ")[0] for text in split], object)


def included(table: pd.DataFrame) -> pd.DataFrame:
    """The patients that have a split; their labels as integers."""
    return table[table["split"].notna()].astype({"label": int}).reset_index(drop=True)


def _internal(table):
    return table[~table["external"].astype(bool)]


def is_real(table: pd.DataFrame) -> bool:
    """Whether any internal patient has an identifier of I-SPY."""
    internal = _internal(table)[["dataset", "patient"]].to_numpy()
    return any(d in _REAL and re.fullmatch(_REAL[d], p) for d, p in internal)


def is_complete(table: pd.DataFrame) -> bool:
    """Whether this is the whole real cohort: both collections, and only an unknown HER2 status excludes anybody."""
    known = _internal(table)[_internal(table)["label"].notna()]
    return is_real(table) and set(known["dataset"]) == set(_REAL) and bool(known["split"].notna().all())


def check_published_counts(table: pd.DataFrame) -> None:
    """Raise ValueError unless patients, HER2-positives, collections and splits have the published numbers."""
    use = _internal(included(table))
    found = {"patients": len(use), "HER2-positive": int(use["label"].sum())}
    for column in ("dataset", "split"):
        found |= use[column].value_counts().to_dict()
    wrong = [f"{k}: expected {n}, found {found.get(k, 0)}" for k, n in PUBLISHED.items() if found.get(k, 0) != n]
    if wrong:
        raise ValueError(f"not the published cohort; {'; '.join(wrong)}")


def _missing_of_published(table):
    """How many of the published patients are not in use, and why.  Those of unknown HER2 status never were."""
    part = _internal(table)
    out = _kinds(part.loc[part["label"].notna() & part["split"].isna(), "reason"])
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
        split: {"patients": len(part), "positives": int(part["label"].sum())}
        for split, part in use.groupby(kind_of(use["split"]), sort=True)
    }
    out = _kinds(table.loc[table["reason"] != "", "reason"])
    return {"patients": len(table), "included": len(use), "excluded": out, "splits": per_split}


def flow(table: pd.DataFrame, endpoint: str = "her2") -> dict:
    """The flow of patients, overall and by collection; of a real cohort also what it lacks of the published one."""
    by_collection = {dataset: _count(part) for dataset, part in table.groupby("dataset", sort=True)}
    counts = _count(table) | {"collections": by_collection}
    is_paper = endpoint == "her2" and is_real(table)
    return counts | {"of_published": _missing_of_published(table)} if is_paper else counts


def _values(column):
    """How often each value occurs, in words."""
    return "; ".join(f"{str(v).removesuffix('.0')} {n}" for v, n in column.value_counts().sort_index().items())


def _lacking(column):
    return int(column.isna().sum())


def table_one(table: pd.DataFrame, endpoint: str = "her2") -> pd.DataFrame:
    """Table 1: per split and collection the patients, events and clinical margins, each with what is missing.

    The label is never missing here: a patient without it is out.  Age in years, median and quartiles."""
    use = included(table)
    grouped = use.assign(split=kind_of(use["split"])).groupby(["split", "dataset"], sort=True)
    columns = {  # of the endpoint hr one key twice
        "patients": ("patient", "size"),
        f"{endpoint}_positive": ("label", "sum"),
        "hr_positive": ("hr", lambda v: int(v.sum())),
        "hr_missing": ("hr", _lacking),
        "age_median": ("age", "median"),
        "age_q1": ("age", lambda v: v.quantile(0.25)),
        "age_q3": ("age", lambda v: v.quantile(0.75)),
        "age_missing": ("age", _lacking),
        "menopause": ("menopause", _values),
        "menopause_missing": ("menopause", _lacking),
    }
    return grouped.agg(**columns).reset_index()
