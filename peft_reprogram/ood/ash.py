from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

import torch

from .activation_shaping import largest, mass_ratio, shapeable_activations
from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


_PAPER_PERCENTILES = {"p": 0.60, "b": 0.65, "s": 0.90}


@register_score("ash")
@dataclass(eq=False)
class ASH(Score):
    """
    Activation shaping ([arXiv 2209.09858](https://arxiv.org/abs/2209.09858)) of the penultimate feature: the smallest
    activations are set to 0, the rest is kept (`"p"`), set to one value that preserves the sum (`"b"`), or scaled by
    `exp(sum before / sum after)` (`"s"`); the score is the energy of the logits that follow.

    For linear heads after a ReLU; cosine heads and signed features are refused.

    Args:
        variant (`str`, *optional*, defaults to `"s"`): `"s"`, `"b"` or `"p"`.
        percentile (`float`, *optional*):
            Fraction in [0, 1) of the activations that is pruned. Defaults to the paper's for ImageNet: 0.90 for
            `"s"`, 0.65 for `"b"`, 0.60 for `"p"`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features", "class_features"})
    variant: str = "s"
    percentile: Optional[float] = None

    def __post_init__(self) -> None:
        self._check_option("variant", self.variant in _PAPER_PERCENTILES, "'s', 'b' or 'p'")
        if self.percentile is None:
            self.percentile = _PAPER_PERCENTILES[self.variant]
        self._check_option("percentile", 0 <= self.percentile < 1, "in [0, 1)")

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        assert self.percentile is not None
        activations = shapeable_activations(outputs, self.name)
        kept, positions = largest(activations, self.percentile)
        if self.variant == "b":
            shaped = (activations.sum(dim=-1, keepdim=True) / kept.shape[-1]).expand_as(kept)
        elif self.variant == "s":
            shaped = kept * mass_ratio(activations, kept).exp()
        else:
            shaped = kept
        return outputs.head(torch.zeros_like(activations).scatter(-1, positions, shaped)).logsumexp(dim=-1)
