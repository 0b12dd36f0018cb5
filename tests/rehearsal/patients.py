"""Who is in the stand-in archives: real identifiers, balanced over split and label, and some who cannot be used."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from her2core.cohorts.collections import collections
from her2core.phantom.truth import draw_clinical

_SPLITS = (0, 2, 1)  # train, validation, test in the column `test`
# what is wrong with a patient → dataset, and the kind of reason the study has to give
ODD = {
    "empty mask": ("spy2", "mask unusable"),
    "not served": ("spy2", "not in the archive"),
    "another volume in the table": ("spy2", "images contradict the table"),
    "HER2 unknown": ("spy1", "HER2 unknown"),
    "negative intensities": ("spy1", "cannot be prepared"),
    "benign": ("ambl", "no malignant lesion with HER2 known"),
    "in situ": ("ambl", "no invasive cancer"),
    "equivocal": ("duke", "HER2 equivocal"),
    "bilateral": ("duke", "bilateral cancer"),
}
# one of each collection has the matrix and the phases of the real one
REAL_SIZE = {
    "ACRIN-6698-102212": (8, 80, 256, 256),
    "ISPY1_1001": (3, 60, 256, 256),
    "AMBL-001": (5, 116, 512, 512),
}


@dataclass(frozen=True)
class Size:
    """How many are in, those of ODD apart: spy2 and spy1 in train, validation, test.  real: see REAL_SIZE."""

    spy2: tuple[int, int, int]
    spy1: tuple[int, int, int]
    ambl: int
    duke: int
    real: bool


FULL = Size(spy2=(12, 6, 6), spy1=(6, 4, 4), ambl=10, duke=8, real=True)
REDUCED = Size(spy2=(4, 2, 2), spy1=(2, 2, 2), ambl=4, duke=4, real=False)


@dataclass(frozen=True)
class Person:
    """One patient.  test: code of the split.  shape: (T, Z, Y, X) of a real size, None for a coarse phantom."""

    patient: str
    dataset: str
    test: int | None
    her2: int
    seed: int
    age: int
    hr: int
    menopause: str
    shape: tuple[int, int, int, int] | None
    odd: str


def _group(size, dataset):
    """(split, label, what is odd) of a collection's patients, those of real size first."""
    count = getattr(size, dataset)
    counts = {None: count} if isinstance(count, int) else dict(zip(_SPLITS, count, strict=True))
    yield from ((split, k % 2, "") for split, count in counts.items() for k in range(count))
    split = None if isinstance(count, int) else 0
    yield from ((split, 1, odd) for odd, (of, _) in ODD.items() if of == dataset)


def draw(size: Size, manifests: Path) -> list[Person]:
    """The patients, identifiers taken from the head of the committed manifests."""
    rng, people = np.random.default_rng(13), []
    for dataset, collection in collections().items():
        known = pd.read_csv(manifests / f"{collection.manifest}.csv")["patient"].drop_duplicates()
        for pid, (split, her2, odd) in zip(known, _group(size, dataset), strict=False):
            clinical = draw_clinical(rng, her2=her2)
            shape = REAL_SIZE.get(pid) if size.real else None
            people.append(Person(pid, dataset, split, her2, 9000 + len(people), **clinical, shape=shape, odd=odd))
    return people
