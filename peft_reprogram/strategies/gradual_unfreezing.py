"""Blocks are trained one after the other, and those before go on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from ..training import EpochHook, TrainingConfig
from .blocks import WHOLE, adapt_blocks, parameters_by_block
from .image_tower import ImageTowerStrategy
from .registry import register


@register
@dataclass(frozen=True)
class GradualUnfreezing(ImageTowerStrategy):
    """
    Gradual unfreezing, a baseline of arXiv 2210.11466: training starts with one end of the network and takes in the next
    block each time that another fifth of the epochs begins; with fewer epochs it takes in several at once. What is yet to
    come has a learning rate of 0, and starts with fresh moments of the optimiser.

    Args:
        order (`str`, *optional*, defaults to `"last_to_first"`): `"last_to_first"` starts with the head,
            `"first_to_last"` with the embedding.
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of what is unfrozen.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay; of the change, so towards the pre-trained
            weights.
    """

    name: ClassVar[str] = "gradual_unfreezing"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-2})

    order: Literal["last_to_first", "first_to_last"] = "last_to_first"

    def __post_init__(self) -> None:
        if self.order not in ("last_to_first", "first_to_last"):
            raise ValueError(f"`order` must be 'last_to_first' or 'first_to_last', got {self.order!r}.")

    def prepare(self, classifier: nn.Module) -> nn.Module:
        return adapt_blocks(classifier, WHOLE)

    def training_config(self, config: TrainingConfig) -> TrainingConfig:
        if config.max_steps is not None:
            raise ValueError("gradual unfreezing divides the epochs among the blocks: give `epochs`, not `max_steps`.")
        return super().training_config(config)

    def parameter_groups(self, classifier: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
        return [
            {"name": block, "params": list(parameters.values()), "lr": 0.0, "weight_decay": config.weight_decay}
            for block, parameters in parameters_by_block(classifier).items()
        ]

    def on_epoch_start(self, classifier: nn.Module, config: TrainingConfig) -> EpochHook:
        def unfreeze(epoch: int, optimizer: Any, scheduler: Any, batches: Any) -> None:
            groups = optimizer.param_groups
            positions = list(range(len(groups)))
            if self.order == "last_to_first":
                positions.reverse()
            for position in positions[: math.ceil((epoch + 1) * len(groups) / config.epochs)]:
                if scheduler.base_lrs[position] == 0:
                    for parameter in groups[position]["params"]:
                        optimizer.state.pop(parameter, None)
                scheduler.base_lrs[position] = config.lr

        return unfreeze
