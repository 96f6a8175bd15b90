from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Optional

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..batch_norm import detach_batch_norm_guard, freeze_batch_norm, freeze_batch_norm_on_forward
from ..mixed_batch import mixed_batch
from .config import SurgicalConfig
from .layer import SurgicalLayer
from .leaves import leaf_kind
from .module_paths import canonical_path, rename_keys
from .resolution import find_targets


class SurgicalModel(BaseTuner):
    """
    Creates a surgically fine-tuned model from a pre-trained one.

    The modules of the named blocks get a trained change of full shape, zero at the start; everything else stays frozen,
    the statistics of batch normalisation included. The method is described in detail in
    https://huggingface.co/papers/2210.11466 (arXiv 2210.11466).

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to be adapted.
        config ([`SurgicalConfig`]): The configuration of the surgical adapter.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`):
            Create empty adapter weights on the meta device. Useful to speed up the loading process.

    Returns:
        `torch.nn.Module`: The model with the surgical adapter.

    Example:

        ```py
        >>> from transformers import ViTForImageClassification
        >>> from peft import get_peft_model
        >>> from peft_reprogram import SurgicalConfig, describe_blocks

        >>> model = ViTForImageClassification.from_pretrained("google/vit-base-patch16-224")
        >>> print(describe_blocks(model))
        >>> model = get_peft_model(model, SurgicalConfig(blocks=["first"]))
        >>> model.print_trainable_parameters()
        ```

    **Attributes**:
        - **model** ([`~transformers.PreTrainedModel`]) -- The model to be adapted.
        - **peft_config** ([`SurgicalConfig`]): The configuration of the surgical adapter.
    """

    prefix: str = "surgical_"
    tuner_layer_cls = SurgicalLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: SurgicalConfig, model_config: dict) -> SurgicalConfig:
        # The stored configuration keeps the names of the blocks, which mean the same in every release of transformers.
        # Only the injection sees the paths they stand for, as a regex, since a name would match by its end.
        resolved = copy.copy(peft_config)
        resolved.target_modules = "|".join(map(re.escape, find_targets(peft_config, self.model)))
        return resolved

    def _create_and_replace(
        self,
        peft_config: SurgicalConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: Optional[str] = None,
    ) -> None:
        rank = (peft_config.ranks or {}).get(canonical_path(current_key))
        if isinstance(target, SurgicalLayer):
            target.update_layer(adapter_name, peft_config, rank)
            return
        kind = leaf_kind(target)
        if kind is None:
            raise ValueError(f"'{current_key}' ({type(target).__name__}) can't be trained by a surgical adapter.")
        in_windows = "Swin" in type(parent).__name__ and "attention" in current_key
        new_module = SurgicalLayer(target, kind, adapter_name, peft_config, rank, in_windows)
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own copies `.weight`, which a layer scale doesn't have. Layers place themselves.
        setattr(parent, child_name, new_module)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        freeze_batch_norm_on_forward(model)
        _detach_key_map(model)
        model.register_load_state_dict_pre_hook(_KeyMap())

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        if autocast_adapter_dtype:
            return  # float32 already
        for module in self.model.modules():
            if isinstance(module, SurgicalLayer) and module._has(adapter_name):
                module.cast_changes(adapter_name, module._base_parameter("weight").dtype)

    def train(self, mode: bool = True) -> SurgicalModel:
        """Set training mode; the statistics of batch normalisation stay what they are."""
        super().train(mode)
        if mode:
            freeze_batch_norm(self.model)
        return self

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        layers = [module for module in self.modules() if isinstance(module, SurgicalLayer)]
        with mixed_batch(self, layers, kwargs.pop("adapter_names", None)):
            yield

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        detach_batch_norm_guard(model)
        _detach_key_map(model)
        return model

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        # From peft 0.21 on: it adds the adapter's name to the keys that it finds in the model.
        renamed = _renamed_keys(model, state_dict, ("", "base_model.model."))
        state_dict = {renamed.get(key, key): value for key, value in state_dict.items()}
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False


class _KeyMap:
    """Hook before `load_state_dict`: peft 0.20 gives tuners no say in the names of an adapter's keys."""

    def __call__(self, module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        for old, new in _renamed_keys(module, state_dict, (prefix,)).items():
            state_dict[new] = state_dict.pop(old)


def _detach_key_map(model: nn.Module) -> None:
    for key, hook in list(model._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), _KeyMap):
            del model._load_state_dict_pre_hooks[key]


def _renamed_keys(model: nn.Module, keys: Iterable[str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """New names for the keys of an adapter that was saved under another release of transformers."""
    names = [name for name, module in model.named_modules() if isinstance(module, SurgicalLayer)]
    return rename_keys(keys, [prefix + name for prefix in prefixes for name in names], f".{SurgicalModel.prefix}")
