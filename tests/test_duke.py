"""Duke's clinical table as IDC exports it: its real columns, its codes, and who is out for which reason."""

import re
import sys

import pandas as pd
import pytest

from her2core.cohorts.duke import DUKE_COLUMNS, read_duke_clinical
from her2core.cohorts.labels import TABLE_RULES

# the table's columns in their order, by group, as IDC's catalogue lists them for its versions 15 and 18
GROUPS = {
    "": "dicom_patient_id source_batch patient_information_patient_id",
    "mri_technical_information_": """days_to_mri_from_the_date_of_diagnosis manufacturer manufacturer_model_name
        scan_options field_strength_tesla patient_position_during_mri image_position_of_patient contrast_agent
        contrast_bolus_volume_ml tr_repetition_time te_echo_time acquisition_matrix slice_thickness_ rows columns
        reconstruction_diameter_ flip_angle_ fov_computed_field_of_view_in_cm_""",
    "demographics_": """date_of_birth_days menopause_at_diagnosis race_and_ethnicity
        metastatic_at_presentation_outside_of_lymph_nodes""",
    "tumor_characteristics_": """er pr her2 mol_subtype oncotype_score stagingtumor_size_t
        stagingnodesnx_replaced_by__1n stagingmetastasismx__replaced_by__1m tumor_grade_tumor_gradettubule
        tumor_gradennuclear tumor_grademmitotic nottingham_grade histologic_type tumor_location position_position
        bilateral_information_bilateral_breast_cancer if_bilateral_different_rec_status side_annotated
        for_other_side_if_bilateral_side_of_cancer_for_the_other_side oncotype_score_for_the_other_side
        nottingham_grade_for_the_other_side er_for_the_other_side pr_for_the_other_side her2_for_the_other_side
        mol_subtype_for_the_other_side""",
    "mri_findings_": """multicentric_multifocal contralateral_breast_involvement
        lymphadenopathy_or_suspicious_nodes skin_nipple_invovlement pec_chest_involvement""",
    "surgery_": "surgery days_to_surgery_from_the_date_of_diagnosis definitive_surgery_type",
    "radiation_therapy_": "neoadjuvant_radiation_therapy adjuvant_radiation_therapy",
    "tumor_response_": """clinical_response_evaluated_through_imaging_
        pathologic_response_to_neoadjuvant_therapy__""",
    "recurrence_": """recurrence_events days_to_local_recurrence_from_the_date_of_diagnosis_
        days_to_distant_recurrencefrom_the_date_of_diagnosis_""",
    "follow_up_": """days_to_death_from_the_date_of_diagnosis_
        days_to_last_local_recurrence_free_assessment_from_the_date_of_diagnosis_
        days_to_last_distant_recurrence_free_assemssmentfrom_the_date_of_diagnosis_""",
    "follow_up_age_at_last_contact_in_emr_f_udaysfrom_the_date_of_diagnosis_": """
        last_time_patient_known_to_be_alive_unless_age_of_death_is_reportedin_such_case_the_age_of_death""",
    "mammography_characteristics_": """age_at_mammo_days breast_density shape margin architectural_distortion
        mass_density calcifications tumor_size_cm""",
    "us_features_": "shape margin tumor_size_cm echogenicity solid posterior_acoustic_shadowing",
    "chemotherapy_": "neoadjuvant_chemotherapy adjuvant_chemotherapy",
    "endocrine_therapy_": """neoadjuvant_endocrine_therapy_medications_ adjuvant_endocrine_therapy_medications_
        known_ovarian_status_ number_of_ovaries_in_situ_
        therapeutic_or_prophylactic_oophorectomy_as_part_of_endocrine_therapy_""",
    "anti_her2_neu_therapy_": "neoadjuvant_anti_her2_neu_therapy__ adjuvant_anti_her2_neu_therapy___",
    "neoadjuvant_therapy_": "received_neoadjuvant_therapy_or_not",
    "pathologic_response_to_neoadjuvant_therapy_pathologic_response_to_neoadjuvant_therapy_": """
        pathologic_stage_t_following_neoadjuvant_therapy_ _pathologic_stage_n_following_neoadjuvant_therapy__
        _pathologic_stage_m_following_neoadjuvant_therapy_""",
    "near_complete_response_": """overall_near_complete_response__stricter_definition
        overall_near_complete_response__looser_definition near_complete_response_graded_measure""",
}
COLUMNS = [group + name for group, names in GROUPS.items() for name in names.split()]
HER2, OTHER_HER2 = "tumor_characteristics_her2", "tumor_characteristics_her2_for_the_other_side"
BILATERAL = "tumor_characteristics_bilateral_information_bilateral_breast_cancer"
BIRTH = "demographics_date_of_birth_days"
USUAL = {name: "0" for name in COLUMNS} | {"source_batch": 0, BIRTH: "-18262.5"}
USUAL |= {"tumor_characteristics_side_annotated": "NA", "tumor_characteristics_tumor_location": "L"}
USUALLY = {"codes": {}, "bilateral": "out"}
SHORT = {name: column for name, (column, _) in DUKE_COLUMNS.items()} | {"birth": BIRTH}


def table_of(*patients):
    """The table; each patient is what differs from the usual, under the short names of DUKE_COLUMNS."""
    rows = []
    for number, own in enumerate(patients, start=1):
        named = USUAL | {"dicom_patient_id": f"Breast_MRI_{number:03}"}
        rows.append(named | {SHORT.get(name, name): value for name, value in own.items()})
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture
def read(tmp_path):
    """Writes patients as the CSV that IDC would export, and reads it."""

    def read(*patients, **options):
        table_of(*patients).to_csv(tmp_path / "duke.csv", index=False)
        return read_duke_clinical(tmp_path / "duke.csv", **(USUALLY | options))

    return read


def column(found, name):
    """A column as a list, missing as None."""
    return found[name].astype(object).where(found[name].notna(), None).tolist()


def test_the_table_has_the_columns_of_the_archive():
    assert len(COLUMNS) == len(set(COLUMNS)) == 99 and set(SHORT.values()) < set(COLUMNS)
    assert not [c for c in SHORT.values() if "other_side" in c]


def test_a_patient_comes_in_the_columns_of_breastdcedl_with_the_scanner(read):
    known = {"ER": "0", "PR": "1", "HER2": "1", "menopause": "1", "birth": "-21915", "side_annotated": "R"}
    (row,) = read(known | {"field_strength_T": "3", "manufacturer": "2", "scanner": "5"}).to_dict("records")
    told = {"pid": "Breast_MRI_001", "dataset": "duke", "HER2": 1, "HR": 1, "age": 60.0, "menopause": "post"}
    told |= {"ER": 0, "PR": 1, "bilateral": 0, "side": "R", "field_strength_T": 3.0, "reason": ""}
    told |= {"manufacturer": "SIEMENS", "scanner": "Skyra"}
    assert {name: row[name] for name in told} == told
    assert set(row) == set(told) | set(TABLE_RULES)
    assert all(pd.isna(row[name]) for name in set(row) - set(told))


def test_every_code_of_the_legend_has_its_meaning(read):
    codes = {name: list(usual) for name, (_, usual) in DUKE_COLUMNS.items()}
    patients = [{name: str(c[n % len(c)]) for name, c in codes.items()} for n in range(8)]
    found = read(*patients, bilateral="in")
    assert column(found, "HER2") == column(found, "ER") == [0, 1, None, 0, 1, None, 0, 1]
    assert column(found, "menopause") == ["pre", "post", None, "pre", "post", None, "pre", "post"]
    assert column(found, "field_strength_T") == [1.494, 1.5, 2.8936, 3.0] * 2
    assert column(found, "manufacturer")[:3] == ["GE MEDICAL SYSTEMS", "MPTronic software", "SIEMENS"]
    assert column(found, "scanner")[1:4] == ["Optima MR450w", "SIGNA EXCITE", "SIGNA HDx"]
    assert column(found, "scanner")[5:] == ["Skyra", "Trio", "TrioTim"]
    assert column(found, "side") == ["L", "R"] * 4 and column(found, "bilateral") == [0, 1] * 4


def test_a_meaning_stands_for_itself_where_the_export_has_it_instead_of_the_code(read):
    scan = {"manufacturer": "Siemens", "scanner": "TrioTim", "field_strength_T": "2.8936", "menopause": "Pre"}
    (row,) = read(scan | {"HER2": "1.0"}).to_dict("records")
    assert (row["manufacturer"], row["scanner"], row["field_strength_T"]) == ("SIEMENS", "TrioTim", 2.8936)
    assert (row["menopause"], row["HER2"]) == ("pre", 1)


@pytest.mark.parametrize(
    ("er", "pr", "hr"),
    [
        ("1", "0", 1), ("0", "1", 1), ("0", "0", 0), ("1", "NA", 1), ("", "1", 1),
        ("0", "NC", None), ("2", "0", None), ("1", "2", 1), ("NP", "na", None),
    ],
)  # fmt: skip
def test_hormone_receptors_are_positive_where_either_is_and_negative_only_where_both_are(read, er, pr, hr):
    assert column(read({"ER": er, "PR": pr}), "HR") == [hr]


@pytest.mark.parametrize("blank", ["NA", "NC", "NP", "", " ", "n/a", "nan", " nc "])
def test_a_placeholder_is_missing_in_every_column(read, blank):
    (row,) = read(dict.fromkeys(SHORT, blank)).to_dict("records")
    assert {name for name, value in row.items() if not pd.isna(value)} == {"pid", "dataset", "reason"}
    assert row["reason"] == "HER2 unknown"


def test_who_is_out_and_why(read):
    patients = [{}, {"HER2": "2"}, {"HER2": "NC"}, {"bilateral": "1"}, {"bilateral": "NA"}]
    patients.append({"HER2": "2", "bilateral": "1"})
    reasons = ["", "HER2 equivocal", "HER2 unknown", "bilateral cancer", "bilateral cancer not stated"]
    assert column(read(*patients), "reason") == [*reasons, "HER2 equivocal"]
    found = read(*patients, bilateral="in")
    assert column(found, "reason") == [*reasons[:3], "", "", "HER2 equivocal"]
    assert column(found, "HER2") == [0, None, None, 0, 0, None]


def test_an_equivocal_her2_counts_as_the_study_declares(read):
    patients = [{"HER2": "2"}, {"HER2": "1"}, {"HER2": "0"}, {"ER": "2", "PR": "0"}]
    for declared in (0, 1):
        found = read(*patients, codes={"HER2": {2: declared}})
        assert column(found, "HER2") == [declared, 1, 0, 0] and set(found["reason"]) == {""}
        assert column(found, "HR") == [0, 0, 0, None]  # declared of HER2 alone
    found = read(*patients, codes={"HER2": {"2": None, 1: 0, 0: None}})
    assert column(found, "HER2") == [None, 0, None, None]


def test_what_stands_for_the_other_side_is_never_read(read):
    others = {c: "weird" for c in COLUMNS if "other_side" in c}
    assert len(others) == 7
    patients = {"bilateral": "1", "HER2": "0", "side_annotated": "R"}
    found = read(patients | others, bilateral="in")
    assert column(found, "HER2") == [0] and column(found, "side") == ["R"]
    assert read(patients | {OTHER_HER2: "1"}, bilateral="in").equals(found)


def test_the_side_is_the_annotated_one_or_else_where_the_tumour_is(read):
    sides = [("R", "L"), ("NC", "R"), ("L", ""), ("NA", "NA")]
    found = read(*({"side_annotated": a, "tumor_location": b} for a, b in sides))
    assert column(found, "side") == ["R", "R", "L", None]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("HER2", "3 0 3 1", f"{HER2} has values without a meaning: 3 (all: {{'3': 2, '0': 1, '1': 1}})"),
        ("HER2", "2+ 0", f"{HER2} has values without a meaning: 2+ (all: "),
        ("ER", "-1 0 4", "tumor_characteristics_er has values without a meaning: -1, 4 (all: "),
        ("menopause", "peri", "menopause_at_diagnosis has values without a meaning: peri (all: {'peri': 1})"),
        ("bilateral", "2", f"{BILATERAL} has values without a meaning: 2"),
        ("tumor_location", "B L", "tumor_location has values without a meaning: b (all: {'B': 1, 'L': 1})"),
        ("field_strength_T", "4 7.0", "field_strength_tesla has values without a meaning: 4, 7 (all: "),
        ("scanner", "8", "declare each under duke_codes: scanner"),
        ("birth", "-18000 15000", f"Breast_MRI_002: {BIRTH} is '15000', expected a number from -40177.5 to -6574"),
        ("birth", "45y", f"Breast_MRI_001: {BIRTH} is '45y', expected a number"),
        ("dicom_patient_id", "ISPY1_1001", "dicom_patient_id cannot be 'ISPY1_1001', expected Breast_MRI_"),
        ("dicom_patient_id", "Breast_MRI_007 Breast_MRI_007", "Breast_MRI_007: expected one row, found 2"),
    ],
)
def test_a_value_without_a_meaning_stops_with_all_values_and_their_counts(read, name, values, message):
    with pytest.raises(ValueError, match=f"duke.csv: {re.escape(message)}|duke.csv: .*{re.escape(message)}"):
        read(*({name: value} for value in values.split()))


def test_a_value_that_the_study_declares_has_its_meaning(read):
    codes = {"HER2": {"3+": 1, "0/1+": 0}, "scanner": {8: "Skyra"}, "side_annotated": {"B": None}}
    codes |= {"field_strength_T": {"3.0 T": 3.0}, "bilateral": None}
    found = read(
        {"HER2": "3+", "scanner": "8", "side_annotated": "B"},
        {"HER2": "0/1+", "field_strength_T": "3.0 t"},
        codes=codes,
    )
    assert column(found, "HER2") == [1, 0] and column(found, "scanner") == ["Skyra", "Avanto"]
    assert column(found, "side") == ["L", "L"] and column(found, "field_strength_T") == [1.494, 3.0]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"her2": {2: 0}}, "duke_codes: found ['her2'], expected some of ['ER', 'PR', 'HER2'"),
        ({"HER2": {2: "negative"}}, "duke_codes: HER2: expected each value once, with one of [0, 1, None], found"),
        ({"HER2": {2: True}}, "duke_codes: HER2: expected each value once"),
        ({"HER2": {2: 0, "2": 1}}, "found {2: 0, '2': 1}"),
        ({"menopause": {3: "peri"}}, "menopause: expected each value once, with one of ['pre', 'post', None]"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(read, codes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read({}, codes=codes)


@pytest.mark.parametrize("choice", ["", "both", True])
def test_bilateral_cancers_are_in_or_out(read, choice):
    with pytest.raises(ValueError, match=f"bilateral={choice!r}: expected in or out"):
        read({}, bilateral=choice)


@pytest.mark.parametrize("lost", ["HER2", "birth", "field_strength_T", "dicom_patient_id"])
def test_a_table_that_lacks_a_column_is_refused_by_its_name(tmp_path, lost):
    name = SHORT.get(lost, lost)
    table_of({}).drop(columns=name).to_csv(tmp_path / "duke.csv", index=False)
    with pytest.raises(ValueError, match=f"duke.csv: expected one column each of {name}; found"):
        read_duke_clinical(tmp_path / "duke.csv", **USUALLY)


def test_a_table_without_patients_is_refused(read):
    with pytest.raises(ValueError, match="duke.csv: found no rows, expected one per patient"):
        read()


def test_parquet_reads_as_csv_does(tmp_path, read, monkeypatch):
    patients = [{"HER2": "1"}, {"HER2": "NC", "birth": None}, {"bilateral": "1", "scanner": "7"}]
    monkeypatch.setattr(pd, "read_parquet", {tmp_path / "duke.parquet": table_of(*patients)}.get)
    assert read_duke_clinical(tmp_path / "duke.parquet", **USUALLY).equals(read(*patients))


def test_a_real_parquet_reads_as_csv_does_and_one_that_is_cut_off_is_refused(tmp_path, read):
    patients, path = [{"HER2": "1"}, {"HER2": "2", "birth": None}], tmp_path / "duke.parquet"
    table_of(*patients).to_parquet(path)
    assert read_duke_clinical(path, **USUALLY).equals(read(*patients))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"duke.parquet: .*, expected a table in parquet"):
        read_duke_clinical(path, **USUALLY)


@pytest.mark.parametrize("there", [False, True])
def test_a_parquet_that_cannot_be_read_names_its_file_and_the_remedy(tmp_path, monkeypatch, there):
    path = tmp_path / "duke.parquet"
    if there:
        path.write_bytes(b"PAR1, not quite")
        for name in ("pyarrow", "fastparquet"):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"duke\.parquet: .+, expected a table in parquet; parquet needs pyarrow"):
        read_duke_clinical(path, **USUALLY)
