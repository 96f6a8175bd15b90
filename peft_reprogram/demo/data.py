"""The demo's downstream task: real handwritten digits, shifted versions of them, and images of no digit class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from .glyphs import HELD_OUT_FONTS, draw_character, warp


if TYPE_CHECKING:
    from datasets import Dataset


CLASS_NAMES: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The classes of the demo, in label order; they read well in "a photo of a {}"."""

OOD_LETTERS = "AEFHKMNPRTUVWX"  # left out: the letters that can pass for a digit, such as B, I, O, S and Z

_SIZE, _MARGIN = (
    32,
    4,
)  # a scan covers the inner 24 px, so that every set shows its content clear of the picture's edge
_TEST_SHARE, _VALIDATION_SHARE = 0.25, 0.15


@dataclass(frozen=True)
class DemoData:
    """
    The data sets of the demo. Each has the columns `image` (`PIL.Image.Image`, RGB, 32 x 32) and `label` (`ClassLabel`).

    Args:
        train (`datasets.Dataset`):
            1,077 handwritten digits to adapt on.
        validation (`datasets.Dataset`):
            270 digits to select with.
        test (`datasets.Dataset`):
            450 digits to report on (in-distribution).
        shifts (`dict[str, datasets.Dataset]`):
            The test digits, in the same order, under each distribution shift: `inverted`, `rotated`, `noisy`,
            `thick_stroke` and `coloured_background`.
        ood (`dict[str, datasets.Dataset]`):
            450 images of no digit class each: `letters` (near) and `photos` (far). Their labels name letters and photographs.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    shifts: dict[str, Dataset]
    ood: dict[str, Dataset]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the ten classes, in label order."""
        return CLASS_NAMES


def load_demo_data(seed: int = 0) -> DemoData:
    """
    Builds the demo's data sets in memory from what scikit-learn and matplotlib ship; nothing is downloaded.

    The in-distribution images are scikit-learn's handwritten digits, 1,797 scans of 8 x 8 pixels, enlarged to 24 x 24 on a black
    32 x 32 picture. The letters are drawn in fonts that the demo's model was not pre-trained on and go through the same reduction
    to 8 x 8 as the scans did, so that little but their meaning tells them apart. The photos are crops of scikit-learn's two sample
    photographs.

    Args:
        seed (`int`, *optional*, defaults to 0):
            Decides the stratified split and every random choice of the shifts and of the out-of-distribution sets. The same
            seed gives the same images.

    Returns:
        [`DemoData`]

    Raises:
        ImportError: if scikit-learn or matplotlib is missing.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "The demo's data come from scikit-learn, which is not installed. "
            "Install the demo's extra: pip install 'peft-reprogram[demo]'."
        ) from error

    scans, labels = load_digits(return_X_y=True)
    pictures = np.stack([_enlarge(scan) for scan in scans.reshape(-1, 8, 8)])
    index = np.arange(len(labels))
    index, test = train_test_split(index, test_size=_TEST_SHARE, random_state=seed, stratify=labels)
    train, validation = train_test_split(
        index, test_size=_VALIDATION_SHARE / (1 - _TEST_SHARE), random_state=seed, stratify=labels[index]
    )
    shifts = {
        name: np.stack([shift(picture, rng) for picture in pictures[test]])
        for (name, shift), rng in zip(_SHIFTS.items(), _generators(seed, 0, len(_SHIFTS)))
    }
    letter_rng, photo_rng = _generators(seed, 1, 2)
    letters, letter_labels = _letters(len(test), letter_rng)
    photos, photo_labels, photo_names = _photos(len(test), photo_rng)
    return DemoData(
        train=_dataset(pictures[train], labels[train], CLASS_NAMES),
        validation=_dataset(pictures[validation], labels[validation], CLASS_NAMES),
        test=_dataset(pictures[test], labels[test], CLASS_NAMES),
        shifts={name: _dataset(shifted, labels[test], CLASS_NAMES) for name, shifted in shifts.items()},
        ood={
            "letters": _dataset(letters, letter_labels, tuple(OOD_LETTERS)),
            "photos": _dataset(photos, photo_labels, photo_names),
        },
    )


def _generators(seed: int, family: int, count: int) -> list[np.random.Generator]:
    """One independent generator a set: adding images to a set leaves the others as they are."""
    return [np.random.default_rng([seed, family, member]) for member in range(count)]


def _dataset(pictures: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Dataset:
    """`pictures` are floats in [0, 1], (N, 32, 32) or (N, 32, 32, 3)."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    pixels = np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
    images = [Image.fromarray(array).convert("RGB") for array in pixels]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": images, "label": [int(label) for label in labels]}, features=features)


def _enlarge(scan: np.ndarray) -> np.ndarray:
    """8 x 8 counts in [0, 16] -> (32, 32) floats in [0, 1]: bicubic to 24 x 24 inside a black margin."""
    inner = _SIZE - 2 * _MARGIN
    grey = Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8))
    picture = np.asarray(grey.resize((inner, inner), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    return np.pad(picture, _MARGIN)


# Shifts: (32, 32) floats in [0, 1] and a generator -> (32, 32) or (32, 32, 3) floats.


def _inverted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 - picture


def _rotated(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(20, 45) * rng.choice((-1, 1))
    image = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
    return np.asarray(image.rotate(angle, Image.Resampling.BICUBIC), dtype=np.float64) / 255


def _noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return picture + rng.normal(0.0, 0.25, picture.shape)


def _thick_stroke(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(3)), dtype=np.float64) / 255


def _coloured_background(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    colour = rng.uniform(0.0, 0.8, 3)
    return picture[..., None] + (1 - picture[..., None]) * colour


_SHIFTS = {
    "inverted": _inverted,
    "rotated": _rotated,
    "noisy": _noisy,
    "thick_stroke": _thick_stroke,
    "coloured_background": _coloured_background,
}


def _letters(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Letters reduced as the digits were: a 32 x 32 bitmap that the glyph fills, then the count of ink in each 4 x 4 block."""
    pictures, labels = [], []
    for position in range(count):
        label = position % len(OOD_LETTERS)
        font = HELD_OUT_FONTS[int(rng.integers(len(HELD_OUT_FONTS)))]
        glyph = draw_character(OOD_LETTERS[label], font, stroke_width=int(rng.integers(0, 2)))
        glyph = warp(glyph, rng, rotation=rng.uniform(-10, 10), shear=rng.uniform(-0.2, 0.2), wobble=1.5, size=64)
        glyph = glyph.crop(glyph.getbbox())
        width = min(32, round(32 * glyph.width / glyph.height))
        bitmap = np.asarray(glyph.resize((width, 32), Image.Resampling.BILINEAR)) > 127
        left = (32 - width) // 2
        bitmap = np.pad(bitmap, ((0, 0), (left, 32 - width - left)))
        pictures.append(_enlarge(bitmap.reshape(8, 4, 8, 4).sum(axis=(1, 3))))
        labels.append(label)
    return np.stack(pictures), np.array(labels)


def _photos(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Square crops of 64 to 192 px of scikit-learn's two photographs, shrunk to 32 px."""
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    photographs = [Image.fromarray(photograph) for photograph in sample.images]
    pictures, labels = [], []
    for position in range(count):
        label = position % len(photographs)
        photograph = photographs[label]
        side = int(rng.integers(64, 193))
        left = int(rng.integers(photograph.width - side + 1))
        top = int(rng.integers(photograph.height - side + 1))
        crop = photograph.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        pictures.append(np.asarray(crop, dtype=np.float64) / 255)
        labels.append(label)
    return np.stack(pictures), np.array(labels), tuple(Path(name).stem for name in sample.filenames)
