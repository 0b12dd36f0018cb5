"""N4 against a field that is known."""

import numpy as np
import pytest

from her2core.bias_field import N4Config, body_mask, correct, log_bias_field
from her2core.phantom import make_patient
from her2core.volume import Geometry

CONFIG = N4Config()


@pytest.fixture(scope="module")
def patient():
    return make_patient(3, 1, "spy2", bayes_auc=0.95)


@pytest.fixture(scope="module")
def field(patient):
    return log_bias_field(patient.series.array[0], patient.series.geometry, CONFIG)


def test_the_estimated_field_follows_the_true_one(patient, field):
    inside = patient.body_mask
    r = np.corrcoef(field[inside], np.log(patient.bias_field[inside]))[0, 1]
    assert r > 0.6


def test_the_field_is_zero_on_average_in_the_body_and_repeats_to_the_bit(patient, field):
    pre = patient.series.array[0]
    assert abs(field[body_mask(pre)].mean()) < 1e-5
    np.testing.assert_array_equal(log_bias_field(pre, patient.series.geometry, CONFIG), field)


def test_one_field_for_all_phases_leaves_enhancement_alone(patient, field):
    def enhancement(array):
        pre, early = (array[k][patient.lesion_mask].astype(float).mean() for k in (0, 2))
        return (early - pre) / pre

    raw = patient.series.array
    assert enhancement(correct(raw, field)) == pytest.approx(enhancement(raw), rel=0.01)


def test_no_field_changes_nothing(patient):
    raw = patient.series.array
    np.testing.assert_array_equal(correct(raw, np.zeros(raw.shape[1:], np.float32)), raw)


def test_an_image_without_a_body_is_refused():
    with pytest.raises(ValueError, match="N4 needs a body"):
        log_bias_field(np.zeros((8, 16, 16), np.uint16), Geometry((2, 1, 1)), CONFIG)
