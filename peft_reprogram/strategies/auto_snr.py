"""Tensors whose gradients are mostly noise are frozen, the others trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Optional

from torch import nn

from ..training import EpochHook, TrainingConfig
from ..tuners.surgical.selection import auto_snr
from .blocks import WHOLE, adapt_blocks, tensor_groups
from .image_tower import ImageTowerStrategy
from .registry import register


@register
@dataclass(frozen=True)
class AutoSNR(ImageTowerStrategy):
    """
    Auto-SNR (arXiv 2210.11466): before each epoch the tensors are chosen that are trained in it, by the signal-to-noise
    ratio of their gradients, see [`~tuners.surgical.selection.auto_snr`].

    Args:
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of the tensors that are trained.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay; of the change, so towards the pre-trained
            weights.
        num_batches (`int`, *optional*, defaults to 5): Mini-batches that are measured.
        form (`"paper"` or `"released"`, *optional*, defaults to `"paper"`): Variance over mini-batches, or over a tensor's
            first axis.
        threshold (`float`, *optional*): Tensors with a lower ratio, over the largest one, are frozen; 0.5 (paper's form) or
            0.95 (released form) if not given.
    """

    name: ClassVar[str] = "auto_snr"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-2})

    num_batches: int = 5
    form: Literal["paper", "released"] = "paper"
    threshold: Optional[float] = None

    def prepare(self, classifier: nn.Module) -> nn.Module:
        return adapt_blocks(classifier, WHOLE)

    def parameter_groups(self, classifier: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
        return tensor_groups(classifier, config)

    def on_epoch_start(self, classifier: nn.Module, config: TrainingConfig) -> EpochHook:
        def choose(epoch: int, optimizer: Any, scheduler: Any, batches: Any) -> None:
            weights = auto_snr(
                classifier, batches, num_batches=self.num_batches, form=self.form, threshold=self.threshold
            )
            weights.update(optimizer, config.lr, scheduler=scheduler)

        return choose
