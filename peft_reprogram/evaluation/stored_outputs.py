"""The outputs of one pass over a set, on disk: memory holds no more than what is being looked at."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..ood import ModelOutputs


_INDEX = "outputs.json"
_HEAD = "head.safetensors"
CHUNK_SIZE = 1024


class StoredOutputs:
    """
    The outputs of a classifier for N images, in a folder that [`extract`] wrote.

    Args:
        folder (`str` or `Path`): The folder.

    Raises:
        FileNotFoundError: If it holds no outputs.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self.folder / _INDEX
        if not index.is_file():
            raise FileNotFoundError(f"{folder} holds no stored outputs: it has no {_INDEX}.")
        content = json.loads(index.read_text("utf-8"))
        self.identity: str = content["identity"]
        self._n: int = content["n"]
        self._rows: dict[str, tuple[str, tuple[int, ...]]] = {
            name: (dtype, tuple(shape)) for name, (dtype, shape) in content["arrays"].items()
        }
        head = load_file(self.folder / _HEAD)
        scale = head.pop("logit_scale", None)
        self._head: dict[str, Any] = {**head, "logit_scale": None if scale is None else scale.item()}

    def __len__(self) -> int:
        return self._n

    @property
    def num_classes(self) -> int:
        """Number C of logits of an image."""
        return self._rows["logits"][1][0]

    @property
    def labels(self) -> np.ndarray | None:
        """The labels as the data gave them, `(N,)` int64; `None` where there were none."""
        return np.array(self._array("labels")) if "labels" in self._rows else None

    def load(self, start: int = 0, stop: int | None = None, without: frozenset[str] = frozenset()) -> ModelOutputs:
        """
        Some of the rows.

        Args:
            start (`int`, *optional*, defaults to 0): First row.
            stop (`int`, *optional*): Row to stop before; the end by default.
            without (`frozenset[str]`, *optional*): Fields to leave on disk.

        Returns:
            [`ModelOutputs`]: Its tensors are views of the files as long as nobody writes to them.
        """
        rows: dict[str, Any] = {
            name: torch.from_numpy(self._array(name)[start:stop]) for name in self._rows if name not in without
        }
        return ModelOutputs(**rows, **self._head, identity=self.identity)

    def chunks(self, without: frozenset[str] = frozenset()) -> Iterator[ModelOutputs]:
        """All rows in order, a thousand or so at a time; argument as for [`~StoredOutputs.load`]."""
        for start in range(0, len(self), CHUNK_SIZE):
            yield self.load(start, start + CHUNK_SIZE, without)

    def _array(self, name: str) -> np.ndarray:
        dtype, shape = self._rows[name]
        # Copy on write: torch wants writable memory, the file must stay what it is.
        return np.memmap(self.folder / f"{name}.bin", dtype=dtype, mode="c", shape=(self._n, *shape))


class OutputsWriter:
    """
    Writes stored outputs batch by batch. The folder appears when all of them are there, or not at all.

    Args:
        folder (`Path`): The folder to make.
        identity (`str`): Fingerprint of the model.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity
        self.n = 0
        self._arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._files: dict[str, Any] = {}

    def __enter__(self) -> OutputsWriter:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        return self

    def append(self, batch: dict[str, np.ndarray]) -> None:
        """Add the rows of one batch; every batch has the same fields."""
        for name, values in batch.items():
            if name not in self._files:
                self._files[name] = (self._partial / f"{name}.bin").open("wb")
                self._arrays[name] = (values.dtype.str, values.shape[1:])
            self._files[name].write(np.ascontiguousarray(values).tobytes())
        self.n += len(batch["logits"])

    def finish(self, head: dict[str, torch.Tensor]) -> None:
        """Add the head, after the last batch, and put the folder in its place."""
        self._close()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}, self._partial / _HEAD)
        index = {"n": self.n, "identity": self.identity, "arrays": self._arrays}
        (self._partial / _INDEX).write_text(json.dumps(index) + "\n", "utf-8")
        try:
            self._partial.rename(self.folder)
        except OSError:
            if not (self.folder / _INDEX).is_file():
                raise
            # Another run was faster; what it wrote is the same.

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def __exit__(self, *_: object) -> None:
        self._close()
        shutil.rmtree(self._partial, ignore_errors=True)
