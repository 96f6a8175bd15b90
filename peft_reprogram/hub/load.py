from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import nn

from ..classifier import ZeroShotClassifier
from ..data import ImagePreprocessor
from . import layout
from .calibration import read_fitted
from .checks import AdapterContents, check_adapter, check_names
from .download import fetch
from .predictor import Predictor
from .weights import UnsafeAdapterError, read_weights


HOW_TO_NAME_BASE = "pass the base model: `load_classifier(..., model=...)`, or `--model` on the command line"


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
    Load an adapter with all that it takes to classify images: base model, preprocessing, class names, calibration, threshold.

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
    folder = fetch(path_or_repo, revision=revision, token=token, local_files_only=local_files_only)
    contents = check_adapter(folder)
    options = {"token": token, "local_files_only": local_files_only, "trust_remote_code": False}
    loader = Loader(contents, str(path_or_repo), model, options)
    names = contents.class_names if class_names is None else check_names(class_names)
    classifier, names = loader.load(names)
    preprocess = loader.load_preprocessor()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(classifier.to(device), preprocess, names, *read_fitted(contents))


class Loader:
    """
    Loads the parts of one adapter.

    Args:
        contents ([`AdapterContents`]): The adapter, checked.
        name (`str`): What to call it in messages.
        model (`str`, `Path` or `torch.nn.Module`, *optional*): The base model, if not the one that the adapter names.
        options (`dict`): Passed on to the loading of the base model.
    """

    def __init__(
        self, contents: AdapterContents, name: str, model: Union[str, Path, nn.Module, None], options: dict[str, Any]
    ) -> None:
        self.contents = contents
        self.name = name
        self.module = model if isinstance(model, nn.Module) else None
        self.options = options
        if contents.peft_config is None:
            read_weights(contents.weights)  # only to refuse what is not finite; transformers reads them itself
            self.base = str(contents.folder)
        elif isinstance(model, nn.Module):
            self.base = contents.base_model or str(getattr(model, "name_or_path", ""))
        else:
            self.base = _base_name(contents, name, model)
            if model is None:
                self.options = {**options, "revision": contents.peft_config.get("revision")}

    def load(self, class_names: Optional[list[str]]) -> tuple[nn.Module, list[str]]:
        """The classifier, and the names of its classes."""
        config: Any = self._load("AutoConfig") if self.module is None else self.module.config
        is_text_image = self.contents.is_zero_shot or _is_text_image(config)
        own = None if is_text_image else _own_class_names(config)
        names = own if class_names is None else class_names
        if names is None:
            raise ValueError(
                f"{self.name} does not name its classes: pass `load_classifier(..., class_names=[...])` in the order of its training."
            )
        if is_text_image:
            module = _with_adapter(self.module or self._load_model("AutoModel", config), self.contents, self.name)
            templates = self.contents.templates or ["a photo of a {}"]
            return ZeroShotClassifier(module, self._load_tokenizer(), names, templates), names
        module = self.module or self._load_classifier(config, names, has_them=own == names)
        return _with_adapter(module, self.contents, self.name), names

    def load_preprocessor(self) -> ImagePreprocessor:
        """The preprocessing that was saved with the adapter, or else that of the base model."""
        own = self.contents.has(layout.PREPROCESSOR)
        return ImagePreprocessor(self._load("AutoImageProcessor", str(self.contents.folder) if own else None))

    def _load_classifier(self, config: Any, names: list[str], has_them: bool) -> nn.Module:
        kind = "AutoModelForImageClassification"
        if has_them:
            return self._load_model(kind, config)
        if self.contents.peft_config is not None and not self.contents.peft_config.get("modules_to_save"):
            raise UnsafeAdapterError(
                f"{self.name} has {len(names)} classes of its own, but its weights hold no classification head "
                "(`modules_to_save`), and the head of its base model knows others. It was saved incompletely."
            )
        labels: dict[str, Any] = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }
        return self._load_model(kind, config, ignore_mismatched_sizes=self.contents.peft_config is not None, **labels)

    def _load_model(self, auto_class: str, config: Any, **options: Any) -> nn.Module:
        """The base model, or the whole one, whose weights must all be in the folder: transformers would make up the rest."""
        if self.contents.peft_config is not None:
            return self._load(auto_class, use_safetensors=True, **options)
        import transformers
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=True):
            skeleton = getattr(transformers, auto_class).from_config(config)
        asked = sum(parameter.numel() for parameter in skeleton.parameters())
        stored = sum(math.prod(header.shape) for header in self.contents.tensors.values())
        if asked > stored:
            raise UnsafeAdapterError(
                f"{self.name}: {layout.MODEL_CONFIG} asks for a model of {asked:,} numbers, but {layout.MODEL_WEIGHTS} holds "
                f"{stored:,}. Save or download it again."
            )
        model, report = self._load(auto_class, use_safetensors=True, output_loading_info=True, **options)
        missing = sorted(map(str, report["missing_keys"]))
        if missing:
            raise UnsafeAdapterError(
                f"{self.name}: {layout.MODEL_WEIGHTS} lacks {len(missing)} of the model's tensors, {missing[0]!r} first. Save or "
                "download it again."
            )
        return model

    def _load_tokenizer(self) -> Any:
        own = any(self.contents.has(name) for name in ("tokenizer.json", "vocab.json", "vocab.txt"))
        return self._load("AutoTokenizer", str(self.contents.folder) if own else None)

    def _load(self, auto_class: str, source: Optional[str] = None, **options: Any) -> Any:
        import transformers

        if source is None:
            source, options = self.base, {**self.options, **options}
        try:
            return getattr(transformers, auto_class).from_pretrained(source, **{"trust_remote_code": False, **options})
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"{auto_class} cannot load {source!r}, which {self.name} needs: {str(error)[:500]} Check the connection and "
                f"the name, or {HOW_TO_NAME_BASE}. Only safetensors weights and models that transformers knows are loaded."
            ) from error


def _base_name(contents: AdapterContents, name: str, model: Union[str, Path, None]) -> str:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if model is not None:
        return str(model)
    if contents.base_model is None:
        raise ValueError(
            f"{name} does not name its base model (it was made on a model that was never saved). "
            f"Instead {HOW_TO_NAME_BASE}."
        )
    if not Path(contents.base_model).is_dir():
        try:
            validate_repo_id(contents.base_model)
        except HFValidationError as error:
            raise FileNotFoundError(
                f"{name} names the base model {contents.base_model!r}, a folder that is not here. "
                f"Instead {HOW_TO_NAME_BASE}."
            ) from error
    return contents.base_model


def _is_text_image(config: Any) -> bool:
    has_head = any(name.endswith("ForImageClassification") for name in config.architectures or [])
    return hasattr(config, "text_config") and not has_head


def _own_class_names(config: Any) -> Optional[list[str]]:
    labels = getattr(config, "id2label", None) or {}
    names = [labels[index] for index in sorted(labels)]
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def _with_adapter(model: nn.Module, contents: AdapterContents, name: str) -> nn.Module:
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType, get_peft_model_state_dict, set_peft_model_state_dict

    if contents.peft_config is None:
        return model.eval()
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
    return adapted.eval()


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
        f"the adapter {name} does not fit the base model {type(model).__name__} ({source}): {reason[:1000].rstrip('.')}. It belongs "
        f"to another base model: {HOW_TO_NAME_BASE}."
    )
