"""Can the sites be told apart, and how far would that carry?"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from prepared_samples import make_run

from her2core import probe
from her2core.auc import auc
from her2core.baselines import ModelConfig
from her2core.dataset import AugmentConfig, Slices
from her2core.model import ThdaConfig
from her2core.train import TrainConfig

CONFIG = TrainConfig(
    seeds=(0, 1), epochs=8, batch_size=8, lr=5e-3, device="cpu", jobs=1, validate_every=1,
    augment=AugmentConfig(rotate_deg=0, scale=0, shift=0),
)  # fmt: skip
MODELS = ModelConfig(ThdaConfig(width=8, blocks=(1, 1, 1, 1), dropout=0.0))


@pytest.fixture
def cohort(generator):
    """48 patients of two sites, the second brighter; HER2 at random; and two patients of a third, external site."""
    n = 50
    patient = np.array([f"p{k:02d}" for k in range(n)])
    split = np.repeat(["train", "validation", "test", "external"], [24, 12, 12, 2])
    site = {
        p: "ambl" if s == "external" else ("one", "two")[k % 2]
        for k, (p, s) in enumerate(zip(patient, split, strict=True))
    }
    images = torch.randint(0, 100, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[1::2] += 100
    label = (np.arange(n) // 2) % 2
    return Slices(images, patient, split, label), site


def test_a_site_that_shows_in_the_image_is_told_apart(cohort):
    slices, site = cohort
    told = probe.probe_sites(make_run(None, None, models=MODELS, training=CONFIG), slices, site)
    assert told.groupby("seed").size().tolist() == [12, 12] and set(told["run"]) == {"site from image"}
    assert [site[p] == "two" for p in told["patient"]] == (told["label"] == 1).tolist()
    assert all(auc(part["label"], part["probability"]) > 0.9 for _, part in told.groupby("seed"))


def test_a_probe_trains_where_the_run_does_wherever_its_slices_lie(cohort, monkeypatch):
    asked, seen = [], []

    def fit(build, train, validation, config, seed):
        seen.append((seed, train.images.device.type, validation.images.device.type))
        return None, []

    # "meta" stands for a GPU: another device, which every machine has
    monkeypatch.setattr("her2core.runs.choose_device", lambda name: asked.append(name) or torch.device("meta"))
    monkeypatch.setattr(probe, "fit", fit)
    monkeypatch.setattr(probe, "predict", lambda *_: (np.array(["p"]), np.array([1]), np.array([0.5])))
    run = make_run(None, None, models=MODELS, training=replace(CONFIG, device="auto"))
    probe.probe_sites(run, *cohort)
    assert seen == [(0, "meta", "meta"), (1, "meta", "meta")] and set(asked) == {"auto"}


def test_external_patients_are_no_site_of_the_probe(cohort):
    slices, site = cohort
    labelled, names = probe.label_by_site(slices, site)
    assert names == ["one", "two"] and "external" not in labelled.split
    assert labelled.label.tolist() == [int(site[p] == "two") for p in labelled.patient]


def test_more_or_fewer_than_two_sites_are_refused(cohort):
    slices, site = cohort
    with pytest.raises(ValueError, match="patients of one: the probe tells two sites apart"):
        probe.label_by_site(slices, dict.fromkeys(site, "one"))


@pytest.fixture
def table():
    rows = [("train", "one", 1), ("train", "one", 0), ("train", "two", 0), ("test", "one", 1), ("test", "two", 0)]
    return pd.DataFrame(rows, columns=["split", "dataset", "her2"])


def test_the_site_alone_predicts_its_training_prevalence(table):
    assert probe.her2_by_site(table)["probability"].tolist() == [0.5, 0.0]


def test_a_site_without_training_patients_has_no_prevalence(table):
    table.loc[4, "dataset"] = "three"
    with pytest.raises(ValueError, match="no training patients of three"):
        probe.her2_by_site(table)
