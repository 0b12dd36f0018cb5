"""Benchmarks: the README shows what their scripts wrote, and they measure as they say."""

import json
from itertools import count
from pathlib import Path

import pytest
import table
import timing

BENCHMARKS = Path(table.__file__).parent
WRITTEN = ("reading", "normalization", "n4", "patient", "model", "training_step")


def test_the_table_in_the_readme_is_that_of_the_committed_files():
    readme = table.README.read_text("utf-8")
    assert table.renewed(readme) == readme, "run: python benchmarks/table.py"


def test_every_script_that_writes_a_result_has_a_row():
    writes = {p.stem for p in BENCHMARKS.glob("*.py") if "write(__file__" in p.read_text("utf-8")}
    assert writes == {*WRITTEN}
    assert {p.stem for p in BENCHMARKS.glob("*.json")} | {"gpu"} == {row.__name__ for row in table.ROWS}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_committed_file_names_its_machine_and_packages(name):
    about = json.loads((BENCHMARKS / f"{name}.json").read_text("utf-8"))["machine"]
    assert about["processor"] and about["cores"] > 0 and about["load_before"] >= 0
    assert about["packages"] and all(about["packages"].values())


def test_the_readme_says_how_low_r_falls_in_the_benchmark_of_n4():
    found = json.loads((BENCHMARKS / "n4.json").read_text("utf-8"))
    lapgm, ours = (found["arms"][name]["r"]["lowest"] for name in ("LapGM, least left", "her2core"))
    slabs = min(slab["r"]["lowest"] for slab in found["slabs"].values())
    said = f"The lowest r of its 24 patients is {lapgm:.2f}, that of ours {ours:.2f}; on the slabs ours falls to"
    said += f" {slabs:.2f}"
    assert said.replace("-", "−") in table.README.read_text("utf-8")


def test_the_readme_says_beside_notebook_3s_twelve_how_often_n4_is_wrong():
    many = json.loads((BENCHMARKS / "n4.json").read_text("utf-8"))["many"]
    said = f"of {many['r']['n']} others {many['wrong']} have an r below {many['wrong_below']}, the lowest"
    assert f"{said} {many['r']['lowest']:.2f} (".replace("-", "−") in table.README.read_text("utf-8")


def test_another_number_in_a_file_is_another_table(monkeypatch):
    readme = table.README.read_text("utf-8")
    found_by = table.found_by
    monkeypatch.setattr(table, "found_by", lambda name: found_by(name) | {"gain": 9.99} if found_by(name) else None)
    assert "9.99 × the slices per second" in table.renewed(readme)


@pytest.mark.parametrize("text", ["", table.BEGIN, f"{table.END} {table.BEGIN}", 2 * f"{table.BEGIN} {table.END}"])
def test_marks_that_are_not_there_once_are_an_error(text):
    with pytest.raises(ValueError, match="each once"):
        table.renewed(text)


def test_arms_take_turns_forwards_and_backwards_and_the_first_call_does_not_count():
    called, ticks = [], count()
    arms = {name: lambda name=name: called.append(name) for name in "ab"}
    times = timing.in_turns(arms, 3, lambda: next(ticks))
    assert "".join(called) == "ab" + "ab" + "ba" + "ab"
    assert times == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_a_spread_is_median_and_ends_and_ratios_are_of_the_same_round():
    assert timing.spread([3.0, 1.0, 10.0]) == {"median": 3.0, "lowest": 1.0, "highest": 10.0, "n": 3}
    assert timing.times_of({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b")["highest"] == 3.0
