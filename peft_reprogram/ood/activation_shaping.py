"""What ASH and SCALE share: they reshape the non-negative activations that a linear head sees."""

from __future__ import annotations

import torch

from .outputs import IncompatibleOutputsError, ModelOutputs


def shapeable_activations(outputs: ModelOutputs, score_name: str) -> torch.Tensor:
    """
    The features in float64, where shaping by sums of activations means something.

    Raises:
        IncompatibleOutputsError: the head is a cosine head (its embeddings are signed and of unit norm, so that a
            sum of activations measures nothing and a scale would be normalised away), or features are negative.
    """
    alternatives = "use 'react', 'vim' or 'knn' instead"
    if outputs.logit_scale is not None:
        raise IncompatibleOutputsError(
            f"score {score_name!r} shapes the activations before a linear head, but this is a cosine head "
            f"(`logit_scale` is set): its signed, normalised embeddings have no activation mass; {alternatives}."
        )
    assert outputs.features is not None
    if (outputs.features < 0).any():
        raise IncompatibleOutputsError(
            f"score {score_name!r} compares sums of non-negative activations (after a ReLU), but `features` has "
            f"negative entries; {alternatives}."
        )
    return outputs.features.double()


def largest(activations: torch.Tensor, percentile: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and positions, `(N, k)`, of each sample's activations above the percentile (at least one)."""
    size = activations.shape[-1]
    kept = max(1, size - round(size * percentile))
    values, positions = activations.topk(kept, dim=-1)
    return values, positions


def mass_ratio(activations: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Sum of all activations over the sum of the kept ones, `(N, 1)`; 0 for a sample without any activation."""
    total = activations.sum(dim=-1, keepdim=True)
    return total / kept.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)
