from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from ..frozen_base import FrozenBaseLayer
from .config import SurgicalConfig
from .leaves import LeafKind


class SurgicalLayer(FrozenBaseLayer):
    """
    Wraps a leaf module and adds trained changes to its weight and bias.

    An adapter's change of the weight is either a tensor of the weight's shape in `surgical_weight`, or, after [`compress`],
    the product of `surgical_up` `(out, rank)` and `surgical_down` `(rank, in)`. All of them are float32 (or wider, if the
    base is), whatever the dtype of the base.
    """

    adapter_layer_names = ("surgical_weight", "surgical_bias", "surgical_up", "surgical_down")

    def __init__(
        self,
        base_layer: nn.Module,
        kind: LeafKind,
        adapter_name: str,
        config: SurgicalConfig,
        rank: Optional[int] = None,
    ) -> None:
        super().__init__(base_layer)
        self.kind = kind
        self.in_features, self.out_features = _features(base_layer, kind)
        # What merging has replaced, so that unmerging restores it bit for bit.
        self._unmerged: dict[str, torch.Tensor] = {}
        self.surgical_weight = nn.ParameterDict()
        self.surgical_bias = nn.ParameterDict()
        self.surgical_up = nn.ParameterDict()
        self.surgical_down = nn.ParameterDict()
        self.update_layer(adapter_name, config, rank)

    def update_layer(self, adapter_name: str, config: SurgicalConfig, rank: Optional[int] = None) -> None:
        """Add an adapter; `rank` makes its change of the weight a product of two factors."""
        weight, bias = self._base_parameter("weight"), self._base_parameter("bias")
        dtype = torch.promote_types(torch.float32, weight.dtype)
        shapes = {"weight": weight.shape}
        if rank is not None:
            shapes = {"up": (len(weight), rank), "down": (rank, weight[0].numel())}  # type: ignore[dict-item]
        if config.train_bias and bias is not None:
            shapes["bias"] = bias.shape
        for name, shape in shapes.items():
            change = torch.zeros(shape, dtype=dtype)
            if not config.init_weights:
                nn.init.normal_(change, std=0.1)
            getattr(self, f"surgical_{name}")[adapter_name] = nn.Parameter(change)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def change(self, adapter_name: str, name: str = "weight") -> Optional[torch.Tensor]:
        """
        What an adapter adds to the weight or the bias.

        Args:
            adapter_name (`str`): The adapter.
            name (`str`, *optional*, defaults to `"weight"`): `"weight"` or `"bias"`.

        Returns:
            `torch.Tensor` or `None`: Of the parameter's shape; `None` if the adapter leaves it alone.
        """
        container = self.surgical_weight if name == "weight" else self.surgical_bias
        if adapter_name in container:
            return container[adapter_name]
        if name == "weight" and adapter_name in self.surgical_up:
            product = self.surgical_up[adapter_name] @ self.surgical_down[adapter_name]
            return product.view(self._base_parameter("weight").shape)
        return None

    def changed(self, name: str = "weight", adapter_names: Optional[Sequence[str]] = None) -> torch.Tensor:
        """
        The weight or the bias as adapters change it, rounded once to the dtype of the base.

        Args:
            name (`str`, *optional*, defaults to `"weight"`): `"weight"` or `"bias"`.
            adapter_names (`Sequence[str]`, *optional*): The adapters; the active ones if not given.
        """
        names = self.active_adapters if adapter_names is None else adapter_names
        base = self._unmerged.get(name, self._base_parameter(name))
        total = base
        for adapter_name in names:
            change = self.change(adapter_name, name)
            total = total if change is None else total + change
        return total.to(base.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        """
        Add the changes to the wrapped module's parameters.

        Args:
            safe_merge (`bool`, *optional*, defaults to `False`): Whether to check first that the result is finite.
            adapter_names (`list[str]`, *optional*): Adapters to merge, all active ones by default.
        """
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if not self._has(adapter_name):
                continue
            names = [*self.merged_adapters, adapter_name]
            changing = [name for name in ("weight", "bias") if self.change(adapter_name, name) is not None]
            merged = {name: self.changed(name, names).data for name in changing}
            if safe_merge and not all(torch.isfinite(value).all() for value in merged.values()):
                raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter_name} seems to be broken")
            for name, value in merged.items():
                parameter = self._base_parameter(name)
                self._unmerged.setdefault(name, parameter.data)
                parameter.data = value
            self.merged_adapters = names

    def unmerge(self) -> None:
        """Restore what merging has replaced."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        for name, value in self._unmerged.items():
            parameter = self._base_parameter(name)
            parameter.data = value.to(parameter.device, parameter.dtype)
        self._unmerged.clear()
        self.merged_adapters.clear()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = self._acting_adapters()
        if self._sample_adapters is not None and not self.disable_adapters:
            (input,) = (*args, *kwargs.values())
            return self._forward_per_sample(input, len(self._sample_adapters))
        if not names:
            return self.base_layer(*args, **kwargs)
        (input,) = (*args, *kwargs.values())
        return self._forward_with(input, [*self.merged_adapters, *names])

    def _forward_with(self, input: torch.Tensor, names: list[str]) -> torch.Tensor:
        if self.kind.name != "embedding":
            bias = None if self._base_parameter("bias") is None else self.changed("bias", names)
            return self.kind.forward(self.base_layer, input, self.changed("weight", names), bias)
        # The same sum on the rows that are looked up, rather than on the whole table.
        base = self._unmerged.get("weight", self._base_parameter("weight"))
        rows = total = self.kind.forward(self.base_layer, input, base, None)
        for name in names:
            change = self.change(name)
            if change is not None:
                total = total + self.kind.forward(self.base_layer, input, change, None)
        return total.to(rows.dtype)

    def _forward_per_sample(self, input: torch.Tensor, batch_size: int) -> torch.Tensor:
        if self.kind.name == "embedding" and len(input) == 1:
            # Position ids are shared by the batch until here.
            input = input.expand(batch_size, *input.shape[1:])
        groups = self._sample_groups(len(input), input.device)
        result = self.base_layer(input)
        for name, index in groups:
            result = result.index_copy(0, index, self._forward_with(input[index], [name]).to(result.dtype))
        return result

    def _base_parameter(self, name: str) -> Any:
        return getattr(self.get_base_layer(), self.kind.weight if name == "weight" else name, None)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Optional[torch.device] = None) -> None:
        # Unlike PEFT's own, the dtype stays: rounded to half precision, the steps of training would be lost.
        device = self._base_parameter("weight").device if device is None else device
        self._replace_changes(adapter_name, lambda change: change.to(device))

    def cast_changes(self, adapter_name: str, dtype: torch.dtype) -> None:
        """Change the dtype of an adapter."""
        self._replace_changes(adapter_name, lambda change: change.to(dtype))

    def _replace_changes(self, adapter_name: str, convert: Any) -> None:
        for container in (getattr(self, name) for name in self.adapter_layer_names):
            if adapter_name in container and container[adapter_name].device.type != "meta":
                old = container[adapter_name]
                container[adapter_name] = nn.Parameter(convert(old.data), requires_grad=old.requires_grad)

    def __repr__(self) -> str:
        return "surgical." + super().__repr__()


def _features(module: Any, kind: LeafKind) -> tuple[int, int]:
    if kind.name == "linear":
        return module.in_features, module.out_features
    if kind.name == "convolution":
        return module.in_channels, module.out_channels
    if kind.name == "embedding":
        return module.num_embeddings, module.embedding_dim
    size = getattr(module, kind.weight).numel()
    return size, size
