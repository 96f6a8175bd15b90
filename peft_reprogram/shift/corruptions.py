"""The common corruptions of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261).

The published data sets are files; these corruptions make them from any images, and deterministically: the random
numbers of an image depend on the seed, the corruption, the severity and the index of the image, never on the batch it
came in or on the worker that read it.

Differences from the published pixels, beyond other random numbers:

- `frost`: the original lays one of five photographs over the image. Here the frost is drawn (feathers of ice on a
  cloudy pane), with the mean and deviation of each channel of those photographs, which set how much contrast is lost.
- `motion_blur` and `snow`: the original calls ImageMagick. The same kernel is applied here with the same whole-pixel
  steps; ImageMagick's 16-bit rounding is not.
- `spatter` (severities 1 to 3): exact Euclidean distances take the place of OpenCV's 5 x 5 chamfer distances, which
  differ from them by at most 2 %.
- `elastic_transform`: exact bilinear weights take the place of OpenCV's weights in steps of 1/32 pixel.
- The published ImageNet-C images are stored as JPEG files of quality 85; these are not.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import blur, digital, noise, weather
from .filtering import to_uint8


SEVERITIES = (1, 2, 3, 4, 5)

# Images whose shorter side is at most this get the parameters of CIFAR-10-C, larger ones those of ImageNet-C: it is
# the geometric mean of 32 and 224 pixels, so that the nearer set is taken on the scale of ratios.
LARGEST_SMALL_SIDE = 84

SMALLEST_SIDE = 8

# How many values are worked on at a time: the arrays then stay within a few megabytes however large the batch is.
CHUNK_VALUES = 2**20


@dataclass(frozen=True)
class Corruption:
    """One corruption and its five severities.

    Args:
        name (`str`): the name used by ImageNet-C.
        family (`str`): `noise`, `blur`, `weather` or `digital`.
        function (`Callable`): `function(images, generators, *parameters)` on `uint8` images `(B, H, W, 3)`, with one
            random generator per image; returns `uint8` images, or floats in units of white = 1.
        imagenet (`tuple`): the parameters of severities 1 to 5 in ImageNet-C (224 pixels).
        cifar (`tuple`): the parameters of severities 1 to 5 in CIFAR-10-C (32 pixels).
        extra (`bool`, *optional*, defaults to `False`): whether it is one of the four that are kept for validation.
    """

    name: str
    family: str
    function: Callable[..., NDArray[Any]]
    imagenet: tuple
    cifar: tuple
    extra: bool = False


def _elastic(side: int, *fractions: tuple[float, float, float]) -> tuple:
    return tuple(tuple(side * fraction for fraction in severity) for severity in fractions)


CORRUPTIONS: dict[str, Corruption] = {
    corruption.name: corruption
    for corruption in (
        Corruption(
            "gaussian_noise",
            "noise",
            noise.gaussian_noise,
            imagenet=(0.08, 0.12, 0.18, 0.26, 0.38),
            cifar=(0.04, 0.06, 0.08, 0.09, 0.10),
        ),
        Corruption(
            "shot_noise",
            "noise",
            noise.shot_noise,
            imagenet=(60, 25, 12, 5, 3),
            cifar=(500, 250, 100, 75, 50),
        ),
        Corruption(
            "impulse_noise",
            "noise",
            noise.impulse_noise,
            imagenet=(0.03, 0.06, 0.09, 0.17, 0.27),
            cifar=(0.01, 0.02, 0.03, 0.05, 0.07),
        ),
        Corruption(
            "defocus_blur",  # radius, softness of the rim
            "blur",
            blur.defocus_blur,
            imagenet=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
            cifar=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ),
        Corruption(
            "glass_blur",  # sigma, reach, iterations
            "blur",
            blur.glass_blur,
            imagenet=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
            cifar=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ),
        Corruption(
            "motion_blur",  # radius, sigma
            "blur",
            blur.motion_blur,
            imagenet=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
            cifar=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ),
        Corruption(
            "zoom_blur",  # end and step of the zoom factors
            "blur",
            blur.zoom_blur,
            imagenet=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
            cifar=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ),
        Corruption(
            "snow",  # mean, scale, zoom, threshold, radius, sigma, share of the picture that stays
            "weather",
            weather.snow,
            imagenet=(
                (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
                (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
                (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
                (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
                (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
            ),
            cifar=(
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
        ),
        Corruption(
            "frost",  # share of the picture, share of the frost, how much smaller than life
            "weather",
            weather.frost,
            imagenet=((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
            cifar=((1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)),
        ),
        Corruption(
            "fog",  # density, decay of the roughness
            "weather",
            weather.fog,
            imagenet=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
            cifar=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ),
        Corruption(
            "brightness",
            "weather",
            digital.brightness,
            imagenet=(0.1, 0.2, 0.3, 0.4, 0.5),
            cifar=(0.05, 0.1, 0.15, 0.2, 0.3),
        ),
        Corruption(
            "contrast",
            "digital",
            digital.contrast,
            imagenet=(0.4, 0.3, 0.2, 0.1, 0.05),
            cifar=(0.75, 0.5, 0.4, 0.3, 0.15),
        ),
        Corruption(
            "elastic_transform",  # strength, sigma, reach of the affine map; 244 is the published number
            "digital",
            digital.elastic_transform,
            imagenet=_elastic(
                244, (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)
            ),
            cifar=_elastic(
                32, (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)
            ),
        ),
        Corruption(
            "pixelate",
            "digital",
            digital.pixelate,
            imagenet=(0.6, 0.5, 0.4, 0.3, 0.25),
            cifar=(0.95, 0.9, 0.85, 0.75, 0.65),
        ),
        Corruption(
            "jpeg_compression",
            "digital",
            digital.jpeg_compression,
            imagenet=(25, 18, 15, 10, 7),
            cifar=(80, 65, 58, 50, 40),
        ),
        Corruption(
            "speckle_noise",
            "noise",
            noise.speckle_noise,
            imagenet=(0.15, 0.2, 0.35, 0.45, 0.6),
            cifar=(0.06, 0.1, 0.12, 0.16, 0.2),
            extra=True,
        ),
        Corruption(
            "gaussian_blur",
            "blur",
            blur.gaussian_blur,
            imagenet=(1, 2, 3, 4, 6),
            cifar=(0.4, 0.6, 0.7, 0.8, 1),
            extra=True,
        ),
        Corruption(
            "spatter",  # mean, scale, sigma, threshold, strength (water) or sigma of the rim (mud), mud or water
            "weather",
            weather.spatter,
            imagenet=(
                (0.65, 0.3, 4, 0.69, 0.6, 0),
                (0.65, 0.3, 3, 0.68, 0.6, 0),
                (0.65, 0.3, 2, 0.68, 0.5, 0),
                (0.65, 0.3, 1, 0.65, 1.5, 1),
                (0.67, 0.4, 1, 0.65, 1.5, 1),
            ),
            cifar=(
                (0.62, 0.1, 0.7, 0.7, 0.5, 0),
                (0.65, 0.1, 0.8, 0.7, 0.5, 0),
                (0.65, 0.3, 1, 0.69, 0.5, 0),
                (0.65, 0.1, 0.7, 0.69, 0.6, 1),
                (0.65, 0.1, 0.5, 0.68, 0.6, 1),
            ),
            extra=True,
        ),
        Corruption(
            "saturate",  # factor, shift
            "digital",
            digital.saturate,
            imagenet=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
            cifar=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
            extra=True,
        ),
    )
}


def list_corruptions(kind: str = "common") -> list[str]:
    """Names of the corruptions, in the order of the paper.

    Args:
        kind (`str`, *optional*, defaults to `"common"`): `common` (the 15 that the mean corruption error averages),
            `extra` (the 4 kept for validation), `all` (19), or one family of the 15: `noise`, `blur`, `weather`,
            `digital`.

    Returns:
        `list[str]`: the names.

    Raises:
        ValueError: if `kind` is unknown.
    """
    kinds = ("common", "extra", "all", "noise", "blur", "weather", "digital")
    if kind not in kinds:
        raise ValueError(f"Unknown kind of corruption {kind!r}; choose one of: {', '.join(kinds)}.")
    return [
        corruption.name
        for corruption in CORRUPTIONS.values()
        if kind in ("all", "extra" if corruption.extra else "common")
        or (kind == corruption.family and not corruption.extra)
    ]


def check_corruption(name: str, severity: int, seed: int) -> Corruption:
    """Looks a corruption up; raises a `ValueError` for an unknown name, severity or seed."""
    if name not in CORRUPTIONS:
        raise ValueError(f"Unknown corruption {name!r}; choose one of: {', '.join(CORRUPTIONS)}.")
    whole = isinstance(severity, (int, np.integer)) and not isinstance(severity, bool)
    if not whole or severity not in SEVERITIES:
        raise ValueError(f"severity must be a whole number from 1 (mild) to 5 (severe), got {severity!r}.")
    _check_key("seed", seed)
    return CORRUPTIONS[name]


def _check_key(argument: str, value: Any) -> int:
    try:
        key = operator.index(value)
    except TypeError:
        key = -1
    if not 0 <= key < 2**64:
        raise ValueError(f"{argument} must be a whole number from 0 to 2**64 - 1, got {value!r}.")
    return key


def _generator(seed: int, name: str, severity: int, index: int) -> np.random.Generator:
    # Fixed-width words: a sequence of plain integers would be ambiguous once one of them exceeds 32 bits.
    words = [seed & 0xFFFFFFFF, seed >> 32, zlib.crc32(name.encode()), severity, index & 0xFFFFFFFF, index >> 32]
    return np.random.default_rng(np.random.SeedSequence(words))


def corrupt(
    images: NDArray[np.uint8], name: str, severity: int, *, indices: Sequence[int], seed: int = 0
) -> NDArray[np.uint8]:
    """Corrupts a batch of images as ImageNet-C and CIFAR-10-C do (https://arxiv.org/abs/1903.12261).

    The parameters are those of CIFAR-10-C where the shorter side has at most 84 pixels and those of ImageNet-C above:
    lengths in pixels are used as published, so resize the images to the size that the model sees first (ImageNet-C
    corrupts crops of 224 x 224). See the module's text for the corruptions that are approximations.

    Args:
        images (`numpy.ndarray` of shape `(B, H, W, 3)`, `uint8`): RGB images, at least 8 x 8 pixels.
        name (`str`): one of `list_corruptions("all")`.
        severity (`int`): 1 (mild) to 5 (severe).
        indices (`Sequence[int]`): the index of each image in its data set, `B` whole numbers of at least 0; with
            `seed`, `name` and `severity` they alone decide the random numbers.
        seed (`int`, *optional*, defaults to 0): gives another draw of the same corruption.

    Returns:
        `numpy.ndarray` of shape `(B, H, W, 3)`, `uint8`: the corrupted images; the input is not changed.

    Raises:
        TypeError: if `images` is not a `uint8` array.
        ValueError: if the shape, the number of indices, the name, the severity or the seed is out of range.

    Example:

    ```python
    >>> import numpy as np
    >>> from peft_reprogram.shift import corrupt
    >>> images = np.full((2, 32, 32, 3), 128, dtype=np.uint8)
    >>> corrupt(images, "gaussian_noise", 3, indices=[0, 1]).shape
    (2, 32, 32, 3)
    ```
    """
    corruption = check_corruption(name, severity, seed)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(
            f"images must be a numpy array of dtype uint8 (0..255), got {found}. "
            "Corruptions come before normalisation: convert with np.asarray(image.convert('RGB'))."
        )
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < SMALLEST_SIDE:
        raise ValueError(
            f"images must have the shape (batch, height, width, 3) with sides of at least {SMALLEST_SIDE} pixels, "
            f"got {images.shape}."
        )
    keys = [_check_key("every index", index) for index in indices]
    if len(keys) != len(images):
        raise ValueError(f"indices must have one entry per image: got {len(keys)} for {len(images)} images.")
    small = min(images.shape[1:3]) <= LARGEST_SMALL_SIDE
    parameters = (corruption.cifar if small else corruption.imagenet)[severity - 1]
    if not isinstance(parameters, tuple):
        parameters = (parameters,)
    corrupted = np.empty_like(images, order="C")
    chunk = max(1, CHUNK_VALUES // images[0].size) if len(images) else 1
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        generators = [_generator(operator.index(seed), name, int(severity), key) for key in keys[part]]
        corrupted[part] = to_uint8(corruption.function(images[part], generators, *parameters))
    return corrupted


def corrupt_image(image: Image.Image, name: str, severity: int, *, index: int = 0, seed: int = 0) -> Image.Image:
    """Corrupts one PIL image; equal to `corrupt` on a batch that holds it.

    Args:
        image (`PIL.Image.Image`): the image; it is converted to RGB.
        name (`str`): one of `list_corruptions("all")`.
        severity (`int`): 1 (mild) to 5 (severe).
        index (`int`, *optional*, defaults to 0): the index of the image in its data set.
        seed (`int`, *optional*, defaults to 0): gives another draw of the same corruption.

    Returns:
        `PIL.Image.Image`: an RGB image of the same size.
    """
    pixels = np.asarray(image.convert("RGB"))[None]
    return Image.fromarray(corrupt(pixels, name, severity, indices=[index], seed=seed)[0])
