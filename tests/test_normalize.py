"""Maps to 8 bits: names, exact statistics, every arm against its definition, and what never changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2core.normalize import (
    LANDMARKS,
    SCOPES,
    Window,
    knots,
    learn_standard,
    limits,
    line,
    piecewise,
    statistics,
)

LEVELS = (0.0, 0.01, 0.02, *(k / 10 for k in range(1, 10)), 0.95, 0.98, 0.99, 1.0)
QUANTILE = [f"{scope}_{ends}" for scope in SCOPES for ends in ("minmax", "q95", "q98", "q99", "q02_q98")]
ARMS = [*QUANTILE, *(f"{scope}_zscore" for scope in SCOPES), "channel_nyul", "global_nyul"]
volumes = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9))
images = hnp.arrays(np.uint16, (1, 3, 4, 5))
few = settings(max_examples=25, deadline=None)


def stored(image):
    """Quantiles and moments of one slice `(P, H, W)` as the preparation stores them, computed the slow way."""

    def of(values):
        return np.quantile(values, LEVELS, method="inverted_cdf"), np.array([values.mean(), values.std()])

    channel = [of(phase) for phase in image]
    scopes = {"slice": [of(image)] * 3, "channel": channel, "global": [of(image)] * 3}
    quantiles, moments = (np.array([[phase[k] for phase in scopes[s]] for s in SCOPES])[None] for k in (0, 1))
    return quantiles.astype(np.uint16), moments.astype(np.float32)


def training_patients():
    rng = np.random.default_rng(7)
    return [rng.gamma(2, scale, (3, 8, 8)).astype(np.uint16) for scale in (50, 400, 3000)]


def standard_of(window):
    if window.method != "nyul":
        return None
    return learn_standard(window, np.concatenate([stored(v)[0] for v in training_patients()]), LEVELS, "abc")


STANDARD = {name: standard_of(Window.parse(name)) for name in ARMS}


def mapped(name, image):
    """One slice `(1, P, H, W)` under an arm, by its own statistics."""
    quantiles, moments = stored(image[0])
    return piecewise(image, *knots(Window.parse(name), quantiles, LEVELS, moments, STANDARD.get(name)))


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("channel_q98", Window("channel", 0, 0.98)),
        ("global_q02_q99", Window("global", 0.02, 0.99)),
        ("slice_minmax", Window("slice", 0, 1)),
        ("channel_q995", Window("channel", 0, 0.995)),
        ("global_zscore", Window("global", -1, 5, "zscore")),
        ("channel_nyul", Window("channel", 0.01, 0.99, "nyul")),
    ],
)
def test_a_name_says_scope_and_limits(name, window):
    assert Window.parse(name) == window


@pytest.mark.parametrize(
    "name", ["channel", "volume_q98", "channel_q9", "channel-q98", "slice_minmax_", "", "channel_zscore_q98"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="expected scope_limits such as channel_q98"):
        Window.parse(name)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (("channel", 0.99, 0.02), "0 <= lower < upper <= 1, found 0.99, 0.02"),
        (("channel", -1, 5), "0 <= lower < upper <= 1, found -1, 5"),
        (("channel", 5, -1, "zscore"), "-inf <= lower < upper <= inf, found 5, -1"),
        (("volume", 0, 1), "scope='volume': expected one of slice, channel, global"),
        (("channel", 0, 1, "histogram"), "method='histogram': expected quantile, zscore or nyul"),
        (("slice", 0.01, 0.99, "nyul"), "expected channel_nyul or global_nyul"),
    ],
)
def test_a_window_that_cannot_be_is_refused(window, message):
    with pytest.raises(ValueError, match=message):
        Window(*window)


@settings(max_examples=150, deadline=None)
@given(volumes, st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_quantiles_are_numpys_inverted_cdf_and_moments_numpys_mean_and_deviation(values, levels):
    levels = [round(q, 3) for q in levels]
    quantiles, moments = statistics(values, levels)
    np.testing.assert_array_equal(quantiles, np.quantile(values, levels, method="inverted_cdf"))
    assert quantiles.dtype == np.uint16 and moments.dtype == np.float64
    np.testing.assert_allclose(moments, [values.mean(), values.std()], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 101, 4096, 99_991])
@pytest.mark.parametrize("top", [0, 1, 3, 1000, 32767, 32768, 65535])
def test_stored_levels_are_numpys_on_few_values_many_values_and_ties(size, top, rng):
    values = rng.integers(0, top, size, dtype=np.uint16, endpoint=True)
    np.testing.assert_array_equal(statistics(values, LEVELS)[0], np.quantile(values, LEVELS, method="inverted_cdf"))


def test_moments_of_a_bright_constant_volume_are_exact():
    assert statistics(np.full((50, 256, 256), 65535, np.uint16), LEVELS)[1].tolist() == [65535, 0]


def test_statistics_read_an_array_that_is_neither_contiguous_nor_writable(rng):
    values = rng.integers(0, 500, (6, 7, 8), dtype=np.uint16)
    values.flags.writeable = False
    for part in (values, values[::2, :, ::3], values.swapaxes(0, 2)):
        np.testing.assert_array_equal(statistics(part, LEVELS)[0], statistics(part.copy(), LEVELS)[0])


@pytest.mark.parametrize("values", [np.array([-5, 3], np.int16), np.zeros(3, np.float32), np.zeros(0, np.uint16)])
def test_statistics_of_anything_but_uint16_are_refused(values):
    with pytest.raises(ValueError, match="non-empty uint16"):
        statistics(values, [0.5])


@pytest.mark.parametrize("name", QUANTILE)
def test_a_quantile_window_equals_its_formula_to_the_byte(name, rng):
    image = rng.gamma(2, 300, (1, 3, 16, 16)).astype(np.uint16)
    window = Window.parse(name)
    lo, hi = limits(window, stored(image[0])[0], LEVELS)
    for phase in range(3):
        of = image[0, phase] if window.scope == "channel" else image
        low, high = np.quantile(of, (window.lower, window.upper), method="inverted_cdf").astype(np.float32)
        assert (lo[0, phase], hi[0, phase]) == (low, high)
        unit = np.clip((image[0, phase].astype(np.float32) - low) / (high - low), 0, 1)
        expected = np.rint(unit * np.float32(255))
        np.testing.assert_array_equal(piecewise(image, *line(lo, hi))[0, phase], expected)
        np.testing.assert_array_equal(mapped(name, image)[0, phase], expected)


@pytest.mark.parametrize("name", ["slice_zscore", "channel_zscore", "global_zscore"])
def test_a_zscore_window_goes_from_one_deviation_below_the_mean_to_five_above(name, rng):
    image = rng.gamma(2, 300, (1, 3, 16, 16)).astype(np.uint16)
    image[0, 1, 0, 0] = 60_000  # more than five deviations above
    for phase in range(3):
        of = (image[0, phase] if name.startswith("channel") else image).astype(float)
        expected = 255 * np.clip(((image[0, phase] - of.mean()) / of.std() + 1) / 6, 0, 1)
        np.testing.assert_allclose(mapped(name, image)[0, phase], expected, rtol=0, atol=0.501)


@pytest.mark.parametrize("name", ["channel_nyul", "global_nyul"])
def test_nyuls_map_interpolates_between_the_landmarks(name, rng):
    image = rng.gamma(3, 500, (1, 3, 16, 16)).astype(np.uint16)
    for phase in range(3):
        wanted = []
        for patient in [*training_patients(), image[0]]:
            of = patient[phase] if name == "channel_nyul" else patient
            wanted.append(np.quantile(of, LANDMARKS, method="inverted_cdf").astype(float))
        standard = np.mean([np.interp(q, q[[0, -1]], (0, 255)) for q in wanted[:-1]], axis=0)
        expected = np.interp(image[0, phase], wanted[-1], standard)
        np.testing.assert_allclose(mapped(name, image)[0, phase], expected, rtol=0, atol=0.501)


def test_the_only_training_patient_is_the_standard_and_mapped_by_a_straight_line(rng):
    image = rng.gamma(3, 500, (1, 3, 16, 16)).astype(np.uint16)
    window, quantiles = Window.parse("channel_nyul"), stored(image[0])[0]
    alone = knots(window, quantiles, LEVELS, standard=learn_standard(window, quantiles, LEVELS, ["a"]))
    difference = piecewise(image, *alone).astype(int) - mapped("channel_q01_q99", image)
    assert np.abs(difference).max() <= 1  # a half may be rounded the other way


def test_nyuls_method_makes_two_scanners_alike(rng):
    image = rng.gamma(3, 500, (1, 3, 32, 32)).astype(np.uint16)
    other = (3 * image.astype(float) ** 0.8 + 40).astype(np.uint16)  # another gain, offset and contrast
    apart = {
        name: np.abs(mapped(name, image).astype(int) - mapped(name, other)).max()
        for name in ("channel_nyul", "channel_q01_q99")
    }
    assert apart["channel_nyul"] <= 4 < 10 < apart["channel_q01_q99"]


def with_landmarks(values):
    """A map of one phase whose landmarks lie at the given intensities; a standard of 0, 10, …, 90, 255."""
    quantiles = np.zeros((1, 3, 1, len(LEVELS)), np.uint16)
    quantiles[..., [LEVELS.index(q) for q in LANDMARKS]] = values
    standard = np.array([[*range(0, 100, 10), 255.0]])
    return knots(Window.parse("channel_nyul"), quantiles, LEVELS, standard=standard)


def test_landmarks_that_coincide_keep_black_black_white_white_and_share_the_middle():
    maps = with_landmarks([0, 0, 0, 30, 40, 40, 40, 70, 80, 900, 900])
    shown = piecewise(np.array([0, 15, 30, 40, 55, 80, 490, 900, 65535], np.uint16)[None, None, None], *maps)
    assert shown.ravel().tolist() == [0, 15, 30, 50, 60, 80, 168, 255, 255]  # 167.5 to the even neighbour


def test_a_training_patient_without_contrast_is_an_error_that_names_the_patient():
    quantiles = np.concatenate([stored(v)[0] for v in training_patients()])
    quantiles[1, :, 2] = 40
    with pytest.raises(ValueError, match="b: no contrast between 0.01 and 0.99 quantile"):
        learn_standard(Window.parse("channel_nyul"), quantiles, LEVELS, "abc")


def test_a_standard_needs_a_training_patient():
    with pytest.raises(ValueError, match="channel_nyul: no training patient"):
        learn_standard(Window.parse("channel_nyul"), np.zeros((0, 3, 3, len(LEVELS)), np.uint16), LEVELS, [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("channel_q97", r"no stored quantile \[0.97\].*prepare.quantiles"),
        ("channel_zscore", "channel_zscore needs the stored moments"),
        ("global_nyul", "global_nyul needs the standard"),
    ],
)
def test_what_a_map_lacks_is_an_error_that_says_what(name, message):
    with pytest.raises(ValueError, match=message):
        knots(Window.parse(name), np.zeros((1, 3, 3, len(LEVELS)), np.uint16), LEVELS)


def test_nyuls_landmarks_must_be_stored():
    with pytest.raises(ValueError, match=r"no stored quantile \[0.01, 0.1, .*prepare.quantiles"):
        learn_standard(Window.parse("channel_nyul"), np.zeros((2, 3, 3, 2), np.uint16), (0.0, 1.0), "ab")


@pytest.mark.parametrize("name", ARMS)
@few
@given(image=images)
def test_brighter_never_becomes_darker_and_the_limits_are_black_and_white(name, image):
    window, (quantiles, moments) = Window.parse(name), stored(image[0])
    shown = mapped(name, image)
    lo, hi = limits(window, quantiles, LEVELS, moments)
    for phase in range(3):
        values, grey = image[0, phase].ravel(), shown[0, phase].ravel().astype(int)
        assert (np.diff(grey[np.argsort(values, kind="stable")]) >= 0).all()
        assert (grey[values <= lo[0, phase]] == 0).all()
        assert (grey[values >= hi[0, phase]] == (255 if hi[0, phase] > lo[0, phase] else 0)).all()


@pytest.mark.parametrize("name", [a for a in ARMS if not a.endswith("zscore")])
@few
@given(image=hnp.arrays(np.uint16, (1, 3, 4, 5), elements=st.integers(0, 5000)), gain=st.integers(2, 13))
def test_a_map_from_quantiles_ignores_the_gain_to_the_byte(name, image, gain):
    np.testing.assert_array_equal(mapped(name, image), mapped(name, image * np.uint16(gain)))


@pytest.mark.parametrize("name", ["slice_zscore", "channel_zscore", "global_zscore"])
@few
@given(image=hnp.arrays(np.uint16, (1, 3, 4, 5), elements=st.integers(0, 5000)), gain=st.integers(2, 13))
def test_a_zscore_ignores_the_gain_but_for_a_rounding(name, image, gain):
    difference = mapped(name, image).astype(int) - mapped(name, image * np.uint16(gain))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("value", [0, 700, 65535])
def test_an_image_without_contrast_becomes_black(name, value):
    assert (mapped(name, np.full((1, 3, 8, 8), value, np.uint16)) == 0).all()


@pytest.mark.parametrize(
    ("name", "background", "spot"),
    [("channel_q98", 0, 0), ("channel_nyul", 0, 0), ("channel_minmax", 0, 255), ("channel_zscore", 40, 255)],
)
def test_one_bright_voxel_in_an_empty_image_shows_only_where_the_limits_reach_it(name, background, spot):
    image = np.zeros((1, 3, 16, 16), np.uint16)
    image[..., 5, 5] = 1000
    shown = mapped(name, image)
    assert (shown[..., 5, 5] == spot).all() and (shown[..., 0, 0] == background).all()


@pytest.mark.parametrize("name", ["channel_q98", "channel_nyul", "channel_minmax"])
def test_saturated_voxels_are_white_and_a_background_cut_off_at_zero_is_black(name, rng):
    image = rng.integers(1000, 60_000, (1, 3, 16, 16), dtype=np.uint16)
    image[:, :, :2], image[:, :, 2:6] = 65535, 0  # an eighth and a quarter
    shown = mapped(name, image)
    assert (shown[:, :, :2] == 255).all() and (shown[:, :, 2:6] == 0).all()
    assert 0 < shown[:, :, 6:].min() and shown[:, :, 6:].max() < 255


def test_signed_images_may_be_shown_and_below_black_is_black():
    signed = np.array([-32768, -1, 0, 50, 100, 32767], np.int16).reshape(1, 1, 2, 3)
    lo, hi = np.zeros((1, 1), np.float32), np.full((1, 1), 100, np.float32)
    assert piecewise(signed, *line(lo, hi)).ravel().tolist() == [0, 0, 0, 128, 255, 255]


def test_many_images_at_once_are_each_under_their_own_map(rng):
    many = rng.integers(0, 4000, (300, 3, 16, 16), dtype=np.uint16)  # more than one block
    lo, hi = (
        rng.integers(0, 500, (300, 3)).astype(np.float32),
        rng.integers(2000, 4000, (300, 3)).astype(np.float32),
    )
    together = piecewise(many, *line(lo, hi))
    for k in (0, 169, 170, 171, 299):
        np.testing.assert_array_equal(
            together[k : k + 1], piecewise(many[k : k + 1], *line(lo[k : k + 1], hi[k : k + 1]))
        )
    assert piecewise(many[:0], *line(lo[:0], hi[:0])).shape == (0, 3, 16, 16)
