"""Image classification data: found, checked and brought into one form, from any source that `datasets` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .shift.labels import normalize_name
from .tuners.reprogrammer.prompts import check_class_names


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from PIL.Image import Image

# Only asked when the features of the data do not say which column is which.
IMAGE_COLUMN_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABEL_COLUMN_NAMES = ("label", "labels", "class", "cls", "target")


@dataclass(frozen=True)
class ImageData:
    """
    Images with their labels, whatever they came from.

    Images stay encoded in `dataset` until they are prepared for a model, so that selecting rows and reading labels costs
    no decoding.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            The rows. The label column, where there is one, holds indices into `class_names`.
        class_names (`list[str]`, *optional*):
            The classes in label order, or `None` where the rows carry no labels.
        image_column (`str`):
            Name of the column of images.
        label_column (`str`, *optional*):
            Name of the column of labels, or `None` where the rows carry none.
        source (`str`, *optional*, defaults to `"the data"`):
            Where the rows came from, for messages.
        rows (`numpy.ndarray`, *optional*):
            Row numbers in the source, of shape `(N,)`, where `dataset` is a selection. They name a row in messages.
        revision (`str`, *optional*):
            The revision of the Hub data set that was asked for.
    """

    dataset: Dataset | IterableDataset
    class_names: list[str] | None
    image_column: str
    label_column: str | None
    source: str = "the data"
    rows: np.ndarray | None = None
    revision: str | None = None

    @property
    def streaming(self) -> bool:
        """Whether the rows arrive as a stream, with neither length nor random access."""
        return not hasattr(self.dataset, "__len__")

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError(
                f"{self.source} is a stream and has no length; load it with `streaming=False` to count it."
            )
        return len(self.dataset)

    @property
    def labels(self) -> np.ndarray:
        """The labels, `(N,)` int64, read without decoding an image."""
        self._needs_rows("reading all labels")
        if self.label_column is None:
            raise ValueError(f"{self.source} carries no labels.")
        return _read_column(self.dataset, self.label_column).astype(np.int64)

    def select(self, indices: Sequence[int] | np.ndarray) -> ImageData:
        """
        The given rows, in the given order.

        Args:
            indices (`Sequence[int]`):
                Row numbers in this data.

        Returns:
            [`ImageData`]: the selection, which remembers the row numbers in the source.
        """
        self._needs_rows("selecting rows")
        indices = np.asarray(indices, dtype=np.int64)
        rows = indices if self.rows is None else self.rows[indices]
        return replace(self, dataset=self.dataset.select(indices), rows=rows)

    def _needs_rows(self, action: str) -> None:
        if self.streaming:
            raise ValueError(
                f"{action} needs random access, but {self.source} is a stream; load it with `streaming=False`."
            )


def load_image_data(
    path: str | Path,
    *,
    split: str,
    name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str | None] | None = None,
    labelled: bool = True,
    skip_unreadable: bool = False,
    revision: str | None = None,
    streaming: bool = False,
) -> ImageData:
    """
    Loads an image classification set and checks that it is one.

    The image and label columns are found by their feature type (`datasets.Image`, `datasets.ClassLabel`), then by name.

    Args:
        path (`str` or `Path`):
            A Hub id, a local folder (parquet files, an image folder, or the output of `save_to_disk`), or a parquet file.
        split (`str`):
            The split, in the syntax of `datasets` (`"train"`, `"test[:1000]"`).
        name (`str`, *optional*):
            The configuration of a data set that has several.
        image_column (`str`, *optional*):
            The column of images, where it cannot be found or there are several.
        label_column (`str`, *optional*):
            The column of labels, where it cannot be found or there are several.
        class_names (`Sequence[str]`, *optional*):
            The class order to bring the labels to. Labels with names are matched **by name**, so that a shift set with
            another order, or with some of the classes only, is scored rightly; integer labels without names are taken as
            indices into this list. Case, hyphens and underscores make no difference where the names differ without them too.
            Defaults to the names that the data carries, in its own order.
        class_map (`Mapping[str, str | None]`, *optional*):
            What to call a class of the data in terms of `class_names`, e.g. `{"car": "automobile"}`. `None` leaves the
            rows of the class out, e.g. `{"monkey": None}`.
        labelled (`bool`, *optional*, defaults to `True`):
            `False` ignores labels, as for out-of-distribution images.
        skip_unreadable (`bool`, *optional*, defaults to `False`):
            Leaves out the rows whose image cannot be decoded. Costs one decoding of every image.
        revision (`str`, *optional*):
            The revision of a Hub data set.
        streaming (`bool`, *optional*, defaults to `False`):
            Reads rows as they are needed instead of preparing the whole set first.

    Returns:
        [`ImageData`]: the rows with their labels as indices into `class_names`.

    Raises:
        FileNotFoundError: if there is no such data or split.
        ValueError: if no image or label column is found, a label lies outside the classes, or class names are missing,
            duplicated or unknown.

    Example:
        ```py
        >>> train = load_image_data("uoft-cs/cifar10", split="train")
        >>> shift = load_image_data("path/to/shifted", split="test", class_names=train.class_names)
        ```
    """
    from datasets import ClassLabel, Image

    source = f"{path} (split '{split}')"
    if class_names is not None:
        class_names = check_class_names(class_names)
    dataset = _load(str(path), split=split, name=name, revision=revision, streaming=streaming)
    features = dataset.features
    if features is None:  # a stream does not know its columns before its first row
        dataset = dataset._resolve_features()
        features = dataset.features

    image_column = _find_column(features, image_column, Image, IMAGE_COLUMN_NAMES, "image", source)
    if labelled:
        label_column = _find_column(features, label_column, ClassLabel, LABEL_COLUMN_NAMES, "label", source)
    else:
        label_column = None
    columns = [image_column] if label_column is None else [image_column, label_column]
    # Encoded until it is prepared: reading labels or selecting rows then never decodes, and an image that cannot be
    # decoded is met where its row number is known.
    try:
        dataset = dataset.select_columns(columns).cast_column(image_column, Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # Arrow has no such cast
        raise ValueError(
            f"the column '{image_column}' of {source} holds no images but {features[image_column]}. Name the column of "
            "images, image bytes or image paths with `image_column`."
        ) from error
    data = ImageData(dataset, None, image_column, label_column, source, revision=revision)
    if skip_unreadable:
        data = _without_unreadable(data)
    return data if label_column is None else _with_class_order(data, label_column, class_names, class_map or {})


def few_shot(data: ImageData, shots: int, seed: int) -> ImageData:
    """
    Draws the same number of rows from every class.

    With one seed, fewer shots are a subset of more shots.

    Args:
        data ([`ImageData`]):
            The labelled rows, in any order.
        shots (`int`):
            Rows to draw from every class, at least 1.
        seed (`int`):
            Seed of the draw.

    Returns:
        [`ImageData`]: `shots` rows of each class.

    Raises:
        ValueError: if a class has too few rows, or the data is a stream.
    """
    if shots < 1:
        raise ValueError(f"`shots` is the number of images of each class and must be at least 1, got {shots}.")
    by_class = _shuffled_rows_by_class(data, seed)
    short = {name: len(rows) for name, rows in by_class.items() if len(rows) < shots}
    if short:
        raise ValueError(
            f"{shots} shots were asked for, but {data.source} has fewer images of {_abbreviate(_counts(short))}. "
            f"Ask for at most {min(short.values())} shots, or leave these classes out of `class_names`."
        )
    return data.select(np.concatenate([rows[:shots] for rows in by_class.values()]))


def train_validation_split(data: ImageData, validation_fraction: float, seed: int) -> tuple[ImageData, ImageData]:
    """
    Sets rows of every class aside for validation.

    Args:
        data ([`ImageData`]):
            The labelled rows, in any order.
        validation_fraction (`float`):
            Share of each class to set aside, between 0 and 1 exclusive; at least one row of each class is taken.
        seed (`int`):
            Seed of the draw.

    Returns:
        `tuple[ImageData, ImageData]`: the rows to train on and the rows to validate on, both in source order.

    Raises:
        ValueError: if a class has too few rows to be in both parts, or the data is a stream.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must lie between 0 and 1 exclusive, got {validation_fraction}.")
    by_class = {name: rows for name, rows in _shuffled_rows_by_class(data, seed).items() if len(rows)}
    single = [name for name, rows in by_class.items() if len(rows) < 2]
    if single:
        raise ValueError(
            f"{data.source} cannot be split into training and validation rows: {_abbreviate(map(repr, single))} has only one image. "
            "Leave the class out, or name a split of its own for validation."
        )
    held_out = {
        name: min(max(1, round(validation_fraction * len(rows))), len(rows) - 1) for name, rows in by_class.items()
    }
    validation = np.concatenate([rows[: held_out[name]] for name, rows in by_class.items()])
    training = np.concatenate([rows[held_out[name] :] for name, rows in by_class.items()])
    return data.select(np.sort(training)), data.select(np.sort(validation))


class ImagePreprocessor:
    """
    Turns images into the input of a model.

    Args:
        image_processor (`transformers.BaseImageProcessor`):
            The image processor of the model; a processor that holds one works too.
        source_resolution (`int`, *optional*):
            Brings every image to this side first (bicubic resize of the shorter side, then centre crop). Sets whose images
            differ in size are then told apart by their content, not by their sharpness: 32 for CIFAR-10 and what it is
            compared with. Defaults to what `image_processor` was saved with, otherwise to none.

    Example:
        ```py
        >>> preprocess = ImagePreprocessor(AutoImageProcessor.from_pretrained(path), source_resolution=32)
        >>> preprocess([image]).shape
        torch.Size([1, 3, 224, 224])
        ```
    """

    def __init__(self, image_processor: Any, source_resolution: int | None = None):
        self.image_processor = getattr(image_processor, "image_processor", image_processor)
        if source_resolution is None:
            source_resolution = getattr(self.image_processor, "source_resolution", None)
        if source_resolution is not None and source_resolution < 1:
            raise ValueError(
                f"`source_resolution` is a side in pixels and must be at least 1, got {source_resolution}."
            )
        self.source_resolution = source_resolution

    def __call__(self, images: Sequence[Image]) -> torch.Tensor:
        """
        Args:
            images (`Sequence[PIL.Image.Image]`):
                `B` images of any mode and size.

        Returns:
            `torch.Tensor`: `pixel_values`, float32 of shape `(B, 3, H, W)`.

        Raises:
            ValueError: if the image processor gives the images different shapes.
        """
        images = [to_rgb(image) for image in images]
        if self.source_resolution is not None:
            images = [_resize_and_crop(image, self.source_resolution) for image in images]
        pixel_values = self.image_processor(images=images)["pixel_values"]
        shapes = {tuple(np.shape(pixels)) for pixels in pixel_values}
        if len(shapes) > 1:
            raise ValueError(
                f"{type(self.image_processor).__name__} gives images of different shapes: {sorted(shapes)}. Set a fixed "
                "`size` (height and width) or `do_center_crop=True` in the image processor, or pass `source_resolution`."
            )
        return torch.from_numpy(np.stack([np.asarray(pixels, dtype=np.float32) for pixels in pixel_values]))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """
        Writes the image processor, `source_resolution` included, into `preprocessor_config.json`.

        Args:
            save_directory (`str` or `Path`):
                The folder to write to.
        """
        self.image_processor.source_resolution = self.source_resolution
        self.image_processor.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, path: str | Path, source_resolution: int | None = None) -> ImagePreprocessor:
        """
        Reads what `save_pretrained` wrote, or the image processor of any model.

        Args:
            path (`str` or `Path`):
                A Hub id or a local folder.
            source_resolution (`int`, *optional*):
                Overrides the saved one.

        Returns:
            [`ImagePreprocessor`]: the preprocessor.
        """
        from transformers import AutoImageProcessor

        return cls(AutoImageProcessor.from_pretrained(str(path)), source_resolution)


class PreparedImages(torch.utils.data.Dataset):
    """
    Model input for every row, prepared when it is asked for.

    Args:
        data ([`ImageData`]):
            The rows.
        preprocess ([`ImagePreprocessor`]):
            Turns images into `pixel_values`.
    """

    def __init__(self, data: ImageData, preprocess: ImagePreprocessor):
        data._needs_rows("a map-style data set")
        self.data = data
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        # The data loader asks for a whole batch at once: one call of the image processor instead of one an image.
        columns = self.data.dataset[indices]
        images = [
            _decode(value, self.data, index)
            for value, index in zip(columns[self.data.image_column], indices, strict=True)
        ]
        examples: list[dict[str, Any]] = [{"pixel_values": pixels} for pixels in self.preprocess(images)]
        if self.data.label_column is not None:
            for example, label in zip(examples, columns[self.data.label_column], strict=True):
                example["labels"] = label
        return examples


def prepare(data: ImageData, preprocess: ImagePreprocessor) -> PreparedImages | IterableDataset:
    """
    Makes data ready for a `torch.utils.data.DataLoader` with [`collate`].

    Args:
        data ([`ImageData`]):
            The rows, random access or stream.
        preprocess ([`ImagePreprocessor`]):
            Turns images into `pixel_values`.

    Returns:
        [`PreparedImages`] or `datasets.IterableDataset`: yields `{"pixel_values": (3, H, W), "labels": int}`, without
        `labels` where the data carries none.
    """
    if not data.streaming:
        return PreparedImages(data, preprocess)

    def prepare_row(row: dict[str, Any], index: int) -> dict[str, Any]:
        prepared: dict[str, Any] = {"pixel_values": preprocess([_decode(row[data.image_column], data, index)])[0]}
        if data.label_column is not None:
            prepared["labels"] = row[data.label_column]
        return prepared

    columns = [column for column in (data.image_column, data.label_column) if column is not None]
    return data.dataset.map(prepare_row, with_indices=True, remove_columns=columns)


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """
    Stacks prepared examples into a batch.

    Args:
        examples (`Sequence[Mapping[str, Any]]`):
            `B` examples of [`prepare`].

    Returns:
        `dict[str, torch.Tensor]`: `pixel_values` of shape `(B, 3, H, W)` and, where there are labels, `labels` of shape
        `(B,)` int64.
    """
    batch = {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([int(example["labels"]) for example in examples], dtype=torch.int64)
    return batch


def to_rgb(image: Image) -> Image:
    """
    Brings an image of any mode to RGB; grey levels deeper than 8 bits are scaled, not cut off.

    Args:
        image (`PIL.Image.Image`):
            The image.

    Returns:
        `PIL.Image.Image`: the image in mode RGB.
    """
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: `convert` would clip everything above 255 to white. Pillow opens some of it as 32-bit integers.
        image = Image.fromarray((np.clip(np.asarray(image, dtype=np.int64), 0, 65535) // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _load(
    path: str, *, split: str, name: str | None, revision: str | None, streaming: bool
) -> Dataset | IterableDataset:
    from datasets import DatasetDict, load_dataset, load_from_disk

    local = Path(path).expanduser()
    if not local.exists() and (local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1):
        raise FileNotFoundError(
            f"there is no '{path}'. Give a Hub id (`user/name`), a folder that `datasets.load_dataset` reads, or a parquet file."
        )
    try:
        if local.is_file():
            files = {split.split("[")[0]: str(local)}
            return load_dataset("parquet", data_files=files, split=split, streaming=streaming)
        if (local / "state.json").is_file():
            return _as_stream(load_from_disk(str(local)), streaming)
        if (local / "dataset_dict.json").is_file():
            saved: DatasetDict = load_from_disk(str(local))
            if split not in saved:
                raise ValueError(f"Unknown split '{split}'. Should be one of {list(saved)}.")
            return _as_stream(saved[split], streaming)
        source = str(local) if local.exists() else path
        return load_dataset(source, name, split=split, revision=revision, streaming=streaming)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise FileNotFoundError(
            f"cannot load '{path}' (split '{split}'): {error} Check the path or Hub id and the split; give the configuration "
            "as `name` where the data set has several."
        ) from error


def _as_stream(dataset: Dataset, streaming: bool) -> Dataset | IterableDataset:
    return dataset.to_iterable_dataset() if streaming else dataset


def _find_column(
    features: Mapping[str, Any], given: str | None, feature_type: type, names: Sequence[str], kind: str, source: str
) -> str:
    columns = _abbreviate(f"'{name}' ({type(feature).__name__})" for name, feature in features.items())
    if given is not None:
        if given not in features:
            raise ValueError(f"{source} has no column '{given}'. Its columns are {columns}.")
        return given
    typed = [column for column, feature in features.items() if isinstance(feature, feature_type)]
    found = typed if len(typed) == 1 else [column for column in typed or features if column.lower() in names]
    if len(found) != 1:
        problem = f"several {kind} columns" if typed or found else f"no {kind} column"
        raise ValueError(f"{source}: {problem} found among {columns}. Name it with `{kind}_column`.")
    return found[0]


def _with_class_order(
    data: ImageData, label_column: str, class_names: list[str] | None, class_map: Mapping[str, str | None]
) -> ImageData:
    """The rows with labels that index `class_names`, which default to the names that the data carries."""
    from datasets import ClassLabel

    own_names = _own_class_names(data, label_column, class_names, class_map)
    target, target_index = _match_classes(own_names, class_names, class_map, data.source)
    own_index = {name: index for index, name in enumerate(own_names)}

    def to_target(label: Any) -> int:
        """Index into the target classes; -1 for a class that is left out."""
        index = own_index.get(label, -1) if isinstance(label, str) else label
        if not 0 <= index < len(own_names):
            raise ValueError(
                f"{data.source} has the label {label!r}, which is not among its classes "
                f"{_abbreviate(f'{i}: {name}' for i, name in enumerate(own_names))}. A label of -1 means that the split "
                "carries no true labels: choose another. Otherwise check `class_names`."
            )
        return target_index[index]

    dataset, feature = data.dataset, ClassLabel(names=target)
    if data.streaming:
        if -1 in target_index:
            dataset = dataset.filter(lambda label: to_target(label) >= 0, input_columns=label_column)
        features = dataset.features.copy()
        features[label_column] = feature
        dataset = dataset.map(
            lambda label: {label_column: to_target(label)}, input_columns=label_column, features=features
        )
        return replace(data, dataset=dataset, class_names=target)

    values, inverse = np.unique(_read_column(dataset, label_column), return_inverse=True)
    labels = np.asarray([to_target(value) for value in values.tolist()], dtype=np.int64)[inverse]
    dataset = dataset.remove_columns(label_column).add_column(label_column, labels, feature=feature)
    data = replace(data, dataset=dataset, class_names=target)
    return data if (labels >= 0).all() else data.select(np.flatnonzero(labels >= 0))


def _own_class_names(
    data: ImageData, label_column: str, class_names: list[str] | None, class_map: Mapping[str, str | None]
) -> list[str]:
    """The classes as the data itself names and numbers them."""
    from datasets import ClassLabel

    feature = data.dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        return check_class_names(feature.names)
    if feature.dtype in ("string", "large_string") and not data.streaming:
        return sorted(set(_read_column(data.dataset, label_column).tolist()))
    if feature.dtype in ("string", "large_string") or "int" in feature.dtype:
        if class_names is None:
            raise ValueError(
                f"the labels of {data.source} (column '{label_column}', {feature.dtype}) come without a list of classes: "
                "give `class_names`; numbers are taken as indices into it."
            )
        return list(dict.fromkeys([*class_names, *class_map]))
    raise ValueError(
        f"the column '{label_column}' of {data.source} is of type {feature.dtype}; labels must be class labels, integers "
        "or strings. Name another column with `label_column`."
    )


def _match_classes(
    own_names: list[str], class_names: list[str] | None, class_map: Mapping[str, str | None], source: str
) -> tuple[list[str], list[int]]:
    """The target classes, and for each own class its index among them, -1 where it is left out."""
    unknown = [name for name in class_map if name not in own_names]
    if unknown:
        raise ValueError(
            f"`class_map` names {_abbreviate(map(repr, unknown))}, which {source} does not have. Its classes are "
            f"{_abbreviate(map(repr, own_names))}."
        )
    renamed = [class_map.get(name, name) for name in own_names]
    kept = list(dict.fromkeys(name for name in renamed if name is not None))
    target = check_class_names(kept) if class_names is None else class_names
    # As `map_labels` compares names, unless that would make one class of two.
    spelling = normalize_name if len({normalize_name(name) for name in target}) == len(target) else str
    index = {spelling(name): i for i, name in enumerate(target)}
    missing = [name for name in kept if spelling(name) not in index]
    if missing:
        raise ValueError(
            f"{source} has the classes {_abbreviate(map(repr, missing))}, which are not among the class names "
            f"{_abbreviate(map(repr, target))}. Rename them with `class_map={{'{missing[0]}': '<a class name>'}}`, or "
            f"leave their rows out with `class_map={{'{missing[0]}': None}}` (`null` in JSON)."
        )
    return target, [-1 if name is None else index[spelling(name)] for name in renamed]


def _without_unreadable(data: ImageData) -> ImageData:
    def readable(value: Any) -> bool:
        try:
            _decode(value, data, 0)
        except UnreadableImageError:
            return False
        return True

    if data.streaming:
        return replace(data, dataset=data.dataset.filter(readable, input_columns=data.image_column))
    return data.select([row for row, value in enumerate(data.dataset[data.image_column]) if readable(value)])


class UnreadableImageError(ValueError):
    """An image that cannot be decoded."""


def _decode(value: Any, data: ImageData, index: int) -> Image:
    from datasets import Image
    from PIL.Image import Image as PILImage

    try:
        # Not before version 5.2 does `datasets` let decoded images pass.
        image = value if isinstance(value, PILImage) else Image().decode_example(value)
        image.load()
        return image
    except Exception as error:  # every decoder has its own kinds of error, down to SyntaxError for a broken PNG
        row = index if data.rows is None else int(data.rows[index])
        file = f" ('{value['path']}')" if isinstance(value, dict) and value.get("path") else ""
        raise UnreadableImageError(
            f"the image in row {row}{file} of {data.source} cannot be decoded: {error}. Mend or remove the row, or load "
            "with `skip_unreadable=True` to leave such rows out."
        ) from error


def _resize_and_crop(image: Image, side: int) -> Image:
    from PIL import Image

    width, height = image.size
    scale = side / min(width, height)
    width, height = max(side, round(width * scale)), max(side, round(height * scale))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return image if (width, height) == (side, side) else image.crop((left, top, left + side, top + side))


def _shuffled_rows_by_class(data: ImageData, seed: int) -> dict[str, np.ndarray]:
    labels = data.labels
    assert data.class_names is not None
    generator = np.random.default_rng(seed)
    return {name: generator.permutation(np.flatnonzero(labels == i)) for i, name in enumerate(data.class_names)}


def _read_column(dataset: Dataset, column: str) -> np.ndarray:
    return np.asarray(dataset.select_columns([column]).with_format("numpy")[:][column])


def _counts(counts: Mapping[str, int]) -> list[str]:
    return [f"'{name}' ({count})" for name, count in counts.items()]


def _abbreviate(items: Iterable[str], limit: int = 12) -> str:
    """A list for a message that has to fit on one screen."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
