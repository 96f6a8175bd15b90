"""The images of a task: what is drawn for training, for choosing and for measuring."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ..data import ImageData, few_shot, load_image_data, train_validation_split
from .config import TaskConfig


DEMO = "demo"
# All cells are measured on the same images and classes, whatever their own seed.
TEST_SEED = 0
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class TaskData:
    """
    The images of a task.

    Args:
        training ([`ImageData`]): The training split, of which cells draw.
        test ([`ImageData`]): In-distribution test images.
        corruptible ([`ImageData`]): The test images that are corrupted.
        shifts (`dict[str, ImageData]`): Shifted test images.
        ood (`dict[str, ImageData]`): Out-of-distribution images.
    """

    training: ImageData
    test: ImageData
    corruptible: ImageData
    shifts: dict[str, ImageData]
    ood: dict[str, ImageData]


def load_task(config: TaskConfig, root: Path) -> TaskData:
    """
    Loads all sets of a task.

    Args:
        config ([`TaskConfig`]): The task.
        root (`Path`): Folder that paths are relative to; what is not there is taken for a Hub id.

    Returns:
        [`TaskData`]
    """
    if config.dataset == DEMO:
        return _load_demo(config)

    def load(path: str, split: str, **options: Any) -> ImageData:
        return load_image_data(resolve(path, root), split=split, **options)

    training = load(config.dataset, config.train_split)
    names = training.class_names
    assert names is not None
    chosen, others = _chosen_classes(names, config.id_classes)
    keep = {"class_names": chosen, "class_map": dict.fromkeys(others)}
    if others:
        training = load(config.dataset, config.train_split, **keep)
    whole_test = load(config.dataset, config.test_split, **keep)
    test = _drawn(whole_test, config.test_images)
    shifts = {name: load(path, "test", class_names=chosen) for name, path in config.shifts.items()}
    ood = {name: load(path, "test", labelled=False) for name, path in config.ood.items()}
    if others:
        ood["other_classes"] = load(
            config.dataset, config.test_split, class_names=others, class_map=dict.fromkeys(chosen)
        )
    return TaskData(
        training,
        test,
        _drawn(test, config.corruption_images),
        {name: _drawn(data, config.test_images) for name, data in shifts.items()},
        {name: _drawn(data, config.ood_images) for name, data in ood.items()},
    )


def draw(data: ImageData, shots: Optional[int], validation_shots: int, seed: int) -> tuple[ImageData, ImageData]:
    """
    Draws what a cell learns from, and what its hyper-parameters are chosen by.

    Args:
        data ([`ImageData`]): The training split.
        shots (`int`, *optional*): Training images of each class; `None` for all but a tenth.
        validation_shots (`int`): Validation images of each class, where `shots` are given.
        seed (`int`): Seed of the draw.

    Returns:
        `tuple[ImageData, ImageData]`: Training and validation images, none in both.

    Raises:
        ValueError: If a class has too few images for both.
    """
    if shots is None:
        return train_validation_split(data, _VALIDATION_SHARE, seed)
    drawn = few_shot(data, shots + validation_shots, seed)
    assert data.class_names is not None
    rows = np.arange(len(drawn)).reshape(len(data.class_names), shots + validation_shots)
    return drawn.select(rows[:, :shots].ravel()), drawn.select(rows[:, shots:].ravel())


def resolve(path: str, root: Path) -> str:
    """A path under the root where there is such a file or folder, otherwise the name as it is, a Hub id."""
    local = re.match(r"[^:\[]+", path)
    return str(root / path) if local and (root / local.group()).exists() else path


def _chosen_classes(names: list[str], number: Optional[int]) -> tuple[list[str], list[str]]:
    if number is None:
        return names, []
    if number >= len(names):
        raise ValueError(f"`id_classes` must leave some of the {len(names)} classes out, got {number}.")
    rows = set(np.random.default_rng(TEST_SEED).permutation(len(names))[:number].tolist())
    return [n for i, n in enumerate(names) if i in rows], [n for i, n in enumerate(names) if i not in rows]


def _drawn(data: ImageData, number: Optional[int]) -> ImageData:
    if number is None or number >= len(data):
        return data
    rows = np.random.default_rng(TEST_SEED).choice(len(data), number, replace=False)
    return data.select(np.sort(rows))


def _load_demo(config: TaskConfig) -> TaskData:
    from ..demo.data import load_demo_data

    demo = load_demo_data(TEST_SEED)

    def images(dataset: Any, name: str) -> ImageData:
        return ImageData(dataset, dataset.features["label"].names, "image", "label", name)

    test = _drawn(images(demo.test, "the demo's test digits"), config.test_images)
    return TaskData(
        images(demo.train, "the demo's training digits"),
        test,
        _drawn(test, config.corruption_images),
        {name: _drawn(images(data, name), config.test_images) for name, data in demo.shifts.items()},
        {name: _drawn(images(data, name), config.ood_images) for name, data in demo.ood.items()},
    )
