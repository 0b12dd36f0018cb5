"""What the tables say, in sentences: the answer of each notebook, and the summary of a study.

Tables come by the names of their files.  A sentence is left out where its table or its rows are missing, and every
verdict is the table's own: nothing is tested here.  What stands above the reference, THDA, follows its own AUC.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from her2core.config import Title
from her2core.report.figures.words import (
    UNSEEN,
    auc_of,
    counted,
    difference_of,
    interval,
    model_name,
    patients_of,
    percent,
    signed,
    window_name,
)

_HOLM = "Verdicts are corrected within each table (Holm), intervals are not; what is not detected may still exist."
_REAL = "It says nothing of other patients, sites and ways of training than these. Research only."
_DOUBTS = """
which window or network is best is a property of the phantom and of small networks trained from scratch. Nothing
here says anything about patients, pretrained networks or other hospitals, and no number here tests any number
of the paper.
""".replace("\n", " ").strip()
Tables = Mapping[str, pd.DataFrame]
TABLES = """
ablation attention calibration clipping detectable expected_width external_validation fairness increment
model_comparison model_pairs n4_fidelity normalization_pairs normalization_study preparation_seen shortcut_probe
""".split()
FIRST = ("How good is THDA, and what is above it?", "What does it not mean?", "How sure is that?")  # of the summary
_PAIR = ("run", "reference", "difference", "low", "high", "detectable", "verdict")
_RUN = ("run", "model", "window", "bias_field", "auc", "low", "high", "seeds", "patients", "positives")
_BELOW = ("lower than the reference", "not after correction", UNSEEN)  # as they are told; the higher stand above


def tables_of(results: Path) -> dict[str, pd.DataFrame]:
    """{name: table} of the files in a study's results that the sentences rest on, as far as they are there."""
    paths = [path for name in TABLES if (path := results / f"{name}.csv").is_file()]
    return {path.stem: pd.read_csv(path) for path in paths if path.read_text("utf-8").strip('\n"')}


def _table(tables, name, columns):
    """The rows of a table; none where it is missing, or lacks a column, as one without rows does."""
    found = tables.get(name, pd.DataFrame())
    return found if {*columns} <= {*found.columns} else pd.DataFrame(columns=[*columns])


def _list(rows, say):
    return "; ".join(say(row) for _, row in rows.iterrows())


def _sentence(start, told):
    return f"{start}: {told}." if told else ""


def _joined(*sentences):
    return " ".join(filter(None, sentences))


def _model(row):
    return model_name(row["run"])


def _above(pairs, name, what):
    """What stands above the reference, sure or not.  name: of a row; what: one of the others, in words."""
    rows = pairs[pairs["difference"] > 0].sort_values("difference", ascending=False)
    told = _list(rows, lambda row: f"{name(row)} {difference_of(row)}, {row['verdict']}")
    have = "have" if len(rows) > 1 else "has"
    count = f"{len(rows) or 'None'} of {counted(len(pairs), what)} {have} a higher AUC than THDA"
    return (_sentence(count, told) or f"{count}.") if len(pairs) else ""


def _below(pairs, name):
    """The others by verdict, the largest difference first."""
    rest = pairs[~(pairs["difference"] > 0)].sort_values("difference")
    parts = {verdict.capitalize(): rest[rest["verdict"] == verdict] for verdict in _BELOW}
    return _joined(*(_sentence(v, _list(p, lambda r: f"{name(r)} {difference_of(r)}")) for v, p in parts.items()))


def _alone(pairs, start):
    """Comparisons of one with one other, after the words that start them."""
    told = _list(pairs, lambda row: f"{difference_of(row)}, {row['verdict'].replace('the reference', 'without')}")
    return f"{start} {told}." if told else ""


def _reached(rows, reference, title):
    """The AUC of the reference on the internal test."""
    for row in rows[rows["run"] == reference].itertuples():
        where = f"{patients_of(reference, [row], title)}, {counted(row.seeds, 'seed')}"
        said = f"Under a matched protocol, window {window_name(row.window)}, THDA, the reference, reaches an AUC of"
        return f"{said} {interval(row.auc, row.low, row.high)} on the internal test ({where})."
    return ""


def _collapsed(rows, name):
    """The networks that give all patients one probability."""
    lost = rows[(rows.get("collapsed_seeds", 0) > 0) & (rows["model"] != "majority")]
    told = _list(lost, lambda r: f"{name(r)}, {r['collapsed_seeds']:.0f} of {counted(r['seeds'], 'seed')}")
    return _sentence("Collapsed to one probability for all, so that comparisons say little", told)


def _power(tables):
    """How large a difference between networks so many patients and seeds show."""
    rows = _table(tables, "detectable", ("group", "patients", "seeds", "detectable", "lowest", "highest"))
    own = _table(tables, "model_comparison", _RUN)["seeds"].max()  # the row of as many, or nearly
    rows = rows[rows["group"] == "this test set"].sort_values("seeds", key=lambda seeds: abs(seeds - own))
    for row in rows.head(1).itertuples():
        few = f"{counted(row.patients, 'patient')} and {counted(row.seeds, 'seed')}"
        most = f"{row.detectable:.2f} in the median ({row.lowest:.2f} to {row.highest:.2f})"
        return f"With {few}, a power of 80 % (p < 0.05 before correction) is reached for differences of {most}."
    return ""


def _increment(tables):
    """What the network adds to the regression that knows most."""
    pairs = _table(tables, "increment", _PAIR)
    known = ", ".join(model_name(run).removeprefix("regression on ") for run in pairs["reference"])
    return _alone(pairs, f"To {known} THDA adds")


def _choices(tables):
    """The paper's open choices, taken otherwise: those with a verdict, and those without."""
    start, pairs = "Open choices taken otherwise", _table(tables, "ablation", _PAIR)
    unseen = pairs["verdict"] == UNSEEN
    seen = _list(pairs[~unseen], lambda row: f"{_model(row)} {difference_of(row)}, {row['verdict']}")
    rest = _list(pairs[unseen], lambda row: f"{_model(row)} {difference_of(row)}")
    return _joined(_sentence(start, seen), _sentence(f"{start}, {UNSEEN}", rest))


def _shortcut(tables):
    """Whether the sites are told apart, and what a network does that was trained where this would pay."""
    rows = _table(tables, "shortcut_probe", ("probe", "value", "low", "high"))
    said = {row["probe"]: interval(row["value"], row["low"], row["high"]) for _, row in rows.iterrows()}
    told = [f"{probe} {said[probe]}" for probe in ("site from image", "label from site alone") if probe in said]
    for arm in dict.fromkeys(probe.partition(": ")[0] for probe in said if probe.startswith("unequal")):
        whose = "trained so" if arm.endswith("trained there") else "the reference"
        pooled, within = (said.get(f"{arm}: {where}") for where in ("pooled", "within sites"))
        told.append(f"label where prevalence differs, {whose}, {pooled} over all and {within} within sites")
    return _sentence("AUC of the shortcut probe", "; ".join(told))


def _windows(tables, reference):
    """Differences of the other windows, that of N4 alone, and the function that names a row."""
    rows, pairs = _table(tables, "normalization_study", _RUN), _table(tables, "normalization_pairs", _PAIR)
    runs = rows.set_index("run")[["window", "bias_field"]].T.to_dict("list")
    pairs = pairs[pairs["run"].isin(runs) & (reference in runs)]
    same = np.array([runs[run][0] == runs[reference][0] for run in pairs["run"]], bool)
    ends = {"raw": "", "n4": " after N4"}
    return pairs[~same], pairs[same], lambda row: window_name(runs[row["run"]][0]) + ends[runs[row["run"]][1]]


def _clipping(tables):
    dose = _table(tables, "clipping", ("window", "white", "auc")).sort_values("white")
    if len(dose) < 3 or np.isnan(r := dose["white"].corr(dose["auc"])):
        return ""
    ends = " to ".join(f"{percent(row.white)} (AUC {row.auc:.2f})" for row in dose.iloc[[0, -1]].itertuples())
    return f"Windows turn {ends} of the lesion white; r = {signed(r)} with the AUC over {len(dose)} windows."


def _ladder(tables):
    """Every run on every population; the best that anybody could do; the external sites."""
    rows = _table(tables, "external_validation", (*_RUN, "test"))
    best = rows[rows["model"] == "truth_parameters"].set_index("test")
    rows = rows[~rows["model"].isin(["truth_latent", "truth_parameters", "majority"])]
    return rows, best, [t for t in rows["test"].unique() if t != "internal" and not t.endswith(", left out")]


def _at(rows, own, title, whose):
    """The reference's AUC at one site, what stands above it there, and below; nothing is tested.  own: its row."""

    def say(row):
        window = "" if row["window"] in ("none", own["window"]) else f" ({window_name(row['window'])})"
        return f"{_model(row)}{window}{' after N4' if row['bias_field'] == 'n4' else ''} {auc_of(row)}"

    higher, lower = (rows[(rows["auc"] > own["auc"]) == above] for above in (True, False))
    usual = lower["window"].isin(["none", own["window"]])
    ends = sorted(f"{auc:.2f}" for auc in lower.loc[~usual, "auc"])
    windows = f"other windows {' to '.join(ends[:: len(ends) - 1 or 1])}" if ends else ""
    below = "; ".join(filter(None, [_list(lower[usual].drop(own.name), say), windows]))
    start = f"At {whose}{own['test']} ({patients_of(own['test'], rows.itertuples(), title)}) THDA reaches"
    start += f" {auc_of(own)}; {len(higher) or 'none'} of {counted(len(rows) - 1, 'other run')} above that"
    above = _sentence(f"{start}, without a test", _list(higher, say)) or f"{start}."
    return _joined(above, _sentence("Not above", below))


def _at_sites(tables, reference, title, synthetic):
    rows, _, sites = _ladder(tables)
    if len(rows) and not sites:
        return "There is no external site: what is left of the AUC at another hospital this study cannot say."
    rows = rows.sort_values("auc", ascending=False, kind="stable").reset_index(drop=True)
    anchors = rows[(rows["run"] == reference) & rows["test"].isin(sites)]
    whose = "the phantom's " if synthetic else ""
    return _joined(*(_at(rows[rows["test"] == own["test"]], own, title, whose) for _, own in anchors.iterrows()))


def _best(tables, reference):
    """How far the reference gets to the best that anybody could do, which only a phantom tells."""
    (rows, best, _), told = _ladder(tables), []
    for row in rows[rows["run"] == reference].itertuples():
        if row.test in best.index and (most := best.loc[row.test])["auc"] > 0.5:
            told.append(f"{row.test} {auc_of(most)}, {percent((row.auc - 0.5) / (most['auc'] - 0.5))}")
    return _sentence("Best that a picture allows, and THDA's part of the way there from 0.5", "; ".join(told))


def _calibrated(tables, reference):
    """Whether the probabilities are right before any recalibration."""
    ends = {part: [part, f"{part}_low", f"{part}_high"] for part in ("intercept", "slope")}
    columns = [column for part in ends.values() for column in part]
    rows = _table(tables, "calibration", ("test", "run", "probabilities", *columns)).dropna(subset=columns)

    def say(row):
        found = ["too low"] * (row["intercept_low"] > 0) + ["too high"] * (row["intercept_high"] < 0)
        found += ["too extreme"] * (row["slope_high"] < 1) + ["too close to the average"] * (row["slope_low"] > 1)
        line = ", ".join(f"{part} {interval(*row[column])}" for part, column in ends.items())
        return f"{row['test']} {' and '.join(found) or 'no error detected'}, {line}"

    rows = rows[(rows["run"] == reference) & (rows["probabilities"] == "raw")]
    return _sentence("THDA's averaged probabilities", _list(rows, say))


def _fair(tables):
    rows = _table(tables, "fairness", ("test", "variable", "p"))
    found = rows[rows["p"] < 0.05]
    count = f"{len(found) or 'none'} of {counted(len(rows), 'gap')}, by p < 0.05 without correction"
    told = _list(found, lambda row: f"{row['variable']} ({row['test']}, p = {row['p']:.3f})")
    start = f"Groups differ in sensitivity and false positives by more than chance in {count}"
    return (_sentence(start, told) or f"{start}.") if len(rows) else ""


def _attention(rows, whose):
    """rows: inside_lesion, and low and high where they are known, by networks."""

    def say(row):
        share, *ends = (percent(row[end], digits=1) for end in ("inside_lesion", "low", "high") if end in row)
        return f"{row.name.replace('randomised', 'untrained')} {share}" + f" ({' to '.join(ends)})" * bool(ends)

    return _sentence(f"Attention inside the lesion, {whose}", _list(rows, say))


def _looked(tables):
    rows = _table(tables, "attention", ("networks", "inside_lesion", "patients")).set_index("networks")
    return _attention(rows, f"mean of {counted(rows['patients'].max(), 'patient')}, interval over these alone")


def _trained(tables):
    """How many seeds there are, and how far those of one run lie apart."""
    rows = _table(tables, "external_validation", (*_RUN, "test", "lowest_seed", "highest_seed", "collapsed_seeds"))
    rows = rows[(rows["test"] == "internal") & (rows["window"] != "none")]
    lost = f"{rows['collapsed_seeds'].sum() or 'none'} of {counted(rows['seeds'].sum(), 'seed')} collapsed"
    spread = f"those of one run differ by up to {(rows['highest_seed'] - rows['lowest_seed']).max():.2f} in AUC"
    return f"In {counted(len(rows), 'run')} {lost}; {spread}." if len(rows) else ""


def _flow(counts, title):
    """counts: flow.json."""
    splits, positive = counts["splits"], title.endpoint.positive
    use, events = (sum(split[key] for split in splits.values()) for key in ("patients", "positives"))
    parts = ", ".join(f"{name} {split['patients']:,}" for name, split in splits.items())
    out = "; ".join(f"{reason} {number:,}" for reason, number in counts["excluded"].items())
    start = f"{use:,} of {counts['patients']:,} patients are in use, {events:,} of them {positive}"
    return _joined(_sentence(start, parts), _sentence("Out", out))


def _widths(tables, counts):
    """The interval to expect, of the splits that test."""
    rows = _table(tables, "expected_width", ("group", "patients", "auc", "low", "high")).dropna(subset="low")
    rows = rows[rows["group"].isin({"test", "folds", "external"} & {*counts["splits"]})]
    told = _list(rows, lambda r: f"{r['low']:.2f} to {r['high']:.2f} ({r['group']}, n = {r['patients']})")
    return _sentence(f"Interval to expect around a true AUC of {rows['auc'].max():g}", told)


def _field(tables):
    """How well N4 finds the field of a phantom."""
    parts = _table(tables, "n4_fidelity", ("kept", "r")).groupby("kept", sort=False)["r"]
    told = (f"{kept} {r.median():.2f} ({r.min():.2f} to {r.max():.2f}, n = {len(r)})" for kept, r in parts)
    return _sentence("Correlation of N4's field with the true one, median and range of phantoms", "; ".join(told))


def _prepared(tables, windows=True):
    """What the packed images show of outlines and N4, and under each window, where these are wanted."""
    rows = _table(tables, "preparation_seen", ("measured", "q1", "median", "q3", "patients"))
    rows = rows[windows | ~rows["measured"].astype(str).str.contains(" under ")]

    def say(row):
        what, under, window = row["measured"].partition(" under ")
        q1, median, q3 = (percent(row[end]) for end in ("q1", "median", "q3"))
        return f"{what}{under}{window_name(window) if window else ''} {median} ({q1} to {q3})"

    start = f"Median and quartiles of {counted(rows['patients'].max(), 'training patient')}"
    return _sentence(start, _list(rows, say))


def _answer(*sentences):
    return _joined("**Answer.**", *sentences)


def _of_phantoms(synthetic, text, otherwise=""):
    """What a synthetic cohort cannot answer."""
    return f"These are phantoms: {text}" if synthetic else otherwise


def of_cohort(tables: Tables, counts: dict, title: Title, synthetic: bool) -> str:
    """Notebook 0: who is in, and what so many can show.  counts: flow.json."""
    chosen = _of_phantoms(synthetic, "their numbers are chosen, and say nothing of a hospital's patients.")
    return _answer(_flow(counts, title), _widths(tables, counts), chosen)


def of_phantom(tables: Tables) -> str:
    """Notebook 3: what is in the phantom's images, and what N4 finds."""
    label = "By construction the label is in the lesion's kinetics and shape and nowhere else."
    return _answer(label, _field(tables), "How close it comes on patients, this cannot say: nobody knows theirs.")


def of_preparation(tables: Tables, synthetic: bool) -> str:
    """Notebook 4: outlines, windows and N4 in the packed images."""
    bright = "how far a lesion stands out is chosen; how much a window clips of real ones they cannot say."
    return _answer(_prepared(tables), _of_phantoms(synthetic, bright))


def of_network(answers: pd.DataFrame, shares: Mapping[str, float], synthetic: bool) -> str:
    """Notebook 5: one slice.

    answers: probability and change by what was done to the slice.  shares: of attention inside the lesion, of the
    networks trained and randomised, and by chance."""
    change, nothing = answers["change"].drop(["as it is", "mirrored"]), answers["change"]["mirrored"]
    large = change[change.abs() > max(abs(nothing), 0.005)].sort_values(key=abs, ascending=False)
    start = f"The slice has a probability of {answers['probability']['as it is']:.2f}"
    start += f"; mirroring it, which should change nothing, adds {signed(nothing)}, and {len(large)} of"
    told = "; ".join(f"{what} {signed(value)}" for what, value in large.items()) or "none"
    moved = _sentence(f"{start} {counted(len(change), 'other change')} more than that", told)
    seen = _attention(pd.Series(shares, name="inside_lesion").to_frame(), "this slice")
    one = "One slice shows what happens, not whether it always does."
    return _answer(moved, seen, one, _of_phantoms(synthetic, "of patients they say nothing."))


def of_windows(tables: Tables, reference: str, title: Title, synthetic: bool) -> str:
    """Notebook 6: windows and N4 against the reference, a run."""
    rows, (windows, n4, name) = _table(tables, "normalization_study", _RUN), _windows(tables, reference)
    clips = "their label lies in the enhancement that a window clips; which window suits patients they cannot say."
    said = [_reached(rows, reference, title), _above(windows, name, "other window"), _below(windows, name)]
    said += [_alone(n4, "N4 changes the AUC by"), _collapsed(rows, name), _clipping(tables)]
    return _answer(*said, _of_phantoms(synthetic, clips))


def of_models(tables: Tables, reference: str, title: Title, synthetic: bool) -> str:
    """Notebook 7: the models against the reference, a run."""
    pairs, rows = _table(tables, "model_pairs", _PAIR), _table(tables, "model_comparison", _RUN)
    small = "small networks trained from scratch on them say nothing of transformers, and none of this of patients."
    said = [_reached(rows, reference, title), _above(pairs, _model, "other model"), _below(pairs, _model)]
    said += [_collapsed(rows, _model), _power(tables), _increment(tables), _choices(tables), _shortcut(tables)]
    return _answer(*said, _of_phantoms(synthetic, small))


def of_sites(tables: Tables, reference: str, title: Title, synthetic: bool) -> str:
    """Notebook 8: the frozen runs at other sites, the reference among them."""
    scanner = "another site is another scanner here; what another hospital would find they cannot say."
    said = [_at_sites(tables, reference, title, synthetic), _best(tables, reference)]
    said += [_calibrated(tables, reference), _fair(tables), _looked(tables)]
    return _answer(*said, _of_phantoms(synthetic, scanner))


def of_study(tables: Tables, counts: dict, reference: str, title: Title, synthetic: bool, level: float) -> str:
    """The summary of a study as Markdown: an answer to each question, and first what a reader in haste must know.

    counts: flow.json, without those who could not be prepared.  reference: a run.  level: of the intervals.
    """
    pairs, rows = _table(tables, "model_pairs", _PAIR), _table(tables, "model_comparison", _RUN)
    (windows, n4, name), above = _windows(tables, reference), _above(pairs, _model, "other model")
    lines = {
        FIRST[0]: [_reached(rows, reference, title), above, _above(windows, name, "other window")],
        FIRST[1]: [_of_phantoms(synthetic, _DOUBTS, _REAL)],
        FIRST[2]: [_power(tables), _HOLM],
        "How do the other models stand?": [_below(pairs, _model), _collapsed(rows, _model)],
        "Do window and N4 matter?": [_below(windows, name), _alone(n4, "N4 changes the AUC by"), _clipping(tables)],
        "What is left at other sites?": [_at_sites(tables, reference, title, synthetic), _best(tables, reference)],
        "What does it add?": [_increment(tables), _choices(tables)],
        "Are probabilities right, and groups treated alike?": [_calibrated(tables, reference), _fair(tables)],
        "Did the networks learn, and what?": [_trained(tables), _looked(tables)],
        "Who is in?": [_flow(counts, title), _widths(tables, counts)],
        "What is in the images?": [_prepared(tables, windows=False), _field(tables)],
    }
    how = f"AUC: mean of seeds, {percent(level)} interval over patients; differences: over patients and seeds."
    told = {what: f"- **{what}** {said}" for what, sentences in lines.items() if (said := _joined(*sentences))}
    first = [told.pop(what) for what in FIRST if what in told]
    start = f"**{title.endpoint.words}, {title}.** {how}"
    return "\n".join([start, "", *first, "", "In detail:", "", *told.values()]) + "\n"
