"""Labels of one data set in terms of another's classes: by name, never by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray


def normalize_name(name: str) -> str:
    """A class name as names are compared: without regard to case, with underscores and hyphens as spaces."""
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(repr(name) for name in names[:most]) or "none") + more


def map_labels(
    dataset_class_names: Sequence[str],
    id_class_names: Sequence[str],
    aliases: Mapping[str, str | None] | None = None,
) -> NDArray[np.int64]:
    """Maps the labels of a data set to those of the in-distribution classes, by class name.

    Names are compared without regard to case, and with underscores and hyphens as spaces. Every class of the data set
    needs a counterpart or must be dropped on purpose, so that no class is lost through a difference in spelling;
    in-distribution classes that the data set lacks are fine.

    Args:
        dataset_class_names (`Sequence[str]`): the classes of the data set, in the order of its labels.
        id_class_names (`Sequence[str]`): the classes of the classifier, in the order of its outputs.
        aliases (`Mapping[str, str | None]`, *optional*): for classes of the data set that are called otherwise among
            the in-distribution classes, that other name; `None` drops the class.

    Returns:
        `numpy.ndarray` of shape `(len(dataset_class_names),)`, `int64`: the new label of each old one, -1 for dropped.

    Raises:
        ValueError: if a class of the data set has no counterpart (the message names what is left over on both sides),
            if a counterpart is ambiguous, or if an alias is for a class that does not exist.

    Example:

    ```python
    >>> from peft_reprogram.shift import map_labels
    >>> map_labels(["cat", "car", "monkey"], ["automobile", "cat"], aliases={"car": "automobile", "monkey": None})
    array([ 1,  0, -1])
    ```
    """
    if isinstance(dataset_class_names, str) or isinstance(id_class_names, str):
        raise ValueError("dataset_class_names and id_class_names must be lists of names, got a single string.")
    aliases = {normalize_name(name): target for name, target in (aliases or {}).items()}
    unknown = sorted(aliases.keys() - {normalize_name(name) for name in dataset_class_names})
    if unknown:
        raise ValueError(
            f"aliases name classes that the data set does not have: {_listed(unknown)}; "
            f"it has {_listed(dataset_class_names)}."
        )
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(id_class_names):
        positions.setdefault(normalize_name(name), []).append(position)
    labels = np.full(len(dataset_class_names), -1, dtype=np.int64)
    missing, ambiguous = [], []
    for label, name in enumerate(dataset_class_names):
        target = aliases.get(normalize_name(name), name)
        if target is None:
            continue
        found = positions.get(normalize_name(target), [])
        if len(found) == 1:
            labels[label] = found[0]
        elif found:
            ambiguous.append(target)
        else:
            missing.append(name)
    if ambiguous:
        raise ValueError(
            f"More than one in-distribution class is called {_listed(ambiguous)}: "
            "give both sides names that differ, for ImageNet the WordNet ids of imagenet_wnids()."
        )
    if missing:
        covered = set(labels.tolist())
        unused = [name for position, name in enumerate(id_class_names) if position not in covered]
        raise ValueError(
            f"These classes of the data set have no in-distribution class of the same name: {_listed(missing)}. "
            f"In-distribution classes without a counterpart: {_listed(unused)}. "
            f'Say what they correspond to with aliases={{{missing[0]!r}: "<in-distribution name>"}}, '
            f"or drop them with aliases={{{missing[0]!r}: None}}."
        )
    return labels


@cache
def imagenet_wnids(subset: str = "all") -> tuple[str, ...]:
    """WordNet ids of ImageNet-1k in the order of its labels, or of the 200 classes of ImageNet-A or ImageNet-R.

    The lists are those of the authors' evaluation code (ImageNet-A: https://arxiv.org/abs/1907.07174, ImageNet-R:
    https://arxiv.org/abs/2006.16241). Labels follow the sorted ids, so that
    `map_labels(imagenet_wnids("a"), imagenet_wnids())` puts the 200 classes among the 1,000.

    Args:
        subset (`str`, *optional*, defaults to `"all"`): `all`, `a` or `r`.

    Returns:
        `tuple[str, ...]`: 1,000 or 200 ids, sorted.

    Raises:
        ValueError: if `subset` is unknown.
    """
    if subset not in ("all", "a", "r"):
        raise ValueError(f"Unknown subset of ImageNet {subset!r}; choose one of: all, a, r.")
    lines = files(__package__).joinpath("imagenet_wnids.txt").read_text(encoding="ascii").splitlines()
    rows = [line.split() for line in lines]
    return tuple(row[0] for row in rows if subset == "all" or subset.upper() in row[1:])
