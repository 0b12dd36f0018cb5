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


def gains(table):
    """b over a in the one study, less the same in the other, beside the two."""
    twice, none = (((study, "b"), (study, "a")) for study in ("twice", "none"))
    return questions.effects(table, [twice, none, (twice, none)], CONFIG)


def test_what_one_study_gains_less_what_another_gains_is_the_difference_of_the_two_gains():
    found = gains(two_studies())
    of_twice, of_none, apart = found["difference"]
    assert apart == pytest.approx(of_twice - of_none) and of_none == 0 and apart > 0.15
    assert found["against"].iloc[2] == "twice a; none b; none a" and found["run"].iloc[2] == "b"
    # as nothing is gained in `none`, patient by patient, the two rows are of the same comparisons
    same = ["difference", "low", "high", "se", "p", "freedom", "detectable", "patients", "seeds", "verdict"]
    assert found.iloc[2][same].to_dict() == found.iloc[0][same].to_dict() and pd.isna(found["p_delong"].iloc[2])
    assert list(found["alpha_holm"]) == pytest.approx([0.05 / 3] * 3)


def test_the_same_gain_in_both_studies_is_no_difference_however_large_the_gain_is():
    table = pd.concat(
        [predictions(s, run, shift) for s in ("none", "twice") for run, shift in (("a", 1), ("b", 3))]
    )
    found = gains(table)
    assert list(found["verdict"]) == ["higher than the reference"] * 2 + ["no difference detected"]
    assert (found["difference"].iloc[2], found["se"].iloc[2], found["p"].iloc[2]) == (0, 0, 1)


def test_a_difference_of_differences_is_said_as_what_is_gained_less_the_same_elsewhere():
    names = {"none": "without shading", "twice": "with twice the shading"}
    line = questions.in_words(gains(two_studies()), names).splitlines()[2]
    assert line.startswith("- B, with twice the shading against A, with twice the shading, less the same without s")
    assert line.endswith(", higher (60 patients, 3 seeds).")
    table = pd.concat([two_studies(), predictions("none", "c", 1.0)], ignore_index=True)
    pair = (("twice", "b"), ("twice", "a")), (("none", "c"), ("none", "a"))
    line = questions.in_words(questions.effects(table, [pair], CONFIG), names)
    assert "with twice the shading, less C, without shading against A, without shading: +0." in line


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
    once = [predictions("once", run, 1.0, patients=58) for run in "ab"]
    pairs = [tuple(((study, "b"), (study, "a")) for study in ("once", "none"))]
    with pytest.raises(ValueError, match="none a and once b differ in 6 rows of patient, seed and label"):
        questions.effects(pd.concat([two_studies(), *once]), pairs, CONFIG)
    fewer = pd.concat([two_studies(), *(predictions("once", run, 1.0, seeds=2) for run in "ab")])
    with pytest.raises(ValueError, match="once b, once a, none b, none a: expected the same seeds in all four"):
        questions.effects(fewer, pairs, CONFIG)


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
        against = [arms[tuple(name.split(" "))] for name in row.against.split("; ")]
        signs = zip((1, -1, -1, 1), [arms[row.study, row.run], *against], strict=False)
        expected = sum(sign * scores[: row.seeds] for sign, scores in signs)
        spread = expected.std(ddof=1) / np.sqrt(1 + len(against))  # of one arm, as benchmarks/coverage.json has it
        assert spread <= 0.06
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
