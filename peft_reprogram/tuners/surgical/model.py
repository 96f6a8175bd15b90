from __future__ import annotations

import copy
import re
from typing import Optional

from torch import nn

from ..frozen_base import FrozenBaseTuner, canonical_path
from .config import SurgicalConfig
from .layer import SurgicalLayer
from .leaves import leaf_kind
from .resolution import find_targets


class SurgicalModel(FrozenBaseTuner):
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
        new_module = SurgicalLayer(target, kind, adapter_name, peft_config, rank)
        self._wrap(adapter_name, parent, target_name, new_module, current_key)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        if autocast_adapter_dtype:
            return  # float32 already
        for module in self.model.modules():
            if isinstance(module, SurgicalLayer) and module._has(adapter_name):
                module.cast_changes(adapter_name, module._base_parameter("weight").dtype)
