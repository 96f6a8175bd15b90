"""The image tower's biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from .image_tower import ImageTowerStrategy, image_tower
from .linear_head import LinearHeadClassifier
from .registry import register


@register
@dataclass(frozen=True)
class BitFit(ImageTowerStrategy):
    """
    The biases of the image tower alone (arXiv 2106.10199), those of its normalisation layers included, and a head that
    starts as the zero-shot classifier. Of a convolutional tower with batch normalisation these are all that there are.

    Args:
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
    """

    name: ClassVar[str] = "bitfit"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 3e-4})

    def prepare(self, classifier: LinearHeadClassifier) -> nn.Module:
        tower = image_tower(classifier)
        biases = [parameter for name, parameter in tower.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not biases:
            raise ValueError(f"{type(tower).__name__} has no biases to train: leave the strategy {self.name!r} out.")
        for bias in biases:
            bias.requires_grad_(True)
        return classifier
