from __future__ import annotations

import copy
import re
from typing import Any, Optional

from torch import nn

from ..frozen_base import FrozenBaseTuner
from .config import BottleneckConfig, CompacterConfig
from .layer import BottleneckLayer
from .targets import find_targets


class BottleneckModel(FrozenBaseTuner):
    """
    Creates a model with bottleneck adapters from a pre-trained one.

    Each adapter adds to the output of a frozen module what a small network with one hidden layer makes of it, at first
    nothing. The method is described in detail in https://huggingface.co/papers/1902.00751 (arXiv 1902.00751).

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to be adapted.
        config ([`BottleneckConfig`]): The configuration of the adapter.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`):
            Create empty adapter weights on the meta device. Useful to speed up the loading process.

    Returns:
        `torch.nn.Module`: The model with the adapter.

    Example:

        ```py
        >>> from transformers import ViTForImageClassification
        >>> from peft import get_peft_model
        >>> from peft_reprogram import BottleneckConfig

        >>> model = ViTForImageClassification.from_pretrained("google/vit-base-patch16-224")
        >>> model = get_peft_model(model, BottleneckConfig(reduction_factor=8))
        >>> model.print_trainable_parameters()
        ```

    **Attributes**:
        - **model** ([`~transformers.PreTrainedModel`]) -- The model to be adapted.
        - **peft_config** ([`BottleneckConfig`]): The configuration of the adapter.
    """

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict) -> BottleneckConfig:
        # The stored configuration keeps what the user wrote; a default means the same in every release of transformers.
        # Only the injection sees the paths it stands for, as a regex, since a name would match by its end.
        resolved = copy.copy(peft_config)
        resolved.target_modules = "|".join(map(re.escape, find_targets(peft_config, self.model)))
        return resolved

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: Optional[str] = None,
    ) -> None:
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target)
        if isinstance(peft_config, CompacterConfig):
            owner = self._rule_owner(adapter_name) if peft_config.shared_phm_rule else None
            layer.add_compacter(adapter_name, peft_config, owner)
        else:
            layer.add_bottleneck(adapter_name, peft_config)
        if layer is not target:
            self._wrap(adapter_name, parent, target_name, layer, current_key)

    def _rule_owner(self, adapter_name: str) -> Optional[BottleneckLayer]:
        layers = (module for module in self.model.modules() if isinstance(module, BottleneckLayer))
        return next((layer for layer in layers if adapter_name in layer.bottleneck_rule), None)

    def _check_mergeable(self, adapter_names: Optional[list[str]]) -> None:
        names = self.active_adapters if adapter_names is None else adapter_names
        for module in self.model.modules():
            if isinstance(module, BottleneckLayer):
                module.merge(adapter_names=list(names))

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "Bottleneck adapters can't be averaged: there is a non-linearity between their projections. Activate several at "
            "once with `model.base_model.set_adapter([...])`, which adds up what each makes of a module's output."
        )


class CompacterModel(BottleneckModel):
    """
    Creates a model with Compacter adapters from a pre-trained one.

    A [`BottleneckModel`] whose projections are sums of a few Kronecker products, which takes a fraction of the parameters.
    Described in https://huggingface.co/papers/2106.04647 (arXiv 2106.04647).

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to be adapted.
        config ([`CompacterConfig`]): The configuration of the adapter.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`):
            Create empty adapter weights on the meta device. Useful to speed up the loading process.

    Returns:
        `torch.nn.Module`: The model with the adapter.
    """
