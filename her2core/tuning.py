"""Recipes of training compared on validation patients: run by hand, in notebook 11, and never by `dvc repro`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from her2core.baselines import build_model
from her2core.records import whole
from her2core.runs import Run
from her2core.train import fit

_RECIPE = ["epochs", "batch_size", "lr"]  # fields of TrainConfig
_KEYS = ["run", *_RECIPE]


def _try(seed, run, slices, recipe):
    """One training → its row of the table."""
    config, start = replace(run.training, **recipe), time.process_time()
    build = partial(build_model, run.model, run.models, slices.images.shape[-1])
    _, history = fit(build, slices.of_split("train"), slices.of_split("validation"), config, seed)
    aucs = [row["validation_auc"] for row in history]
    seconds = round(time.process_time() - start, 1)
    return (
        {"run": run.name}
        | recipe
        | {"seed": seed, "kept": round(max(aucs), 6), "last": round(aucs[-1], 6), "cpu_s": seconds}
    )


def try_recipes(run: Run, recipes: Sequence[Mapping], seeds: Sequence[int], path: Path) -> pd.DataFrame:
    """Train a run under each recipe with each seed; path: the table, which grows recipe by recipe.

    Recipes that stand there already are not trained again: delete the file after a change of the data or code.
    Columns: run, epochs, batch_size, lr, seed; kept, last: validation AUC of the kept and of the last epoch; cpu_s.
    """
    slices = run.slices()
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=_KEYS)
    for recipe in recipes:
        if (table[_KEYS] == pd.Series({"run": run.name} | dict(recipe))[_KEYS]).all(axis=1).any():
            continue
        rows = run.each_of(
            seeds, partial(_try, run=run, slices=slices, recipe=dict(recipe)), f"{run.name}, {recipe}"
        )
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if len(table) else pd.DataFrame(rows)
        with whole(path) as part:
            table.to_csv(part, index=False)
    return table


def compare_recipes(table: pd.DataFrame, first: Mapping, confidence: float = 0.95) -> pd.DataFrame:
    """Each recipe of one run beside `first`: mean validation AUC, SD over seeds, paired difference, t interval.

    The same patients validate all, so the interval is over seeds and says nothing of other patients.
    """
    by_recipe = {key: part.set_index("seed") for key, part in table.groupby(_RECIPE, sort=False)}
    base, rows = by_recipe[tuple(first[key] for key in _RECIPE)], []
    for key, part in by_recipe.items():
        difference = (part["kept"] - base["kept"]).dropna()
        spread = difference.std(ddof=1) / np.sqrt(len(difference))
        half = stats.t.ppf((1 + confidence) / 2, len(difference) - 1) * spread
        row = dict(zip(_RECIPE, key, strict=True)) | {"seeds": len(part), "cpu_s": part["cpu_s"].median()}
        row |= {"auc": part["kept"].mean(), "sd": part["kept"].std(ddof=1), "difference": difference.mean()}
        rows.append(row | {"low": difference.mean() - half, "high": difference.mean() + half})
    return pd.DataFrame(rows)
