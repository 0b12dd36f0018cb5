"""Documents of a study: saved results → text, the same bytes for the same results.  The caller writes them."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from her2core.config import BANNER, Study
from her2core.formats.boundary import reading


def _markdown_table(rows, *header):
    """A bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def fill_in(template: str, **values: Any) -> str:
    """One of the templates beside this module, where `rows | table("a", "b")` makes a Markdown table."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["table"] = _markdown_table
    return environment.from_string(Path(__file__).with_name(template).read_text("utf-8")).render(values)


def _rows(name):
    """A table beside this module, as named tuples of text."""
    rows = pd.read_csv(Path(__file__).with_name(name), dtype=str, keep_default_na=False)
    return list(rows.itertuples(index=False))


def _reported():
    """The numbers of the paper: rows of item, reported, source, table, key, part.

    reported: a number, a range or a direction, as it is given.  source: "abstract", "title", "summary" (one made
    from the PDF) or "third party" (who audited the authors' repository and quotes the paper).  table, key: where
    ours stands, see _JUDGES.  part: of paper.csv.
    """
    return _rows("reported.csv")


def _ends(reported):
    """Lowest and highest number of what is reported; a single one twice."""
    numbers = [float(n.replace(",", "")) for n in re.findall(r"[\d.,]+", reported)]
    return min(numbers), max(numbers)


_BEST = "thda-channel_q98-raw"  # the paper's


def flow_in_use(results: Path) -> dict:
    """flow.json, where those of unprepared.csv are out as well; what follows a reason's colon is left out."""
    path = results / "unprepared.csv"
    with reading(results / "flow.json", "the flow of patients as JSON"):
        flow = json.loads((results / "flow.json").read_text("utf-8"))
    with reading(path, "patients of the flow, each with a reason", "run the stage prepare again"):
        for lost in pd.read_csv(path).itertuples() if path.is_file() else ():
            collection, split = flow["collections"][lost.dataset], lost.split.split()[0]
            for counts in (flow["splits"][split], collection["splits"][split]):
                counts["patients"] -= 1
                counts["positives"] -= int(lost.label)
            out = [flow["excluded"], collection["excluded"]]
            if lost.split != "external" and "of_published" in flow:
                out.append(flow["of_published"]["reasons"])
            for reasons in out:
                kind = lost.reason.split(":")[0]
                reasons[kind] = reasons.get(kind, 0) + 1
    return flow


def _shortfalls(results):
    """{population: (how many, {reason: patients who are out})} where fewer are in use than in the paper.

    A real cohort without any patient of I-SPY has none of the paper's.  The paper's other site is AMBL.
    """
    flow = flow_in_use(results)
    wanted = {r.key: int(_ends(r.reported)[0]) for r in _reported() if r.table == "flow.json"}
    ambl, short = flow["collections"].get("ambl", {"splits": {}, "excluded": {}}), {}
    external = _patients(ambl["splits"]).get("external", 0)
    internal, reasons = 0, {"not in this cohort": wanted["patients"]}
    if "of_published" in flow:
        used = _patients(flow["splits"])
        internal, reasons = sum(used.values()) - used.get("external", 0), flow["of_published"]["reasons"]
    if internal < wanted["patients"]:
        short["internal"] = f"{internal:,} of {wanted['patients']:,} patients", reasons
    if external < wanted["external"]:
        words = f"{external} external patients, {wanted['external']} lesions in the paper"
        short["external"] = words, ambl["excluded"]
    return short


def _patients(splits):
    return {split: counts["patients"] for split, counts in splits.items()}


def _place(reported, low, high, ours="our interval"):
    """Where a reported number or range lies against low to high of ours, in words."""
    lowest, highest = _ends(reported)
    if low <= lowest and highest <= high:
        return f"inside {ours}"
    if highest < low:
        return f"outside {ours}: ours is higher"
    return f"outside {ours}: ours is lower" if lowest > high else f"overlaps {ours}"


def _with_interval(value, low, high):
    if low == value == high:
        return f"{value:.3f}, all scores tied"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _judge_auc(path, number, sections):
    """A run's AUC and interval; at AMBL also the range of THDA's AUCs over the windows without N4."""
    table = pd.read_csv(path)
    if "test" in table:
        table = table[table["test"] == "AMBL"]
    if number.key == "every window":
        found = table[(table["model"] == "thda") & (table["bias_field"] == "raw")]["auc"]
        if found.empty:
            return None
        text = f"{found.min():.3f} to {found.max():.3f}, {len(found)} windows"
        return text, _place(number.reported, found.min(), found.max(), "our range")
    rows = table[table["run"] == number.key]
    if rows.empty:
        return None
    estimate = rows.iloc[0][["auc", "low", "high"]]
    return _with_interval(*estimate), _place(number.reported, estimate["low"], estimate["high"])


def _judge_count(path, number, sections):
    flow = flow_in_use(path.parent)
    inside = [v for k, v in flow["splits"].items() if k != "external"]
    counts = _patients(flow["splits"]) | {key: sum(v[key] for v in inside) for key in ("patients", "positives")}
    counts["external"] = _patients(flow["collections"].get("ambl", {"splits": {}})["splits"]).get("external")
    ours = counts.get(number.key)
    if ours is None:
        return None
    return f"{ours:,}", "the same" if ours == _ends(number.reported)[0] else "not the same"


def _judge_accuracy(path, number, sections):
    internal = json.loads(path.read_text())["internal"]
    accuracy, *interval = (internal[number.key + end] for end in ("", "_low", "_high"))
    return _with_interval(accuracy, *interval), _place(number.reported, *interval)


def _judge_direction(path, number, sections):
    """A run's difference from the paper's best, and whether the Holm-corrected test sees it, and in which sense."""
    table = pd.read_csv(path)
    rows = table[(table["run"] == number.key) & (table["reference"] == _BEST)]
    if rows.empty:
        return None
    row = rows.iloc[0]
    words = {"lower than the reference": "same", "higher than the reference": "opposite"}.get(row["verdict"])
    verdict = f"the {words} direction" if words else row["verdict"]
    return _with_interval(*row[["difference", "low", "high"]]), verdict


_JUDGES = {"flow.json": _judge_count, "metrics.json": _judge_accuracy}
_JUDGES |= dict.fromkeys(("normalization_study.csv", "model_comparison.csv", "external_validation.csv"), _judge_auc)
_JUDGES |= dict.fromkeys(("normalization_pairs.csv", "model_pairs.csv"), _judge_direction)


def _verdict(study, number, short):
    """Ours and the verdict for one number of a real study; no place is given to a number of other patients."""
    if study.endpoint != "her2":
        return "–", f"not comparable: this study is of {study.title.endpoint.words}"
    path = study.results / number.table
    with reading(path, "results of this version of the code", f"dvc repro {study.target('study')}"):
        found = _JUDGES[number.table](path, number, study.values) if path.is_file() else None
    if found is None:
        return "–", "not run"
    needed = ("internal", "external") if number.table == "external_validation.csv" else ("internal",)
    lacking = "; ".join(short[p][0] for p in needed if p in short)
    if lacking and number.table != "flow.json":
        return found[0], f"not comparable: {lacking}"
    return found


def _parts(study, verdicts):
    """What the paper is known to show: ours, notebook and function that make it, and how often which verdict."""
    for part in _rows("paper.csv"):
        paths = part.files.replace("{cohort}", study.name).split()
        ours = ", ".join(f"[`{Path(path).name}`](../../{path})" for path in paths)
        code = f"[`{part.notebook}`](../../notebooks/{part.notebook}.ipynb): {part.function}"
        counts = Counter(verdicts[part.part])
        judged = "; ".join(f"{verdict} ({n} of {counts.total()})" for verdict, n in counts.items())
        yield part.shows, part.source, ours, code, judged or part.otherwise


def reported_vs_reproduced(study: Study) -> str:
    """Every number of the paper beside ours and a verdict in words, then the same by what it shows, as Markdown.

    A synthetic study has none of ours: a phantom cannot test a number of the paper.  Where patients of the paper
    are missing, a sentence says how many and why, and the verdict is "not comparable".
    """
    known = not study.is_synthetic and study.endpoint == "her2" and (study.results / "flow.json").is_file()
    short = _shortfalls(study.results) if known else {}
    rows, verdicts = [], defaultdict(list)
    for r in _reported():
        ours = ("–", "not testable on this cohort") if study.is_synthetic else _verdict(study, r, short)
        rows.append((r.item, r.reported, r.source, *ours))
        verdicts[r.part].append(ours[1])
    parts = list(_parts(study, verdicts))
    return fill_in("reported.md.jinja", study=study, banner=BANNER, short=short.values(), rows=rows, parts=parts)


def _number(value):
    """A measure with three decimals, a count as it is, a dash for anything else."""
    return f"{value:.3f}" if isinstance(value, float) else value if isinstance(value, int) else "–"


def _cells(name, tests):
    """One measure of every population, with its interval where it has one."""
    low, high = ("low", "high") if name == "auc" else (f"{name}_low", f"{name}_high")
    for test in tests:
        has_interval = isinstance(test.get(low), float)
        yield _with_interval(test[name], test[low], test[high]) if has_interval else _number(test.get(name))


def metric_rows(metrics: dict) -> Iterator[tuple]:
    """metrics.json → a heading, and rows of name, internal and every external site; a measure takes its interval
    along, a rate its threshold.  Last what the averaged probabilities give, the ensemble's."""
    chosen = f" at the seeds' thresholds, chosen on validation (mean {metrics['threshold']:.3f})"
    tests = metrics["internal"], *metrics["external"].values()
    yield "", "internal test", *metrics["external"]
    for start, of in (("", tests), ("ensemble: ", [test["ensemble"] for test in tests])):
        cut = chosen if not start else chosen.replace("the seeds' thresholds", "its threshold").partition(" (")[0]
        for name, value in of[0].items():
            if isinstance(value, int | float) and not re.fullmatch("(.*_)?(low|high)", name):
                title = "AUC" if name == "auc" else name.replace("_at_threshold", cut).replace("_", " ")
                yield start + title, *_cells(name, of)


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
    """The reference's model card as Markdown, from metrics.json, flow.json and the digests of the frozen weights;
    before it what the Hugging Face Hub reads of one.

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
    splits = [(k, v["patients"], v["positives"]) for k, v in flow["splits"].items()]
    header, *numbers = metric_rows(metrics)
    settings = {"models": {"thda": study.section("models")["thda"]}}  # of the reference, which is THDA
    settings["train"] = {k: v for k, v in study.section("train").items() if k != "jobs"}
    (flat,) = pd.json_normalize(settings).to_dict("records")  # {dotted name: value}
    return fill_in(
        "model_card.md.jinja",
        study=study,
        reference=metrics["reference"],
        weights=digests,
        splits=splits,
        excluded=flow["excluded"],
        tests={"internal test": metrics["internal"]} | metrics["external"],
        header=header,
        metrics=numbers,
        settings=[(f"`{k}`", v if isinstance(v, str) else json.dumps(v)) for k, v in flat.items()],
        citation=citation,
        cite=_cite(citation),
    )
