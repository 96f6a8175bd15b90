"""The Reprogrammer's text rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
    """

    name: ClassVar[str] = "reprogrammer_text"
    frozen_images: ClassVar[bool] = True
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"text_lr": 1e-3}, {"text_lr": 5e-3}, {"text_lr": 2e-3})
    parts: ClassVar[dict[str, Any]] = {"reprogram_image": False, "reprogram_text": True}
