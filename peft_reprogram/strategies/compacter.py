"""Compacter in the image tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..tuners.bottleneck import CompacterConfig
from .image_tower import ImageTowerStrategy, wrap
from .linear_head import LinearHeadClassifier
from .registry import register


@register
@dataclass(frozen=True)
class Compacter(ImageTowerStrategy):
    """
    Bottleneck adapters whose weights are sums of Kronecker products (arXiv 2106.04647), behind each attention and
    feed-forward layer of the image tower, or behind each block of a convolutional one, and a head that starts as the
    zero-shot classifier.

    Args:
        lr (`float`, *optional*, defaults to 3e-3): Learning rate of AdamW, that of the paper.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
        reduction_factor (`int`, *optional*, defaults to 32): Width of an adapted output over that of its bottleneck.
        phm_dim (`int`, *optional*, defaults to 4): The number of Kronecker products; it must divide the widths of the outputs.
    """

    name: ClassVar[str] = "compacter"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 3e-3}, {"lr": 1e-2}, {"lr": 1e-3})

    lr: float = 3e-3
    reduction_factor: int = 32
    phm_dim: int = 4

    def prepare(self, classifier: LinearHeadClassifier) -> nn.Module:
        return wrap(classifier, CompacterConfig(reduction_factor=self.reduction_factor, phm_dim=self.phm_dim))
