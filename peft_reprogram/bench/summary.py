"""From the bench's rows to what is compared: means over seeds, Pareto fronts, effective robustness."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from ..metrics.functional.shift import RobustnessBaseline, effective_robustness
from .pareto import pareto_front


# What is measured, as a path: ("id", "accuracy"), ("shift", "accuracy") is the mean over the shifts and
# ("shift", "natural", "accuracy") one of them, ("ood", "energy", "auroc") the mean over the sets, and so on.
Key = tuple[str, ...]

ID_ACCURACY: Key = ("id", "accuracy")
MEAN_SHIFT: Key = ("shift", "accuracy")
EFFECTIVE_ROBUSTNESS: Key = ("effective_robustness",)
TRAINED_PARAMETERS: Key = ("cost", "trained_parameters")
COSTS = ("trained_parameters", "adapter_bytes", "training_seconds", "peak_memory_bytes")

# A line through two models fits them whatever they are.
FEWEST_REFERENCES = 3


@dataclass(frozen=True)
class Statistic:
    """
    Mean over seeds.

    Attributes:
        mean (`float`): Of the values.
        std (`float`, *optional*): Sample standard deviation (one degree of freedom taken); `None` for one value.
        n (`int`): Number of values.
    """

    mean: float
    std: Optional[float]
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistic:
        """The statistic of one value or more."""
        array = np.asarray(list(values), np.float64)
        return cls(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def within_noise(one: Statistic, other: Statistic) -> bool:
    """
    Whether the difference of two means is smaller than its standard error, sqrt(std_1^2 / n_1 + std_2^2 / n_2). One value
    says nothing of its noise, so nothing is within it.
    """
    if one.std is None or other.std is None:
        return False
    return abs(one.mean - other.mean) < math.sqrt(one.std**2 / one.n + other.std**2 / other.n)


@dataclass(frozen=True)
class Point:
    """
    A way to fine-tune on one bed, over all seeds.

    Attributes:
        alphas (`tuple[float, ...]`): The shares of the pre-trained model, in ascending order: one, or several where each
            seed has chosen its own; empty where nothing is mixed.
        statistics (`Mapping[Key, Statistic]`): What was measured.
    """

    alphas: tuple[float, ...]
    statistics: Mapping[Key, Statistic]

    def get(self, key: Key) -> Optional[float]:
        """The mean, if it was measured."""
        return self.statistics[key].mean if key in self.statistics else None


@dataclass(frozen=True)
class Entry(Point):
    """
    A point that takes part in the comparison.

    Attributes:
        number (`int`): The same on all beds.
        strategy (`str`): The strategy.
        kind (`str`): `"only"`, or of a curve `"unmixed"` (alpha 0), `"paper"` (the paper's alpha) or `"chosen"` (by validation).
        label (`str`): Name for people.
    """

    number: int
    strategy: str
    kind: str
    label: str


@dataclass(frozen=True)
class Bed:
    """
    A model, a task and a number of shots: what strategies are compared on.

    Attributes:
        model (`str`), task (`str`), shots (`int`, *optional*): Which; `None` means all rows.
        rows (`tuple[dict]`): The rows, in the order of strategies and seeds.
        seeds (`tuple[int, ...]`): All that occur.
        entries (`tuple[Entry, ...]`): By number.
        curves (`Mapping[str, tuple[Point, ...]]`): Of each mixing strategy, by alpha.
        shifts, corruptions (`tuple[str, ...]`), ood (`Mapping[str, tuple[str, ...]]`): Sets that occur; `ood` by score.
        axes (`tuple[Key, ...]`): What the front is about: ID accuracy, mean shift accuracy and mean AUROC, as far as measured.
        front (`tuple[Entry, ...]`): The entries on it.
        baseline (`RobustnessBaseline`, *optional*): Of effective robustness, `None` where it cannot be fitted.
        references (`tuple[Entry, ...]`): What it was fitted to.
    """

    model: str
    task: str
    shots: Optional[int]
    rows: tuple[Mapping[str, Any], ...]
    seeds: tuple[Any, ...]
    entries: tuple[Entry, ...]
    curves: Mapping[str, tuple[Point, ...]]
    shifts: tuple[str, ...]
    corruptions: tuple[str, ...]
    ood: Mapping[str, tuple[str, ...]]
    axes: tuple[Key, ...]
    front: tuple[Entry, ...]
    baseline: Optional[RobustnessBaseline]
    references: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """Name for people."""
        shots = "all rows" if self.shots is None else f"{self.shots} shot{'s' if self.shots != 1 else ''}"
        return f"{self.task}, {shots}, {self.model}"


@dataclass(frozen=True)
class _Name:
    number: int
    strategy: str
    kind: str
    label: str


def summarize(rows: Sequence[Mapping[str, Any]], score: str = "energy") -> list[Bed]:
    """
    Sums up the rows of a results store.

    Args:
        rows (sequence of `dict`): Rows of the bench, one a finished cell; their order does not matter.
        score (`str`, *optional*, defaults to `"energy"`): The out-of-distribution score that the front is about; the same for
            all strategies, since the best of each would be a choice by test data.

    Returns:
        `list[Bed]`: By task, model and shots. Means over sets are taken only where each set of the bed was measured: a mean
        over fewer sets is another quantity, and is left out.

    Raises:
        ValueError: If there is no row, two rows are of the same cell, a row lacks its ID accuracy, or no row has the score while others were measured.
    """
    _check(rows, score)
    names = _names(rows)
    beds: dict[tuple[str, str, Any], list[Mapping[str, Any]]] = {}
    for row in rows:
        cell = row["cell"]
        beds.setdefault((cell["task"], cell["model"], cell["shots"]), []).append(row)
    # All rows are more than any number of shots.
    order = sorted(beds, key=lambda bed: (bed[0], bed[1], math.inf if bed[2] is None else bed[2]))
    return [_bed(*key, beds[key], names, score) for key in order]


def _check(rows: Sequence[Mapping[str, Any]], score: str) -> None:
    if not rows:
        raise ValueError("`rows` is empty: there is nothing to report until the bench has finished a cell.")
    seen = set()
    for row in rows:
        cell = row["cell"]
        key = tuple(cell[name] for name in ("model", "task", "shots", "strategy", "seed"))
        if key in seen:
            raise ValueError(f"`rows` has two rows of the cell {dict(cell)}: merge the stores, keeping one of them.")
        seen.add(key)
        accuracies = [point["id"]["accuracy"] for point in row["points"]]
        if not accuracies or not all(0 <= accuracy <= 1 for accuracy in accuracies):
            raise ValueError(
                f"the row of the cell {dict(cell)} must have one point or more, each with an ID accuracy of [0, 1]: "
                f"got {accuracies}."
            )
    scores = sorted({name for row in rows for point in row["points"] for name in point.get("ood") or {}})
    if scores and score not in scores:
        raise ValueError(f"the score {score!r} was not measured; there are {', '.join(scores)}.")


def _names(rows: Sequence[Mapping[str, Any]]) -> list[_Name]:
    """What takes part, numbered alike on all beds: the pre-trained model, strategies of one point, those of a curve."""
    by_strategy: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_strategy.setdefault(row["cell"]["strategy"], []).append(row)
    mixing = {name: any(len(row["points"]) > 1 for row in group) for name, group in by_strategy.items()}
    names: list[_Name] = []
    for strategy in sorted(by_strategy, key=lambda name: (name != "zero_shot", mixing[name], name)):
        for kind, label in _kinds(strategy, by_strategy[strategy]) if mixing[strategy] else [("only", strategy)]:
            names.append(_Name(len(names) + 1, strategy, kind, label))
    return names


def _kinds(strategy: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    papers = {_alpha(point) for row in rows if (point := _select(row, "paper"))}
    unmixed = any(_select(row, "unmixed") for row in rows)
    what = "residual" if "reprogrammer" in strategy else "pre-trained"
    if unmixed:
        yield "unmixed", f"{strategy} (paper)" if papers == {0.0} else strategy
    if papers and not (unmixed and papers == {0.0}):
        share = f" {format_alpha(papers.pop())}" if len(papers) == 1 else ""
        yield "paper", f"{strategy} + {what}{share} (paper)"
    if any(_select(row, "chosen") for row in rows):
        yield "chosen", f"{strategy} + {what} (chosen)"


def format_alpha(alpha: float) -> str:
    """A share of the pre-trained model as people write it."""
    return f"{alpha:.4g}"


def _alpha(point: Mapping[str, Any]) -> float:
    return 0.0 if point["alpha"] is None else float(point["alpha"])


def _select(row: Mapping[str, Any], kind: str) -> Optional[Mapping[str, Any]]:
    if kind == "only":
        return row["points"][0]
    if kind == "unmixed":
        return next((point for point in row["points"] if _alpha(point) == 0), None)
    return next((point for point in row["points"] if point[kind]), None)


def _bed(
    task: str, model: str, shots: Any, rows: list[Mapping[str, Any]], names: list[_Name], score: str
) -> Bed:  # fmt: skip
    places = {name.strategy: name.number for name in names}
    rows = sorted(rows, key=lambda row: (places[row["cell"]["strategy"]], row["cell"]["seed"]))
    points = [point for row in rows for point in row["points"]]
    shifts = _keys(point.get("shifts") for point in points)
    corruptions = _keys(point.get("corruptions") for point in points)
    scores = _keys(point.get("ood") for point in points)
    ood = {name: _keys((point.get("ood") or {}).get(name) for point in points) for name in scores}

    def measure(row: Mapping[str, Any], point: Mapping[str, Any]) -> dict[Key, float]:
        return _values(row, point, shifts, corruptions, ood)

    measured: dict[_Name, list[tuple[Optional[float], dict[Key, float]]]] = {}
    for name in names:
        for row in rows:
            if row["cell"]["strategy"] == name.strategy and (point := _select(row, name.kind)) is not None:
                alpha = None if name.kind == "only" and point["alpha"] is None else _alpha(point)
                measured.setdefault(name, []).append((alpha, measure(row, point)))
    baseline, references = _baseline(
        {name: [values for _, values in seeds] for name, seeds in measured.items() if name.kind == "only"}
    )
    for seeds in measured.values():
        for _, values in seeds:
            if baseline and MEAN_SHIFT in values and 0 < values[ID_ACCURACY] < 1:
                values[EFFECTIVE_ROBUSTNESS] = effective_robustness(values[MEAN_SHIFT], values[ID_ACCURACY], baseline)
    entries = tuple(
        Entry(
            tuple(sorted({alpha for alpha, _ in seeds if alpha is not None})),
            _statistics([values for _, values in seeds]),
            name.number,
            name.strategy,
            name.kind,
            name.label,
        )
        for name, seeds in measured.items()
    )
    axes = tuple(
        key for key in (ID_ACCURACY, MEAN_SHIFT, ("ood", score, "auroc")) if any(key in e.statistics for e in entries)
    )
    comparable = [entry for entry in entries if all(key in entry.statistics for key in axes)]
    on_front = pareto_front(
        np.array([[e.statistics[key].mean for key in axes] for e in comparable]).reshape(-1, len(axes))
    )
    return Bed(
        model,
        task,
        shots,
        tuple(rows),
        tuple(sorted({row["cell"]["seed"] for row in rows})),
        entries,
        _curves(rows, {name.strategy for name in names if name.kind != "only"}, measure),
        shifts,
        corruptions,
        ood,
        axes,
        tuple(entry for entry, on in zip(comparable, on_front) if on),
        baseline,
        tuple(entry for entry in entries if entry.number in {name.number for name in references}),
    )


def _values(
    row: Mapping[str, Any],
    point: Mapping[str, Any],
    shifts: tuple[str, ...],
    corruptions: tuple[str, ...],
    ood: Mapping[str, tuple[str, ...]],
) -> dict[Key, float]:
    found: dict[Key, Any] = {("id", key): value for key, value in point["id"].items()}
    found["validation_accuracy",] = point.get("validation_accuracy")
    for name, value in (point.get("corruptions") or {}).items():
        found["corruption", name] = value
    for name, entry in (point.get("shifts") or {}).items():
        for key in ("accuracy", "balanced_accuracy"):
            found["shift", name, key] = entry.get(key)
    for score, sets in (point.get("ood") or {}).items():
        for name, entry in sets.items():
            for key in ("auroc", "fpr"):
                found["ood", score, name, key] = entry.get(key)
    for key in COSTS:
        found["cost", key] = row["cost"].get(key)
    values = {key: float(value) for key, value in found.items() if value is not None and math.isfinite(value)}

    def add_mean(of: Key, parts: list[Key]) -> None:
        if parts and all(part in values for part in parts):
            values[of] = float(np.mean([values[part] for part in parts]))

    add_mean(("corruption",), [("corruption", name) for name in corruptions])
    # However many corruptions there are, they are one shift: they would outvote the others.
    several: list[Key] = [("corruption",)] if corruptions else []
    add_mean(MEAN_SHIFT, [("shift", name, "accuracy") for name in shifts] + several)
    add_mean(("shift", "balanced_accuracy"), [("shift", name, "balanced_accuracy") for name in shifts])
    for score, sets in ood.items():
        for key in ("auroc", "fpr"):
            add_mean(("ood", score, key), [("ood", score, name, key) for name in sets])
    return values


def _baseline(
    measured: Mapping[_Name, list[dict[Key, float]]],
) -> tuple[Optional[RobustnessBaseline], list[_Name]]:
    references: dict[_Name, tuple[float, float]] = {}
    for name, seeds in measured.items():
        both = [(values[ID_ACCURACY], values[MEAN_SHIFT]) for values in seeds if MEAN_SHIFT in values]
        if both:
            id_accuracy, shift_accuracy = (float(value) for value in np.mean(both, axis=0))
            # The ends have no logit.
            if 0 < id_accuracy < 1 and 0 < shift_accuracy < 1:
                references[name] = id_accuracy, shift_accuracy
    if len(references) < FEWEST_REFERENCES:
        return None, []
    try:
        return RobustnessBaseline.fit(*zip(*references.values())), list(references)
    except ValueError:  # all have the same ID accuracy: there is no line
        return None, []


def _curves(rows: Iterable[Mapping[str, Any]], mixing: set[str], measure: Any) -> dict[str, tuple[Point, ...]]:
    by_alpha: dict[str, dict[float, list[dict[Key, float]]]] = {}
    for row in rows:
        strategy = row["cell"]["strategy"]
        if strategy in mixing:
            # Sums of steps differ in the last digits.
            points = {round(_alpha(point), 6): point for point in reversed(row["points"])}
            for alpha, point in points.items():
                by_alpha.setdefault(strategy, {}).setdefault(alpha, []).append(measure(row, point))
    return {
        strategy: tuple(Point((alpha,), _statistics(seeds)) for alpha, seeds in sorted(by_share.items()))
        for strategy, by_share in by_alpha.items()
    }


def _statistics(seeds: list[dict[Key, float]]) -> dict[Key, Statistic]:
    keys = dict.fromkeys(key for values in seeds for key in values)
    return {key: Statistic.of(values[key] for values in seeds if key in values) for key in keys}


def _keys(mappings: Iterable[Optional[Mapping[str, Any]]]) -> tuple[str, ...]:
    return tuple(sorted({key for mapping in mappings for key in mapping or {}}))
