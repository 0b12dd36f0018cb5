"""`her2 verify`: somebody else's predictions on a study's patients."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from house import TOP

from her2core import study as s
from her2core.auc import EvaluateConfig, bootstrap_auc
from her2core.config import Study
from her2core.paired import bootstrap_difference
from her2core.report import verify as v
from her2core.report.sources import identifiers_digest, split_digests

RESULTS = TOP / "results/embedded"
REFERENCE = json.loads((RESULTS / "metrics.json").read_text())["reference"]
FILES = ("metrics.json", "splits.json", "flow.json", "unprepared.csv")
FILES += tuple(f"{folder}/{run}.csv" for folder in ("predictions", "external") for run in (REFERENCE, "vit"))


@pytest.fixture
def compendium(tmp_path, monkeypatch):
    shutil.copy(TOP / "params.yaml", tmp_path)
    for name in FILES:
        (tmp_path / "results/embedded" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(RESULTS / name, tmp_path / "results/embedded" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given(columns=("patient", "probability", "label")):
    """What somebody else has of the test patients: one seed of ours, with `columns`."""
    table = pd.read_csv(RESULTS / f"predictions/{REFERENCE}.csv")
    return table.query("split == 'test' and seed == 1").reset_index(drop=True)[[*columns]]


def verified(table, folder):
    table.to_csv(folder / "given.csv", index=False)
    return v.verified(Study.open(), folder / "given.csv")


def rounded(found):
    return {name: round(vars(found)[name if name != "auc" else "value"], 4) for name in ("auc", "low", "high")}


@pytest.mark.parametrize("folder", ["predictions", "external"])
def test_the_projects_own_tables_give_the_committed_numbers(compendium, folder):
    rows = v.verified(Study.open(), RESULTS / folder / f"{REFERENCE}.csv")
    metrics = json.loads((RESULTS / "metrics.json").read_text())
    of = {"test": metrics["internal"]} | metrics["external"]
    judged = [row for row in rows if row["ours"]]
    assert [row["split"] for row in judged] == (["test"] if folder == "predictions" else ["AMBL"])
    for row in judged:
        committed = of[row["split"]]
        assert rounded(row["estimate"]) == {name: committed[name] for name in ("auc", "low", "high")}
        assert (row["estimate"].patients, row["seeds"]) == (committed["patients"], 3)
        assert (row["difference"].value, row["difference"].p) == (0, 1)


def test_every_run_of_a_table_has_the_committed_auc_and_none_is_held_against_ours_on_validation(compendium):
    rows = v.verified(Study.open(), RESULTS / "predictions_simple.csv")
    committed = pd.read_csv(RESULTS / "model_comparison.csv").set_index("run")
    tests = {row["run"]: row["estimate"] for row in rows if row["split"] == "test"}
    assert len(tests) == 7
    for run, found in tests.items():
        assert (found.value, found.low, found.high) == pytest.approx(
            committed.loc[run, ["auc", "low", "high"]], abs=1e-6
        )
    assert {row["split"] for row in rows if row["ours"] is None} == {"validation"}


def test_one_seed_of_others_is_held_against_each_of_ours(compendium):
    (row,) = verified(given(), compendium)
    table = pd.read_csv(RESULTS / f"predictions/{REFERENCE}.csv").query("split == 'test'")
    ours = table.pivot(index="seed", columns="patient", values="probability").to_numpy()
    labels = table.drop_duplicates("patient").sort_values("patient")["label"].to_numpy()
    config = Study.open().params("evaluate", EvaluateConfig)
    assert row["estimate"] == bootstrap_auc(labels, ours[[1]], config)
    assert row["difference"] == bootstrap_difference(labels, np.repeat(ours[[1]], 3, axis=0), ours, config)


def test_labels_are_the_studys_where_they_are_at_hand_and_needed_where_not(compendium):
    without = given(["patient", "probability"])
    assert verified(without, compendium)[0]["estimate"] == verified(given(), compendium)[0]["estimate"]
    for folder in ("predictions", "external"):
        shutil.rmtree(compendium / "results/embedded" / folder)
    assert verified(given(), compendium)[0]["split"] == "test"  # by its digest alone
    with pytest.raises(ValueError, match="no column label, expected it, as the study's own labels are not here"):
        verified(without, compendium)


def test_splits_need_no_name_and_a_wrong_name_is_told(compendium):
    table = pd.read_csv(RESULTS / f"predictions/{REFERENCE}.csv").query("seed == 0")
    found = verified(table[["patient", "probability"]], compendium)
    assert [(row["split"], row["estimate"].patients) for row in found] == [("test", 180), ("validation", 140)]
    swapped = table.assign(split=table["split"].map({"test": "validation", "validation": "test"}))
    lines = v.said(Study.open(), verified(swapped, compendium))
    assert "  called validation in the table, but these are the test patients" in lines


def test_identifiers_may_be_spelled_and_ordered_otherwise():
    ids = ["ISPY2-100899", "ACRIN-6698-102212", "ISPY1_1001"]
    assert identifiers_digest(ids) == identifiers_digest(["ispy1_1001", "ISPY2_102212", "ISPY2_100899"])
    assert identifiers_digest(ids) != identifiers_digest(ids[1:])


def test_an_external_site_is_a_split_of_its_own_and_nobody_is_named():
    table = pd.DataFrame({"patient": list("abcde"), "split": ["test", "external", "external", "folds 1 5", None]})
    table = table.assign(site=["S", "A", "B", "S", "S"], label=[1.0, 0.0, 1.0, 1.0, np.nan])
    found = split_digests(table)
    assert {name: (split["patients"], split["positives"]) for name, split in found.items()} == {
        "A": (1, 0), "B": (1, 1), "folds": (1, 1), "test": (1, 1)
    }  # fmt: skip
    assert found["A"]["sha256"] == identifiers_digest(["b"]) and re.fullmatch("[0-9a-f]{64}", found["A"]["sha256"])


def test_patients_who_could_not_be_prepared_here_may_be_there_or_not(compendium):
    one = given().iloc[0]
    lost = f"{one['patient']},test,{one['label']},spy1,damaged\n"
    with open(compendium / "results/embedded/unprepared.csv", "a") as file:
        file.write(lost)
    for path in (compendium / "results/embedded/predictions").iterdir():
        table = pd.read_csv(path)
        table[table["patient"] != one["patient"]].to_csv(path, index=False)
    (with_it,), (without,) = verified(given(), compendium), verified(given().iloc[1:], compendium)
    assert (with_it["estimate"].patients, without["estimate"].patients) == (180, 179)
    assert with_it["difference"] == without["difference"]  # on the patients of both


def test_out_of_fold_predictions_are_compared_fold_by_fold_and_only_with_the_same_folds(compendium):
    results, rng = compendium / "results/embedded", np.random.default_rng(0)
    patients = pd.DataFrame({"patient": [f"P{n:02}" for n in range(60)], "label": np.arange(60) % 2})
    parts = []
    for seed, split, shift in [(seed, *which) for seed in (0, 1) for which in (("test", 0), ("validation", 1))]:
        own = {"seed": seed, "split": split, "fold": (np.arange(60) // 2 + shift) % 3}
        chance = (0.3 + 0.2 * patients["label"] + 0.3 * rng.random(60)).round(6)
        parts.append(patients.assign(**own, probability=chance))
    same = {"cohort": "embedded", "run": REFERENCE, "model": "thda", "window": "w", "bias_field": "raw"}
    table = pd.concat(parts, ignore_index=True).assign(**same)
    table.to_csv(results / f"predictions/{REFERENCE}.csv", index=False)
    everybody = patients.assign(split="folds 0", site="S")
    (results / "splits.json").write_text(json.dumps(split_digests(everybody)))
    test, validation = verified(table, compendium)
    assert (test["split"], test["called"], test["difference"].value) == ("folds", "test", 0)
    assert (validation["split"], validation["ours"]) == ("folds", None)
    (alone,) = verified(table[table["split"] == "test"].drop(columns="fold"), compendium)
    assert alone["estimate"].patients == 60 and alone["difference"] is None


def to(row, column, value):
    return lambda table: table.assign(**{column: table[column].where(table.index != row, value)})


BROKEN = {
    "unknown ids": (to(3, "patient", "X-1"), "1 unknown ids, such as X-1; 1 missing patients of test, such as PH"),
    "missing patients": (lambda t: t.iloc[2:], r"2 missing patients of test, such as PHANTOM-\S+ \(AMBL 100,"),
    "doubled rows": (lambda t: pd.concat([t, t.iloc[:4]]), "4 doubled rows, such as another of PHANTOM"),
    "probabilities above 1": (
        lambda t: t.assign(probability=t["probability"] * 100),
        r"180 of 180 probabilities outside \[0, 1\], such as PHANTOM.*: \d.*, expected .*probability \(0 to 1\)",
    ),
    "labels swapped": (
        lambda t: t.assign(label=1 - t["label"]),
        "labels swapped, 0 for 1: 108 of 180 positive, expected 72 as in the study",
    ),
    "a wrong label": (
        lambda t: t.assign(label=t["label"].where(t.index != 5, 1 - t["label"])),
        "wrong labels, 1 rows not as in the study, such as PHANTOM",
    ),
    "the other class": (
        lambda t: t.assign(probability=1 - t["probability"]),
        r"test: AUC 0.1\d+ .*, 1 − probability gives 0.8\d+: labels swapped, or probabilities of the negative",
    ),
    "a wrong column": (
        lambda t: t.rename(columns={"probability": "score"}),
        "no column probability among patient, score, label, expected a CSV with columns patient and probability",
    ),
    "no row": (lambda t: t.iloc[:0], "no rows, expected a CSV with columns patient and probability"),
    "an empty cell": (to(0, "probability", None), "empty cells in probability"),
    "a word": (to(0, "probability", "high"), r"Unable to parse string .high. at position 0"),
    "a label of 2": (to(0, "label", 2), "labels other than 0 and 1"),
    "two splits as one": (
        lambda t: pd.read_csv(RESULTS / f"predictions/{REFERENCE}.csv").query("seed == 0").assign(split="test"),
        "patients of several splits: test 180, validation 140",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_compared_is_one_clear_answer(compendium, kind):
    broken, message = BROKEN[kind]
    with pytest.raises(ValueError, match=message):
        verified(broken(given()), compendium)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unknown ids", r"180 patients, of no split by their SHA-256: unknown ids, or missing patients \(AMBL 100"),
        ("missing patients", "178 patients, of no split by their SHA-256"),
        ("labels swapped", "labels swapped, 0 for 1: 108 of 180 positive, expected 72"),
        ("a wrong label", "wrong labels: 7[13] of 180 positive, expected 72"),
    ],
)
def test_without_the_studys_predictions_the_digests_still_tell(compendium, kind, message):
    for folder in ("predictions", "external"):
        shutil.rmtree(compendium / "results/embedded" / folder)
    with pytest.raises(ValueError, match=message):
        verified(BROKEN[kind][0](given()), compendium)


def test_an_empty_file_and_a_study_without_digests_are_one_line(compendium):
    (compendium / "none.csv").write_text("")
    with pytest.raises(SystemExit, match="her2: none.csv: No columns to parse from file, expected a CSV"):
        s.main(["verify", "none.csv"])
    given().to_csv(compendium / "given.csv", index=False)
    (compendium / "results/embedded/splits.json").unlink()
    with pytest.raises(SystemExit, match="splits.json is not there yet; run first: dvc repro cohort"):
        s.main(["verify", "given.csv"])


def test_a_papers_number_stands_beside_its_own_patients_only(compendium):
    real = Study.open()
    real.values["acquire"]["source"] = "archive"
    assert v._paper(real, "test", 132) == []  # a cohort of one's own
    path = compendium / "results/embedded/flow.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_published": {}}))
    assert v._paper(real, "test", 132) == [("AUC of THDA, internal test", "0.74", "abstract")]
    assert [number for _, number, _ in v._paper(real, "AMBL", 43)] == ["0.66", "0.61 to 0.66"]
    assert v._paper(real, "test", 131) == v._paper(real, "Duke", 43) == []
    assert v._paper(Study.open(), "test", 132) == []  # phantoms


def test_the_command_says_all_of_it(compendium, capsys):
    given().to_csv(compendium / "given.csv", index=False)
    s.main(["verify", "given.csv"])
    first, run, auc, ours, less, *asked = capsys.readouterr().out.splitlines()
    assert first.startswith("synthetic cohort: phantom images") and run == "given, test: 180 patients, 72 HER2+"
    assert re.fullmatch(r"  AUC 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\); seeds: 1, interval over patients", auc)
    assert ours.startswith("  this study: 0.821 (0.751 to 0.874), ") and less.startswith(
        "  less this study's, paired: "
    )
    assert asked[0] == "To compare, also know (here):" and len(asked) == 9
    assert "paper, " not in "\n".join(asked)
