"""`her2 predict`: what a study's networks say of one case, and the page and picture of it."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from PIL import Image
from small_study import compute

from her2core import study as command
from her2core.calibration import fit_recalibration_or_none, recalibrate
from her2core.case import read_case
from her2core.evaluate import read_predictions, seed_mean
from her2core.formats.dicom import read_dce
from her2core.formats.seg import read_seg
from her2core.preprocess import PrepareConfig
from her2core.report import one_case
from her2core.report.figures.sheet import case_sheet, explored
from her2core.runs import Run

EXTERNAL = "PHANTOM-AMBL-0015"
# made-up predictions: seed 0 calls best from 0.6, seed 1 from 0.3; their means do not separate the classes
VALIDATION = {0: [(0, 0.1), (0, 0.7), (1, 0.6), (1, 0.9)], 1: [(0, 0.2), (0, 0.5), (1, 0.3), (1, 0.55)]}
TEST = [(0, 0.2), (0, 0.4), (1, 0.45), (1, 0.9), (1, 0.95)]


def put_predictions(study, validation=VALIDATION):
    parts = [
        {"patient": f"{split}{k}", "split": split, "label": label, "seed": seed, "probability": probability}
        for seed, of_seed in validation.items()
        for split, rows in (("validation", of_seed), ("test", TEST))
        for k, (label, probability) in enumerate(rows)
    ]
    run = Run.of(study)
    path = study.results / "predictions" / f"{run.name}.csv"
    fixed = {"cohort": study.name, "run": run.name, "model": run.model, "window": run.window, "bias_field": "raw"}
    pd.DataFrame(parts).assign(**fixed).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    top = tmp_path_factory.mktemp("compendium")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        yield compute(top)


@pytest.fixture
def study(computed, monkeypatch):
    monkeypatch.chdir(computed.top)
    path = computed.results / f"predictions/{Run.of(computed).name}.csv"
    before = path.read_bytes()
    yield computed
    path.write_bytes(before)
    shutil.rmtree(computed.results / "cases", ignore_errors=True)


@pytest.fixture
def case(study, tmp_path):
    """An external patient as a case of one's own, in folders with spaces."""
    return shutil.copytree(study.data("acquire") / "ambl" / EXTERNAL, tmp_path / "my cases" / "Case 7")


def config_of(study):
    return study.params("prepare", PrepareConfig)


# ------------------------------------------------------------------------------------------ the kinetic curve


def test_the_curve_has_the_mean_enhancement_of_the_lesion_in_every_phase_of_the_series(study, case):
    series = read_dce(case / "dce")
    mask = read_seg(case / "seg.dcm", series.geometry, series.array.shape[1:], meaning="segments")
    curve = one_case.lesion_curve(case, read_case(case, config_of(study)))
    means = np.array([phase[mask].mean() for phase in series.array])
    np.testing.assert_allclose(curve["enhancement"], 100 * (means / means[0] - 1), atol=1e-9)
    np.testing.assert_allclose(curve["minutes"], np.array(series.times_s) / 60)
    assert list(curve["phase"]) == [0, 1, 2, 3, 4] and list(curve.index[curve["chosen"]]) == [0, 2, 4]
    first = series.array[[0, 3]][:, mask].astype(float)
    expected = 100 * np.quantile((first[1] - first[0]) / means[0], (0.25, 0.75))
    np.testing.assert_allclose(curve.loc[3, ["low", "high"]].to_numpy(float), expected)


def nifti_of(case, numbers=(0, 1, 2, 3, 4), box=True):
    """The same case as NIfTI with true headers, the phases numbered so; the lesion as a box."""
    series = read_dce(case / "dce")
    shutil.rmtree(case / "dce")
    (case / "seg.dcm").unlink()
    (case / "dce").mkdir()
    for number, phase in zip(numbers, series.array, strict=True):
        image = sitk.GetImageFromArray(phase)
        image.SetSpacing(series.geometry.spacing_mm[::-1])
        sitk.WriteImage(image, str(case / f"dce/phase_{number}.nii.gz"))
    told = {"pre": numbers[0], "post_early": numbers[2], "post_late": numbers[4], "box": [4, 20, 20, 6, 30, 30]}
    (case / "case.json").write_text(json.dumps(told))
    return series


def test_of_a_nifti_case_with_a_box_all_phases_are_in_the_curve_by_their_numbers_and_times_are_unknown(study, case):
    series = nifti_of(case, numbers=(3, 4, 7, 8, 12))
    curve = one_case.lesion_curve(case, read_case(case, config_of(study)))
    means = series.array[:, 4:7, 20:31, 20:31].mean((1, 2, 3))
    np.testing.assert_allclose(curve["enhancement"], 100 * (means / means[0] - 1), atol=1e-9)
    assert list(curve["phase"]) == [3, 4, 7, 8, 12] and curve["minutes"].isna().all()
    assert list(curve.loc[curve["chosen"], "phase"]) == [3, 7, 12]


def test_one_nifti_file_with_all_phases_counts_them_from_0(study, case):
    series = nifti_of(case)
    shutil.rmtree(case / "dce")
    (case / "dce").mkdir()
    volumes = [sitk.GetImageFromArray(phase) for phase in series.array]
    for volume in volumes:
        volume.SetSpacing(series.geometry.spacing_mm[::-1])
    sitk.WriteImage(sitk.JoinSeries(volumes), str(case / "dce/all.nii.gz"))
    curve = one_case.lesion_curve(case, read_case(case, config_of(study)))
    means = series.array[:, 4:7, 20:31, 20:31].mean((1, 2, 3))
    np.testing.assert_allclose(curve["enhancement"], 100 * (means / means[0] - 1), atol=1e-9)
    assert list(curve["phase"]) == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------------------------------ the verdict


def test_a_case_is_answered_as_the_networks_answer_the_same_patient_of_the_cohort(study, case):
    found = one_case.examine(study, case)
    table = Run.of(study).predict("external")
    expected = table[table["patient"] == EXTERNAL].sort_values("seed")["probability"]
    np.testing.assert_allclose(found.seeds["probability"], expected, atol=1e-6)
    assert found.case.name == "Case 7" and str(found.title) == "networks of the embedded synthetic cohort"
    assert found.answer["mean"] == pytest.approx(expected.mean(), abs=1e-6)


def test_thresholds_calibration_and_scores_are_those_of_the_study(study, case):
    predicted = read_predictions([put_predictions(study)])
    found = one_case.examine(study, case)
    assert list(found.seeds["threshold"]) == pytest.approx([0.6, 0.3])
    assert list(found.seeds["called"]) == list(found.seeds["probability"] >= found.seeds["threshold"])
    labels, mean = seed_mean(predicted[predicted["split"] == "validation"])
    line = fit_recalibration_or_none(labels, mean)
    assert found.calibrated == pytest.approx(recalibrate(found.seeds["probability"].mean(), line))
    assert found.fitted_on == 4 and found.scores.to_numpy().tolist() == [list(map(float, row)) for row in TEST]


def test_where_no_line_fits_nothing_is_called_calibrated(study, case):
    apart = [(0, 0.1), (0, 0.2), (1, 0.8), (1, 0.9)]
    put_predictions(study, {0: apart, 1: apart})
    found = one_case.examine(study, case)
    assert found.calibrated is None and one_case.sentences(found)[1] == "No line could be fitted."


def test_a_case_is_cut_as_its_cohort_was_and_shown_whole(study, case):
    archive = {"source": "archive", "margin_slices": 1, "crop_px": 40}
    other = replace(study, values=study.values | {"acquire": archive})
    found = one_case.examine(other, case)
    expected = read_case(case, config_of(study), cut=(1, 40))
    np.testing.assert_array_equal(found.case.phases, expected.phases)
    assert found.case.phases.shape[2:] == (40, 40) != found.uncut.phases.shape[2:]
    page = one_case.write_case(found, study.results / "cases")[1].read_text("utf-8")
    assert "by the networks of the embedded cohort</h1>" in page and "phantoms" not in page


def test_what_lies_outside_the_training_patients_range_is_marked_on_its_side(study, case):
    found = one_case.examine(study, case).table.set_index("measure")
    late = found.loc["Late phase, time after the first"]  # the external site's is earlier
    assert late["this case"] < late["from"] and late["outside"] == "below"
    assert set(found["range of"]) == {"all 6 training patients here"}
    nifti_of(case)
    found = one_case.examine(study, case).table.set_index("measure")
    assert list(found.index[found["outside"] == "unknown"]) == [m for m in found.index if ", time after" in m]


def test_the_finding_is_told_first_and_in_numbers(study, case):
    put_predictions(study)
    found = one_case.examine(study, case)
    found.seeds["probability"], found.seeds["called"] = [0.5, 0.9], [False, True]
    found.table["outside"] = ["below", "above", "unknown", *[""] * 7]
    assert isinstance(found, one_case.Verdict)
    assert one_case.sentences(replace(found, calibrated=0.654)) == [
        "Probability of HER2+: 0.70 (2 seeds from 0.50 to 0.90), by the networks of the embedded synthetic cohort.",
        "Calibrated by a line fitted on 4 validation patients: 0.65.",
        "Seeds that call it HER2+: 1 of 2, each at its threshold from validation (mean 0.45); 2 of 2 at 0.5.",
        "It is higher than that of 100% of 2 HER2− and 33% of 3 HER2+ among the study's test patients.",
        "2 of 10 measures lie outside the training patients' range.",
    ]


# ------------------------------------------------------------------------------------------ the command


def test_predict_writes_a_page_and_a_picture_of_a_folder_with_spaces_and_a_trailing_slash(study, case, capsys):
    command.main(["predict", f"{case}/"])
    said = capsys.readouterr().out
    assert said.startswith("Probability of HER2+: ") and "Research only, not for clinical use." in said
    assert "written: results/embedded/cases/Case 7/case.html" in said
    out = study.results / "cases/Case 7"
    assert sorted(p.name for p in out.iterdir()) == ["case.html", "case.png"]
    with Image.open(out / "case.png") as image:
        assert image.size == (1440, 1100)
    page = (out / "case.html").read_text("utf-8")
    assert (
        len(page) < 1_000_000
        and "<h1>Case 7: HER2 status by the networks of the embedded synthetic cohort</h1>" in page
    )
    assert "Research only, not for clinical use. These networks were trained on\nphantoms" in page
    assert base64.b64encode((out / "case.png").read_bytes()).decode() in page
    assert page.count('<tr class="outside">') == one_case.examine(study, case).table["outside"].ne("").sum() > 0
    assert EXTERNAL not in page and str(case.parent) not in page  # of the patient the folder's last name alone
    assert not re.search(r"https?:|<script|@import|url\(", page)  # loads and runs nothing


def test_the_same_case_gives_the_same_bytes(study, case):
    found = [
        [path.read_bytes() for path in one_case.write_case(one_case.examine(study, case), study.results / where)]
        for where in ("cases", "again")
    ]
    assert found[0] == found[1]
    shutil.rmtree(study.results / "again")


def test_of_two_cases_in_folders_called_alike_none_overwrites_the_other(study, case):
    first = one_case.examine(study, case)
    other = replace(first, uncut=replace(first.uncut, phases=first.uncut.phases + 1))
    paths = [one_case.write_case(found, study.results / "alike")[1] for found in (first, other, first, other)]
    assert [path.parent.name for path in paths] == ["Case 7", "Case 7-2"] * 2
    shutil.rmtree(study.results / "alike")


def test_the_picture_shows_nothing_but_the_case_and_needs_no_times(study, case):
    nifti_of(case)
    png, page = one_case.write_case(one_case.examine(study, case), study.results / "cases")
    assert Image.open(io.BytesIO(png.read_bytes())).info.keys() <= {"dpi"}
    assert "nan" not in re.sub('base64,[^"]*', "", page.read_text("utf-8"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], r"her2: no .*/none/dce; expected the images there, and a mask: see her2 predict -h"),
        (["bare"], r"her2: .*: masks: none; expected one: seg.dcm, a file in mask/, or a box in case.json"),
        (["bare", "--cohort", "nobody"], "her2: no study 'nobody'; there are embedded"),
    ],
)
def test_what_is_no_case_or_no_study_is_one_line(study, arguments, message, tmp_path, monkeypatch):
    (tmp_path / "bare/dce").mkdir(parents=True)
    arguments = [str(tmp_path / name) if name == "bare" else name for name in arguments]
    with pytest.raises(SystemExit, match=f"^{message}"):
        command.main(["predict", *arguments])


def test_a_study_that_has_not_been_computed_says_what_to_run(study, case):
    prepared = study.data("prepare")
    prepared.rename(prepared.with_name("aside"))
    try:
        with pytest.raises(
            SystemExit, match="data/embedded/prepare is not there yet; run first: dvc repro prepare"
        ):
            command.main(["predict", str(case)])
    finally:
        prepared.with_name("aside").rename(prepared)


# ------------------------------------------------------------------------------------------ the figures


def test_a_sheet_and_a_view_refuse_what_they_cannot_draw():
    volumes, scores = np.zeros((3, 2, 4, 4)), pd.DataFrame({"label": [0, 1], "probability": [0.2, 0.7]})
    curve = pd.DataFrame({"phase": [0, 1], "low": 0.0, "enhancement": 1.0, "high": 2.0, "chosen": True})
    answer = {"lowest": 0.1, "mean": 0.2, "highest": 0.3, "threshold": 0.5}
    image, gates, mask = np.zeros((3, 8, 8), np.uint8), np.zeros((3, 8, 8)), np.ones((2, 4, 4), bool)
    crop, rest = (image, gates, mask[0], 1.0), (scores, answer, "Case 7", "cohort")
    with pytest.raises(ValueError, match=r"mask: shape \(1, 4, 4\), expected \(2, 4, 4\)"):
        case_sheet(volumes, mask[:1], (1, 1, 1), curve, crop, *rest)
    with pytest.raises(ValueError, match="curve: lacks enhancement; it has phase, low, high, chosen"):
        case_sheet(volumes, mask, (1, 1, 1), curve.drop(columns="enhancement"), crop, *rest)
    with pytest.raises(ValueError, match="image: found float64, expected uint8"):
        explored(gates, gates, mask[0], 1.0, 1, pd.DataFrame({0: [0.5]}), 0, "patient", "cohort")
    with pytest.raises(ValueError, match=r"gates: shape \(3, 4, 4\), expected \(3, 8, 8\)"):
        explored(image, gates[:, :4, :4], mask[0], 1.0, 1, pd.DataFrame({0: [0.5]}), 0, "patient", "cohort")
