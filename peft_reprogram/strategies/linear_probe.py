"""A linear classifier on frozen embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from .image_tower import ImageTowerStrategy
from .linear_head import LinearHeadClassifier
from .registry import register
from .strategy import Task


@register
@dataclass(frozen=True)
class LinearProbe(ImageTowerStrategy):
    """
    A linear head alone, on the normalised embeddings of the frozen image tower (arXiv 2103.00020).

    Args:
        lr (`float`, *optional*, defaults to 3e-2): Learning rate of AdamW.
        init (`"text"` or `"random"`, *optional*, defaults to `"text"`): Whether the head starts as the zero-shot classifier.
    """

    name: ClassVar[str] = "linear_probe"
    frozen_images: ClassVar[bool] = True
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 3e-2}, {"lr": 1e-1}, {"lr": 1e-2})

    lr: float = 3e-2
    init: Literal["text", "random"] = "text"

    def build(self, task: Task) -> nn.Module:
        return self.prepare(LinearHeadClassifier(task.zero_shot(), init=self.init, seed=task.config.seed))
