"""One pass of a classifier over a set of images: logits and features once, from which everything else is computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from .._version import __version__
from ..data import ImageData, ImagePreprocessor, collate
from .fingerprint import combined_fingerprint, data_fingerprint, model_fingerprint, preprocessing_fingerprint
from .inputs import prepare_rows
from .readers import make_reader
from .stored_outputs import OutputsWriter, StoredOutputs


@dataclass(frozen=True)
class Extraction:
    """
    How to pass a classifier over sets of images.

    The result does not depend on the number of processes, to the last bit: each of them takes every P-th batch, so all
    batches are made up the same way, and the main process writes them down in order. No image is left out or counted
    twice.

    Args:
        preprocess ([`ImagePreprocessor`]): Turns images into `pixel_values`.
        cache_dir (`Path`): Where outputs are stored, each pass in a folder named by a hash of model, adapter, data,
            preprocessing, precision and versions. A pass that is there already is not repeated, unless the data are a
            stream.
        batch_size (`int`, *optional*, defaults to 64): Images a process and batch, at least 1.
        num_workers (`int`, *optional*, defaults to 0): Processes that each process starts to prepare images; a stream is
            read by the process itself.
        accelerator (`accelerate.Accelerator`, *optional*): Device, precision and processes; a new one by default.
        patch_features (`bool`, *optional*, defaults to `False`): Whether to store patch tokens too.
        progress_bar (`bool`, *optional*, defaults to `True`): Whether the main process shows a bar.
    """

    preprocess: ImagePreprocessor
    cache_dir: Path
    batch_size: int = 64
    num_workers: int = 0
    accelerator: Any = None
    patch_features: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if self.accelerator is None:
            from accelerate import Accelerator

            object.__setattr__(self, "accelerator", Accelerator())

    def __call__(self, classifier: nn.Module, data: ImageData, name: str = "images") -> StoredOutputs | None:
        """
        Pass over a set, or find that it was done before.

        Args:
            classifier (`torch.nn.Module`): A [`ZeroShotClassifier`] or an image classifier; put into evaluation mode and
                onto the accelerator's device.
            data ([`ImageData`]): The images, random access or stream, with labels or without. Rows may hold decoded images
                too, as those of [`~peft_reprogram.shift.with_corruption`] do.
            name (`str`, *optional*, defaults to `"images"`): What the progress bar calls them.

        Returns:
            [`StoredOutputs`], *optional*: On the disk of the main process; `None` on the others.

        Raises:
            ValueError: If there is no image.
        """
        from accelerate.utils import broadcast_object_list

        if not data.streaming and len(data) == 0:
            raise ValueError(f"the set {name!r} ({data.source}) is empty: there is nothing to measure.")
        accelerator = self.accelerator
        classifier = classifier.to(accelerator.device).eval()
        identity = model_fingerprint(classifier)
        key = self._key(identity, data)
        folder = self.cache_dir / (key or "stream")
        # The main process looks and all do as it says: another machine may not see its disk.
        found = [key is not None and (folder / "outputs.json").is_file()]
        if accelerator.num_processes > 1:
            broadcast_object_list(found)
        if not found[0]:
            folder = folder if key else _unused(folder)
            self._run(classifier, data, name, OutputsWriter(folder, identity))
        return StoredOutputs(folder) if accelerator.is_main_process else None

    def _key(self, identity: str, data: ImageData) -> str | None:
        fingerprint = data_fingerprint(data)
        if fingerprint is None:
            return None
        return combined_fingerprint(
            identity,
            fingerprint,
            preprocessing_fingerprint(self.preprocess),
            self.accelerator.mixed_precision,
            self.patch_features,
            {"peft-reprogram": __version__, **{name: version(name) for name in ("torch", "transformers", "pillow")}},
        )

    @torch.no_grad()
    def _run(self, classifier: nn.Module, data: ImageData, name: str, writer: OutputsWriter) -> None:
        from tqdm.auto import tqdm

        accelerator = self.accelerator
        reader = make_reader(classifier, self.patch_features)
        total = None if data.streaming else len(data)
        disabled = not (self.progress_bar and accelerator.is_main_process)
        if not accelerator.is_main_process:
            for _ in self._steps(reader, data):
                pass
            return
        with writer, tqdm(total=total, desc=name, unit="image", disable=disabled) as bar:
            for batch in self._steps(reader, data):
                writer.append(batch)
                bar.update(len(batch["logits"]))
            if writer.n == 0 or (total is not None and writer.n != total):
                raise ValueError(
                    f"the set {name!r} ({data.source}) gave {writer.n} images of {total or 'at least 1'}."
                )
            writer.finish(reader.head())

    def _steps(self, reader: Any, data: ImageData) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of all processes in the order of the rows; every process sees them."""
        from accelerate.utils import gather_object

        accelerator = self.accelerator
        own = iter(self._own_batches(data))
        while True:
            batch = next(own, None)
            outputs = None if batch is None else self._read(reader, batch)
            step = gather_object([outputs]) if accelerator.num_processes > 1 else [outputs]
            yield from (outputs for outputs in step if outputs is not None)
            if any(outputs is None for outputs in step):
                return

    def _read(self, reader: Any, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        labels = batch.pop("labels", None)
        with self.accelerator.autocast():
            fields = reader.read(batch["pixel_values"].to(self.accelerator.device, non_blocking=True))
        outputs = {name: tensor.float().cpu().numpy() for name, tensor in fields.items()}
        return outputs if labels is None else {**outputs, "labels": labels.numpy()}

    def _own_batches(self, data: ImageData) -> DataLoader:
        process, processes, size = self.accelerator.process_index, self.accelerator.num_processes, self.batch_size
        if data.streaming:
            if processes > 1:
                # Rows are filtered before they are decoded, and in whole batches.
                mine = data.dataset.filter(
                    lambda _, index: index // size % processes == process,
                    with_indices=True,
                    input_columns=[data.image_column],
                )
                data = replace(data, dataset=mine)
            return DataLoader(prepare_rows(data, self.preprocess), batch_size=size, collate_fn=collate)
        batches = [list(range(start, min(start + size, len(data)))) for start in range(0, len(data), size)]
        return DataLoader(
            prepare_rows(data, self.preprocess),
            batch_sampler=batches[process::processes],
            collate_fn=collate,
            num_workers=self.num_workers,
        )


def _unused(folder: Path) -> Path:
    return next(
        path for path in (folder.with_name(f"{folder.name}-{i}") for i in itertools.count()) if not path.exists()
    )
