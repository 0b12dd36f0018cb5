"""What is declared of the public collections holds in the manifests and in the code that reads them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from her2core.cohorts.archive import LABELS
from her2core.cohorts.collections import Collection, collections
from her2core.cohorts.manifest import read_manifest
from her2core.formats.seg import MEANINGS

TOP = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", collections())
def test_a_collections_manifest_holds_its_patients_and_nobody_elses(name):
    one = collections()[name]
    patients = set(read_manifest(TOP / f"manifests/{one.manifest}.csv")["patient"])
    assert patients and all(re.fullmatch(one.pattern, patient) for patient in patients)
    others = [other.pattern for key, other in collections().items() if key != name]
    assert not any(re.fullmatch(pattern, patient) for pattern in others for patient in patients)


@pytest.mark.parametrize("name", collections())
def test_what_is_declared_is_known_to_the_code(name):
    one = collections()[name]
    assert one.labels in LABELS and one.phases in ("table", "time", "all")
    assert one.mask in (*MEANINGS, "lesions") and set(one.sources) <= {"idc", "zenodo"}
    assert isinstance(one, Collection) and replace(one, site="x").site == "x"


def test_internal_are_the_collections_with_a_published_split():
    found = collections()
    assert {name for name, one in found.items() if not one.external} == {"spy1", "spy2"}
    assert sum(one.published[1] for one in found.values() if one.published) == 1149
