"""Slices, batches and augmentation."""

import numpy as np
import pytest
import torch

from her2core.dataset import AugmentConfig, Slices, augment, draw_augmentation, epoch_batches, load_slices
from her2core.normalize import Window


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
    with pytest.raises(ValueError, match="no slices in split 'external'; splits here: test, train"):
        make_slices().of_split("external")


def test_scattered_slices_of_a_patient_are_refused():
    data = make_slices()
    scattered = Slices(data.images, data.patient[::-1][np.r_[1, 0, 3, 2, 4:21]], data.split, data.her2)
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


def write_prepared(folder, rows=2):
    np.save(folder / "images_raw.npy", np.full((2, 3, 4, 4), 50, np.uint16))
    np.save(folder / "quantiles_raw.npy", np.tile(np.array([0, 100], np.uint16), (2, 3, 3, 1)))
    np.save(folder / "levels.npy", np.array([0.0, 1.0]))
    lines = ["patient,split,her2", "007,train,1", "a,test,0"][: rows + 1]
    (folder / "slices.csv").write_text("\n".join(lines) + "\n")


def test_prepared_arrays_arrive_windowed_with_their_labels(tmp_path):
    write_prepared(tmp_path)
    data = load_slices(tmp_path, Window.parse("channel_minmax"))
    assert data.patient.tolist() == ["007", "a"] and data.her2.tolist() == [1, 0]
    assert (data.images == 128).all()  # 127.5 to the even neighbour


def test_arrays_that_disagree_are_refused(tmp_path):
    write_prepared(tmp_path, rows=1)
    with pytest.raises(ValueError, match="1 rows, 2 images, 2 quantiles"):
        load_slices(tmp_path, Window.parse("channel_minmax"))


def test_an_unknown_bias_field_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bias_field='n5': expected one of raw, n4"):
        load_slices(tmp_path, Window.parse("channel_minmax"), "n5")
