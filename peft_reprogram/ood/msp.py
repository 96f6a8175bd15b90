from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


def log_max_softmax(logits: torch.Tensor) -> torch.Tensor:
    """
    Log of the largest softmax probability along the last axis.

    It is taken from the margin between the largest logit and the log-sum-exp of the others, so that confident samples
    keep their order where 1 - p is below the resolution of the dtype (CLIP's logits get there often).
    """
    top, winner = logits.max(dim=-1, keepdim=True)
    others = logits.scatter(-1, winner, -torch.inf).logsumexp(dim=-1)
    return logsigmoid(top.squeeze(-1) - others)


@register_score("msp")
@dataclass(eq=False)
class MSP(Score):
    """
    Maximum softmax probability ([arXiv 1610.02136](https://arxiv.org/abs/1610.02136)), as its logarithm.

    On a text-image model this is the softmax at the model's own temperature.
    """

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        return log_max_softmax(outputs.logits)
