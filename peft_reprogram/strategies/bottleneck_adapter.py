"""Bottleneck adapters in the image tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..tuners.bottleneck import BottleneckConfig
from .image_tower import ImageTowerStrategy, wrap
from .linear_head import LinearHeadClassifier
from .registry import register


@register
@dataclass(frozen=True)
class BottleneckAdapter(ImageTowerStrategy):
    """
    Bottleneck adapters (arXiv 1902.00751) behind each attention and feed-forward layer of the image tower, or behind each
    block of a convolutional one, and a head that starts as the zero-shot classifier.

    Args:
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
        reduction_factor (`int`, *optional*, defaults to 8): Width of an adapted output over that of its bottleneck.
    """

    name: ClassVar[str] = "adapter"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 3e-4})

    reduction_factor: int = 8

    def prepare(self, classifier: LinearHeadClassifier) -> nn.Module:
        return wrap(classifier, BottleneckConfig(reduction_factor=self.reduction_factor))
