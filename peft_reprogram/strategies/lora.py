"""Low-rank adaptation of the image tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from peft import LoraConfig
from torch import nn

from .image_tower import ImageTowerStrategy, dense_modules, wrap
from .linear_head import LinearHeadClassifier
from .registry import register


@register
@dataclass(frozen=True)
class LoRA(ImageTowerStrategy):
    """
    PEFT's LoRA (arXiv 2106.09685) on all linear layers of the image tower, or on the ungrouped convolutions of a tower that
    has none, and a head that starts as the zero-shot classifier.

    Args:
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
        r (`int`, *optional*, defaults to 8): Rank.
        lora_alpha (`int`, *optional*, defaults to 8): The change of a weight is scaled by `lora_alpha / r`.
    """

    name: ClassVar[str] = "lora"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 3e-4})

    r: int = 8
    lora_alpha: int = 8

    def prepare(self, classifier: LinearHeadClassifier) -> nn.Module:
        config = LoraConfig(r=self.r, lora_alpha=self.lora_alpha, target_modules=dense_modules(classifier))
        return wrap(classifier, config)
