from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .gaussian import class_statistics, squared_distances, whitening
from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("mahalanobis")
@dataclass(eq=False)
class Mahalanobis(Score):
    """
    Minus the squared Mahalanobis distance to the nearest class mean, all classes sharing one covariance
    ([arXiv 1807.03888](https://arxiv.org/abs/1807.03888), penultimate layer, without input perturbation).

    Args:
        shrinkage (`float`, *optional*, defaults to 0.0):
            In [0, 1]: how far the covariance is moved towards a multiple of the identity. With fewer samples than
            feature dimensions use some (e.g. 0.1): without it, directions that the data never took count for nothing.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    fit_needs: ClassVar[frozenset[str]] = frozenset({"features", "labels"})
    fitted_tensors: ClassVar = {"class_means": "features", "whitener": None}
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        self._check_option("shrinkage", 0 <= self.shrinkage <= 1, "in [0, 1]")

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        means, centred = class_statistics(outputs)
        return {"class_means": means, "whitener": whitening(centred, self.shrinkage)}

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        assert outputs.features is not None
        distances = squared_distances(outputs.features, self._state["class_means"], self._state["whitener"])
        return -distances.amin(dim=-1)
