from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..metrics import log_softmax, negative_log_likelihood


class NoTemperatureError(ValueError):
    """No finite temperature is best: the likelihood rises without end as it goes to 0, or to infinity."""


@dataclass(frozen=True)
class Temperature:
    """
    Temperature scaling (arXiv 1706.04599): logits are divided by one number, which leaves the decision alone and makes the
    confidence honest.

    Args:
        value (`float`): The temperature, positive and finite; above 1 softens.
        n (`int`): Number of samples it was fitted on.
    """

    value: float
    n: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"`value` must be positive and finite, got {self.value}.")

    @classmethod
    def fit(cls, logits: Any, labels: Any) -> Temperature:
        """
        The temperature that minimises the negative log-likelihood of held-out samples.

        The problem is convex in the inverse temperature, so Newton's method, kept inside a bracket, finds the minimum.

        Args:
            logits (array-like): Of shape `(N, C)`, of samples that nothing was trained on.
            labels (array-like of `int`): Their classes, shape `(N,)`.

        Returns:
            [`Temperature`]

        Raises:
            ValueError: If shapes, ranges or types don't fit, or there are no samples.
            NoTemperatureError: If no finite temperature is best.
        """
        logits, labels = as_array(logits), as_array(labels)
        if not len(logits):
            raise ValueError("The calibration set is empty: a temperature needs held-out samples with labels.")
        negative_log_likelihood(logits, labels)  # checks
        true = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        if (true == logits.max(axis=1)).all():
            raise _no_temperature(len(logits), "all of them are classified right")
        if logits.mean() >= true.mean():
            raise _no_temperature(len(logits), "their logits say nothing about the labels")
        return cls(1 / _best_inverse(logits, labels), len(logits))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Scaled logits, of the same shape and dtype."""
        return logits / self.value

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Temperature:
        """The inverse of `to_dict`."""
        return cls(**data)


def _no_temperature(n: int, why: str) -> NoTemperatureError:
    return NoTemperatureError(f"No finite temperature is best for these {n} samples: {why}. Take more, or others.")


def _best_inverse(logits: np.ndarray, labels: np.ndarray, tolerance: float = 1e-10) -> float:
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    true = logits[np.arange(len(labels)), labels]
    low, high = 1e-4, 1e4
    inverse = 1.0
    for _ in range(200):
        p = np.exp(log_softmax(logits, 1 / inverse))
        mean = np.sum(p * logits, axis=1)
        slope = float(np.mean(mean - true))
        curvature = float(np.mean(np.sum(p * logits**2, axis=1) - mean**2))
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else np.inf
        # Where Newton leaves the bracket, halve it on the logarithmic scale.
        following = step if low < step < high else float(np.sqrt(low * high))
        if abs(following - inverse) <= tolerance * inverse:
            break
        inverse = following
    return inverse


def as_array(values: Any) -> np.ndarray:
    """A numpy array of tensors on any device, lists or arrays."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)
