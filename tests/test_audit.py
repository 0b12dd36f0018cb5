"""Leaks of every kind are found and named, and patients of their own are left alone."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from her2core import audit as a
from her2core.phantom.patient import make_patient
from her2core.phantom.sites import draw_protocol
from her2core.preprocess import PrepareConfig, pack

CONFIG = a.AuditConfig()
PREPARE = PrepareConfig(
    crop_mm=64.0, crop_px=32, slices=3, quantiles=(0.0, 0.98, 1.0), early_s=150.0, late_s=450.0,
    bias_fields=("raw",), neighbours=False, allow_missing=False, jobs=1,
)  # fmt: skip
SPLITS = ("train", "train", "validation", "test", "external")
COUNT = 25


def phantom_slices(seed):
    site = draw_protocol(("spy1", "spy2")[seed % 2], seed)
    spacing = tuple(2 * s for s in site.spacing_mm)
    patient = make_patient(
        seed, seed // 2 % 2, replace(site, shape=tuple(n // 2 for n in site.shape), spacing_mm=spacing)
    )
    phases = patient.series.array[[0, site.early_index, site.late_index]]
    return pack(phases, patient.annotator_mask, patient.series.geometry, PREPARE)[2]["raw"]


@pytest.fixture(scope="module")
def clean():
    """Arguments of `audit`: 25 phantom patients, P00 and P01 in train, P02 validation, P03 test, P04 external, …"""
    patients = pd.DataFrame({"patient": [f"P{n:02d}" for n in range(COUNT)]})
    patients = patients.assign(split=[SPLITS[n % len(SPLITS)] for n in range(COUNT)])
    patients["dataset"] = np.where(patients["split"] == "external", "ambl", "spy2")
    packed = [phantom_slices(100 + n) for n in range(COUNT)]
    files = patients[["patient", "dataset"]].assign(
        series_uid=[f"1.2.{n} 1.3.{n}" if n % 2 else None for n in range(COUNT)],
        sha256=[f"{n:064x}" for n in range(COUNT)],
    )
    return {
        "patients": patients,
        "files": files,
        "slices": patients.loc[np.repeat(range(COUNT), [len(p["images"]) for p in packed])].reset_index(drop=True),
        "images": np.concatenate([p["images"] for p in packed]),
        "quantiles": np.concatenate([p["quantiles"] for p in packed]),
    }


@pytest.fixture
def case(clean):
    return {name: value.copy() for name, value in clean.items()}


def rows_of(case, patient):
    return np.flatnonzero(case["slices"]["patient"] == patient)


def run(case, config=CONFIG):
    return a.audit(**case, config=config)


def failed(result):
    return {name for name, found in result["checks"].items() if found["leaks"]}


def rescan(images, rng, turn=0, shift=1, gain=1.3, noise=0.05):
    """The same slices on another scanner: gain, noise of 5 % of the mean, shifted by a pixel, turned."""
    copy = gain * a._turn(np.roll(images, shift, axis=-1).astype(float), turn)
    return np.rint(copy + noise * copy.mean() * rng.standard_normal(copy.shape)).clip(0, 65535).astype(np.uint16)


def test_patients_of_their_own_pass_and_all_of_them_were_compared(clean):
    result = run(clean)
    a.check(result)
    assert result["passed"] and failed(result) == set()
    assert result["patients"] == {"external": 5, "test": 5, "train": 10, "validation": 5}
    compared = {name: found["compared"] for name, found in result["checks"].items()}
    slices = len(clean["slices"])
    assert compared == {
        "patient": COUNT,
        "series": 24,
        "files": COUNT,
        "pixels": slices,
        "near_duplicates": COUNT * (COUNT - 1) // 2,
        "statistics": slices + 2 * COUNT,
    }
    assert result["checks"]["series"]["patients_without_series"] == 13


def test_the_result_is_json_and_the_same_for_the_same_data(clean):
    text = json.dumps(run(clean))
    assert text == json.dumps(run(clean))
    assert json.loads(text) == run(clean)


def test_a_patient_under_two_names_is_named_with_both(case):
    one, other = rows_of(case, "P00"), rows_of(case, "P03")
    keep = min(len(one), len(other))
    for name in ("images", "quantiles"):
        case[name][other[:keep]] = case[name][one[:keep]]
    result = run(case)
    assert failed(result) == {"pixels", "near_duplicates", "statistics"}
    assert result["checks"]["near_duplicates"]["leaks"][0]["patients"] == ["P00 (train)", "P03 (test)"]
    with pytest.raises(a.LeakageError, match=r"pixels: P00 \(train\) and P03 \(test\) share"):
        a.check(result)


def test_one_slice_copied_to_the_external_site_is_found(case):
    case["images"][rows_of(case, "P04")[1]] = case["images"][rows_of(case, "P02")[0]]
    result = run(case)
    assert failed(result) == {"pixels", "near_duplicates"}
    assert [leak["patients"] for leak in result["checks"]["pixels"]["leaks"]] == [
        ["P02 (validation)", "P04 (external)"]
    ]


@pytest.mark.parametrize("turn", range(8), ids=a._ORIENTATIONS)
def test_one_slice_scanned_again_is_found_in_every_orientation(case, rng, turn):
    source, target = rows_of(case, "P03")[0], rows_of(case, "P01")[2]  # a later row, so the turn is undone
    case["images"][target] = rescan(case["images"][source], rng, turn)
    result = run(case)
    assert failed(result) == {"near_duplicates"}
    (leak,) = result["checks"]["near_duplicates"]["leaks"]
    assert leak["patients"] == ["P01 (train)", "P03 (test)"]
    assert f", {a._ORIENTATIONS[turn]}, rows {target} and {source} " in leak["share"]


@pytest.mark.parametrize(
    "how",
    [{"shift": 0, "noise": 0.0}, {"shift": 1}, {"shift": -1, "gain": 0.4}, {"shift": 0, "noise": 0.1}, {"turn": 4}],
    ids=str,
)
def test_every_slice_scanned_again_lies_above_the_threshold_and_strangers_below(clean, rng, how):
    again = rescan(clean["images"], rng, **how)
    prints = a._fingerprints(clean["images"])
    own = a._shifted_correlation(a._turn(prints, how.get("turn", 0)), a._fingerprints(again), CONFIG.shift_px)
    assert own.min() > CONFIG.near_duplicate
    strangers = a._similar_pairs(prints, pd.factorize(clean["slices"]["patient"])[0], replace(CONFIG, coarse=0.3))
    assert len(strangers) > 20 and strangers["correlation"].max() < CONFIG.near_duplicate - 0.05


def test_duplicates_within_one_split_are_counted_and_pass(case, rng):
    case["images"][rows_of(case, "P01")] = rescan(case["images"][rows_of(case, "P00")], rng)
    case["files"].loc[1, ["series_uid", "sha256"]] = case["files"].loc[5, ["series_uid", "sha256"]] = [
        "1.9",
        "f" * 64,
    ]
    result = run(case)
    a.check(result)
    found = {name: c["within_one_split"] for name, c in result["checks"].items()}
    assert found == {"patient": 0, "series": 1, "files": 1, "pixels": 0, "near_duplicates": 1, "statistics": 0}


def test_one_of_several_series_in_two_splits_is_a_leak(case):
    case["files"].loc[8, "series_uid"] = "1.7.7 1.2.1"
    result = run(case)
    assert failed(result) == {"series"}
    assert result["checks"]["series"]["leaks"] == [{"patients": ["P01 (train)", "P08 (test)"], "share": "1.2.1"}]


def test_the_same_files_of_two_patients_are_a_leak(case):
    case["files"].loc[4, "sha256"] = case["files"].loc[3, "sha256"]
    result = run(case)
    assert failed(result) == {"files"}
    with pytest.raises(ValueError, match=r"files: P03 \(test\) and P04 \(external\) share 0+3$"):
        a.check(result)


def test_files_of_patients_that_are_not_in_use_leak_nothing(case):
    before = run(case)
    stranger = case["files"].iloc[[1]].assign(patient="OUT")
    case["files"] = pd.concat([case["files"], stranger], ignore_index=True)
    assert run(case) == before


def rename(case, old, new):
    for table in ("patients", "files", "slices"):
        case[table]["patient"] = case[table]["patient"].replace(old, new)


def test_one_number_of_i_spy2_under_two_prefixes_is_one_patient(case):
    rename(case, "P00", "ISPY2-102212")
    rename(case, "P03", "ACRIN-6698-102212")
    result = run(case)
    assert failed(result) == {"patient"}
    assert result["checks"]["patient"]["leaks"][0]["patients"] == [
        "ACRIN-6698-102212 (test)",
        "ISPY2-102212 (train)",
    ]


def test_a_slice_under_another_split_than_its_patient_is_a_leak(case):
    case["slices"].loc[rows_of(case, "P03")[0], "split"] = "train"
    leaks = run(case)["checks"]["patient"]["leaks"]
    assert leaks == [{"patients": ["P03 (test)", "P03 (train)"], "share": "p03"}]


def test_an_external_patient_in_an_internal_split_is_a_leak(case):
    case["patients"].loc[4, "split"] = "train"
    case["slices"].loc[rows_of(case, "P04"), "split"] = "train"
    assert run(case)["checks"]["patient"]["leaks"] == [{"patients": ["P04 (train)"], "share": "site ambl"}]


def test_statistics_pooled_over_patients_are_a_leak(case):
    case["quantiles"][:, a.SCOPES.index("channel")] = case["quantiles"][:, a.SCOPES.index("channel")].mean(0)
    result = run(case)
    assert failed(result) == {"statistics"}
    (leak,) = result["checks"]["statistics"]["leaks"]
    assert len(leak["patients"]) == COUNT and leak["share"].startswith("channel ")


def test_slices_without_structure_are_counted_and_resemble_nothing(case):
    case["images"][rows_of(case, "P00")[0]] = 7
    case["images"][rows_of(case, "P03")[0]] = 9
    found = run(case)["checks"]["near_duplicates"]
    assert found["slices_without_structure"] == 2 and found["leaks"] == []


def test_many_leaks_are_told_by_the_first_and_their_number(case):
    case["images"][:] = case["images"][0]
    result = run(case)
    across = COUNT * (COUNT - 1) // 2 - 45 - 3 * 10  # pairs, less those within train and within the other three
    assert result["checks"]["near_duplicates"]["leaks_in_all"] == across
    assert len(result["checks"]["near_duplicates"]["leaks"]) == a._LISTED
    with pytest.raises(a.LeakageError, match=f"near_duplicates: {across - 5} more"):
        a.check(result)


def test_a_fingerprint_does_not_know_gain_offset_or_slow_shading(rng):
    image = rng.normal(1000, 100, (1, 3, 64, 64))
    shading = np.array([0.5, 2.0, 3.0])[:, None, None] * np.linspace(0, 40, 64)
    gains, offsets = np.array([2.0, 0.5, 7.0])[:, None, None], np.array([0, 50, 900])[:, None, None]
    plain, other = a._fingerprints(image)[0], a._fingerprints(gains * image + offsets + shading)[0]
    assert np.sum(plain * plain) == pytest.approx(1)
    assert np.sum(plain * other) > 0.99


def test_block_means_are_means_of_blocks_whatever_the_size(rng):
    image = rng.integers(0, 65535, (2, 96, 96)).astype(np.uint16)
    np.testing.assert_allclose(a._block_means(image, 32), image.reshape(2, 32, 3, 32, 3).mean((2, 4)))
    uneven = a._block_means(image[:, :50, :50], 32)
    assert uneven.shape == (2, 32, 32) and uneven[0, 0, 0] == image[0, 0, 0]
    assert uneven[0, 31, 31] == image[0, 48:50, 48:50].mean()
    assert (
        a._block_means(image[:, :20, :20], 32) is not None and a._block_means(image[:, :20, :20], 32).shape[1] == 20
    )


def test_small_shifts_are_followed_and_larger_ones_are_not(rng):
    prints = a._unit(rng.standard_normal((4, 32, 32)))
    assert a._shifted_correlation(prints, prints, 0).tolist() == [1.0] * 4
    moved = np.roll(prints, (2, -1), axis=(1, 2))
    assert a._shifted_correlation(prints, moved, 2).tolist() == [1.0] * 4
    assert a._shifted_correlation(prints, moved, 1).max() < 0.2
    assert a._shifted_correlation(prints[:0], moved[:0], 1).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"files": c["files"].drop(columns="series_uid")}, "files: lacks series_uid"),
        (lambda c: c | {"images": c["images"][:-1]}, "images: expected .* slices as the table has, found"),
        (
            lambda c: c | {"patients": c["patients"][1:]},
            "P00: not in both the patient table and the slices; 1 such",
        ),
        (lambda c: c | {"files": c["files"][2:]}, "P00: in use, but no files are listed; 2 such"),
    ],
    ids=["columns", "images", "patients", "files"],
)
def test_tables_that_do_not_belong_together_are_refused(case, change, message):
    with pytest.raises(ValueError, match=message):
        run(change(case))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"near_duplicate": 0.3}, "coarse <= near_duplicate"), ({"shift_px": 16}, "between 0 and 15")],
    ids=str,
)
def test_thresholds_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        a.AuditConfig(**values)
