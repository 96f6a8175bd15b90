"""Sentences that are computed from the results, for the report and for READMEs alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .columns import count, percent
from .summary import ID_ACCURACY, MEAN_SHIFT, TRAINED_PARAMETERS, Bed, Entry, format_alpha


MARKS_NOTE = (
    "Within noise of the best: the difference of the two means is smaller than its standard error, "
    "√(s₁²/n₁ + s₂²/n₂), with the standard deviations s and numbers n of the seeds; with one seed nothing is said of noise."
)
SHIFT_NOTE = (
    "Mean shift is the mean of the accuracies on all shift sets and of the mean accuracy under corruptions, which counts as one "
    "shift; where there are only corruptions it is that. The balanced mean is over the shift sets alone."
)


def overview_statement(beds: Sequence[Bed]) -> str:
    """How much was measured."""
    cells = sum(len(bed.rows) for bed in beds)
    counts = [
        _number(len({row["cell"]["strategy"] for bed in beds for row in bed.rows}), "strategy", "strategies"),
        _number(len({bed.model for bed in beds}), "model", "models"),
        _number(len({bed.task for bed in beds}), "task", "tasks"),
    ]
    return (
        f"{enumeration(counts)}; {_number(len(beds), 'bed', 'beds')} to compare them on (a model, a task and a number of shots), "
        f"{_number(cells, 'finished run', 'finished runs')}. What each way of fine-tuning gains on the task, and what is left of it "
        "under shift, for images of none of the classes, and at which cost."
    )


def _number(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def near_sets(bed: Bed) -> set[str]:
    """The out-of-distribution sets that the study calls near."""
    return {name for row in bed.rows for name in ((row.get("study") or {}).get("roles") or {}).get("near") or ()}


def front_statement(bed: Bed) -> str:
    """Which entries are on the Pareto front, and which of them has the fewest trained parameters."""
    names = {ID_ACCURACY: "ID accuracy", MEAN_SHIFT: "mean shift accuracy"}
    about = enumeration([names.get(axis, "mean OOD AUROC") for axis in bed.axes])
    left_out = len(bed.entries) - sum(all(axis in entry.statistics for axis in bed.axes) for entry in bed.entries)
    beside = f" ({left_out} not compared, since not measured in all of these)" if left_out else ""
    if not bed.front:
        return f"No strategy was measured in all of {about}, so there is no Pareto front."
    what = f"Pareto front of {about}" if len(bed.axes) > 1 else f"Best {about}"
    text = f"{what}: {enumeration([entry.label for entry in bed.front])}{beside}."
    # What was not recorded may be fewer.
    if not all(TRAINED_PARAMETERS in entry.statistics for entry in bed.front):
        return text
    text += f" Fewest trained parameters on it: {_fewest(bed.front)}."
    trained = [entry for entry in bed.front if entry.get(TRAINED_PARAMETERS)]
    if 0 < len(trained) < len(bed.front):
        text += f" Among those of them that train anything: {_fewest(trained)}."
    return text


def _fewest(entries: Sequence[Entry]) -> str:
    fewest = min(entry.statistics[TRAINED_PARAMETERS].mean for entry in entries)
    labels = [entry.label for entry in entries if entry.get(TRAINED_PARAMETERS) == fewest]
    return f"{enumeration(labels)} ({count(fewest)})"


def shift_statement(bed: Bed) -> str:
    """What the mean shift of a bed is the mean of."""
    parts = list(bed.shifts)
    if bed.corruptions:
        parts.append(f"the mean of {_number(len(bed.corruptions), 'corruption', 'corruptions')}")
    if not parts:
        return "No shift was measured."
    return (
        f"Mean shift: mean of the accuracies on {enumeration(parts)}."
        if len(parts) > 1
        else f"Mean shift: {parts[0]}."
    )


def robustness_statement(bed: Bed) -> str:
    """What effective robustness was measured against."""
    if bed.baseline is None:
        if not bed.shifts and not bed.corruptions:
            return ""
        return (
            "Effective robustness needs three strategies or more that mix nothing, with different ID accuracies strictly between "
            "0 and 1: not given here."
        )
    line = f"logit(shift) = {bed.baseline.slope:.2f} · logit(ID) {'+' if bed.baseline.intercept >= 0 else '−'} {abs(bed.baseline.intercept):.2f}"
    return (
        f"Effective robustness: mean shift accuracy above the line {line}, fitted to the means over seeds of the "
        f"{len(bed.references)} strategies that mix nothing ({enumeration([entry.label for entry in bed.references])})."
    )


def seeds_statement(bed: Bed) -> str:
    """How many seeds there are, and which entries have fewer."""
    text = f"{_number(len(bed.seeds), 'seed', 'seeds')} ({', '.join(map(str, bed.seeds))})."
    fewer = [
        f"{entry.label} ({entry.statistics[ID_ACCURACY].n})"
        for entry in bed.entries
        if entry.statistics[ID_ACCURACY].n < len(bed.seeds)
    ]
    if fewer:
        text += f" Fewer: {enumeration(fewer)}."
    return text


def missing_statement(bed: Bed, every: Iterable[Entry]) -> str:
    """Which entries of other beds, and which sets of some rows, are missing."""
    here = {entry.number for entry in bed.entries}
    absent = list(dict.fromkeys(entry.label for entry in every if entry.number not in here))
    text = f"Not measured on this bed: {enumeration(absent)}." if absent else ""
    points = [point for row in bed.rows for point in row["points"]]
    lacking = {}
    for part, names in (("shifts", bed.shifts), ("corruptions", bed.corruptions)):
        for name in names:
            lacking[name] = sum(name not in (point.get(part) or {}) for point in points)
    gaps = [f"{name} in {number} of {len(points)}" for name, number in lacking.items() if number]
    if gaps:
        text += f" Points that were not measured on every set: {enumeration(gaps)}; a mean is given only where all its parts are."
    return text.strip()


@dataclass(frozen=True)
class Search:
    """
    The hyper-parameters that a strategy was tried with on a bed.

    Attributes:
        strategy (`str`): The strategy.
        trials (`list[tuple[Mapping, float | None, float | None, bool]]`): Options, validation accuracy, seconds, whether chosen.
        best (`bool`): Whether the choice has the highest validation accuracy of all that have one.
    """

    strategy: str
    trials: list[tuple[Mapping[str, Any], Any, Any, bool]]
    best: bool


def searches(bed: Bed) -> list[Search]:
    """The trials of each strategy of a bed that had any."""
    by_strategy: dict[str, list[Mapping[str, Any]]] = {}
    for row in bed.rows:
        by_strategy.setdefault(row["cell"]["strategy"], []).append(row)
    found = []
    for strategy, rows in by_strategy.items():
        trials: list[Mapping[str, Any]] = []
        for row in rows:
            trials += [trial for trial in row.get("trials") or () if trial not in trials]
        # One run with nothing set is no search.
        if any(trial["options"] for trial in trials):
            chosen = [row.get("options") or {} for row in rows]
            listed = [
                (
                    trial["options"],
                    trial.get("validation_accuracy"),
                    trial.get("seconds"),
                    any(_ran_with(options, trial) for options in chosen),
                )
                for trial in trials
            ]
            known = [accuracy for _, accuracy, _, _ in listed if accuracy is not None]
            best = all(
                any(_ran_with(options, trial) and trial.get("validation_accuracy") == max(known) for trial in trials)
                if known
                else len(trials) == 1
                for options in chosen
            )
            found.append(Search(strategy, listed, best))
    return found


def _ran_with(options: Mapping[str, Any], trial: Mapping[str, Any]) -> bool:
    # A row has all hyper-parameters, a trial those that it set.
    return trial["options"].items() <= options.items()


def fairness_statement(bed: Bed) -> str:
    """Whether all strategies had the same number of trials, and whether each choice is the best by validation."""
    found = searches(bed)
    if not found:
        return "No trials of hyper-parameters were recorded: each strategy ran with the options that it was given."
    numbers: dict[int, list[str]] = {}
    for search in found:
        numbers.setdefault(len(search.trials), []).append(search.strategy)
    if len(numbers) == 1:
        number = next(iter(numbers))
        text = (
            f"The same budget for every strategy that has hyper-parameters: {_number(number, 'trial', 'trials')} each."
        )
    else:
        text = "The budgets differ: " + "; ".join(
            f"{_number(number, 'trial', 'trials')} for {enumeration(names)}"
            for number, names in sorted(numbers.items())
        )
        text += "."
    others = list(
        dict.fromkeys(
            row["cell"]["strategy"] for row in bed.rows if row["cell"]["strategy"] not in {s.strategy for s in found}
        )
    )
    if others:
        text += f" Nothing was tried for {enumeration(others)}."
    odd = [search.strategy for search in found if not search.best]
    if odd:
        return f"{text} The choice is not the trial of the highest validation accuracy for {enumeration(odd)}."
    return f"{text} Each choice is the trial of the highest validation accuracy."


def alpha_statement(bed: Bed) -> str:
    """How the points of the curves were chosen."""
    if not bed.curves:
        return ""
    rules = sorted({str(row.get("selection")) for row in bed.rows if row.get("selection")})
    by = f" (selection: {enumeration(rules)})" if rules else ""
    return (
        f"The α of each mixing strategy, the share of the pre-trained model, was chosen for each seed on validation data of the "
        f"in-distribution set only{by}: the largest whose validation accuracy is within one standard error of the highest. The "
        "paper's α is given beside it. Other points of a "
        "curve are drawn, but take no part in the table: to take the best of them would be to choose by test data."
    )


def chosen_alphas(bed: Bed) -> list[tuple[str, str, str, str, str, str]]:
    """
    Of each mixing strategy and seed: strategy, seed, the chosen alpha, validation accuracy there and at alpha 0, and the
    highest of the curve with its alpha.
    """
    found = []
    for row in bed.rows:
        if row["cell"]["strategy"] not in bed.curves:
            continue
        # A missing alpha is the unmixed end.
        points = [
            (float(point["alpha"] or 0), point.get("validation_accuracy"), point["chosen"]) for point in row["points"]
        ]
        chosen = next((point for point in points if point[2]), None)
        unmixed = next((accuracy for alpha, accuracy, _ in points if alpha == 0), None)
        highest = max((point for point in points if point[1] is not None), key=lambda point: point[1], default=None)
        found.append(
            (
                row["cell"]["strategy"],
                str(row["cell"]["seed"]),
                format_alpha(chosen[0]) if chosen else "–",
                optional_percent(chosen[1] if chosen else None),
                optional_percent(unmixed),
                f"{optional_percent(highest[1])} (α {format_alpha(highest[0])})" if highest else "–",
            )
        )
    return found


def optional_percent(value: Any) -> str:
    """A fraction in per cent, a dash for none."""
    return "–" if value is None else percent(value)


def format_options(options: Mapping[str, Any]) -> str:
    """Hyper-parameters as people write them."""
    return ", ".join(f"{name} = {value}" for name, value in options.items()) or "defaults"


def enumeration(items: Sequence[str]) -> str:
    """A list as a part of a sentence."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
