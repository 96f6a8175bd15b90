"""The tuner types that the battery runs over. A new type joins by one line in `TUNERS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from peft_reprogram import (
    BottleneckConfig,
    CompacterConfig,
    ReprogrammerConfig,
    ResidualReprogrammerConfig,
    SurgicalConfig,
)

from .zoo import IMAGE_MEAN, IMAGE_STD, POSITIONS, TOKENS, ZooModel


def _reprogrammer(config_cls: type[ReprogrammerConfig]) -> Callable[..., ReprogrammerConfig]:
    def config(model: ZooModel, **fields: Any) -> ReprogrammerConfig:
        defaults: dict[str, Any] = {
            "image_mean": IMAGE_MEAN, "image_std": IMAGE_STD, "image_size": model.image_size
        }  # fmt: skip
        if model.has_text:
            defaults.update(token_indices=TOKENS, position_indices=POSITIONS)
        return config_cls(**{**defaults, **fields})

    return config


def _surgical(model: ZooModel, **fields: Any) -> SurgicalConfig:
    # What a LoRA of the battery wraps is left to it: a layer has one method's wrapper or the other's.
    defaults: dict[str, Any] = {"blocks": ["block:1"], "exclude_modules": rf".*({model.linear})"}
    if model.has_text:
        defaults["blocks"] = ["block:1", "text:embedding", "text:block:1"]
    return SurgicalConfig(**{**defaults, **fields})


def _bottleneck(config_cls: type[BottleneckConfig], **type_fields: Any) -> Callable[..., BottleneckConfig]:
    def config(model: ZooModel, **fields: Any) -> BottleneckConfig:
        defaults: dict[str, Any] = {"reduction_factor": 4, **type_fields}
        if model.name == "mobilenet-v2":
            # One of sixteen blocks: random weights in all of them amplify until nothing but rounding is left.
            defaults["exclude_modules"] = r".*layer\.(?!4\.).*"
        return config_cls(**{**defaults, **fields})

    return config


# For each type, what makes its configuration for a model of the zoo. An adapter of it, fresh, is the identity.
TUNERS: dict[str, Callable[..., PeftConfig]] = {
    "REPROGRAMMER": _reprogrammer(ReprogrammerConfig),
    "RESIDUAL_REPROGRAMMER": _reprogrammer(ResidualReprogrammerConfig),
    "SURGICAL": _surgical,
    "BOTTLENECK": _bottleneck(BottleneckConfig),
    "COMPACTER": _bottleneck(CompacterConfig, phm_dim=2),
}
# The fields with which each type can be merged; types that are not named here never merge.
MERGEABLE: dict[str, dict[str, Any]] = {
    "REPROGRAMMER": {"reprogram_image": False},
    "RESIDUAL_REPROGRAMMER": {"reprogram_image": False, "residual_alpha": 0.0},
    "SURGICAL": {},
}


def adapter_parameters(model: nn.Module, adapter_name: str = "default") -> dict[str, nn.Parameter]:
    """The parameters of one adapter, the copies of `modules_to_save` included."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith(f".{adapter_name}") or f".{adapter_name}." in name
    }


@torch.no_grad()
def randomize(model: nn.Module, adapter_name: str = "default", seed: int = 0) -> None:
    """Give an adapter weights as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    parameters = adapter_parameters(model, adapter_name)
    assert parameters
    for parameter in parameters.values():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))


def adapted(model: ZooModel, config: PeftConfig, adapter_name: str = "default", **kwargs: Any) -> PeftModel:
    """The model with an adapter that does something, in evaluation mode."""
    peft_model = get_peft_model(model.build(), config, adapter_name=adapter_name, **kwargs).eval()
    randomize(peft_model, adapter_name)
    return peft_model


@dataclass(frozen=True)
class Case:
    """A tuner type on a model of the zoo."""

    tuner: str
    model: ZooModel

    def __str__(self) -> str:
        return f"{self.tuner}-{self.model.name}"

    def config(self, **fields: Any) -> PeftConfig:
        return TUNERS[self.tuner](self.model, **fields)

    def adapted(self, adapter_name: str = "default", **fields: Any) -> PeftModel:
        return adapted(self.model, self.config(**fields), adapter_name)

    def base_output(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model.predict(self.model.build(), inputs)
