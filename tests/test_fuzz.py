"""The instrument that tries the readers on mutated inputs: it runs, repeats itself, and knows a wrong volume."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzz import OUTCOMES, Bench, same
from fuzz_readers import READERS, Reader

SCRIPT = Path(__file__).with_name("fuzz.py")
LINUX = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="inputs lie in a folder in memory")


def run(*options):
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stdout


@LINUX
@pytest.mark.slow
def test_each_of_a_few_inputs_of_every_reader_has_one_outcome():
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in run("--count", "300", "--jobs", "2").splitlines()]
    table = {row[0]: [int(n) for n in row[1:-1]] for row in rows[2:] if len(row) == len(OUTCOMES) + 3}
    assert table.keys() == {*READERS, "all"}
    assert all(sum(counts) == total for total, *counts in table.values())
    assert 290 <= table["all"][0] <= 300


@LINUX
@pytest.mark.slow
def test_a_seed_gives_the_same_input_and_the_same_outcome_in_another_process():
    (home, *first), (other, *again) = (run("--reader", "idc", "--seed", "3").splitlines() for _ in range(2))
    assert first == again and first[0] in OUTCOMES
    for kept in (home, other):
        assert Path(kept).is_dir()
        shutil.rmtree(Path(kept).parent)


@LINUX
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_has_its_samples_as_the_independent_reading_has_them(reader, tmp_path):
    faithful = Bench(reader, tmp_path / "P1").faithful
    faithful.pop("other", None)  # whose files only stand in for those of the others
    assert faithful and faithful == dict.fromkeys(faithful, True)


# one seed of each cause that 200,000 inputs once found, as benchmarks/fuzz.md has them
FOUND = [
    *(("dicom", seed) for seed in (25873, 21599, 19706, 45084)),
    *(("enhanced", seed) for seed in (3545, 14316)),
    ("manifest", 1453),
    ("seg", 6309),
    ("case", 352),  # found later, and in the independent reading
]


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(("reader", "seed"), FOUND)
def test_what_was_found_once_stays_mended(reader, seed):
    counts, causes, _ = fuzz.fuzz([reader], 1, 1, first=seed)
    assert causes == {} and sum(counts.values()) == 1


@LINUX
def test_what_is_accepted_is_held_against_the_bytes(tmp_path, monkeypatch):
    bench = Bench("idc", tmp_path / "P1")
    sample = bench.samples["hr, her2"]
    truth = bench.truth["hr, her2"]
    bench.lay({"clinical.csv": sample["clinical.csv"].replace(b"102212,1.0,0", b"102212,1.0,1")})
    assert bench.outcome("any", truth) == ("equal", "")  # as the file says now
    assert bench.outcome("refuse", truth)[0] == "different"
    monkeypatch.setattr(type(bench), "right", lambda _: [])
    assert bench.outcome("any", truth)[0] == "different"
    bench.lay({"clinical.csv": b"patient_id\n"})
    assert bench.outcome("any", truth)[0] == "refused well"


def test_equal_is_exact_for_integers_and_four_digits_for_others():
    assert same({"a": [np.nan, 1.0]}, {"a": [np.nan, 1.00001]}) and not same([1], [2]) and not same("1", 1)
    assert not same(np.zeros((2, 3)), np.zeros((3, 2))) and not same({"a": 1}, {"a": 1, "b": 2})


def eat(folder):
    return {"a": np.ones(3 << 30, np.uint8)}


def leave(folder):
    os._exit(3)


def wait(folder):
    time.sleep(60)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("read", "what"),
    [(eat, "MemoryError outside her2core"), (leave, "crashed (exit code 3)"), (wait, "hung, more than 1 s")],
)
def test_a_reader_that_eats_memory_crashes_or_hangs_is_told_with_the_seed(monkeypatch, read, what):
    intact = b"a,b\n1,2\n"

    def only_mutated(folder):
        return {} if (folder / "x.csv").read_bytes() == intact else read(folder)

    monkeypatch.setattr(fuzz, "LIMIT_S", 1)
    monkeypatch.setitem(READERS, "idc", Reader(lambda: {"x": {"x.csv": intact}}, only_mutated, None, 1))
    monkeypatch.setitem(fuzz.MUTATIONS, "idc", (lambda *_: ({"x.csv": b"other"}, "all", "any"),))
    counts, causes, _ = fuzz.fuzz(["idc"], 3, 1)
    assert counts == {("idc", "crashed or hung"): 3}
    assert [(*key, *found[:2]) for key, found in causes.items()] == [("crashed or hung", "idc", what, 3, 0)]
