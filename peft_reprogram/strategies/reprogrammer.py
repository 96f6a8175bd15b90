"""The Reprogrammer: what goes into both frozen towers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Optional

from torch import nn

from ..classifier import ZeroShotClassifier
from ..training import TrainingConfig
from ..tuners.reprogrammer.config import ReprogrammerConfig
from .registry import register
from .strategy import Strategy, Task


@register
@dataclass(frozen=True)
class Reprogrammer(Strategy):
    """
    A frame of pixels around the image and the text rows of the class prompts, both towers frozen; with a share of the
    zero-shot features mixed in, the Residual Reprogrammer (arXiv 2403.10800).

    Args:
        frame_lr (`float`, *optional*, defaults to 5e-4): Learning rate of the frame.
        text_lr (`float`, *optional*, defaults to 1e-3): Learning rate of the text rows.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay, towards the pre-trained model.
    """

    name: ClassVar[str] = "reprogrammer"
    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"frame_lr": 5e-4, "text_lr": 1e-3},
        {"frame_lr": 5e-4, "text_lr": 5e-3},
        {"frame_lr": 5e-3, "text_lr": 1e-3},
    )
    residual_alphas: ClassVar[tuple[float, ...]] = (0.2, 0.4, 0.6, 0.8)
    paper_alpha: ClassVar[Optional[float]] = 0.4
    # Which of the two parts there are.
    parts: ClassVar[dict[str, Any]] = {"reprogram_image": True, "reprogram_text": True}

    frame_lr: float = 5e-4
    text_lr: float = 1e-3
    weight_decay: float = 0.0

    def build(self, task: Task) -> nn.Module:
        from peft import get_peft_model

        tokenizer = task.load_tokenizer()
        config = ReprogrammerConfig.for_classes(
            task.class_names,
            task.template,
            tokenizer=tokenizer,
            image_processor=task.preprocess.image_processor,
            **self.parts,
        )
        model = get_peft_model(task.load_model(), config)
        return ZeroShotClassifier(model, tokenizer, task.class_names, task.template)

    def training_config(self, config: TrainingConfig) -> TrainingConfig:
        return replace(
            config,
            objective="class",
            objective_options={},
            optimizer="adamw",
            frame_lr=self.frame_lr,
            text_lr=self.text_lr,
            weight_decay=self.weight_decay,
            frame_weight_decay=None,
            text_weight_decay=None,
        )
