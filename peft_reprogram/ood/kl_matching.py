from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("kl_matching")
@dataclass(eq=False)
class KLMatching(Score):
    """
    KL matching ([arXiv 1911.11132](https://arxiv.org/abs/1911.11132)): minus the smallest KL divergence of a sample's
    softmax from the mean softmax of the in-distribution samples predicted as class k, over all k.

    Classes that are never predicted on the data it is fitted on have no template and are left out. No labels needed.
    """

    fit_needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    fitted_tensors: ClassVar = {"log_templates": "logits"}

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        log_p = outputs.logits.double().log_softmax(dim=-1)
        predicted = log_p.argmax(dim=-1)
        # Averaging in the log domain keeps templates finite where a mean probability would underflow to 0.
        members = (log_p[predicted == k] for k in predicted.unique())
        return {"log_templates": torch.stack([m.logsumexp(dim=0) - math.log(len(m)) for m in members])}

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        log_p = outputs.logits.double().log_softmax(dim=-1)
        p = log_p.exp()
        divergence = (p * log_p).sum(dim=-1, keepdim=True) - p @ self._state["log_templates"].T
        return -divergence.amin(dim=-1)
