"""Weights between the pre-trained and the fine-tuned ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Optional

import torch
from torch import nn

from .full import FullFineTuning
from .registry import register
from .strategy import Task


@register
@dataclass(frozen=True)
class WiSEFT(FullFineTuning):
    """
    Full fine-tuning, measured at several mixes of its weights with the pre-trained ones, the head's with the zero-shot
    head's (arXiv 2109.01903). One training gives the whole curve; `alpha` is the share of the pre-trained weights, and the
    paper's choice without validation on a shift is a half.

    Args:
        lr (`float`, *optional*, defaults to 1e-4): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.1): Decoupled weight decay.
    """

    name: ClassVar[str] = "wise_ft"
    # No hyper-parameter: other shares need no other training.
    alphas: ClassVar[tuple[float, ...]] = (0.0, 0.25, 0.5, 0.75)
    paper_alpha: ClassVar[Optional[float]] = 0.5

    def points(self, classifier: nn.Module, task: Task) -> Iterator[tuple[Optional[float], nn.Module]]:
        """The classifier at each of `alphas`, its own weights changed in place and restored in the end."""
        pretrained = self.build(task).state_dict()
        tuned = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
        try:
            for alpha in self.alphas:
                load_mix(classifier, tuned, pretrained, alpha)
                yield alpha, classifier
        finally:
            load_mix(classifier, tuned, pretrained, 0.0)


@torch.no_grad()
def load_mix(
    classifier: nn.Module, tuned: Mapping[str, torch.Tensor], pretrained: Mapping[str, torch.Tensor], alpha: float
) -> None:
    """
    Gives a classifier the weights `(1 - alpha) * tuned + alpha * pretrained`.

    Args:
        classifier (`torch.nn.Module`): What to change, in place.
        tuned (`Mapping[str, torch.Tensor]`): Its state after fine-tuning.
        pretrained (`Mapping[str, torch.Tensor]`): Its state before, on any device.
        alpha (`float`): Share of the pre-trained weights in [0, 1]; 0 gives exactly `tuned`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` is the share of the pre-trained weights and must be in [0, 1], got {alpha}.")
    for name, tensor in classifier.state_dict().items():
        start = tuned[name]
        # Counters stay as they are.
        mixed = start.lerp(pretrained[name].to(start), alpha) if start.is_floating_point() else start
        tensor.copy_(mixed)
