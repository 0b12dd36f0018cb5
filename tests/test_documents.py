"""Documents say what the results say, nothing on a synthetic cohort, and name no file that is not there."""

import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML
from test_labels import ambl_rows, ambl_sheet

from her2core.cohorts.acquire import SOURCES
from her2core.config import Study, Unready
from her2core.report import checklists, documents, sources
from her2core.runs import parse_run
from her2core.train import TrainConfig

TOP = Path(__file__).resolve().parents[1]
STAGES = YAML(typ="safe").load(TOP / "dvc.yaml")["stages"]
EMBEDDED, ISPY = Study.open("embedded"), Study.open("ispy")
CITATION = YAML(typ="safe").load(TOP / "CITATION.cff")
REAL = {
    "acquire": {"source": "archive", "collections": {}},
    "models": {"thda": {"width": 64}, "vit": {"dim": 768}},
    "train": {"seeds": [0, 1], "aggregate": "median", "class_weight": "balanced", "jobs": -1},
    "evaluate": {"confidence": 0.95},
    "cohort": {"endpoint": "her2"},
}
SYNTHETIC = REAL | {"acquire": {"source": "phantom", "bayes_auc": 0.95}}
BEST = "thda-channel_q98-raw"
DIGESTS = {f"seed{k}.safetensors": (4000 + k, f"{k:064x}") for k in (0, 1, 10)}


def row(run, auc, low, high, **more):
    names = dict(zip(("model", "window", "bias_field"), parse_run(run, "channel_q98"), strict=True))
    return {"run": run} | names | {"auc": auc, "low": low, "high": high} | more


@pytest.fixture
def results(tmp_path):
    """A cohort's results with numbers that stand nowhere else."""
    best, n4, vit, cvt = BEST, "thda-n4", "vit", "cvt"
    folder = tmp_path / "results/ispy"
    (folder / "weights").mkdir(parents=True)
    tables = {
        "normalization_study": [
            row(best, 0.7011, 0.6022, 0.8033),
            row("thda-global_minmax-raw", 0.5, 0.41, 0.6909),
        ],
        "model_comparison": [
            row(best, 0.7011, 0.6022, 0.8033),
            row(vit, 0.8, 0.71, 0.9),
            row(cvt, 0.615, 0.6, 0.62),
        ],
        "external_validation": [
            row(best, 0.6407, 0.45, 0.8, test="AMBL"),
            row("thda-slice_minmax-raw", 0.5907, 0.4, 0.7, test="AMBL"),
            row(n4, 0.9, 0.8, 0.95, test="AMBL"),
            row(best, 0.7011, 0.6022, 0.8033, test="internal"),
        ],
        "normalization_pairs": [
            {"run": n4, "reference": best, "difference": -0.05, "low": -0.09, "high": -0.01}
            | {"verdict": "lower than the reference"}
        ],
        "model_pairs": [
            {"run": vit, "reference": best, "difference": 0.1, "low": 0.02, "high": 0.18}
            | {"verdict": "higher than the reference"},
            {"run": cvt, "reference": best, "difference": -0.086, "low": -0.2, "high": 0.03}
            | {"verdict": "no difference detected"},
        ],
    }
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    population = {"auc": 0.7011, "low": 0.6022, "high": 0.8033, "patients": 132, "positives": 31}
    population |= {"accuracy_at_0.5": 0.75, "accuracy_at_0.5_low": 0.6698, "accuracy_at_0.5_high": 0.8162}
    population |= {"accuracy_at_threshold": 0.6288, "accuracy_at_threshold_low": 0.5439}
    population |= {"accuracy_at_threshold_high": 0.7062, "ppv_at_0.5": None}
    population |= {"ensemble": {"auc": 0.7222, "low": 0.61, "high": 0.82, "accuracy_at_threshold": 0.65}}
    metrics = {
        "reference": best,
        "threshold": 0.4321,
        "internal": population,
        "external": {"AMBL": population | {"auc": 0.6407}},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    counts = {"external": (43, 10), "test": (132, 31), "train": (885, 230), "validation": (132, 35)}
    splits = {k: {"patients": n, "positives": p} for k, (n, p) in counts.items()}
    site = {"excluded": {"HER2 unknown": 40, "pathology": 5}, "splits": {"external": splits["external"]}}
    inside = {k: v for k, v in splits.items() if k != "external"}
    flow = {"excluded": {"HER2 unknown": 45, "pathology": 5}, "splits": splits}
    flow["collections"] = {"spy2": {"excluded": {"HER2 unknown": 5}, "splits": inside}, "ambl": site}
    flow["of_published"] = {"published": 1149, "missing": 0, "reasons": {}}
    (folder / "flow.json").write_text(json.dumps(flow))
    digests = [(name, size, digest) for name, (size, digest) in DIGESTS.items()]
    table = pd.DataFrame(digests, columns=["file", "bytes", "sha256"])
    table.to_csv(folder / "weights" / f"{best}.csv", index=False)
    return folder


def study(top, sections=REAL, name="ispy"):
    return Study(name, top, sections)


def verdicts(text):
    """item → (ours, verdict), of the rows of the first table."""
    return {r[0]: (r[3], r[4]) for r in rows_of(text.partition("\n## ")[0])}


def rows_of(text):
    """The cells of a table's rows, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_reported_number_stands_beside_ours_with_a_verdict(results):
    found = verdicts(documents.reported_vs_reproduced(study(results.parents[1])))
    assert len(found) == len(documents._reported())
    assert found["patients of I-SPY1 and I-SPY2 with a HER2 status"] == ("1,149", "the same")
    assert found["of these HER2-positive"] == ("296", "the same")
    assert found["AUC of THDA, internal test"] == ("0.701 (0.602 to 0.803)", "inside our interval")
    assert found["AUC, window global_minmax"] == ("0.500 (0.410 to 0.691)", "outside our interval: ours is lower")
    assert found["AUC, window channel_q95"] == ("–", "not run")
    assert found["AUC of the Vision Transformer"] == (
        "0.800 (0.710 to 0.900)",
        "outside our interval: ours is higher",
    )
    assert found["AUC with N4, against without"] == ("-0.050 (-0.090 to -0.010)", "the same direction")
    assert found["AUC of the Vision Transformer, against THDA"][1] == "the opposite direction"
    assert found["AUC of the Convolutional Vision Transformer"] == (
        "0.615 (0.600 to 0.620)",
        "overlaps our interval",
    )
    assert found["AUC of the Convolutional one, against THDA"] == (
        "-0.086 (-0.200 to 0.030)",
        "no difference detected",
    )
    assert found["AUC at the external site, frozen"] == ("0.641 (0.450 to 0.800)", "inside our interval")
    assert found["AUC at the external site, over windows"] == ("0.591 to 0.641, 2 windows", "overlaps our range")


def test_both_accuracies_stand_beside_the_papers_with_wilsons_interval(results):
    found = verdicts(documents.reported_vs_reproduced(study(results.parents[1])))
    item = "accuracy of THDA, internal test (ours: at {})"
    assert found[item.format("0.5")] == ("0.750 (0.670 to 0.816)", "inside our interval")  # 99 of 132
    at_chosen = ("0.629 (0.544 to 0.706)", "outside our interval: ours is lower")  # 83 of 132
    assert found[item.format("the threshold chosen on validation")] == at_chosen


def rewrite_flow(results, change):
    flow = json.loads((results / "flow.json").read_text())
    change(flow)
    (results / "flow.json").write_text(json.dumps(flow))


def make_partial(flow):
    """42 of 1,149 patients and 30 of the external site are left."""
    for split, patients in (("train", 24), ("validation", 9), ("test", 9), ("external", 30)):
        flow["splits"][split] = {"patients": patients, "positives": 3}
    flow["collections"]["ambl"]["splits"]["external"]["patients"] = 30
    flow["of_published"] |= {"missing": 1107, "reasons": {"not in the table": 1100, "mask unusable": 7}}


def test_a_complete_cohort_has_no_word_of_missing_patients(results):
    text = documents.reported_vs_reproduced(study(results.parents[1]))
    assert "ot comparable" not in text and "Who is out" not in text


def test_a_partial_cohort_has_no_verdict_but_who_is_missing_and_why(results):
    rewrite_flow(results, make_partial)
    text = documents.reported_vs_reproduced(study(results.parents[1]))
    found = verdicts(text)
    counts = {r.item for r in documents._reported() if r.table == "flow.json"}
    assert {found[item][1] for item in counts} == {"not the same"}
    assert found["patients of I-SPY1 and I-SPY2 with a HER2 status"] == ("42", "not the same")
    internal = "not comparable: 42 of 1,149 patients"
    both = f"{internal}; 30 external patients, 43 lesions in the paper"
    assert {v for item, (_, v) in found.items() if item not in counts} == {internal, both, "not run"}
    assert found["AUC of THDA, internal test"] == ("0.701 (0.602 to 0.803)", internal)
    assert found["AUC with N4, against without"] == ("-0.050 (-0.090 to -0.010)", internal)
    assert [item for item in found if found[item][1] == both] == [
        "AUC at the external site, frozen",
        "AUC at the external site, over windows",
    ]
    above = text[: text.index("| number")]
    assert "**Not comparable: 42 of 1,149 patients.** Who is out: mask unusable 7, not in the table 1,100." in above
    assert (
        "**Not comparable: 30 external patients, 43 lesions in the paper.** Who is out: HER2 unknown 40, " in above
    )


def test_those_lost_in_preparation_are_missing_too(results):
    (results / "unprepared.csv").write_text(
        "patient,dataset,split,label,reason\n"
        "A,spy2,test,1,N4 failed: 3 voxels\nB,spy2,test,0,N4 failed: 2 voxels\nC,ambl,external,1,no lesion: empty\n"
    )
    text = documents.reported_vs_reproduced(study(results.parents[1]))
    found = verdicts(text)
    assert found["patients of I-SPY1 and I-SPY2 with a HER2 status"] == ("1,147", "not the same")
    assert found["of these HER2-positive"] == ("295", "not the same")
    assert found["patients in training"] == ("885", "the same")
    assert found["AUC of THDA, internal test"][1] == "not comparable: 1,147 of 1,149 patients"
    assert "1,149 patients.** Who is out: N4 failed 2." in text
    assert "lesions in the paper.** Who is out: HER2 unknown 40, no lesion 1, pathology 5." in text
    card = documents.model_card(study(results.parents[1]), CITATION)
    assert "| test | 130 | 30 |" in card and "pathology: 5, N4 failed: 2, no lesion: 1." in card


@pytest.mark.parametrize(
    "row", ["A,spy2,fold7,1,N4 failed", "A,spy2,test,yes,N4 failed", "A,spy9,test,1,N4 failed", "A,spy2,test,1,"]
)
def test_a_damaged_table_of_those_lost_in_preparation_is_named_with_the_remedy(results, row):
    (results / "unprepared.csv").write_text(f"patient,dataset,split,label,reason\n{row}\n")
    with pytest.raises(ValueError, match="unprepared.csv: .*, expected patients of .*run the stage prepare"):
        documents.reported_vs_reproduced(study(results.parents[1]))


def test_a_damaged_table_of_weights_is_named_with_the_remedy(results):
    path = next((results / "weights").iterdir())
    path.write_text("file,bytes\nseed0.safetensors,many\n")
    with pytest.raises(ValueError, match=f"{path.name}: .*, expected digests of .*; run the training"):
        documents.model_card(study(results.parents[1]), CITATION)


def test_where_everyone_could_be_prepared_nothing_changes(results):
    before = documents.reported_vs_reproduced(study(results.parents[1]))
    (results / "unprepared.csv").write_text("patient,dataset,split,label,reason\n")
    assert documents.reported_vs_reproduced(study(results.parents[1])) == before


def test_a_small_external_site_leaves_the_internal_verdicts(results):
    rewrite_flow(results, lambda flow: flow["collections"]["ambl"]["splits"]["external"].update(patients=42))
    found = verdicts(documents.reported_vs_reproduced(study(results.parents[1])))
    assert found["AUC of THDA, internal test"][1] == "inside our interval"
    external = "not comparable: 42 external patients, 43 lesions in the paper"
    assert found["AUC at the external site, frozen"] == ("0.641 (0.450 to 0.800)", external)


def test_patients_of_another_hospital_are_none_of_the_papers_however_many(results):
    rewrite_flow(results, lambda flow: flow.pop("of_published"))
    text = documents.reported_vs_reproduced(study(results.parents[1]))
    assert verdicts(text)["AUC of THDA, internal test"][1] == "not comparable: 0 of 1,149 patients"
    assert "Who is out: not in this cohort 1,149." in text


def test_a_difference_that_was_not_detected_says_so(results):
    path = results / "normalization_pairs.csv"
    path.write_text(path.read_text().replace("lower than the reference", "no difference detected"))
    found = verdicts(documents.reported_vs_reproduced(study(results.parents[1])))
    assert found["AUC with N4, against without"][1] == "no difference detected"


def test_a_pair_against_another_reference_is_no_result(results):
    path = results / "normalization_pairs.csv"
    path.write_text(path.read_text().replace("thda-channel_q98-raw", "thda-channel_q95-raw"))
    found = verdicts(documents.reported_vs_reproduced(study(results.parents[1])))
    assert found["AUC with N4, against without"] == ("–", "not run")


def test_before_anything_ran_everything_is_not_run(tmp_path):
    found = verdicts(documents.reported_vs_reproduced(study(tmp_path)))
    assert set(found.values()) == {("–", "not run")}


def test_on_a_synthetic_cohort_no_number_of_ours_stands_beside_the_papers(results, tmp_path):
    text = documents.reported_vs_reproduced(study(results.parents[1], SYNTHETIC))
    assert set(verdicts(text).values()) == {("–", "not testable on this cohort")}
    assert text == documents.reported_vs_reproduced(study(tmp_path / "absent", SYNTHETIC))
    assert "synthetic cohort: phantom images, no patients" in text
    assert not any(number in text for number in ("0.701", "0.602", "0.591", "0.641", "0.05"))


@pytest.mark.parametrize(
    ("reported", "low", "high", "verdict"),
    [
        ("0.66", 0.66, 0.7, "inside our interval"),
        ("0.66", 0.661, 0.7, "outside our interval: ours is higher"),
        ("0.66", 0.5, 0.659, "outside our interval: ours is lower"),
        ("0.61 to 0.66", 0.6, 0.7, "inside our interval"),
        ("0.61 to 0.66", 0.65, 0.7, "overlaps our interval"),
        ("0.61 to 0.66", 0.67, 0.7, "outside our interval: ours is higher"),
    ],
)
def test_a_reported_number_or_range_is_inside_outside_or_overlaps(reported, low, high, verdict):
    assert documents._place(reported, low, high) == verdict


def test_every_run_beside_a_reported_number_is_one_of_the_study_and_the_papers_best_is_the_real_reference():
    keys = {r.key for r in documents._reported() if r.table.endswith(".csv")} - {"every window"}
    assert keys <= set(ISPY.runs)
    training = ISPY.params("train", TrainConfig)
    assert documents._BEST == training.reference
    assert parse_run("thda-n4", training.window) == ("thda", "channel_q98", "n4")


def parts(text):
    """part of the paper → (ours, made by, verdict)."""
    return {r[0]: tuple(r[2:]) for r in rows_of(text.partition("\n## ")[2])}


def test_every_part_of_the_paper_has_files_code_and_the_verdicts_of_its_numbers(results):
    found = parts(documents.reported_vs_reproduced(study(results.parents[1])))
    ours, code, verdict = found["with N4 and without"]
    assert "[`normalization_pairs.csv`](../../results/ispy/normalization_pairs.csv)" in ours
    assert code == "[`06_normalization_study`](../../notebooks/06_normalization_study.ipynb): figures.differences"
    assert verdict == "the same direction (1 of 1)"
    windows = found["one network under seven windows, of which five are named"][2]
    assert windows == "inside our interval (1 of 5); not run (3 of 5); outside our interval: ours is lower (1 of 5)"
    assert found["the patients, and how they are split"][2] == "the same (6 of 6)"


def test_a_phantom_gives_no_part_of_the_paper_a_verdict(tmp_path):
    found = parts(documents.reported_vs_reproduced(study(tmp_path, SYNTHETIC)))
    judged = {part.shows for part in documents._rows("paper.csv") if not part.otherwise}
    assert all(found[shows][2].startswith("not testable on this cohort (") for shows in judged)


def test_every_part_of_the_paper_names_files_of_the_pipeline_and_functions_that_its_notebook_calls():
    outs = {o for s in STAGES.values() for e in [*s["outs"], *s.get("metrics", [])] for o in e}
    known = documents._rows("paper.csv")
    assert {part.part for part in known if not part.otherwise} == {r.part for r in documents._reported()}
    for part in known:
        assert {path.replace("{cohort}", "${name}") for path in part.files.split()} <= outs
        code = (TOP / f"notebooks/{part.notebook}.ipynb").read_text()
        assert all(f"{function}(" in code for function in part.function.split(", "))


def test_every_source_of_a_reported_number_is_marked():
    assert {r.source for r in documents._reported()} == {"abstract", "title", "summary", "third party"}
    assert {r.table for r in documents._reported()} == set(documents._JUDGES)


def test_the_card_has_digests_counts_metrics_settings_and_citation(results):
    text = documents.model_card(study(results.parents[1]), CITATION)
    size, digest = DIGESTS["seed1.safetensors"]
    assert f"| `seed1.safetensors` | {size:,} | `{digest}` |" in text
    assert text.index("`seed1.safetensors`") < text.index("`seed10.safetensors`")
    assert "| train | 885 | 230 |" in text and "HER2 unknown: 45" in text
    assert "| AUC | 0.701 (0.602 to 0.803) | 0.641 (0.602 to 0.803) |" in text
    assert "| accuracy at 0.5 | 0.750 (0.670 to 0.816) | 0.750 (0.670 to 0.816) |" in text
    chosen = "accuracy at the seeds' thresholds, chosen on validation (mean 0.432)"
    assert f"| {chosen} | 0.629 (0.544 to 0.706) | 0.629 (0.544 to 0.706) |" in text
    assert "| positives | 31 | 31 |" in text and "ppv" not in text
    assert "| ensemble: AUC | 0.722 (0.610 to 0.820) | 0.722 (0.610 to 0.820) |" in text
    assert "| ensemble: accuracy at its threshold, chosen on validation | 0.650 | 0.650 |" in text
    assert "| `models.thda.width` | 64 |" in text and "vit.dim" not in text
    assert "| `train.seeds` | [0, 1] |" in text and "train.jobs" not in text
    assert "not for clinical use" in text and "synthetic" not in text
    assert all(work["title"] in text for work in (CITATION, *CITATION["references"]))
    assert text.count("Intended") == 1 and "{{" not in text and "{%" not in text
    assert text == documents.model_card(study(results.parents[1]), CITATION)


def test_the_card_of_a_synthetic_cohort_says_so_loudly(results):
    text = documents.model_card(study(results.parents[1], SYNTHETIC), CITATION)
    assert text.count("**SYNTHETIC COHORT.**") == 1 and "Again: **synthetic cohort**." in text
    assert "have never seen a\n> patient" in text and "two trials of neoadjuvant treatment" not in text


def test_a_card_is_of_the_run_that_the_metrics_name(results):
    (results / "weights" / f"{BEST}.csv").rename(results / "weights/vit.csv")
    with pytest.raises(Unready, match=f"weights/{BEST}.csv is not there yet; run first: dvc repro .*train@{BEST}"):
        documents.model_card(study(results.parents[1]), CITATION)


@pytest.fixture
def top(tmp_path, monkeypatch):
    """A compendium, where we are, with the raw files of three patients of either study, and the manifests."""
    for name in ("ispy", "embedded"):
        (tmp_path / "data" / name / "acquire").mkdir(parents=True)
        (tmp_path / "data" / name / "acquire/files.csv").write_text(
            "patient,dataset,series_uid,files,bytes,sha256\n"
            "A,spy2,1.2 1.3,3,100,aa\nB,spy2,1.4,2,50,bb\nC,spy1,,4,7,cc\n"
        )
    (tmp_path / "manifests").symlink_to(TOP / "manifests")
    (tmp_path / "labels").mkdir()
    ambl_sheet(tmp_path / "labels", *ambl_rows())
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data_sources(top, sections, name="ispy"):
    """As the stage `acquire` writes them down."""
    of = study(top, sections, name)
    (of.data("acquire") / "sources.json").write_text(json.dumps([*of.params("acquire", SOURCES).sources()]))
    return sources.data_sources(of)


def test_the_sources_of_the_real_cohort_are_those_of_the_manifests(top):
    found = data_sources(top, ISPY.values)
    by_collection = {s["collection"]: s for s in found["sources"] if "collection" in s}
    ispy2 = by_collection["ispy2"]
    assert ispy2["patients"] + by_collection["acrin_6698"]["patients"] == 982
    assert ispy2["doi"] == "10.7937/tcia.d8z0-9t85" and ispy2["licence"] == "CC BY 4.0"
    assert ispy2["version"] == "IDC v25" and ispy2["series"] == 2 * ispy2["patients"]
    assert ispy2["manifest_md5"] == hashlib.md5((TOP / ispy2["manifest"]).read_bytes()).hexdigest()
    zenodo = by_collection["BreastDCEDL, MinCrop release"]
    assert zenodo["doi"] == "10.5281/zenodo.18114231" and zenodo["licence"] == "CC BY-NC 4.0"
    assert (TOP / zenodo["pinned_in"]).is_file()
    sheet = next(s for s in found["sources"] if s["source"] == "clinical sheet")
    assert sheet["md5"] == hashlib.md5((top / "labels" / sheet["file"]).read_bytes()).hexdigest()
    assert sheet["coding"] == {"HER2": {}, "pathology_out": [6, 7, 8, 9, 25]}
    assert found["on_disk"] == {
        "spy1": {"patients": 1, "series": 0, "files": 4, "bytes": 7},
        "spy2": {"patients": 2, "series": 3, "files": 5, "bytes": 150},
    }
    assert not found["synthetic"] and json.loads(json.dumps(found)) == found


def test_bytes_are_exact_though_the_archive_counts_in_megabytes(top):
    (top / "manifests").unlink()
    (top / "manifests").mkdir()
    header = (TOP / "manifests/ispy1.csv").read_text().splitlines()[0]
    where = "0000000{n}-0000-0000-0000-000000000000,idc-open-data"
    series = f"A,dce,ispy1,1.2.{{n}},{where},{{files}},{{mb}},CC BY 3.0,10.1/d,25"
    lines = [series.format(n=1, files=5, mb="0.100001"), series.format(n=2, files=1, mb="2.000002")]
    (top / "manifests/ispy1.csv").write_text("\n".join([header, *lines, ""]))
    sections = {"acquire": ISPY.section("acquire") | {"collections": {"spy1": "idc"}}}
    (source,) = data_sources(top, sections)["sources"]
    assert (source["patients"], source["series"], source["instances"], source["bytes"]) == (1, 2, 6, 2_100_003)


def test_the_source_of_a_synthetic_cohort_is_its_seed_and_parameters(top):
    (top / "manifests").unlink()
    found = data_sources(top, EMBEDDED.values, "embedded")
    (source,) = found["sources"]
    assert found["synthetic"] and source["seed"] == EMBEDDED.section("acquire")["seed"]
    assert source["parameters"]["bayes_auc"] == 0.95 and "jobs" not in source["parameters"]


def written_by_stages(study):
    """What the stages of dvc.yaml write for a study: files, and folders with all that is in them."""
    outs = [o for s in STAGES.values() for o in [*s.get("outs", []), *s.get("metrics", [])]]
    paths = [next(iter(o)) if isinstance(o, dict) else o for o in outs]
    return {p.replace("${item.run}", run).replace("${name}", study.name) for p in paths for run in study.runs}


@pytest.mark.parametrize("study", [EMBEDDED, ISPY], ids=lambda study: study.name)
def test_every_file_that_the_checklist_names_exists_or_is_written_by_a_stage(study):
    written = written_by_stages(study)
    for table in checklists._STANDARDS.values():
        for item, _, _, paths, _ in checklists.checklist_items(table, study.name):
            for path in paths:
                by_stage = any(path == w or path.startswith(f"{w}/") or w.startswith(f"{path}/") for w in written)
                assert by_stage or (TOP / path).is_file(), f"{table}, item {item}: {path}"


@pytest.mark.parametrize(
    ("table", "count", "last"), [("tripod_ai", 52, "27c"), ("claim", 44, "44"), ("metrics_standard", 30, "30")]
)
def test_every_item_of_a_standard_is_there_once_and_in_order(table, count, last):
    numbers = [row[0] for row in checklists.checklist_items(f"{table}.csv", "embedded")]
    assert len(set(numbers)) == len(numbers) == count and numbers[-1] == last
    assert sorted({int(re.match(r"\d+", n)[0]) for n in numbers}) == list(
        range(1, int(re.match(r"\d+", last)[0]) + 1)
    )


def test_the_thirty_practices_of_future_ai_are_there_once_and_in_order():
    numbers = [row[0] for row in checklists.checklist_items("future_ai.csv", "embedded")]
    groups = {"F": 3, "U": 4, "T": 6, "Us": 5, "R": 3, "E": 2, "G": 7}
    assert numbers == [f"{group}{k}" for group, n in groups.items() for k in range(1, n + 1)] and len(numbers) == 30


def test_the_checklist_counts_what_is_not_satisfied_and_links_from_its_folder():
    text = checklists.checklist(EMBEDDED)
    assert text == checklists.checklist(EMBEDDED)
    for line, table in zip(re.findall(r"^satisfied: .*$", text, re.M), text.split("\n## ")[1:], strict=True):
        for status, number in re.findall(r"([a-z ]+): (\d+)", line):
            assert table.count(f"| {status.strip()} |") == int(number)
    assert "[`results/embedded/flow.json`](../../results/embedded/flow.json)" in text
    assert "synthetic cohort: phantom images, no patients" in text
    assert "synthetic" not in checklists.checklist(ISPY)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("satisfied,,", "item 7: status 'satisfied' with 0 files"),
        ("not satisfied,params.yaml,", "item 7: status 'not satisfied' with 1 files"),
    ],
)
def test_an_item_is_not_satisfied_by_nothing(tmp_path, row, message):
    table = tmp_path / "standard.csv"
    table.write_text(f"item,short,status,files,remark\n7,preparation,{row}\n")
    with pytest.raises(ValueError, match=message):
        list(checklists.checklist_items(str(table), "x"))


def test_a_bar_in_a_cell_does_not_break_the_table():
    assert documents._markdown_table([("x|y",)], "a").endswith("\n| x\\|y |")


def test_the_checklist_names_what_shows_performance_in_subgroups_calibration_leaks_and_failures():
    shown = {
        name: {row[0]: (row[2], row[3]) for row in checklists.checklist_items(table, "ispy")}
        for name, table in zip("TCMF", checklists._STANDARDS.values(), strict=True)
    }
    for standard, items, file in (
        ("T", ("12d", "14", "23a", "23b"), "results/ispy/subgroups.csv"),
        ("T", ("12f", "13", "24"), "results/ispy/calibration.csv"),
        ("T", ("12e", "13", "24"), "figures/ispy/calibration.png"),
        ("T", ("12e",), "figures/ispy/decision_curve.png"),
        ("T", ("16", "20c"), "results/ispy/population_shift.csv"),
        ("T", ("10",), "results/ispy/expected_width.csv"),
        ("C", ("20",), "results/ispy/leakage.json"),
        ("C", ("21",), "results/ispy/expected_width.csv"),
        ("C", ("13",), "results/ispy/population_shift.csv"),
        ("C", ("31",), "figures/ispy/attention_check.png"),
        ("C", ("39",), "figures/ispy/failures.png"),
        ("M", ("18",), "results/ispy/leakage.json"),
        ("M", ("19",), "results/ispy/shortcut_probe.csv"),
        ("M", ("22",), "results/ispy/calibration.csv"),
        ("M", ("25",), "her2core/kinetics.py"),
        ("F", ("F3",), "results/ispy/fairness.csv"),
        ("F", ("U3", "R3"), "results/ispy/external_validation.csv"),
    ):
        assert [i for i in items if file not in shown[standard][i][1]] == [], file
    assert [shown["T"][i][0] for i in ("12d", "14", "23a", "23b")] == ["in part", "in part", "satisfied", "in part"]
    assert [shown["C"][i][0] for i in ("13", "21", "31", "39")] == ["in part"] * 4 and shown["M"]["19"][
        0
    ] == "in part"


def test_every_figure_that_the_checklist_names_is_drawn_by_a_notebook():
    notebooks = [json.loads(path.read_text())["cells"] for path in (TOP / "notebooks").glob("*.ipynb")]
    code = "".join("".join(c["source"]) for cells in notebooks for c in cells if c["cell_type"] == "code")
    rows = [row for table in checklists._STANDARDS.values() for row in checklists.checklist_items(table, "x")]
    named = {Path(path).stem for row in rows for path in row[3] if path.startswith("figures/")}
    assert named <= set(re.findall(r'"(\w+)"', code)) and {"calibration", "failures"} <= named
