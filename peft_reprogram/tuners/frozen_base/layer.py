from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


# How `adapter_names=` names the base model.
BASE = "__base__"


class FrozenBaseLayer(nn.Module, BaseTunerLayer):
    """
    Wraps a module of a frozen base model; knows which adapters act in a forward pass, and on which samples.

    Args:
        base_layer (`torch.nn.Module`): The module to wrap.
    """

    # Whether the model cuts images into windows before this layer, all windows of the first image first (Swin).
    in_windows = False

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._sample_adapters: Optional[list[str]] = None

    @contextmanager
    def per_sample(self, adapter_names: Sequence[str]) -> Iterator[None]:
        """Within this context each sample of a batch goes through the adapter named for it."""
        self._sample_adapters = list(adapter_names)
        try:
            yield
        finally:
            self._sample_adapters = None

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: Optional[list[str]]
    ) -> nn.Module:
        """Called when the model is unloaded, be it by the tuner of another method that it also has."""
        layer: Any = self
        while isinstance(layer, BaseTunerLayer):
            if merge:
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            layer = layer.base_layer
        # PEFT does not look for layers of another method inside of what this one wraps.
        for name, module in list(layer.named_modules()):
            if isinstance(module, BaseTunerLayer):
                if merge:
                    module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                layer.set_submodule(name, module.get_base_layer())
        return layer

    def _has(self, adapter_name: str) -> bool:
        return any(adapter_name in getattr(self, container) for container in self.adapter_layer_names)

    def _acting_adapters(self) -> list[str]:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return []
        return [name for name in self.active_adapters if self._has(name) and name not in self.merged_adapters]

    def _sample_groups(self, batch_size: int, device: torch.device) -> list[tuple[str, torch.Tensor]]:
        """Each adapter that acts, with the indices of its samples."""
        names = self._sample_adapters or []
        if self.in_windows and names and batch_size % len(names) == 0:
            names = [name for name in names for _ in range(batch_size // len(names))]
        if len(names) != batch_size:
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {batch_size} respectively. Pass one name a sample; for a text-image model that is "
                "possible only if images and texts are pairs, and not at all for layers that see no samples (this is "
                f"{type(self.get_base_layer()).__name__}). Otherwise call the model once for each adapter after "
                "`set_adapter`."
            )
        return [
            (name, torch.tensor([i for i, other in enumerate(names) if other == name], device=device))
            for name in dict.fromkeys(names)
            if name != BASE and self._has(name) and not self.disable_adapters
        ]

    def __getattr__(self, name: str) -> Any:
        # Models read attributes of the modules that we wrap, e.g. a convolution's stride to pad its input.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)
