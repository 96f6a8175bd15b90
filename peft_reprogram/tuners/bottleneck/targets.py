"""Which modules of a model get a bottleneck adapter."""

from __future__ import annotations

import copy
import re
from typing import Any

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..frozen_base import canonical_path
from .config import BottleneckConfig
from .layer import output_width


# What ends a branch beside a skip connection, in the names of transformers 5. A number in the path tells the layers of a
# tower from its pooling head.
_BRANCH_END = re.compile(
    r"(^|.*\.)\d+\.(.*\.)?("
    r"self_attn\.out_proj|attention\.o_proj|mlp\.fc2|mlp\.weights_out"  # vision and text transformers
    r"|pwconv2"  # ConvNeXt
    r"|reduce_1x1\.normalization"  # MobileNetV2
    r"|projection\.project_bn"  # EfficientNet
    r")"
)
# ResNet numbers the convolutions of a block; the last one counts.
_RESNET_BRANCH = re.compile(r"(.*\.layers\.\d+\.layer)\.\d+\.normalization")


def find_targets(config: BottleneckConfig, model: nn.Module) -> list[str]:
    """
    Paths of the modules to wrap.

    Args:
        config ([`BottleneckConfig`]): What to adapt.
        model (`torch.nn.Module`): The base model.

    Returns:
        `list[str]`: Full paths.

    Raises:
        ValueError: If nothing is found, or an adapter can't follow a chosen module.
    """
    modules = dict(_base_modules(model))
    wanted = copy.copy(config)
    if config.target_modules is None:
        wanted.target_modules = _as_regex(_ends_of_branches(modules))
    wanted = _maybe_include_all_linear_layers(wanted, model)
    targets = [name for name in modules if _matches(wanted, name)]
    if not targets:
        raise ValueError(
            f"{_nothing_found(config, model)} Name the modules whose output to adapt with `target_modules=[...]`; an adapter "
            f"can follow {_candidates(modules)}."
        )
    for name in targets:
        width = output_width(modules[name])
        if width is None:
            raise ValueError(
                f"A bottleneck adapter can't follow '{name}' ({type(modules[name]).__name__}): the width of its output is "
                f"not known. Choose among {_candidates(modules)}."
            )
        try:
            config.bottleneck_width(width)
        except ValueError as error:
            raise ValueError(f"'{name}': {error}") from None
    return targets


def _base_modules(model: nn.Module) -> list[tuple[str, Any]]:
    """The base model's modules; for a layer of a tuner, what it wraps, at the layer's path. Trained copies are left out."""
    modules: list[tuple[str, Any]] = []
    wrapped: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(f"{path}.") for path in wrapped):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            wrapped.append(name)
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        modules.append((name, module))
    return modules


def _ends_of_branches(modules: dict[str, Any]) -> list[str]:
    ends = [name for name in modules if _BRANCH_END.fullmatch(canonical_path(name))]
    of_resnet = {match[1]: name for name in modules if (match := _RESNET_BRANCH.fullmatch(name))}
    return [*ends, *of_resnet.values()]


def _as_regex(names: list[str]) -> str:
    # Matches nothing if there are none: an empty regex would be taken for no choice at all.
    return "|".join(map(re.escape, names)) or r"(?!)"


def _matches(config: BottleneckConfig, name: str) -> bool:
    match = check_target_module_exists(config, name)
    return bool(match) and not isinstance(match, _ExcludedModule)


def _nothing_found(config: BottleneckConfig, model: nn.Module) -> str:
    excluded = "" if config.exclude_modules is None else f" outside of `exclude_modules={config.exclude_modules!r}`"
    if config.target_modules is None:
        return f"{type(model).__name__} has no layers that a bottleneck adapter goes to by default{excluded}."
    return f"Target modules {config.target_modules!r} not found in {type(model).__name__}{excluded}."


def _candidates(modules: dict[str, Any]) -> str:
    found = {
        name.rpartition(".")[2]: type(module).__name__ for name, module in modules.items() if output_width(module)
    }
    return ", ".join(f"'{name}' ({kind})" for name, kind in found.items()) or "none of its modules"
