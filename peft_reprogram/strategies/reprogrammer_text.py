"""The Reprogrammer's text rows alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..training import TrainingConfig
from .registry import register
from .reprogrammer import Reprogrammer


@register
@dataclass(frozen=True)
class TextReprogrammer(Reprogrammer):
    """
    The text rows of the class prompts, the image as it is (an ablation of arXiv 2403.10800).

    Args:
        frame_lr (`float`): Not used here.
        text_lr (`float`, *optional*, defaults to 1e-3): Learning rate of the text rows.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay, towards the pre-trained rows.
        epoch_factor (`int`, *optional*, defaults to 1): So many epochs (or steps) for each one of the budget. The images pass
            the frozen tower once, however many there are, so that several cost no more time than one of strategies that
            train the tower.

    Raises:
        ValueError: If `epoch_factor` is not a number of at least 1.
    """

    name: ClassVar[str] = "reprogrammer_text"
    frozen_images: ClassVar[bool] = True
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"text_lr": 1e-3}, {"text_lr": 5e-3}, {"text_lr": 2e-3})
    parts: ClassVar[dict[str, Any]] = {"reprogram_image": False, "reprogram_text": True}

    epoch_factor: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.epoch_factor, int) and self.epoch_factor >= 1):
            raise ValueError(f"`epoch_factor` must be a number of at least 1, got {self.epoch_factor!r}.")

    def training_config(self, config: TrainingConfig) -> TrainingConfig:
        steps = None if config.max_steps is None else config.max_steps * self.epoch_factor
        return replace(super().training_config(config), epochs=config.epochs * self.epoch_factor, max_steps=steps)
