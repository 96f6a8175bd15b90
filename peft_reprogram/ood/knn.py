from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


# Distances held at a time: 128 MiB of float64, whatever the size of the bank.
_CHUNK = 2**24


@register_score("knn")
@dataclass(eq=False)
class KNN(Score):
    """
    Deep nearest neighbours ([arXiv 2204.06507](https://arxiv.org/abs/2204.06507)): minus the Euclidean distance to the
    k-th nearest in-distribution sample, between L2-normalised features.

    Args:
        k (`int`, *optional*, defaults to 50): The paper's choice for CIFAR-10; 200 for CIFAR-100, 1000 for ImageNet.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    fit_needs: ClassVar[frozenset[str]] = frozenset({"features"})
    fitted_tensors: ClassVar = {"bank": "features"}
    k: int = 50

    def __post_init__(self) -> None:
        self._check_option("k", isinstance(self.k, int) and self.k >= 1, "an integer >= 1")

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        self._check_option("k", self.k <= len(outputs), f"at most the number of samples to fit on ({len(outputs)})")
        assert outputs.features is not None
        return {"bank": normalize(outputs.features, dim=-1)}

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        assert outputs.features is not None
        # Float64, because 2 - 2 cos cancels for close neighbours.
        bank = normalize(self._state["bank"].double(), dim=-1)
        queries = normalize(outputs.features.double(), dim=-1)
        nearest = [
            (chunk @ bank.T).topk(self.k, dim=-1).values[:, -1] for chunk in queries.split(max(1, _CHUNK // len(bank)))
        ]
        return -(2 - 2 * torch.cat(nearest)).clamp(min=0).sqrt()
