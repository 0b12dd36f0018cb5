"""Documents of a study: saved results → text, the same bytes for the same results.  The caller writes them.

`reported_vs_reproduced` sets each number of the paper beside ours, `model_card` describes the frozen reference.  Of
a synthetic cohort the first shows no number at all: a phantom cannot test a number of the paper.  Where patients of
the paper are missing it shows ours without a verdict.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined
from scipy.stats import binomtest

from her2core.config import BANNER, Study
from her2core.formats.boundary import reading

_NO_RESULT = "not run"
_NOT_TESTABLE = "not testable on this cohort"


def markdown_table(header: Sequence, rows: Iterable[Sequence]) -> list[str]:
    """Lines of a Markdown table; a bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


@dataclass(frozen=True)
class _Reported:
    """One number of the paper.

    reported: a number, a range or a direction, as it is given.  source: "abstract", "title", "summary" (one made
    from the PDF) or "third party" (who audited the authors' repository and quotes the paper).  table, key: where
    ours stands, see _JUDGES.
    """

    item: str
    reported: str
    source: str
    table: str
    key: str

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest number of what is reported; a single one twice."""
        numbers = [float(n.replace(",", "")) for n in re.findall(r"[\d.,]+", self.reported)]
        return min(numbers), max(numbers)


def _reported():
    """The rows of reported.csv."""
    lines = Path(__file__).with_name("reported.csv").read_text("utf-8").splitlines()
    return [_Reported(**row) for row in csv.DictReader(lines)]


_BEST = "thda-channel_q98-raw"  # the paper's


def flow_in_use(results: Path) -> dict:
    """flow.json, where those of unprepared.csv are out as well; what follows a reason's colon is left out."""
    path = results / "unprepared.csv"
    with reading(results / "flow.json", "the flow of patients as JSON"):
        flow = json.loads((results / "flow.json").read_text("utf-8"))
    with reading(path, "patients of the flow, each with a reason", "run the stage prepare again"):
        for lost in pd.read_csv(path).itertuples() if path.is_file() else ():
            flow["splits"][lost.split]["patients"] -= 1
            flow["splits"][lost.split]["her2_positive"] -= int(lost.her2)
            out = [flow["excluded"], flow["collections"][lost.dataset]["excluded"]]
            if lost.split != "external" and "of_published" in flow:
                out.append(flow["of_published"]["reasons"])
            for reasons in out:
                kind = lost.reason.split(":")[0]
                reasons[kind] = reasons.get(kind, 0) + 1
    return flow


def _shortfalls(results):
    """{population: (how many, {reason: patients who are out})} where fewer are in use than in the paper.

    A real cohort without any patient of I-SPY has none of the paper's.
    """
    flow, wanted = flow_in_use(results), {r.key: int(r.ends[0]) for r in _reported() if r.table == "flow.json"}
    used = {split: counts["patients"] for split, counts in flow["splits"].items()}
    external, short = used.pop("external", 0), {}
    internal, reasons = 0, {"not in this cohort": wanted["patients"]}
    if "of_published" in flow:
        internal, reasons = sum(used.values()), flow["of_published"]["reasons"]
    if internal < wanted["patients"]:
        short["internal"] = f"{internal:,} of {wanted['patients']:,} patients", reasons
    if external < wanted["external"]:
        words = f"{external} external patients, {wanted['external']} lesions in the paper"
        sites = (c["excluded"] for c in flow["collections"].values() if "external" in c["splits"])
        short["external"] = words, next(sites, {})
    return short


def _place(reported, low, high, ours="our interval"):
    """Where a reported number or range lies against low to high of ours, in words."""
    lowest, highest = reported.ends
    if low <= lowest and highest <= high:
        return f"inside {ours}"
    if highest < low:
        return f"outside {ours}: ours is higher"
    return f"outside {ours}: ours is lower" if lowest > high else f"overlaps {ours}"


def _with_interval(value, low, high):
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _judge_auc(path, reported, sections):
    """A run's AUC and interval; at the external site also the range of THDA's AUCs over the windows without N4."""
    table = pd.read_csv(path)
    if "test" in table:
        table = table[table["test"] == "external"]
    if reported.key == "every window":
        found = table[(table["model"] == "thda") & (table["bias_field"] == "raw")]["auc"]
        if found.empty:
            return None
        text = f"{found.min():.3f} to {found.max():.3f}, {len(found)} windows"
        return text, _place(reported, found.min(), found.max(), "our range")
    rows = table[table["run"] == reported.key]
    if rows.empty:
        return None
    estimate = rows.iloc[0][["auc", "low", "high"]]
    return _with_interval(*estimate), _place(reported, estimate["low"], estimate["high"])


def _judge_count(path, reported, sections):
    splits = flow_in_use(path.parent)["splits"]
    inside = [v for k, v in splits.items() if k != "external"]
    sums = {key: sum(v[key] for v in inside) for key in ("patients", "her2_positive")}
    ours = (sums | {k: v["patients"] for k, v in splits.items()}).get(reported.key)
    if ours is None:
        return None
    return f"{ours:,}", "the same" if ours == reported.ends[0] else "not the same"


def _judge_accuracy(path, reported, sections):
    """metrics.json has accuracies without interval; Wilson's is added."""
    internal = json.loads(path.read_text())["internal"]
    accuracy, patients = internal[reported.key], internal["patients"]
    share = binomtest(round(accuracy * patients), patients)
    interval = share.proportion_ci(sections["evaluate"]["confidence"], "wilson")
    return _with_interval(accuracy, *interval), _place(reported, *interval)


def _judge_direction(path, reported, sections):
    """A run's difference from the paper's best, and whether the Holm-corrected test sees it, and in which sense."""
    table = pd.read_csv(path)
    rows = table[(table["run"] == reported.key) & (table["reference"] == _BEST)]
    if rows.empty:
        return None
    row = rows.iloc[0]
    words = {
        "lower than the reference": "the same direction",
        "higher than the reference": "the opposite direction",
    }
    return _with_interval(*row[["difference", "low", "high"]]), words.get(row["verdict"], row["verdict"])


_JUDGES = {
    "flow.json": _judge_count,
    "metrics.json": _judge_accuracy,
    "normalization_study.csv": _judge_auc,
    "model_comparison.csv": _judge_auc,
    "external_validation.csv": _judge_auc,
    "normalization_pairs.csv": _judge_direction,
    "model_pairs.csv": _judge_direction,
}

_CAUTION = """\
The paper's full text was not available: a number stands in its abstract, in a summary made from the PDF, or is
quoted by a third party that audited the authors' repository. The paper gives no interval. A reported number inside
our interval is not contradicted, which is less than confirmed: with 132 test patients such an interval is wide.
An accuracy of 0.74 is what calling every patient negative gives (853 of 1,149); at which threshold the paper's was
measured is not said, so ours stands at two. Not obtainable, so not here: F1, sensitivity, specificity, the external
AUC of each window, and the names of two of the seven windows it compares."""


def _verdict(study, reported, short):
    """Ours and the verdict for one number of a real study; no place is given to a number of other patients."""
    path = study.results / reported.table
    with reading(path, "results of this version of the code", f"dvc repro {study.target('study')}"):
        found = _JUDGES[reported.table](path, reported, study.values) if path.is_file() else None
    if found is None:
        return "–", _NO_RESULT
    needed = ("internal", "external") if reported.table == "external_validation.csv" else ("internal",)
    lacking = "; ".join(short[p][0] for p in needed if p in short)
    if lacking and reported.table != "flow.json":
        return found[0], f"not comparable: {lacking}"
    return found


def reported_vs_reproduced(study: Study) -> str:
    """Every number of the paper beside ours and a verdict in words, as Markdown; a synthetic study has no ours.

    Where patients of the paper are missing, a sentence says how many and why, and the verdict is "not comparable".
    """
    lines = [f"# Reported and reproduced ({study.name} cohort)", ""]
    if study.is_synthetic:
        lines += [f"**{BANNER}.** So no number of ours stands here.", ""]
    lines += [_CAUTION, ""]
    known = not study.is_synthetic and (study.results / "flow.json").is_file()
    short = _shortfalls(study.results) if known else {}
    for words, out in short.values():
        reasons = ", ".join(f"{why} {n:,}" for why, n in sorted(out.items())) or "nobody"
        lines += [f"**Not comparable: {words}.** Who is out: {reasons}. A difference can come from that alone.", ""]
    rows = []
    for r in _reported():
        ours, verdict = ("–", _NOT_TESTABLE) if study.is_synthetic else _verdict(study, r, short)
        rows.append((r.item, r.reported, r.source, ours, verdict))
    lines += markdown_table(("number", "reported", "stands in", "ours", "verdict"), rows)
    return "\n".join(lines) + "\n"


def _flat(values, prefix=""):
    """Nested parameters → rows of dotted name and value."""
    for key, item in values.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"`{prefix}{key}`", item if isinstance(item, str) else json.dumps(item)


def metric_rows(metrics: dict) -> Iterator[tuple]:
    """metrics.json → rows of name, internal, external; `auc` takes its interval along, a rate its threshold."""
    chosen = f" at {metrics['threshold']:.3f}, chosen on validation"
    internal, external = (
        {k: v for k, v in metrics[p].items() if isinstance(v, int | float)} for p in ("internal", "external")
    )
    for name in internal:
        if name in ("low", "high"):
            continue
        cells = []
        for part in (internal, external):
            if name == "auc":
                cells.append(_with_interval(part["auc"], part["low"], part["high"]))
            else:
                cells.append(f"{part[name]:.3f}" if isinstance(part.get(name), float) else part.get(name, "–"))
        title = name.replace("_at_threshold", chosen).replace("_", " ")
        yield ("AUC" if name == "auc" else title, *cells)


def _cite(citation):
    """CITATION.cff → how to cite, a line for the software and one for each reference."""
    lines = []
    for work in (citation, *citation.get("references", [])):
        names = [a.get("name") or f"{a['family-names']} {a['given-names']}" for a in work["authors"]]
        details = [work.get("version") and f"Version {work['version']}", work.get("notes"), work.get("year")]
        tail = ", ".join(str(d) for d in details if d)
        line = f"- {', '.join(names).rstrip('.')}. {work['title']}. {tail}."
        lines.append(line + (f" <{work['url']}>" if "url" in work else ""))
    return "\n".join(lines)


def model_card(study: Study, citation: dict) -> str:
    """The reference's model card as Markdown, from metrics.json, flow.json and the digests of the frozen weights.

    citation: CITATION.cff as a dictionary.  Raises `Unready` where no weights of the reference were recorded.
    """
    flow = flow_in_use(study.results)
    with reading(study.results / "metrics.json", "the study's metrics as JSON"):
        metrics = json.loads((study.results / "metrics.json").read_text("utf-8"))
    path = study.results / "weights" / f"{metrics['reference']}.csv"
    study.need(f"train@{metrics['reference']}", path)
    with reading(path, "digests of the frozen weights", "run the training again"):
        rows = pd.read_csv(path).itertuples()
        digests = [(f"`{row.file}`", f"{row.bytes:,}", f"`{row.sha256}`") for row in rows]
    splits = [(k, v["patients"], v["her2_positive"]) for k, v in flow["splits"].items()]
    settings = {"models": {"thda": study.section("models")["thda"]}}  # of the reference, which is THDA
    settings["train"] = {k: v for k, v in study.section("train").items() if k != "jobs"}
    template = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return template.from_string(Path(__file__).with_name("model_card.md.jinja").read_text("utf-8")).render(
        cohort=study.name,
        sections=study.values,
        synthetic=study.is_synthetic,
        reference=metrics["reference"],
        confidence=f"{100 * study.section('evaluate')['confidence']:g} %",
        weights="\n".join(markdown_table(("weights", "bytes", "SHA-256"), digests)),
        splits="\n".join(markdown_table(("split", "patients", "HER2+"), splits)),
        excluded=", ".join(f"{k}: {n}" for k, n in flow["excluded"].items()) or "nobody",
        metrics="\n".join(markdown_table(("", "internal test", "external site"), metric_rows(metrics))),
        settings="\n".join(markdown_table(("parameter", "value"), _flat(settings))),
        citation=citation,
        cite=_cite(citation),
    )
