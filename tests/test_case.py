"""One examination from outside: what is read of it, what is refused, and what it is warned of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from dicom_samples import same_grid
from prepared_samples import make_run

from her2core import case as c
from her2core.baselines import ModelConfig
from her2core.cohort import included, patient_table
from her2core.cohorts.acquire import get_all
from her2core.cohorts.phantom import EmbeddedConfig, draw_cohort, site_of
from her2core.formats import examination
from her2core.formats.dicom_write import Acquisition, write_dce, write_seg
from her2core.formats.nifti import min_crop, write_breastdcedl
from her2core.formats.volume import DceSeries, Geometry, Phases, Source, to_sitk
from her2core.model import ThdaConfig
from her2core.phantom.patient import make_patient
from her2core.preprocess import PrepareConfig, prepare
from her2core.records import write_digests
from her2core.runs import parse_run

TOP = Path(__file__).resolve().parents[1]
IDENTITY = "DOE-JANE-1970"
CONFIG = PrepareConfig(
    crop_mm=64.0, crop_px=32, slices=3, quantiles=(0.0, *np.linspace(0.1, 0.9, 9).round(1), 0.01, 0.98, 0.99, 1.0),
    early_s=150.0, late_s=450.0, bias_fields=("raw",), neighbours=True, allow_missing=False, jobs=1,
)  # fmt: skip
COHORT = EmbeddedConfig(
    source="phantom", seed=5, bayes_auc=0.95, prevalence=0.5, spy2=(8, 2, 0), spy1=(0, 0, 0), ambl=0,
    unknown_her2=0, coarse=2, jobs=1,
)  # fmt: skip
MODELS = ModelConfig(ThdaConfig(), variants={"adjacent": {"head_input": "adjacent_slices"}})
LOW_HIGH = {  # the made-up training patients lie evenly between
    "log_volume_ml": (0.0, np.log(200)), "pe_early": (0.5, 3.0), "slice_mm": (4.0, 7.0),
    "pixel_native_mm": (2.0, 4.0), "early_s": (100.0, 200.0), "late_s": (350.0, 550.0),
}  # fmt: skip


def made_up_table():
    """101 training patients, of whom the second and the last but one are the 1 and 99 % quantile; two others."""
    train = {name: np.linspace(low, high, 101) for name, (low, high) in LOW_HIGH.items()}
    rows = [pd.DataFrame(train | {"split": "train"}), pd.DataFrame({"slice_mm": [0.1, 99.0], "split": "test"})]
    return pd.concat(rows, ignore_index=True)


def put_kinetics(table, folder):
    """A table in place of the stage's, with its digest."""
    table.to_csv(folder / "kinetics.csv", index=False)
    write_digests(folder / "digests.csv", [p for p in sorted(folder.iterdir()) if p.name != "digests.csv"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder of the stage `prepare`, with a made-up table of kinetics."""
    folder = tmp_path_factory.mktemp("study")
    get_all(COHORT, folder / "raw")
    patients = included(patient_table(pd.read_csv(folder / "raw/metadata.csv")))
    prepare(patients, folder / "raw", folder / "prepare", CONFIG)
    put_kinetics(made_up_table(), folder / "prepare")
    return folder / "prepare"


@pytest.fixture(scope="module")
def run(prepared):
    return make_run(prepared, None, models=MODELS)


@pytest.fixture(scope="module")
def ranges(run):
    return c.training_ranges(run, CONFIG)


@pytest.fixture(scope="module")
def patient():
    """A training patient: (series, mask); a lesion that no border cuts."""
    row = draw_cohort(COHORT)[0]
    found = make_patient(row["seed"], row["her2"], site_of(row, COHORT.coarse), bayes_auc=COHORT.bayes_auc)
    return found.series, found.annotator_mask


ACQUISITION = Acquisition("dce", "GE", 1.5, 5.3, 2.4, 10)


def write_case(folder, series, mask):
    write_dce(series, folder / "dce", patient_id=IDENTITY, acquisition=ACQUISITION)
    names = {"meaning": "segments", "patient_id": IDENTITY, "series_description": "ROI"}
    write_seg(mask.astype(np.uint8), series.geometry, folder / "seg.dcm", **names)
    return folder


@pytest.fixture(scope="module")
def written(patient, tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("cases") / "case7", *patient)


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / "case7")


@pytest.fixture
def nifti(patient, tmp_path):
    """The same patient in BreastDCEDL's layout: folder, and what case.json has to say."""
    series, mask = patient
    write_breastdcedl(series, mask, tmp_path / "case7", patient_id=IDENTITY)
    z_mm, _, x_mm = series.geometry.spacing_mm
    last = len(series.array) - 1
    return tmp_path / "case7", {
        "pre": 0, "post_early": 2, "post_late": last, "slice_thick": z_mm, "xy_spacing": x_mm,
    }  # fmt: skip


def doubts_of(case, run, ranges):
    images, _, _ = c.network_input(case, CONFIG, c.View.of(run))
    return c.warnings_for(case, images, ranges)


def changed(patient, array=None, spacing_mm=None, times_s=None):
    series, _ = patient
    geometry = replace(series.geometry, spacing_mm=spacing_mm or series.geometry.spacing_mm)
    return DceSeries(series.array if array is None else array, geometry, times_s or series.times_s)


def phase_files(folder, phase):
    return [f for f in (folder / "dce").iterdir() if pydicom.dcmread(f).TemporalPositionIdentifier == phase]


# ---------------------------------------------------------------------------------------------------- reading


def test_a_dicom_case_has_the_phases_nearest_to_the_wanted_times_and_its_mask(written, patient):
    series, mask = patient
    case = c.read_case(written, CONFIG)
    times = np.array(series.times_s)
    chosen = [0, np.abs(times - 150).argmin(), np.abs(times - 450).argmin()]
    np.testing.assert_array_equal(case.phases, series.array[chosen])
    np.testing.assert_array_equal(case.mask, mask)
    assert case.times_s == pytest.approx(times[chosen]) and case.remarks == () and case.name == "case7"
    assert same_grid(case.geometry, series.geometry)


def test_a_nifti_case_has_the_phases_and_the_spacing_of_its_sidecar(nifti, patient):
    folder, values = nifti
    (folder / "case.json").write_text(json.dumps(values | {"early_s": 140, "late_s": 460.0}))
    case = c.read_case(folder, CONFIG)
    np.testing.assert_array_equal(case.phases, patient[0].array[[0, 2, -1]])
    np.testing.assert_array_equal(case.mask, patient[1])
    assert case.times_s == (0.0, 140.0, 460.0)
    assert case.geometry.spacing_mm == patient[0].geometry.spacing_mm


def test_a_case_is_cut_as_the_volumes_of_its_cohort_were(written, patient):
    whole, cut = c.read_case(written, CONFIG), c.read_case(written, CONFIG, cut=(1, 40))
    phases, mask, _ = min_crop(whole.phases, whole.mask, 1, 40)
    assert cut.phases.shape == (3, mask.shape[0], 40, 40) != whole.phases.shape
    np.testing.assert_array_equal(cut.phases, phases)
    np.testing.assert_array_equal(cut.mask, mask)


def two_phases(folder):
    for file in (folder / "dce").iterdir():
        dataset = pydicom.dcmread(file)
        if dataset.TemporalPositionIdentifier > 1:
            file.unlink()
        else:
            dataset.NumberOfTemporalPositions = 2
            dataset.save_as(file)


def one_slice_less(folder):
    phase_files(folder, 2)[0].unlink()


def a_phase_less(phase):
    return lambda folder: [file.unlink() for file in phase_files(folder, phase)]


def no_mask(folder):
    (folder / "seg.dcm").unlink()


def damaged(folder):
    file = phase_files(folder, 1)[0]
    file.write_bytes(file.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (two_phases, "case7: phases at 0, .* s, expected one near 150 s and a later near 450 s"),
        (one_slice_less, r"case7/dce: unequal slices per phase: \["),
        (
            a_phase_less(1),
            r"case7/dce: TemporalPositionIdentifier takes the values \[0, 2, 3\].*a phase is missing",
        ),
        (a_phase_less(3), "case7: doubtful series, export it again.*NumberOfTemporalPositions is 4.*3 phases"),
        (no_mask, "case7: masks: none; expected one: seg.dcm, a file in mask/, or a box in case.json"),
        (damaged, r"case7/dce/.*\.dcm: "),
    ],
    ids=["two phases", "a slice", "the second phase", "the last phase", "no mask", "damaged"],
)
def test_an_incomplete_case_is_one_error_that_says_nothing_of_the_patient(copied, damage, message):
    damage(copied)
    with pytest.raises(ValueError, match=f"^{message}") as error:
        c.read_case(copied, CONFIG)
    assert IDENTITY not in str(error.value) and str(copied.parent) not in str(error.value)
    assert error.value.__cause__ is None and error.value.__suppress_context__  # a traceback would name the rest


def test_times_count_from_the_phase_that_is_named_pre(copied, patient):
    (copied / "case.json").write_text('{"pre": 1, "post_early": 2, "post_late": 3, "early_s": 70}')
    case, times = c.read_case(copied, CONFIG), patient[0].times_s
    np.testing.assert_array_equal(case.phases, patient[0].array[1:4])
    assert case.times_s == pytest.approx((0.0, 70.0, times[3] - times[1]))


def test_phases_named_by_hand_are_taken_from_a_doubtful_series_and_the_doubt_is_a_warning(
    copied, patient, run, ranges
):
    a_phase_less(3)(copied)
    (copied / "case.json").write_text('{"pre": 0, "post_early": 1, "post_late": 2}')
    case = c.read_case(copied, CONFIG)
    np.testing.assert_array_equal(case.phases, patient[0].array[:3])
    first = doubts_of(case, run, ranges)[0]
    assert first.startswith("Doubtful series: case7/dce: NumberOfTemporalPositions is 4; ") and "3 phases" in first


@pytest.fixture(params=["DICOM", "NIfTI"])
def either(request):
    """A case of either layout: folder, and what case.json has to say."""
    if request.param == "NIfTI":
        return request.getfixturevalue("nifti")
    return request.getfixturevalue("copied"), {"pre": 0}


def test_the_early_phase_may_also_be_the_late_one(either, patient, run, ranges):
    folder, values = either
    late_s = 400.0 if "slice_thick" in values else 180.0  # DICOM says when, and has to be near
    sidecar = values | {"post_early": 2, "post_late": 2, "early_s": 150, "late_s": late_s}
    (folder / "case.json").write_text(json.dumps(sidecar))
    case = c.read_case(folder, CONFIG)
    np.testing.assert_array_equal(case.phases, patient[0].array[[0, 2, 2]])
    assert case.times_s == (0.0, 150, late_s)
    images, _, _ = c.network_input(case, CONFIG, c.View.of(run))
    np.testing.assert_array_equal(images[:, 1], images[:, 2])
    found = [doubt[:17] for doubt in doubts_of(case, run, ranges) if "phase, time" in doubt]
    assert found == ([] if late_s == 400 else ["Late phase, time "])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"early_s": 150, "late_s": 100}, "early_s 150 and late_s 100, expected early before late"),
        ({"early_s": 20}, "a phase at 20 s as told, [0-9]+ s in the files; leave early_s and late_s out"),
    ],
)
def test_times_that_contradict_each_other_or_the_files_are_refused(copied, told, message):
    (copied / "case.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=message):
        c.read_case(copied, CONFIG)


def test_two_phases_that_are_one_image_are_refused(nifti):
    folder, values = nifti
    (folder / "case.json").write_text(json.dumps(values))
    late = next(p for p in (folder / "dce").iterdir() if f"aqc_{values['post_late']}." in p.name)
    shutil.copy(next(p for p in (folder / "dce").iterdir() if "aqc_2." in p.name), late)
    with pytest.raises(ValueError, match="case7: early and late hold the same voxels, expected three phases"):
        c.read_case(folder, CONFIG)


def test_a_sidecar_names_all_phases_or_leaves_them_open():
    assert c.Told().phases is None and c.Told(0, 2, 2).phases == Phases(0, 2, 2)
    with pytest.raises(ValueError, match=r"phases \[0, None, 2\], expected pre, post_early, post_late, or none"):
        c.Told(0, None, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "case7: slice_thick nan, xy_spacing nan in the table or case.json, expected positive mm"),
        (
            {"xy_spacing": None},
            "case7: slice_thick .* xy_spacing nan in .*case.json, expected positive mm, as these",
        ),
        ({"xy_spacing": -1.0}, r"case7/case.json: \{'xy_spacing': -1.0\}, expected positive numbers"),
        ({"early_s": True}, r"case7/case.json: \{'early_s': True\}, expected positive numbers"),
        ({"late_s": float("nan")}, r"case7/case.json: late_s: nan is no finite number"),
        ({"post_late": 6}, r"case7: missing phase file \[6\], found \[0, 1, 2, 3\]"),
        ({"post_early": 3, "post_late": 2}, r"case7/case.json: phases \[0, 3, 2\], expected pre < early ≤ late"),
        ({"pre": 2}, r"case7/case.json: phases \[2, 2, 3\], expected pre < early ≤ late, counted from 0"),
        ({"pre": -1}, r"case7/case.json: phases \[-1, 2, 3\], expected pre < early ≤ late, counted from 0"),
        ({"post_late": None}, r"case7/case.json: phases \[0, 2, None\], expected pre, post_early, post_late, or n"),
        ({"age": 51}, "case7/case.json: .*age"),
        ({"pre": "0"}, "case7/case.json: .*pre"),
    ],
    ids=str,
)
def test_a_sidecar_that_is_absent_or_wrong_is_an_error_that_says_what_is_expected(nifti, changes, message):
    folder, values = nifti
    values["post_late"] = 3
    if changes is not None:
        (folder / "case.json").write_text(json.dumps(values | changes))
    with pytest.raises(ValueError, match=f"^{message}") as error:
        c.read_case(folder, CONFIG)
    assert IDENTITY not in str(error.value) and str(folder.parent) not in str(error.value)


def test_a_sidecar_that_is_not_json_and_a_phase_that_is_not_there_are_named(copied):
    (copied / "case.json").write_text("pre = 0")
    with pytest.raises(
        ValueError, match="^case7/case.json: Expecting value: .*, expected a JSON object with some of pre, "
    ):
        c.read_case(copied, CONFIG)
    (copied / "case.json").write_text('{"pre": 0, "post_early": 2, "post_late": 9}')
    with pytest.raises(ValueError, match=r"^case7: phases \[0, 2, 9\], counted from 0, .* among the [34] found"):
        c.read_case(copied, CONFIG)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Expecting value"),
        (b"[0, 1, 2]", "a list"),
        (b"null", "a NoneType"),
        (b"3", "a int"),
        ('{"pre": 0, "\u00e9": 1}'.encode("latin-1"), "'utf-8' codec can't decode"),
        (b"[" * 200000, "maximum recursion depth|a list"),
        (b'{"pre": 0, "pre": 1}', "a key twice among pre, pre"),
    ],
    ids=["empty", "list", "null", "number", "latin-1", "brackets", "a key twice"],
)
def test_a_sidecar_that_is_no_json_object_is_one_kind_of_error(copied, content, found):
    (copied / "case.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"^case7/case.json: ({found}).*, expected a JSON object with some of pre, p"
    ):
        c.read_case(copied, CONFIG)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_a_sidecar_may_be_in_any_unicode(copied, patient, encoding):
    (copied / "case.json").write_text('{"pre": 1, "post_early": 2, "post_late": 3}', encoding=encoding)
    np.testing.assert_array_equal(c.read_case(copied, CONFIG).phases, patient[0].array[1:4])


def like_others(folder, series, mask, dtype=np.uint16, scale=1):
    """A case in BreastDCEDL's names with headers as SimpleITK writes them."""
    names = [f"dce/{IDENTITY}_x_vis1_dce_aqc_{k}.nii.gz" for k in range(len(series.array))]
    for name, volume in zip([*names, f"mask/{IDENTITY}_x_vis1_mask.nii.gz"], [*series.array, mask], strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        volume = volume if volume.dtype == bool else (volume * scale).astype(dtype)
        sitk.WriteImage(to_sitk(volume, series.geometry), str(folder / name))
    return folder


def test_of_a_nifti_case_with_true_headers_only_the_phases_need_to_be_named(patient, tmp_path):
    series, mask = patient
    folder = like_others(tmp_path / "case7", series, mask)
    (folder / "case.json").write_text('{"pre": 0, "post_early": 2, "post_late": 3}')
    case = c.read_case(folder, CONFIG)
    np.testing.assert_array_equal(case.phases, series.array[[0, 2, 3]])
    np.testing.assert_array_equal(case.mask, mask)
    assert same_grid(case.geometry, series.geometry, 1e-4) and case.remarks == ()
    (folder / "case.json").write_text('{"pre": 0, "post_early": 2, "post_late": 3, "slice_thick": 99}')
    with pytest.raises(
        ValueError, match=r"^case7: spacing .* mm in the files, \[99.0, nan, nan\] mm in the table or"
    ):
        c.read_case(folder, CONFIG)


def test_intensities_from_0_to_1_keep_their_levels_and_the_factor_is_a_remark(patient, tmp_path, run, ranges):
    series, mask = patient
    folder = like_others(tmp_path / "case7", series, mask, np.float32, 2.0**-16)
    (folder / "case.json").write_text('{"pre": 0, "post_early": 2, "post_late": 3}')
    case = c.read_case(folder, CONFIG)
    factor = 2.0 ** np.floor(np.log2(65535 / series.array[[0, 2, 3]].max()))  # from the whole numbers to the result
    np.testing.assert_array_equal(case.phases, series.array[[0, 2, 3]] * factor)
    (remark,) = case.remarks
    assert remark == f"intensities were multiplied by {65536 * factor:.0f} to keep their levels as whole numbers"
    assert f"Doubtful series: {remark}." in doubts_of(case, run, ranges)


def of_series(*uids):
    """A mask that names other series as those it was drawn on."""

    def change(ds):
        ds.ReferencedSeriesSequence = [pydicom.Dataset() for _ in uids]
        for item, uid in zip(ds.ReferencedSeriesSequence, uids, strict=True):
            item.SeriesInstanceUID = uid

    return change


def test_a_mask_drawn_on_another_series_of_the_examination_is_a_remark_and_of_another_examination_an_error(
    copied, monkeypatch
):
    seg = pydicom.dcmread(copied / "seg.dcm")
    of_series("1.2.8", "1.2.9")(seg)
    seg.save_as(copied / "seg.dcm")
    known = {"frame_of_reference": seg.FrameOfReferenceUID, "series": ("1.2.3",)}
    read_dce = examination.read_dce
    known_to_be = lambda folder, pixels: replace(read_dce(folder), source=Source(**known))  # noqa: E731
    monkeypatch.setattr(examination, "read_dce", known_to_be)
    (remark,) = c.read_case(copied, CONFIG).remarks
    assert remark.startswith("case7/seg.dcm: ") and "1.2.8, 1.2.9" in remark and "1.2.3" in remark
    known["frame_of_reference"] = "1.2.4"
    with pytest.raises(ValueError, match="^case7/seg.dcm: SHA-256 of study .* series 1.2.8, 1.2.9, expected"):
        c.read_case(copied, CONFIG)


def test_two_masks_are_refused(nifti):
    folder, values = nifti
    (folder / "case.json").write_text(json.dumps(values))
    shutil.copy(next((folder / "mask").iterdir()), folder / "mask/other_spy2_vis1_mask.nii.gz")
    with pytest.raises(
        ValueError,
        match="^case7: masks: mask/…_mask.nii.gz, mask/…_mask.nii.gz; expected one: seg.dcm, a file in mask/, or",
    ):
        c.read_case(folder, CONFIG)


# ----------------------------------------------------------------------------------------- what the networks see


@pytest.mark.parametrize(
    "name", ["thda-channel_q98-raw", "thda-channel_nyul-raw", "thda_adjacent-slice_minmax-raw"]
)
def test_a_training_patient_as_a_case_is_fed_to_the_networks_as_in_training(written, prepared, patient, name):
    parts = dict(zip(("model", "window", "bias_field"), parse_run(name, "slice_minmax"), strict=True))
    run = make_run(prepared, None, name=name, models=MODELS, **parts)
    case = replace(c.read_case(written, CONFIG), phases=patient[0].array[[0, 2, -1]])
    images, outlines, fed = c.network_input(case, CONFIG, c.View.of(run))
    stored = run.opened.under(run.window, neighbours="adjacent" in name)
    rows = np.flatnonzero(stored.patient == draw_cohort(COHORT)[0]["patient"])
    np.testing.assert_array_equal(fed, stored.images[rows].numpy())
    np.testing.assert_array_equal(fed[:, 1::3] if "adjacent" in name else fed, images)
    np.testing.assert_array_equal(outlines, np.load(prepared / "masks.npy")[rows])


# ------------------------------------------------------------------------------------------------- applicability


def test_ranges_are_the_outer_percents_of_the_training_patients_alone(ranges):
    expected = {"slice_mm": "slice_mm", "pixel_mm": "pixel_native_mm", "early_s": "early_s", "late_s": "late_s"}
    for name, column in expected.items():
        low, high = LOW_HIGH[column]
        step = (high - low) / 100
        assert (ranges[name].low, ranges[name].high) == pytest.approx((low + step, high - step))
    assert (ranges["volume_ml"].low, ranges["volume_ml"].high) == pytest.approx((200**0.01, 200**0.99))
    assert (ranges["uptake"].low, ranges["uptake"].high) == pytest.approx((52.5, 297.5))
    assert set(ranges) == set(c.MEASURES)


def test_grey_levels_are_those_of_each_training_patients_middle_slice(run, ranges):
    stored = run.slices().of_split("train")
    first, count = stored.patients()
    middle = stored.images[first + count // 2].numpy()
    assert len(middle) == 8
    expected = np.quantile(middle[:, 1].mean((1, 2)) / 255, (0.01, 0.99))
    assert (ranges["grey_early"].low, ranges["grey_early"].high) == pytest.approx(100 * expected)
    white = np.quantile((middle == 255).mean((1, 2, 3)), (0.01, 0.99))
    assert (ranges["white"].low, ranges["white"].high) == pytest.approx(100 * white)


@pytest.mark.parametrize(
    ("measure", "limits", "inside", "outside"),
    [
        ("slice_mm", (2.0, 3.0), (1.9, 3.1), (1.89, 3.11)),  # a tenth of the width
        ("slice_mm", (2.0, 2.0), (1.98, 2.02), (1.97, 2.03)),  # one protocol: rounding only
        ("volume_ml", (1.0, 100.0), (0.64, 158.0), (0.63, 159.0)),  # a tenth of two decades
        ("early_s", (140.0, 150.0), (120.0, 170.0), (119.0, 171.0)),  # at least 20 s
        ("uptake", (80.0, 280.0), (80.0, 300.0), (79.9, 301.0)),  # no margin below
    ],
)
def test_a_margin_is_granted_beyond_the_range(measure, limits, inside, outside):
    for values, expected in ((inside, True), (outside, False)):
        assert [c.Range(*limits).holds(v, c.MEASURES[measure]) for v in values] == [expected] * 2


def test_a_measure_may_grant_a_least_margin_of_its_own():
    measure, limits = c.Measure("Field strength", "T", "Another scanner?", least=0.2), c.Range(1.5, 1.5)
    assert [limits.holds(value, measure) for value in (1.3, 1.7, 1.29, 1.71)] == [True, True, False, False]


def test_a_case_like_the_training_patients_gets_no_warning(written, run, ranges):
    assert doubts_of(c.read_case(written, CONFIG), run, ranges) == []


def test_other_spacing_other_times_and_a_tiny_lesion_are_named_with_value_and_range(written, patient, run, ranges):
    case = c.read_case(written, CONFIG)
    _, y_mm, x_mm = case.geometry.spacing_mm
    other = replace(case, geometry=Geometry((9.5, y_mm, x_mm)), times_s=(0.0, 60.0, 900.0))
    assert doubts_of(other, run, ranges) == [
        "Slice spacing: 9.5 mm; 98 % of the training patients: 4.03 to 6.97 mm. " + c.MEASURES["slice_mm"].doubt,
        "Early phase, time after the first: 60 s; 98 % of the training patients: 101 to 199 s. "
        + c.MEASURES["early_s"].doubt,
        "Late phase, time after the first: 900 s; 98 % of the training patients: 352 to 548 s. "
        + c.MEASURES["early_s"].doubt,
    ]
    centre = tuple(np.argwhere(case.mask)[0])
    tiny = np.zeros_like(case.mask)
    tiny[centre] = True
    assert any(d.startswith("Lesion volume: 0.0") for d in doubts_of(replace(case, mask=tiny), run, ranges))


def test_a_written_case_of_other_voxels_is_warned_of(patient, run, ranges, tmp_path):
    series = changed(patient, spacing_mm=(9.0, 1.2, 1.2))
    case = c.read_case(write_case(tmp_path / "coarse", series, patient[1]), CONFIG)
    found = [d.split(":")[0] for d in doubts_of(case, run, ranges)]
    assert found[:2] == ["Slice spacing", "Pixel spacing"]


def test_a_written_case_without_contrast_is_warned_of(patient, run, ranges, rng, tmp_path):
    series, mask = patient
    pre = series.array[0].astype(float)
    noisy = [pre + rng.normal(0, 10, pre.shape) for _ in series.times_s]
    array = np.rint(np.maximum(noisy, 0)).astype(np.uint16)
    case = c.read_case(write_case(tmp_path / "plain", changed(patient, array), mask), CONFIG)
    found = [d for d in doubts_of(case, run, ranges) if d.startswith("Little or no contrast enhancement")]
    uptake = 100 * (array[1][mask].mean() / array[0][mask].mean() - 1)
    assert len(found) == 1 and abs(uptake) < 1
    assert found[0].endswith(
        "; 98 % of the training patients: 52.5 to 298 %. Was contrast given, and is the first phase really the one "
        "before it?"
    )


def test_a_lesion_that_enhances_more_than_any_is_another_doubt(written, run, ranges):
    case = c.read_case(written, CONFIG)
    subtracted = np.stack([case.phases[0] // 20, *case.phases[1:]])
    found = doubts_of(replace(case, phases=subtracted), run, ranges)
    assert any(d.startswith("Contrast enhancement of the lesion: ") and "subtraction" in d for d in found)


def test_images_of_another_brightness_are_warned_of_and_another_gain_is_not(written, run, ranges):
    case = c.read_case(written, CONFIG)
    assert doubts_of(replace(case, phases=case.phases * 2), run, ranges) == []
    flat = np.rint(4000 * (case.phases / case.phases.max()) ** 0.2).astype(np.uint16)
    found = [d.split(":")[0] for d in doubts_of(replace(case, phases=flat), run, ranges)]
    assert "Mean grey level, pre-contrast phase" in found


@pytest.mark.parametrize(("axis", "plane"), list(enumerate(["slice", "row", "column"])))
def test_a_lesion_that_the_border_cuts_is_warned_of_and_one_that_touches_it_is_not(axis, plane):
    z, y, x = np.ogrid[:20, :20, :20]
    centre = [10, 10, 10]
    for place, expected in ((8, 0), (7, 0), (4, 1), (0, 1)):  # of a radius of 8; the last is half a ball
        centre[axis] = place
        ball = sum((a - m) ** 2 for a, m in zip((z, y, x), centre, strict=True)) <= 64
        found = c._border_warnings(ball)
        assert len(found) == expected
        assert all(f"outermost {plane} of the images, with " in f for f in found)


def test_unknown_times_are_a_warning(nifti, run, ranges):
    folder, values = nifti
    (folder / "case.json").write_text(json.dumps(values))
    found = doubts_of(c.read_case(folder, CONFIG), run, ranges)
    assert len(found) == 1 and found[0].startswith("The files do not say when the phases were acquired")


def test_training_patients_without_times_leave_the_wanted_ones(run, tmp_path):
    folder = shutil.copytree(run.prepared, tmp_path / "prepare")
    put_kinetics(made_up_table().assign(early_s=np.nan, late_s=np.nan), folder)
    found = c.training_ranges(replace(run, prepared=folder), CONFIG)
    assert found["early_s"] == c.Range(100.0, 200.0, "wanted")
    assert found["late_s"] == c.Range(400.0, 500.0, "wanted")


def test_a_preparation_without_table_or_training_patients_is_refused(run, tmp_path):
    folder = shutil.copytree(run.prepared, tmp_path / "prepare")
    other = replace(run, prepared=folder)
    put_kinetics(made_up_table().query("split != 'train'"), folder)
    with pytest.raises(ValueError, match="kinetics.csv: no training patient"):
        c.training_ranges(other, CONFIG)
    made_up_table().to_csv(folder / "kinetics.csv", index=False)
    with pytest.raises(ValueError, match="kinetics.csv: its SHA-256 is"):
        c.training_ranges(other, CONFIG)
    (folder / "kinetics.csv").unlink()
    with pytest.raises(ValueError, match="kinetics.csv: no such file, expected what the stage prepare wrote"):
        c.training_ranges(other, CONFIG)


# ------------------------------------------------------------------------------------------------ the notebook


def test_the_notebook_takes_a_case_of_the_study_where_none_is_given():
    cells = json.loads((TOP / "notebooks/10_predict_case.ipynb").read_text())["cells"]
    given = next("".join(cell["source"]) for cell in cells if cell["metadata"].get("tags") == ["parameters"])
    assert 'case: str = ""  # ' in given


def test_names_of_dicom_files_and_folders_stay_out_of_remarks_and_errors(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "case7")
    for k, path in enumerate(sorted((folder / "dce").iterdir())):
        path.rename(folder / "dce" / f"{IDENTITY}_19610203_{k:04d}.dcm")
    first, second, *_ = sorted((folder / "dce").iterdir())
    dataset = pydicom.dcmread(second)
    dataset.LossyImageCompression = "01"
    dataset.save_as(second)
    (folder / "case.json").write_text('{"pre": 0, "post_early": 1, "post_late": 2}')
    remarks = " ".join(c.read_case(folder, CONFIG).remarks)
    assert "case7/dce: …_0001.dcm was once compressed with loss" in remarks and IDENTITY not in remarks
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(ValueError, match="^case7/dce/…_0000.dcm: truncated"):
        c.read_case(folder, CONFIG)


def test_foci_far_apart_are_a_remark_and_the_images_show_the_largest(patient, tmp_path, run):
    series, _ = patient
    mask = np.zeros(series.array.shape[1:], bool)
    z = len(mask) // 2
    mask[z - 1 : z + 2, 2:8, 2:8] = mask[z - 1 : z + 2, -8:-2, -7:-2] = True
    case = c.read_case(write_case(tmp_path / "far", series, mask), CONFIG)
    assert f"foci far apart: the images lie around the largest, {108 / 198:.0%} of the lesion" in case.remarks
    _, masks, _ = c.network_input(case, CONFIG, c.View.of(run))
    assert masks.any((1, 2)).all() and len(masks) == 3
