from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("react")
@dataclass(eq=False)
class ReAct(Score):
    """
    Rectified activations ([arXiv 2111.12797](https://arxiv.org/abs/2111.12797)): features are clipped from above at a
    percentile of the in-distribution activations, and scored by the energy of the logits that the head then gives.

    A cosine head is linear in the image embedding: its embedding is clipped like any feature and deliberately not
    normalised again, since the loss of norm is what tells.

    Args:
        percentile (`float`, *optional*, defaults to 0.9): Fraction in (0, 1) of the activations that stay as they are.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features", "class_features"})
    fit_needs: ClassVar[frozenset[str]] = frozenset({"features"})
    fitted_tensors: ClassVar = {"ceiling": None}
    percentile: float = 0.9

    def __post_init__(self) -> None:
        self._check_option("percentile", 0 < self.percentile < 1, "in (0, 1)")

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        assert outputs.features is not None
        # numpy: torch.quantile refuses more than 2^24 values.
        ceiling = np.quantile(outputs.features.cpu().numpy(), self.percentile)
        return {"ceiling": torch.tensor(float(ceiling), dtype=torch.float64)}

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        assert outputs.features is not None
        return outputs.head(outputs.features.double().clamp(max=self._state["ceiling"])).logsumexp(dim=-1)
