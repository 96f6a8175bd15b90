from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import nn

from ..classifier import ZeroShotClassifier
from ..data import ImagePreprocessor
from ..ood import Score, Threshold, get_score
from . import layout
from .checks import AdapterContents, check_adapter, check_names, read_settings
from .download import fetch
from .predictor import Predictor
from .weights import UnsafeAdapterError, read_header, read_weights


def load_classifier(
    path_or_repo: Union[str, Path],
    *,
    model: Union[str, Path, nn.Module, None] = None,
    class_names: Optional[list[str]] = None,
    revision: Optional[str] = None,
    token: Union[str, bool, None] = None,
    local_files_only: bool = False,
    device: Union[str, torch.device, None] = None,
) -> Predictor:
    """
    Load an adapter with all that it takes to classify images: base model, preprocessing, class names, threshold.

    Everything is checked before it is used: no pickle is opened, no code of a repository is run, and no memory is allocated
    on the word of a configuration.

    Args:
        path_or_repo (`str` or `Path`): Folder, or repository on the Hub (`"user/adapter"`), of an adapter or of a whole
            classifier.
        model (`str`, `Path` or `torch.nn.Module`, *optional*): The base model, where the adapter does not name it or names
            one that only its author has. A module is wrapped in place.
        class_names (`list[str]`, *optional*): Names of the classes, where the adapter does not tell them.
        revision (`str`, *optional*): Branch, tag or commit of the adapter's repository; pin a commit to get the same adapter
            for ever.
        token (`str` or `bool`, *optional*): Access token; the one of `hf auth login` or `HF_TOKEN` by default.
        local_files_only (`bool`, *optional*, defaults to `False`): Only use what is in the cache.
        device (`str` or `torch.device`, *optional*): Where to compute; a GPU if there is one by default.

    Returns:
        [`Predictor`]: Ready for [`~Predictor.predict`].

    Raises:
        FileNotFoundError: If the adapter, its base model or a file of them is missing.
        PermissionError: If the Hub refuses access.
        UnsafeAdapterError: If the adapter is broken or hostile.
        ValueError: If the base model is not the adapter's.

    Example:

        ```py
        >>> predictor = load_classifier("user/adapter", revision="4f1c2d0")
        >>> predictor.predict(["photo.jpg", "https://example.org/photo.png"])
        ```
    """
    source = fetch(path_or_repo, revision=revision, token=token, local_files_only=local_files_only)
    contents = check_adapter(source)
    names = contents.class_names if class_names is None else check_names(class_names)
    hub = {"token": token, "local_files_only": local_files_only}
    classifier, names = _load_model(contents, str(path_or_repo), model, names, hub)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    processor_source = source if contents.has(layout.PREPROCESSOR) else _base_source(contents, model, classifier)
    preprocess = _load_preprocessor(processor_source, hub)
    return Predictor(classifier.to(device), preprocess, names, *_load_calibration(contents))


def _load_model(
    contents: AdapterContents,
    name: str,
    model: Union[str, Path, nn.Module, None],
    class_names: Optional[list[str]],
    hub: dict[str, Any],
) -> tuple[nn.Module, list[str]]:
    if contents.peft_config is None:
        read_weights(contents.weights)  # only to refuse what is not finite; transformers reads them itself
        base, revision = str(contents.folder), None
    elif isinstance(model, nn.Module):
        base, revision = None, None
    else:
        base = _base_name(contents, name, model)
        revision = contents.peft_config.get("revision") if model is None else None
    module = model if base is None else None
    options = {**hub, "revision": revision} if contents.peft_config is not None else {"local_files_only": True}
    config = module.config if isinstance(module, nn.Module) else _load_config(base, name, options)

    if contents.is_zero_shot or _is_text_image(config):
        if class_names is None:
            raise ValueError(f"{name} does not name its classes: pass `class_names=[...]` in the order of its training.")
        if module is None:
            module = _load_base("AutoModel", base, name, options)
        module = _with_adapter(module, contents, name)
        tokenizer = _load_tokenizer(contents, base, getattr(module, "name_or_path", None), options)
        templates = contents.templates or ["a photo of a {}"]
        return ZeroShotClassifier(module, tokenizer, class_names, templates), class_names

    own = _own_class_names(config)
    if class_names is None:
        class_names = own
    if class_names is None:
        raise ValueError(f"{name} does not name its classes: pass `class_names=[...]` in the order of its training.")
    if module is None:
        labels: dict[str, Any] = {}
        if own != class_names:
            if contents.peft_config is not None and not contents.peft_config.get("modules_to_save"):
                raise UnsafeAdapterError(
                    f"{name} has {len(class_names)} classes of its own, but its weights hold no classification head "
                    "(`modules_to_save`), and the head of its base model knows others. It was saved incompletely."
                )
            labels = {"id2label": dict(enumerate(class_names)), "label2id": {n: i for i, n in enumerate(class_names)}}
        module = _load_base(
            "AutoModelForImageClassification", base, name, {**options, **labels, "ignore_mismatched_sizes": bool(labels)}
        )
    return _with_adapter(module, contents, name).eval(), class_names


def _base_name(contents: AdapterContents, name: str, model: Union[str, Path, None]) -> str:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if model is not None:
        return str(model)
    if contents.base_model is None:
        raise ValueError(
            f"{name} does not name its base model (it was made on a model that was never saved). Pass the base model: "
            "`load_classifier(..., model=...)`."
        )
    if not Path(contents.base_model).is_dir():
        try:
            validate_repo_id(contents.base_model)
        except HFValidationError as error:
            raise FileNotFoundError(
                f"{name} names the base model {contents.base_model!r}, a folder that is not here. Pass the base model: "
                "`load_classifier(..., model=...)`."
            ) from error
    return contents.base_model


def _load_config(base: Optional[str], name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise _no_base(base, name, error) from error


def _load_base(auto_class: str, base: Optional[str], name: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    try:
        return getattr(transformers, auto_class).from_pretrained(
            base, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:
        raise _no_base(base, name, error) from error


def _no_base(base: Optional[str], name: str, error: Exception) -> Exception:
    return FileNotFoundError(
        f"the base model {base!r} of {name} cannot be loaded: {str(error)[:500]} Check the connection and the name, or pass "
        "the base model: `load_classifier(..., model=...)`. Only safetensors weights and models that transformers knows are "
        "loaded."
    )


def _is_text_image(config: Any) -> bool:
    has_head = any(name.endswith("ForImageClassification") for name in config.architectures or [])
    return hasattr(config, "text_config") and not has_head


def _own_class_names(config: Any) -> Optional[list[str]]:
    labels = getattr(config, "id2label", None) or {}
    names = [labels.get(index) for index in range(len(labels))]
    if not names or None in names or all(label == f"LABEL_{index}" for index, label in enumerate(names)):
        return None
    return names


def _with_adapter(model: nn.Module, contents: AdapterContents, name: str) -> nn.Module:
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType, get_peft_model_state_dict, set_peft_model_state_dict

    if contents.peft_config is None:
        return model
    weights = read_weights(contents.weights)
    config_cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(contents.peft_config["peft_type"])]
    try:
        config = config_cls.from_peft_type(**{**contents.peft_config, "inference_mode": True})
        # On the meta device: whatever sizes the configuration asks for, memory is taken for the file's tensors alone.
        adapted = PeftModel(model, config, low_cpu_mem_usage=True)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise _wrong_base(name, model, str(error)) from error
    expected = {
        key: tuple(value.shape)
        for key, value in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
    }
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if expected != found:
        raise _wrong_base(name, model, _difference(expected, found))
    set_peft_model_state_dict(adapted, weights, low_cpu_mem_usage=True)
    return adapted


def _difference(expected: dict[str, tuple], found: dict[str, tuple]) -> str:
    lines = [f"{key} is missing" for key in expected.keys() - found.keys()]
    lines += [f"{key} has no place in it" for key in found.keys() - expected.keys()]
    lines += [
        f"{key} has the shape {found[key]} and must have {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(line[:200] for line in sorted(lines)[:3]) + more


def _wrong_base(name: str, model: nn.Module, reason: str) -> ValueError:
    source = getattr(model, "name_or_path", None) or "given"
    return ValueError(
        f"the adapter {name} does not fit the base model {type(model).__name__} ({source}): {reason[:1000]}. It belongs to "
        "another base model; pass the right one: `load_classifier(..., model=...)`."
    )


def _load_tokenizer(contents: AdapterContents, base: Optional[str], base_path: Any, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    if contents.has("tokenizer.json") or contents.has("vocab.json") or contents.has("vocab.txt"):
        return AutoTokenizer.from_pretrained(str(contents.folder), trust_remote_code=False, local_files_only=True)
    return AutoTokenizer.from_pretrained(base or base_path, trust_remote_code=False, **options)


def _base_source(contents: AdapterContents, model: Any, classifier: nn.Module) -> str:
    if isinstance(model, (str, Path)):
        return str(model)
    return contents.base_model or getattr(classifier, "name_or_path", "") or str(contents.folder)


def _load_preprocessor(source: Union[str, Path], hub: dict[str, Any]) -> ImagePreprocessor:
    from transformers import AutoImageProcessor

    try:
        return ImagePreprocessor(AutoImageProcessor.from_pretrained(str(source), trust_remote_code=False, **hub))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no image processor was found in {source}: {str(error)[:300]} Save it beside the adapter with "
            "`image_processor.save_pretrained(folder)`."
        ) from error


def _load_calibration(contents: AdapterContents) -> tuple[Optional[Score], Optional[Threshold]]:
    score = threshold = None
    try:
        if contents.has(layout.SCORE):
            read_header(contents.folder / layout.SCORE)
            read_weights(contents.folder / layout.SCORE)
            score = Score.load(contents.folder / layout.SCORE)
        if contents.has(layout.THRESHOLD):
            threshold = Threshold.from_dict(read_settings(contents.folder / layout.THRESHOLD))
            if score is None and threshold.score is not None:
                score = get_score(threshold.score, **threshold.options)
                if not score.is_fitted:
                    raise ValueError(f"the threshold is one of the score {score.name!r}, but {layout.SCORE} is missing.")
    except (TypeError, ValueError) as error:
        raise UnsafeAdapterError(f"the calibration of the adapter is damaged: {error}") from error
    return score, threshold
