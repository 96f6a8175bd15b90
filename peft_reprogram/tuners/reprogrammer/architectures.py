"""What the Reprogrammer supports out of the box, and where in each model its parts go.

`TEXT_IMAGE_MODELS` and `CLASSIFIERS` are the one list of supported models; `find_architecture` locates the modules in a
given model. Models that are not listed work by naming `target_modules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Optional

from torch import nn


OPENAI_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# The normalisation of families all of whose published checkpoints share one. The other families vary by checkpoint.
NORMALIZATION = {"clip": OPENAI_CLIP, "chinese_clip": OPENAI_CLIP, "metaclip_2": OPENAI_CLIP, "siglip": HALF}

TEXT_IMAGE_MODELS = (
    "CLIPModel",
    "SiglipModel",
    "VisionTextDualEncoderModel",
    "CLIPVisionModelWithProjection",
    "AlignModel",
    "ChineseCLIPModel",
    "MetaClip2Model",
)
CLASSIFIERS = (
    "CLIPForImageClassification",
    "SiglipForImageClassification",
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "BeitForImageClassification",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "SwinForImageClassification",
    "Swinv2ForImageClassification",
    "ConvNextForImageClassification",
    "ConvNextV2ForImageClassification",
    "ResNetForImageClassification",
    "MobileNetV2ForImageClassification",
    "EfficientNetForImageClassification",
)

# What the module that first consumes `pixel_values` is called in the vision towers of these models.
_PIXEL_MODULES = ("embeddings", "embedder", "conv_stem")
_TOKEN_TABLES = ("token_embedding", "word_embeddings")
_POSITION_TABLES = ("position_embedding", "position_embeddings")


@dataclass(frozen=True)
class Tower:
    """
    A part of a model whose output the residual mixes.

    Args:
        path (`str`): Module path of the tower in the model.
        projection (`str`, *optional*): Module path of the linear map from the pooled output to the joint space; `None` where
            the pooled output is the embedding itself.
        pooled (`str`): Which output feeds the projection: `"pooler_output"`, or `"first_token"` of the last hidden state. A
            classifier's backbone has no joint space: `"linear"` mixes its outputs, and so its logits, directly.
    """

    path: str
    projection: Optional[str]
    pooled: Literal["pooler_output", "first_token", "linear"]


@dataclass(frozen=True)
class Architecture:
    """Module paths of what the Reprogrammer needs in one model; `None` where the model has no such part."""

    pixels: str
    vision: Tower
    tokens: Optional[str] = None
    positions: Optional[str] = None
    text: Optional[Tower] = None

    @property
    def towers(self) -> list[Tower]:
        return [self.vision] if self.text is None else [self.vision, self.text]


def find_architecture(model: Any) -> Optional[Architecture]:
    """
    Locate the Reprogrammer's targets in a supported model.

    Args:
        model (`torch.nn.Module`): The base model.

    Returns:
        `Architecture` or `None`: `None` if the model is none of `TEXT_IMAGE_MODELS` and `CLASSIFIERS`.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    if names.isdisjoint(TEXT_IMAGE_MODELS) and names.isdisjoint(CLASSIFIERS):
        return None

    if not names.isdisjoint(CLASSIFIERS):
        path = "vision_model" if hasattr(model, "vision_model") else model.base_model_prefix
        return Architecture(pixels=_find_pixel_module(model, path), vision=Tower(path, None, "linear"))

    # ALIGN and Chinese-CLIP project the hidden state of the first text token, the others the pooled output.
    text_pooled: Literal["pooler_output", "first_token"] = (
        "pooler_output" if names.isdisjoint({"AlignModel", "ChineseCLIPModel"}) else "first_token"
    )
    vision = Tower("vision_model", _existing(model, "visual_projection"), "pooler_output")
    pixels = _find_pixel_module(model, "vision_model")
    if not hasattr(model, "text_model"):
        return Architecture(pixels=pixels, vision=vision)
    return Architecture(
        pixels=pixels,
        vision=vision,
        tokens=_find_table(model.text_model, "text_model", _TOKEN_TABLES),
        positions=_find_table(model.text_model, "text_model", _POSITION_TABLES),
        text=Tower("text_model", _existing(model, "text_projection"), text_pooled),
    )


def is_position_table(path: str) -> bool:
    """Whether an embedding table at this module path is indexed by positions rather than by tokens."""
    return "position" in path.rpartition(".")[2]


def _existing(model: nn.Module, path: str) -> Optional[str]:
    return path if hasattr(model, path) else None


def _find_pixel_module(model: nn.Module, tower: str) -> str:
    # A CLIP vision model inside a dual encoder has its own tower one level further down in transformers 4.
    for prefix in (tower, f"{tower}.vision_model"):
        for name in _PIXEL_MODULES:
            path = f"{prefix}.{name}"
            try:
                model.get_submodule(path)
            except AttributeError:
                continue
            return path
    raise ValueError(
        f"{type(model).__name__} is supported, but no module that consumes `pixel_values` was found under '{tower}' "
        f"(looked for {', '.join(_PIXEL_MODULES)}). Name it with `target_modules=[...]`."
    )


def _find_table(text_tower: nn.Module, path: str, names: tuple[str, ...]) -> Optional[str]:
    for name, module in text_tower.named_modules():
        # The table itself, or a tuner layer (ours or another method's) that wraps it.
        if name.rpartition(".")[2] in names and (isinstance(module, nn.Embedding) or hasattr(module, "base_layer")):
            return f"{path}.{name}"
    return None
