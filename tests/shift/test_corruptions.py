"""Each corruption against an independent formula, and what all of them promise."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from peft_reprogram.shift import blur, corrupt, corrupt_image, digital, list_corruptions, noise, weather
from peft_reprogram.shift.corruptions import CORRUPTIONS, _generator


ALL = list_corruptions("all")

# Corruptions whose published severities are not ordered by the change of pixels: affine maps get smaller while the
# warps get finer, colours are first taken away and then exaggerated, water turns to mud, frost replaces the picture
# rather than brightening it, and is of five kinds.
NOT_ORDERED = {"elastic_transform", "saturate", "glass_blur", "spatter", "frost"}


def generators(count):
    return [np.random.default_rng(i) for i in range(count)]


class TestTable:
    def test_the_15_and_the_4(self):
        assert len(list_corruptions()) == 15
        assert list_corruptions("extra") == ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
        assert set(ALL) == set(list_corruptions()) | set(list_corruptions("extra"))
        families = [list_corruptions(family) for family in ("noise", "blur", "weather", "digital")]
        assert sorted(name for family in families for name in family) == sorted(list_corruptions())
        assert [len(family) for family in families] == [3, 4, 4, 4]

    def test_five_severities_each(self):
        assert all(len(c.imagenet) == len(c.cifar) == 5 for c in CORRUPTIONS.values())

    def test_unknown_kind_lists_the_known(self):
        with pytest.raises(ValueError, match=r"'wetter'.*common, extra, all, noise"):
            list_corruptions("wetter")


class TestContract:
    @pytest.mark.parametrize("name", ALL)
    def test_the_batch_does_not_matter(self, images, name):
        severity = 3
        indices = [7 * i for i in range(len(images))]
        whole = corrupt(images, name, severity, indices=indices)
        assert whole.shape == images.shape
        assert whole.dtype == np.uint8
        assert not np.array_equal(whole, images)
        order = np.random.default_rng(0).permutation(len(images))
        for part in (order[:2], order[2:]):
            alone = corrupt(images[part], name, severity, indices=[indices[i] for i in part])
            np.testing.assert_array_equal(alone, whole[part])

    @pytest.mark.parametrize("name", ALL)
    def test_the_chunk_does_not_matter(self, small_images, name, monkeypatch):
        whole = corrupt(small_images, name, 5, indices=range(6))
        monkeypatch.setattr("peft_reprogram.shift.corruptions.CHUNK_VALUES", 2 * small_images[0].size)
        np.testing.assert_array_equal(corrupt(small_images, name, 5, indices=range(6)), whole)

    @pytest.mark.parametrize("name", ALL)
    def test_any_shape_and_content(self, name):
        for shape in ((8, 8), (8, 40), (85, 130), (97, 91)):
            for image in (np.zeros((1, *shape, 3), np.uint8), np.full((1, *shape, 3), 255, np.uint8)):
                for severity in (1, 3, 5):
                    assert corrupt(image, name, severity, indices=[0]).shape == image.shape
        assert corrupt(np.empty((0, 32, 32, 3), np.uint8), name, 1, indices=[]).shape == (0, 32, 32, 3)

    @pytest.mark.parametrize("name", sorted(set(ALL) - {"gaussian_blur", "defocus_blur", "zoom_blur", "brightness"}))
    def test_seed_and_index_matter_where_there_is_chance(self, small_images, name):
        same = np.repeat(small_images[:1], 2, axis=0)
        first = corrupt(same, name, 4, indices=[0, 1])
        other = corrupt(same, name, 4, indices=[0, 1], seed=1)
        if name in ("contrast", "pixelate", "jpeg_compression", "saturate"):
            np.testing.assert_array_equal(first[0], first[1])
            np.testing.assert_array_equal(first, other)
        else:
            assert not np.array_equal(first[0], first[1])
            assert not np.array_equal(first[0], other[0])

    @pytest.mark.parametrize("name", ALL)
    def test_severity_orders_the_change(self, images, name):
        change = [
            np.abs(corrupt(images, name, severity, indices=range(len(images))).astype(int) - images).mean()
            for severity in range(1, 6)
        ]
        assert min(change) > 0.3
        if name not in NOT_ORDERED:
            # Clouds and flakes differ much from image to image: with few images, only the ends are compared.
            ordered = [change[0], change[4]] if name in ("snow", "fog") else change
            assert ordered == sorted(ordered), change

    def test_input_is_left_alone(self, small_images):
        before = small_images.copy()
        for name in ALL:
            corrupt(small_images, name, 2, indices=range(6))
        np.testing.assert_array_equal(small_images, before)

    def test_strided_input(self, small_images):
        mirrored = small_images[:, :, ::-1]
        for name in ALL:
            np.testing.assert_array_equal(
                corrupt(mirrored, name, 2, indices=range(6)), corrupt(mirrored.copy(), name, 2, indices=range(6))
            )

    def test_large_keys_are_told_apart(self):
        draws = {
            tuple(_generator(seed, "fog", 1, index).integers(0, 2**63, 2))
            for seed, index in [(0, 0), (0, 2**32), (2**32, 0), (1, 0), (0, 1), (2**64 - 1, 2**64 - 1)]
        }
        assert len(draws) == 6

    def test_parameters_follow_the_shorter_side(self, natural_image):
        image = natural_image(300)
        blurred = {side: digital.pixelate(image[None, :side], [], 0.6 if side > 84 else 0.95)[0] for side in (84, 85)}
        for side, expected in blurred.items():
            np.testing.assert_array_equal(corrupt(image[None, :side], "pixelate", 1, indices=[0])[0], expected)

    def test_one_pil_image(self, small_images):
        picture = Image.fromarray(small_images[0])
        expected = corrupt(small_images[:1], "snow", 3, indices=[5], seed=2)[0]
        np.testing.assert_array_equal(np.asarray(corrupt_image(picture, "snow", 3, index=5, seed=2)), expected)
        assert corrupt_image(picture.convert("L"), "fog", 1).mode == "RGB"


class TestBadInput:
    images = np.zeros((2, 32, 32, 3), np.uint8)

    def test_unknown_name_lists_the_known(self):
        with pytest.raises(ValueError, match=r"'rain'.*gaussian_noise.*saturate"):
            corrupt(self.images, "rain", 1, indices=[0, 1])

    @pytest.mark.parametrize("severity", [0, 6, -1, 1.5, 3.0, "3", None, True])
    def test_severity(self, severity):
        with pytest.raises(ValueError, match=r"1 \(mild\) to 5 \(severe\)"):
            corrupt(self.images, "fog", severity, indices=[0, 1])

    @pytest.mark.parametrize("bad", [-1, 2**64, 0.5, "0"])
    def test_seed_and_index(self, bad):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            corrupt(self.images, "fog", 1, indices=[0, 1], seed=bad)
        with pytest.raises(ValueError, match="every index must be a whole number"):
            corrupt(self.images, "fog", 1, indices=[0, bad])

    def test_number_of_indices(self):
        with pytest.raises(ValueError, match="got 1 for 2 images"):
            corrupt(self.images, "fog", 1, indices=[0])

    def test_images(self):
        with pytest.raises(TypeError, match="got float64"):
            corrupt(self.images / 255, "fog", 1, indices=[0, 1])
        with pytest.raises(TypeError, match="got list"):
            corrupt([self.images[0]], "fog", 1, indices=[0])
        for shape in ((32, 32, 3), (1, 3, 32, 32), (1, 7, 32, 3)):
            with pytest.raises(ValueError, match="at least 8 pixels"):
                corrupt(np.zeros(shape, np.uint8), "fog", 1, indices=[0])


class TestNoise:
    grey = np.full((4, 96, 96, 3), 128, np.uint8)

    def test_gaussian_moments(self):
        change = noise.gaussian_noise(self.grey, generators(4), 0.18) - 128 / 255
        assert abs(change.mean()) < 0.005
        assert change.std() == pytest.approx(0.18, rel=0.02)

    def test_shot_noise_is_poisson(self):
        values = noise.shot_noise(self.grey, generators(4), 12)
        assert values.mean() == pytest.approx(128 / 255, rel=0.02)
        assert values.var() == pytest.approx(128 / 255 / 12, rel=0.03)
        np.testing.assert_allclose(values * 12, np.rint(values * 12), atol=1e-9)

    def test_impulse_noise_is_half_salt_half_pepper(self):
        values = noise.impulse_noise(self.grey, generators(4), 0.27)
        assert np.mean(values == 1) == pytest.approx(0.135, abs=0.005)
        assert np.mean(values == 0) == pytest.approx(0.135, abs=0.005)
        assert set(np.unique(values)) == {0.0, 128 / 255, 1.0}

    def test_speckle_noise_grows_with_brightness(self):
        values = noise.speckle_noise(self.grey, generators(4), 0.35)
        assert values.std() == pytest.approx(0.35 * 128 / 255, rel=0.02)
        assert not noise.speckle_noise(np.zeros_like(self.grey), generators(4), 0.35).any()


class TestBlur:
    def test_gaussian_blur_equals_scipy(self, images):
        expected = ndimage.gaussian_filter(images / 255.0, (0, 2, 2, 0), mode="nearest")
        np.testing.assert_allclose(blur.gaussian_blur(images, [], 2), expected, atol=1e-12)

    @pytest.mark.parametrize(("radius", "softness"), [(3, 0.1), (8, 0.5), (10, 0.5), (0.3, 0.4), (1.5, 0.1)])
    def test_defocus_blur_equals_a_disk_in_scipy(self, images, radius, softness):
        reach, size = (8, 3) if radius <= 8 else (radius, 5)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disk = (x**2 + y**2 <= radius**2).astype(float)
        disk /= disk.sum()
        taps = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * softness**2))
        taps /= taps.sum()
        disk = ndimage.correlate(disk, np.outer(taps, taps), mode="mirror")
        expected = ndimage.correlate(images / 255.0, disk[None, :, :, None], mode="mirror")
        np.testing.assert_allclose(blur.defocus_blur(images, [], radius, softness), expected, atol=1e-9)

    def test_zoom_blur_is_the_mean_of_zooms(self, small_images):
        pixels = small_images[:1] / 255.0
        total = pixels[0].copy()
        factors = np.arange(1, 1.21, 0.02)
        for factor in factors:
            crop = int(np.ceil(32 / factor))
            first = (32 - crop) // 2
            part = pixels[0, first : first + crop, first : first + crop]
            zoomed = ndimage.zoom(part, (factor, factor, 1), order=1)
            trim = (zoomed.shape[0] - 32) // 2
            total += zoomed[trim : trim + 32, trim : trim + 32]
        expected = total / (len(factors) + 1)
        np.testing.assert_allclose(blur.zoom_blur(small_images[:1], [], 1.21, 0.02)[0], expected, atol=1e-12)

    @pytest.mark.parametrize(("reach", "iterations"), [(1, 1), (1, 2), (2, 1), (4, 3)])
    def test_shuffling_equals_the_visit_of_pixels_one_by_one(self, small_images, reach, iterations):
        shuffled = blur.shuffle_locally(small_images, generators(6), reach, iterations)
        for image, generator, result in zip(small_images, generators(6), shuffled):
            side = 32 - 2 * reach
            offsets = generator.integers(-reach, reach, size=(iterations, 2, side, side))
            expected = image.copy()
            for dy, dx in offsets:
                for row in range(32 - reach, reach, -1):
                    for column in range(32 - reach, reach, -1):
                        i, j = row - reach - 1, column - reach - 1
                        expected[row, column] = expected[row + dy[i, j], column + dx[i, j]]
            np.testing.assert_array_equal(result, expected)

    def test_motion_blur_angles_stay_within_45_degrees(self):
        dot = np.zeros((64, 65, 65, 3), np.uint8)
        dot[:, 32, 32] = 255
        trace = blur.motion_blur(dot, generators(64), 10, 3)
        # The line is read to the right, so the trace of a dot lies to its left.
        rows, columns = np.nonzero(trace[..., 0].sum(axis=0))
        assert columns.max() == 32
        assert np.all(np.abs(rows - 32) <= 32 - columns + 1)
        assert np.ptp(rows) > 20


class TestWeather:
    def test_plasma_by_the_textbook(self):
        """The diamond-square algorithm, cell by cell."""
        size, decay = 16, 1.7
        noise_ = np.random.default_rng(3).uniform(-1, 1, size * size)
        used = iter(noise_)
        heights = np.zeros((size, size))
        step, wobble = size, 100.0
        while step >= 2:
            half = step // 2
            for dy, dx, around in (
                (half, half, [(-half, -half), (-half, half), (half, -half), (half, half)]),
                (0, half, [(-half, 0), (half, 0), (0, -half), (0, half)]),
                (half, 0, [(-half, 0), (half, 0), (0, -half), (0, half)]),
            ):
                before = heights.copy()
                for y in range(dy, size, step):
                    for x in range(dx, size, step):
                        mean = np.mean([before[(y + i) % size, (x + j) % size] for i, j in around])
                        heights[y, x] = mean + wobble**2 * next(used)
            step, wobble = half, wobble / decay
        expected = (heights - heights.min()) / np.ptp(heights)
        np.testing.assert_allclose(weather.plasma([np.random.default_rng(3)], size, decay)[0], expected, atol=1e-9)

    def test_fog_keeps_the_brightest_value(self, images):
        foggy = weather.fog(images, generators(len(images)), 2.5, 1.7)
        brightest = images.max(axis=(1, 2, 3)) / 255.0
        assert np.all(foggy.max(axis=(1, 2, 3)) <= brightest + 1e-12)
        assert np.all(foggy >= 0)

    def test_frost_lays_an_overlay_of_the_published_strength(self):
        black = np.zeros((40, 96, 96, 3), np.uint8)
        overlay = weather.frost(black, generators(40), 0.7, 1.0, 1) * 255
        for image in overlay:
            moments = np.stack([image.mean(axis=(0, 1)), image.std(axis=(0, 1))])
            assert np.abs(weather.FROST_STYLES - moments).max(axis=(1, 2)).min() < 8  # clipping moves them a little
        np.testing.assert_allclose(
            weather.frost(np.full_like(black[:1], 100), generators(1), 0.7, 0.5, 1),
            weather.frost(black[:1], generators(1), 0.7, 0.5, 1) + 70 / 255,
        )

    def test_snow_only_brightens_more_than_it_keeps(self, images):
        parameters = CORRUPTIONS["snow"].cifar[2]
        snowy = weather.snow(images, generators(len(images)), *parameters)
        assert np.all(snowy >= images / 255.0 - 1e-9)

    def test_canny_without_thinning_ties(self):
        """A bright square has the four sides as edges, one pixel wide; a faint one has none."""
        planes = np.zeros((2, 20, 20), dtype=np.int64)
        planes[0, 6:14, 6:14] = 200
        planes[1, 6:14, 6:14] = 10
        edges = weather.canny(planes, 50, 150)
        assert not edges[1].any()
        assert np.array_equal(ndimage.binary_fill_holes(edges[0]).sum(axis=0) > 0, edges[0].any(axis=0))
        assert 28 <= edges[0].sum() <= 36

    def test_canny_equals_a_pixel_by_pixel_search(self):
        generator = np.random.default_rng(0)
        planes = np.rint(ndimage.gaussian_filter(generator.random((3, 24, 24)), (0, 1.5, 1.5)) * 900 - 300)
        planes = np.clip(planes, 0, 255).astype(np.int64)
        for plane, edges in zip(planes, weather.canny(planes, 50, 150)):
            padded = np.pad(plane, 1, mode="edge")
            dx = ndimage.sobel(padded, axis=1, mode="nearest")[1:-1, 1:-1]
            dy = ndimage.sobel(padded, axis=0, mode="nearest")[1:-1, 1:-1]
            strength = np.pad(np.abs(dx) + np.abs(dy), 1)
            weak = np.zeros(plane.shape, bool)
            for y in range(24):
                for x in range(24):
                    here = strength[y + 1, x + 1]
                    angle = np.degrees(np.arctan2(abs(dy[y, x]), abs(dx[y, x])))
                    if angle < 22.5:
                        peak = here > strength[y + 1, x] and here >= strength[y + 1, x + 2]
                    elif angle > 67.5:
                        peak = here > strength[y, x + 1] and here >= strength[y + 2, x + 1]
                    elif (dx[y, x] < 0) != (dy[y, x] < 0):
                        peak = here > strength[y, x + 2] and here > strength[y + 2, x]
                    else:
                        peak = here > strength[y, x] and here > strength[y + 2, x + 2]
                    weak[y, x] = peak and here > 50
            parts, _ = ndimage.label(weak, np.ones((3, 3)))
            kept = np.unique(parts[weak & (strength[1:-1, 1:-1] > 150)])
            np.testing.assert_array_equal(edges, weak & np.isin(parts, kept))
            assert edges.any()

    def test_distance_equals_scipy(self):
        marks = np.random.default_rng(0).random((3, 40, 30)) < 0.004
        marks[0] = False
        marks[0, 3, 4] = True
        for plane, distance in zip(marks, weather.distance_to(marks, 20)):
            expected = np.minimum(ndimage.distance_transform_edt(~plane), 20)
            np.testing.assert_allclose(distance, expected)
        assert np.all(weather.distance_to(np.zeros((1, 5, 5), bool), 20) == 20)

    def test_equalize_spreads_the_levels(self):
        planes = np.random.default_rng(0).integers(100, 140, (2, 50, 50))
        spread = weather.equalize(planes)
        assert spread.min() == 0
        assert spread.max() == 255
        assert spread.std() == pytest.approx(255 / 12**0.5, rel=0.03)
        flat = np.full((1, 9, 9), 17)
        np.testing.assert_array_equal(weather.equalize(flat), flat)

    def test_spatter_changes_drops_alone(self, images):
        for severity, colour in ((1, "water"), (4, "mud")):
            spattered = corrupt(images, "spatter", severity, indices=range(len(images))).astype(int)
            changed = (spattered != images).any(axis=-1)
            assert 0.001 < changed.mean() < 0.5
            if colour == "water":
                assert np.all(spattered >= images)


class TestDigital:
    def test_brightness_and_saturation_equal_the_hsv_formula(self):
        pixels = np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), dtype=np.uint8)
        pixels[0, 0] = np.arange(20)[:, None] * 13  # greys, black among them
        pixels[0, 1, :, 0] = 255
        brighter = digital.brightness(pixels, [], 0.3)
        saturated = digital.saturate(pixels, [], 2.0, 0.1)
        for y in range(20):
            for x in range(20):
                h, s, v = colorsys.rgb_to_hsv(*(pixels[0, y, x] / 255.0))
                np.testing.assert_allclose(brighter[0, y, x], colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1)), atol=1e-12)
                expected = colorsys.hsv_to_rgb(h, min(s * 2 + 0.1, 1), v)
                np.testing.assert_allclose(saturated[0, y, x], expected, atol=1e-12)

    def test_contrast(self, images):
        changed = digital.contrast(images, [], 0.3)
        np.testing.assert_allclose(changed.mean(axis=(1, 2)), images.mean(axis=(1, 2)) / 255)
        np.testing.assert_allclose(changed.std(axis=(1, 2)), 0.3 * images.std(axis=(1, 2)) / 255)

    def test_pixelate_at_a_half_repeats_block_means(self, images):
        side = images.shape[1]
        blocks = images.reshape(len(images), side // 2, 2, side // 2, 2, 3).mean(axis=(2, 4))
        expected = blocks.repeat(2, axis=1).repeat(2, axis=2)
        # PIL rounds twice, once per direction.
        assert np.abs(digital.pixelate(images, [], 0.5) - expected).max() <= 1

    def test_jpeg_is_pils(self, small_images):
        buffer = io.BytesIO()
        Image.fromarray(small_images[0]).save(buffer, "JPEG", quality=15)
        expected = np.asarray(Image.open(buffer))
        np.testing.assert_array_equal(digital.jpeg_compression(small_images[:1], [], 15)[0], expected)

    def test_elastic_transform_equals_two_passes_of_scipy(self, small_images):
        strength, sigma, reach = 3.2, 1.6, 1.6
        result = digital.elastic_transform(small_images[:1], generators(1), strength, sigma, reach)[0]
        generator = np.random.default_rng(0)
        # cv2.getAffineTransform by least squares, on points in (x, y)
        points = np.array([[26, 26], [26, 6], [6, 6]], dtype=float)
        moved = points + generator.uniform(-reach, reach, size=(3, 2))
        forward = np.linalg.lstsq(np.column_stack([points, np.ones(3)]), moved, rcond=None)[0].T
        back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
        y, x = np.mgrid[:32, :32].astype(float)
        source_x, source_y, _ = np.tensordot(back, np.stack([x, y, np.ones_like(x)]), axes=1)
        smooth = generator.uniform(-1, 1, size=(32, 32, 2))
        dx, dy = (
            strength * ndimage.gaussian_filter(smooth[..., i], sigma, mode="reflect", truncate=3) for i in (0, 1)
        )
        for channel in range(3):
            plane = small_images[0, :, :, channel] / 255.0
            warped = ndimage.map_coordinates(plane, [source_y, source_x], order=1, mode="mirror")
            expected = ndimage.map_coordinates(warped, [y + dy, x + dx], order=1, mode="reflect")
            np.testing.assert_allclose(result[:, :, channel], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("contrast", [[74, 37, 74], [93, 46, 93], [112, 56, 112], [132, 66, 132], [151, 75, 151], [170, 85, 170]]),
        ("brightness", [[38, 38, 38], [86, 43, 86], [134, 67, 134], [182, 91, 182], [230, 115, 230], [255, 127, 255]]),
        ("saturate", [[0, 0, 0], [48, 12, 48], [96, 24, 96], [144, 36, 144], [192, 48, 192], [240, 60, 240]]),
    ],
)
def test_golden_values(name, expected):
    """A ramp under closed formulas at severity 3 of CIFAR-10-C, worked out by hand; the same on every machine."""
    ramp = np.stack([np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))] * 3, axis=-1)
    ramp[..., 1] //= 2
    assert corrupt(ramp[None], name, 3, indices=[0])[0][5, ::6].tolist() == expected
