"""The real cohort's way, walked on phantom patients that are served as the archives serve theirs."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pydicom
import pytest
from stand_in import serve
from test_transfer import environment, wait_for

from her2core.cohort import flow, patient_table
from her2core.cohorts import acquire as a
from her2core.cohorts import archive, manifest
from her2core.cohorts import phantom as embedded
from her2core.cohorts.collections import collections
from her2core.cohorts.examination import Unusable
from her2core.cohorts.transfer import NotThere, TransportFault
from her2core.config import build
from her2core.formats.dicom_write import write_seg
from her2core.formats.nifti import min_crop, phase_files, read_breastdcedl
from her2core.formats.volume import PHASE_COLUMNS
from her2core.phantom.patient import make_patient
from her2core.preprocess import read_patient
from her2core.records import read_record

TOP = Path(__file__).resolve().parents[1]
CONFIG = archive.ArchiveConfig(
    source="archive", manifests="manifests", collections={"spy2": "idc", "spy1": "zenodo", "ambl": "idc"},
    ambl_clinical="ambl.xlsx", ambl_her2={"pos": 1, "neg": 0}, ambl_pathology_out=(6,), duke_clinical="",
    duke_codes={}, duke_bilateral="out", idc_clinical=(), mamamia="",
    early_s=150.0, late_s=450.0, ambl_phases=None, crop_px=32, margin_slices=1, allow_missing=False, idc="",
    zenodo="", zenodo_record=1, connections=4, jobs=1,
)  # fmt: skip
PATIENTS = {"ISPY2-100001": "spy2", "ACRIN-6698-100002": "spy2", "ISPY1_1001": "spy1", "ISPY1_1002": "spy1"}
PATIENTS |= {"AMBL-001": "ambl", "AMBL-002": "ambl"}
RELEASE, TAR, TABLE = "records/1/files", "spy1.tar.gz", "table.csv"


def uuid(patient, role):
    text = hashlib.md5(f"{patient}{role}".encode()).hexdigest()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def serve_series(patient, role, paths, bucket):
    """Put files where the archive has them; returns the manifest's row."""
    name = uuid(patient, role)
    (bucket / name).mkdir(parents=True)
    for path in paths:
        shutil.copy(path, bucket / name)
    size = sum(p.stat().st_size for p in paths)
    number = int(name[:8], 16)
    values = [patient, role, "ispy2", f"1.2.{number}", name, bucket.name]
    values += [len(paths), size / 1e6, "CC BY 4.0", "10.7937/x", 25]
    return dict(zip(manifest.MANIFEST_COLUMNS, values, strict=True))


def make_phantoms(folder):
    """{patient: its phantom}, written as `embedded` writes them."""
    made = {}
    for number, (patient, dataset) in enumerate(PATIENTS.items()):
        row = {"patient": patient, "dataset": dataset, "seed": 70 + number, "her2": number % 2}
        site = embedded.site_of(row, 2)
        made[patient] = make_patient(row["seed"], row["her2"], site, bayes_auc=0.95)
        embedded.write_patient(row, made[patient], site, folder)
    return made


def described(patient, made):
    """A patient's row of BreastDCEDL's table, as its phantom has it."""
    series, mask = made.series, made.annotator_mask
    _, cropped, _ = min_crop(series.array, mask, 1, 32)
    from_archive = PATIENTS[patient] == "spy2"
    shown = cropped if from_archive else mask  # the release is served as it was written
    z = np.flatnonzero(shown.any((1, 2)))
    slice_mm, _, pixel_mm = series.geometry.spacing_mm
    return {
        "n_xy": shown.shape[2], "n_z": z.size, "n_times": len(series.array),
        "pre": 0, "post_early": 1, "post_late": 2, "slice_thick": slice_mm, "xy_spacing": pixel_mm,
        "mask_start": z[0], "mask_end": z[-1], "mask_count": mask.sum(),
        "tum_vol": mask.sum() * slice_mm * pixel_mm**2,
    }  # fmt: skip


def write_tables(top, served, rows, made):
    """Manifests, BreastDCEDL's table and AMBL's sheet, whose first lesion is malignant and any other benign."""
    for dataset, name in ((d, c.manifest) for d, c in collections().items()):
        part = pd.DataFrame(
            [r for r in rows if PATIENTS[r["patient"]] == dataset], columns=list(manifest.MANIFEST_COLUMNS)
        )
        (top / "manifests").mkdir(exist_ok=True)
        part.to_csv(top / "manifests" / f"{name}.csv", index=False, float_format="%.6f")
    pd.DataFrame(columns=["patient", "collection", "reason"]).to_csv(top / "manifests/excluded.csv", index=False)
    common = {"test": 1, "HR": 1, "age": 50, "menopause": 0}
    table = [
        {"pid": p, "dataset": d} | common | described(p, made[p]) | {"HER2": k % 2}
        for k, (p, d) in enumerate(PATIENTS.items())
        if d != "ambl"
    ]
    pd.DataFrame(table).to_csv(served / RELEASE / TABLE, index=False)
    sheet = pd.DataFrame({"Patient ID": ["AMBL-001", "AMBL-002"]})
    foci = [made[p].focus_labels.max() for p in sheet["Patient ID"]]
    for k in range(1, 7):
        sheet[f"pos{k}"] = [None, None]
        sheet[f"pathology{k}"] = [1 if k == 1 else 12 if k <= n else -1 for n in foci]
        sheet[f"tumor/benign{k}"] = [1 if k == 1 else 0 if k <= n else -1 for n in foci]
        if k < 4:
            sheet[f"HER2 [SII] {k}"] = ["pos", "neg"] if k == 1 else [-1, -1]
            for column in ("ER [SII] ", "PR [SII] ", "GRADE", "isTN"):
                sheet[f"{column}{k}"] = -1
    sheet.to_excel(top / "ambl.xlsx", index=False, startrow=1)


def pin(top, **digests):
    """The release's files and their MD5."""
    lines = [f"{name},{file},{digests[name]}" for name, file in (("spy1", TAR), ("table", TABLE))]
    (top / "manifests/releases.csv").write_text("\n".join(["dataset,file,md5", *lines]) + "\n")


def md5_of(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A compendium with manifests, what the archives serve, and the phantoms that are in it."""
    top = tmp_path_factory.mktemp("archive")
    served, raw = top / "served", top / "raw"
    bucket = served / "idc-open-data"
    made, rows = make_phantoms(raw), []
    for patient, dataset in PATIENTS.items():
        if dataset == "spy1":
            continue
        home = raw / dataset / patient
        rows.append(serve_series(patient, "dce", sorted((home / "dce").iterdir()), bucket))
        rows.append(serve_series(patient, "seg", [home / "seg.dcm"], bucket))
    (served / RELEASE).mkdir(parents=True)
    with tarfile.open(served / RELEASE / TAR, "w:gz") as tar:
        tar.add(raw / "spy1", "BreastDCEDL_ISPY1_min_crop")
    write_tables(top, served, rows, made)
    pin(top, spy1=md5_of(served / RELEASE / TAR), table=md5_of(served / RELEASE / TABLE))
    shutil.copy(TOP / "params.yaml", top)
    return top, served, made


@pytest.fixture
def here(world, monkeypatch):
    """Working directory in the compendium."""
    monkeypatch.chdir(world[0])


def at(server, **changes):
    return replace(CONFIG, idc=server.url, zenodo=server.url, **changes)


def snapshot(folder):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "downloads" not in p.parts]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """What an undisturbed run leaves."""
    top, served, _ = world
    folder = tmp_path_factory.mktemp("whole")
    with serve(served) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        a.get_all(at(server), folder)
    return folder


def test_every_collection_ends_in_one_layout_and_nothing_else_is_left(whole):
    metadata = pd.read_csv(whole / "metadata.csv").set_index("pid")
    assert set(metadata.index) == set(PATIENTS) and set(metadata["layout"]) == {"breastdcedl"}
    assert metadata["HER2"].to_dict() == {p: k % 2 for k, p in enumerate(PATIENTS)} | {"AMBL-001": 1, "AMBL-002": 0}
    assert not list(whole.rglob("*.dcm")) and not list((whole / "downloads").iterdir())
    assert len(pd.read_csv(whole / "files.csv")) == len(PATIENTS)


@pytest.mark.parametrize("patient", ["ISPY2-100001", "AMBL-001"])
def test_a_patient_from_dicom_is_the_crop_of_what_was_served_voxel_for_voxel(world, whole, patient):
    _, _, made = world
    row = pd.read_csv(whole / "metadata.csv").set_index("pid").loc[patient]
    series, mask = read_breastdcedl(whole / row["dataset"], patient, row)
    truth, of_dataset = made[patient], row["dataset"]
    wanted = truth.annotator_mask if of_dataset == "spy2" else truth.focus_labels == 1
    chosen = [int(row[c]) for c in ("pre", "post_early", "post_late")]
    phases, cropped, _ = min_crop(truth.series.array[chosen], wanted, 1, 32)
    np.testing.assert_array_equal(series.array, phases)
    np.testing.assert_array_equal(mask, cropped)
    assert series.geometry.spacing_mm == pytest.approx(truth.series.geometry.spacing_mm, abs=1e-6)


def test_a_patient_from_the_release_is_what_the_release_holds(world, whole):
    _, _, made = world
    row = pd.read_csv(whole / "metadata.csv").set_index("pid").loc["ISPY1_1001"]
    series, mask = read_breastdcedl(whole / "spy1", "ISPY1_1001", row, phases=[0, 1, 2])
    np.testing.assert_array_equal(series.array, made["ISPY1_1001"].series.array[:3])
    np.testing.assert_array_equal(mask, made["ISPY1_1001"].annotator_mask)


def test_a_second_run_asks_the_archives_for_nothing(world, whole, here, tmp_path):
    shutil.copytree(whole, tmp_path / "again")
    (tmp_path / "again/downloads" / TAR).touch()  # of a run killed just before it deleted it
    with serve(world[1]) as server:
        a.get_all(at(server), tmp_path / "again")
        assert server.asked == []
    assert not list((tmp_path / "again/downloads").iterdir())
    assert snapshot(tmp_path / "again") == snapshot(whole)


@pytest.mark.parametrize("change", [lambda content: content[:-9], lambda content: content[:-9] + bytes(9)])
def test_a_patient_whose_stored_files_changed_is_fetched_again_and_the_others_are_left(
    world, whole, here, tmp_path, change
):
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    victim = next((folder / "spy2/dce").glob("ISPY2-100001*"))
    victim.write_bytes(change(victim.read_bytes()))
    with serve(world[1]) as server:
        a.get_all(at(server), folder)
        assert {u.split("/")[2].split("?")[0] for u in server.asked if ".dcm" in u} == {
            uuid("ISPY2-100001", "dce"),
            uuid("ISPY2-100001", "seg"),
        }
    assert snapshot(folder) == snapshot(whole)


@pytest.mark.parametrize("what", ["dce", "mask", "record"])
def test_a_patient_of_the_release_whose_files_changed_is_unpacked_again(world, whole, here, tmp_path, what):
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    kept = [p for p in folder.rglob("*") if p.is_file() and "ISPY1_1002" not in p.name and "spy1" not in p.parts]
    victim = folder / "records/ISPY1_1002.json"
    if what != "record":
        victim = next((folder / "spy1" / what).glob("ISPY1_1002*"))
    victim.write_bytes(victim.read_bytes()[:-9] + bytes(9))
    before = [p.stat().st_mtime_ns for p in kept if p.parent != folder]
    with serve(world[1]) as server:
        a.get_all(at(server), folder)
        assert [u for u in server.asked if u.endswith(".dcm")] == []
    assert snapshot(folder) == snapshot(whole)
    assert [p.stat().st_mtime_ns for p in kept if p.parent != folder] == before


SCRIPT = """
import json, sys, time
from contextlib import contextmanager
from pathlib import Path
from her2core.cohorts import acquire, archive
from her2core.formats import nifti

@contextmanager
def slow(path, whole=nifti.whole):
    with whole(path) as part:
        yield part
    print("written", flush=True)
    time.sleep(120)

if {step!r} == "write":
    nifti.whole = slow
acquire.get_all(archive.ArchiveConfig(**json.loads({config!r})), Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", ["download", "write"])
def test_a_run_killed_in_mid_download_or_mid_write_goes_on_to_the_same_bytes(world, whole, here, tmp_path, step):
    top, served, _ = world
    folder = tmp_path / "killed"
    with serve(served, pause_s=0.05 if step == "download" else 0) as server:
        config = json.dumps(at(server).__dict__)
        code = SCRIPT.format(config=config, step=step)
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], cwd=top, env=environment(), stderr=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if step == "download":
            wait_for(lambda: len(list(folder.glob("downloads/*/dce*/*"))) > 3, 120)
        else:
            assert child.stdout.readline() == "written\n"
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert not (folder / "records").exists() or len(list((folder / "records").iterdir())) < len(PATIENTS)
        server.pause_s = 0
        a.get_all(at(server), folder)
    assert snapshot(folder) == snapshot(whole)


@pytest.mark.slow
def test_a_patient_that_cannot_be_used_is_a_row_with_a_reason_and_the_others_are_complete(world, here, tmp_path):
    top, served, _ = world
    broken = tmp_path / "served"
    shutil.copytree(served, broken)
    seg = next((broken / "idc-open-data" / uuid("ISPY2-100001", "seg")).iterdir())
    seg.write_bytes(b"\0" * seg.stat().st_size)
    (next((broken / "idc-open-data" / uuid("AMBL-002", "dce")).iterdir())).unlink()
    with serve(broken) as server:
        with pytest.raises(
            ValueError,
            match=r"(?s)2 patients cannot be used.*ISPY2-100001: mask unusable.*AMBL-002: not in the archive",
        ):
            a.get_all(at(server), tmp_path / "out")
        metadata = pd.read_csv(tmp_path / "out/metadata.csv").set_index("pid")
        assert metadata["reason"].dropna().index.tolist() == ["ISPY2-100001", "AMBL-002"]
        assert "not a DICOM file" in metadata.loc["ISPY2-100001", "reason"]
        assert "expected" in metadata.loc["AMBL-002", "reason"]
        assert not {"lesions", "malignant_lesions", "series"} & set(metadata)
        assert len(pd.read_csv(tmp_path / "out/files.csv")) == len(PATIENTS) - 2
        server.asked.clear()
        a.get_all(at(server, allow_missing=True), tmp_path / "out")
        assert not any(uuid("ISPY2-100001", "dce") in asked for asked in server.asked)  # it was kept


def first_phase_alone(files, made):
    for path in files:
        if int(pydicom.dcmread(path, stop_before_pixels=True).TemporalPositionIdentifier) > 0:
            path.unlink()


def masked(code, origin_mm=0.0):
    """Put another mask in place of the patient's: the code of all voxels, and of some in the middle."""

    def change(files, made):
        geometry, shape = made.series.geometry, made.annotator_mask.shape
        mask = np.full(shape, 33, np.uint8)
        mask[4:6, 30:34, 30:34] = code
        moved = replace(geometry, origin_mm=tuple(o + origin_mm for o in geometry.origin_mm))
        whose = {"patient_id": "ISPY2-100001", "series_description": "mask"}
        write_seg(mask, moved, files[0], meaning="tumour_is_zero", **whose)

    return change


def without_a_slice(files, made):
    files[3].unlink()


@pytest.mark.filterwarnings("ignore:.*NumberOfTemporalPositions is 4")
@pytest.mark.parametrize(
    ("role", "change", "reason"),
    [
        ("dce", first_phase_alone, r"phases unclear: phases \[0, 1, 2\], counted from 0, expected .* the 1 found"),
        ("dce", without_a_slice, "images unusable: .*unequal slices per phase"),
        ("seg", masked(33), "mask unusable: .*empty mask, expected at least one tumour voxel"),
        ("seg", masked(0, origin_mm=500.0), "mask unusable: .*mask on another grid"),
        ("seg", masked(0), "images contradict the table: mask_count 32, the table says [0-9]+"),
    ],
    ids=["one phase", "a slice lacks", "empty mask", "mask outside", "another mask"],
)
def test_an_odd_patient_is_out_for_a_reason_of_its_kind(world, tmp_path, monkeypatch, role, change, reason):
    top, served = copied_compendium(world, tmp_path / "top"), tmp_path / "served"
    monkeypatch.chdir(top)
    shutil.copytree(world[1], served)
    bucket = served / "idc-open-data" / uuid("ISPY2-100001", role)
    change(sorted(bucket.iterdir()), world[2]["ISPY2-100001"])
    sizes = [path.stat().st_size for path in bucket.iterdir()]
    table = pd.read_csv(top / "manifests/ispy2.csv", dtype=str)
    at_series = (table["patient"] == "ISPY2-100001") & (table["role"] == role)
    table.loc[at_series, ["instances", "size_MB"]] = [str(len(sizes)), f"{sum(sizes) / 1e6:.6f}"]
    table.to_csv(top / "manifests/ispy2.csv", index=False)
    with serve(served) as server:
        config = at(server, collections={"spy2": "idc"})
        with pytest.raises(ValueError, match=f"1 patients cannot be used(?s:.*)\nISPY2-100001: {reason}"):
            a.get_all(config, tmp_path / "out")
        server.asked.clear()
        a.get_all(replace(config, allow_missing=True), tmp_path / "out")
        assert server.asked == []  # its series were kept
    metadata = pd.read_csv(tmp_path / "out/metadata.csv")
    assert flow(patient_table(metadata))["excluded"] == {reason.partition(":")[0]: 1}
    assert pd.read_csv(tmp_path / "out/files.csv")["patient"].tolist() == ["ACRIN-6698-100002"]


def leave_out(path, chosen):
    """Delete the chosen rows of a table."""
    table = pd.read_csv(path, dtype=str)
    table[~chosen(table)].to_csv(path, index=False)


def test_whom_the_manifests_leave_out_is_no_failure_but_whom_they_do_not_know_is(
    world, here, tmp_path, monkeypatch
):
    top = copied_compendium(world, tmp_path / "top")
    monkeypatch.chdir(top)
    folder = tmp_path / "out"
    leave_out(top / "manifests/ispy2.csv", lambda t: (t["patient"] == "ISPY2-100001") & (t["role"] == "seg"))
    leave_out(top / "manifests/ambl.csv", lambda t: t["patient"] == "AMBL-001")
    (top / "manifests/excluded.csv").write_text("patient,collection,reason\nAMBL-001,advanced,no lesion SEG\n")
    with serve(world[1]) as server:
        a.get_all(at(server), folder)
        reasons = pd.read_csv(folder / "metadata.csv").set_index("pid")["reason"].dropna().to_dict()
        assert reasons == {
            "ISPY2-100001": "no series in the archive: no tumour SEG",
            "AMBL-001": "no series in the archive: no lesion SEG",
        }
        assert not any(uuid("ISPY2-100001", "dce") in asked for asked in server.asked)  # its images are of no use
        leave_out(top / "manifests/excluded.csv", lambda t: t["patient"] == "AMBL-001")
        with pytest.raises(ValueError, match="AMBL-001: not in the manifest: nor in manifests/excluded.csv"):
            a.get_all(at(server), folder)


def copied_compendium(world, folder):
    """A compendium like the world's, whose tables a test may change."""
    shutil.copytree(world[0] / "manifests", folder / "manifests")
    for name in ("params.yaml", "ambl.xlsx"):
        shutil.copy(world[0] / name, folder)
    return folder


def test_a_label_that_changes_in_the_tables_is_that_of_the_next_run_and_no_image_is_fetched(
    world, whole, tmp_path, monkeypatch
):
    folder, top = tmp_path / "again", copied_compendium(world, tmp_path / "top")
    monkeypatch.chdir(top)
    shutil.copytree(whole, folder)
    table = pd.read_csv(folder / TABLE)
    table["HER2"] = 1 - table["HER2"]
    table.to_csv(folder / TABLE, index=False)
    pin(top, spy1=md5_of(world[1] / RELEASE / TAR), table=md5_of(folder / TABLE))
    with serve(world[1]) as server:
        a.get_all(at(server, ambl_her2={"pos": 0, "neg": 1}), folder)
        assert server.asked == []
    before, after = (pd.read_csv(f / "metadata.csv").set_index("pid") for f in (whole, folder))
    assert (after["HER2"] == 1 - before["HER2"]).all()
    pd.testing.assert_frame_equal(after.drop(columns="HER2"), before.drop(columns="HER2"))


def test_a_patient_whom_the_table_describes_otherwise_is_out_with_both_numbers(world, tmp_path, monkeypatch):
    top = copied_compendium(world, tmp_path / "top")
    monkeypatch.chdir(top)
    served = tmp_path / "served"
    shutil.copytree(world[1], served)
    table = pd.read_csv(served / RELEASE / TABLE).set_index("pid")
    voxels = table.loc["ISPY1_1001", "mask_count"]
    table.loc["ISPY1_1001", "mask_count"] = 25169
    table.loc["ISPY2-100001", "slice_thick"] *= 2
    table.loc["ISPY2-100001", "tum_vol"] *= 2
    table.to_csv(served / RELEASE / TABLE)
    pin(top, spy1=md5_of(served / RELEASE / TAR), table=md5_of(served / RELEASE / TABLE))
    with serve(served) as server:
        a.get_all(at(server, allow_missing=True), tmp_path / "out")
        server.asked.clear()
        a.get_all(at(server, allow_missing=True), tmp_path / "out")
        assert not any(TAR in asked for asked in server.asked)  # 20 GB, which lie there unpacked
        (tmp_path / "out/spy1/mask/ISPY1_1002_spy1_vis1_mask.nii.gz").unlink()
        a.get_all(at(server, allow_missing=True), tmp_path / "out")
        assert any(TAR in asked for asked in server.asked)
    reasons = pd.read_csv(tmp_path / "out/metadata.csv").set_index("pid")["reason"].dropna()
    said = "images contradict the table: "
    assert reasons["ISPY1_1001"] == f"{said}mask_count {voxels}, the table says 25169"
    assert re.match(said + r"slice_thick [\d.]+, the table says [\d.]+; tum_vol", reasons["ISPY2-100001"])
    assert len(reasons) == 2


def test_a_patient_whose_her2_another_table_contradicts_is_out(world, tmp_path, monkeypatch):
    top = copied_compendium(world, tmp_path / "top")
    monkeypatch.chdir(top)
    (top / "clinical.csv").write_text("dicom_patient_id,hr,her2\nISPY2-100001,1,1\nACRIN-6698-100002,1,1\n")
    with serve(world[1]) as server:
        a.get_all(at(server, idc_clinical=("clinical.csv",)), tmp_path / "out")
    reasons = pd.read_csv(tmp_path / "out/metadata.csv").set_index("pid")["reason"].dropna()
    assert reasons.to_dict() == {"ISPY2-100001": "HER2 differs between tables: BreastDCEDL 0, IDC 1"}


@pytest.mark.parametrize("phases", [(0, 1, 3), (0, 2, 2)], ids=str)
def test_other_phases_are_cropped_anew_even_where_early_is_late_and_the_former_go(
    world, whole, here, tmp_path, phases
):
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    with serve(world[1]) as server:
        a.get_all(at(server, collections={"ambl": "idc"}, ambl_phases=phases), folder)
    files = phase_files(folder / "ambl", "AMBL-001")
    assert list(files) == sorted(set(phases)) and len(read_record(folder, "AMBL-001")["files"]) == len(files) + 1
    row = pd.read_csv(folder / "metadata.csv").set_index("pid", drop=False).loc["AMBL-001"]
    assert tuple(row[list(PHASE_COLUMNS)]) == phases
    wanted = SimpleNamespace(early_s=150.0, late_s=450.0)
    found = read_patient(dict(row) | {"patient": "AMBL-001"}, folder, wanted).phases
    box = min_crop(world[2]["AMBL-001"].series.array[list(phases)], world[2]["AMBL-001"].focus_labels == 1, 1, 32)
    np.testing.assert_array_equal(found, box[0])


def test_phases_that_a_series_does_not_have_are_refused(world, here, tmp_path):
    found = r"phases \[0, 1, 9\], .* among the 5 found"
    with serve(world[1]) as server, pytest.raises(ValueError, match=f"AMBL-001: phases unclear: {found}"):
        a.get_all(at(server, collections={"ambl": "idc"}, ambl_phases=(0, 1, 9)), tmp_path)


def test_without_network_the_run_ends_with_one_clear_line(world, here, tmp_path):
    nowhere = replace(CONFIG, idc="http://127.0.0.1:9", zenodo="http://127.0.0.1:9")
    with pytest.raises(TransportFault, match=r"^http://127.0.0.1:9/records/1/files/table.csv: "):
        a.get_all(nowhere, tmp_path / "out")
    with pytest.raises(TransportFault, match="(?s)2 patients could not be fetched.*\nAMBL-001: .*\nAMBL-002: "):
        a.get_all(replace(nowhere, collections={"ambl": "idc"}), tmp_path / "out")


@pytest.fixture
def failing(monkeypatch):
    """Patients whose series cannot be fetched, by name → the error."""
    errors = {}

    def fetch(series, *arguments, fetch_series=archive.fetch_series):
        if series["patient"] in errors:
            raise errors[series["patient"]]
        fetch_series(series, *arguments)

    monkeypatch.setattr(archive, "fetch_series", fetch)
    return errors


def test_a_patient_that_could_not_be_fetched_is_an_error_whatever_is_allowed_and_the_others_are_complete(
    world, whole, here, tmp_path, failing
):
    failing["ISPY2-100001"] = TransportFault("HTTP 503")
    failing["AMBL-002"] = OSError(28, "No space left on device")
    with serve(world[1]) as server:
        with pytest.raises(
            TransportFault, match="(?s)2 patients could.*ISPY2-100001: HTTP 503\nAMBL-002: .*No space"
        ):
            a.get_all(at(server, allow_missing=True), tmp_path / "out")
        assert not (tmp_path / "out/metadata.csv").exists()
        assert {p.stem for p in (tmp_path / "out/records").iterdir()} == set(PATIENTS) - set(failing)
        failing.clear()
        a.get_all(at(server, allow_missing=True), tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(whole)


def test_what_the_archive_does_not_have_is_a_reason(world, here, tmp_path, failing):
    failing["AMBL-002"] = NotThere("no such series")
    with serve(world[1]) as server:
        with pytest.raises(
            ValueError, match="1 patients cannot be used(?s:.*)AMBL-002: not in the archive: no such"
        ):
            a.get_all(at(server), tmp_path / "out")
        a.get_all(at(server, allow_missing=True), tmp_path / "out")
    reasons = pd.read_csv(tmp_path / "out/metadata.csv").set_index("pid")["reason"].dropna()
    assert reasons.to_dict() == {"AMBL-002": "not in the archive: no such series"}


def loses(folder, monkeypatch, error):
    """A function that meets this error at a patient of I-SPY2; allow: is the patient allowed to be missing?"""
    (folder / "downloads").mkdir(exist_ok=True)
    monkeypatch.setattr(archive, "_fetch_patient", lambda *_: (_ for _ in ()).throw(error))
    row = dict.fromkeys(PHASE_COLUMNS, 0) | {"pid": "ISPY2-100001"}
    return lambda allow=False: archive._get_patient(
        (row, [{"crdc_series_uuid": "x"}], None, None), replace(CONFIG, allow_missing=allow), folder
    )


def test_several_patients_in_a_row_that_cannot_be_fetched_stop_the_run(tmp_path, monkeypatch):
    lose = loses(tmp_path, monkeypatch, TransportFault("HTTP 503"))
    for _ in range(2):
        assert lose(allow=True) == {"fault": "HTTP 503"}
    with pytest.raises(TransportFault, match="3 patients in a row could not be fetched, at last: HTTP 503"):
        lose(allow=True)


@pytest.mark.parametrize("error", [Unusable("mask unusable: empty"), NotThere("no such series")], ids=str)
def test_many_in_a_row_that_cannot_be_used_stop_the_run_unless_that_is_allowed(tmp_path, monkeypatch, error):
    lose = loses(tmp_path, monkeypatch, error)
    for _ in range(9):
        assert lose()["reason"].endswith(str(error))
    with pytest.raises(ValueError, match=f"10 patients in a row cannot .*ISPY2-100001: .*{error}.*allow_missing"):
        lose()
    assert lose(allow=True)["failed"]


def test_a_patient_who_is_here_breaks_the_row_of_losses_but_not_that_of_faults(world, whole, tmp_path, monkeypatch):
    downloads = tmp_path / "again/downloads"
    shutil.copytree(whole, tmp_path / "again")
    (downloads / "ISPY2-100001/dce0").mkdir(parents=True)  # of a run killed just before it deleted them
    for name in ("faults", "losses"):
        (downloads / name).write_text("..")
    monkeypatch.setattr(archive, "_digest", lambda *_: read_record(whole, "ISPY2-100001")["recipe"])
    archive._get_patient(({"pid": "ISPY2-100001"}, [], None, None), CONFIG, tmp_path / "again")
    assert [p.name for p in downloads.iterdir()] == ["faults"]


def test_a_collection_of_which_nobody_is_left_is_an_error_whatever_is_allowed(
    world, here, tmp_path, failing, capsys
):
    config = {"collections": {"ambl": "idc"}, "allow_missing": True}
    failing["AMBL-002"] = NotThere("no such series")
    with serve(world[1]) as server:
        a.get_all(at(server, **config), tmp_path / "out")
        assert (
            "1 patients cannot be used; all others are complete.  metadata.csv says why" in capsys.readouterr().err
        )
        failing["AMBL-001"] = failing["AMBL-002"]
        shutil.rmtree(tmp_path / "out/records")
        with pytest.raises(
            ValueError, match="2 patients cannot be used.*nobody is left of ambl:\nAMBL-001: not in"
        ):
            a.get_all(at(server, **config), tmp_path / "out")


def test_a_patient_of_the_manifest_whom_no_table_has_is_a_row_too(world, here, tmp_path, monkeypatch):
    sheet = pd.read_excel("ambl.xlsx", header=None)
    sheet[sheet[0] != "AMBL-002"].to_excel(tmp_path / "less.xlsx", index=False, header=False)
    config = {"collections": {"ambl": "idc"}, "ambl_clinical": str(tmp_path / "less.xlsx")}
    with serve(world[1]) as server:
        a.get_all(at(server, **config), tmp_path / "out")
    metadata = pd.read_csv(tmp_path / "out/metadata.csv")
    assert metadata.set_index("pid")["reason"].dropna().to_dict() == {"AMBL-002": "not in the clinical table"}
    assert flow(patient_table(metadata))["excluded"] == {"not in the clinical table": 1}


def test_a_release_that_is_not_pinned_is_told_with_what_is(here):
    with pytest.raises(
        ValueError, match="manifests/releases.csv: found spy1, table, expected spy2 too; restore it"
    ):
        CONFIG.release("spy2")


def test_an_address_may_end_with_a_slash(world, here):
    _, _, url = replace(CONFIG, zenodo="http://mirror/some/path/").release("table")
    assert url == f"http://mirror/some/path/{RELEASE}/{TABLE}"


def test_a_missing_clinical_sheet_is_told_before_anything_is_downloaded(world, here, tmp_path):
    with serve(world[1]) as server, pytest.raises(ValueError, match="no.xlsx"):
        a.get_all(at(server, ambl_clinical="no.xlsx"), tmp_path / "out")
    assert server.asked == []


def test_other_names_in_a_release_are_never_written(tmp_path):
    bad = (
        "../../dce/ISPY1_1_spy1_x.nii.gz",
        "/tmp/dce/../x_spy1_y.nii.gz",
        "a/dce/x.pkl",
        "a/dce/.._spy1_x.nii.gz",
    )
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        for name in (*bad, "a/dce/ISPY1_1_spy1_vis1_dce_aqc_0.nii.gz"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, __import__("io").BytesIO(b"abc"))
    archive._unpack(tmp_path / "x.tar.gz", tmp_path / "home", "spy1")
    written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {
        "x.tar.gz",
        "home/dce/ISPY1_1_spy1_vis1_dce_aqc_0.nii.gz",
        "home/dce/ISPY1_1_spy1_x.nii.gz",
    }


def test_the_committed_manifests_hold_the_cohort():
    counts = {
        name: manifest.series_with_seg(name, TOP / "manifests")[0]["patient"].nunique()
        for name in ("spy2", "spy1", "ambl")
    }
    assert counts == {"spy2": 982, "spy1": 145 - 25, "ambl": 99}  # of I-SPY1 25 have no SEG
    releases = manifest.read_releases(TOP / "manifests/releases.csv")
    assert releases["table"] == ("BreastDCEDL_metadata_min_crop.csv", "d58b84d0f343b4b8338cbb222e6dda08")
    assert set(releases) == {"spy2", "spy1", "table"}


def test_the_block_of_ambl_her2_may_be_read_with_numbers_and_with_gaps_which_the_sheets_reader_tells():
    given = {0: 0, 1.5: None, "pos": "?"}
    assert build(archive.ArchiveConfig, vars(CONFIG) | {"ambl_her2": given}, "acquire").ambl_her2 == given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collections": {"ambl": "zenodo"}}, "ambl from 'zenodo', expected one of"),
        ({"collections": {"duke": "zenodo"}}, "duke from 'zenodo', expected one of"),
        ({"crop_px": 0}, "crop_px and connections must be positive"),
        ({"margin_slices": -1}, "margin_slices 0 or more"),
        ({"ambl_phases": (0, 0, 2)}, r"phases \[0, 0, 2\], expected pre < early ≤ late"),
    ],
    ids=str,
)
def test_a_cohort_that_cannot_be_had_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
