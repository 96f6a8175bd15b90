from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from ..frozen_base import FrozenBaseLayer
from .config import NON_LINEARITIES, BottleneckConfig, CompacterConfig
from .hypercomplex import HypercomplexFactors, new_rule


_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)


class BottleneckLayer(FrozenBaseLayer):
    """
    Wraps a module and adds to its output what the adapters make of it. Several active adapters all see the output of the
    module itself, and what they make of it is added up.

    `bottleneck_down` and `bottleneck_up` hold, for each adapter, a linear layer or the factors of a Compacter's.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_rule")
    other_param_names = ("bottleneck_function", "bottleneck_dropout", "bottleneck_rule_owner")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        width = output_width(self.get_base_layer())
        assert width is not None  # as the model has checked
        self.width = width
        self.channels_first = isinstance(self.get_base_layer(), _CHANNELS_FIRST)
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_rule = nn.ParameterDict()
        # The layer that holds a Compacter's rule. In a plain dictionary it is not a submodule, so that the rule is stored once.
        self.bottleneck_rule_owner: dict[str, BottleneckLayer] = {}
        self.bottleneck_function: dict[str, str] = {}
        self.bottleneck_dropout: dict[str, float] = {}

    def add_bottleneck(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter with two linear layers."""
        inner = config.bottleneck_width(self.width)
        down, up = nn.Linear(self.width, inner), nn.Linear(inner, self.width)
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.bias)
        if config.init_weights:
            nn.init.zeros_(up.weight)
        self._add(adapter_name, config, down, up)

    def add_compacter(
        self, adapter_name: str, config: CompacterConfig, rule_owner: Optional[BottleneckLayer] = None
    ) -> None:
        """Add an adapter with two hypercomplex layers; `rule_owner` has the rule if it is not this layer."""
        inner, dim, rank = config.bottleneck_width(self.width), config.phm_dim, config.phm_rank
        if rule_owner is None:
            self.bottleneck_rule[adapter_name] = nn.Parameter(new_rule(dim))
        self.bottleneck_rule_owner[adapter_name] = self if rule_owner is None else rule_owner
        down, up = HypercomplexFactors(self.width, inner, dim, rank), HypercomplexFactors(inner, self.width, dim, rank)
        if config.init_weights:
            nn.init.zeros_(up.right)
        self._add(adapter_name, config, down, up)

    def _add(self, adapter_name: str, config: BottleneckConfig, down: nn.Module, up: nn.Module) -> None:
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_function[adapter_name] = config.non_linearity
        self.bottleneck_dropout[adapter_name] = config.dropout
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        names = [name for name in check_adapters_to_merge(self, adapter_names) if self._has(name)]
        if names:
            raise ValueError(
                f"The bottleneck of {names} can't be merged into the base model: there is a non-linearity between its "
                "projections. Keep the adapter (`unload()` removes it), or train one that merges, such as LoRA."
            )

    def unmerge(self) -> None:
        """Nothing to undo, a bottleneck is never merged."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.base_layer(*args, **kwargs)
        if self._sample_adapters is not None:
            result = output
            for name, index in self._sample_groups(len(output), output.device):
                part = output[index]
                result = result.index_copy(0, index, self._add_to(part, self._change(name, part)))
            return result
        changes = [self._change(name, output) for name in self._acting_adapters()]
        return self._add_to(output, sum(changes)) if changes else output

    def _change(self, name: str, output: torch.Tensor) -> torch.Tensor:
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        hidden = output.movedim(1, -1).contiguous() if self.channels_first else output
        hidden = self._project(name, down, self._cast_input_dtype(hidden, down.bias.dtype))  # type: ignore[arg-type]
        hidden = NON_LINEARITIES[self.bottleneck_function[name]](hidden)
        hidden = F.dropout(hidden, self.bottleneck_dropout[name], self.training)
        change = self._project(name, up, hidden)
        return change.movedim(-1, 1) if self.channels_first else change

    def _project(self, name: str, projection: Any, input: torch.Tensor) -> torch.Tensor:
        weight = projection.weight
        if isinstance(projection, HypercomplexFactors):
            weight = projection.weight(self.bottleneck_rule_owner[name].bottleneck_rule[name].to(input.device))
        return F.linear(input, weight, projection.bias)

    @staticmethod
    def _add_to(output: torch.Tensor, change: Any) -> torch.Tensor:
        return (output + change).to(output.dtype)

    def __repr__(self) -> str:
        return "bottleneck." + super().__repr__()


def output_width(module: Any) -> Optional[int]:
    """
    The number of features of a module's output.

    Args:
        module (`torch.nn.Module`): A module of the base model.

    Returns:
        `int` or `None`: `None` if a bottleneck can't follow the module.
    """
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        return module.num_features
    if isinstance(module, nn.LayerNorm) and getattr(module, "data_format", "channels_last") == "channels_last":
        return module.normalized_shape[-1]
    return None
