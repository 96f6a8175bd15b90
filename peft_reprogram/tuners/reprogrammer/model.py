from __future__ import annotations

from typing import Any, Optional

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..frozen_base import FrozenBaseTuner
from .architectures import find_architecture, is_position_table
from .config import ReprogrammerConfig, ResidualReprogrammerConfig, check_residual_alpha
from .layer import PixelReprogrammer, ReprogrammerLayer, RowReprogrammer
from .residual import attach_residual, detach_residual
from .resolution import resolve_config


class ReprogrammerModel(FrozenBaseTuner):
    """
    Creates a Reprogrammer from a pre-trained vision or text-image model.

    The base model stays frozen. What is trained is a frame of pixels around the image and, where the model has a text
    tower, the token and position embeddings that the class prompts use. The method is described in detail in
    https://huggingface.co/papers/2403.10800 (arXiv 2403.10800).

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to be adapted.
        config ([`ReprogrammerConfig`]): The configuration of the Reprogrammer.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`):
            Create empty adapter weights on the meta device. Useful to speed up the loading process.

    Returns:
        `torch.nn.Module`: The reprogrammed model.

    Example:

        ```py
        >>> from transformers import AutoProcessor, CLIPModel
        >>> from peft import get_peft_model
        >>> from peft_reprogram import ReprogrammerConfig

        >>> model = CLIPModel.from_pretrained("openai/clip-vit-base-patch32")
        >>> processor = AutoProcessor.from_pretrained("openai/clip-vit-base-patch32")
        >>> config = ReprogrammerConfig.for_classes(
        ...     ["cat", "dog"], "a photo of a {}", tokenizer=processor.tokenizer, image_processor=processor
        ... )
        >>> model = get_peft_model(model, config)
        >>> model.print_trainable_parameters()
        ```

    **Attributes**:
        - **model** ([`~transformers.PreTrainedModel`]) -- The model to be adapted.
        - **peft_config** ([`ReprogrammerConfig`]): The configuration of the Reprogrammer.
    """

    prefix: str = "reprogrammer_"
    tuner_layer_cls = ReprogrammerLayer

    def _prepare_adapter_config(self, peft_config: ReprogrammerConfig, model_config: dict) -> ReprogrammerConfig:
        return resolve_config(peft_config, self.model)

    def _create_and_replace(
        self,
        peft_config: ReprogrammerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: Optional[str] = None,
    ) -> None:
        table = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(table, nn.Embedding):
            is_position = is_position_table(current_key)
            indices = peft_config.position_indices if is_position else peft_config.token_indices
            if not indices:
                if is_position:
                    return
                raise ValueError(
                    f"`target_modules` names the embedding '{current_key}', but no rows of it are to be trained. Pass "
                    "`token_indices=[...]`, or `class_names=[...]` and a tokenizer with `ReprogrammerConfig.for_classes`."
                )
            if isinstance(target, RowReprogrammer):
                target.update_layer(adapter_name, peft_config, indices)
                return
            new_module: ReprogrammerLayer = RowReprogrammer(target, adapter_name, peft_config, indices)
        elif isinstance(target, PixelReprogrammer):
            target.update_layer(adapter_name, peft_config)
            return
        else:
            new_module = PixelReprogrammer(target, adapter_name, peft_config)
        self._wrap(adapter_name, parent, target_name, new_module, current_key)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._after_injection(model, adapter_name)

    def _after_injection(self, model: nn.Module, adapter_name: str) -> None:
        # Without PeftModel, a model can hold reprogrammers of both kinds, so that each injection concerns the residual.
        residual = {name: c for name, c in self.peft_config.items() if isinstance(c, ResidualReprogrammerConfig)}
        if not residual:
            return
        if adapter_name in residual:
            for module in model.modules():
                if isinstance(module, ReprogrammerLayer) and module._has(adapter_name):
                    module.reprogrammer_alpha[adapter_name] = residual[adapter_name].residual_alpha
        attach_residual(model, find_architecture(model), residual)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        detach_residual(model)
        return model

    def _check_mergeable(self, adapter_names: Optional[list[str]]) -> None:
        names = self.active_adapters if adapter_names is None else adapter_names
        for module in self.model.modules():
            if isinstance(module, PixelReprogrammer):
                module.merge(adapter_names=list(names))

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "Reprogrammer adapters can't be averaged: their frames act through tanh and clamp. Activate several at once "
            "with `model.base_model.set_adapter([...])`, which applies them one after the other."
        )


class ResidualReprogrammerModel(ReprogrammerModel):
    """
    Creates a Residual Reprogrammer from a pre-trained vision or text-image model.

    A [`ReprogrammerModel`] whose features are mixed with those of the untouched model, \\( (1 - a) f + a f_0 \\), on both
    towers of a text-image model; models with a classification head mix their logits. Described in detail in
    https://huggingface.co/papers/2403.10800 (arXiv 2403.10800). A forward pass costs two.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to be adapted.
        config ([`ResidualReprogrammerConfig`]): The configuration of the Residual Reprogrammer.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`):
            Create empty adapter weights on the meta device. Useful to speed up the loading process.

    Returns:
        `torch.nn.Module`: The reprogrammed model.
    """

    def _check_mergeable(self, adapter_names: Optional[list[str]]) -> None:
        names = self.active_adapters if adapter_names is None else adapter_names
        mixing = [
            name
            for name in names
            if any(
                layer.reprogrammer_alpha.get(name)
                for layer in self.model.modules()
                if isinstance(layer, ReprogrammerLayer)
            )
        ]
        if mixing:
            raise ValueError(
                f"The residual of {mixing} can't be merged into the base model: it needs the features of the untouched "
                "one. Keep the adapter, or drop the zero-shot branch first with `set_residual_alpha(model, 0.0)`."
            )
        super()._check_mergeable(adapter_names)


def set_residual_alpha(model: nn.Module, alpha: float, adapter_name: Optional[str] = None) -> None:
    """
    Change the weight of the zero-shot branch of a Residual Reprogrammer, without retraining (arXiv 2403.10800).

    Args:
        model (`torch.nn.Module`): A `PeftModel`, or a model with an injected Residual Reprogrammer.
        alpha (`float`): Weight in [0, 1]: 0 is the Reprogrammer, 1 the zero-shot model.
        adapter_name (`str`, *optional*): The adapter to change; all residual adapters by default.

    Raises:
        ValueError: If `alpha` is outside [0, 1], or the model has no (such) residual adapter.
    """
    check_residual_alpha(alpha)
    configs = getattr(model, "peft_config", {})
    residual = [name for name, config in configs.items() if isinstance(config, ResidualReprogrammerConfig)]
    names = residual if adapter_name is None else [name for name in residual if name == adapter_name]
    if not names:
        raise ValueError(
            f"The model has no residual reprogrammer{'' if adapter_name is None else f' named {adapter_name!r}'}; its "
            f"adapters are { {name: str(config.peft_type) for name, config in configs.items()} }. Load a Reprogrammer as "
            "a residual one with `ResidualReprogrammerConfig.from_reprogrammer`."
        )
    for name in names:
        configs[name].residual_alpha = alpha
        for module in model.modules():
            if isinstance(module, ReprogrammerLayer) and name in module.reprogrammer_alpha:
                module.reprogrammer_alpha[name] = alpha
