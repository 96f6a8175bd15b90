"""The digital corruptions of ImageNet-C, and saturation."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from . import filtering
from .filtering import Floats
from .noise import Generators, Images, draw


def brightness(images: Images, generators: Generators, shift: float) -> Floats:
    """Adds `shift` to the value of hue-saturation-value; a change of value alone scales the three channels alike."""
    pixels = images / 255.0
    value = pixels.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + shift, 1)
    return np.where(value > 0, pixels * (brighter / np.where(value > 0, value, 1)), brighter)


def saturate(images: Images, generators: Generators, factor: float, shift: float) -> Floats:
    """Multiplies the saturation of hue-saturation-value and adds `shift`; grey has the hue of red, as in scikit-image."""
    pixels = images / 255.0
    value = pixels.max(axis=-1, keepdims=True)
    saturation = (value - pixels.min(axis=-1, keepdims=True)) / np.where(value > 0, value, 1)
    target = np.clip(saturation * factor + shift, 0, 1)
    grey = saturation == 0
    coloured = value - (value - pixels) * (target / np.where(grey, 1, saturation))
    return np.where(grey, value * (1 - target * np.array([0.0, 1.0, 1.0])), coloured)


def contrast(images: Images, generators: Generators, factor: float) -> Floats:
    pixels = images / 255.0
    means = pixels.mean(axis=(1, 2), keepdims=True)
    return (pixels - means) * factor + means


def elastic_transform(images: Images, generators: Generators, strength: float, sigma: float, reach: float) -> Floats:
    """A random affine map of the picture, then a random smooth displacement of every pixel (all in pixels)."""
    batch, height, width, _ = images.shape
    centre = np.array([height, width]) // 2
    arm = min(height, width) // 3
    corners = np.array([centre + arm, centre + np.array([arm, -arm]), centre - arm], dtype=np.float64)
    moved = corners + draw(generators, lambda g: g.uniform(-reach, reach, size=corners.shape))
    # The affine map takes the corners to the moved corners; pixels are looked up through its inverse.
    inverse = np.linalg.solve(np.concatenate([moved, np.ones((batch, 3, 1))], axis=2), corners[None])
    rows, columns = np.indices((height, width), dtype=np.float64)
    # The published code hands (row, column) points to OpenCV, which reads them as (x, y).
    grid = np.stack([columns, rows, np.ones_like(rows)], axis=-1).reshape(1, -1, 3) @ inverse
    x, y = grid.transpose(2, 0, 1).reshape(2, batch, height, width)
    warped = filtering.sample(images / 255.0, y, x, "mirror")
    if strength == 0:
        return warped
    displacement = draw(generators, lambda g: g.uniform(-1, 1, size=(height, width, 2)))
    displacement = strength * filtering.gaussian(displacement, sigma, "reflect", truncate=3.0)
    return filtering.sample(warped, rows + displacement[..., 1], columns + displacement[..., 0], "reflect")


def pixelate(images: Images, generators: Generators, factor: float) -> Images:
    height, width = images.shape[1:3]
    small = max(1, int(width * factor)), max(1, int(height * factor))
    box = Image.Resampling.BOX
    coarse = np.empty_like(images)
    for image, out in zip(images, coarse):
        out[...] = Image.fromarray(image).resize(small, box).resize((width, height), box)
    return coarse


def jpeg_compression(images: Images, generators: Generators, quality: int) -> Images:
    decoded = np.empty_like(images)
    for image, out in zip(images, decoded):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        out[...] = Image.open(buffer)
    return decoded
