from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .gaussian import squared_distances, whitening
from .mahalanobis import Mahalanobis
from .outputs import ModelOutputs
from .registry import register_score


@register_score("relative_mahalanobis")
@dataclass(eq=False)
class RelativeMahalanobis(Mahalanobis):
    """
    Relative Mahalanobis distance ([arXiv 2106.09022](https://arxiv.org/abs/2106.09022)): the squared distance to one
    Gaussian over all classes minus the one to the nearest class, so that directions every class shares cancel.

    Args:
        shrinkage (`float`, *optional*, defaults to 0.0): In [0, 1], for both covariances; see [`Mahalanobis`].
    """

    fitted_tensors: ClassVar = {
        **Mahalanobis.fitted_tensors,
        "background_mean": "features",
        "background_whitener": None,
    }

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        assert outputs.features is not None
        features = outputs.features.double()
        mean = features.mean(dim=0, keepdim=True)
        background = {"background_mean": mean, "background_whitener": whitening(features - mean, self.shrinkage)}
        return super()._fit(outputs) | background

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        assert outputs.features is not None
        background = squared_distances(
            outputs.features, self._state["background_mean"], self._state["background_whitener"]
        )
        return super()._score(outputs) + background.squeeze(-1)
