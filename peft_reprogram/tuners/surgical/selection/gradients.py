from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Optional

import torch
from torch import nn

from ..blocks import find_blocks, get_base_model
from ..layer import SurgicalLayer


Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class TrainedTensor:
    """
    A parameter that is being trained, and the tensor that it changes.

    Args:
        parameter (`torch.nn.Parameter`): What the optimiser holds.
        value (`Callable`): Gives the tensor in effect: the sum of weight and change for a surgical adapter, else the
            parameter itself. The gradient is the same for both.
        module (`str`): Path of the module in the base model.
        block (`str`): Name of its block, or its module where blocks are unknown.
    """

    parameter: nn.Parameter
    value: Callable[[], torch.Tensor]
    module: str
    block: str


def trained_tensors(model: nn.Module) -> dict[str, TrainedTensor]:
    """
    The parameters of a model that are being trained, by name, in the order of depth.

    Args:
        model (`torch.nn.Module`): A model with a surgical adapter, or any other model in training.

    Raises:
        ValueError: If nothing is trained.
    """
    blocks = _blocks_of_modules(model)
    owners = {name: module for name, module in model.named_modules() if isinstance(module, SurgicalLayer)}
    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, _, rest = name.rpartition(".surgical_")
        layer = owners.get(owner)
        module = (owner if layer is not None else name.rpartition(".")[0]).removeprefix("base_model.model.")
        kind = rest.partition(".")[0]
        value = parameter.detach if layer is None or kind not in ("weight", "bias") else _in_effect(layer, kind)
        tensors[name] = TrainedTensor(parameter, value, module, blocks.get(module, module))
    if not tensors:
        raise ValueError("The model trains nothing: none of its parameters requires a gradient.")
    return tensors


def batch_gradients(
    model: nn.Module,
    tensors: Mapping[str, TrainedTensor],
    batches: Iterable[Any],
    num_batches: int,
    loss: Optional[Loss] = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """
    The gradients of one mini-batch after the other; `.grad` is left alone.

    Args:
        model (`torch.nn.Module`): The model, in the mode in which it is to be measured.
        tensors (`Mapping`): As [`trained_tensors`] gives them.
        batches (`Iterable`): Mini-batches on the model's device; only the first `num_batches` are read.
        num_batches (`int`): How many to use, at least 1.
        loss (`Callable`, *optional*): `(model, batch) -> scalar`; `model(**batch).loss` by default.

    Raises:
        ValueError: If there are no batches, or a loss isn't finite.
    """
    if num_batches < 1:
        raise ValueError(f"`num_batches` must be at least 1, got {num_batches}.")
    parameters = [tensor.parameter for tensor in tensors.values()]
    index = -1
    for index, batch in enumerate(islice(batches, num_batches)):
        value = _default_loss(model, batch) if loss is None else loss(model, batch)
        if not torch.isfinite(value):
            raise ValueError(f"The loss of mini-batch {index} is {value.item()}; gradients of it say nothing.")
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        yield {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(zip(tensors, parameters), gradients)
        }
    if index < 0:
        raise ValueError("`batches` is empty: the choice is made from gradients of at least one mini-batch.")


def _default_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    value = model(**batch).loss
    if value is None:
        raise ValueError(
            "The model gave no loss. Give `labels` in each batch, or pass `loss=lambda model, batch: ...`."
        )
    return value


def _in_effect(layer: SurgicalLayer, kind: str) -> Callable[[], torch.Tensor]:
    return lambda: layer.changed(kind).detach()


def _blocks_of_modules(model: nn.Module) -> dict[str, str]:
    """The finest block of each module: a layer, `embedding` or `head`."""
    try:
        blocks = find_blocks(get_base_model(model))
    except ValueError:
        return {}  # an unlisted model: its modules stand for themselves
    wanted = [name for name in blocks if name.removeprefix("text:").startswith(("embedding", "block:", "head"))]
    return {leaf.name: name for name in wanted for leaf in blocks[name].leaves}
