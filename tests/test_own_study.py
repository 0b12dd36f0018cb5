"""Patients of one's own, in every form that their files may have, from a table to the report: two external sites,
another endpoint than HER2, and every internal site left out once."""

import json
import shutil
import subprocess
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from pydicom import dcmread
from ruamel.yaml import YAML
from test_pipeline import copy_of_the_compendium, shell

from her2core.case import View, network_input
from her2core.cohort import included, patient_table
from her2core.cohorts.acquire import SOURCES, get_all
from her2core.config import Study, read_yaml
from her2core.formats.volume import as_uint16, to_sitk
from her2core.preprocess import PrepareConfig, prepare_patient, read_patient
from her2core.runs import Run

pytestmark = pytest.mark.slow


def folder_of(row, raw, home, name):
    """The archive's DICOM files as they are."""
    shutil.copytree(raw / row["dataset"] / row["patient"] / "dce", home / name)


def folder_per_phase(row, raw, home, name):
    for path in (raw / row["dataset"] / row["patient"] / "dce").iterdir():
        phase = home / name / f"phase {dcmread(path, stop_before_pixels=True).TemporalPositionIdentifier}"
        phase.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, phase)


def written_by_simpleitk(row, raw, home, name):
    """A NIfTI file for each of the three phases."""
    found = read_patient(row, raw, PREPARE)
    (home / name).mkdir()
    for k, phase in zip(found.chosen, found.phases, strict=True):
        sitk.WriteImage(to_sitk(phase, found.geometry), str(home / name / f"phase_{k}.nii.gz"))


def written_by_dcm2niix(row, raw, home, name):
    """One NIfTI file with all phases, as the converter that everybody uses makes it."""
    (home / name).mkdir()
    source = raw / row["dataset"] / row["patient"] / "dce"
    subprocess.run(["dcm2niix", "-z", "y", "-o", home / name, source], check=True, capture_output=True)


def outline(row, raw, home, name):
    """The mask as NIfTI."""
    found = read_patient(row, raw, PREPARE)
    sitk.WriteImage(to_sitk(found.mask.astype(np.uint8), found.geometry), str(home / f"{name}.nii.gz"))
    return f"{name}.nii.gz"


def roi(row, raw, home, name):
    """The archive's SEG."""
    shutil.copy(raw / row["dataset"] / row["patient"] / "seg.dcm", home / f"{name}.dcm")
    return f"{name}.dcm"


PREPARE = PrepareConfig(64.0, 32, 3, (0.0, 0.98, 1.0), 150.0, 450.0, ("raw",), False, False, 1)
FORMS = (
    (folder_of, roi),
    (folder_per_phase, roi),
    (written_by_simpleitk, outline),
    (written_by_dcm2niix, outline),
    (folder_of, outline),
    (folder_of, None),  # a box
)


def line(row, raw, home, form, mask):
    """Write one patient's files → its line of the table."""
    name = f"{row['patient']}-own"
    form(row, raw, home, name)
    found = read_patient(row, raw, PREPARE)
    cells = {"patient": name, "site": row["site"], "split": row["split"], "label": int(row["label"]), "dce": name}
    cells |= {"mask": mask(row, raw, home, f"{name}-mask") if mask else "", "box": ""}
    cells |= {"age": row["age"], "hr": int(row["hr"]), "menopause": row["menopause"]}
    if form is written_by_simpleitk:
        cells |= dict(zip(("pre", "post_early", "post_late"), found.chosen, strict=True))
    if form in (written_by_simpleitk, written_by_dcm2niix):
        cells |= dict(zip(("pre", "post_early", "post_late"), found.chosen, strict=True))
        cells |= {"early_s": found.times_s[1], "late_s": found.times_s[2]}
    if not mask:
        corners = np.argwhere(found.mask)
        cells["box"] = " ".join(map(str, [*corners.min(0), *corners.max(0)]))
    return cells


INTERNAL = (written_by_simpleitk, outline)


def external_of(rows, *labels):
    """The external patients, of one label where it is given."""
    return [p for p, row in rows.items() if row["split"] == "external" and row["label"] in (labels or (0, 1))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """(copy of the compendium, the archive's rows by patient, the table's file)."""
    top = copy_of_the_compendium(tmp_path_factory.mktemp("own"))
    params = top / "studies/tiny/params.yaml"
    params.write_text(params.read_text().replace("ambl: 6", f"ambl: {2 * len(FORMS)}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        study = Study.open("tiny")
        get_all(study.params("acquire", SOURCES), study.data("acquire"))
    raw, folder = study.data("acquire"), top / "data/breast"
    folder.mkdir()
    table = included(patient_table(pd.read_csv(raw / "metadata.csv", dtype={"pid": str})))
    rows, lines = {row["patient"]: row for row in table.to_dict("records")}, []
    for name, row in rows.items():
        form = FORMS[external_of(rows).index(name) % len(FORMS)] if row["split"] == "external" else INTERNAL
        lines.append(line(row, raw, folder, *form))
    half = [name for label in (0, 1) for name in external_of(rows, label)[::2]]
    lines = [row | ({"site": "Clinic B"} if row["patient"][:-4] in half else {}) for row in lines]
    pd.DataFrame(lines).to_csv(folder / "patients.csv", index=False)
    return top, rows, raw


@pytest.fixture(scope="module")
def own(home):
    """The copy, in which the study of these patients ran from the check to the page."""
    top, rows, _ = home
    for command in ("check data/breast/patients.csv", "study breast --table data/breast/patients.csv"):
        done = shell(top, "python", "-m", "her2core.study", *command.split())
        assert done.returncode == 0, done.stdout + done.stderr
    params = top / "studies/breast/params.yaml"
    values, tiny = read_yaml(params), read_yaml(top / "studies/templates/tiny.yaml")
    values |= {k: tiny[k] for k in ("models", "train", "evaluate")}
    values |= {"runs": ["thda-channel_q98-raw", "thda-channel_zscore-raw"]}
    values["prepare"] = {"slices": 3, "bias_fields": ["raw"], "neighbours": False}
    values["acquire"]["identifiers"] = "plain"
    values["cohort"] = {"endpoint": "hr"}
    values["evaluate"] = tiny["evaluate"] | {"leave_sites_out": True}
    with open(params, "w") as out:
        YAML().dump(values, out)
    done = shell(top, "dvc", "repro", "studies/breast/dvc.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return top


def patients_of(top):
    """The rows of the study's patients."""
    table = pd.read_csv(top / "data/breast/cohort/patients.csv", dtype={"patient": str})
    return table.set_index("patient", drop=False)


def test_every_form_of_the_external_site_is_prepared_as_the_archives_files_are(own, home):
    _, rows, raw = home
    mine = patients_of(own)
    external = [rows[name] for name in external_of(rows)]
    assert len(external) == 2 * len(FORMS)
    for row, (form, mask) in zip(external, 2 * FORMS, strict=True):
        theirs = prepare_patient(row, raw, PREPARE)
        found = prepare_patient(mine.loc[f"{row['patient']}-own"].to_dict(), own / "data/breast/acquire", PREPARE)
        same = ["images_raw", "quantiles_raw", "moments_raw", "masks"] if mask else ["quantiles_raw", "moments_raw"]
        if not mask:  # the box is another outline: the crop moves, the volume does not
            theirs, found = (p.arrays["quantiles_raw"][:1, 1:] for p in (theirs, found))
            assert np.array_equal(theirs, found), form.__name__
            continue
        assert all(np.array_equal(theirs.arrays[k], found.arrays[k]) for k in same), form.__name__


def test_a_frozen_network_says_the_same_of_dicom_and_nifti_as_of_the_archives_files(own, home, monkeypatch):
    _, rows, raw = home
    monkeypatch.chdir(own)
    run = Run.of(Study.open("breast"))
    config = Study.open("breast").params("prepare", PrepareConfig)
    mine = patients_of(own)

    def said(row, folder):
        found = read_patient(row, folder, config)
        fed = network_input(replace(found, phases=as_uint16(found.phases, found.name)[0]), config, View.of(run))[2]
        with torch.inference_mode():
            return [network(torch.from_numpy(fed)).numpy().tobytes() for network in run.networks()]

    for name, (_, mask) in zip(external_of(rows), 2 * FORMS, strict=True):
        if mask:
            theirs = said(rows[name], raw)
            assert said(mine.loc[f"{name}-own"].to_dict(), own / "data/breast/acquire") == theirs, name
            assert len(set(theirs)) == len(theirs) == 2


def test_the_report_knows_its_sites_and_hides_nothing(own):
    results = own / "results/breast"
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["synthetic"] is False and metrics["endpoint"] == "hr"
    found = {site: of["patients"] for site, of in metrics["external"].items()}
    assert list(found) == ["AMBL", "Clinic B"] and sum(found.values()) == 2 * len(FORMS)
    table = pd.read_csv(results / "external_validation.csv")
    tests = {run: part["test"].tolist() for run, part in table.groupby("run", sort=False)}
    every = ["internal", "AMBL", "Clinic B"]
    left_out = ["I-SPY1, left out", "I-SPY2, left out"]  # of the reference alone
    assert tests.pop("thda-channel_q98-raw") == every + left_out
    assert set(map(tuple, tests.values())) == {tuple(every)}
    assert {"thda-channel_zscore-raw", "lesion_first_order-none-raw", "clinical_kinetics-none-raw"} <= tests.keys()
    assert (results / "report.html").stat().st_size > 100_000
    for path in (results / "executed").glob("*.ipynb"):
        code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert not [o for c in code for o in c.outputs if o.output_type == "error"], path.name


def test_nothing_that_is_shown_has_a_path_of_the_table(own):
    shown = [*(own / "results/breast/executed").glob("*.ipynb"), own / "results/breast/report.html"]
    assert len(shown) > 10 and [path.name for path in shown if "-own-mask" in path.read_text()] == []


def test_no_document_says_her2_of_another_endpoint(own):
    results = own / "results/breast"
    card, _, titles = (results / "MODEL_CARD.md").read_text().partition("\n## Licence and citation\n")
    assert "HER2" in titles  # of the paper and of the software
    assert "HR+" in card and "HER2" not in card + (results / "flow.json").read_text()
    verdicts, _, parts = (results / "reported_vs_reproduced.md").read_text().partition("## The paper, part by part")
    assert "not comparable: this study is of hormone receptor status" in parts
    assert verdicts.count("not comparable: this study is of hormone receptor status") == verdicts.count("| – |")
    said = [
        text
        for path in (results / "executed").glob("*.ipynb")
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "HER2" in (text := str(output.get("text") or output.get("data", {}).get("text/plain", "")))
    ]
    of_label = [text for text in said if "HER2+" in text or "HER2-positive" in text]
    assert all("\npublished " in text for text in of_label), of_label  # the paper's counts, in notebook 0


def test_nothing_of_a_private_study_is_tracked_by_git(own):
    said = shell(own, "git", "status", "--porcelain").stdout.splitlines()
    assert not [line for line in said if not line.endswith(("studies/tiny/", "studies/breast/"))], said
