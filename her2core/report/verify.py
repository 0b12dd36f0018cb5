"""Somebody else's predictions on a study's patients, beside the study's and the paper's:  her2 verify PREDICTIONS

Whether they are of all patients of a split, and of no others, its digest in splits.json tells, so no identifier
need be passed on.  Labels are the study's where they are at hand, else those of the predictions.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from her2core.auc import EvaluateConfig, bootstrap_auc
from her2core.cohort import kind_of, person
from her2core.config import BANNER, Study, lookup
from her2core.evaluate import folds_of, matrix, read_predictions
from her2core.formats.boundary import reading
from her2core.paired import bootstrap_difference
from her2core.report.sources import identifiers_digest

_COLUMNS = "a CSV with columns patient and probability (0 to 1), and perhaps label, run, seed, split, site, fold"
_PAPER = {"test": ("internal", "test"), "AMBL": ("external", "external")}  # split → part and key of reported.csv
_ASK = {  # what else has to be known of other predictions, and where this study says it
    "the window, and whether its quantiles are of a slice, a phase or all phases": "train.window",
    "the phases: seconds of the early and late one where no table names them": "prepare.early_s prepare.late_s",
    "the crop around the lesion, in mm and pixels": "prepare.crop_mm prepare.crop_px",
    "N4 or not, and one field for all phases or one for each": "prepare.bias_fields prepare.n4.field",
    "slices of a patient, and how they become one probability": "prepare.slices train.aggregate",
    "the threshold, and on whom it was chosen (here Youden's, each seed's on validation patients)": "",
    "the masks: those of I-SPY2 are 0 inside the tumour": "",
    "on whom it was trained: none of these patients, nor chosen on them": "",
}


def _read(path):
    """The predictions: patient as `cohort.person` spells it, said as the file does, run and seed filled in."""
    with reading(path, _COLUMNS):
        table = pd.read_csv(path, dtype={"patient": str, "run": str, "split": str}, index_col=False)
        if lacking := [name for name in ("patient", "probability") if name not in table]:
            raise ValueError(f"no column {' and '.join(lacking)} among {', '.join(map(str, table.columns))}")
        if table.empty:
            raise ValueError("no rows")
        needed = table.columns.intersection(["patient", "probability", "label", "run", "seed", "split"])
        if table[needed].isna().any(axis=None):
            raise ValueError(f"empty cells in {', '.join(c for c in needed if table[c].isna().any())}")
        values = pd.to_numeric(table["probability"])
        if (bad := ~values.between(0, 1)).any():
            one = f"{table['patient'][bad].iloc[0]}: {values[bad].iloc[0]:g}"
            raise ValueError(f"{bad.sum()} of {len(table)} probabilities outside [0, 1], such as {one}")
        labels = table.get(["patient", "label"], pd.DataFrame({"label": []})).drop_duplicates()
        if not labels["label"].isin([0, 1]).all() or "label" in table and labels["patient"].duplicated().any():
            raise ValueError("labels other than 0 and 1, or two of one patient")
        table = table.assign(said=table["patient"], patient=table["patient"].map(person), probability=values)
        table = table.assign(**{c: v for c, v in {"run": "given", "seed": 0}.items() if c not in table})
        key = ["run", "seed", "patient", *table.columns.intersection(["split"])]
        if len(twice := table[table.duplicated(key)]):
            raise ValueError(f"{len(twice)} doubled rows, such as another of {twice['said'].iloc[0]}")
    return table


def _json(study, name, stage):
    """One of the study's results, written by that stage."""
    path = study.results / f"{name}.json"
    study.need(stage, path)
    with reading(path, f"what the stage {stage} writes", "run it again"):
        return dict(json.loads(path.read_text("utf-8")))


def _by_site(table):
    """The split of each row, an external one by the name of its site where that is known."""
    split = pd.Series(kind_of(table["split"]), table.index)
    return split.mask(split.eq("external") & table["site"].notna(), table["site"]) if "site" in table else split


def _known(study):
    """Patients of the study that are at hand: split and label, and the spelling `said`, by `cohort.person`."""
    paths = [study.data("cohort") / "patients.csv"]
    if not paths[0].is_file():  # all runs have the same patients
        paths = [p for k in ("predictions", "external") for p in sorted((study.results / k).glob("*.csv"))[:1]]
    found = [pd.DataFrame(columns=["patient", "split", "label"])]
    for path in paths:
        with reading(path, "columns patient, split, label", "run the stage that wrote it again"):
            table = pd.read_csv(path, dtype={"patient": str}).dropna(subset=["split"])
            found.append(table.assign(split=_by_site(table))[["patient", "split", "label"]])
    table = pd.concat(found[1:] or found)
    table = table.assign(said=table["patient"], patient=table["patient"].map(person))
    return table.drop_duplicates("patient").set_index("patient")


def _lost(study):
    """Patients who could not be prepared here; others may have them.  Columns label, group: split or dataset."""
    path = study.results / "unprepared.csv"
    if not path.is_file():
        return pd.DataFrame(columns=["label", "group"])
    with reading(path, "columns patient, split, label, dataset", "run the stage prepare again"):
        table = pd.read_csv(path, dtype={"patient": str, "split": str})
        group = _by_site(table.assign(site=table["dataset"]))
        return table.assign(patient=table["patient"].map(person), group=group).set_index("patient")


def _name(patients, splits, lost):
    """The split that has exactly these patients, with or without those who could not be prepared; "" if none."""
    possible = [patients, *(patients.union(lost.index[lost["group"] == group]) for group in lost["group"].unique())]
    digests = {identifiers_digest(some) for some in possible}
    return next((name for name, split in splits.items() if split["sha256"] in digests), "")


def _odd(part, known, splits):
    """Why these patients are no split of the study: unknown or missing ones, by name where names are at hand."""
    said = part.drop_duplicates("patient").set_index("patient")["said"]
    sizes = ", ".join(f"{name} {split['patients']}" for name, split in splits.items())
    if known.empty:
        return f"{len(said)} patients, of no split by their SHA-256: unknown ids, or missing patients ({sizes})"
    strange, there = said[~said.index.isin(known.index)], known[known.index.isin(said.index)]["split"]
    nearest = there.value_counts().idxmax() if len(there) else ""
    missing = known[known["split"].eq(nearest) & ~known.index.isin(said.index)]["said"]
    found = [f"{len(strange)} unknown ids, such as {strange.iloc[0]}"] if len(strange) else []
    found += [f"{len(missing)} missing patients of {nearest}, such as {missing.iloc[0]}"] if len(missing) else []
    if not found and there.nunique() > 1:
        found = ["patients of several splits: " + ", ".join(f"{k} {n}" for k, n in there.value_counts().items())]
    return "; ".join(found or ["patients of another splits.json (run the stage cohort)"]) + f" ({sizes})"


def _parts(study, table, path):
    """One run's predictions → (split of the study, its rows with the labels that count); ValueError for others."""
    known, lost, splits = _known(study), _lost(study), _json(study, "splits", "cohort")
    if "split" in table:
        groups = _by_site(table)
    else:
        apart = table["patient"].map(known["split"]).astype(object).fillna("")
        groups = _name({*table["patient"]}, splits, lost) or (apart if (apart != "").all() else "")
    for _, part in table.assign(group=groups).groupby("group", sort=True):
        if not (name := _name({*part["patient"]}, splits, lost)):
            raise ValueError(f"{path}: {_odd(part, known, splits)}, expected each patient of a split once")
        yield name, part.assign(label=_labels(part, known["label"], splits[name], lost["label"], path))


def _labels(part, known, split, lost, path):
    """The label of each row; ValueError where there is none, or the table's are not the study's."""
    here = part["patient"].map(known)
    if "label" not in part:
        if here.isna().any():
            raise ValueError(f"{path}: no column label, expected it, as the study's own labels are not here")
        return here.astype(int)
    wrong = part["label"] != here.fillna(part["label"])
    own = part.drop_duplicates("patient").set_index("patient")["label"]
    positives = int(own.sum() + lost[~lost.index.isin(own.index)].sum())
    told = f"{positives} of {split['patients']} positive, expected {split['positives']} as in the study"
    mirrored = positives == split["patients"] - split["positives"] != split["positives"]
    if wrong.all() or here.isna().all() and mirrored:
        raise ValueError(f"{path}: labels swapped, 0 for 1: {told}")
    if wrong.any() or positives != split["positives"]:
        first = part["said"][wrong].min()
        such = f", {wrong.sum()} rows not as in the study, such as {first}" if wrong.any() else ""
        raise ValueError(f"{path}: wrong labels{such}: {told}")
    return part["label"]


def _paper(study, split, patients):
    """(item, number, source) of what the paper reports of so many patients; none beside phantoms or others."""
    part, key = _PAPER.get(split, ("", ""))
    rows = list(csv.DictReader(Path(__file__).with_name("reported.csv").read_text("utf-8").splitlines()))
    of = [int(row["reported"]) for row in rows if row["key"] == key and row["table"] == "flow.json"]
    if study.is_synthetic or of != [patients] or "of_published" not in _json(study, "flow", "cohort"):
        return []
    told = [row for row in rows if row["part"] == part and row["item"].startswith("AUC")]
    return [(row["item"], row["reported"], row["source"]) for row in told]


def _ours(study, split):
    """The reference's metrics on a test split and its predictions there, each None where they are not at hand."""
    if not (study.results / "metrics.json").is_file():
        return None, None
    metrics, inside = _json(study, "metrics", "report"), split in ("test", "folds")
    found = metrics["internal"] if inside else metrics["external"].get(split)
    path = study.results / ("predictions" if inside else "external") / f"{metrics['reference']}.csv"
    if found is None or not path.is_file():
        return found, None
    table = read_predictions([path])
    own = table[table["split"] == "test"] if inside else table[table["site"] == split]
    return found, own.assign(patient=own["patient"].map(person))


def _difference(part, own, config):
    """AUC of the given less ours on the patients of both, with the seeds of whichever has fewer; one seed is held
    against each.  None where folds differ."""
    both = set(part["patient"]) & set(own["patient"])
    part, own = (rows[rows["patient"].isin(both)] for rows in (part, own))
    (labels, first), second = matrix(part), matrix(own)[1]
    folds, of_own = folds_of(part), folds_of(own)
    seeds = max(len(first), len(second)) if min(len(first), len(second)) == 1 else min(len(first), len(second))
    if not (folds is of_own is None or np.array_equal(folds, of_own)):
        return None
    first, second = (np.broadcast_to(p[:seeds], (seeds, labels.size)) for p in (first, second))
    return bootstrap_difference(labels, first, second, config, folds)


def verified(study: Study, path: Path) -> list[dict[str, Any]]:
    """A row for each run and split of a CSV of predictions: run, split, called (in the CSV), seeds, estimate
    (`auc.Estimate`), ours (of metrics.json), difference (`paired.Difference`) and paper: rows of item, number,
    source; None or empty where there is none.  ValueError for unknown ids, missing or doubled patients, and values
    or labels that cannot be."""
    config, rows = study.params("evaluate", EvaluateConfig), []
    for run, table in _read(path).groupby("run", sort=False):
        for split, part in _parts(study, table, path):
            called, (labels, probabilities) = part["group"].iloc[0], matrix(part)
            estimate = bootstrap_auc(labels, probabilities, config, folds_of(part))
            if estimate.high < 0.5:
                found = f"AUC {_interval(vars(estimate))}, 1 − probability gives {1 - estimate.value:.3f}"
                why = "labels swapped, or probabilities of the negative class?"
                raise ValueError(f"{path}: {split}: {found}: {why}")
            chosen_on = split in ("train", "validation") or (split, called) == ("folds", "validation")
            ours, own = (None, None) if chosen_on else _ours(study, split)
            row = {"run": run, "split": split, "called": called, "seeds": len(probabilities), "estimate": estimate}
            row |= {"ours": ours, "difference": None if own is None else _difference(part, own, config)}
            rows.append(row | {"paper": _paper(study, split, estimate.patients)})
    return rows


def _interval(found):
    return f"{found['auc' if 'auc' in found else 'value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def said(study: Study, rows: list[dict[str, Any]]) -> list[str]:
    """What `verified` found, in lines, and what else has to be known before two numbers can be compared."""
    lines = [BANNER] if study.is_synthetic else []
    for row in rows:
        found, ours, difference = row["estimate"], row["ours"], row["difference"]
        positives = f"{found.positives} {study.title.endpoint.positive}"
        lines.append(f"{row['run']}, {row['split']}: {found.patients} patients, {positives}")
        if {row["called"], row["split"]} <= {"train", "test", "validation"} and row["called"] != row["split"]:
            lines.append(f"  called {row['called']} in the table, but these are the {row['split']} patients")
        lines.append(f"  AUC {_interval(vars(found))}; seeds: {row['seeds']}, interval over patients")
        lines += [f"  this study: {_interval(ours)}, mean of seeds"] if ours else []
        if difference:
            sign = f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
            lines.append(f"  less this study's, paired: {sign}, p = {difference.p:.4f}")
        lines += [f"  the paper, {item}: {number} ({source})" for item, number, source in row["paper"]]
    return [*lines, "To compare, also know (here):", *(f"- {line}" for line in _asked(study))]


def _asked(study):
    for question, places in _ASK.items():
        values = [lookup(study.values, place) for place in places.split()]
        shown = (" or ".join(value) if isinstance(value, list) else str(value) for value in values)
        yield f"{question} ({', '.join(shown)})" if values else question
