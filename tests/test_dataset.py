"""Slices, batches and augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_samples import LEVELS, PATIENTS, sealed, write_prepared

from her2core import dataset
from her2core.dataset import (
    AugmentConfig,
    Prepared,
    Slices,
    augment,
    draw_augmentation,
    epoch_batches,
    read_prepared,
)
from her2core.normalize import PHASES, SCOPES, Window, knots, learn_standard, piecewise


def make_slices(patients=7, each=3):
    patient = np.repeat([f"p{k}" for k in range(patients)], each)
    split = np.repeat(["train"] * (patients - 2) + ["test"] * 2, each)
    images = torch.arange(patients * each, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).clone()
    return Slices(images, patient, split, np.repeat(np.arange(patients) % 2, each))


def test_a_split_holds_its_patients_and_no_other():
    part = make_slices().of_split("test")
    assert set(part.patient) == {"p5", "p6"}
    assert part.images[:, 0, 0, 0].tolist() == list(range(15, 21))


def test_an_empty_split_is_an_error_that_lists_the_splits():
    with pytest.raises(ValueError, match="no slices in split external; splits here: test, train"):
        make_slices().of_split("external")


def test_several_splits_keep_the_slices_in_their_order():
    data = make_slices()
    both = data.of_split("test", "train")
    assert both.patient.tolist() == data.patient.tolist()


def test_scattered_slices_of_a_patient_are_refused():
    data = make_slices()
    scattered = Slices(data.images, data.patient[::-1][np.r_[1, 0, 3, 2, 4:21]], data.split, data.label)
    scattered.patient[[0, 5]] = scattered.patient[[5, 0]]
    with pytest.raises(ValueError, match="must stand together"):
        scattered.patients()


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_an_epoch_feeds_every_patient_once(batch_size, generator):
    data = make_slices()
    rows = torch.cat(epoch_batches(data, batch_size, generator))
    assert sorted(data.patient[rows]) == sorted(set(data.patient))


def test_epochs_use_all_slices_in_the_long_run(generator):
    data = make_slices()
    seen = {int(r) for _ in range(60) for r in torch.cat(epoch_batches(data, 4, generator))}
    assert seen == set(range(21))


def test_no_batch_is_left_with_one_patient(generator):
    assert min(len(b) for b in epoch_batches(make_slices(9), 4, generator)) >= 4


def test_one_patient_is_no_epoch(generator):
    with pytest.raises(ValueError, match="two patients or more, found 1"):
        epoch_batches(make_slices(3).of_split("train"), 4, generator)


def test_no_augmentation_gives_the_image_back(generator):
    images = torch.randint(0, 256, (4, 3, 9, 9), dtype=torch.uint8, generator=generator)
    maps = draw_augmentation(4, AugmentConfig(0, 0, 0, False), generator)
    torch.testing.assert_close(augment(images, maps), images / 255, atol=1e-5, rtol=0)


def test_a_quarter_turn_is_a_quarter_turn():
    image = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    image[0, :, 0, 2] = 255
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    turned = augment(image, quarter)[0, 0]
    assert turned.argmax().item() in (2 * 5 + 0, 2 * 5 + 4)
    assert turned.sum().item() == pytest.approx(1, abs=1e-4)


def test_all_phases_of_a_slice_move_alike(generator):
    one = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=generator)
    out = augment(one.repeat(1, 3, 1, 1), draw_augmentation(2, AugmentConfig(), generator))
    torch.testing.assert_close(out[:, 0], out[:, 2], rtol=0, atol=0)


def test_the_same_generator_state_draws_the_same_augmentation():
    draws = [draw_augmentation(5, AugmentConfig(), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_prepared_arrays_arrive_with_their_labels_under_a_window_or_its_name(tmp_path, rng):
    prepared = Prepared.open(write_prepared(tmp_path, rng))
    data = prepared.under(Window.parse("channel_minmax"))
    assert data.patient[:5].tolist() == ["007", "007", "a", "a", "b"] and data.label[:5].tolist() == [1, 1, 0, 0, 0]
    assert data.split[:5].tolist() == ["train", "train", "test", "test", "train"]
    assert data.images.shape == (605, 3, 4, 4)
    assert torch.equal(data.images, prepared.under("channel_minmax").images)


def test_what_was_prepared_opens_as_it_lies_on_disk(tmp_path, rng):
    prepared = Prepared.open(str(write_prepared(tmp_path, rng)))
    for name in ("images", "quantiles", "moments"):
        found, stored = getattr(prepared, name), np.load(tmp_path / f"{name}_raw.npy")
        assert isinstance(found, np.memmap) and found.dtype == stored.dtype
        np.testing.assert_array_equal(found, stored)
    np.testing.assert_array_equal(prepared.masks, np.load(tmp_path / "masks.npy"))
    assert prepared.masks.dtype == bool and prepared.levels.tolist() == list(LEVELS)
    assert prepared.dataset[:5].tolist() == ["spy1", "spy1", "spy2", "spy2", "spy1"]
    assert (prepared.pixel_mm == 2.0).all() and prepared.pixel_mm.shape == prepared.label.shape == (605,)
    assert prepared.folder == tmp_path and prepared.bias_field == "raw"


def test_corrected_images_are_opened_by_the_name_of_their_bias_field(tmp_path, rng):
    write_prepared(tmp_path, rng)
    for name in ("images", "quantiles", "moments"):
        np.save(tmp_path / f"{name}_n4.npy", np.load(tmp_path / f"{name}_raw.npy") + 1)
    raw, n4 = Prepared.open(sealed(tmp_path)), Prepared.open(tmp_path, "n4")
    np.testing.assert_array_equal(n4.images, raw.images + 1)
    np.testing.assert_array_equal(n4.quantiles, raw.quantiles + 1)
    np.testing.assert_array_equal(n4.moments, raw.moments + 1)


def test_a_quantile_is_the_stored_one_of_its_scope_phase_and_level(tmp_path, rng):
    prepared, stored = Prepared.open(write_prepared(tmp_path, rng)), np.load(tmp_path / "quantiles_raw.npy")
    assert (stored[:, 0] != stored[:, 1]).any() and (stored[:, 1] != stored[:, 2]).any()
    for s, scope in enumerate(SCOPES):
        for p, phase in enumerate(PHASES):
            for column, level in enumerate(LEVELS):
                found = prepared.quantile(scope, phase, level)
                np.testing.assert_array_equal(found, stored[:, s, p, column])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("volume", "early", 0.98), "no stored quantile of 'volume': expected one of slice, channel, global"),
        (("channel", "post", 0.98), "no stored quantile of 'post': expected one of pre, early, late"),
        (("channel", "early", 0.97), r"no stored quantile \[0.97\].*add it to prepare.quantiles"),
    ],
)
def test_a_quantile_that_is_not_stored_is_refused_by_name(tmp_path, rng, asked, message):
    with pytest.raises(ValueError, match=message):
        Prepared.open(write_prepared(tmp_path, rng)).quantile(*asked)


def test_the_middle_is_one_slice_of_each_patient_in_the_tables_order(tmp_path, rng):
    assert Prepared.open(write_prepared(tmp_path, rng)).middle().tolist() == [1, 3, 4, 305]
    other_order = [PATIENTS[1], ("zero", "test", 0, 5), PATIENTS[0], ("B", "test", 1, 3)]  # not the alphabet's
    prepared = Prepared.open(write_prepared(tmp_path, rng, other_order))
    assert prepared.middle().tolist() == [1, 4, 8, 10]
    assert prepared.patient[prepared.middle()].tolist() == ["a", "zero", "007", "B"]


@pytest.mark.parametrize("name", ["channel_q98", "slice_minmax", "global_zscore", "channel_nyul"])
def test_some_rows_under_a_window_are_those_of_all_slices(tmp_path, rng, name):
    prepared = Prepared.open(write_prepared(tmp_path, rng))
    np.save(tmp_path / "neighbours_raw.npy", rng.integers(0, 900, (605, 2, 3, 4, 4)).astype(np.uint16))
    sealed(tmp_path)
    for neighbours in (False, True):
        everything = prepared.under(name, neighbours=neighbours)
        for rows in (np.array([604, 3, 0]), prepared.middle(), np.arange(20, 600), np.array([2])):
            part = prepared.under(name, neighbours=neighbours, rows=rows)
            assert torch.equal(part.images, everything.images[torch.from_numpy(rows)])
            for column in ("patient", "split", "label"):
                assert getattr(part, column).tolist() == getattr(everything, column)[rows].tolist()


def learnt_from(prepared, window):
    """Nyúl's standard of the training patients; None where a window learns nothing."""
    quantiles, names = prepared.training
    return learn_standard(window, quantiles, LEVELS, names) if window.method == "nyul" else None


@pytest.mark.parametrize("name", ["channel_q98", "global_zscore", "channel_nyul"])
def test_slices_are_those_of_the_map_in_every_piece(tmp_path, rng, name):
    prepared, raw = Prepared.open(write_prepared(tmp_path, rng)), np.load(tmp_path / "images_raw.npy")
    shown = prepared.under(name).images
    quantiles, moments = (np.load(tmp_path / f"{n}_raw.npy") for n in ("quantiles", "moments"))
    window = Window.parse(name)
    standard = learnt_from(prepared, window)
    assert (standard is None) == (name != "channel_nyul")
    for row in (0, 2, 511, 512, 604):  # each as a case of its own
        one = slice(row, row + 1)
        alone = piecewise(raw[one], *knots(window, quantiles[one], LEVELS, moments[one], standard))
        np.testing.assert_array_equal(shown[one].numpy(), alone)


def test_the_standard_is_learnt_on_training_patients_each_counting_once(tmp_path, rng):
    prepared = Prepared.open(write_prepared(tmp_path, rng))
    window, quantiles = Window.parse("channel_nyul"), np.load(tmp_path / "quantiles_raw.npy")
    learnt = learnt_from(prepared, window)
    np.testing.assert_array_equal(learnt, learn_standard(window, quantiles[[0, 4]], LEVELS, ["007", "b"]))
    before = prepared.under(window).of_split("train").images
    strangers = np.r_[2, 3, 5:605]
    quantiles[strangers] = quantiles[strangers][:, ::-1, ::-1] // 3 + np.arange(len(LEVELS), dtype=np.uint16) ** 2
    np.save(tmp_path / "quantiles_raw.npy", quantiles)
    changed = Prepared.open(sealed(tmp_path))
    np.testing.assert_array_equal(learnt_from(changed, window), learnt)
    assert torch.equal(changed.under(window).of_split("train").images, before)


def test_a_cohort_without_training_patients_has_no_standard(tmp_path, rng):
    table = write_prepared(tmp_path, rng) / "slices.csv"
    table.write_text(table.read_text().replace("train", "external"))
    prepared = Prepared.open(sealed(tmp_path))
    with pytest.raises(ValueError, match="channel_nyul: no training patient"):
        prepared.under("channel_nyul")
    assert len(prepared.under("channel_q98").images) == 605


def test_a_training_patient_without_contrast_is_named(tmp_path, rng):
    prepared = Prepared.open(write_prepared(tmp_path, rng, gains={"b": 0}))
    with pytest.raises(ValueError, match="^b: no contrast"):
        prepared.under("channel_nyul")


@pytest.mark.parametrize("name", ["images", "quantiles", "moments"])
def test_arrays_that_disagree_are_refused(tmp_path, rng, name):
    path = write_prepared(tmp_path, rng) / f"{name}_raw.npy"
    np.save(path, np.load(path)[1:])
    counts = ", ".join(f"{605 - (kind == name)} {kind}" for kind in ("images", "quantiles", "moments"))
    with pytest.raises(ValueError, match=f"605 rows, {counts}; run the stage prepare again"):
        Prepared.open(sealed(tmp_path))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flipped,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "objects": lambda path: (
        np.save(path, np.array([{}]), allow_pickle=True) if path.suffix == ".npy" else flipped(path)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["images_raw.npy", "quantiles_raw.npy", "moments_raw.npy", "levels.npy", "slices.csv"]
)
def test_a_file_that_is_not_what_the_stage_wrote_is_refused_by_name(tmp_path, rng, name, damage):
    write_prepared(tmp_path, rng)
    DAMAGES[damage](tmp_path / name)
    again = f"expected what the stage prepare wrote; delete {tmp_path} and run the stage prepare"
    with pytest.raises(ValueError, match=f"{name}: (its SHA-256 is .*, in digests.csv .*|no such file), {again}"):
        Prepared.open(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["masks", "neighbours"])
def test_what_is_opened_later_is_compared_too(tmp_path, rng, name, damage):
    path = write_prepared(tmp_path, rng) / {"masks": "masks.npy"}.get(name, "neighbours_raw.npy")
    np.save(tmp_path / "neighbours_raw.npy", np.zeros((605, 2, 3, 4, 4), np.uint16))
    prepared = Prepared.open(sealed(tmp_path))
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=f"{path.name}: "):
        getattr(prepared, name)


def test_a_file_that_changes_after_it_was_opened_is_refused_when_it_is_opened_again(tmp_path, rng):
    Prepared.open(write_prepared(tmp_path, rng))
    flipped(tmp_path / "moments_raw.npy")
    with pytest.raises(ValueError, match="moments_raw.npy: its SHA-256"):
        Prepared.open(tmp_path)


def test_a_file_is_read_for_its_digest_once(tmp_path, rng, monkeypatch):
    write_prepared(tmp_path, rng)
    digested, file_digest = [], dataset.file_digest
    monkeypatch.setattr(dataset, "file_digest", lambda path: digested.append(path.name) or file_digest(path))
    for _ in range(2):
        Prepared.open(tmp_path)
    names = ["slices.csv", "images_raw.npy", "quantiles_raw.npy", "moments_raw.npy", "levels.npy"]
    assert digested == names


@pytest.mark.parametrize(
    "content", ["", "file,bytes\nlevels.npy,3\n", "\udcff\udcfe"], ids=["empty", "no digests", "no text"]
)
def test_a_table_of_digests_that_is_none_is_refused(tmp_path, rng, content):
    table = write_prepared(tmp_path, rng) / "digests.csv"
    table.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"(digests|slices).csv: .*; delete .* and run the stage prepare"):
        Prepared.open(tmp_path)


def test_an_array_of_objects_is_refused_also_where_its_digest_is_right(tmp_path, rng):
    DAMAGES["objects"](write_prepared(tmp_path, rng) / "moments_raw.npy")
    with pytest.raises(ValueError, match="moments_raw.npy: .*, expected what the stage prepare wrote; delete"):
        Prepared.open(sealed(tmp_path))


def test_a_table_beside_the_arrays_is_read_as_asked_and_compared_too(tmp_path, rng):
    path = write_prepared(tmp_path, rng) / "kinetics.csv"
    path.write_text("patient\n007\n")
    assert read_prepared(sealed(tmp_path), "kinetics.csv", Path.read_text) == "patient\n007\n"
    path.write_text("patient\n008\n")
    with pytest.raises(ValueError, match="kinetics.csv: its SHA-256"):
        read_prepared(tmp_path, "kinetics.csv", Path.read_text)


def test_a_folder_that_no_stage_has_filled_is_named(tmp_path):
    with pytest.raises(
        ValueError,
        match="nothing/digests.csv: no such file, expected .*; delete .*nothing and run the stage prepare",
    ):
        Prepared.open(tmp_path / "nothing")


def test_an_unknown_bias_field_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bias_field='n5': expected one of raw, n4"):
        Prepared.open(tmp_path, "n5")


def test_neighbours_stand_beside_their_slice_phase_by_phase_under_its_window(tmp_path, rng):
    images = rng.integers(0, 900, (2, 3, 4, 4)).astype(np.uint16)
    beside = rng.integers(0, 900, (2, 2, 3, 4, 4)).astype(np.uint16)
    quantiles = np.zeros((2, 3, 3, 2), np.uint16)
    quantiles[..., 1] = 1000
    np.save(tmp_path / "images_raw.npy", images)
    np.save(tmp_path / "quantiles_raw.npy", quantiles)
    np.save(tmp_path / "moments_raw.npy", np.ones((2, 3, 3, 2), np.float32))
    np.save(tmp_path / "levels.npy", [0.0, 1.0])
    rows = "patient,split,label,dataset,pixel_mm\na,train,0,spy1,2.0\nb,train,1,spy1,2.0\n"
    (tmp_path / "slices.csv").write_text(rows)
    prepared = Prepared.open(sealed(tmp_path))
    with pytest.raises(ValueError, match="neighbours_raw.npy: no such file; adjacent slices need"):
        prepared.under("channel_minmax", neighbours=True)
    np.save(tmp_path / "neighbours_raw.npy", beside)
    sealed(tmp_path)
    found = prepared.under("channel_minmax", neighbours=True).images.numpy()
    plain = prepared.under("channel_minmax").images.numpy()
    assert found.shape == (2, 9, 4, 4)
    np.testing.assert_array_equal(found[:, 1::3], plain)
    np.testing.assert_array_equal(found[:, ::3], np.rint(beside[:, 0] / np.float32(1000) * 255).astype(np.uint8))
    np.testing.assert_array_equal(found[:, 2::3], np.rint(beside[:, 1] / np.float32(1000) * 255).astype(np.uint8))


def test_some_patients_are_drawn_whole_and_a_seed_draws_its_own():
    patient = np.repeat([f"p{k}" for k in range(20)], 3)
    slices = Slices(torch.arange(60)[:, None, None, None], patient, np.full(60, "train"), np.zeros(60, int))
    same, again = slices.some_patients(8), slices.some_patients(8)
    assert np.array_equal(same.patient, again.patient)
    assert len(same.patients()[0]) == 8 and set(same.patients()[1]) == {3}
    assert torch.equal(same.images.flatten(), torch.from_numpy(np.flatnonzero(np.isin(patient, same.patient))))
    draws = {tuple(slices.some_patients(8, seed).patient) for seed in range(5)} | {tuple(same.patient)}
    assert len(draws) == 6


def test_more_patients_than_there_are_are_refused():
    slices = Slices(torch.zeros(2, 1, 1, 1), np.array(["a", "b"]), np.full(2, "train"), np.zeros(2, int))
    with pytest.raises(ValueError, match="3 patients wanted, but there are 2"):
        slices.some_patients(3)
