"""`make verify`: what differs between two clones is found, named and judged."""

import csv
import json
import re
import shutil

import pytest
import verification as v
from house import TOP
from ruamel.yaml import YAML

AUC = "results/embedded/metrics.json"
KEPT = ("cohort", "study", "report", "external")  # stages of the copies, and one training
YAML_SAFE = YAML(typ="safe")


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """Copies of the results in git, with a lock that is of them."""
    top, lock = tmp_path_factory.mktemp("committed"), YAML_SAFE.load(TOP / "dvc.lock")
    stages = {s: of for s, of in lock["stages"].items() if s in KEPT or s == "train@vit"}
    for out in [out for stage in stages.values() for out in stage["outs"]]:
        source, copy = TOP / out["path"], top / out["path"]
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy)
        elif source.is_file():
            shutil.copy(source, copy)
        if source.exists():
            out["md5"] = v.recorded_digest(copy)
    write_lock(top, {"stages": stages})
    return top


@pytest.fixture
def clones(committed, tmp_path):
    both = [tmp_path / "committed", tmp_path / "rebuilt"]
    for clone in both:
        shutil.copytree(committed, clone)
    return both


def write_lock(top, lock):
    with open(top / "dvc.lock", "w") as file:
        YAML_SAFE.dump(lock, file)


def edit_lock(top, edit):
    lock = YAML_SAFE.load(top / "dvc.lock")
    edit(lock["stages"])
    write_lock(top, lock)


def edit_json(path, *keys, value):
    found = json.loads(path.read_text())
    inner = found
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value(inner[keys[-1]])
    path.write_text(json.dumps(found, indent=1) + "\n")


def odd(clones):
    return [f for f in v.compare(*clones) if f.kind != v.SAME]


def verdict(clones, same_machine=True):
    lines, good = v.report(v.compare(*clones), same_machine)
    return lines[-1], good


def test_the_same_bytes_are_verified_and_counted_by_stage(clones):
    findings = v.compare(*clones)
    lines, good = v.report(findings, True)
    assert good and lines[-1] == f"Verified: all {len(findings)} artefacts are the same bytes."
    assert [line.split()[0] for line in lines[1:-3]] == sorted([*KEPT, "train@vit"])
    of_cohort = sum(f.stage == "cohort" for f in findings)
    assert lines[1].split() == ["cohort", str(of_cohort), *"––––"] and of_cohort >= 7
    assert any(f.artefact == "results/embedded/external/vit.csv" for f in findings)  # of a folder each file
    assert any(f.artefact == "models/embedded/vit" for f in findings)  # by the locks alone


@pytest.mark.parametrize("path", [AUC, "results/embedded/metrics/vit.json"])  # of a folder too
def test_a_result_changed_by_hand_is_found_and_named(clones, path):
    edit_json(clones[0] / path, "internal", "auc", value=lambda x: x + 0.01)  # well inside its interval
    (found,) = odd(clones)
    assert (found.stage, found.artefact, found.kind) == ("report", path, v.WRONG)
    words = r"changed by hand, .* another digest: 1 of \d+ values; internal, auc: 0\.\d+, rebuilt 0\.\d+"
    assert re.fullmatch(words, found.words)
    for same_machine in (True, False):
        assert not verdict(clones, same_machine)[1]


def test_a_number_that_lies_outside_its_own_interval_is_never_accepted(clones):
    path = "results/embedded/metrics/vit.json"
    edit_json(clones[0] / path, "internal", "auc", value=lambda x: 0.99)
    for out in (lock := YAML_SAFE.load(clones[0] / "dvc.lock"))["stages"]["report"]["outs"]:
        out["md5"] = v.recorded_digest(clones[0] / out["path"])
    write_lock(clones[0], lock)
    (found,) = odd(clones)
    assert re.fullmatch(r"internal, auc: 0\.99 \(0\.\d+ to 0\.\d+\), rebuilt 0\.\d+, outside", found.words)


def test_a_folders_digest_is_dvcs(tmp_path):
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for name in ("b.csv", "a/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        tree.add(tuple(name.split("/")), None, HashInfo("md5", v.recorded_digest(tmp_path / name)))
    tree.digest()
    assert v.recorded_digest(tmp_path) == tree.hash_info.value


@pytest.mark.parametrize(("clone", "words"), [(0, "missing"), (1, "not rebuilt")])
def test_a_missing_file_is_found_and_named(clones, clone, words):
    for path in ("results/embedded/table_one.csv", "results/embedded/external/cvt.csv"):
        (clones[clone] / path).unlink()
    assert {(f.stage, f.artefact, f.kind, f.words) for f in odd(clones)} == {
        ("cohort", "results/embedded/table_one.csv", v.WRONG, words),
        ("external", "results/embedded/external/cvt.csv", v.WRONG, words),
    }
    assert verdict(clones, False) == (f"Not verified: 2 of {len(v.compare(*clones))} artefacts differ.", False)


def test_a_changed_seed_is_found_and_named_once(clones):
    def seeds(stages):
        for stage in stages.values():
            if "train" in stage.get("params", {}).get("params.yaml", {}):
                stage["params"]["params.yaml"]["train"]["seeds"] = [0, 1, 7]

    edit_lock(clones[1], seeds)
    (found,) = odd(clones)
    assert (found.artefact, found.kind) == ("parameter train.seeds", v.WRONG)
    assert re.fullmatch(r"\[0, 1, 2\], rebuilt with \[0, 1, 7\] \(and \d other stages\)", found.words)
    assert not verdict(clones, False)[1]


def test_other_code_and_a_stage_that_did_not_run_are_named(clones):
    def other(stages):
        for dep in stages["report"]["deps"]:
            if dep["path"] == "her2core/auc.py":
                dep["md5"] = "0" * 32
        del stages["train@vit"]

    edit_lock(clones[1], other)
    found = {(f.stage, f.artefact, f.words) for f in odd(clones) if f.kind == v.WRONG}
    assert found == {("report", "code her2core/auc.py", "other content"), ("train@vit", "stage", "not rebuilt")}


def rewrite(path, change):
    """The CSV with `change` applied to each cell of column `probability` or `auc`."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in {"probability", "auc"} & row.keys():
            row[name] = f"{float(row[name]) + change:.6f}"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


TABLES = ("results/embedded/normalization_study.csv", "results/embedded/predictions/vit.csv")


def test_numbers_that_differ_in_the_last_digit_are_accepted_everywhere(clones):
    for path in TABLES:
        rewrite(clones[1] / path, 1e-6)
    assert [(f.artefact, f.kind) for f in odd(clones)] == [(path, v.DIGITS) for path in TABLES]
    said, good = verdict(clones)
    assert good and "the same but for last digits (2)" in said


def test_numbers_inside_their_intervals_are_accepted_on_another_processor_only(clones):
    for path in TABLES:
        rewrite(clones[1] / path, 0.004)
    assert {f.kind for f in odd(clones)} == {v.INSIDE}
    assert verdict(clones, False)[0].startswith("Verified on another processor: in 2 of ")
    said, good = verdict(clones, True)
    assert not good and said.startswith("Not verified: 2 of ")
    assert said.endswith(" artefacts differ, on a machine that gives the committed bytes.")


def test_a_number_outside_its_interval_a_count_and_a_word_differ_everywhere(clones):
    rewrite(clones[1] / TABLES[0], 0.2)
    edit_json(clones[1] / "results/embedded/flow.json", "included", value=lambda n: n - 1)
    edit_json(clones[1] / AUC, "reference", value=lambda _: "vit")
    found = {f.artefact.rpartition("/")[2]: f.words for f in odd(clones)}
    assert found["normalization_study.csv"].endswith(", outside")
    assert found["flow.json"] == "top, included: 1020, rebuilt 1019"
    assert re.fullmatch(r"top, reference: thda\S+, rebuilt vit", found["metrics.json"])
    assert not verdict(clones, False)[1]


def test_rows_that_are_not_there_differ(clones):
    path = clones[1] / TABLES[1]
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    (found,) = odd(clones)
    assert found.kind == v.WRONG and found.words == "other rows or columns: 960 committed, 959 rebuilt"


def test_figures_pages_weights_and_arrays_with_other_bytes_are_told_and_do_not_decide(clones):
    told = {
        "figures/embedded/roc.png": "figure",
        "figures/embedded/roc.pdf": "figure",
        "results/embedded/executed/09_report.ipynb": "notebook as it ran",
        "results/embedded/summary.md": "document",
        "results/embedded/weights/vit.csv": "digests of weights",
    }
    for path in told:
        with open(clones[1] / path, "a") as file:
            file.write("\n")
    edit_lock(clones[1], lambda stages: stages["train@vit"]["outs"][0].update(md5="0.dir"))
    told["models/embedded/vit"] = "arrays or weights"
    found = odd(clones)
    assert {f.artefact: f.words for f in found} == told and {f.kind for f in found} == {v.TOLD}
    said, good = verdict(clones)
    assert good and said.endswith("6 figures, pages, weights and arrays have other bytes.")


def test_clones_are_of_head_the_second_without_results_and_a_second_call_leaves_them(tmp_path):
    top, where = tmp_path / "top", tmp_path / "verify"
    v.call(TOP, "git", "clone", "--quiet", "--depth", "1", TOP.as_uri(), str(top))
    committed, rebuilt = v.prepare(where, top, "embedded")
    assert (committed / AUC).is_file() and (committed / "dvc.lock").is_file()
    assert not (rebuilt / AUC).exists() and not (rebuilt / "dvc.lock").exists()
    assert (rebuilt / "results/embedded/tuning.csv").is_file()  # by hand: no stage makes it again
    (rebuilt / AUC).write_text("{}")
    v.prepare(where, top, "embedded")
    assert (rebuilt / AUC).read_text() == "{}"  # made anew, and kept
    v.call(top, "git", "commit", "--quiet", "--allow-empty", "-m", "another")
    v.prepare(where, top, "embedded")
    assert not (rebuilt / AUC).exists()


def test_the_exit_status_is_the_verdict(clones, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(v, "prepare", lambda folder, top, study: clones)
    monkeypatch.setattr(v, "call", lambda folder, *command, check=True: called.append(command) or 0)
    commits = {v.TOP: "made while it ran", clones[1]: "that was rebuilt"}
    monkeypatch.setattr(v, "_head", commits.get)
    assert v.main("embedded") == 0
    said = capsys.readouterr().out
    assert "Verified: all" in said and "embedded, commit that was reb;" in said
    assert called[1] == ("dvc", "repro", "--no-run-cache", "dvc.yaml")
    (clones[1] / AUC).unlink()
    assert v.main("embedded") == 1
    assert f"differs: report: {AUC}: not rebuilt" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nothing to verify: there is no dvc.lock of the study sample"):
        v.main("sample")
