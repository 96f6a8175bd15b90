"""Fine-tune like you pre-train."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from ..training import TrainingConfig
from .registry import register
from .strategy import Strategy, Task


@register
@dataclass(frozen=True)
class FLYP(Strategy):
    """
    Both towers trained with the contrastive loss of images against the prompts of their classes, as in pre-training
    (arXiv 2212.00638). Here pairs of one class are positives of each other, of which batches of few classes are full.

    Args:
        lr (`float`, *optional*, defaults to 3e-5): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.1): Decoupled weight decay.
    """

    name: ClassVar[str] = "flyp"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 3e-5}, {"lr": 1e-4}, {"lr": 1e-5})

    lr: float = 3e-5
    weight_decay: float = 0.1

    def build(self, task: Task) -> nn.Module:
        return task.zero_shot().requires_grad_(True)

    def training_config(self, config: TrainingConfig) -> TrainingConfig:
        return replace(
            config,
            objective="contrastive",
            objective_options={},
            optimizer="adamw",
            lr=self.lr,
            weight_decay=self.weight_decay,
        )
