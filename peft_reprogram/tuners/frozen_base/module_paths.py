"""Module paths that mean the same in transformers 4 and 5, which renamed the layers of the vision transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable


_RENAMED = [
    # A CLIP tower inside a dual encoder has its own tower one level further down in transformers 4.
    (r"(^|\.)(vision_model|text_model)\.\2\.", r"\1\2."),
    (r"(^|\.)encoder\.layer\.(\d+)(?=\.|$)", r"\1layers.\2"),
    (r"(^|\.)attention\.(?:attention|self)(?=\.|$)", r"\1attention"),
    (r"(^|\.)query$", r"\1q_proj"),
    (r"(^|\.)key$", r"\1k_proj"),
    (r"(^|\.)value$", r"\1v_proj"),
    (r"(^|\.)attention\.output\.dense$", r"\1attention.o_proj"),
    (r"(^|\.)intermediate\.dense$", r"\1mlp.fc1"),
    (r"(^|\.)output\.dense$", r"\1mlp.fc2"),
]


def canonical_path(path: str) -> str:
    """
    The name of a module that doesn't depend on the release of transformers.

    Args:
        path (`str`): Path of a module, or the end of one, in the names of either release.

    Returns:
        `str`: The name; where it was renamed, that of transformers 5.
    """
    for pattern, replacement in _RENAMED:
        path = re.sub(pattern, replacement, path)
    return path


def rename_keys(keys: Iterable[str], module_paths: Iterable[str], marker: str) -> dict[str, str]:
    """
    What the keys of an adapter file are called in a model of another release of transformers.

    Args:
        keys (`Iterable[str]`): Keys of the file, with or without `base_model.model.` before them.
        module_paths (`Iterable[str]`): Paths of the adapted modules in the model, with the same prefix.
        marker (`str`): What follows the module's path in a key, e.g. `".surgical_"`.

    Returns:
        `dict[str, str]`: New names by old ones, of those that change.
    """
    known = set(module_paths)
    by_name = {canonical_path(path): path for path in known}
    renamed = {}
    for key in keys:
        path, found, rest = key.rpartition(marker)
        if found and path not in known and canonical_path(path) in by_name:
            renamed[key] = by_name[canonical_path(path)] + marker + rest
    return renamed
