"""The public collections, as collections.yaml declares them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from her2core.config import build, read_yaml


@dataclass(frozen=True)
class Collection:
    """One collection."""

    site: str  # its name for people
    pattern: str  # of its identifiers
    external: bool  # whether its patients are a test set of their own
    manifest: str  # the name of its CSV
    sources: tuple[str, ...]  # where it can come from
    labels: str  # which reader of `archive.LABELS` knows its patients
    phases: str  # "table", "time" or "all"
    mask: str  # what a SEG says, as in `read_seg`, or "lesions"
    published: tuple[int, int] | None  # patients in BreastDCEDL, and those with a HER2 status


@cache
def collections() -> dict[str, Collection]:
    """{dataset: its collection}."""
    path = Path(__file__).with_suffix(".yaml")
    return {name: build(Collection, values, f"{path.name}: {name}") for name, values in read_yaml(path).items()}
