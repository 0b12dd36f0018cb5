"""Questions to several studies: arms are paired by patient and seed; what is committed is what predictions say."""

import numpy as np
import pandas as pd
import pytest
from house import QUESTIONS, TOP
from sklearn.metrics import roc_auc_score

from her2core.auc import EvaluateConfig
from her2core.config import Study
from her2core.evaluate import COLUMNS, comparisons
from her2core.report import questions

CONFIG = EvaluateConfig(bootstrap=200)
RESULTS = TOP / "results/instrument"


def predictions(study, run, shift, seeds=3, patients=60):
    """Scores that tell positives by `shift`, with noise that is a patient's own in whichever study."""
    labels, rows = np.arange(patients) % 2, []
    for seed in range(seeds):
        noise = np.random.default_rng(seed).normal(size=patients) + np.random.default_rng(99).normal(size=patients)
        score = 1 / (1 + np.exp(-(noise + shift * labels)))
        row = {"cohort": study, "patient": [f"P{n:02d}" for n in range(patients)], "split": "test", "label": labels}
        row |= {"run": run, "model": "thda", "window": "global_minmax", "bias_field": "raw", "seed": seed}
        rows.append(pd.DataFrame(row | {"probability": score.round(6)}))
    return pd.concat(rows, ignore_index=True)


def two_studies():
    arms = [("none", "a", 1.0), ("none", "b", 1.0), ("twice", "a", 1.0), ("twice", "b", 3.0)]
    return pd.concat([predictions(*arm) for arm in arms], ignore_index=True)


def test_an_effect_is_the_difference_of_two_arms_of_one_study_or_of_two():
    pairs = [(("twice", "b"), ("twice", "a")), (("twice", "b"), ("none", "b")), (("twice", "a"), ("none", "a"))]
    found = questions.effects(two_studies(), pairs, CONFIG)
    assert list(found["against"]) == ["twice a", "none b", "none a"]
    assert found["difference"].iloc[0] == found["difference"].iloc[1] > 0.15 and found["difference"].iloc[2] == 0
    assert list(found["verdict"]) == ["higher than the reference"] * 2 + ["no difference detected"]


def test_within_a_study_an_effect_is_that_of_the_comparisons_and_the_correction_is_for_all_pairs():
    table = two_studies()
    found = questions.effects(table, [(("twice", "b"), ("twice", "a")), (("none", "b"), ("none", "a"))], CONFIG)
    alone = comparisons(table[table["cohort"] == "twice"], "a", CONFIG).iloc[0]
    same = ["difference", "low", "high", "se", "p", "detectable", "p_delong"]
    assert found.iloc[0][same].to_dict() == alone[same].to_dict()
    assert found["p_holm"].iloc[0] == min(2 * alone["p"], 1) and set(found["alpha_holm"]) == {0.025}


def test_an_arm_that_is_not_there_or_has_other_patients_is_named():
    with pytest.raises(ValueError, match="none has no run c; the table has a, b"):
        questions.effects(two_studies(), [(("none", "c"), ("none", "a"))], CONFIG)
    fewer = pd.concat([predictions("none", "a", 1.0), predictions("once", "a", 1.0, patients=58)])
    with pytest.raises(ValueError, match="once a and none a differ in 6 rows of patient, seed and label"):
        questions.effects(fewer, [(("once", "a"), ("none", "a"))], CONFIG)


def test_sentences_name_both_arms_with_difference_interval_patients_and_verdict():
    table = questions.effects(two_studies(), [(("twice", "b"), ("none", "a"))], CONFIG)
    line = questions.in_words(table, {"none": "without shading", "twice": "with twice the shading"})
    row = table.iloc[0]
    ends = f"+{row['difference']:.2f} (+{row['low']:.2f} to +{row['high']:.2f})"
    said = f"- B, with twice the shading against A, without shading: {ends}, higher than the reference"
    assert line == f"{said} (60 patients, 3 seeds)."


def test_points_have_the_number_by_which_their_studies_differ():
    aucs = questions.aucs(two_studies(), CONFIG)
    found = questions.points(aucs, "auc", "study", {"none": 0, "twice": 2})
    assert list(found["x"]) == [0, 0, 2, 2] and list(found["series"]) == ["A", "B"] * 2
    assert list(found["value"]) == list(aucs["auc"])
    assert list(questions.points(aucs, "auc", "run", {"a": 75, "b": 150})["x"]) == [75, 150] * 2


# --- what is in git -----------------------------------------------------------------------------------------


def scores_of(study, run):
    rows = pd.read_csv(TOP / f"results/{study}/predictions/{run}.csv")
    rows = rows[rows["split"] == "test"]
    return np.array([roc_auc_score(part["label"], part["probability"]) for _, part in rows.groupby("seed")])


def test_the_committed_aucs_and_effects_are_those_of_the_committed_predictions():
    aucs, effects = (pd.read_csv(RESULTS / f"question_{name}.csv") for name in ("aucs", "effects"))
    assert set(aucs["study"]) == QUESTIONS and set(effects["seeds"]) == {5, 10} and set(aucs["patients"]) == {400}
    arms = {(row.study, row.run): scores_of(row.study, row.run) for row in aucs.itertuples()}
    for row in aucs.itertuples():
        found = arms[row.study, row.run]
        assert (row.auc, row.seed_sd) == pytest.approx((found.mean(), found.std(ddof=1)), abs=2e-6)
    for row in effects.itertuples():
        first, second = arms[row.study, row.run], arms[tuple(row.against.split(" "))]
        expected = first[: row.seeds] - second[: row.seeds]
        assert row.difference == pytest.approx(expected.mean(), abs=2e-6) and row.low < row.difference < row.high


@pytest.mark.parametrize("study", sorted(QUESTIONS))
def test_a_study_of_a_question_differs_from_the_others_in_what_it_asks_alone(study, monkeypatch):
    monkeypatch.chdir(TOP)
    this, usual = (Study.open(name).values for name in (study, "shading_once"))
    changed = {
        f"{s}.{k}" for s in usual if s not in ("name", "runs") for k in usual[s] if usual[s][k] != this[s][k]
    }
    asked = {
        "shading": {"acquire.shading"},
        "many": {"acquire.spy1", "acquire.spy2", "models.variants", "train.of"},
    }
    asked |= {"weak": {"acquire.bayes_auc"}, "px": {"prepare.crop_px"}}
    assert changed - {"prepare.bias_fields", "train.seeds"} <= asked[study.partition("_")[0]]


def test_every_column_of_a_prediction_is_there(monkeypatch):
    monkeypatch.chdir(TOP)
    table = questions.on_test([Study.open("px_32"), Study.open("px_64")])
    assert [*table.columns] == [*COLUMNS] and set(table["cohort"]) == {"px_32", "px_64"}
    assert set(table["split"]) == {"test"} and table["patient"].nunique() == 400
