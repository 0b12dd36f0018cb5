"""What machines read of a study: exact on small inputs, and accepted by the validators of each format."""

import json
import re
from hashlib import sha256

import pytest
from house import TOP
from test_documents import BEST, CITATION, REAL, SYNTHETIC, results, study  # noqa: F401

from her2core.config import Study, Unready, read_yaml
from her2core.report import documents, machine_readable
from her2core.report.machine_readable import codemeta, croissant, pinned, ro_crate

SMALL = {"authors": [{"name": "The authors"}], "title": "A study", "version": "1.2", "license": "MIT"}
SMALL |= {"date-released": "2026-02-01", "references": [{"title": "A paper", "url": "https://e.org/p"}]}
PROJECT = {"name": "small", "description": "It is small", "version": "1.2", "license": {"text": "MIT"}}
PROJECT |= {"requires-python": ">=3.11", "dependencies": ["ruamel.yaml>=1", "dvc"], "readme": "README.md"}
VERSIONS = {"ruamel-yaml": "0.19", "dvc": "3.1"}


def entry(path, letter, size=7):
    return {"path": path, "hash": "md5", "md5": letter * 32, "size": size}


@pytest.fixture
def run():
    """A pipeline of two stages, one of them for each run, and its lock."""
    stages = {"acquire": {"desc": "get it", "cmd": "…"}, "train": {"desc": "fit it", "cmd": "…", "matrix": {}}}
    notebook = entry("notebooks/02_training.ipynb", "b")
    data = entry("data/x/prepare", "c") | {"md5": "c" * 32 + ".dir"}
    lock = {
        "acquire": {
            "cmd": "python -m her2core.cohorts.acquire x",
            "deps": [entry("her2core/cohorts/acquire.py", "a")],
            "params": {"params.yaml": {"name": "x"}},
            "outs": [data],
        }
    }
    for name, letter in (("vit", "d"), ("cvt", "e")):
        out = entry(f"results/x/predictions/{name}.csv", letter)
        command = f"python -m her2core.run 02_training cohort=x run={name}"
        lock[f"train@{name}"] = {"cmd": command, "deps": [notebook, data], "outs": [out]}
    return stages, lock


def crate(run, citation=SMALL, runs=("vit", "cvt")):
    stages, lock = run
    return ro_crate(Study("x", TOP, {"runs": runs}), stages, lock, PROJECT, citation, VERSIONS)


# --- the crate ----------------------------------------------------------------------------------------------


def test_a_crate_says_which_stage_made_which_file_of_which(run):
    found = {e["@id"]: e for e in crate(run)["@graph"]}
    assert found["#run/train@vit"] == {
        "@id": "#run/train@vit",
        "@type": "CreateAction",
        "name": "train@vit",
        "description": "python -m her2core.run 02_training cohort=x run=vit",
        "instrument": {"@id": "notebooks/02_training.ipynb"},
        "object": [{"@id": "notebooks/02_training.ipynb"}, {"@id": "#data/x/prepare"}],
        "result": {"@id": "results/x/predictions/vit.csv"},
    }
    assert found["results/x/predictions/vit.csv"] == {
        "@id": "results/x/predictions/vit.csv",
        "@type": "File",
        "encodingFormat": "text/csv",
        "name": "results/x/predictions/vit.csv",
        "md5": "d" * 32,
        "contentSize": "7",
    }
    assert found["#params.yaml:name"]["value"] == '"x"'
    assert found["#data/x/prepare"]["@type"] == "CreativeWork"  # not in git, so no file of the crate
    assert found["#step/train"]["position"] == "2"
    assert found["https://pypi.org/project/dvc/3.1/"]["softwareVersion"] == "3.1"
    assert {e["@id"] for e in found["#run"]["result"]} == {
        "#data/x/prepare",
        "results/x/predictions/vit.csv",
        "results/x/predictions/cvt.csv",
    }
    assert [e["@id"] for e in found["#run"]["object"]] == [
        "her2core/cohorts/acquire.py",
        "#params.yaml:name",
        "notebooks/02_training.ipynb",
    ]
    assert found["./"]["datePublished"] == "2026-02-01"


def test_a_crate_is_the_same_whatever_the_order_of_the_lock(run):
    stages, lock = run
    assert crate((stages, dict(reversed(lock.items())))) == crate(run)


def test_a_crate_of_half_a_run_is_refused(run):
    del run[1]["train@cvt"]
    with pytest.raises(ValueError, match=r"dvc\.lock: no stage train@cvt, expected every one of dvc\.yaml"):
        crate(run)


def test_a_crate_of_two_versions_of_a_file_is_refused(run):
    run[1]["train@cvt"]["deps"] = [entry("notebooks/02_training.ipynb", "f")]
    message = r"notebooks/02_training\.ipynb of the stage train@cvt is not the one of an earlier stage"
    with pytest.raises(ValueError, match=message):
        crate(run)


def test_a_crate_without_a_date_is_refused(run):
    with pytest.raises(ValueError, match=r"CITATION\.cff: no date-released"):
        crate(run, {key: value for key, value in SMALL.items() if key != "date-released"})


def test_the_crate_of_a_study_beside_the_top_levels_is_refused(monkeypatch):
    monkeypatch.chdir(TOP)
    with pytest.raises(ValueError, match="ispy is a study in studies/, expected the top level's"):
        machine_readable.top_level_files(Study.open("ispy"))


def test_the_validator_of_ro_crates_accepts_it_and_not_one_without_its_workflow():
    """With the context of version 1.1 as a package has it, so that no network is needed."""
    import warnings

    import rocrate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rocrate_validator.services import validate_metadata_as_dict

        context = json.loads((TOP / rocrate.__path__[0] / "data/ro-crate.jsonld").read_text("utf-8"))
        text = (TOP / "ro-crate-metadata.json").read_text("utf-8")
        whole, headless = json.loads(text), json.loads(text.replace('"mainEntity"', '"about"'))
        assert context["@id"] == whole["@context"][0]
        settings = {"rocrate_uri": str(TOP), "package_root": str(TOP), "no_cache": True}
        settings |= {"profile_identifier": "provenance-run-crate-0.5", "requirement_severity": "REQUIRED"}
        found = []
        for metadata in (whole, headless):
            metadata["@context"][0] = context["@context"]
            issues = validate_metadata_as_dict(metadata, settings).get_issues()
            found.append([issue.message for issue in issues])
    assert found[0] == []
    assert "The Main Workflow must be specified through a `mainEntity` property in the root data entity" in found[1]


# --- CodeMeta -----------------------------------------------------------------------------------------------

# of https://w3id.org/codemeta/3.0 what a project like this can have
CODEMETA = """
@context @type name description version license author datePublished programmingLanguage runtimePlatform
softwareRequirements readme referencePublication identifier keywords funding codeRepository
""".split()


def test_codemeta_joins_the_project_and_its_citation():
    assert codemeta(PROJECT, SMALL) == {
        "@context": "https://w3id.org/codemeta/3.0",
        "@type": "SoftwareSourceCode",
        "name": "small",
        "description": "It is small",
        "version": "1.2",
        "license": "https://spdx.org/licenses/MIT",
        "author": [{"@type": "Organization", "name": "The authors"}],
        "datePublished": "2026-02-01",
        "programmingLanguage": "Python",
        "runtimePlatform": "Python >=3.11",
        "softwareRequirements": ["ruamel.yaml>=1", "dvc"],
        "readme": "README.md",
        "referencePublication": [
            {"@type": "ScholarlyArticle", "name": "A paper", "url": "https://e.org/p"},
        ],
    }


def test_a_person_keeps_both_names_and_an_orcid():
    person = {"family-names": "Doe", "given-names": "J.", "orcid": "https://orcid.org/0"}
    (author,) = codemeta(PROJECT, SMALL | {"authors": [person]})["author"]
    assert author == {
        "@type": "Person",
        "givenName": "J.",
        "familyName": "Doe",
        "@id": "https://orcid.org/0",
    }


@pytest.mark.parametrize(("key", "value"), [("version", "1.3"), ("license", "GPL-3.0")])
def test_two_versions_or_licences_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"CITATION\.cff: {key} '{value}', in pyproject\.toml"):
        codemeta(PROJECT, SMALL | {key: value})


def test_versions_are_the_first_of_the_lock_and_a_package_without_one_is_named():
    lock = "dvc==3.1 ; sys_platform == 'x' \\\n    --hash=…\ndvc==3.0 \\\nother==1\nruamel-yaml==0.19\n"
    assert pinned(PROJECT, lock) == {"ruamel-yaml": "0.19", "dvc": "3.1"}
    with pytest.raises(ValueError, match="no version of ruamel-yaml; renew it: make lock"):
        pinned(PROJECT, "dvc==3.1\n")


def test_codemeta_at_the_top_has_no_other_key_than_codemetas():
    found = json.loads((TOP / "codemeta.json").read_text("utf-8"))
    assert set(found) <= set(CODEMETA)


# --- Croissant ----------------------------------------------------------------------------------------------

COLUMNS = "cohort,patient,split,label,run,model,window,bias_field,seed,probability"


@pytest.fixture
def tables(results):  # noqa: F811
    """Predictions of the reference, internal and external."""
    for folder, split in (("predictions", "test"), ("external", "external")):
        (results / folder).mkdir()
        row = f"ispy,P1,{split},1,{BEST},thda,channel_q98,raw,0,0.25\n"
        (results / folder / f"{BEST}.csv").write_text(f"{COLUMNS}\n{row}")
    return results


def test_croissant_names_every_table_with_its_digest_and_the_cohort_as_synthetic(tables):
    of = study(tables.parents[1], SYNTHETIC)
    text = croissant(of, SMALL, BEST)
    assert text == croissant(of, SMALL, BEST)
    found, path = json.loads(text), tables / "predictions" / f"{BEST}.csv"
    assert found["distribution"][0] == {
        "@type": "cr:FileObject",
        "@id": f"predictions/{BEST}.csv",
        "name": f"predictions/{BEST}.csv",
        "contentUrl": f"predictions/{BEST}.csv",
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": "text/csv",
        "sha256": sha256(path.read_bytes()).hexdigest(),
    }
    assert found["description"].startswith("Synthetic cohort: phantom images, no patients;")
    assert found["license"] == "https://spdx.org/licenses/MIT"
    assert found["rai:personalSensitiveInformation"][0].startswith("None.")
    assert "I-SPY" not in text and "'bayes_auc': 0.95" in found["rai:dataCollection"]
    assert "jobs" not in found["rai:dataCollection"]  # of the machine, not of the cohort


def test_croissant_of_real_patients_says_that_they_are(tables):
    found = json.loads(croissant(study(tables.parents[1]), SMALL, BEST))
    assert found["license"] == "the licences of the collections, see data_sources.json"
    assert found["rai:personalSensitiveInformation"] == [
        "The collections' own identifiers, and the label of each patient."
    ]
    assert "ynthetic" not in json.dumps(found)


def test_croissant_without_predictions_says_what_to_run(results):  # noqa: F811
    with pytest.raises(Unready, match=f"predictions/{BEST}.csv is not there yet; run first: dvc repro"):
        croissant(study(results.parents[1]), SMALL, BEST)


@pytest.mark.parametrize("sections", [REAL, SYNTHETIC], ids=["real", "synthetic"])
@pytest.mark.filterwarnings("ignore")
def test_mlcroissant_accepts_it_and_reads_the_rows(tables, sections):
    import mlcroissant  # of [dev]: where it is missing, this fails

    path = tables / "croissant.json"
    path.write_text(croissant(study(tables.parents[1], sections), SMALL, BEST))
    dataset = mlcroissant.Dataset(str(path))
    assert not dataset.metadata.ctx.issues.errors and not dataset.metadata.ctx.issues.warnings
    for name, split in (("predictions", b"test"), ("external", b"external")):
        (row,) = dataset.records(name)
        assert {key.partition("/")[2]: value for key, value in row.items()} == {
            "patient": b"P1",
            "split": split,
            "label": 1,
            "run": BEST.encode(),
            "seed": 0,
            "probability": 0.25,
        }


@pytest.mark.filterwarnings("ignore")
def test_mlcroissant_refuses_a_table_that_is_not_described(tables):
    import mlcroissant

    path = tables / "croissant.json"
    text = croissant(study(tables.parents[1], SYNTHETIC), SMALL, BEST)
    path.write_text(text.replace('"@id": "external/thda', '"@id": "elsewhere/thda', 1))
    with pytest.raises(mlcroissant.ValidationError, match="external/"):
        mlcroissant.Dataset(str(path))


# --- the model card -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "licence", "name"),
    [(REAL, "other", "ispy cohort"), (SYNTHETIC, "mit", "ispy synthetic cohort: phantom images, no patients")],
)
def test_the_hub_reads_numbers_and_cohort_of_the_model_card(results, sections, licence, name):  # noqa: F811
    from huggingface_hub import ModelCard

    text = documents.model_card(study(results.parents[1], sections), CITATION)
    assert text.startswith("---\n") and "\n---\n\n# Model card: " in text
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == (licence, "pytorch", "image-classification")
    assert ("synthetic-data" in data.tags) == (sections is SYNTHETIC)
    found = [(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results]
    site = "phantom of AMBL" if sections is SYNTHETIC else "AMBL"
    assert found == [
        (name, "internal test", "roc_auc", 0.7011),
        (name, "internal test", "accuracy", 0.75),
        (name, site, "roc_auc", 0.6407),
        (name, site, "accuracy", 0.75),
    ]
    assert {(r.task_type, r.task_name, r.dataset_type) for r in data.eval_results} == {
        ("image-classification", "HER2 status", "her2core-ispy")
    }


def test_no_file_that_machines_read_names_a_machine_or_an_hour():
    texts = [(TOP / name).read_text("utf-8") for name in ("codemeta.json", "ro-crate-metadata.json")]
    assert [t for t in texts if re.search(r'"/(?:home|root|work|tmp)|T\d\d:\d\d', t)] == []
    assert str(read_yaml(TOP / "CITATION.cff")["date-released"]) in texts[0]
