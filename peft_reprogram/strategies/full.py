"""Full fine-tuning of the image side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from .image_tower import ImageTowerStrategy
from .linear_head import LinearHeadClassifier
from .registry import register


@register
@dataclass(frozen=True)
class FullFineTuning(ImageTowerStrategy):
    """
    Image tower, projection and a head that starts as the zero-shot classifier, all trained (FT in arXiv 2403.10800, the
    standard fine-tuning of arXiv 2109.01903).

    Args:
        lr (`float`, *optional*, defaults to 1e-4): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.1): Decoupled weight decay.
    """

    name: ClassVar[str] = "full"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-4}, {"lr": 3e-4}, {"lr": 3e-5})

    lr: float = 1e-4
    weight_decay: float = 0.1

    def prepare(self, classifier: LinearHeadClassifier) -> nn.Module:
        classifier.model.requires_grad_(True)
        return classifier
