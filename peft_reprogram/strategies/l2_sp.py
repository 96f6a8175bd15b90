"""Fine-tuning that is held to where it started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from .full import FullFineTuning
from .linear_head import LinearHeadClassifier
from .registry import register
from .strategy import Task


class StartingPointClassifier(LinearHeadClassifier):
    """
    A [`LinearHeadClassifier`] all of which is trained, and whose loss grows with the distance of its image side from the
    pre-trained weights. The head moves freely.

    Args:
        *args: As of [`LinearHeadClassifier`].
        norm (`"l2"` or `"l1"`): Adds `strength / 2 * sum (w - w0)^2` or `strength * sum |w - w0|` to the loss.
        strength (`float`): How much of it, at least 0.
        **kwargs: As of [`LinearHeadClassifier`].
    """

    def __init__(self, *args: Any, norm: Literal["l2", "l1"], strength: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if norm not in ("l2", "l1"):
            raise ValueError(f"`norm` must be 'l2' or 'l1', got {norm!r}.")
        if strength < 0:
            raise ValueError(f"`strength` must be at least 0, got {strength}.")
        self.norm = norm
        self.strength = strength
        self.model.requires_grad_(True)
        for i, parameter in enumerate(self.model.parameters()):
            # Moves between devices with the model, and is no part of what it computes.
            self.register_buffer(f"start_{i}", parameter.detach().clone(), persistent=False)

    def penalty(self) -> torch.Tensor:
        """What is added to the loss, a scalar."""
        changes = [p.float() - self.get_buffer(f"start_{i}").float() for i, p in enumerate(self.model.parameters())]
        if self.norm == "l2":
            return self.strength / 2 * torch.stack([change.square().sum() for change in changes]).sum()
        return self.strength * torch.stack([change.abs().sum() for change in changes]).sum()

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().loss(logits, labels) + self.penalty()


@register
@dataclass(frozen=True)
class L2SP(FullFineTuning):
    """
    Full fine-tuning with a penalty on the squared distance from the pre-trained weights (arXiv 1802.01483). It takes the
    place of weight decay, which pulls towards zero; the paper's second penalty, on the head's own size, is left out, since
    this head does not start at random.

    Args:
        lr (`float`, *optional*, defaults to 1e-4): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
        strength (`float`, *optional*, defaults to 0.1): Half of it is the factor of the squared distance.
    """

    name: ClassVar[str] = "l2_sp"
    norm: ClassVar[Literal["l2", "l1"]] = "l2"
    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"lr": 1e-4, "strength": 1e-1},
        {"lr": 3e-4, "strength": 1e-1},
        {"lr": 1e-4, "strength": 1e-2},
    )

    weight_decay: float = 0.0
    strength: float = 1e-1

    def build(self, task: Task) -> nn.Module:
        return StartingPointClassifier(task.zero_shot(), norm=self.norm, strength=self.strength)


@register
@dataclass(frozen=True)
class L1SP(L2SP):
    """
    As [`L2SP`] with the sum of absolute changes, which leaves most weights close to where they were (the L1 baseline of
    arXiv 2210.11466).

    Args:
        lr (`float`, *optional*, defaults to 1e-4): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
        strength (`float`, *optional*, defaults to 1e-5): Factor of the sum.
    """

    name: ClassVar[str] = "l1_sp"
    norm: ClassVar[Literal["l2", "l1"]] = "l1"
    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"lr": 1e-4, "strength": 1e-5},
        {"lr": 3e-4, "strength": 1e-5},
        {"lr": 1e-4, "strength": 1e-4},
    )

    strength: float = 1e-5
