"""A corruption as a view of a data set: the images are corrupted when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from .corruptions import check_corruption, corrupt


if TYPE_CHECKING:
    import datasets

    AnyDataset = TypeVar("AnyDataset", datasets.Dataset, datasets.IterableDataset)

# Holds, in the data set that with_corruption returns, the position of each row in the data set that it was given.
POSITION_COLUMN = "corruption_index"


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class _Corrupter:
    """Corrupts the images of one batch; a class so that it can be sent to other processes."""

    name: str
    severity: int
    seed: int
    image_column: str
    index_column: str | None
    drop_index: bool
    earlier: Callable[[dict], dict] | None = None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        batch = dict(batch)
        indices = batch.get(self.index_column) if self.index_column is not None else None
        if self.drop_index:
            batch.pop(str(self.index_column), None)
        if self.earlier is not None:
            batch = dict(self.earlier(batch))
        if self.image_column not in batch:
            if indices is None:
                return batch  # columns without images, as after select_columns(["label"])
            raise ValueError(
                f"The column {self.image_column!r} of the corrupted images is gone, there are {list(batch)}: rename "
                "or remove columns before with_corruption; to read other columns alone, use select_columns."
            )
        if self.index_column is not None and indices is None:
            raise ValueError(
                f"The column {self.index_column!r}, which decides the random numbers, is gone: keep it together with "
                f"{self.image_column!r}, or select columns before with_corruption."
            )
        batch[self.image_column] = self._corrupt(batch[self.image_column], indices)
        return batch

    def _corrupt(self, images: list[Any], indices: list[Any] | None) -> list[Image.Image]:
        arrays = []
        for image in images:
            if not isinstance(image, Image.Image):
                raise TypeError(
                    f"The column {self.image_column!r} must give PIL images, got {type(image).__name__}: "
                    f'decode it with dataset.cast_column("{self.image_column}", datasets.Image()).'
                )
            arrays.append(np.asarray(image.convert("RGB")))
        if indices is None:
            keys = [_hash(str(array.shape).encode() + array.tobytes()) for array in arrays]
        else:
            keys = [_hash(index.encode()) if isinstance(index, str) else index for index in indices]
        if len({array.shape for array in arrays}) == 1:
            corrupted = list(self._corrupt_stack(np.stack(arrays), keys))
        else:
            corrupted = [self._corrupt_stack(array[None], [key])[0] for array, key in zip(arrays, keys)]
        return [Image.fromarray(array) for array in corrupted]

    def _corrupt_stack(self, arrays: np.ndarray, keys: list[int]) -> np.ndarray:
        return corrupt(arrays, self.name, self.severity, indices=keys, seed=self.seed)


def with_corruption(
    dataset: AnyDataset,
    name: str,
    severity: int,
    seed: int = 0,
    image_column: str = "image",
    index_column: str | None = None,
) -> AnyDataset:
    """Gives a view of a data set whose images are corrupted when they are read, see [`corrupt`].

    Nothing is decoded or computed before a row is read. The other columns stay, a transform that the data set already
    has is applied first (so that a resize comes before the corruption, as in ImageNet-C), and the result can be
    selected, shuffled, sharded and read by workers: an image is corrupted in the same way wherever it then lands.

    The random numbers of an image are those of its index:

    - for a `datasets.Dataset`, its position in the data set given here (kept in a column `corruption_index`, which the
      rows do not show); of a data set that was shuffled or selected by scattered indices before, `datasets` copies the
      encoded rows to its cache for that, once: call this function first, or name an `index_column`, to save the copy;
    - for a `datasets.IterableDataset`, a hash of the image's pixels, because a stream has no position that survives
      shards and workers;
    - with `index_column`, the value of that column.

    To read labels alone, use `select_columns`: reading a column of the view otherwise reads, and corrupts, whole rows.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): the data set, with a column of images.
        name (`str`): one of `list_corruptions("all")`.
        severity (`int`): 1 (mild) to 5 (severe).
        seed (`int`, *optional*, defaults to 0): gives another draw of the same corruption.
        image_column (`str`, *optional*, defaults to `"image"`): the column of the images.
        index_column (`str`, *optional*): a column of whole numbers of at least 0, or of text (such as `__key__` of
            WebDataset files), that identifies each image.

    Returns:
        The same type as `dataset`: rows with RGB `PIL.Image.Image` images.

    Raises:
        TypeError: if `dataset` is neither of the two types, or its images are not decoded.
        ValueError: if the corruption, the severity, the seed or a column is unknown, or if the data set has a format
            (such as `torch`) that would turn the images into tensors.

    Example:

    ```python
    >>> from peft_reprogram.shift import with_corruption
    >>> foggy = with_corruption(dataset, "fog", severity=3)
    >>> foggy[0]["image"]
    <PIL.Image.Image image mode=RGB size=224x224>
    ```
    """
    import datasets

    check_corruption(name, severity, seed)
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        splits = f" Choose a split: dataset[{next(iter(dataset))!r}]." if isinstance(dataset, dict) and dataset else ""
        raise TypeError(
            f"dataset must be a datasets.Dataset or a datasets.IterableDataset, got {type(dataset).__name__}.{splits}"
        )
    known = dataset.column_names
    for argument, column in (("image_column", image_column), ("index_column", index_column)):
        if column is not None and known is not None and column not in known:
            raise ValueError(f"{argument} {column!r} is not a column of the data set; it has: {', '.join(known)}.")
    if isinstance(dataset, datasets.IterableDataset):
        corrupter = _Corrupter(name, severity, seed, image_column, index_column, drop_index=False)
        # The features are passed on because a stream forgets them (and the class names) in map otherwise.
        return dataset.map(corrupter, batched=True, batch_size=16, features=dataset.features)
    form: dict[str, Any] = dataset.format
    if form["type"] not in (None, "custom"):
        raise ValueError(
            f"The data set has the format {form['type']!r}, which would replace the corrupted images: "
            "use dataset.with_format(None), and make tensors after the corruption (in the collate function)."
        )
    if image_column not in form["columns"]:
        raise ValueError(
            f"The format of the data set hides the column {image_column!r}, it shows: {', '.join(form['columns'])}. "
            "Use dataset.with_format(None)."
        )
    position = index_column
    if position is None:
        position = POSITION_COLUMN
        while position in dataset.column_names:  # a corruption on top of another
            position += "_"
        dataset = dataset.add_column(position, np.arange(len(dataset)))
    hidden_index = position not in form["columns"]
    corrupter = _Corrupter(
        name, severity, seed, image_column, position, hidden_index, form["format_kwargs"].get("transform")
    )
    columns = [*form["columns"], position] if hidden_index else form["columns"]
    return dataset.with_transform(corrupter, columns=columns, output_all_columns=form["output_all_columns"])
