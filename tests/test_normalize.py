"""Windows: names, exact quantiles, 8 bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2core.normalize import SCOPES, Window, exact_quantiles, limits, to_8bit, to_8bit_torch

LEVELS = (0.0, 0.02, 0.95, 0.98, 0.99, 1.0)
volumes = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9))


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("channel_q98", Window("channel", 0, 0.98)),
        ("global_q02_q99", Window("global", 0.02, 0.99)),
        ("slice_minmax", Window("slice", 0, 1)),
        ("channel_q995", Window("channel", 0, 0.995)),
    ],
)
def test_a_name_says_scope_and_limits(name, window):
    assert Window.parse(name) == window


@pytest.mark.parametrize("name", ["channel", "volume_q98", "channel_q9", "channel-q98", "slice_minmax_", ""])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="expected scope_limits such as channel_q98"):
        Window.parse(name)


def test_a_window_upside_down_is_refused():
    with pytest.raises(ValueError, match="0 <= lower < upper <= 1"):
        Window.parse("channel_q99_q02")


@settings(max_examples=200, deadline=None)
@given(volumes, st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_quantiles_are_numpys_inverted_cdf(values, levels):
    levels = [round(q, 3) for q in levels]
    expected = np.quantile(values.ravel(), levels, method="inverted_cdf")
    np.testing.assert_array_equal(exact_quantiles(values, levels), expected)


@pytest.mark.parametrize("values", [np.zeros(3, np.int16), np.zeros(0, np.uint16)])
def test_quantiles_of_anything_but_uint16_are_refused(values):
    with pytest.raises(ValueError, match="non-empty uint16"):
        exact_quantiles(values, [0.5])


def stored(image):
    """Quantiles as the preparation stores them, computed the slow way."""
    channel = np.stack([np.quantile(p, LEVELS, method="inverted_cdf") for p in image])
    whole = np.broadcast_to(np.quantile(image, LEVELS, method="inverted_cdf"), channel.shape)
    return np.stack([{"slice": whole, "channel": channel, "global": whole}[s] for s in SCOPES])[None]


@pytest.mark.parametrize("name", ["channel_q98", "global_q99", "slice_minmax", "channel_q02_q95"])
def test_a_window_equals_its_definition_voxel_by_voxel(name, rng):
    image = rng.integers(0, 4000, (3, 8, 8), dtype=np.uint16)
    window = Window.parse(name)
    lo, hi = limits(window, stored(image), LEVELS)
    for phase in range(3):
        of = image[phase] if window.scope == "channel" else image
        low, high = np.quantile(of, (window.lower, window.upper), method="inverted_cdf")
        expected = np.round(255 * np.clip((image[phase].astype(float) - low) / (high - low), 0, 1))
        np.testing.assert_allclose(to_8bit(image[None], lo, hi)[0, phase], expected, atol=1e-6)


def test_a_quantile_that_was_not_stored_is_an_error_that_says_where_to_add_it():
    with pytest.raises(ValueError, match=r"no stored quantile \[0.97\].*prepare.quantiles"):
        limits(Window.parse("channel_q97"), np.zeros((1, 3, 3, 6)), LEVELS)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.uint16, (2, 3, 4, 5)), st.integers(0, 65535), st.integers(0, 65535))
def test_numpy_and_torch_agree_to_the_byte(images, low, high):
    lo, hi = (np.full((2, 3), v, np.float32) for v in (low, high))
    ours = to_8bit(images, lo, hi)
    theirs = to_8bit_torch(torch.from_numpy(images.astype(np.int32)), torch.from_numpy(lo), torch.from_numpy(hi))
    np.testing.assert_array_equal(ours, theirs.numpy())


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.uint16, (1, 3, 4, 4), elements=st.integers(0, 5000)), st.integers(2, 13))
def test_a_window_from_the_images_own_quantiles_ignores_the_gain(images, gain):
    def windowed(x):
        return to_8bit(x, *limits(Window.parse("channel_q98"), stored(x[0]), LEVELS))

    difference = windowed(images).astype(int) - windowed((images * gain).astype(np.uint16))
    assert np.abs(difference).max() <= 1  # a last bit of the division may differ


def test_darker_never_becomes_brighter(rng):
    image = np.sort(rng.integers(0, 65536, 300)).astype(np.uint16).reshape(1, 3, 10, 10)
    out = to_8bit(image, np.full((1, 3), 500, np.float32), np.full((1, 3), 50_000, np.float32)).ravel()
    assert (np.diff(out.astype(int)) >= 0).all() and out[0] == 0 and out[-1] == 255


def test_an_image_without_contrast_becomes_black():
    flat = np.full((1, 3, 2, 2), 700, np.uint16)
    limit = np.full((1, 3), 700, np.float32)
    assert (to_8bit(flat, limit, limit) == 0).all()
