"""The shortcut probe: can the network tell the sites apart, and how far would that alone carry it?

A network that recognises the hospital can predict HER2 from the hospital's prevalence without looking at the
tumour.  So the same network is trained to tell the sites of the training patients apart, and HER2 is predicted
from the site alone; both stand beside the main result.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from her2core.baselines import build_model
from her2core.dataset import Slices
from her2core.runs import Run
from her2core.train import fit, predict


def label_by_site(slices: Slices, site: dict[str, str]) -> tuple[Slices, list[str]]:
    """Slices whose label is the site, 1 for the second in alphabetical order, and both names.

    site: {patient: name}.
    """
    inside = slices.of_split("train", "validation", "test")
    names = sorted({site[p] for p in inside.patient})
    if len(names) != 2:
        raise ValueError(f"patients of {', '.join(names)}: the probe tells two sites apart")
    return replace(inside, label=np.array([int(site[p] == names[1]) for p in inside.patient])), names


def _probe_seed(seed, run, slices, config):
    """Train one network on the sites; returns its predictions of the test patients."""
    build = partial(build_model, run.model, run.models, slices.images.shape[-1])
    model, _ = fit(build, slices.of_split("train"), slices.of_split("validation"), config, seed)
    patient, label, probability = predict(model, slices.of_split("test"), config.aggregate)
    rows = {"run": "site from image", "seed": seed, "patient": patient, "label": label}
    return pd.DataFrame(rows | {"probability": probability.round(6)})


def probe_sites(run: Run, slices: Slices, site: dict[str, str]) -> pd.DataFrame:
    """Predictions of the site, one row per test patient and seed, by trainings on the run's device.

    A quarter of the epochs is ample for it.
    """
    labelled, names = label_by_site(run.placed(slices), site)
    config = replace(run.training, epochs=max(run.training.epochs // 4, 1))
    train = partial(_probe_seed, run=run, slices=labelled, config=config)
    return pd.concat(run.each_seed(train, f"sites {names[0]}, {names[1]}"), ignore_index=True)


def her2_by_site(table: pd.DataFrame) -> pd.DataFrame:
    """Probability of HER2 by the training prevalence of the patient's site.

    table: one row per patient with split, dataset and her2.  Returns its test rows with `probability`.
    """
    prevalence = table[table["split"] == "train"].groupby("dataset")["her2"].mean()
    test = table[table["split"] == "test"]
    if strangers := set(test["dataset"]) - set(prevalence.index):
        raise ValueError(f"no training patients of {', '.join(sorted(strangers))}")
    return test.assign(probability=test["dataset"].map(prevalence))
