"""The filters against scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from peft_reprogram.shift import filtering


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(0).random((2, 23, 31, 3))


@pytest.mark.parametrize("border", ["nearest", "reflect", "mirror"])
@pytest.mark.parametrize(("sigma", "truncate"), [(0.0, 4.0), (0.05, 4.0), (0.7, 4.0), (2.5, 3.0), (9.0, 4.0)])
def test_gaussian_equals_scipy(batch, border, sigma, truncate):
    expected = ndimage.gaussian_filter(batch, (0, sigma, sigma, 0), mode=border, truncate=truncate)
    np.testing.assert_allclose(filtering.gaussian(batch, sigma, border, truncate), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 3), (5, 9), (21, 21)])
def test_correlate_equals_scipy(batch, shape):
    kernel = np.random.default_rng(1).standard_normal(shape)
    expected = ndimage.correlate(batch, kernel[None, :, :, None], mode="mirror")
    np.testing.assert_allclose(filtering.correlate(batch, kernel), expected, atol=1e-11)


@pytest.mark.parametrize("size", [32, 33, 224])
@pytest.mark.parametrize("factor", [1.0, 1.01, 1.1, 1.25, 2.0, 2.25, 4.5])
def test_clipped_zoom_equals_cropping_scipys_zoom(size, factor):
    image = np.random.default_rng(2).random((size, size, 1))
    crop = int(np.ceil(size / factor))
    first = (size - crop) // 2
    zoomed = ndimage.zoom(image[first : first + crop, first : first + crop], (factor, factor, 1), order=1)
    trim = (zoomed.shape[0] - size) // 2
    expected = zoomed[trim : trim + size, trim : trim + size]
    np.testing.assert_allclose(filtering.clipped_zoom(image[None], factor)[0], expected, atol=1e-12)


@pytest.mark.parametrize("border", ["reflect", "mirror", "nearest"])
def test_sample_equals_scipys_map_coordinates(batch, border):
    generator = np.random.default_rng(3)
    y, x = generator.uniform(-40, 60, (2, 2, 17, 19))
    expected = np.empty((2, 17, 19, 3))
    for i in range(2):
        for channel in range(3):
            expected[i, :, :, channel] = ndimage.map_coordinates(
                batch[i, :, :, channel], [y[i], x[i]], order=1, mode=border
            )
    np.testing.assert_allclose(filtering.sample(batch, y, x, border), expected, atol=1e-10)


@given(st.integers(-200, 200), st.integers(1, 12), st.sampled_from(["nearest", "reflect", "mirror"]))
def test_border_index_equals_numpys_padding(index, size, border):
    mode = {"nearest": "edge", "reflect": "symmetric", "mirror": "reflect"}[border]
    padded = np.pad(np.arange(size), 200, mode=mode)
    assert filtering.border_index(np.array([index]), size, border)[0] == padded[index + 200]


@pytest.mark.parametrize("angle", [0.0, 90.0, -135.0, 30.0])
def test_motion_blur_reads_along_the_line(angle):
    radius, sigma = 5, 2.0
    image = np.random.default_rng(4).random((1, 20, 20, 1))
    weights = [np.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    expected = np.zeros((20, 20))
    for y in range(20):
        for x in range(20):
            for i, weight in enumerate(weights):
                row = y + int(np.ceil(i * np.sin(np.deg2rad(angle)) - 0.5))
                column = x + int(np.ceil(i * np.cos(np.deg2rad(angle)) - 0.5))
                expected[y, x] += weight * image[0, min(max(row, 0), 19), min(max(column, 0), 19), 0]
    blurred = filtering.motion_blur(image, radius, sigma, [angle])
    np.testing.assert_allclose(blurred[0, :, :, 0], expected / sum(weights), atol=1e-12)


def test_motion_blur_of_an_image_narrower_than_the_line():
    image = np.random.default_rng(5).random((1, 8, 8, 3))
    blurred = filtering.motion_blur(image, 20, 15, [20.0])
    assert blurred.min() >= image.min()
    assert blurred.max() <= image.max()


def test_untouched_pixels_survive_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(filtering.to_uint8(levels / 255.0), levels)
    np.testing.assert_array_equal(filtering.to_uint8(np.array([-1.0, 0.5, 1.0, 7.0])), [0, 127, 255, 255])
