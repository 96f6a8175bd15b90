from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Optional

import torch
from torch import nn

from .gradients import Loss, batch_gradients, trained_tensors
from .tensor_weights import TensorWeights


def auto_snr(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    num_batches: int = 5,
    form: Literal["paper", "released"] = "paper",
    threshold: Optional[float] = None,
    loss: Optional[Loss] = None,
) -> TensorWeights:
    """
    Auto-SNR (arXiv 2210.11466): tensors whose gradients are mostly noise are frozen, the others trained in full.

    The signal-to-noise ratio of a tensor is the mean over its entries of `mean(g)^2 / Var(g)`, over mini-batches (Bessel's
    correction in the variance); entries whose gradient doesn't vary say nothing and are left out. `form="released"` is what
    the authors' code computes instead: `g^2 / (Var(g) + 1e-8)` with the variance over the tensor's first axis, averaged
    over entries and mini-batches. Ratios are divided by the largest, and tensors below the threshold get weight 0.

    Costs one forward and backward pass a mini-batch and, in the paper's form, memory for two more copies of what is
    trained. In distributed training call it in every process with the same batches.

    Args:
        model (`torch.nn.Module`): A model with a surgical adapter, or any other model in training.
        batches (`Iterable`): Mini-batches on the model's device.
        num_batches (`int`, *optional*, defaults to 5): How many are used; the paper's form needs at least 2.
        form (`"paper"` or `"released"`, *optional*, defaults to `"paper"`): Which of the two.
        threshold (`float`, *optional*): In [0, 1], on the ratio over the largest one. The paper leaves it open: 0.5 if not
            given; 0.95 in the released form.
        loss (`Callable`, *optional*): `(model, batch) -> scalar`; `model(**batch).loss` by default.

    Returns:
        [`TensorWeights`]: `values` are the ratios over the largest, weights are 0 or 1.

    Raises:
        ValueError: If nothing is trained, there are too few batches, a loss isn't finite, or an argument is out of range.
    """
    if form not in ("paper", "released"):
        raise ValueError(f"`form` must be 'paper' or 'released', got {form!r}.")
    threshold = {"paper": 0.5, "released": 0.95}[form] if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` must be in [0, 1], got {threshold}.")
    tensors = trained_tensors(model)
    statistics = _OverBatches() if form == "paper" else _OverFirstAxis()
    for gradients in batch_gradients(model, tensors, batches, num_batches, loss):
        statistics.add(gradients)
    ratios = statistics.ratios()
    largest = max(ratios.values())
    if not largest:
        raise ValueError("All gradients are zero, so that no tensor can be preferred to another.")
    values = {name: ratio / largest for name, ratio in ratios.items()}
    return TensorWeights(
        f"gradient signal-to-noise ratio ({form} form, threshold {threshold:g})",
        values,
        {name: float(value >= threshold) for name, value in values.items()},
        {name: tensor.module for name, tensor in tensors.items()},
        {name: tensor.block for name, tensor in tensors.items()},
        statistics.count,
        f"{statistics.count} forward and backward passes"
        + (", two more copies of what is trained" if form == "paper" else ""),
    )


class _OverBatches:
    """Welford's running mean and sum of squared deviations of each entry: squares of small differences stay exact."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: dict[str, torch.Tensor] = {}
        self.deviations: dict[str, torch.Tensor] = {}

    def add(self, gradients: dict[str, torch.Tensor]) -> None:
        self.count += 1
        for name, gradient in gradients.items():
            gradient = gradient.to(torch.promote_types(torch.float32, gradient.dtype))
            if self.count == 1:
                self.mean[name], self.deviations[name] = gradient.clone(), torch.zeros_like(gradient)
                continue
            delta = gradient - self.mean[name]
            self.mean[name] += delta / self.count
            self.deviations[name] += delta * (gradient - self.mean[name])

    def ratios(self) -> dict[str, float]:
        if self.count < 2:
            raise ValueError(f"The variance over mini-batches needs at least 2 of them, got {self.count}.")
        result = {}
        for name, mean in self.mean.items():
            variance = self.deviations[name] / (self.count - 1)
            varies = variance > 0
            ratio = mean[varies].double().square() / variance[varies].double()
            result[name] = ratio.mean().item() if ratio.numel() else 0.0
        return result


class _OverFirstAxis:
    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, float] = {}

    def add(self, gradients: dict[str, torch.Tensor]) -> None:
        self.count += 1
        for name, gradient in gradients.items():
            gradient = gradient.double().reshape(len(gradient), -1) if gradient.ndim else gradient.double().view(1, 1)
            variance = gradient.var(dim=0, correction=1 if len(gradient) > 1 else 0)
            ratio = (gradient.square() / (variance + 1e-8)).mean().item()
            self.sums[name] = self.sums.get(name, 0.0) + ratio

    def ratios(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}
