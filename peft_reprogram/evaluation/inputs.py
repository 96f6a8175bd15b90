"""The sets that are measured on, brought into one form: image data whose labels mean the classifier's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch

from ..data import ImageData, ImagePreprocessor, _resize_and_crop, prepare, to_rgb
from ..shift import map_labels, with_corruption


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    ImageSet = Union[ImageData, Dataset, IterableDataset]


def as_image_data(images: ImageSet, name: str) -> ImageData:
    """
    A set of images from whatever it was given as.

    Args:
        images ([`ImageData`], `datasets.Dataset` or `datasets.IterableDataset`): A data set needs exactly one column of
            type `datasets.Image`; a column of type `datasets.ClassLabel`, if there is one, holds its labels.
        name (`str`): What the set is called in messages.

    Returns:
        [`ImageData`]

    Raises:
        TypeError: If `images` is something else.
        ValueError: If there are no such columns, or several.
    """
    if isinstance(images, ImageData):
        return images
    from datasets import ClassLabel, Dataset, Image, IterableDataset

    if not isinstance(images, (Dataset, IterableDataset)):
        raise TypeError(
            f"the set {name!r} must be an ImageData, a datasets.Dataset or a datasets.IterableDataset, got "
            f"{type(images).__name__}. `load_image_data` makes one from a Hub id, a folder or a file."
        )
    features = images.features or {}
    image_columns = [column for column, feature in features.items() if isinstance(feature, Image)]
    label_columns = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(image_columns) != 1 or len(label_columns) > 1:
        columns = ", ".join(f"{column!r} ({type(feature).__name__})" for column, feature in features.items())
        raise ValueError(
            f"the set {name!r} needs one column of type Image and at most one of type ClassLabel; it has "
            f"{columns or 'no known columns'}. Load it with `load_image_data`, where columns and classes can be named."
        )
    (image_column,), label_column = image_columns, next(iter(label_columns), None)
    class_names = features[label_column].names if label_column is not None else None
    if not is_view(images):
        images = images.cast_column(image_column, Image(decode=False))
    return ImageData(images, class_names, image_column, label_column, f"a {type(images).__name__}")


def corrupted(data: ImageData, corruption: str, severity: int, seed: int, source_resolution: int | None) -> ImageData:
    """
    A corruption of a set, applied at `source_resolution`, as the published corrupted sets are.

    Args:
        data ([`ImageData`]): The set.
        corruption (`str`): One of `list_corruptions("all")`.
        severity (`int`): 1 to 5.
        seed (`int`): Seed of the corruption's random numbers.
        source_resolution (`int`, *optional*): Side in pixels that images are brought to first.

    Returns:
        [`ImageData`]: A view; images are corrupted when they are read.

    Raises:
        ValueError: If corruption, severity or seed is unknown.
    """
    from datasets import Image

    dataset, column = data.dataset, data.image_column
    if not is_view(dataset):
        dataset = dataset.cast_column(column, Image())
        resize = _Resize(column, source_resolution)
        if data.streaming:
            dataset = dataset.map(resize, batched=True, batch_size=16, features=dataset.features)
        else:
            dataset = dataset.with_transform(resize)
    dataset = with_corruption(dataset, corruption, severity, seed, image_column=column)
    if data.streaming:
        # A stream encodes what it made (as PNG, without loss), so its rows look like those of any other.
        dataset = dataset.cast_column(column, Image(decode=False))
    return replace(data, dataset=dataset, source=f"{data.source}, {corruption} {severity}")


@dataclass(frozen=True)
class _Resize:
    """Brings decoded images to the source resolution; a class so that `datasets` can hash and send it."""

    column: str
    side: int | None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if self.column not in batch:
            return batch
        images = [to_rgb(image) for image in batch[self.column]]
        if self.side is not None:
            images = [_resize_and_crop(image, self.side) for image in images]
        return {**batch, self.column: images}


class LabelMap:
    """
    The labels of a set in terms of the classifier's classes, matched by name.

    Args:
        data ([`ImageData`]): The set.
        class_names (`Sequence[str]`): The classifier's classes.
        name (`str`): What the set is called in messages.

    Raises:
        ValueError: If the set carries no labels, or a class has no counterpart.
    """

    def __init__(self, data: ImageData, class_names: Sequence[str], name: str) -> None:
        self.name = name
        if data.label_column is None:
            raise ValueError(
                f"the set {name!r} ({data.source}) carries no labels, so no accuracy can be measured on it. Load it with "
                "labels, or give it as `ood` if its images belong to none of the classes."
            )
        own = data.class_names or class_names
        self.num_labels = len(own)
        if list(own) == list(class_names):
            self.target = np.arange(len(own))
        else:
            try:
                self.target = map_labels(own, class_names)
            except ValueError as error:
                raise ValueError(
                    f"the classes of the set {name!r} ({data.source}) are not the classifier's. {error} Or load the set with "
                    "`load_image_data(..., class_names=..., class_map=...)`."
                ) from error

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """
        Args:
            labels (`np.ndarray`): As the set gives them, `(N,)`.

        Returns:
            `np.ndarray`: Indices of the classifier's classes.

        Raises:
            ValueError: If a label lies outside the classes.
        """
        outside = np.unique(labels[(labels < 0) | (labels >= self.num_labels)])
        if outside.size:
            raise ValueError(
                f"the set {self.name!r} has the labels {outside[:5].tolist()}, but its classes are numbered 0 to "
                f"{self.num_labels - 1}. A label of -1 means that the split carries no true labels: choose another split."
            )
        return self.target[labels]


def prepare_rows(data: ImageData, preprocess: ImagePreprocessor) -> Any:
    """As [`~peft_reprogram.data.prepare`], and for views whose rows hold decoded images too."""
    return _ViewRows(data, preprocess) if is_view(data.dataset) else prepare(data, preprocess)


class _ViewRows(torch.utils.data.Dataset):
    def __init__(self, data: ImageData, preprocess: ImagePreprocessor) -> None:
        self.data = data
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        columns = self.data.dataset[indices]
        examples: list[dict[str, Any]] = [
            {"pixel_values": pixels} for pixels in self.preprocess(columns[self.data.image_column])
        ]
        if self.data.label_column is not None:
            for example, label in zip(examples, columns[self.data.label_column], strict=True):
                example["labels"] = label
        return examples


def is_view(dataset: Any) -> bool:
    """Whether rows are made when they are read, so that no feature type describes them."""
    return hasattr(dataset, "format") and dataset.format["type"] == "custom"
