"""Images that pass a frozen tower once, instead of once an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..data import ImageData, ImagePreprocessor, collate, prepare


class EmbeddedImages(torch.utils.data.Dataset):
    """
    Images as a classifier embeds them now, for [`~training.train`].

    Args:
        classifier (`torch.nn.Module`): Has `get_image_features`; its image side is frozen. Left in evaluation mode.
        data ([`ImageData`]): Labelled images, no stream.
        preprocess ([`ImagePreprocessor`]): Turns images into `pixel_values`.
        batch_size (`int`): Images that are embedded together.
    """

    def __init__(self, classifier: nn.Module, data: ImageData, preprocess: ImagePreprocessor, batch_size: int) -> None:
        from accelerate import PartialState

        device = PartialState().device
        embed: Any = classifier.to(device).eval().get_image_features
        loader = torch.utils.data.DataLoader(prepare(data, preprocess), batch_size, collate_fn=collate)
        with torch.no_grad():
            self.embeddings = torch.cat([embed(batch["pixel_values"].to(device)).cpu() for batch in loader])
        self.labels = torch.from_numpy(data.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.embeddings[index], "labels": self.labels[index]}


@contextmanager
def takes_embeddings(classifier: Any) -> Iterator[None]:
    """
    Lets a classifier take image embeddings for images.

    Args:
        classifier (`torch.nn.Module`): Calls its `get_image_features` in its forward pass.
    """
    classifier.get_image_features = lambda pixel_values: pixel_values
    try:
        yield
    finally:
        del classifier.get_image_features
