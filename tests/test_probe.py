"""Can the sites be told apart, and how far would that carry?"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from prepared_samples import make_run

from her2core import probe
from her2core.auc import EvaluateConfig, auc
from her2core.baselines import ModelConfig
from her2core.dataset import AugmentConfig, Slices
from her2core.evaluate import summary
from her2core.model import ThdaConfig
from her2core.simple import CROP
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


def test_grey_levels_alone_may_tell_a_site(cohort, rng):
    slices, site = cohort
    run = make_run(None, None, models=MODELS, training=CONFIG)
    patients, first = np.unique(slices.patient, return_index=True)
    at_two = np.array([site[p] == "two" for p in patients])
    sheet = pd.DataFrame(rng.standard_normal((len(patients), len(CROP))), columns=CROP)
    sheet["crop_late_mean"] += 20 * at_two
    sheet = sheet.assign(patient=patients, split=slices.split[first], label=slices.label[first])
    told = probe.sites_from_pixels(run, sheet, slices, site)
    assert told.groupby("seed").size().tolist() == [12, 12] and auc(told["label"], told["probability"]) > 0.95
    assert [site[p] == "two" for p in told["patient"]] == (told["label"] == 1).tolist()
    assert probe.sites_from_pixels(run, sheet, slices, dict.fromkeys(site, "one")) is None


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
    labelled = probe.label_by_site(slices, site)
    assert "external" not in labelled.split
    assert labelled.label.tolist() == [int(site[p] == "two") for p in labelled.patient]


def test_of_three_sites_the_largest_is_told_from_the_others(cohort):
    slices, site = cohort
    third = {p: "three" if k % 6 == 1 else s for k, (p, s) in enumerate(site.items())}
    labelled = probe.label_by_site(slices, third)
    assert labelled.label.tolist() == [int(third[p] == "one") for p in labelled.patient]


def test_where_a_split_has_one_site_alone_there_is_nothing_to_tell(cohort):
    slices, site = cohort
    run = make_run(None, None, models=MODELS, training=CONFIG)
    assert probe.probe_sites(run, slices, dict.fromkeys(site, "one")) is None
    alone = {p: "one" if k in range(36, 48) else s for k, (p, s) in enumerate(site.items())}
    assert probe.label_by_site(slices, alone) is None


def test_each_site_left_out_is_predicted_by_networks_that_never_saw_it(cohort, monkeypatch):
    slices, site = cohort
    seen = []

    def fit(build, train, validation, config, seed):
        seen.append((seed, {site[p] for p in (*train.patient, *validation.patient)}, len(train.patient)))
        return None, []

    monkeypatch.setattr(probe, "fit", fit)
    monkeypatch.setattr(probe, "predict", lambda _, s, how: (s.patient, s.label, np.full(len(s.patient), 0.5)))
    run = make_run(None, None, models=MODELS, training=CONFIG)
    table = probe.leave_sites_out(run, slices, site)
    assert seen == [(0, {"two"}, 12), (1, {"two"}, 12), (0, {"one"}, 12), (1, {"one"}, 12)]
    assert table.groupby(["site", "seed"]).size().to_dict() == {(s, k): 24 for s in ("one", "two") for k in (0, 1)}
    assert all(site[row.patient] == row.site and row.split == "external" for row in table.itertuples())
    assert summary(table[table["site"] == "one"], EvaluateConfig(bootstrap=20))["patients"].tolist() == [24]


@pytest.mark.parametrize("folds", [None, 3])
def test_no_site_can_be_left_out_of_one_nor_under_folds(cohort, folds):
    slices, site = cohort
    run = replace(make_run(None, None, models=MODELS, training=CONFIG), folds=folds)
    with pytest.raises(ValueError, match="needs two internal sites, and the published split"):
        probe.leave_sites_out(run, slices, site if folds else dict.fromkeys(site, "one"))


@pytest.fixture
def table():
    rows = [("train", "one", 1), ("train", "one", 0), ("train", "two", 0), ("test", "one", 1), ("test", "two", 0)]
    return pd.DataFrame(rows, columns=["split", "dataset", "label"])


def test_the_site_alone_predicts_its_training_prevalence(table):
    assert probe.prevalence_of_site(table)["probability"].tolist() == [0.5, 0.0]


def test_a_site_without_training_patients_has_the_prevalence_of_all(table):
    table.loc[4, "dataset"] = "three"
    assert probe.prevalence_of_site(table)["probability"].tolist() == [0.5, 1 / 3]


def test_where_prevalence_is_made_unequal_the_site_predicts_the_label_in_every_split(cohort):
    slices, site = cohort
    chosen = probe.unequal_prevalence(slices, site)
    at_two = np.array([site[p] == "two" for p in chosen.patient])
    for split in ("train", "validation", "test"):
        here = chosen.split == split
        shares = [chosen.label[here & at].mean() for at in (at_two, ~at_two)]
        assert shares[0] >= 0.6 and shares[1] <= 0.4
    assert "external" not in chosen.split and set(chosen.patient) < set(slices.patient)


def test_a_network_takes_the_shortcut_where_it_pays(cohort):
    """Nothing but the site shows in these images."""
    slices, site = cohort
    run = make_run(None, None, models=MODELS, training=CONFIG)
    found = probe._probe_seed(0, run, probe.unequal_prevalence(slices, site))
    at_two = np.array([site[p] == "two" for p in found["patient"]])
    assert found["probability"][at_two].mean() > found["probability"][~at_two].mean() + 0.1


def test_one_site_alone_has_no_shortcut(cohort):
    slices, site = cohort
    assert probe.unequal_prevalence(slices, dict.fromkeys(site, "one")) is None
    assert probe.probe_prevalence(None, slices, dict.fromkeys(site, "one")) is None
