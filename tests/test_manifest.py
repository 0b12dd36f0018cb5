"""Which series of the archive make the real cohort: the rules on small indices, the counts on the real one."""

from pathlib import Path

import pandas as pd
import pytest
import rebuild
from rebuild import _REGISTERED, ambl, ispy1, ispy2

from her2core.cohorts import manifest
from her2core.cohorts.manifest import read_manifest, totals

TOP = Path(__file__).resolve().parents[1]
TABLE = TOP.parent / "shared" / "real" / "BreastDCEDL_ISPY2_metadata.csv"
UNI, BI = "ISPY2: VOLSER: uni-lateral cropped", "ISPY2: VOLSER: bi-lateral"


def index_of(collection, *rows):
    """A small index; each row has (patient, description, and what differs from the usual)."""
    usual = {
        "collection_id": collection,
        "instanceCount": 1,
        "series_size_MB": 2.5,
        "license_short_name": "CC BY 4.0",
        "source_DOI": "10.7937/abc",
        "StudyDate": "1985-01-01",
        "StudyDescription": "ISPY2_MRI_T0",
        "Modality": "MR",
        "SeriesNumber": "1",
        "aws_bucket": "idc-open-data",
        "idc_version": 25,
    }
    made = []
    for n, (patient, description, more) in enumerate(rows):
        own = {
            "PatientID": patient,
            "SeriesDescription": description,
            "SeriesInstanceUID": f"1.2.{n}",
            "crdc_series_uuid": f"{n:08x}-0000-4000-8000-000000000000",
            "StudyInstanceUID": f"1.3.{patient}.{more.get('StudyDate') or 'first'}",
        }
        made.append(usual | own | more)
    return pd.DataFrame(made)


def uids(table, role):
    return table.loc[table["role"] == role, "SeriesInstanceUID"].tolist()


def reasons(out):
    return dict(zip(out["patient"], out["reason"], strict=True))


def seg(**more):
    return {"Modality": "SEG"} | more


# I-SPY2


def visit(patient, kind=UNI, mask_kind=None, **more):
    return [(patient, f"{kind}: original DCE", more), (patient, f"{mask_kind or kind}: Analysis Mask", seg(**more))]


def test_ispy2_takes_the_original_dce_and_its_mask_of_the_first_visit():
    later = visit("a", StudyDescription="ISPY2_MRI_T1")
    raw = [("a", "ISPY2: Ax Vibrant POST", {}), ("a", f"{UNI}: SER", {}), ("a", f"{UNI}: PE2", {})]
    table, out = ispy2(index_of("ispy2", *later, *raw, *visit("a"), *visit("b", BI)), {"a", "b"})
    assert table["patient"].tolist() == ["a", "a", "b", "b"] and out.empty
    assert uids(table, "dce") == ["1.2.5", "1.2.7"] and uids(table, "seg") == ["1.2.6", "1.2.8"]


def test_ispy2_keeps_acrin_patients_in_their_own_collection():
    more = {"StudyDescription": "ACRIN-6698_ISPY2_MRI_T0", "collection_id": "acrin_6698"}
    table, _ = ispy2(index_of("ispy2", *visit("a", **more)), {"a"})
    assert set(table["collection"]) == {"acrin_6698"}


def test_ispy2_says_why_a_patient_is_out():
    rows = [*visit("in"), *visit("stranger"), *visit("late", StudyDescription="ISPY2_MRI_T2")]
    _, out = ispy2(index_of("ispy2", *rows, ("raw", "ISPY2: Ax Vibrant POST", {})), {"in"})
    assert reasons(out) == {
        "late": "no study at T0",
        "raw": "no original DCE at T0",
        "stranger": "not in BreastDCEDL's table",
    }
    assert set(out["collection"]) == {"ispy2"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*visit("a"), *visit("a", BI)], r"a: expected one original DCE at T0, found \['ISPY2: VOLSER: bi-lateral"),
        ([("a", f"{UNI}: SER", {})], "a: expected one original DCE at T0, found none; 1 such"),
        (visit("a", UNI, mask_kind=BI), "a: expected one Analysis Mask at T0 of the DCE's kind, found none"),
        ([*visit("a"), visit("a")[1]], "a: expected one Analysis Mask at T0 of the DCE's kind, found"),
        (visit("a", aws_bucket="elsewhere"), "a: expected idc-open-data, found aws_bucket elsewhere"),
    ],
)
def test_ispy2_refuses_a_member_without_exactly_one_series_of_each_role(rows, message):
    with pytest.raises(ValueError, match=message):
        ispy2(index_of("ispy2", *rows), {"a"})


# I-SPY1


def dynamic(*phases, patient="a", name="Dynamic", map_number=31000, **more):
    """A SER map of 10 slices and series of one name, given as (number, phases)."""
    rows = [(patient, name, {"SeriesNumber": str(n), "instanceCount": int(10 * p)} | more) for n, p in phases]
    return [*rows, (patient, f"{name}: SER", {"SeriesNumber": str(map_number), "instanceCount": 10} | more)]


def voi(number, patient="a"):
    return (patient, "VOI PE Segmentation thresh=70", seg(SeriesNumber=str(number)))


@pytest.mark.parametrize(
    ("phases", "map_number", "taken"),
    [
        ([(3, 3)], 31000, ["1.2.0"]),  # one series with all phases
        ([(3, 1), (4, 1), (6, 1)], 31000, ["1.2.0", "1.2.1", "1.2.2"]),  # one series per phase
        ([(3, 1), (4, 2)], 31000, ["1.2.0", "1.2.1"]),  # before and after contrast
        ([(3, 1), (4, 3)], 41000, ["1.2.1"]),  # a repeat before
        ([(3, 3), (4, 1)], 31000, ["1.2.0"]),  # a repeat after
        ([(2, 3), (3, 1.7)], 21000, ["1.2.0"]),  # a stopped repeat after
        ([(1001, 6)], 101000, ["1.2.0"]),  # Philips: 1001 is 10
    ],
)
def test_ispy1_takes_the_series_that_the_ser_map_was_computed_from(phases, map_number, taken):
    table, out = ispy1(index_of("ispy1", *dynamic(*phases, map_number=map_number)))
    assert uids(table, "dce") == taken and uids(table, "seg") == [] and out.empty


def test_ispy1_takes_the_tumour_segmentation_within_the_box_and_of_the_same_series():
    others = [
        ("a", "PE Segmentation thresh=70", seg(SeriesNumber="32000")),
        ("a", "VOI Breast Tissue Segmentation", seg(SeriesNumber="32101")),
    ]
    table, _ = ispy1(index_of("ispy1", *dynamic((3, 3)), *others, voi(52100), voi(32100)))
    assert uids(table, "seg") == ["1.2.5"]


def test_ispy1_takes_the_earliest_study_with_its_series_that_lost_their_date():
    study = {"StudyInstanceUID": "1.3.1"}
    later = dynamic((3, 3), StudyDate="1985-03-01", StudyInstanceUID="1.3.2")
    undated = dynamic((3, 4), StudyDate="", StudyInstanceUID="1.3.2", name="Undated")
    first = [("a", "Localizer", study), *dynamic((3, 3), **study | {"StudyDate": ""})]
    table, _ = ispy1(index_of("ispy1", *later, *undated, *first))
    assert uids(table, "dce") == ["1.2.5"]


def test_ispy1_says_why_a_patient_is_out():
    rows = [
        ("no map", "Dynamic", {"instanceCount": 30}),
        ("unnamed", ": SER", {"SeriesNumber": "31000", "instanceCount": 10}),
        ("gone", "Dynamic: SER", {"SeriesNumber": "31000", "instanceCount": 10}),
        *dynamic((3, 1), patient="other"),
        ("other", "Dynamic_POST", {"SeriesNumber": "4", "instanceCount": 10}),
        *dynamic((3, 1), (4, 1), patient="two"),
        *dynamic((3, 1), (5, 1), (6, 1), patient="repeat", map_number=51000),
        *dynamic((3, 3), patient="undated", StudyDate=""),
        *dynamic((3, 3), patient="in"),
    ]
    table, out = ispy1(index_of("ispy1", *rows))
    names = "SER map names no series of the study"
    elsewhere = "phases under other names than the SER map's"
    assert reasons(out) == {
        "no map": "no SER map at the earliest study",
        "unnamed": names,
        "gone": names,
        "other": elsewhere,
        "two": elsewhere,
        "repeat": elsewhere,
        "undated": "no dated study",
    }
    assert set(table["patient"]) == {"in"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*dynamic((3, 3)), *dynamic((4, 3), name="Other")], "a: expected one SER map, found"),
        (dynamic((4, 3)), r"a: expected one 'Dynamic' that SER map 31000 refers to, found numbers \[4\]"),
        (dynamic((301, 3), (302, 3)), r"found numbers \[301, 302\]"),
        (dynamic((3, 1), (4, 1.7), (5, 1)), "a: expected phases of 10 slices, found instanceCount 17"),
        ([*dynamic((3, 3)), voi(32100), voi(32100)], "a: expected one VOI PE Segmentation, found"),
        (
            [*dynamic((3, 3)), ("a", "x", {"StudyInstanceUID": "1.9"})],
            "a: expected one earliest study, found Study",
        ),
    ],
)
def test_ispy1_refuses_what_its_rules_cannot_decide(rows, message):
    with pytest.raises(ValueError, match=message):
        ispy1(index_of("ispy1", *rows))


# AMBL

AMBL = "advanced_mri_breast_lesions"


def lesion(patient="a", instances=580):
    original = (patient, "AX Sen Vibrant MultiPhase", {"instanceCount": 580})
    return [original, (patient, _REGISTERED, {"instanceCount": instances}), (patient, "ROI", seg())]


def test_ambl_takes_the_registered_series_of_patients_with_a_lesion():
    table, out = ambl(index_of(AMBL, *lesion(), ("b", _REGISTERED, {"instanceCount": 580})))
    assert uids(table, "dce") == ["1.2.1"] and uids(table, "seg") == ["1.2.2"]
    assert out.to_dict("records") == [{"patient": "b", "collection": AMBL, "reason": "no lesion SEG"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lesion()[::2], f"a: expected one {_REGISTERED}, found none"),
        ([*lesion(), *lesion()[1:2]], f"a: expected one {_REGISTERED}, found"),
        ([*lesion(), *lesion()[2:]], r"a: expected one SEG ROI, found \['ROI', 'ROI'\]; 1 such"),
        (lesion(instances=579), "a: expected five phases, found instanceCount 579"),
    ],
)
def test_ambl_refuses_a_patient_without_exactly_one_registered_series_of_five_phases(rows, message):
    with pytest.raises(ValueError, match=message):
        ambl(index_of(AMBL, *rows))


# Files


@pytest.fixture
def small(tmp_path):
    table, _ = ambl(index_of(AMBL, *lesion("b"), *lesion("a")))
    rebuild._write_table(table, tmp_path / "small.csv")
    return tmp_path / "small.csv"


def test_a_manifest_survives_the_file_and_is_sorted(small):
    table = read_manifest(small)
    assert (table["patient"] + " " + table["role"]).tolist() == ["a dce", "a seg", "b dce", "b seg"]
    assert table["instances"].tolist() == [580, 1, 580, 1] and table["size_MB"].tolist() == [2.5] * 4
    assert [p.name for p in small.parent.iterdir()] == ["small.csv"]


def test_totals_count_what_would_be_fetched(small):
    found = totals(read_manifest(small))
    assert found == {"patients": 2, "series": 4, "instances": 1162, "GB": 0.01, "licences": ["CC BY 4.0"]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patient,role", "pid,role", "small.csv: expected columns patient, role, .*; found .'pid'"),
        ("\na,dce", "\n../a,dce", r"small.csv, row 2: patient cannot be '\.\./a'"),
        ("\na,dce", "\n,dce", "row 2: patient cannot be ''"),
        ("\na,dce", "\n-a,dce", "row 2: patient cannot be '-a'"),
        ("\na,dce", '\n"a\n",dce', "row 2: patient cannot be"),
        ("\na,dce", "\nå,dce", "row 2: patient cannot be 'å'"),
        ("\na,dce", "\n\na,dce", "row 2: expected 10 values, found 0"),
        ("a,seg", "a,mask", "row 3: role cannot be 'mask'"),
        (f"a,seg,{AMBL}", "a,seg,ct", "row 3: collection cannot be 'ct'"),
        ("1.2.1", "1.2.x", "SeriesInstanceUID cannot be '1.2.x'"),
        ("1.2.1", "1.02", "SeriesInstanceUID cannot be '1.02'"),
        ("1.2.1", "1." + "2" * 63, "SeriesInstanceUID cannot be '1.2222"),
        ("1.2.1", "1.2.2", "small.csv, row .: SeriesInstanceUID 1.2.2 is listed twice"),
        ("00000001-", "00000002-", "crdc_series_uuid 00000002-.* is listed twice"),
        ("00000001-", "", "crdc_series_uuid cannot be '0000-"),
        (",580,", ",0,", "instances cannot be '0'"),
        (",580,", ",-5,", "instances cannot be '-5'"),
        ("2.500000", "0.000000", "size_MB cannot be '0.000000'"),
        ("2.500000", "nan", "size_MB cannot be 'nan'"),
        ("CC BY 4.0", "", "licence cannot be ''"),
        ("10.7937/abc", "abc", "source_DOI cannot be 'abc'"),
        (",25\n", ",\n", "idc_version cannot be ''"),
        (",25\n", "\n", "row 2: expected 10 values, found 9"),
        (",25\n", ",25,1\n", "small.csv, row 2: expected 10 values, found 11"),
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused_by_file_and_row(small, old, new, message):
    text = small.read_text()
    assert old in text
    small.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_manifest(small)


@pytest.mark.parametrize("text", ["", "\n", ",".join(manifest.MANIFEST_COLUMNS)])
def test_an_empty_manifest_is_refused(small, text):
    small.write_text(text)
    with pytest.raises(ValueError, match="small.csv: expected columns .* and rows; found .*, 0 rows"):
        read_manifest(small)


def test_a_build_for_another_number_of_patients_stops_before_it_writes(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").touch()
    (tmp_path / "table.csv").write_text("pid,n_z\na,80\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="manifest: expected BreastDCEDL's 982 I-SPY2 patients, found 1"):
        rebuild.main(["table.csv"])
    assert not (tmp_path / "manifests").exists()


# The manifests that are there, and the real index


@pytest.mark.parametrize(
    ("name", "dce", "segs", "patients", "gb"),
    [("ispy2", 982, 982, 982, 134.883), ("ispy1", 201, 120, 145, 4.262), ("ambl", 99, 99, 99, 30.862)],
)
def test_the_manifests_hold_the_cohort(name, dce, segs, patients, gb):
    table = read_manifest(TOP / "manifests" / f"{name}.csv")
    assert table["role"].value_counts().to_dict() == {"dce": dce, "seg": segs}
    assert set(table.loc[table["role"] == "seg", "patient"]) <= set(table.loc[table["role"] == "dce", "patient"])
    assert totals(table)["patients"] == patients and totals(table)["GB"] == gb


def test_who_is_out_of_the_manifests_is_out_for_these_reasons():
    out = pd.read_csv(TOP / "manifests" / "excluded.csv")
    assert out.groupby(["collection", "reason"]).size().to_dict() == {
        ("acrin_6698", "no original DCE at T0"): 2,
        ("acrin_6698", "not in BreastDCEDL's table"): 118,
        ("advanced_mri_breast_lesions", "no lesion SEG"): 533,
        ("ispy1", "SER map names no series of the study"): 3,
        ("ispy1", "no SER map at the earliest study"): 47,
        ("ispy1", "phases under other names than the SER map's"): 27,
        ("ispy2", "no study at T0"): 2,
    }


@pytest.mark.skipif(not TABLE.is_file(), reason="BreastDCEDL's table is not here")
def test_every_ispy2_series_has_as_many_files_as_breastdcedl_has_slices_times_phases():
    wanted = pd.read_csv(TABLE).set_index("pid")
    table = read_manifest(TOP / "manifests" / "ispy2.csv")
    found = table[table["role"] == "dce"].set_index("patient")["instances"]
    assert set(found.index) == set(wanted.index) and len(found) == 982
    assert (found == (wanted["n_z"] * wanted["n_times"]).reindex(found.index)).all()


@pytest.fixture(scope="module")
def index():
    pytest.importorskip("idc_index_data")
    pytest.importorskip("pyarrow")
    return rebuild._read_index(rebuild._INDEX_COLUMNS, manifest.IDC_COLLECTIONS)


def test_the_index_has_the_collections_with_all_their_patients(index):
    assert index.groupby("collection_id")["PatientID"].nunique().to_dict() == {
        "acrin_6698": 385,
        "advanced_mri_breast_lesions": 632,
        "ispy1": 222,
        "ispy2": 719,
    }
    assert index.notna().all(axis=None)


def test_every_patient_of_the_archive_is_in_a_manifest_or_out_with_a_reason(index):
    names = ("ispy2", "ispy1", "ambl")
    inside = set(pd.concat([read_manifest(TOP / "manifests" / f"{n}.csv") for n in names])["patient"])
    out = pd.read_csv(TOP / "manifests" / "excluded.csv")["patient"]
    assert not out.duplicated().any() and not inside & set(out)
    assert inside | set(out) == set(index["PatientID"])


def test_ispy1_has_175_patients_with_a_ser_map_and_145_with_three_phases(index):
    table, out = ispy1(index)
    assert len(out) == 77 and (out["reason"] != "no SER map at the earliest study").sum() + 145 == 175
    per_patient = table[table["role"] == "dce"].groupby("patient").size()
    assert per_patient.value_counts().to_dict() == {1: 118, 2: 1, 3: 23, 4: 3}


def test_rebuilding_gives_the_same_bytes(index, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuild, "_read_index", lambda columns, collections: index)
    there = TOP / "manifests"
    rebuild.write_manifests(tmp_path, members=read_manifest(there / "ispy2.csv")["patient"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ambl.csv", "excluded.csv", "ispy1.csv", "ispy2.csv"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name
