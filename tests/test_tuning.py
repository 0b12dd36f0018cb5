"""Recipes are compared pair by pair, and those that were tried are not tried again."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from her2core import tuning

LONG, SHORT = ({"epochs": n, "batch_size": 32, "lr": 0.004} for n in (14, 8))


class FakeRun:
    """A run whose trainings are rows that count the calls."""

    def __init__(self, name="thda"):
        self.name, self.calls = name, []

    def slices(self):
        return None

    def each_of(self, what, train, label):
        recipe = train.keywords["recipe"]
        self.calls.append(recipe)
        return [
            {"run": self.name} | recipe | {"seed": seed, "kept": 0.8, "last": 0.7, "cpu_s": 1.0} for seed in what
        ]


def test_a_recipe_in_the_table_is_not_trained_again(tmp_path):
    run, path = FakeRun(), tmp_path / "tuning.csv"
    tuning.try_recipes(run, [LONG], [0, 1], path)
    table = tuning.try_recipes(run, [LONG, SHORT], [0, 1], path)
    assert run.calls == [LONG, SHORT]
    assert table.equals(pd.read_csv(path)) and list(table["epochs"]) == [14, 14, 8, 8]


def test_another_network_tries_the_same_recipe_anew(tmp_path):
    runs = FakeRun("vit"), FakeRun("cvt")
    for run in runs:
        table = tuning.try_recipes(run, [SHORT], [0, 1], tmp_path / "tuning.csv")
    assert [run.calls for run in runs] == [[SHORT], [SHORT]] and list(table["run"]) == ["vit"] * 2 + ["cvt"] * 2


def test_the_difference_is_paired_by_seed_and_has_students_interval():
    kept = {14: [0.80, 0.84, 0.82], 8: [0.79, 0.84, 0.79]}
    tables = [pd.DataFrame(r | {"seed": range(3), "kept": kept[r["epochs"]], "cpu_s": 5.0}) for r in (LONG, SHORT)]
    found = tuning.compare_recipes(pd.concat(tables), LONG)
    expected = stats.ttest_rel(kept[8], kept[14]).confidence_interval(0.95)
    assert found.loc[1, "difference"] == pytest.approx(np.mean(kept[8]) - np.mean(kept[14]))
    assert tuple(found.loc[1, ["low", "high"]]) == pytest.approx(tuple(expected))
    assert tuple(found.loc[0, ["difference", "low", "high"]]) == (0, 0, 0)
