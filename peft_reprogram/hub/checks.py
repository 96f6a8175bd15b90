"""What a downloaded adapter claims, checked before anything is allocated or imported for it."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from ..classifier import CLASSIFIER_FILE
from ..tuners.reprogrammer.prompts import check_class_names, check_templates
from . import layout
from .weights import TensorHeader, UnsafeAdapterError, read_header


MAX_CLASSES = 100_000
MAX_NAME_LENGTH = 1_000
MAX_SIDE = 16_384
MAX_SIZE = 65_536
MAX_PATTERN_LENGTH = 1_000
MAX_REPETITIONS = 5
MAX_ALTERNATIVES = 64


@dataclass(frozen=True)
class AdapterContents:
    """
    What a folder holds, checked.

    Args:
        folder (`Path`): The folder.
        peft_config (`dict`, *optional*): The adapter's configuration; `None` where the folder holds a whole model.
        tensors (`dict[str, TensorHeader]`): Shapes and dtypes of the weights, which have not been read yet.
        class_names (`list[str]`, *optional*): Names of the classes in label order, where the folder tells them.
        templates (`list[str]`, *optional*): Prompt templates, where the folder tells them.
        is_zero_shot (`bool`): Whether a `ZeroShotClassifier` saved the folder.
    """

    folder: Path
    peft_config: Optional[dict[str, Any]]
    tensors: dict[str, TensorHeader]
    class_names: Optional[list[str]]
    templates: Optional[list[str]]
    is_zero_shot: bool

    def has(self, name: str) -> bool:
        """Whether the folder holds this file."""
        return (self.folder / name).is_file()

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.folder / (layout.MODEL_WEIGHTS if self.peft_config is None else layout.ADAPTER_WEIGHTS)

    @property
    def base_model(self) -> Optional[str]:
        """What the adapter calls its base model."""
        return None if self.peft_config is None else self.peft_config.get("base_model_name_or_path") or None


def check_adapter(folder: Union[str, Path]) -> AdapterContents:
    """
    Check a folder as if its author were hostile: sizes, types, names and the header of the weights.

    Neither weights nor a model are loaded, and no text of it is evaluated or formatted.

    Args:
        folder (`str` or `Path`): What [`ZeroShotClassifier.save_pretrained`] or `PeftModel.save_pretrained` wrote, or a
            download of it.

    Returns:
        [`AdapterContents`]: What the folder holds.

    Raises:
        FileNotFoundError: If it holds neither an adapter nor a model.
        UnsafeAdapterError: If anything in it is not as it must be; the message names the file and the entry.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    _check_sizes(folder)
    peft_config = read_settings(folder / layout.ADAPTER_CONFIG) if (folder / layout.ADAPTER_CONFIG).is_file() else None
    weights = folder / (layout.MODEL_WEIGHTS if peft_config is None else layout.ADAPTER_WEIGHTS)
    if not weights.is_file():
        raise _missing_weights(folder, weights)
    for name in layout.READ:
        if name.endswith(".json") and name not in ("tokenizer.json", "vocab.json") and (folder / name).is_file():
            _refuse_code(read_settings(folder / name), name)
    if peft_config is not None:
        _check_peft_config(peft_config)
    if (folder / layout.PREPROCESSOR).is_file():
        _check_preprocessor(layout.PREPROCESSOR, read_settings(folder / layout.PREPROCESSOR))
    if (folder / layout.PROCESSOR).is_file():
        # Of both files transformers prefers this one.
        nested = read_settings(folder / layout.PROCESSOR).get("image_processor") or {}
        if not isinstance(nested, dict):
            raise UnsafeAdapterError(f"{layout.PROCESSOR} must hold an object for `image_processor`.")
        _refuse_code(nested, layout.PROCESSOR)
        _check_preprocessor(layout.PROCESSOR, nested)
    class_names, templates = _classes(folder, peft_config)
    tensors = read_header(weights)
    if peft_config is None and (folder / layout.MODEL_CONFIG).is_file():
        _check_depth(read_settings(folder / layout.MODEL_CONFIG), len(tensors))
    if peft_config is not None and peft_config["peft_type"] in ("REPROGRAMMER", "RESIDUAL_REPROGRAMMER"):
        _check_reprogrammer_shapes(peft_config, tensors)
    return AdapterContents(folder, peft_config, tensors, class_names, templates, (folder / CLASSIFIER_FILE).is_file())


def check_file_list(sizes: Mapping[str, Optional[int]], source: str) -> list[str]:
    """
    Choose what to download of a repository.

    Args:
        sizes (`Mapping[str, int | None]`): Name and size in bytes of each file of the repository.
        source (`str`): The repository, for messages.

    Returns:
        `list[str]`: Names of the files that are read, and no others.

    Raises:
        FileNotFoundError: If the repository is no adapter.
        UnsafeAdapterError: If a name leads out of the repository, or a file is too large.
    """
    for name in sizes:
        if name.startswith(("/", "\\")) or ":" in name or ".." in re.split(r"[/\\]", name):
            raise UnsafeAdapterError(
                f"{source} lists a file {_quoted(name)}, whose name leads out of the repository. Nothing was downloaded; "
                "report the repository to the Hub."
            )
    for name, limit in layout.READ.items():
        size = sizes.get(name)
        if size is not None and size > limit:
            raise _too_large(f"{name} of {source}", size, limit)
    names = [name for name in layout.READ if name in sizes]
    if layout.ADAPTER_CONFIG not in names and layout.MODEL_WEIGHTS not in names:
        raise FileNotFoundError(
            f"{source} holds neither {layout.ADAPTER_CONFIG} nor {layout.MODEL_WEIGHTS}: it is no adapter. It has "
            f"{', '.join(list(sizes)[:12]) or 'no files'}."
        )
    return names


def read_settings(path: Path) -> dict[str, Any]:
    """
    Read a JSON file that must hold an object.

    Args:
        path (`Path`): The file.

    Returns:
        `dict`: Its content.

    Raises:
        UnsafeAdapterError: If it is too large or no such JSON.
    """
    limit = layout.READ.get(path.name, layout.READ[layout.ADAPTER_CONFIG])
    size = path.stat().st_size
    if size > limit:
        raise _too_large(path.name, size, limit)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeAdapterError(f"{path.name} is no JSON: {str(error)[:200]}. Save the adapter again.") from error
    if not isinstance(content, dict):
        raise UnsafeAdapterError(f"{path.name} must hold a JSON object, got a {type(content).__name__}.")
    return content


def check_fields(cls: type, settings: Any, where: str) -> None:
    """
    Compare values from a file with the annotations of the dataclass that they are for; fields that it lacks are left to it.

    Args:
        cls (`type`): The dataclass.
        settings: What the file holds.
        where (`str`): The file, for messages.

    Raises:
        UnsafeAdapterError: If they are no object, or one is of another type; a number must be finite.
    """
    if not isinstance(settings, dict):
        raise UnsafeAdapterError(f"{where} must hold a JSON object, got {_quoted(settings)}.")
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a type that PEFT imports for type checkers only
        return
    for field in dataclasses.fields(cls):
        if field.name in settings and not _fits(settings[field.name], hints[field.name]):
            raise UnsafeAdapterError(
                f"{where} has {_quoted(settings[field.name])} for `{field.name}`, which must be "
                f"{_described(hints[field.name])}."
            )


def _check_sizes(folder: Path) -> None:
    for name, limit in layout.READ.items():
        if (folder / name).is_file() and (size := (folder / name).stat().st_size) > limit:
            raise _too_large(name, size, limit)


def _too_large(what: str, size: int, limit: int) -> UnsafeAdapterError:
    return UnsafeAdapterError(f"{what} has {size:,} bytes; at most {limit:,} are accepted, so it was not read.")


def _missing_weights(folder: Path, weights: Path) -> Exception:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in layout.PICKLES)
    if pickles:
        return UnsafeAdapterError(
            f"{folder} holds its weights as {', '.join(pickles[:5])}, a pickle, which can run any code when it is opened. "
            f"Only {weights.name} is read: ask its author to save it with `safe_serialization=True`."
        )
    if weights.name == layout.MODEL_WEIGHTS:
        return FileNotFoundError(
            f"{folder} holds neither {layout.ADAPTER_CONFIG} nor {layout.MODEL_WEIGHTS}: it is no adapter. Give the folder "
            "that `save_pretrained` or training wrote."
        )
    return FileNotFoundError(f"{folder} has no {weights.name}: the adapter is incomplete. Save or download it again.")


def _refuse_code(settings: Mapping[str, Any], file: str) -> None:
    if settings.get("auto_map"):
        raise UnsafeAdapterError(
            f"{file} asks to run code of its own (`auto_map`). Code of a repository is never run; load the parts yourself "
            "if you trust it."
        )


def _check_peft_config(config: dict[str, Any]) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {str(member.value): cls for member, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in known:
        raise UnsafeAdapterError(
            f"{layout.ADAPTER_CONFIG} has the `peft_type` {_quoted(kind)}, which PEFT does not know here. Update `peft` and "
            "`peft-reprogram`, or import the package that defines the type."
        )
    check_fields(known[kind], config, layout.ADAPTER_CONFIG)
    if config.get("megatron_config"):
        raise UnsafeAdapterError(
            f"{layout.ADAPTER_CONFIG} asks to import a module (`megatron_config`), which is never done."
        )
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        for pattern in [config.get(name)] if isinstance(config.get(name), str) else config.get(name) or []:
            _check_pattern(name, pattern)
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in config.get(name) or {}:
            _check_pattern(name, pattern)
    for name in ("image_size", "frame_inner", "up_resolution"):
        _check_sides(layout.ADAPTER_CONFIG, name, config.get(name))
    for name, value in config.items():
        # Ranks, block sizes and the like, which layers are made by; lists name rows and layers.
        for number in value.values() if isinstance(value, dict) else [value]:
            if type(number) is int and abs(number) > MAX_SIZE:
                raise UnsafeAdapterError(
                    f"{layout.ADAPTER_CONFIG} has {_quoted(value)} for `{name}`; sizes are accepted up to {MAX_SIZE:,}."
                )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value may stand for a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(value is argument or (isinstance(value, str) and value == argument) for argument in arguments)
    if origin in (list, set, tuple) or hint in (list, set, tuple):
        if not isinstance(value, list):
            return False
        if origin is tuple and Ellipsis not in arguments:
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return not arguments or all(_fits(item, arguments[0]) for item in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict) and (not arguments or all(_fits(item, arguments[1]) for item in value.values()))
    if hint is float:
        # Between the largest floats; JSON has integers beyond.
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    # An enum or a class of PEFT, which is written as a string or as an object; its own constructor checks it.
    return isinstance(value, (str, dict))


def _described(hint: Any) -> str:
    if hint is float:
        return "a finite number"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _check_pattern(field: str, pattern: Any) -> None:
    # PEFT matches these as regular expressions, some of which take longer than anybody lives. Without repetitions and
    # groups, as in a list of names that was joined by `|`, the time is bounded by the length.
    if isinstance(pattern, str):
        repetitions, groups = len(re.findall(r"[*+?{]", pattern)), pattern.count("(")
        if not repetitions and not groups:
            return
        # What groups of alternatives can be combined to is most where they share them equally.
        combinations = (pattern.count("|") / max(groups, 1) + 1) ** groups
        nested = re.search(r"\)\s*[*+{]", pattern)
        short = len(pattern) <= MAX_PATTERN_LENGTH and repetitions <= MAX_REPETITIONS
        if short and combinations <= MAX_ALTERNATIVES and not nested:
            return
    raise UnsafeAdapterError(
        f"{layout.ADAPTER_CONFIG} has the pattern {_quoted(pattern)} in `{field}`. A pattern of a downloaded adapter may have "
        f"at most {MAX_REPETITIONS} repetitions in {MAX_PATTERN_LENGTH} characters, none of a group, and groups of "
        f"alternatives with at most {MAX_ALTERNATIVES} combinations: name the modules as a list."
    )


def _check_depth(settings: Any, tensors: int) -> None:
    """Each layer has a tensor: a model is not even sketched with more layers than there are tensors."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        _check_depth(value, tensors)
        for number in value if isinstance(value, list) else [value]:
            if re.search("layers|depth", name) and type(number) is int and number > tensors:
                raise UnsafeAdapterError(
                    f"{layout.MODEL_CONFIG} has {_quoted(value)} for `{name}`, but {layout.MODEL_WEIGHTS} holds {tensors} tensors."
                )


def _check_sides(file: str, name: str, value: Any) -> None:
    sides = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    for side in sides:
        if side is not None and not (type(side) is int and 0 <= side <= MAX_SIDE):
            raise UnsafeAdapterError(
                f"{file} has {_quoted(value)} for `{name}`; sides are whole pixels between 0 and {MAX_SIDE:,}."
            )


def _check_preprocessor(file: str, settings: Mapping[str, Any]) -> None:
    for name in ("size", "crop_size", "pad_size", "source_resolution"):
        _check_sides(file, name, settings.get(name))
    for name in ("image_mean", "image_std", "rescale_factor"):
        value = settings.get(name)
        if value is not None and not all(
            _fits(item, float) for item in (value if isinstance(value, list) else [value])
        ):
            raise UnsafeAdapterError(f"{file} has {_quoted(value)} for `{name}`, which must be numbers.")


def _classes(folder: Path, config: Optional[Mapping[str, Any]]) -> tuple[Optional[list[str]], Optional[list[str]]]:
    """Class names and templates from the first file that tells them."""
    sources: list[tuple[str, Mapping[str, Any]]] = []
    if (folder / CLASSIFIER_FILE).is_file():
        sources.append((CLASSIFIER_FILE, read_settings(folder / CLASSIFIER_FILE)))
    sources.append((layout.ADAPTER_CONFIG, config or {}))
    if (folder / layout.TRAINING_RESULTS).is_file():
        recipe = read_settings(folder / layout.TRAINING_RESULTS).get("recipe")
        sources.append((layout.TRAINING_RESULTS, recipe if isinstance(recipe, dict) else {}))
    for file, settings in sources:
        if settings.get("class_names") is None and file != CLASSIFIER_FILE:
            continue
        template = settings.get("templates", settings.get("template", "a photo of a {}"))
        try:
            return check_names(settings.get("class_names")), check_safe_templates(template)
        except ValueError as error:
            raise UnsafeAdapterError(f"{file}: {error}") from error
    return None, None


def check_names(class_names: Any) -> list[str]:
    """
    Check class names that come from a file.

    Args:
        class_names: The names.

    Returns:
        `list[str]`: The names.

    Raises:
        ValueError: If there are too many, or one is no printable text of a sensible length.
    """
    if isinstance(class_names, (list, tuple)) and len(class_names) > MAX_CLASSES:
        raise ValueError(f"`class_names` holds {len(class_names):,} names; at most {MAX_CLASSES:,} are accepted.")
    names = check_class_names(class_names)
    for name in names:
        if len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise ValueError(
                f"the class name {_quoted(name)} is longer than {MAX_NAME_LENGTH} characters or holds control characters."
            )
    return names


def check_safe_templates(template: Any) -> list[str]:
    """
    Check prompt templates that come from a file: a placeholder `{}` and no other braces.

    Args:
        template (`str` or `list[str]`): The templates.

    Returns:
        `list[str]`: The templates.

    Raises:
        ValueError: If there are too many, or one is no such template.
    """
    templates = check_templates(template)
    if len(templates) > MAX_NAME_LENGTH:
        raise ValueError(f"there are {len(templates):,} templates; at most {MAX_NAME_LENGTH:,} are accepted.")
    for text in templates:
        if len(text) > MAX_NAME_LENGTH or not text.isprintable() or re.search(r"[{}]", text.replace("{}", "", 1)):
            raise ValueError(
                f"the template {_quoted(text)} may hold `{{}}` once and no other braces, in at most {MAX_NAME_LENGTH} "
                "printable characters."
            )
    return templates


def _check_reprogrammer_shapes(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> None:
    """Compare the weights with what the configuration says of them, as far as the base model is not needed for it."""
    from ..tuners.reprogrammer import ReprogrammerConfig
    from ..tuners.reprogrammer.architectures import is_position_table
    from ..tuners.reprogrammer.functional import FrameGeometry

    known = {field.name for field in dataclasses.fields(ReprogrammerConfig)}
    try:
        checked = ReprogrammerConfig(**{name: value for name, value in config.items() if name in known})
        sizes = (checked.image_size, checked.frame_inner, checked.up_resolution)
        geometry = None if None in sizes else FrameGeometry(*sizes)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UnsafeAdapterError(f"{layout.ADAPTER_CONFIG}: {error}") from error
    for name, tensor in tensors.items():
        if name.endswith("reprogrammer_frame"):
            expected = None if geometry is None else (3, geometry.num_pixels)
            if tensor.shape != expected:
                raise _wrong_shape(name, tensor.shape, f"{expected} by `image_size` and `frame_inner`")
        elif name.endswith("reprogrammer_rows"):
            is_position = is_position_table(name.removesuffix(".reprogrammer_rows"))
            field = "position_indices" if is_position else "token_indices"
            rows = getattr(checked, field) or []
            if len(tensor.shape) != 2 or tensor.shape[0] != len(rows):
                raise _wrong_shape(name, tensor.shape, f"({len(rows)}, embedding dim) by `{field}`")


def _wrong_shape(name: str, shape: tuple[int, ...], expected: str) -> UnsafeAdapterError:
    return UnsafeAdapterError(
        f"{layout.ADAPTER_WEIGHTS} and {layout.ADAPTER_CONFIG} do not belong together: the tensor {_quoted(name)} has the "
        f"shape {shape} and must have {expected}. Save or download the adapter again."
    )


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
