"""MAMA-MIA's release becomes a table of one's own: a line per patient, phases by the sheet's times, splits kept."""

import re
import warnings
from contextlib import contextmanager

import openpyxl
import pandas as pd
import pytest
import SimpleITK as sitk
from dicom_samples import geometry, lesions, series

from her2core.cohorts import mamamia as m
from her2core.cohorts.own import FolderConfig, check_table
from her2core.formats.volume import to_sitk

COLUMNS = [
    *("patient_id", "dataset", "bilateral_breast_cancer", "hr", "er", "pr", "her2", "pcr", "age", "menopause"),
    *("num_phases", "acquisition_times", "tcia_series_uid"),
]
TIMES = "[0, 90, 180, 270, 450]"
ROWS = [  # id, dataset, hr, her2, age, menopause, times
    ("ISPY2_100899", "ISPY2", 1, 0, 51, "pre (<6 months since LMP)", TIMES),
    ("ispy1_1001", "ISPY1", 0, 1, 40.5, "post", "[0, 150, 420]"),
    ("DUKE_001", "DUKE", 1, None, 44, None, TIMES),
    ("NACT_01", "NACT", 1, 1, None, "post", TIMES),
    ("DUKE_002", "DUKE", 1, 0, 60, "post", TIMES),
]


def sheet(path, rows=ROWS):
    book = openpyxl.Workbook()
    book.active.title = "dataset_info"
    book.active.append(COLUMNS)
    for k, (patient, dataset, hr, her2, age, menopause, times) in enumerate(rows):
        row = dict(patient_id=patient, dataset=dataset, hr=hr, her2=her2, age=age, menopause=menopause)
        row |= {"acquisition_times": times, "tcia_series_uid": f"1.2.{k}", "pcr": 0}
        book.active.append([row.get(c) for c in COLUMNS])
    book.save(path)


@pytest.fixture
def release(tmp_path):
    """Five patients in the sheet, four with images and expert masks."""
    sheet(tmp_path / "clinical_and_imaging_info.xlsx")
    splits = {
        "train_split": ["ISPY2_100899", "ISPY1_1001", "NACT_01"],
        "test_split": ["DUKE_001", "DUKE_002", None],
    }
    pd.DataFrame(splits).to_csv(tmp_path / "train_test_splits.csv", index=False)
    (tmp_path / "segmentations/expert").mkdir(parents=True)
    whole = series().array
    for patient, _, _, _, _, _, times in ROWS[:4]:
        folder, name = tmp_path / "images" / patient.upper(), patient.lower()
        folder.mkdir(parents=True)
        for k in range(len(times.split(","))):
            sitk.WriteImage(to_sitk(whole[k % 3], geometry()), str(folder / f"{name}_{k:04d}.nii.gz"))
        sitk.WriteImage(to_sitk(lesions() > 0, geometry()), str(tmp_path / f"segmentations/expert/{name}.nii.gz"))
    return tmp_path


def test_each_patient_with_images_and_expert_mask_is_a_line(release):
    table = m.table_of(release).set_index("patient")
    assert [*table.index] == ["ISPY2_100899", "ISPY1_1001", "DUKE_001", "NACT_01"]
    assert table["site"].tolist() == ["I-SPY2", "I-SPY1", "Duke", "NACT"]
    assert table["label"].tolist()[:2] == ["0", "1"] and pd.isna(table.loc["DUKE_001", "label"])
    assert table.loc["ISPY1_1001", ["dce", "mask"]].tolist() == [
        "images/ISPY1_1001",
        "segmentations/expert/ispy1_1001.nii.gz",
    ]
    assert table.loc["ISPY2_100899", ["pre", "post_early", "post_late"]].tolist() == [0, 2, 4]
    assert table.loc["ISPY1_1001", ["pre", "post_early", "post_late", "early_s", "late_s"]].tolist() == [
        0,
        1,
        2,
        150,
        420,
    ]
    assert table["menopause"].tolist()[:2] == ["pre", "post"]


def test_the_test_patients_are_the_releases_and_validation_comes_from_its_training_patients(release):
    split = m.table_of(release).set_index("patient")["split"]
    assert split["DUKE_001"] == "test" and set(split.drop("DUKE_001")) <= {"train", "validation"}


def test_every_line_can_be_read_by_her2_check(release):
    m.main([str(release)])
    config = FolderConfig(
        "folder", str(release / "patients.csv"), {}, (), (0.7, 0.15, 0.15), 1, 150.0, 450.0, "hashed", False, 1
    )
    lines, good = check_table(config)
    assert good and "phases 0, 2, 4 at 0, 180, 450 s" in lines[0] and "I-SPY1" in lines[1]


def test_masks_are_found_by_the_series_they_were_drawn_on(release):
    found = m.masks_by_series(release)
    assert found["1.2.1"].name == "ispy1_1001.nii.gz" and len(found) == 4


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda h: sheet(h / m_sheet, [ROWS[0], ROWS[0]]), "ISPY2_100899: expected one row, found 2"),
        (lambda h: sheet(h / m_sheet, [("P-1", *ROWS[0][1:])]), "patient_id cannot be 'P-1'"),
        (lambda h: (h / m_sheet).write_bytes(b"x"), "clinical_and_imaging_info.xlsx: .*expected an .xlsx"),
        (lambda h: (h / "train_test_splits.csv").write_text("train_split\nDUKE_001\n"), "test_split"),
        (
            lambda h: (h / "train_test_splits.csv").write_text("train_split,test_split\nDUKE_001,DUKE_001\n"),
            "DUKE_001 is in training and test",
        ),
        (
            lambda h: (h / "train_test_splits.csv").write_text("train_split,test_split\nDUKE_001,DUKE_002\n"),
            "ISPY2_100899: patient is 'ISPY2_100899', expected one of train_split or test_split",
        ),
        (lambda h: [p.unlink() for p in h.glob("segmentations/expert/*")], "no patient with images"),
    ],
)
def test_a_release_that_contradicts_itself_writes_nothing(release, break_, message):
    break_(release)
    with pytest.raises(SystemExit, match=f"mamamia: .*{message}"):
        m.main([str(release)])
    assert not (release / "patients.csv").exists()


m_sheet = "clinical_and_imaging_info.xlsx"


@contextmanager
def told_on_stderr():
    """As on the command line, where a warning is no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ("[0, 90]", "2 phases"),
        (None, "0 phases"),
        ("nan", "expected three or more numbers"),
        ("0, 90", "Extra data"),
    ],
    ids=str,
)
def test_times_that_tell_no_three_phases_are_told_with_the_patient_and_cost_nobody_else(
    release, capsys, times, said
):
    sheet(release / m_sheet, [(*ROWS[0][:6], times), *ROWS[1:]])
    with told_on_stderr():
        m.main([str(release)])
    assert re.search(f"mamamia: ISPY2_100899: .*{said}.*name its phases in the table", capsys.readouterr().err)
    table = pd.read_csv(release / "patients.csv").set_index("patient")
    assert pd.isna(table.loc["ISPY2_100899", "pre"]) and table.loc["NACT_01", "post_late"] == 4


def test_a_pause_is_told_with_the_patient(release, capsys):
    sheet(release / m_sheet, [(*ROWS[0][:6], "[0, 584, 714, 844]"), *ROWS[1:]])
    with told_on_stderr():
        m.main([str(release)])
    assert "mamamia: ISPY2_100899: the second phase follows after 584 s" in capsys.readouterr().err
    found = pd.read_csv(release / "patients.csv").set_index("patient").loc["ISPY2_100899"]
    assert found[["pre", "post_early", "post_late"]].tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("endpoint", "labels"),
    [("her2", ["0", "1", None, "1"]), ("hr", ["1", "0", "1", "1"]), ("pcr", ["0", "0", "0", "0"]),
     ("triple_negative", ["0", "0", "0", "0"])],
)  # fmt: skip
def test_the_labels_are_those_of_the_endpoint(release, endpoint, labels):
    m.main([str(release), endpoint])
    found = pd.read_csv(release / "patients.csv", dtype=str)["label"]
    assert [None if pd.isna(label) else label for label in found] == labels


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "her2", "c"], ["-h"]], ids=str)
def test_a_command_line_that_is_none_gets_the_help(arguments):
    with pytest.raises(SystemExit, match="FOLDER \\[ENDPOINT\\]"):
        m.main(arguments)
