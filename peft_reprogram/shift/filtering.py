"""Linear filters and resampling on batches of images, in numpy alone.

Images are `float64` arrays of shape `(B, H, W, C)`. The results of one image never depend on the other images of the
batch: matrix products are made per image, and everything else is element-wise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


Floats = NDArray[np.float64]

# The border conventions, named as in `scipy.ndimage`: nearest = aaaa|abcd|dddd, reflect = dcba|abcd|dcba, mirror = dcb|abcd|cba.
Border = Literal["nearest", "reflect", "mirror"]


def to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Turns values in units of white into `uint8`; arrays that are `uint8` already stay as they are."""
    if values.dtype == np.uint8:
        return values
    # Truncated, like the published data; the small term keeps untouched pixels from losing a level to rounding.
    return (np.clip(values, 0, 1) * 255 + 1e-3).astype(np.uint8)


def border_index(index: NDArray[np.integer], size: int, border: Border) -> NDArray[np.integer]:
    """Maps pixel indices that may lie outside `0 .. size - 1` to the pixels that stand in for them."""
    if border == "nearest" or size == 1:
        return np.clip(index, 0, size - 1)
    if border == "reflect":
        index = np.mod(index, 2 * size)
        return np.minimum(index, 2 * size - 1 - index)
    index = np.mod(index, 2 * size - 2)
    return np.minimum(index, 2 * size - 2 - index)


@lru_cache(maxsize=64)
def gaussian_operator(size: int, sigma: float, border: Border = "nearest", truncate: float = 4.0) -> Floats:
    """The `(size, size)` matrix that blurs a line of pixels with a Gaussian of standard deviation `sigma` (pixels)."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return np.eye(size)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    operator = np.zeros((size, size))
    rows = np.arange(size)
    for offset, weight in zip(offsets, weights):
        operator[rows, border_index(rows + offset, size, border)] += weight
    return operator


def gaussian(images: Floats, sigma: float, border: Border = "nearest", truncate: float = 4.0) -> Floats:
    """Blurs with a Gaussian cut off at `truncate` standard deviations, as `scipy.ndimage.gaussian_filter` does."""
    vertical = gaussian_operator(images.shape[1], sigma, border, truncate)
    horizontal = gaussian_operator(images.shape[2], sigma, border, truncate)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return (vertical @ planes @ horizontal.T).transpose(0, 2, 3, 1)


def correlate(images: Floats, kernel: Floats) -> Floats:
    """Correlates with an odd-sized kernel; the border is mirrored (`mirror`, OpenCV's default)."""
    pad_y, pad_x = kernel.shape[0] // 2, kernel.shape[1] // 2
    height, width = images.shape[1:3]
    rows = border_index(np.arange(-pad_y, height + pad_y), height, "mirror")
    columns = border_index(np.arange(-pad_x, width + pad_x), width, "mirror")
    padded = images[:, rows][:, :, columns]
    spectrum = np.fft.rfft2(padded, axes=(1, 2))
    # The flipped kernel turns the convolution of the transform into a correlation.
    response = np.fft.rfft2(kernel[::-1, ::-1], s=padded.shape[1:3])[..., None]
    filtered = np.fft.irfft2(spectrum * response, s=padded.shape[1:3], axes=(1, 2))
    return filtered[:, 2 * pad_y :, 2 * pad_x :]


def clipped_zoom(images: Floats, factor: float) -> Floats:
    """Enlarges the centre by `factor` >= 1 with linear interpolation and keeps the size, as ImageNet-C does."""
    if factor == 1:
        return images
    for axis in (1, 2):
        size = images.shape[axis]
        crop = int(np.ceil(size / factor))
        enlarged = round(crop * factor)
        first = (enlarged - size) // 2
        # The corners of the crop are aligned with the corners of the enlarged picture.
        position = np.arange(first, first + size) * ((crop - 1) / (enlarged - 1))
        low = np.minimum(position.astype(np.int64), crop - 1)
        high = np.minimum(low + 1, crop - 1)
        weight = (position - low).reshape((-1,) + (1,) * (3 - axis))
        offset = (size - crop) // 2
        start = np.take(images, offset + low, axis=axis)
        images = start + weight * (np.take(images, offset + high, axis=axis) - start)
    return images


def sample(images: Floats, y: Floats, x: Floats, border: Border) -> Floats:
    """Samples each image bilinearly at its own coordinates.

    Args:
        images (`numpy.ndarray` of shape `(B, H, W, C)`): the images.
        y, x (`numpy.ndarray` of shape `(B, H', W')`): coordinates in pixels; they may lie outside.
        border (`str`): what lies outside.

    Returns:
        `numpy.ndarray` of shape `(B, H', W', C)`.
    """
    batch, height, width, channels = images.shape
    flat = images.reshape(-1, channels)
    first = (np.arange(batch) * (height * width)).reshape(-1, 1, 1)
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    fraction_y, fraction_x = (y - top)[..., None], (x - left)[..., None]
    row = [first + width * border_index(top + i, height, border) for i in (0, 1)]
    column = [border_index(left + i, width, border) for i in (0, 1)]
    upper = (1 - fraction_x) * flat[row[0] + column[0]] + fraction_x * flat[row[0] + column[1]]
    lower = (1 - fraction_x) * flat[row[1] + column[0]] + fraction_x * flat[row[1] + column[1]]
    return (1 - fraction_y) * upper + fraction_y * lower


def motion_blur(images: Floats, radius: int, sigma: float, angles: list[float]) -> Floats:
    """Blurs along a line with a one-sided Gaussian, as ImageMagick's `-motion-blur radius x sigma + angle` does.

    Args:
        images (`numpy.ndarray` of shape `(B, H, W, C)`): the images.
        radius (`int`): the line has `2 * radius + 1` taps.
        sigma (`float`): standard deviation of the one-sided Gaussian, in pixels.
        angles (`list[float]`): one direction per image, in degrees; 0 is to the right, 90 is downwards.

    Returns:
        `numpy.ndarray` of shape `(B, H, W, C)`.
    """
    height, width = images.shape[1:3]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    blurred = np.zeros_like(images)
    for image, angle, out in zip(images, np.deg2rad(angles), blurred):
        # Whole pixels: ImageMagick does not interpolate between them.
        down = np.ceil(steps * np.sin(angle) - 0.5).astype(np.int64)
        right = np.ceil(steps * np.cos(angle) - 0.5).astype(np.int64)
        top, left = -min(down.min(), 0), -min(right.min(), 0)
        padding = ((top, max(down.max(), 0)), (left, max(right.max(), 0)), (0, 0))
        padded = np.pad(image, padding, mode="edge")
        for dy, dx, weight in zip(top + down, left + right, weights):
            out += weight * padded[dy : dy + height, dx : dx + width]
    return blurred
