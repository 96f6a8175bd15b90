"""The Reprogrammer's text rows, with the class embeddings held near those of the pre-trained model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..training import TrainingConfig
from .registry import register
from .reprogrammer_text import TextReprogrammer


@register
@dataclass(frozen=True)
class AnchoredReprogrammer(TextReprogrammer):
    """
    The text rows of arXiv 2403.10800, trained with an anchor of ours: the distance of the class embeddings from the pre-trained
    ones is part of the loss, see [`~peft_reprogram.objectives.Anchored`].

    Args:
        frame_lr (`float`): Not used here.
        text_lr (`float`, *optional*, defaults to 2e-3): Learning rate of the text rows.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay, towards the pre-trained rows.
        epoch_factor (`int`, *optional*, defaults to 1): As for [`TextReprogrammer`].
        anchor (`float`, *optional*, defaults to 3.0): Weight of the distance.
    """

    name: ClassVar[str] = "reprogrammer_anchored"
    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"text_lr": 2e-3, "anchor": 3.0},
        {"text_lr": 5e-3, "anchor": 1.0},
        {"text_lr": 5e-3, "anchor": 3.0},
    )

    text_lr: float = 2e-3
    anchor: float = 3.0

    def training_config(self, config: TrainingConfig) -> TrainingConfig:
        config = super().training_config(config)
        return replace(config, objective="anchored", objective_options={"weight": self.anchor})
