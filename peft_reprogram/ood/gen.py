from __future__ import annotations

from dataclasses import dataclass

import torch

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("gen")
@dataclass(eq=False)
class GEN(Score):
    """
    Generalised entropy (GEN, Liu et al., "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection",
    CVPR 2023): minus the sum of `p^gamma (1 - p)^gamma` over the M largest probabilities.

    Args:
        gamma (`float`, *optional*, defaults to 0.1): Exponent in (0, 1]; the smaller, the more the tail counts.
        M (`int`, *optional*, defaults to 100): How many of the largest probabilities count; all where C <= M.
    """

    gamma: float = 0.1
    M: int = 100

    def __post_init__(self) -> None:
        self._check_option("gamma", 0 < self.gamma <= 1, "in (0, 1]")
        self._check_option("M", isinstance(self.M, int) and self.M >= 1, "an integer >= 1")

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        log_p = outputs.logits.double().log_softmax(dim=-1).sort(dim=-1, descending=True).values
        # A small gamma blows up the rounding error of 1 - p near p = 1, which only the largest p can reach: there
        # 1 - p is the sum of the others.
        log_rest = torch.cat([log_p[:, 1:].logsumexp(dim=-1, keepdim=True), torch.log1p(-log_p[:, 1:].exp())], dim=-1)
        return -(self.gamma * (log_p + log_rest)[:, : self.M]).exp().sum(dim=-1)
