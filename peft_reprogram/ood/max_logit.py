from __future__ import annotations

from dataclasses import dataclass

import torch

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("max_logit")
@dataclass(eq=False)
class MaxLogit(Score):
    """The largest logit ([arXiv 1911.11132](https://arxiv.org/abs/1911.11132))."""

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        return outputs.logits.amax(dim=-1)
