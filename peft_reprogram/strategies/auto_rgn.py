"""Every tensor is trained, at a learning rate in proportion to its relative gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..training import EpochHook, TrainingConfig
from ..tuners.surgical.selection import auto_rgn
from .blocks import WHOLE, adapt_blocks, tensor_groups
from .image_tower import ImageTowerStrategy
from .registry import register


@register
@dataclass(frozen=True)
class AutoRGN(ImageTowerStrategy):
    """
    Auto-RGN (arXiv 2210.11466): before each epoch every tensor's learning rate is set to `lr` times its relative gradient
    norm, over the largest of all tensors, see [`~tuners.surgical.selection.auto_rgn`].

    Args:
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of the tensor with the largest relative gradient.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay; of the change, so towards the pre-trained
            weights.
        num_batches (`int`, *optional*, defaults to 5): Mini-batches that are measured.
        reset_state (`bool`, *optional*, defaults to `False`): Whether to forget the optimiser's moments before each epoch, as
            the released code does.
    """

    name: ClassVar[str] = "auto_rgn"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-2})

    num_batches: int = 5
    reset_state: bool = False

    def prepare(self, classifier: nn.Module) -> nn.Module:
        return adapt_blocks(classifier, WHOLE)

    def parameter_groups(self, classifier: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
        return tensor_groups(classifier, config)

    def on_epoch_start(self, classifier: nn.Module, config: TrainingConfig) -> EpochHook:
        def measure(epoch: int, optimizer: Any, scheduler: Any, batches: Any) -> None:
            weights = auto_rgn(classifier, batches, num_batches=self.num_batches)
            weights.update(optimizer, config.lr, reset_state=self.reset_state, scheduler=scheduler)

        return measure
