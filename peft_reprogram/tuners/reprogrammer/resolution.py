"""Filling in what a configuration leaves open, from the model, its image processor and its tokenizer."""

from __future__ import annotations

from typing import Any, Optional

from peft.tuners.tuners_utils import BaseTunerLayer, _ExcludedModule, check_target_module_exists
from torch import nn

from .architectures import (
    CLASSIFIERS,
    NORMALIZATION,
    TEXT_IMAGE_MODELS,
    Architecture,
    find_architecture,
    is_position_table,
)
from .config import ReprogrammerConfig, image_processor_fields
from .functional import FrameGeometry, default_frame_inner
from .prompts import check_templates, prompt_rows


def resolve_config(config: ReprogrammerConfig, model: nn.Module) -> ReprogrammerConfig:
    """
    Fill in target modules, geometry, normalisation and text rows, so that the saved configuration holds everything.

    Args:
        config ([`ReprogrammerConfig`]): Changed in place.
        model (`torch.nn.Module`): The base model.

    Returns:
        [`ReprogrammerConfig`]: The same configuration.

    Raises:
        ValueError: If something is neither given nor to be found, or does not fit the model.
    """
    if config.target_modules is None:
        architecture = find_architecture(model)
        if architecture is None:
            raise ValueError(_unsupported(model))
        config.target_modules = _targets(config, architecture, model)  # type: ignore[assignment]
    tables, others = _targeted(config, model)
    if others:
        _resolve_frame(config, model)
    if any(not is_position_table(name) for name in tables) and config.token_indices is None:
        _resolve_rows(config, model)
    return config


def _targeted(config: ReprogrammerConfig, model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the targeted modules: embedding tables, and those that take pixels."""
    tables: list[str] = []
    others: list[str] = []
    for name, module in model.named_modules():
        matched = name and check_target_module_exists(config, name)
        if matched and not isinstance(matched, _ExcludedModule):
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            (tables if isinstance(base, nn.Embedding) else others).append(name)
    return tables, others


def _targets(config: ReprogrammerConfig, architecture: Architecture, model: nn.Module) -> set[str]:
    targets = {architecture.pixels} if config.reprogram_image else set()
    if config.reprogram_text and architecture.tokens is not None:
        targets.add(architecture.tokens)
        if architecture.positions is not None and config.position_indices != []:
            targets.add(architecture.positions)
    if not targets:
        raise ValueError(
            f"{type(model).__name__} has no text tower to reprogram, and `reprogram_image` is False, which leaves nothing "
            "to train. Set `reprogram_image=True`."
        )
    return targets


def _resolve_frame(config: ReprogrammerConfig, model: nn.Module) -> None:
    vision_config = getattr(getattr(model, "config", None), "vision_config", getattr(model, "config", None))
    channels = getattr(vision_config, "num_channels", 3)
    if channels != 3:
        raise ValueError(
            f"{type(model).__name__} takes images of {channels} channels; the pixel frame is defined for RGB (3). Train "
            "the text rows alone with `reprogram_image=False`, or adapt this model with another PEFT method."
        )
    if config.image_mean is None or config.image_std is None or config.image_size is None:
        for name, value in _from_image_processor(model).items():
            if getattr(config, name) is None:
                setattr(config, name, value)
    family = getattr(getattr(model, "config", None), "model_type", None)
    if config.image_mean is None and config.image_std is None and family in NORMALIZATION:
        mean, std = NORMALIZATION[family]
        config.image_mean, config.image_std = list(mean), list(std)
    if config.image_mean is None or config.image_std is None:
        raise ValueError(
            f"The normalisation of the images that {type(model).__name__} takes is unknown: no image processor was found "
            f"at {_name_or_path(model)!r}. Pass `image_mean=[...]` and `image_std=[...]`, or the image processor itself "
            "with `ReprogrammerConfig.for_classes(..., image_processor=...)`."
        )
    if config.image_size is None:
        size = getattr(vision_config, "image_size", None)
        if size is None:
            raise ValueError(
                f"The size of the images that {type(model).__name__} takes is unknown: neither its configuration nor an "
                f"image processor at {_name_or_path(model)!r} says. Pass `image_size=...` (pixels)."
            )
        config.image_size = (size, size) if isinstance(size, int) else tuple(size)
    if config.frame_inner is None:
        config.frame_inner = default_frame_inner(config.image_size)  # type: ignore[arg-type]
    if config.up_resolution is None:
        config.up_resolution = config.image_size
    # Checked before the model is touched.
    FrameGeometry(config.image_size, config.frame_inner, config.up_resolution)  # type: ignore[arg-type]


def _from_image_processor(model: nn.Module) -> dict[str, Any]:
    source = _name_or_path(model)
    if source is None:
        return {}
    from transformers import AutoImageProcessor

    try:
        return image_processor_fields(AutoImageProcessor.from_pretrained(source))
    except (OSError, ValueError):
        return {}  # without one, the caller's error or the family's constants say what to do


def _resolve_rows(config: ReprogrammerConfig, model: nn.Module) -> None:
    if config.class_names is None:
        raise ValueError(
            "Which text rows to train is unknown. Pass `class_names=[...]` (and `template=...`), or `token_indices=[...]`, "
            "or set `reprogram_text=False` to train the pixel frame alone."
        )
    source = _name_or_path(model)
    error: Optional[Exception] = None
    if source is not None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError, TypeError) as caught:
            error = caught
        else:
            templates = check_templates(config.template)
            config.token_indices, length = prompt_rows(tokenizer, config.class_names, templates)
            if config.position_indices is None:
                config.position_indices = list(range(length))
            return
    raise ValueError(
        f"The rows of the class prompts are unknown: no tokenizer was found at {source!r}. Pass one with "
        "`ReprogrammerConfig.for_classes(class_names, template, tokenizer=...)`, or name the rows with "
        "`token_indices=[...]` and `position_indices=[...]`."
    ) from error


def _name_or_path(model: nn.Module) -> Optional[str]:
    return getattr(model, "name_or_path", None) or None


def _unsupported(model: nn.Module) -> str:
    if type(model).__name__ == "Siglip2Model":
        return (
            "Siglip2Model (NaFlex) takes images that are already cut into patches, so there is no pixel frame to put "
            "around them. Use a fixed-resolution SigLIP 2 checkpoint, which loads as SiglipModel, or train the text rows "
            "alone with `reprogram_image=False, target_modules=['text_model.embeddings.token_embedding']`."
        )
    return (
        f"{type(model).__name__} is not one of the models whose modules are known: "
        f"{', '.join((*TEXT_IMAGE_MODELS, *CLASSIFIERS))}. Name the module that consumes the images (and the token "
        "embedding, if the text is to be reprogrammed) with `target_modules=[...]`."
    )
