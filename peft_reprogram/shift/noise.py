"""The noise corruptions of ImageNet-C, and speckle noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .filtering import Floats


Images = NDArray[np.uint8]
Generators = list[np.random.Generator]


def draw(generators: Generators, sampler: Callable[[np.random.Generator], Floats]) -> Floats:
    """Stacks one draw per image, each from the image's own generator."""
    return np.stack([sampler(generator) for generator in generators])


def gaussian_noise(images: Images, generators: Generators, scale: float) -> Floats:
    return images / 255.0 + scale * draw(generators, lambda g: g.standard_normal(images.shape[1:]))


def shot_noise(images: Images, generators: Generators, photons: float) -> Floats:
    rates = images * (photons / 255.0)
    return np.stack([generator.poisson(rate) for generator, rate in zip(generators, rates)]) / photons


def impulse_noise(images: Images, generators: Generators, amount: float) -> Floats:
    # One uniform number settles both questions (whether, and which of black and white), per channel.
    chance = draw(generators, lambda g: g.random(images.shape[1:]))
    return np.where(chance < amount, (chance < amount / 2).astype(np.float64), images / 255.0)


def speckle_noise(images: Images, generators: Generators, scale: float) -> Floats:
    return images / 255.0 * (1 + scale * draw(generators, lambda g: g.standard_normal(images.shape[1:])))
