"""Which file answers which item of the reporting standards.

One table a standard: item, what it asks in our own short words, status, files relative to the compendium (in which
{cohort} stands for the study), remark.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from her2core.config import BANNER, Study
from her2core.report.documents import fill_in

_STANDARDS = {
    "TRIPOD+AI (doi 10.1136/bmj-2023-078378)": "tripod_ai.csv",
    "CLAIM 2024 (doi 10.1148/ryai.240300)": "claim.csv",
    "METRICS (doi 10.1186/s13244-023-01572-w)": "metrics_standard.csv",
    "FUTURE-AI (doi 10.1136/bmj-2024-081554)": "future_ai.csv",
}
_WITH_FILES = ("satisfied", "in part")
_STATUS = (*_WITH_FILES, "author must write", "not satisfied", "does not apply")


def checklist_items(name: str, cohort: str) -> Iterator[tuple[str, str, str, list[str], str]]:
    """Rows of a standard: item, in short, status, paths relative to the compendium, remark."""
    with open(Path(__file__).parent / name, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            paths = row["files"].replace("{cohort}", cohort).split()
            if row["status"] not in _STATUS or (row["status"] in _WITH_FILES) != bool(paths):
                raise ValueError(f"{name}, item {row['item']}: status {row['status']!r} with {len(paths)} files")
            yield row["item"], row["short"], row["status"], paths, row["remark"]


def checklist(study: Study) -> str:
    """The reporting standards as Markdown, to stand in results/<study>/."""
    standards = []
    for standard, name in _STANDARDS.items():
        rows = list(checklist_items(name, study.name))
        counts = {status: sum(row[2] == status for row in rows) for status in _STATUS}
        linked = [(*row[:3], ", ".join(f"[`{p}`](../../{p})" for p in row[3]), row[4]) for row in rows]
        standards.append((standard, counts, linked))
    return fill_in("checklists.md.jinja", study=study, banner=BANNER, standards=standards)
