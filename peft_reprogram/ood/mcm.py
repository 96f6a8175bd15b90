from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .msp import log_max_softmax
from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("mcm")
@dataclass(eq=False)
class MCM(Score):
    """
    Maximum concept matching ([arXiv 2211.13445](https://arxiv.org/abs/2211.13445)): the largest softmax probability of
    the cosines between an image and the class texts, as its logarithm. For text-image models.

    Args:
        temperature (`float`, *optional*, defaults to 1.0):
            The cosines are divided by it; `1 / logit_scale` gives the ranking of `msp`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "logit_scale"})
    temperature: float = 1.0

    def __post_init__(self) -> None:
        self._check_option("temperature", self.temperature > 0, "> 0")

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        return log_max_softmax(outputs.cosines() / self.temperature)
