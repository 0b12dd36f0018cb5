"""What the paper leaves open, as a table: what is known, what is taken here, what else could be, and its effect.

The paper's full text and code were not available; what is known comes from its abstract ("abstract"), from a
summary made from the PDF ("summary"), or from a third party that audited the authors' repository ("third
party").  "not known" means that nobody says.
"""

from dataclasses import dataclass

from her2core.config import lookup


@dataclass(frozen=True)
class Assumption:
    """One open choice.

    parameter: its place in a cohort's section of params.yaml.  known: what the paper is known to say, and from
    where.  alternatives: {in words: the run's model that takes it, or "" where it is not measured}.
    """

    parameter: str
    known: str
    alternatives: dict[str, str]


ASSUMPTIONS = (
    Assumption(
        "models.thda.head_input",
        '"RGB-fused temporal sequences" (abstract), yet one backbone "for each temporal phase" (summary)',
        {
            "phase and its neighbouring slices": "thda_adjacent",
            "all phases to every head, heads separate": "thda_rgb",
        },
    ),
    Assumption("models.thda.share_weights", "weight-shared (summary)", {"a backbone per phase": "thda_separate"}),
    Assumption(
        "models.thda.attention",
        '"dual attention" (title), "multi-scale spatial attention" (summary); the other half is not named',
        {"channel only": "thda_channel", "spatial only": "thda_spatial", "none": "thda_plain"},
    ),
    Assumption("models.thda.attention_stages", "not known", {"after the last stage only": "thda_last"}),
    Assumption("models.thda.fusion", "not known", {"softmax-weighted sum of the phases": "thda_weighted"}),
    Assumption(
        "models.thda.pretrained",
        "pretrained networks (abstract); which weights is not known",
        {"the other way": ""},
    ),
    Assumption("models.thda.dropout", "not known", {}),
    Assumption(
        "train.aggregate",
        "median over slices was best (third party)",
        {"mean over slices": "aggregate_mean", "maximum over slices": "aggregate_max"},
    ),
    Assumption("train.class_weight", "not known", {"none": ""}),
    Assumption("train.lr", "optimiser, rate, schedule, batch and epochs are not published (third party)", {}),
    Assumption("train.augment", "not published (third party)", {}),
    Assumption("prepare.slices", "not known; 4 or 7 in the group's paper on response (third party)", {}),
    Assumption("prepare.crop_px", "256 × 256 around the tumour, the MinCrop release (authors' README)", {}),
    Assumption("prepare.n4", "N4 was tried; its settings are not known", {}),
)


def shown(value):
    """A parameter's value in a table's cell."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(str, value)) + ")"
    return str(value).lower() if isinstance(value, bool) else str(value)


def effect(model, pairs):
    """The measured difference of an alternative, in words; pairs: `evaluate.comparisons`, indexed by model."""
    if not model or model not in pairs.index:
        return "not measured"
    row = pairs.loc[model]
    return f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}): {row['verdict']}"


def markdown(sections, pairs, cohort, note):
    """The table as Markdown.  sections: the cohort's part of params.yaml; pairs: as `effect`; note: above it."""
    lines = [f"# What the paper leaves open ({cohort} cohort)", "", note, ""]
    lines += ["| parameter | known of the paper | taken here | alternative | difference in AUC, and verdict |"]
    lines += ["|---|---|---|---|---|"]
    for a in ASSUMPTIONS:
        value = lookup(sections, a.parameter)
        if value is None:
            raise ValueError(f"params.yaml: {cohort} has no {a.parameter}")
        first = f"| `{a.parameter}` | {a.known} | {shown(value)} |"
        for name, model in a.alternatives.items() or {"": None}.items():
            lines.append(f"{first} {name} | {effect(model, pairs) if name else ''} |")
            first = "| | | |"
    return "\n".join(lines) + "\n"
