"""What a bench compares: models x tasks x shots x strategies x seeds, read from a YAML file and checked before hours of work."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import yaml

from ..ood import get_score
from ..shift import list_corruptions
from ..shift.corruptions import SEVERITIES
from ..strategies import get_strategy
from ..training import TrainingConfig


ALL_SHOTS = "all"
# Set by the bench or by the strategies.
_NOT_FOR_USERS = {"output_dir", "seed", "selection", "progress_bar"}


@dataclass(frozen=True)
class TaskConfig:
    """
    A data set to adapt to, and what to measure on it.

    Args:
        dataset (`str`): Hub id, folder or parquet file with labels, or `"demo"` for the embedded data, which bring their own
            shifts and out-of-distribution sets.
        shots (`Mapping[int | "all", Mapping]`): Training images of each class -> fields of [`TrainingConfig`] for this many.
        validation_shots (`int`, *optional*, defaults to 16): Images of each class, of the training split too, by which
            hyper-parameters are chosen. With all shots a tenth of the split is.
        train_split, test_split (`str`, *optional*, default to `"train"` and `"test"`): The splits.
        template (`list[str]`, *optional*): Prompt templates.
        id_classes (`int`, *optional*): Takes so many classes, drawn once for all, as in-distribution; test images of the
            others become the out-of-distribution set `other_classes`.
        source_resolution (`int`, *optional*): Side in pixels that every image is brought to first.
        shifts (`Mapping[str, str]`, *optional*): Shifted sets with labels, split `test`.
        ood (`Mapping[str, str]`, *optional*): Out-of-distribution sets, split `test`.
        corruptions (`list[str]`, *optional*): Corruptions of the test images: names or kinds of `list_corruptions`.
        severities (`list[int]`, *optional*, defaults to `[3]`): Their severities.
        test_images (`int`, *optional*): Images of each labelled test set, drawn once for all; all by default.
        ood_images (`int`, *optional*): Images of each out-of-distribution set; all by default.
        corruption_images (`int`, *optional*): Test images a corruption; `test_images` by default.
    """

    dataset: str
    shots: Mapping[Any, Mapping[str, Any]]
    validation_shots: int = 16
    train_split: str = "train"
    test_split: str = "test"
    template: list[str] = field(default_factory=lambda: ["a photo of a {}"])
    id_classes: Optional[int] = None
    source_resolution: Optional[int] = None
    shifts: Mapping[str, str] = field(default_factory=dict)
    ood: Mapping[str, str] = field(default_factory=dict)
    corruptions: list[str] = field(default_factory=list)
    severities: list[int] = field(default_factory=lambda: [3])
    test_images: Optional[int] = None
    ood_images: Optional[int] = None
    corruption_images: Optional[int] = None

    def __post_init__(self) -> None:
        if not self.shots:
            raise ValueError(
                "`shots` must name how many images of each class to train on: `shots: {16: {epochs: 20}}`."
            )
        for shots, fields in self.shots.items():
            if shots != ALL_SHOTS and not (isinstance(shots, int) and shots >= 1):
                raise ValueError(f"`shots` must be numbers of at least 1 or '{ALL_SHOTS}', got {shots!r}.")
            _check_training(fields or {}, f"shots {shots}")
        for name in ("validation_shots", "id_classes", "test_images", "ood_images", "corruption_images"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"`{name}` must be a number of at least 1, got {value!r}.")

    def corruption_names(self) -> list[str]:
        """The corruptions, kinds spelt out."""
        kinds = ("all", "common", "extra")
        return [
            name for entry in self.corruptions for name in (list_corruptions(entry) if entry in kinds else [entry])
        ]


@dataclass(frozen=True)
class BenchConfig:
    """
    A bench.

    Args:
        models (`Mapping[str, str]`): What to call a text-image model -> Hub id, folder, or `"demo"` for the embedded one.
        tasks (`Mapping[str, TaskConfig]`): The tasks by name.
        strategies (`Mapping[str, Mapping]`): Names of strategies -> fixed hyper-parameters; a list of names in the file. Prefix
            a name to have one strategy twice: `"reprogrammer, wide": {strategy: reprogrammer, ...}`.
        seeds (`list[int]`, *optional*, defaults to `[0, 1, 2]`): Of the draw of images and of training. Hyper-parameters are
            chosen with the first.
        trials (`int`, *optional*, defaults to 3): How many entries of each strategy's grid are tried: the same number for all.
        scores (`list[str]`, *optional*): Out-of-distribution scores that apply to any model and need no fitting.
        training (`Mapping`, *optional*): Fields of [`TrainingConfig`] for all.
        channels_last (`bool`, *optional*, defaults to `False`): Memory layout for convolutional towers, see
            [`~strategies.Task`].
    """

    models: Mapping[str, str]
    tasks: Mapping[str, TaskConfig]
    strategies: Mapping[str, Mapping[str, Any]]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    trials: int = 3
    scores: list[str] = field(default_factory=lambda: ["energy", "msp", "max_logit"])
    training: Mapping[str, Any] = field(default_factory=dict)
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name in ("models", "tasks", "strategies", "seeds", "scores"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is empty: there is nothing to compare.")
        if self.trials < 1:
            raise ValueError(f"`trials` must be at least 1, got {self.trials}.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` {self.seeds} name one twice.")
        for name, path in self.models.items():
            if not isinstance(path, str):
                raise ValueError(f"the model {name!r} must be a Hub id, a folder or 'demo', got {path!r}.")
        for label in self.strategies:
            self.strategy(label).training_config(TrainingConfig(output_dir=""))
        for name in self.scores:
            score = get_score(name)
            if not score.needs <= {"logits", "features", "class_features"} or not score.is_fitted:
                raise ValueError(
                    f"the score {name!r} looks at more than the logits and features that every strategy's model has: take "
                    "scores such as energy, msp and max_logit."
                )
        for task in self.tasks.values():
            known = list_corruptions("all")
            unknown = sorted(set(task.corruption_names()) - set(known))
            if unknown:
                raise ValueError(f"there are no corruptions {unknown}; there are {', '.join(known)}.")
            if not set(task.severities) <= set(SEVERITIES):
                raise ValueError(f"`severities` must be among {list(SEVERITIES)}, got {task.severities}.")
        _check_training(self.training, "training")

    def strategy(self, label: str) -> Any:
        """The strategy that a label stands for, with its fixed hyper-parameters."""
        options = dict(self.strategies[label] or {})
        return get_strategy(options.pop("strategy", label), **options)

    def grid(self, label: str) -> list[dict[str, Any]]:
        """The trials of a strategy, hyper-parameters that are fixed left out."""
        fixed = self.strategies[label] or {}
        grid: list[dict[str, Any]] = []
        for options in self.strategy(label).grid:
            free = {name: value for name, value in options.items() if name not in fixed}
            if free not in grid:
                grid.append(free)
        return grid[: self.trials]


class _Loader(yaml.SafeLoader):
    """Takes `1e-4` for a number, as YAML 1.2 does. Where a file becomes flags, their types decide that."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def load_config(path: str | Path) -> BenchConfig:
    """
    Reads a bench from a YAML file.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        [`BenchConfig`]

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML mapping, or a key, strategy, score, corruption or value in it is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}.")
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} must hold the keys of a bench (`models`, `tasks`, `strategies`...), got {content!r}."
        )
    try:
        fields = _known(BenchConfig, content)
        if isinstance(fields.get("strategies"), list):
            fields["strategies"] = {name: {} for name in fields["strategies"]}
        fields["tasks"] = {
            name: _in_task(name, lambda task=task: TaskConfig(**_known(TaskConfig, task)))
            for name, task in (fields.get("tasks") or {}).items()
        }
        return BenchConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _in_task(name: str, make: Any) -> Any:
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the task {name!r}: {error}") from error


def _known(kind: Any, content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected keys and values, got {content!r}.")
    known = [item.name for item in dataclasses.fields(kind)]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ValueError(f"unknown keys {unknown}; the known ones are {', '.join(known)}.")
    return dict(content)


def _check_training(fields: Mapping[str, Any], where: str) -> None:
    known = [item.name for item in dataclasses.fields(TrainingConfig) if item.name not in _NOT_FOR_USERS]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown training options {unknown}; the known ones are {', '.join(known)}.")
    TrainingConfig(output_dir="", **fields)
