"""The Reprogrammer's frame of pixels alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .registry import register
from .reprogrammer import Reprogrammer


@register
@dataclass(frozen=True)
class ImageReprogrammer(Reprogrammer):
    """
    The frame of pixels around the image, the text as pre-trained (an ablation of arXiv 2403.10800).

    Args:
        frame_lr (`float`, *optional*, defaults to 5e-4): Learning rate of the frame.
        text_lr (`float`): Not used here.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay, towards no frame.
    """

    name: ClassVar[str] = "reprogrammer_image"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"frame_lr": 5e-4}, {"frame_lr": 1.5e-3}, {"frame_lr": 5e-3})
    parts: ClassVar[dict[str, Any]] = {"reprogram_image": True, "reprogram_text": False}
