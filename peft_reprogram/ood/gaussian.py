"""The Gaussian model of features behind both Mahalanobis scores."""

from __future__ import annotations

import torch

from .outputs import ModelOutputs


def class_statistics(outputs: ModelOutputs) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Means of the classes that occur, `(K, D)`, and the features minus the mean of their own class, `(N, D)`, in float64.
    """
    assert outputs.features is not None
    assert outputs.labels is not None
    if (outputs.labels < 0).any():
        raise ValueError("`labels` must be class indices >= 0 to fit class means; leave unlabelled samples out.")
    features = outputs.features.double()
    classes, index = outputs.labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=features.dtype, device=features.device)
    means = sums.index_add(0, index, features) / torch.bincount(index).unsqueeze(1)
    return means, features - means[index]


def whitening(centred: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """
    A matrix L, `(D, D)`, such that `L @ L.T` is the pseudo-inverse of the (shrunk) covariance of centred features.

    Shrinkage moves the maximum-likelihood covariance S towards `tr(S) / D * I`. Directions without variance (fewer
    samples than dimensions and no shrinkage) get distance 0, as in any pseudo-inverse.
    """
    covariance = centred.T @ centred / len(centred)
    dimension = len(covariance)
    identity = torch.eye(dimension, dtype=covariance.dtype, device=covariance.device)
    covariance = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / dimension * identity
    variances, directions = torch.linalg.eigh(covariance)
    cutoff = variances.amax() * dimension * torch.finfo(variances.dtype).eps
    return directions * torch.where(variances > cutoff, variances, torch.inf).rsqrt()


def squared_distances(features: torch.Tensor, means: torch.Tensor, whitener: torch.Tensor) -> torch.Tensor:
    """Squared Mahalanobis distances, `(N, K)`, of features to each of K means."""
    # Both sides are moved near the origin first: a common offset would cancel badly in the expanded square.
    origin = means.mean(dim=0)
    return torch.cdist((features.double() - origin) @ whitener, (means - origin) @ whitener).square()
