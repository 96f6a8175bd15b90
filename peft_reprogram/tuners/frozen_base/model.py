from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar, Optional

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .batch_norm import detach_batch_norm_guard, freeze_batch_norm, freeze_batch_norm_on_forward
from .layer import BASE, FrozenBaseLayer
from .module_paths import rename_keys


class FrozenBaseTuner(BaseTuner):
    """
    A tuner whose layers are [`FrozenBaseLayer`]s.

    It keeps batch-norm statistics where they are, implements `adapter_names=`, and loads adapters that were saved under
    another release of transformers.
    """

    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _wrap(
        self, adapter_name: str, parent: nn.Module, target_name: str, layer: FrozenBaseLayer, current_key: str
    ) -> None:
        """Put a new layer in the place of the module that it wraps."""
        layer.in_windows = "Swin" in type(parent).__name__ and "attention" in current_key
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        setattr(parent, target_name, layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own copies `.weight` and `.bias`, which not all wrapped modules have. Layers place themselves.
        setattr(parent, child_name, new_module)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        freeze_batch_norm_on_forward(model)
        self._detach_key_map(model)
        model.register_load_state_dict_pre_hook(_KeyMap(type(self)))

    def train(self, mode: bool = True) -> FrozenBaseTuner:
        """Set training mode; the statistics of frozen batch normalisation stay what they are."""
        super().train(mode)
        if mode:
            freeze_batch_norm(self.model)
        return self

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Within this context each sample of a batch goes through the adapter named for it in `adapter_names`."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        layers = [module for module in self.modules() if isinstance(module, self.tuner_layer_cls)]
        self._check_adapter_names(names, layers)
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(layer.per_sample(names))
            for module in self.modules():
                if isinstance(module, AuxiliaryTrainingWrapper):
                    hook = partial(_add_adapter_names, adapter_names=names)
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def _check_adapter_names(self, names: Sequence[str], layers: Sequence[FrozenBaseLayer]) -> None:
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        if any(layer.merged for layer in layers):
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        unknown = sorted(set(names) - set(self.peft_config) - {BASE})
        if unknown:
            raise ValueError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. This model has "
                f"{sorted(self.peft_config)}, and '{BASE}' names the base model."
            )

    def merge_adapter(self, adapter_names: Optional[list[str]] = None, safe_merge: bool = False) -> None:
        self._check_mergeable(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Optional[list[str]] = None,
    ) -> nn.Module:
        if merge:
            self._check_mergeable(adapter_names)
            if self._is_inside_of_another_method():
                # PEFT merges the outermost layer around a module and throws away what lies between.
                self.merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
                merge = False
        model = super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )
        detach_batch_norm_guard(model)
        self._detach_key_map(model)
        return model

    def _check_mergeable(self, adapter_names: Optional[list[str]]) -> None:
        """Refuse what can't be merged before anything is changed; merging module by module would stop half-way."""

    def _is_inside_of_another_method(self) -> bool:
        return any(
            isinstance(module, BaseTunerLayer) and isinstance(module.base_layer, self.tuner_layer_cls)
            for module in self.model.modules()
        )

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        # From peft 0.21 on: it adds the adapter's name to the keys that it finds in the model.
        renamed = cls._renamed_keys(model, state_dict, ("", "base_model.model."))
        state_dict = {renamed.get(key, key): value for key, value in state_dict.items()}
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    @classmethod
    def _renamed_keys(
        cls, model: nn.Module, state_dict: dict[str, torch.Tensor], prefixes: Sequence[str]
    ) -> dict[str, str]:
        """New names for the keys of an adapter that was saved under another release of transformers."""
        names = [name for name, module in model.named_modules() if isinstance(module, cls.tuner_layer_cls)]
        return rename_keys(state_dict, [prefix + name for prefix in prefixes for name in names], f".{cls.prefix}")

    @classmethod
    def _detach_key_map(cls, model: nn.Module) -> None:
        for key, hook in list(model._load_state_dict_pre_hooks.items()):
            function = getattr(hook, "hook", hook)
            if isinstance(function, _KeyMap) and function.tuner.prefix == cls.prefix:
                del model._load_state_dict_pre_hooks[key]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False


class _KeyMap:
    """Hook before `load_state_dict`: peft 0.20 gives tuners no say in the names of an adapter's keys."""

    def __init__(self, tuner: type[FrozenBaseTuner]) -> None:
        self.tuner = tuner

    def __call__(self, module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        for old, new in self.tuner._renamed_keys(module, state_dict, (prefix,)).items():
            state_dict[new] = state_dict.pop(old)


def _add_adapter_names(
    module: nn.Module, args: tuple, kwargs: dict, adapter_names: Sequence[str]
) -> tuple[tuple, dict]:
    return args, {**kwargs, "adapter_names": adapter_names}
