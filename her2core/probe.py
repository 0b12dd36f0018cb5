"""What sites have to do with it: can the network tell them apart, how far would that alone carry it, and what is
left of its AUC at a site that it was not trained on?

A network that recognises the hospital can predict the label from the hospital's prevalence without looking at the
tumour.  So the same network is trained to tell the sites of the training patients apart, and the label is predicted
from the site alone; both stand beside the main result.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from her2core.baselines import build_model
from her2core.dataset import Slices
from her2core.kinetics import simple_predictions
from her2core.runs import Run
from her2core.simple import CROP
from her2core.train import fit, predict


def label_by_site(slices: Slices, site: dict[str, str]) -> Slices | None:
    """Internal slices labelled 1 at one site, 0 elsewhere: of two sites the second by name, of more the largest.

    site: {patient: name}.  None where there is one site only, or a split that has not both labels.
    """
    inside = slices.of_split("train", "validation", "test")
    at = np.array([site[p] for p in inside.patient])
    names, sizes = np.unique(at, return_counts=True)
    one = names[-1] if len(names) == 2 else names[sizes.argmax()]
    labels = {(split, here == one) for split, here in zip(inside.split, at, strict=True)}
    return replace(inside, label=(at == one).astype(int)) if len(labels) == 6 else None


def _probe_seed(seed, run, slices):
    """Train one network on the sites; returns its predictions of the test patients."""
    model = _trained(run, slices.of_split("train"), slices.of_split("validation"), seed)
    patient, label, probability = predict(model, slices.of_split("test"), run.training.aggregate)
    rows = {"run": "site from image", "seed": seed, "patient": patient, "label": label}
    return pd.DataFrame(rows | {"probability": probability.round(6)})


def _trained(run, train, validation, seed):
    build = partial(build_model, run.model, run.models, train.images.shape[-1])
    return fit(build, train, validation, run.training, seed)[0]


def probe_sites(run: Run, slices: Slices, site: dict[str, str]) -> pd.DataFrame | None:
    """Predictions of the site, one row per test patient and seed, by trainings on the run's device; None where
    `label_by_site` has nothing to tell.
    """
    if (labelled := label_by_site(run.placed(slices), site)) is None:
        return None
    train = partial(_probe_seed, run=run, slices=labelled)
    return pd.concat(run.each_of(run.training.seeds, train, "sites"), ignore_index=True)


def unequal_prevalence(slices: Slices, site: dict[str, str]) -> Slices | None:
    """The internal slices without every second negative patient of one site and every second positive one of the
    others: there the site predicts the label.  The site is that of `label_by_site`; None as there."""
    if (labelled := label_by_site(slices, site)) is None:
        return None
    inside = slices.where(slices.split != "external")
    columns = {"patient": inside.patient, "label": inside.label, "at": labelled.label, "split": inside.split}
    one = pd.DataFrame(columns).iloc[inside.patients()[0]]
    too_many = one["label"] != one["at"]  # negatives at the site, positives elsewhere
    place = one.groupby(["split", "label", "at"]).cumcount()
    return inside.where(~np.isin(inside.patient, one.loc[too_many & (place % 2 == 1), "patient"]))


def probe_prevalence(run: Run, slices: Slices, site: dict[str, str]) -> pd.DataFrame | None:
    """Predictions of the label by networks trained where prevalence differs between sites, and by the run's own
    networks: the test patients of `unequal_prevalence`, with run, seed, patient, label, probability and site.

    A network that uses the shortcut gains in the pooled AUC, and nothing within the sites."""
    if (chosen := unequal_prevalence(slices, site)) is None:
        return None
    train = partial(_probe_seed, run=run, slices=run.placed(chosen))
    told = pd.concat(run.each_of(run.training.seeds, train, "unequal prevalence"), ignore_index=True)
    frozen = run.predict("test", slices=chosen)[["run", "seed", "patient", "label", "probability"]]
    both = pd.concat([told.assign(run="trained there"), frozen], ignore_index=True)
    return both.assign(site=both["patient"].map(site))


def sites_from_pixels(run: Run, sheet: pd.DataFrame, slices: Slices, site: dict[str, str]) -> pd.DataFrame | None:
    """The same from grey levels of the crop alone, by a logistic regression: what a network need not learn.

    sheet: `simple.worksheet`'s.  None as of `probe_sites`."""
    if (labelled := label_by_site(slices, site)) is None:
        return None
    at, split = (dict(zip(labelled.patient, of, strict=True)) for of in (labelled.label, labelled.split))
    inside = sheet[sheet["patient"].isin(at)]
    inside = inside.assign(label=inside["patient"].map(at), split=inside["patient"].map(split))
    found = simple_predictions(inside, run.cohort, ("test",), run.training.seeds, {"site from pixels": CROP})
    return found[found["model"] == "site from pixels"]


def prevalence_of_site(table: pd.DataFrame) -> pd.DataFrame:
    """Probability of the label by the training prevalence of the patient's site; of a site that has no training
    patients by that of all.

    table: one row per patient with split, dataset and label.  Returns its test rows with `probability`.
    """
    train, test = (table[table["split"] == split] for split in ("train", "test"))
    prevalence = test["dataset"].map(train.groupby("dataset")["label"].mean())
    return test.assign(probability=prevalence.fillna(train["label"].mean()))


def leave_sites_out(run: Run, slices: Slices, site: dict[str, str]) -> pd.DataFrame:
    """The prediction table of networks that were trained without one internal site, for each site in turn: its
    patients of every split, as `external`, with a column `site`.

    slices: `run.slices()`, of the published split; a window that learns has learnt from all training patients.
    site: {patient: name}.  ValueError for a single site, and under folds."""
    inside, at = slices.split != "external", np.array([site[p] for p in slices.patient])
    if run.folds or len(names := sorted(set(at[inside]))) < 2:
        raise ValueError("leaving a site out needs two internal sites, and the published split instead of folds")
    jobs = [(name, seed) for name in names for seed in run.training.seeds]
    train = partial(_without_site, run=run, slices=run.placed(slices), at=at)
    return pd.concat(run.each_of(jobs, train, "sites left out"), ignore_index=True)


def _without_site(job, run, slices, at):
    """The predictions for one site of a network trained without it."""
    (name, seed), own = job, at == job[0]
    train, validation = (slices.where(~own & (slices.split == split)) for split in ("train", "validation"))
    model = _trained(run, train, validation, seed)
    patient, label, probability = predict(model, slices.where(own), run.training.aggregate)
    rows = {"cohort": run.cohort, "patient": patient, "split": "external", "label": label, "run": run.name}
    rows |= {"model": run.model, "window": run.window, "bias_field": run.bias_field, "seed": seed}
    return pd.DataFrame(rows | {"probability": probability.round(6), "site": name})
