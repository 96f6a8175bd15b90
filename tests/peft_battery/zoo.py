"""Tiny models of every supported architecture, built from configurations with a fixed seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn


IMAGE_MEAN = [0.5, 0.4, 0.3]
IMAGE_STD = [0.2, 0.3, 0.25]
BOS, EOS = 97, 98
TOKENS = [3, 5, 7, 9, 11, 13, BOS, EOS]
POSITIONS = [0, 1, 2, 3]

_SMALL = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {**_SMALL, "image_size": 30, "patch_size": 6}
_TEXT = {**_SMALL, "vocab_size": 99, "max_position_embeddings": 20}
_EFFICIENT_NET = {
    "image_size": 32,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "depth_divisor": 8,
}


@dataclass(frozen=True)
class ZooModel:
    """
    A tiny model and how to feed it.

    Args:
        name (`str`): Name in the zoo.
        make (`Callable`): Builds it with random weights.
        kind (`str`): `"text-image"`, `"image-embedding"` or `"classifier"`.
        image_size (`int`): Side in pixels of its images.
        linear (`str`): Name of the linear or convolutional modules that a LoRA can adapt.
        head (`str`, *optional*): Name of the classification head.
    """

    name: str
    make: Callable[[], nn.Module] = field(repr=False)
    kind: Literal["text-image", "image-embedding", "classifier"]
    image_size: int = 30
    linear: str = "q_proj"
    head: str | None = None

    @property
    def has_text(self) -> bool:
        return self.kind == "text-image"

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """A fresh, frozen copy in evaluation mode. Frozen, since CPU kernels round differently where gradients are recorded."""
        model = copy.deepcopy(_built(self)).to(dtype)
        # The seed of everything that a test draws afterwards.
        torch.manual_seed(0)
        return model

    def inputs(
        self, batch_size: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> dict[str, torch.Tensor]:
        """Normalised images, and as many texts where the model takes some."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(batch_size, 3, self.image_size, self.image_size, generator=generator)
        inputs = {"pixel_values": normalize(images).to(dtype)}
        if self.has_text:
            words = torch.randint(2, 15, (batch_size, 2), generator=generator)
            ids = torch.cat([torch.full((batch_size, 1), BOS), words, torch.full((batch_size, 1), EOS)], dim=1)
            inputs.update(input_ids=ids, attention_mask=torch.ones_like(ids))
        return inputs

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """What a user reads: logits `(batch, ...)` or embeddings."""
        return self.read(model(**inputs))

    def read(self, output: Any) -> torch.Tensor:
        if self.kind == "text-image":
            return output.logits_per_image
        # The residual's embeddings are of unit length, the base model's are not; what they mean is their direction.
        return F.normalize(output.image_embeds, dim=-1) if self.kind == "image-embedding" else output.logits

    @torch.no_grad()
    def predict(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        return self.outputs(model, inputs)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """As an image processor does it."""
    return (images - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)


@cache
def _built(model: ZooModel) -> nn.Module:
    torch.manual_seed(0)
    built = model.make()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                # Initialised for depth and width that these models don't have: outputs would hardly depend on inputs.
                parameter.mul_(3)
    batch_norms = [module for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
    if batch_norms:
        # Drawn weights and the statistics of nothing would flatten everything that goes through.
        for module in batch_norms:
            nn.init.ones_(module.weight)
        built.train()
        with torch.no_grad():
            for _ in range(30):
                built(**model.inputs(8))
    return built.requires_grad_(False).eval()


def _clip() -> nn.Module:
    text = {**_TEXT, "projection_dim": 16, "bos_token_id": BOS, "eos_token_id": EOS}
    return tf.CLIPModel(
        tf.CLIPConfig(text_config=text, vision_config={**_VISION, "projection_dim": 16}, projection_dim=16)
    )


def _siglip() -> nn.Module:
    model = tf.SiglipModel(tf.SiglipConfig(text_config=dict(_TEXT), vision_config=dict(_VISION)))
    with torch.no_grad():
        # As drawn, they are next to nothing in some releases and unfilled in others.
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.0)
    return model


def _dual_encoder() -> nn.Module:
    vision, text = tf.ViTConfig(**_VISION), tf.BertConfig(**_TEXT)
    return tf.VisionTextDualEncoderModel(
        tf.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)
    )


def _clip_vision() -> nn.Module:
    return tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(**_VISION, projection_dim=16))


def _align() -> nn.Module:
    vision = {**_EFFICIENT_NET, "hidden_dim": 16, "squeeze_expansion_ratio": 0.25}
    text = {**_TEXT, "type_vocab_size": 2}
    return tf.AlignModel(tf.AlignConfig(text_config=text, vision_config=vision, projection_dim=24))


def _chinese_clip() -> nn.Module:
    vision = {**_VISION, "projection_dim": 16}
    return tf.ChineseCLIPModel(tf.ChineseCLIPConfig(text_config=dict(_TEXT), vision_config=vision, projection_dim=16))


def _metaclip2() -> nn.Module:
    text = {**_TEXT, "projection_dim": 16, "eos_token_id": EOS}
    return tf.MetaClip2Model(
        tf.MetaClip2Config(text_config=text, vision_config={**_VISION, "projection_dim": 16}, projection_dim=16)
    )


def _classifier(model: str, config: str, **fields: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(tf, model)(getattr(tf, config)(**{"num_labels": 3, **fields}))


_TWO_STAGES = {"image_size": 32, "hidden_sizes": [10, 20], "depths": [1, 1], "num_stages": 2}
_WINDOWS = {
    "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2
}  # fmt: skip
_TOWERS = {"text_config": dict(_TEXT), "vision_config": dict(_VISION)}
_REGISTERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 30, "patch_size": 6}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def _models(*models: ZooModel) -> dict[str, ZooModel]:
    return {model.name: model for model in models}


# fmt: off
# The models that the whole battery runs over.
CORE = _models(
    ZooModel("clip", _clip, "text-image"),
    ZooModel("siglip", _siglip, "text-image"),
    ZooModel("dual-encoder", _dual_encoder, "text-image", linear="query|q_proj"),
    ZooModel("clip-vision", _clip_vision, "image-embedding"),
    ZooModel("vit", _classifier("ViTForImageClassification", "ViTConfig", **_VISION), "classifier", linear="query|q_proj", head="classifier"),
    ZooModel("dinov2", _classifier("Dinov2ForImageClassification", "Dinov2Config", **_VISION), "classifier", linear="query|q_proj", head="classifier"),
    ZooModel("convnext", _classifier("ConvNextForImageClassification", "ConvNextConfig", layer_scale_init_value=0.5, **_TWO_STAGES), "classifier", 32, "pwconv1", "classifier"),
    ZooModel("resnet", _classifier("ResNetForImageClassification", "ResNetConfig", **_RESNET), "classifier", 32, "stages.*convolution", "classifier.1"),
    ZooModel("swin", _classifier("SwinForImageClassification", "SwinConfig", **_WINDOWS), "classifier", 32, "query|q_proj", "classifier"),
    ZooModel("mobilenet-v2", _classifier("MobileNetV2ForImageClassification", "MobileNetV2Config", image_size=32, depth_multiplier=0.25), "classifier", 32, "convolution", "classifier"),
    ZooModel("clip-classifier", _classifier("CLIPForImageClassification", "CLIPConfig", **_TOWERS), "classifier", head="classifier"),
    ZooModel("siglip-classifier", _classifier("SiglipForImageClassification", "SiglipConfig", **_TOWERS), "classifier", head="classifier"),
)

# Further supported models, for forward passes, saving and loading.
FURTHER = _models(
    ZooModel("align", _align, "text-image", 32, "query|q_proj"),
    ZooModel("chinese-clip", _chinese_clip, "text-image", linear="query|q_proj"),
    ZooModel("metaclip-2", _metaclip2, "text-image"),
    ZooModel("deit", _classifier("DeiTForImageClassification", "DeiTConfig", **_VISION), "classifier", linear="query|q_proj", head="classifier"),
    ZooModel("beit", _classifier("BeitForImageClassification", "BeitConfig", **_VISION), "classifier", linear="query|q_proj", head="classifier"),
    ZooModel("dinov2-registers", _classifier("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", **_REGISTERS), "classifier", linear="query|q_proj", head="classifier"),
    ZooModel("swin-v2", _classifier("Swinv2ForImageClassification", "Swinv2Config", **_WINDOWS), "classifier", 32, "query|q_proj", "classifier"),
    ZooModel("convnext-v2", _classifier("ConvNextV2ForImageClassification", "ConvNextV2Config", **_TWO_STAGES), "classifier", 32, "pwconv1", "classifier"),
    ZooModel("efficientnet", _classifier("EfficientNetForImageClassification", "EfficientNetConfig", hidden_dim=1280, **_EFFICIENT_NET), "classifier", 32, "expand_conv", "classifier"),
)
# fmt: on
