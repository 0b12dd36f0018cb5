"""What the paper leaves open, as a table: what is known, what is taken here, what else could be, and its effect.

The paper's full text and code were not available; what is known comes from its abstract ("abstract"), from a
summary made from the PDF ("summary"), or from a third party that audited the authors' repository ("third
party").  "not known" means that nobody says.  assumptions.csv has a row per alternative: the parameter's place in
params.yaml, what is known, the alternative in words, and the run's model that takes it where it is measured.  A
choice that the code makes and no parameter holds has a name, and what is taken in words.
"""

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from her2core.config import lookup


def assumptions() -> list[dict[str, str]]:
    """The open choices: rows of parameter, known, alternative, model, taken."""
    return list(csv.DictReader(Path(__file__).with_name("assumptions.csv").read_text("utf-8").splitlines()))


def _shown(value):
    """A parameter's value in a table's cell."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(str, value)) + ")"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _effect(model, pairs):
    """The measured difference of an alternative, in words."""
    if not model or model not in pairs.index:
        return "not measured"
    row = pairs.loc[model]
    return f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}): {row['verdict']}"


def markdown(sections: dict[str, Any], pairs: pd.DataFrame, cohort: str, note: str) -> str:
    """The table as Markdown.

    sections: the study's parameters.  pairs: `evaluate.comparisons`, indexed by model.  note: stands above it.
    """
    lines = [f"# What the paper leaves open ({cohort} cohort)", "", note, ""]
    lines += ["| parameter | known of the paper | taken here | alternative | difference in AUC, and verdict |"]
    lines += ["|---|---|---|---|---|"]
    before = None
    for row in assumptions():
        parameter, name = row["parameter"], row["alternative"]
        if (value := row["taken"] or lookup(sections, parameter)) is None:
            raise ValueError(f"params.yaml: {cohort} has no {parameter}")
        named = parameter if row["taken"] else f"`{parameter}`"
        first = "| | | |" if parameter == before else f"| {named} | {row['known']} | {_shown(value)} |"
        lines.append(f"{first} {name} | {_effect(row['model'], pairs) if name else ''} |")
        before = parameter
    return "\n".join(lines) + "\n"
