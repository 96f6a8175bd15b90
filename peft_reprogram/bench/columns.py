"""What the big table shows, and how a cell of it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

from .summary import (
    EFFECTIVE_ROBUSTNESS,
    ID_ACCURACY,
    MEAN_SHIFT,
    TRAINED_PARAMETERS,
    Bed,
    Key,
    Statistic,
    within_noise,
)


MISSING = "–"


@dataclass(frozen=True)
class Column:
    """
    A column.

    Attributes:
        title (`str`): Its head.
        key (`Key`): What it shows.
        format (callable): Turns a value into text.
        better (`int`): 1 if larger is better, -1 if smaller is, 0 where no best is marked.
    """

    title: str
    key: Key
    format: Callable[[float], str]
    better: int = 0


@dataclass(frozen=True)
class Cell:
    """
    A cell.

    Attributes:
        text (`str`): The mean, or a dash where nothing was measured.
        spread (`str`): The standard deviation; empty where there is none.
        seeds (`int`, *optional*): How many seeds it rests on, where these are fewer than the bed has.
        mark (`str`): `"best"`, `"noise"` (within noise of the best) or empty.
        share (`float`, *optional*): The mean as it was measured.
    """

    text: str
    spread: str = ""
    seeds: Optional[int] = None
    mark: str = ""
    share: Optional[float] = None


def percent(value: float) -> str:
    """A fraction in per cent."""
    return f"{100 * value:.1f}"


def signed_percent(value: float) -> str:
    """A difference of fractions in per cent."""
    text = f"{100 * value:+.1f}"
    return {"+0.0": "0.0", "-0.0": "0.0"}.get(text, text.replace("-", "−"))


def count(value: float) -> str:
    """A number of things with a prefix of the SI."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What would round to a thousand belongs to the next prefix.
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """A number of bytes."""
    text = count(value)
    return f"{text}B" if " " in text else f"{text} B"


def seconds(value: float) -> str:
    """A duration in seconds."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def columns(score: str, beds: Sequence[Bed]) -> list[Column]:
    """
    The columns of the big table: those of which anything was measured anywhere, so that the tables of all beds look alike.

    Args:
        score (`str`): The out-of-distribution score to show.
        beds (sequence of [`Bed`]): All beds.

    Returns:
        `list[Column]`
    """
    candidates = [
        Column("ID accuracy", ID_ACCURACY, percent, 1),
        Column("mean shift", MEAN_SHIFT, percent, 1),
        Column("balanced shift", ("shift", "balanced_accuracy"), percent, 1),
        Column("corruptions", ("corruption",), percent, 1),
        Column("effective robustness", EFFECTIVE_ROBUSTNESS, signed_percent, 1),
        Column("OOD AUROC", ("ood", score, "auroc"), percent, 1),
        Column("FPR95", ("ood", score, "fpr"), percent, -1),
        Column("ECE", ("id", "ece"), percent, -1),
        Column("trained parameters", TRAINED_PARAMETERS, count),
        Column("adapter size", ("cost", "adapter_bytes"), size),
        Column("training (s)", ("cost", "training_seconds"), seconds),
        Column("peak memory", ("cost", "peak_memory_bytes"), size),
    ]
    entries = [entry for bed in beds for entry in bed.entries]
    return [column for column in candidates if any(column.key in entry.statistics for entry in entries)]


def cells(bed: Bed, column: Column) -> list[Cell]:
    """
    A column of a bed, one cell for each entry.

    Args:
        bed ([`Bed`]): The bed.
        column ([`Column`]): The column.

    Returns:
        `list[Cell]`: In the order of `bed.entries`. The best mean is marked, and what agrees with it in all digits that are
        stored; so is what is [`within_noise`] of it.
    """
    statistics = [entry.statistics.get(column.key) for entry in bed.entries]
    measured = [statistic for statistic in statistics if statistic is not None]
    best = max(measured, key=lambda statistic: column.better * statistic.mean, default=None)
    found = []
    for statistic in statistics:
        if statistic is None:
            found.append(Cell(MISSING))
            continue
        mark = _mark(statistic, best) if best is not None and column.better else ""
        fewer = statistic.n if statistic.n < len(bed.seeds) else None
        found.append(Cell(column.format(statistic.mean), _spread(statistic, column), fewer, mark, statistic.mean))
    return found


def _mark(statistic: Statistic, best: Statistic) -> str:
    if statistic.mean == best.mean:
        return "best"
    return "noise" if within_noise(statistic, best) else ""


def _spread(statistic: Statistic, column: Column) -> str:
    if statistic.std is None:
        return ""
    # A cost that is the same in every seed needs no spread; a rate that is, does: it says that there is none.
    if not column.better and statistic.std < 1e-9 * abs(statistic.mean) + 1e-12:
        return ""
    return column.format(statistic.std).lstrip("+")
