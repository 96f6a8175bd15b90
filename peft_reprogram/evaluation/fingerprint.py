"""What a stored pass depends on, as short content hashes: the same inputs give the same name, on any machine."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..data import ImageData, ImagePreprocessor


# Says where a model was loaded from or by what, not what it computes.
_NOT_PART_OF_THE_MODEL = {
    "_name_or_path",
    "_commit_hash",
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "transformers_version",
}


def model_fingerprint(classifier: Any) -> str:
    """
    Hash of everything that decides what a classifier computes: weights, configuration, the adapters that act and their
    configuration, class names and templates.

    Adapters that are disabled or not active don't count, so a base model has one fingerprint whether it is bare or the
    base of a `PeftModel`.

    Args:
        classifier (`torch.nn.Module`): A [`ZeroShotClassifier`] or an image classifier, wrapped by PEFT or not.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    model = inner_model(classifier)
    digest = hashlib.blake2b(digest_size=16)
    acting = acting_adapters(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # A classifier with a head of its own holds its `PeftModel` further in.
    adapted = next((module for module in model.modules() if hasattr(module, "peft_config")), None)
    configs = {} if adapted is None else adapted.peft_config
    _add_json(
        digest,
        {
            "class": type(base).__name__,
            "config": _cleaned(base.config.to_dict()),
            "adapters": [_cleaned(configs[name].to_dict()) for name in acting if name in configs],
            "scaling": [_scaling(module, acting) for module in model.modules() if hasattr(module, "scaling")],
            "class_names": getattr(classifier, "class_names", None),
            "templates": getattr(classifier, "templates", None),
        },
    )
    for name, tensor in sorted(_acting_tensors(model, adapted, acting, list(configs))):
        _add_json(digest, [name, str(tensor.dtype), list(tensor.shape)])
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def inner_model(classifier: Any) -> Any:
    """The `PeftModel` or transformers model of a classifier."""
    return classifier.model if hasattr(classifier, "get_class_features") else classifier


def acting_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that take part in a forward pass now."""
    names: set[str] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            names.update(module.merged_adapters)
            names.update([] if module.disable_adapters else module.active_adapters)
    return sorted(names)


def data_fingerprint(data: ImageData) -> str | None:
    """
    Hash of the rows that a set holds and of the columns to read from them.

    Args:
        data ([`ImageData`]): The set.

    Returns:
        `str` or `None`: 32 hexadecimal digits; `None` for a stream, which nobody knows before it has been read.
    """
    if data.streaming:
        return None
    return _hash_json([data.dataset._fingerprint, data.image_column, data.label_column, data.class_names])


def preprocessing_fingerprint(preprocess: ImagePreprocessor) -> str:
    """Hash of the image processor's settings and the source resolution."""
    processor = preprocess.image_processor
    settings = processor.to_dict() if hasattr(processor, "to_dict") else repr(processor)
    settings = _cleaned(settings) if isinstance(settings, dict) else settings
    return _hash_json([type(processor).__name__, settings, preprocess.source_resolution])


def combined_fingerprint(*parts: Any) -> str:
    """Hash of JSON values, such as other fingerprints."""
    return _hash_json(list(parts))


def _acting_tensors(
    model: nn.Module, adapted: Any, acting: list[str], known: list[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in effect, named as in the bare base model."""
    prefix = getattr(getattr(adapted, "base_model", None), "prefix", None) or "\0"
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["base_model", "model"]:  # PeftModel and its tuner
            parts = parts[2:]
        owner = next(
            (
                part
                for before, part in itertools.pairwise(parts)
                if part in known and (before.startswith(prefix) or before == "modules_to_save")
            ),
            None,
        )
        if owner is None:
            parts = [part for part in parts if part not in ("base_layer", "original_module")]
        elif owner in acting:
            # The order tells adapters apart; what they are called doesn't matter.
            parts = [str(acting.index(owner)) if part == owner else part for part in parts]
        else:
            continue
        yield ".".join(parts), tensor


def _scaling(module: nn.Module, acting: list[str]) -> Any:
    scaling = getattr(module, "scaling", None)
    return [scaling.get(name) for name in acting] if isinstance(scaling, dict) and acting else None


def _cleaned(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _cleaned(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in _NOT_PART_OF_THE_MODEL
    }


def _add_json(digest: Any, value: Any) -> None:
    digest.update(json.dumps(value, sort_keys=True, default=_as_json).encode())


def _as_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _hash_json(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _add_json(digest, value)
    return digest.hexdigest()
