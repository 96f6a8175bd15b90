"""The modules whose parameters can be changed from outside: their forward pass as a function of weight and bias.

A module is known by its `forward`, not by its class: a subclass that computes something else (a quantised linear, say) is
not taken for its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Optional

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


Forward = Callable[[Any, torch.Tensor, torch.Tensor, Optional[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class LeafKind:
    """
    How a kind of module computes.

    Args:
        name (`str`): `"linear"`, `"convolution"`, `"embedding"`, `"norm"` or `"scale"`.
        forward (`Callable`): `(module, input, weight, bias) -> output`, bit for bit what the module gives for its own
            weight and bias.
        weight (`str`): Attribute that holds the weight.
    """

    name: Literal["linear", "convolution", "embedding", "norm", "scale"]
    forward: Forward
    weight: str = "weight"


@dataclass(frozen=True)
class Leaf:
    """
    A module whose parameters can be trained by an adapter.

    Args:
        path (`str`): Its path in the model as it is now, tuner layers included.
        name (`str`): Its path in the base model.
        module (`torch.nn.Module`): The base module.
        kind ([`LeafKind`]): How it computes.
        owner (`str`, *optional*): What has it already (another tuner's layer or `modules_to_save`), if anything.
    """

    path: str
    name: str
    module: Any
    kind: LeafKind
    owner: Optional[str] = None

    @property
    def weight(self) -> nn.Parameter:
        return getattr(self.module, self.kind.weight)

    @property
    def bias(self) -> Optional[nn.Parameter]:
        return getattr(self.module, "bias", None)


@dataclass(frozen=True)
class Unreachable:
    """
    Parameters that no adapter can train, since they are in no layer of their own (a class token) or in an unknown one.

    Args:
        name (`str`): Path of their module in the base model.
        module (`torch.nn.Module`): The module.
        parameters (`dict[str, torch.nn.Parameter]`): The parameters by full name.
        quantized (`bool`): Whether the module is quantised.
    """

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    quantized: bool


def _linear(module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return F.linear(input, weight, bias)


def _convolution(module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return module._conv_forward(input, weight, bias)


def _embedding(module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return F.embedding(input, weight, module.padding_idx)


def _layer_norm(module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return F.layer_norm(input, module.normalized_shape, weight, bias, module.eps)


def _layer_norm_2d(
    module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]
) -> torch.Tensor:
    if module.data_format == "channels_last":
        return _layer_norm(module, input, weight, bias)
    return _layer_norm(module, input.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _rms_norm(module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return F.rms_norm(input, module.normalized_shape, weight, module.eps)


def _group_norm(module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return F.group_norm(input, module.num_groups, weight, bias, module.eps)


def _batch_norm(module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return F.batch_norm(input, module.running_mean, module.running_var, weight, bias, False, 0.0, module.eps)


def _response_norm(
    module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]
) -> torch.Tensor:
    strength = torch.linalg.vector_norm(input, ord=2, dim=(1, 2), keepdim=True)
    strength = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
    return weight * (input * strength) + bias + input


def _layer_scale(module: Any, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    return input * weight


_CONVNEXT, _CONVNEXTV2 = (
    "transformers.models.convnext.modeling_convnext",
    "transformers.models.convnextv2.modeling_convnextv2",
)
_DINOV2 = "transformers.models.dinov2.modeling_dinov2"
_DINOV2_REGISTERS = "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers"
_KINDS: dict[str, LeafKind] = {
    "torch.nn.modules.linear.Linear": LeafKind("linear", _linear),
    "torch.nn.modules.conv.Conv1d": LeafKind("convolution", _convolution),
    "torch.nn.modules.conv.Conv2d": LeafKind("convolution", _convolution),
    "torch.nn.modules.conv.Conv3d": LeafKind("convolution", _convolution),
    "torch.nn.modules.sparse.Embedding": LeafKind("embedding", _embedding),
    "torch.nn.modules.normalization.LayerNorm": LeafKind("norm", _layer_norm),
    "torch.nn.modules.normalization.RMSNorm": LeafKind("norm", _rms_norm),
    "torch.nn.modules.normalization.GroupNorm": LeafKind("norm", _group_norm),
    "torch.nn.modules.batchnorm._BatchNorm": LeafKind("norm", _batch_norm),
    f"{_CONVNEXT}.ConvNextLayerNorm": LeafKind("norm", _layer_norm_2d),
    f"{_CONVNEXTV2}.ConvNextV2LayerNorm": LeafKind("norm", _layer_norm_2d),
    f"{_CONVNEXTV2}.ConvNextV2GRN": LeafKind("norm", _response_norm),
    f"{_DINOV2}.Dinov2LayerScale": LeafKind("scale", _layer_scale, "lambda1"),
    f"{_DINOV2_REGISTERS}.Dinov2WithRegistersLayerScale": LeafKind("scale", _layer_scale, "lambda1"),
}


def leaf_kind(module: nn.Module) -> Optional[LeafKind]:
    """
    The kind of a module, `None` if an adapter can't train it.

    Args:
        module (`torch.nn.Module`): A module of the base model.
    """
    forward = type(module).forward
    kind = _KINDS.get(f"{forward.__module__}.{forward.__qualname__.removesuffix('.forward')}")
    if kind is None or is_quantized(module):
        return None
    if getattr(module, kind.weight, None) is None:
        return None  # a normalisation without affine parameters
    if getattr(module, "max_norm", None) is not None:
        return None  # such a table rewrites itself in each look-up
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return None  # batch statistics alone: nothing to freeze
    return kind


def is_quantized(module: nn.Module) -> bool:
    """Whether a module keeps its weight in a quantised form (bitsandbytes, GPTQ, AWQ, HQQ, torchao and the like)."""
    if any(hasattr(module, name) for name in ("qweight", "W_q", "quant_state", "weight_scale_inv")):
        return True
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return False
    # torchao's are plain modules with a tensor subclass as weight, bitsandbytes' have parameter classes of their own.
    origin = {type(weight).__module__.partition(".")[0], type(weight.data).__module__.partition(".")[0]}
    return not weight.is_floating_point() or not origin.isdisjoint({"torchao", "bitsandbytes", "optimum", "hqq"})


def walk(model: nn.Module) -> Iterator[Leaf | Unreachable]:
    """
    All parameters of a base model, layer by layer in the order of registration, adapters left out.

    Args:
        model (`torch.nn.Module`): A base model, with or without tuner layers in it.
    """
    yield from _walk(model, "", "", None)


def _walk(module: nn.Module, path: str, name: str, owner: Optional[str]) -> Iterator[Leaf | Unreachable]:
    if isinstance(module, AuxiliaryTrainingWrapper):
        yield from _walk(module.original_module, f"{path}.original_module", name, "modules_to_save")
        return
    if isinstance(module, BaseTunerLayer):
        base = module.base_layer
        if hasattr(module, "surgical_weight"):
            yield Leaf(path, name, base, module.kind, owner)  # type: ignore[arg-type]
        else:
            yield from _walk(base, f"{path}.base_layer", name, type(module).__name__)  # type: ignore[arg-type]
        return
    kind = leaf_kind(module)
    if kind is not None:
        yield Leaf(path, name, module, kind, owner)
        return
    # An attention of torch's own reads the weights of its children without calling them.
    opaque = isinstance(module, nn.MultiheadAttention)
    parameters = {_join(name, key): value for key, value in module.named_parameters(recurse=opaque)}
    if parameters or is_quantized(module):
        yield Unreachable(name, module, parameters, is_quantized(module))
    if not opaque:
        for key, child in module.named_children():
            yield from _walk(child, _join(path, key), _join(name, key), owner)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
