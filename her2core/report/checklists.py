"""Which file answers which item of the reporting standards.

One table a standard: item, what it asks in our own short words, status, files relative to the compendium (in which
{cohort} stands for the study), remark.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from her2core.config import BANNER, Study
from her2core.report.documents import markdown_table

_STANDARDS = {
    "TRIPOD+AI (doi 10.1136/bmj-2023-078378)": "tripod_ai.csv",
    "CLAIM 2024 (doi 10.1148/ryai.240300)": "claim.csv",
    "METRICS (doi 10.1186/s13244-023-01572-w)": "metrics_standard.csv",
}
_STATUS = {
    "yes": "satisfied",
    "part": "in part",
    "author": "author must write",
    "no": "not satisfied",
    "n/a": "does not apply",
}


def checklist_items(name: str, cohort: str) -> Iterator[tuple[str, str, str, list[str], str]]:
    """Rows of a standard: item, in short, status, paths relative to the compendium, remark."""
    with open(Path(__file__).parent / name, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            paths = row["files"].replace("{cohort}", cohort).split()
            if row["status"] not in _STATUS or (row["status"] in ("yes", "part")) != bool(paths):
                raise ValueError(f"{name}, item {row['item']}: status {row['status']!r} with {len(paths)} files")
            yield row["item"], row["short"], _STATUS[row["status"]], paths, row["remark"]


def checklist(study: Study) -> str:
    """The reporting standards as Markdown, to stand in results/<study>/."""
    lines = [f"# Reporting standards ({study.name} cohort)", ""]
    if study.is_synthetic:
        lines += [f"**{BANNER}.** What is said of patients is said of the phantom.", ""]
    lines += [
        "Items in our own short words; the standards say what each asks. *In part*: the remark says what lacks. "
        "*Author must write*: software cannot know it.",
        "",
    ]
    for standard, name in _STANDARDS.items():
        rows = list(checklist_items(name, study.name))
        counts = {status: sum(row[2] == status for row in rows) for status in _STATUS.values()}
        lines += [f"## {standard}", "", ", ".join(f"{s}: {n}" for s, n in counts.items() if n) + ".", ""]
        cells = [
            (i, short, s, ", ".join(f"[`{p}`](../../{p})" for p in paths), r) for i, short, s, paths, r in rows
        ]
        lines += [*markdown_table(("item", "in short", "status", "file", "remark"), cells), ""]
    return "\n".join(lines)
