"""Which series of the archive make the real cohort: the rules on small indices, the counts on the real one."""

from pathlib import Path

import pandas as pd
import pytest
import rebuild
from rebuild import _BAMF, _REGISTERED, ambl, duke, ispy1, ispy2

from her2core.cohorts import manifest
from her2core.cohorts.manifest import read_excluded, read_manifest, read_releases, totals

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
        "analysis_result_id": "",
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
        (
            visit("a", aws_bucket="elsewhere"),
            r"a: expected idc-open-data\|idc-open-data-cr, found aws_bucket elsewhere",
        ),
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


# Duke

DUKE, SEVERAL = (
    "duke_breast_cancer_mri",
    "several dynamic series have the name of one phase: only their times tell which",
)
FAMILIES = {  # as the collection spells them, the misspelt one too
    "pass": ["ax dyn pre", "ax dyn 1st pas", "ax dyn 2nd pass", "ax dyn 3rd pass", "ax dyn 4th pass"],
    "3d pass": ["ax 3d dyn pre", "ax 3d dyn 1st pass", "ax 3d dyn 2nd pass", "ax 3d dyn 3rd pass"],
    "Ph": ["ax 3d dyn MP", "Ph1/ax 3d dyn MP", "Ph2/ax 3d dyn MP"],
    "Ph of Vibrant": ["Ax Vibrant MultiPhase", "Ph1/Ax Vibrant MultiPhase", "Ph2/Ax Vibrant MultiPhase"],
    "Ph of dynamic": ["ax dynamic", "Ph1/ax dynamic", "Ph2/ax dynamic", "Ph3/ax dynamic"],
    "number first": ["ax 3d pre", "1st ax dyn", "2nd ax dyn", "3rd ax dyn", "4th ax dyn"],
    "Siemens": [f"t1_fl3d_tra_dynVIEWS_spair{end}" for end in ("_ pre", " 1st pass", "_2nd pass", "_3rd pass")],
}
BESIDE = ["ax t1", "ax t1 pre", "ax t1 +c", "ax t1 tse", "Ax 3D T1 NON FS", "AX IDEAL Breast", "ax 3d t1 bilateral"]
AI, BY_HAND = (f"AIMI breast-tumor {by} segmentation" for by in ("AI", "radiologist 9 corrected"))


def dynamic_of(names, patient="a", slices=174, **more):
    """One series of each name, in the bucket of Duke's images."""
    more = {"instanceCount": slices, "aws_bucket": "idc-open-data-cr"} | more
    return [(patient, name, more) for name in names]


def mask_of(name, patient="a", **more):
    return (patient, name, seg(analysis_result_id=_BAMF, license_short_name="CC BY 4.0") | more)


def made_duke(*rows):
    return duke(index_of(DUKE, *rows))


@pytest.mark.parametrize("family", FAMILIES)
def test_duke_takes_the_first_and_the_last_phase_after_the_one_before_contrast(family):
    names = FAMILIES[family]
    rows = [*dynamic_of(names[::-1]), *dynamic_of(BESIDE, slices=60)]  # whatever their order in the index
    table, out = made_duke(*rows, mask_of(AI))
    last = len(names) - 1
    assert uids(table, "dce") == sorted(f"1.2.{last - phase}" for phase in (0, 1, last)) and out.empty
    assert uids(table, "seg") == [f"1.2.{len(rows)}"]
    assert table["bucket"].tolist() == ["idc-open-data-cr"] * 3 + ["idc-open-data"]


def test_duke_takes_what_a_radiologist_corrected_before_what_the_network_drew():
    rows = dynamic_of(FAMILIES["Ph"])
    own = ("a", "Segmentation", seg(aws_bucket="idc-open-data-cr"))  # the collection's: tissue, no tumour
    for drawn in ([mask_of(AI), mask_of(BY_HAND), own], [mask_of(BY_HAND), own, mask_of(AI)]):
        table, _ = made_duke(*rows, *drawn)
        assert uids(table, "seg") == [f"1.2.{3 + drawn.index(mask_of(BY_HAND))}"]
    table, out = made_duke(*rows, own)
    assert uids(table, "seg") == [] and len(uids(table, "dce")) == 3 and out.empty


def test_duke_goes_on_where_a_pass_between_is_missing():
    table, out = made_duke(*dynamic_of(["ax dyn pre", "ax dyn 2nd pass", "ax dyn 3rd pass"]))
    assert uids(table, "dce") == ["1.2.0", "1.2.1", "1.2.2"] and out.empty


def test_duke_says_why_a_patient_is_out():
    too_few, mixed = FAMILIES["pass"][:2], [*FAMILIES["pass"][:2], "Ph2/ax dyn"]
    odd = {
        "twice": ["ax dynamic", "ax dynamic", "Ph2/ax dynamic", "Ph3/ax dynamic"],
        "unnumbered": ["ax dyn pre", "ax dyn", "ax dyn", "ax dyn"],
        "no pre": FAMILIES["number first"][1:],
        "two": too_few,
        "mixed": mixed,
        "two sequences": ["ax dyn", "Ph1/ax dynamic", "Ph2/ax dynamic"],
        "none": BESIDE,
    }
    rows = [row for patient, names in odd.items() for row in dynamic_of(names, patient)]
    table, out = made_duke(*rows, mask_of(AI, "twice"), *dynamic_of(FAMILIES["Ph"], "in"))
    incomplete = "no pre phase and two later ones of one sequence"
    expected = dict.fromkeys(odd, incomplete) | {
        "twice": SEVERAL,
        "unnumbered": SEVERAL,
        "none": "no dynamic series",
    }
    assert reasons(out) == expected and set(table["patient"]) == {"in"} and set(out["collection"]) == {DUKE}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            dynamic_of(["Ph3/ax 3d dyn MP"], slices=173),
            "a: expected as many slices as before contrast, found instanceCount 173",
        ),
        ([mask_of(AI), mask_of(AI)], "a: expected one tumour segmentation, found"),
        ([mask_of(BY_HAND), mask_of(BY_HAND)], "a: expected one tumour segmentation, found"),
        (
            [mask_of("AIMI liver AI segmentation")],
            "a: expected a segmentation named AIMI breast-tumor .*AIMI liver AI",
        ),
        ([mask_of(AI, StudyInstanceUID="1.9")], "a: expected the DCE's study, found StudyInstanceUID 1.9"),
        (
            [mask_of(AI, aws_bucket="idc-open-data-two")],
            "a: expected idc-open-data.*found aws_bucket idc-open-data-two",
        ),
    ],
)
def test_duke_refuses_what_its_rules_cannot_decide(more, message):
    with pytest.raises(ValueError, match=message):
        made_duke(*dynamic_of(FAMILIES["Ph"]), *more)


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
        (
            "patient,role",
            "pid,role",
            "small.csv: found columns pid, role, .*, expected patient, role, .*; restore it from git",
        ),
        ("\na,dce", "\n../a,dce", r"small.csv, row 2: patient cannot be '\.\./a'"),
        ("\na,dce", "\n,dce", "row 2: patient cannot be ''"),
        ("\na,dce", "\n-a,dce", "row 2: patient cannot be '-a'"),
        ("\na,dce", '\n"a\n",dce', r"row 2: expected text without line breaks, found 'a\\n'"),
        ("\na,dce", "\nå,dce", "row 2: patient cannot be 'å'"),
        ("\na,dce", "\n\na,dce", "row 2: expected 11 values, found 0"),
        ("a,seg", "a,mask", "row 3: role cannot be 'mask'"),
        (f"a,seg,{AMBL}", "a,seg,ct", "row 3: collection cannot be 'ct'"),
        ("1.2.1", "1.2.x", "SeriesInstanceUID cannot be '1.2.x'"),
        ("1.2.1", "1.02", "SeriesInstanceUID cannot be '1.02'"),
        ("1.2.1", "1." + "2" * 63, "SeriesInstanceUID cannot be '1.2222"),
        (
            "1.2.1",
            "1.2.2",
            "small.csv, row .: SeriesInstanceUID cannot be '1.2.2' twice, expected .*; restore it from git",
        ),
        ("00000001-", "00000002-", "crdc_series_uuid cannot be '00000002-.*' twice"),
        ("00000001-", "", "crdc_series_uuid cannot be '0000-"),
        (",idc-open-data,", ",,", "bucket cannot be ''"),
        (",idc-open-data,", ",elsewhere,", "bucket cannot be 'elsewhere', expected idc-open-data"),
        (",580,", ",0,", "instances cannot be '0'"),
        (",580,", ",-5,", "instances cannot be '-5'"),
        ("2.500000", "0.000000", "size_MB cannot be '0.000000'"),
        ("2.500000", "nan", "size_MB cannot be 'nan'"),
        ("CC BY 4.0", "", "licence cannot be ''"),
        ("10.7937/abc", "abc", "source_DOI cannot be 'abc'"),
        (",25\n", ",\n", "idc_version cannot be ''"),
        (",25\n", "\n", "row 2: expected 11 values, found 10"),
        (",25\n", ",25,1\n", "small.csv, row 2: expected 11 values, found 12"),
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
    with pytest.raises(
        ValueError, match="small.csv: found (columns , expected patient, role, .*|no rows, expected one)"
    ):
        read_manifest(small)


RELEASES = "\n".join(
    ["dataset,file,md5", f"spy1,a.tar.gz,2f1a{'0' * 28}", "table,b.csv,d58b84d0f343b4b8338cbb222e6dda08", ""]
)
EXCLUDED = "patient,collection,reason\na,ispy1,no dated study\nb,ispy1,no SER map\n"


def test_releases_and_patients_left_out_are_read_whole(tmp_path):
    for name, text in (("releases.csv", RELEASES), ("excluded.csv", EXCLUDED), ("none.csv", EXCLUDED[:26])):
        (tmp_path / name).write_text(text)
    assert read_releases(tmp_path / "releases.csv") == {
        "spy1": ("a.tar.gz", "2f1a" + "0" * 28),
        "table": ("b.csv", "d58b84d0f343b4b8338cbb222e6dda08"),
    }
    assert read_excluded(tmp_path / "excluded.csv") == {"a": "no dated study", "b": "no SER map"}
    assert read_excluded(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    ("read", "text", "old", "new", "message"),
    [
        (read_releases, RELEASES, ",md5", "", "row 2: expected 2 values, found 3"),
        (
            read_releases,
            RELEASES,
            "md5",
            "sha",
            "found columns dataset, file, sha, expected dataset, file, md5; restore",
        ),
        (read_releases, RELEASES, "2f1a", "2f1", "row 2: md5 cannot be '2f10.*, expected .*; restore it from git"),
        (read_releases, RELEASES, "2f1a", "2F1A", "row 2: md5 cannot be '2F1A"),
        (read_releases, RELEASES, "table,", "spy1,", "row 3: dataset cannot be 'spy1' twice"),
        (read_releases, RELEASES, "table,", "spy3,", "row 3: dataset cannot be 'spy3'"),
        (read_releases, RELEASES, "a.tar", "../a.tar", r"row 2: file cannot be '\.\./a.tar.gz'"),
        (read_releases, RELEASES, "da08\n", "d\n", "row 3: md5 cannot be"),
        (read_releases, RELEASES, "da08\n", "d", "no line break after the last row: is it cut off"),
        (read_releases, RELEASES, RELEASES, "", "found columns , expected dataset, file, md5"),
        (read_excluded, EXCLUDED, "b,", "a,", "row 3: patient cannot be 'a' twice"),
        (read_excluded, EXCLUDED, "reason", "why", "found columns patient, collection, why, expected"),
        (read_excluded, EXCLUDED, "no SER map\n", "\n", "row 3: reason cannot be ''"),
        (read_excluded, EXCLUDED, "b,", "../b,", r"row 3: patient cannot be '\.\./b'"),
    ],
)
def test_a_table_beside_the_manifests_that_cannot_be_true_is_refused(tmp_path, read, text, old, new, message):
    (tmp_path / "small.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"small.csv(:|, ).*{message}"):
        read(tmp_path / "small.csv")


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
    [
        ("ispy2", 982, 982, 982, 134.883),
        ("ispy1", 201, 120, 145, 4.262),
        ("ambl", 99, 99, 99, 30.862),
        ("duke", 3 * 918, 805, 918, 234.204),
    ],
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
        ("duke_breast_cancer_mri", SEVERAL): 4,
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
    return rebuild._read_index(rebuild._INDEX_COLUMNS, manifest.IDC_COLLECTIONS)


def test_the_index_has_the_collections_with_all_their_patients(index):
    assert index.groupby("collection_id")["PatientID"].nunique().to_dict() == {
        "acrin_6698": 385,
        "advanced_mri_breast_lesions": 632,
        "duke_breast_cancer_mri": 922,
        "ispy1": 222,
        "ispy2": 719,
    }
    assert index.notna().all(axis=None)


def test_every_patient_of_the_archive_is_in_a_manifest_or_out_with_a_reason(index):
    names = ("ispy2", "ispy1", "ambl", "duke")
    inside = set(pd.concat([read_manifest(TOP / "manifests" / f"{n}.csv") for n in names])["patient"])
    out = pd.read_csv(TOP / "manifests" / "excluded.csv")["patient"]
    assert not out.duplicated().any() and not inside & set(out)
    assert inside | set(out) == set(index["PatientID"])


def test_ispy1_has_175_patients_with_a_ser_map_and_145_with_three_phases(index):
    table, out = ispy1(index)
    assert len(out) == 77 and (out["reason"] != "no SER map at the earliest study").sum() + 145 == 175
    per_patient = table[table["role"] == "dce"].groupby("patient").size()
    assert per_patient.value_counts().to_dict() == {1: 118, 2: 1, 3: 23, 4: 3}


def test_duke_has_918_patients_of_922_with_three_phases_and_805_with_a_mask(index):
    table, out = duke(index)
    assert out["patient"].tolist() == [f"Breast_MRI_{n}" for n in ("065", "120", "279", "596")]
    dce, masks = (table[table["role"] == role] for role in ("dce", "seg"))
    assert dce["patient"].nunique() == 918 and (dce.groupby("patient").size() == 3).all()
    assert (dce.groupby("patient")["instances"].nunique() == 1).all()
    named = index.set_index("SeriesInstanceUID")["SeriesDescription"]
    early = named[dce["SeriesInstanceUID"]].str.extract("(?:Ph|dyn |spair |^)([1-9])")[0].dropna().astype(int)
    assert early[early <= 1].count() == 917  # of Breast_MRI_700 the first pass is not in the archive
    drawn = named[masks["SeriesInstanceUID"]].value_counts().to_dict()
    assert drawn == {AI: 713, BY_HAND: 45, BY_HAND.replace("9", "10"): 47}
    bamf = index[(index["analysis_result_id"] == _BAMF) & (index["collection_id"] == DUKE)]
    corrected = bamf["SeriesDescription"].str.contains("corrected")
    assert (~corrected).sum() == 805 and corrected.sum() == 92 and set(bamf["PatientID"]) == set(masks["patient"])


def test_every_dynamic_series_of_duke_but_those_of_the_four_has_a_phase_and_is_numbered_in_its_order(index):
    series = rebuild._duke_dynamics(index[index["collection_id"] == DUKE])
    assert series.groupby("family")["PatientID"].nunique().to_dict() == {
        "Ph": 594, "Siemens": 3, "number first": 10, "pass": 316,
    }  # fmt: skip
    series = series[~series["PatientID"].isin(duke(index)[1]["patient"])]
    phases = series.groupby("PatientID")["phase"].agg(lambda p: tuple(sorted(p))).value_counts().to_dict()
    assert phases == {(0, 1, 2, 3): 479, (0, 1, 2, 3, 4): 430, (0, 1, 2): 8, (0, 2, 3): 1}
    ordered = series.assign(number=series["SeriesNumber"].astype(int)).sort_values(["PatientID", "phase"])
    assert ordered.groupby("PatientID")["number"].is_monotonic_increasing.all()


def test_rebuilding_gives_the_same_bytes(index, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuild, "_read_index", lambda columns, collections: index)
    there = TOP / "manifests"
    rebuild.write_manifests(tmp_path, members=read_manifest(there / "ispy2.csv")["patient"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ambl.csv", "duke.csv", "excluded.csv", "ispy1.csv", "ispy2.csv"
    ]  # fmt: skip
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name
