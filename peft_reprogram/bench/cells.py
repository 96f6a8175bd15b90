"""The cells of a bench, in groups that share their choice of hyper-parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Optional

from .config import ALL_SHOTS, BenchConfig


@dataclass(frozen=True)
class Cell:
    """
    One training of one strategy, and its measurement.

    Args:
        model (`str`): Name of the model.
        task (`str`): Name of the task.
        shots (`int`, *optional*): Training images of each class; `None` for all.
        strategy (`str`): Label of the strategy.
        seed (`int`): The seed.
    """

    model: str
    task: str
    shots: Optional[int]
    strategy: str
    seed: int

    def folder(self) -> str:
        """A folder name for what the cell leaves behind."""
        readable = f"{self.model}-{self.task}-{self.shots or ALL_SHOTS}-{self.strategy}-{self.seed}"
        safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in readable)
        # Two labels may become one name.
        return f"{safe}-{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Group:
    """
    The cells that differ in their seed alone.

    Args:
        model (`str`): Name of the model.
        task (`str`): Name of the task.
        shots (`int`, *optional*): Training images of each class; `None` for all.
        strategy (`str`): Label of the strategy.
        seeds (`tuple[int, ...]`): The seeds.
    """

    model: str
    task: str
    shots: Optional[int]
    strategy: str
    seeds: tuple[int, ...]

    def cells(self) -> list[Cell]:
        """One cell a seed."""
        return [Cell(self.model, self.task, self.shots, self.strategy, seed) for seed in self.seeds]


def groups(config: BenchConfig, shard: tuple[int, int] = (0, 1)) -> list[Group]:
    """
    The groups of a bench, or the part of one of several machines.

    Args:
        config ([`BenchConfig`]): The bench.
        shard (`tuple[int, int]`, *optional*, defaults to `(0, 1)`): Number of the part, from 0, and number of parts.

    Returns:
        `list[Group]`
    """
    index, parts = shard
    return list(_all_groups(config))[index::parts]


def parse_shard(text: str) -> tuple[int, int]:
    """
    Reads `i/n`, the i-th of n parts, counted from 0.

    Raises:
        ValueError: If it is not of this form.
    """
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise ValueError(f"a shard is written `i/n`, the i-th of n parts counted from 0 (`0/2`, `1/2`), got {text!r}.")
    return int(index), int(parts)


def recipe(config: BenchConfig, group: Group) -> str:
    """Hash of all of the configuration that decides a group's numbers."""
    task: dict[str, Any] = asdict(config.tasks[group.task])
    shots = group.shots or ALL_SHOTS
    parts = {
        **task,
        "model": config.models[group.model],
        "shots": {str(shots): task["shots"][shots]},
        "training": dict(config.training),
        "scores": config.scores,
        "channels_last": config.channels_last,
        "strategy": asdict(config.strategy(group.strategy)),
        "grid": config.grid(group.strategy),
        "first_seed": group.seeds[0],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _all_groups(config: BenchConfig) -> Iterator[Group]:
    for model in config.models:
        for task, task_config in config.tasks.items():
            for shots in task_config.shots:
                for strategy in config.strategies:
                    yield Group(model, task, None if shots == ALL_SHOTS else shots, strategy, tuple(config.seeds))
