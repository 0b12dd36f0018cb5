"""A cohort of one's own: a table, files in several forms, and every mistake told before anything is written."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from dicom_samples import SEG, geometry, lesions, put, series, write
from dicom_samples import edit as edit_dicom

from her2core import study
from her2core.cohorts import own
from her2core.formats.dicom_write import write_seg
from her2core.formats.volume import to_sitk

CONFIG = own.FolderConfig("folder", "", {}, (), (0.6, 0.2, 0.2), 1, 90.0, 180.0, "hashed", False, 1)
SHAPE = (3, 5, 6, 8)


def dicom_patient(home, name):
    """A series of three phases at 0, 92.5 and 180 s, and the lesions as a SEG."""
    write(home / name / "dce", series())
    write_seg(lesions(), geometry(), home / name / "seg.dcm", meaning="segments", **SEG)
    return {"dce": f"{name}/dce", "mask": f"{name}/seg.dcm"}


def nifti_patient(home, name):
    """The same as SimpleITK writes it."""
    (home / name / "dce").mkdir(parents=True)
    for t, phase in enumerate(series().array):
        sitk.WriteImage(to_sitk(phase, geometry()), str(home / name / f"dce/x_{t}.nii.gz"))
    sitk.WriteImage(to_sitk(lesions() > 0, geometry()), str(home / name / "mask.nii.gz"))
    return {"dce": f"{name}/dce", "mask": f"{name}/mask.nii.gz"}


@pytest.fixture
def home(tmp_path):
    """A table of three patients: DICOM, NIfTI, and DICOM with a box."""
    z, y, x = np.nonzero(lesions())
    box = " ".join(str(v) for pick in (min, max) for v in map(pick, (z, y, x)))
    rows = {
        "A1": dicom_patient(tmp_path, "A1") | {"label": 1},
        "B2": nifti_patient(tmp_path, "B2") | {"label": 0},
        "C3": dicom_patient(tmp_path, "C3") | {"label": 0, "mask": "", "box": box},
    }
    table = pd.DataFrame(
        [{"patient": name, "site": "Clinic A", "split": "", "box": ""} | r for name, r in rows.items()]
    )
    table.to_csv(tmp_path / "patients.csv", index=False)
    return tmp_path


def changed(home, edit):
    """The table after a change of its frame of text."""
    table = edit(pd.read_csv(home / "patients.csv", dtype=str, keep_default_na=False))
    table.to_csv(home / "patients.csv", index=False)


def cell(patient, column, value):
    def edit(table):
        table.loc[table["patient"] == patient, column] = value
        return table

    return lambda home: changed(home, edit)


def text(old, new):
    def edit(home):
        path = home / "patients.csv"
        path.write_bytes(path.read_bytes().replace(old, new))

    return edit


def run(home, capsys):
    """Exit status and all that `her2 check` says."""
    status = 0
    try:
        study.main(["check", str(home / "patients.csv")])
    except SystemExit as end:
        status = end.code
    out = capsys.readouterr()
    return status, out.out + out.err


def all_files(home):
    return {p.relative_to(home): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def of_another(home):
    write_seg(lesions(), geometry(), home / "A1/seg.dcm", meaning="segments", **SEG | {"patient_id": "P2"})


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-9])


MISTAKES = {
    "a missing column": (
        lambda h: changed(h, lambda t: t.drop(columns="label")),
        "expected one column each of label",
    ),
    "an unknown column": (text(b"box", b"bx"), "unknown columns bx; there are patient, site, split"),
    "a column twice": (text(b"split", b"site"), "a heading twice in patient, site, site"),
    "no rows": (lambda h: changed(h, lambda t: t.iloc[:0]), "found no rows"),
    "an unknown split": (
        cell("A1", "split", "training"),
        "A1: split is 'training', expected train or validation or",
    ),
    "some splits": (cell("A1", "split", "train"), "2 patients without a split beside others"),
    "a patient twice": (lambda h: changed(h, lambda t: pd.concat([t, t])), "A1: expected one row, found 2"),
    "two spellings": (cell("B2", "patient", "a1"), "a1: patient is 'a1', expected one spelling for each patient"),
    "no patient": (cell("B2", "patient", ""), "patient cannot be missing"),
    "a date for a patient": (
        cell("B2", "patient", "2026-01-02"),
        "patient is '2026-01-02', expected an identifier",
    ),
    "a third label": (cell("B2", "label", "2"), r"B2: label is '2', expected 1, 0 or nothing"),
    "a label in words": (cell("B2", "label", "positive"), "B2: label is 'positive'"),
    "a path outside": (cell("B2", "dce", "../B2/dce"), "B2: dce is '../B2/dce', expected a path inside"),
    "an absolute path": (cell("B2", "dce", "/etc"), "B2: dce is '/etc', expected a path inside"),
    "a path to nothing": (
        cell("B2", "dce", "B2/dec"),
        "B2: dce is 'B2/dec', expected a file or folder that is there",
    ),
    "no images": (cell("B2", "dce", ""), "B2: dce is missing"),
    "a mask and a box": (cell("A1", "box", "0 0 0 1 1 1"), "A1: mask is 'A1/seg.dcm', expected one, or else a box"),
    "neither mask nor box": (cell("C3", "box", ""), "C3: mask is missing, expected one, or else a box"),
    "a box of five": (cell("C3", "box", "0 0 0 1 1"), "C3: box is '0 0 0 1 1'"),
    "a box outside": (
        cell("C3", "box", "0 0 0 1 1 99"),
        r"C3: .*OUT: box \(0, 0, 0, 1, 1, 99\), expected one inside",
    ),
    "semicolons": (text(b",", b";"), "semicolons between cells, expected commas"),
    "tabs": (text(b",", b"\t"), "tabs between cells, expected commas; save it as CSV"),
    "a workbook": (lambda h: (h / "patients.csv").write_bytes(b"PK\x03\x04..."), "a workbook; save it as CSV"),
    "a blank at the front": (cell("B2", "patient", " B2"), "patient cannot be ' B2', expected"),
    "a decimal comma": (
        lambda h: changed(h, lambda t: t.assign(age="51,5")),
        "age is '51,5', expected a number from 0 up, with a",
    ),
    "an age in days": (lambda h: changed(h, lambda t: t.assign(age="18700")), "age is '18700'"),
    "another encoding": (lambda h: text(b"Clinic", "Klinik für".encode("latin-1"))(h), "in UTF-8"),
    "UTF-16": (lambda h: (h / "patients.csv").write_text((h / "patients.csv").read_text(), "utf-16"), "in UTF-8"),
    "a table cut off": (
        lambda h: (h / "patients.csv").write_bytes((h / "patients.csv").read_bytes()[:-9]),
        "found",
    ),
    "a line break in a cell": (text(b"Clinic A", b'"Clinic\nA"'), "without line breaks|expected"),
    "two phases": (lambda h: (h / "B2/dce/x_2.nii.gz").unlink(), "B2: .*OUT: the files do not say when"),
    "phases that are not there": (
        lambda h: changed(h, lambda t: t.assign(pre="0", post_early="1", post_late="7")),
        "OUT: phases .0, 1, 7., counted from 0, expected all",
    ),
    "phases out of order": (
        lambda h: changed(h, lambda t: t.assign(pre="2", post_early="1", post_late="0")),
        "OUT: phases .2, 1, 0., expected pre < early",
    ),
    "a mask of another grid": (
        lambda h: shutil.copy(h / "B2/dce/x_0.nii.gz", h / "B2/mask.nii.gz"),
        "B2: .*OUT: .*mask holds",
    ),
    "a mask moved": (
        lambda h: sitk.WriteImage(
            to_sitk(lesions() > 0, replace(geometry(), origin_mm=(9.0, 9.0, 9.0))), str(h / "B2/mask.nii.gz")
        ),
        "B2: .*OUT: .*mask.nii.gz: origin .*; expected origin",
    ),
    "another patient's mask": (of_another, "A1: .*OUT: .*SHA-256 of PatientID"),
    "a file beside": (lambda h: (h / "B2/dce/notes.txt").write_text("x"), "B2: .*OUT: .*holds 'notes.txt'"),
    "a damaged file": (
        lambda h: next((h / "A1/dce").iterdir()).write_bytes(b"x"),
        "A1: .*OUT: .*not a DICOM file|OUT",
    ),
    "a doubtful series": (
        lambda h: edit_dicom(h / "A1/dce", put(NumberOfTemporalPositions=4)),
        "A1: .*OUT: doubtful series.*NumberOfTemporalPositions is 4",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place_an_exit_status_and_nothing_written(home, capsys, mistake):
    make, message = MISTAKES[mistake]
    make(home)
    before = all_files(home)
    status, said = run(home, capsys)
    assert status != 0 and re.search(message, said if status == 1 else str(status)), (status, said)
    assert all_files(home) == before


def test_a_right_table_says_what_each_patient_becomes_and_counts_them(home, capsys):
    status, said = run(home, capsys)
    lines = said.splitlines()
    assert status == 0
    assert (
        "A1: Clinic A, " in lines[0]
        and "label 1: phases 0, 1, 2 at 0, 92, 180 s; 5 × 6 × 8 voxels of 2.5 × 0.7" in said
    )
    assert "B2: Clinic A, " in lines[1] and "phases 0, 1, 2 at 0, ?, ? s" in lines[1]
    counts = [line for line in lines[3:] if line.endswith(" positive")]
    assert sum(int(line.split(": ")[1].split()[0]) for line in counts) == 3


def test_a_byte_order_mark_is_no_mistake(home, capsys):
    path = home / "patients.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert run(home, capsys)[0] == 0


def test_whole_numbers_as_pandas_writes_them_beside_gaps_are_no_mistake(home, capsys):
    def edit(table):
        phases = {"pre": ["0.0", "", ""], "post_early": ["1.0", "", ""], "post_late": ["2.0", "", ""]}
        return table.assign(label=["1.0", "0.0", "0.0"], **phases)

    before = run(home, capsys)[1].split("\rcheck")[0]
    changed(home, edit)
    status, said = run(home, capsys)
    assert status == 0 and said.split("\rcheck")[0] == before


def test_the_mistakes_of_all_columns_are_told_at_once(home, capsys):
    for where in (("B2", "label", "positive"), ("A1", "split", "training"), ("C3", "age", "51,5")):
        cell(*where)(home)
    status, _ = run(home, capsys)
    assert [line.split(": ")[-2:] for line in str(status).splitlines()] == [
        ["A1", "split is 'training', expected train or validation or test or external or nothing; 1 such"],
        ["B2", "label is 'positive', expected 1, 0 or nothing; 1 such"],
        ["C3", "age is '51,5', expected a number from 0 up, with a decimal point; 1 such"],
    ]


def test_images_of_two_lines_are_a_mistake(home, capsys):
    cell("C3", "dce", "A1/dce")(home)
    status, said = run(home, capsys)
    assert "C3: dce is 'A1/dce', expected images that no other line has" in status and not said


def test_lines_with_one_patient_id_are_told_unless_all_of_a_site_have_it(home, capsys):
    changed(home, lambda t: t.assign(site=["Clinic A", "Clinic B", "Clinic A"]))
    assert run(home, capsys)[0] == 0  # A1 and C3 are all that Clinic A has: its files may be anonymous
    rows = dicom_patient(home, "D4") | {"patient": "D4", "site": "Clinic A", "label": "1"}
    edit_dicom(home / "D4/dce", put(PatientID="P4"))
    seg = pydicom.dcmread(home / "D4/seg.dcm")
    seg.PatientID = "P4"
    seg.save_as(home / "D4/seg.dcm")
    changed(home, lambda t: pd.concat([t, pd.DataFrame([rows])]).fillna(""))
    status, said = run(home, capsys)
    assert status == 1 and "A1, C3: one PatientID in the files; one person needs one line" in said


def test_fewer_than_three_phases_are_refused_by_the_check_and_early_may_be_late_of_three(home, capsys):
    (home / "B2/dce/x_2.nii.gz").unlink()
    for column, value in {"pre": "0", "post_early": "1", "post_late": "1"}.items():
        cell("B2", column, value)(home)
        cell("A1", column, value)(home)
    status, said = run(home, capsys)
    assert status == 1 and "B2: Clinic A, train, label 0: OUT: B2/dce: 2 phases, expected three or more" in said
    assert re.search("A1: .*phases 0, 1, 1 at 0, 92, 92 s", said)


@pytest.mark.parametrize("name", ["B2", "2"])
def test_a_reason_has_neither_the_patients_name_nor_that_of_a_file(home, tmp_path, name):
    (home / "B2").rename(home / "DOE_JANE_19610203")
    cell("B2", "dce", "DOE_JANE_19610203/dce")(home)
    cell("B2", "mask", "")(home)
    cell("B2", "box", "0 2 2 3 4 99")(home)
    cell("B2", "patient", name)(home)
    config = replace(CONFIG, table=str(home / "patients.csv"), shares=(0.6, 0.2, 0.2))
    _, (row,) = config.get(tmp_path / "acquire")
    assert row["reason"] == (
        "images or mask unusable: box (0, 2, 2, 3, 4, 99), expected one inside images of shape (z, y, x) (5, 6, 8)"
    )
    (home / "DOE_JANE_19610203/dce/x_1.nii.gz").write_bytes(b"no")
    _, (row,) = config.get(tmp_path / "acquire")
    assert "dce/…_1.nii.gz" in row["reason"] and not re.search(f"DOE|(?<!\\d){name}(?!\\d)", row["reason"])


def test_splits_with_too_few_of_a_class_are_told_and_count_where_the_study_is_known(home, capsys):
    config = replace(CONFIG, table=str(home / "patients.csv"))
    lines, good = own.check_table(config)
    assert good and re.match("split [a-z]+: . of . patients are positive, expected two or more", lines[-1])
    assert own.check_table(config, folded=False) == (lines, False)
    assert own.check_table(config, folded=True) == (lines[:-1], True)
    changed(home, lambda t: t.assign(label=""))
    lines, good = own.check_table(config, folded=False)
    assert not good and lines[-1].startswith("nobody can be used whose label is known: expected 1 or 0")
