from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch


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

        Args:
            logits (array-like): Of shape `(N, C)`, of samples that nothing was trained on.
            labels (array-like of `int`): Their classes, shape `(N,)`.

        Returns:
            [`Temperature`]

        Raises:
            ValueError: If shapes, ranges or types don't fit, there are no samples, or no finite temperature is best.
        """
        from ..evaluation.temperature import fit_temperature

        logits, labels = as_array(logits), as_array(labels)
        if not len(logits):
            raise ValueError("The calibration set is empty: a temperature needs held-out samples with labels.")
        value = fit_temperature(logits, labels)
        true = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        # The likelihood then rises without end as the temperature goes to 0, or to infinity.
        if (true == logits.max(axis=1)).all():
            raise ValueError(_no_temperature(len(logits), "all of them are classified right"))
        if logits.mean() >= true.mean():
            raise ValueError(_no_temperature(len(logits), "their logits say nothing about the labels"))
        return cls(value, len(logits))

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


def _no_temperature(n: int, why: str) -> str:
    return f"No finite temperature is best for these {n} samples: {why}. Take more, or others."


def as_array(values: Any) -> np.ndarray:
    """A numpy array of tensors on any device, lists or arrays."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)
