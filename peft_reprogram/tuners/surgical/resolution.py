"""Which modules of a model a configuration means."""

from __future__ import annotations

import copy
import re
from typing import Any, Union

from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import nn

from ..frozen_base import canonical_path
from .blocks import Block, select_blocks
from .config import SurgicalConfig
from .leaves import Leaf, Unreachable, walk


Part = Union[Leaf, Unreachable]


def find_targets(config: SurgicalConfig, model: nn.Module) -> list[str]:
    """
    Paths of the modules to wrap.

    Args:
        config ([`SurgicalConfig`]): What to train.
        model (`torch.nn.Module`): The base model.

    Returns:
        `list[str]`: Full paths.

    Raises:
        ValueError: If a block or target module is unknown or leaves nothing to train, or if a module can't be trained since
            it is quantised or another adapter has it.
    """
    parts = list(walk(model))
    if config.blocks is None:
        leaves = [part for part in parts if isinstance(part, Leaf)]
        blocks = [Block("", leaves, [part for part in parts if isinstance(part, Unreachable)])]
    else:
        blocks = list(select_blocks(model, config.blocks).values())
    for entry in _entries(config):
        _check_entry(entry, config, blocks, parts)
    chosen = {leaf.path: leaf for block in blocks for leaf in _choose(config, block)}
    taken = {leaf.name: leaf.owner for leaf in chosen.values() if leaf.owner is not None}
    if taken:
        raise ValueError(
            f"{sorted(taken)} can't be trained surgically: they are inside of {sorted(set(taken.values()))}. Add the "
            "surgical adapter before the other one, or leave these modules out with `exclude_modules`."
        )
    return list(chosen)


def _choose(config: SurgicalConfig, block: Block) -> list[Leaf]:
    quantized = [part for part in block.unreachable if part.quantized and _is_targeted(config, part)]
    if quantized:
        raise ValueError(
            f"{[part.name for part in quantized]} are quantised ({type(quantized[0].module).__name__}): a change of full "
            "shape can't be added to their weights. Load the model without quantisation, name other blocks, or use LoRA."
        )
    chosen = [
        leaf for leaf in block.leaves if _is_targeted(config, leaf) and (config.train_norm or leaf.kind.name != "norm")
    ]
    if not chosen:
        where = f"the block {block.name!r}" if block.name else "the model"
        raise ValueError(
            f"Nothing is left to train in {where}: of its {len(block.leaves)} modules that an adapter can train, none "
            "passes `target_modules`, `exclude_modules`, `modules_to_save` and `train_norm`. Widen these, or name other "
            "blocks."
        )
    return chosen


def _entries(config: SurgicalConfig) -> list[Any]:
    """The target modules one by one, each as PEFT would match it: a regex, or a set of one name."""
    targets = config.target_modules
    if targets is None or targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return []
    return [targets] if isinstance(targets, str) else [{target} for target in sorted(targets)]


def _is_targeted(config: SurgicalConfig, part: Part) -> bool:
    if config.target_modules is None:
        matches = True
    elif config.target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        matches = isinstance(part.module, nn.Linear)
    else:
        matches = any(_names(entry, part.name) for entry in _entries(config))
    return matches and not _is_excluded(config, part.name)


def _is_excluded(config: SurgicalConfig, name: str) -> bool:
    everything = copy.copy(config)
    everything.target_modules = ".*"
    return isinstance(check_target_module_exists(everything, name), _ExcludedModule)


def _names(entry: Any, name: str) -> bool:
    if isinstance(entry, str):
        return re.fullmatch(entry, name) is not None
    (target,) = entry
    # In the words of the model, or of another release of transformers.
    pairs = ((name, target), (canonical_path(name), canonical_path(target)))
    return any(path == end or path.endswith(f".{end}") for path, end in pairs)


def _check_entry(entry: Any, config: SurgicalConfig, blocks: list[Block], parts: list[Part]) -> None:
    """Refuse a target that names nothing; PEFT itself would only notice if none of them did."""
    parts_of_blocks: list[Part] = []
    for block in blocks:
        parts_of_blocks += [*block.leaves, *block.unreachable]
    if any(_is_known(part) and _names(entry, part.name) for part in parts_of_blocks):
        return
    shown = repr(entry) if isinstance(entry, str) else repr(next(iter(entry)))
    matches = [part for part in parts if _names(entry, part.name)]
    if any(_is_known(part) for part in matches):
        raise ValueError(f"Target modules {shown} are not in the blocks {config.blocks}.")
    if matches:
        kinds = sorted({type(part.module).__name__ for part in matches})
        raise ValueError(
            f"Target modules {shown} are of a kind that surgical adapters don't know ({', '.join(kinds)}): linear, "
            "convolution, embedding and normalisation layers can be trained. Train them whole with `modules_to_save`."
        )
    raise ValueError(
        f"Target modules {shown} not found in the base model. Please check the target modules and try again; name the "
        "layers themselves, or a whole part of the model with `blocks=[...]`."
    )


def _is_known(part: Part) -> bool:
    return isinstance(part, Leaf) or part.quantized
