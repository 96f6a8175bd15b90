"""The blur corruptions of ImageNet-C, and Gaussian blur."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import filtering
from .filtering import Floats
from .noise import Generators, Images


def gaussian_blur(images: Images, generators: Generators, sigma: float) -> Floats:
    return filtering.gaussian(images / 255.0, sigma)


@lru_cache(maxsize=16)
def disk(radius: float, softness: float) -> Floats:
    """A disk of the given radius (pixels) that sums to one, its rim softened by a Gaussian of `softness` pixels."""
    reach, soft_reach = (8, 1) if radius <= 8 else (int(radius), 2)
    offsets = np.arange(-reach, reach + 1)
    kernel = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    taps = np.exp(-0.5 * (np.arange(-soft_reach, soft_reach + 1) / softness) ** 2)
    taps /= taps.sum()
    kernel = filtering.correlate(kernel[None, :, :, None], np.outer(taps, taps))[0, :, :, 0]
    support = np.flatnonzero(kernel[reach] > 1e-12)
    return kernel[support[0] : support[-1] + 1, support[0] : support[-1] + 1]


def defocus_blur(images: Images, generators: Generators, radius: float, softness: float) -> Floats:
    return filtering.correlate(images / 255.0, disk(radius, softness))


def shuffle_locally(images: Images, generators: Generators, reach: int, iterations: int) -> Images:
    """Replaces every inner pixel by a random neighbour at most `reach` pixels away, `iterations` times.

    The pixels are visited from the bottom right to the top left, and a pixel that was visited before is read in its
    new state. The published code means to swap the two pixels, but both names are views of one array, so that its
    data sets hold copies; this does as the data sets do. Instead of visiting, each pixel points at the pixel it reads,
    and the pointers are followed to their ends for all pixels at once.
    """
    batch, height, width, channels = images.shape
    rows, columns = np.arange(reach + 1, height - reach + 1), np.arange(reach + 1, width - reach + 1)
    if len(rows) == 0 or len(columns) == 0:
        return images
    place = rows[:, None] * width + columns[None, :]
    size = height * width
    visited = np.zeros(size, dtype=bool)
    visited[place] = True
    offsets = np.stack([g.integers(-reach, reach, size=(iterations, 2, *place.shape)) for g in generators])
    pixels: Images = images.reshape(batch, size, channels)
    for dy, dx in offsets.transpose(1, 2, 0, 3, 4):
        source = place + dy * width + dx
        # Nodes 0 .. size-1 are pixels after the pass, nodes size .. 2 size - 1 are pixels before it.
        target = np.broadcast_to(np.tile(np.arange(size, 2 * size), 2), (batch, 2 * size)).copy()
        target[:, place] = np.where(visited[source] & (source > place), source, source + size)
        while True:
            further = np.take_along_axis(target, target, axis=1)
            if np.array_equal(further, target):
                break
            target = further
        pixels = np.take_along_axis(pixels, target[:, :size, None] - size, axis=1)
    return pixels.reshape(images.shape)


def glass_blur(images: Images, generators: Generators, sigma: float, reach: int, iterations: int) -> Floats:
    softened = filtering.to_uint8(filtering.gaussian(images / 255.0, sigma))
    return filtering.gaussian(shuffle_locally(softened, generators, reach, iterations) / 255.0, sigma)


def motion_blur(images: Images, generators: Generators, radius: int, sigma: float) -> Floats:
    angles = [float(generator.uniform(-45, 45)) for generator in generators]
    return filtering.motion_blur(images / 255.0, radius, sigma, angles)


def zoom_blur(images: Images, generators: Generators, end: float, step: float) -> Floats:
    pixels = images / 255.0
    factors = np.arange(1, end, step)
    total = pixels.copy()
    for factor in factors:
        total += filtering.clipped_zoom(pixels, float(factor))
    return total / (len(factors) + 1)
