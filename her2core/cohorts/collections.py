"""The public collections, as collections.yaml declares them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from her2core.config import build, read_yaml


@dataclass(frozen=True)
class Collection:
    """site: its name for people.  pattern: of its identifiers.  external: whether its patients are a test set of
    their own.  manifest: the name of its CSV.  sources: where it can come from.  labels: which reader of
    `archive.LABELS` knows its patients.  phases: "table", "time" or "all".  mask: what a SEG says, as in
    `read_seg`, or "lesions".  published: patients in BreastDCEDL, and those with a HER2 status."""

    site: str
    pattern: str
    external: bool
    manifest: str
    sources: tuple[str, ...]
    labels: str
    phases: str
    mask: str
    published: tuple[int, int] | None


@cache
def collections() -> dict[str, Collection]:
    """{dataset: its collection}."""
    path = Path(__file__).with_suffix(".yaml")
    return {name: build(Collection, values, f"{path.name}: {name}") for name, values in read_yaml(path).items()}
