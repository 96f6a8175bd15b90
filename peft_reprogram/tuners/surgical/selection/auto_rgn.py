from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Optional

from torch import nn

from .gradients import Loss, batch_gradients, trained_tensors
from .tensor_weights import TensorWeights


def auto_rgn(
    model: nn.Module, batches: Iterable[Any], *, num_batches: int = 5, loss: Optional[Loss] = None
) -> TensorWeights:
    """
    Auto-RGN (arXiv 2210.11466): each tensor's learning rate in proportion to its relative gradient norm, the mean over
    mini-batches of `||gradient||_2 / ||tensor||_2`, divided by the largest of all tensors.

    To be called at the start of each epoch; [`TensorWeights.update`] then sets the learning rates, and keeps what the
    optimiser knows unless told otherwise. A tensor of zeros has an infinite relative gradient: it gets weight 1, and the
    others are measured without it. Costs one forward and backward pass a mini-batch and no memory beyond one gradient. In
    distributed training call it in every process with the same batches.

    Args:
        model (`torch.nn.Module`): A model with a surgical adapter (a change is measured against the tensor that it
            changes), or any other model in training.
        batches (`Iterable`): Mini-batches on the model's device.
        num_batches (`int`, *optional*, defaults to 5): How many are used.
        loss (`Callable`, *optional*): `(model, batch) -> scalar`; `model(**batch).loss` by default.

    Returns:
        [`TensorWeights`]

    Raises:
        ValueError: If nothing is trained, there are no batches, a loss isn't finite, or all gradients are zero.

    Example:

        ```py
        >>> weights = auto_rgn(model, loader)
        >>> optimizer = torch.optim.AdamW(weights.parameter_groups(model, lr=1e-3))
        >>> for epoch in range(epochs):
        ...     auto_rgn(model, loader).update(optimizer, lr=1e-3)
        ...     train_one_epoch(model, loader, optimizer)
        ```
    """
    tensors = trained_tensors(model)
    norms = {name: tensor.value().double().norm().item() for name, tensor in tensors.items()}
    sums = dict.fromkeys(tensors, 0.0)
    count = 0
    for gradients in batch_gradients(model, tensors, batches, num_batches, loss):
        count += 1
        for name, gradient in gradients.items():
            norm = gradient.double().norm().item()
            sums[name] += norm / norms[name] if norms[name] else (math.inf if norm else 0.0)
    values = {name: total / count for name, total in sums.items()}
    largest = max((value for value in values.values() if math.isfinite(value)), default=0.0)
    if not any(values.values()):
        raise ValueError("All gradients are zero, so that no tensor can be preferred to another.")
    weights = {
        name: 1.0 if math.isinf(value) else (value / largest if largest else 0.0) for name, value in values.items()
    }
    return TensorWeights(
        "relative gradient norm",
        values,
        weights,
        {name: tensor.module for name, tensor in tensors.items()},
        {name: tensor.block for name, tensor in tensors.items()},
        count,
        f"{count} forward and backward passes",
    )
