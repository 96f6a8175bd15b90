from __future__ import annotations

from dataclasses import dataclass

import torch

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("entropy")
@dataclass(eq=False)
class Entropy(Score):
    """Negative Shannon entropy of the softmax, in nats: between -log(C) and 0."""

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        log_p = outputs.logits.log_softmax(dim=-1)
        return (log_p.exp() * log_p).sum(dim=-1)
