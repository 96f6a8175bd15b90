from __future__ import annotations

from dataclasses import dataclass

import torch

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("energy")
@dataclass(eq=False)
class Energy(Score):
    """
    Negative free energy, `T * logsumexp(logits / T)` ([arXiv 2010.03759](https://arxiv.org/abs/2010.03759)).

    Args:
        temperature (`float`, *optional*, defaults to 1.0): T > 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        self._check_option("temperature", self.temperature > 0, "> 0")

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        return self.temperature * (outputs.logits / self.temperature).logsumexp(dim=-1)
