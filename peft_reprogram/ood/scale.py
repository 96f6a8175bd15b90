from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .activation_shaping import largest, mass_ratio, shapeable_activations
from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("scale")
@dataclass(eq=False)
class Scale(Score):
    """
    SCALE ([arXiv 2310.00227](https://arxiv.org/abs/2310.00227)): the penultimate feature is multiplied by
    `exp(sum of all activations / sum of the largest)`, nothing is pruned; the score is the energy of the logits.

    For linear heads after a ReLU; cosine heads and signed features are refused.

    Args:
        percentile (`float`, *optional*, defaults to 0.85):
            Fraction in [0, 1) of the activations that isn't among the largest (the paper's value for ImageNet).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features", "class_features"})
    percentile: float = 0.85

    def __post_init__(self) -> None:
        self._check_option("percentile", 0 <= self.percentile < 1, "in [0, 1)")

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        activations = shapeable_activations(outputs, self.name)
        kept, _ = largest(activations, self.percentile)
        return outputs.head(activations * mass_ratio(activations, kept).exp()).logsumexp(dim=-1)
