"""One block of the network is trained, the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from .blocks import WHOLE, adapt_blocks
from .image_tower import ImageTowerStrategy
from .registry import register


@register
@dataclass(frozen=True)
class Surgical(ImageTowerStrategy):
    """
    Surgical fine-tuning (arXiv 2210.11466) of one block of the image tower. The head starts from the class prompts and stays
    as it is unless it is the block.

    Args:
        block (`str`, *optional*, defaults to `"last"`): `"embedding"`, `"first"`, `"middle"`, `"last"` (thirds of the
            layers) or `"head"` (the projection and the linear head); `"all"` trains all five. Any other name that
            [`~tuners.surgical.describe_blocks`] lists for the model is possible too.
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay; of the change, so towards the pre-trained
            weights.
    """

    name: ClassVar[str] = "surgical"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-2})

    block: str = "last"

    def prepare(self, classifier: nn.Module) -> nn.Module:
        return adapt_blocks(classifier, WHOLE if self.block == "all" else (self.block,))
