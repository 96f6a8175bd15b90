"""The one core of all OOD metrics: how many ID and OOD scores there are at each distinct value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import as_scores


def _no_values() -> np.ndarray:
    return np.empty(0, np.float64)


def _no_counts() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class ScoreCounts:
    """
    Tie-grouped counts of confidence-like scores (larger = more in-distribution), from which every metric of OOD
    detection follows. Counts of parts add up to the counts of the whole, in any order:

    ```py
    counts = sum((ScoreCounts.from_scores(id_part, ood_part) for id_part, ood_part in parts), ScoreCounts())
    ood_metrics(counts)
    ```

    *Exact mode* (`max_groups=None`) keeps every distinct value. *Binned mode* keeps at most `max_groups` groups, so that
    10^8 scores over any number of processes need constant memory: it stays exact while the distinct values fit, then
    rounds down to multiples of the smallest power of two (`resolution`) with which they fit. No range has to be known
    beforehand, and the result does not depend on how the scores were divided. The error that binning makes is bounded
    rigorously, from the counts themselves, by [`ood_bounds`].

    Attributes:
        thresholds (`np.ndarray`): The distinct values, ascending, float64, shape `(G,)`; lower edges of bins if binned.
        id_counts (`np.ndarray`): Number of ID scores in each group, int64, shape `(G,)`.
        ood_counts (`np.ndarray`): Number of OOD scores in each group, int64, shape `(G,)`.
        max_groups (`int`, *optional*): The most groups to keep; `None` is the exact mode.
        resolution (`float`): Width of a bin; 0.0 as long as the counts are exact.
    """

    thresholds: np.ndarray = field(default_factory=_no_values)
    id_counts: np.ndarray = field(default_factory=_no_counts)
    ood_counts: np.ndarray = field(default_factory=_no_counts)
    max_groups: int | None = None
    resolution: float = 0.0

    @classmethod
    def from_scores(cls, id_scores: Any = (), ood_scores: Any = (), *, max_groups: int | None = None) -> ScoreCounts:
        """
        Counts scores. Either side may be empty here: a process may have seen one side only.

        Args:
            id_scores (array-like): Scores of in-distribution samples, shape `(n_id,)`, finite.
            ood_scores (array-like): Scores of out-of-distribution samples, shape `(n_ood,)`, finite.
            max_groups (`int`, *optional*): At least 4; see the class. 65536 groups take 1.5 MiB.

        Raises:
            ValueError: If a side is not a finite one-dimensional array, or `max_groups` is below 4.
        """
        if max_groups is not None and max_groups < 4:
            raise ValueError(f"`max_groups` must be at least 4, or None for exact counts; got {max_groups}.")
        ids = np.sort(as_scores("id_scores", id_scores, allow_empty=True))
        oods = np.sort(as_scores("ood_scores", ood_scores, allow_empty=True))
        values = np.concatenate([ids, oods])
        # Two sorted runs: the stable sort (timsort) finds them and only merges, which is many times cheaper than one
        # argsort of everything, while the two plain sorts above run vectorised.
        order = np.argsort(values, kind="stable")
        values = values[order]
        last = np.flatnonzero(np.append(values[1:] != values[:-1], True)) if values.size else np.empty(0, np.int64)
        id_below = np.cumsum(order < len(ids))[last]
        id_counts = np.diff(id_below, prepend=0)
        ood_counts = np.diff(last, prepend=-1) - id_counts
        return cls(values[last], id_counts, ood_counts, max_groups)._fitted()

    @property
    def n_id(self) -> int:
        """Number of ID scores."""
        return int(self.id_counts.sum())

    @property
    def n_ood(self) -> int:
        """Number of OOD scores."""
        return int(self.ood_counts.sum())

    @property
    def tied_fraction(self) -> float:
        """Fraction of all scores that share their value (their bin, if binned) with at least one other score."""
        sizes = self.id_counts + self.ood_counts
        total = int(sizes.sum())
        return float(1 - np.count_nonzero(sizes == 1) / total) if total else 0.0

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        if not isinstance(other, ScoreCounts):
            return NotImplemented
        resolution = max(self.resolution, other.resolution)
        limits = [limit for limit in (self.max_groups, other.max_groups) if limit is not None]
        values = np.concatenate([_floor(self.thresholds, resolution), _floor(other.thresholds, resolution)])
        order = np.argsort(values, kind="stable")
        merged = ScoreCounts(
            values[order],
            np.concatenate([self.id_counts, other.id_counts])[order],
            np.concatenate([self.ood_counts, other.ood_counts])[order],
            min(limits, default=None),
            resolution,
        )
        return merged._grouped()._fitted()

    def _grouped(self) -> ScoreCounts:
        """Joins neighbours of the same threshold."""
        values = self.thresholds
        if not values.size:
            return self
        first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        return ScoreCounts(
            values[first],
            np.add.reduceat(self.id_counts, first),
            np.add.reduceat(self.ood_counts, first),
            self.max_groups,
            self.resolution,
        )

    def _fitted(self) -> ScoreCounts:
        """Coarsens as little as `max_groups` demands."""
        if self.max_groups is None or len(self.thresholds) <= self.max_groups:
            return self
        # Bins of powers of two nest, so the number of occupied bins falls as they widen, and a part never needs wider
        # bins than the whole: that is why the smallest sufficient width makes merging independent of the order.
        low = int(np.log2(self.resolution)) if self.resolution else -1074
        high = 1023
        while low < high:
            middle = (low + high) // 2
            values = _floor(self.thresholds, 2.0**middle)
            if 1 + np.count_nonzero(values[1:] != values[:-1]) <= self.max_groups:
                high = middle
            else:
                low = middle + 1
        resolution = 2.0**high
        return ScoreCounts(
            _floor(self.thresholds, resolution), self.id_counts, self.ood_counts, self.max_groups, resolution
        )._grouped()


def _floor(values: np.ndarray, resolution: float) -> np.ndarray:
    """Rounds down to multiples of `resolution`, a power of two (or 0: leave as is). Exact: no rounding error."""
    if not resolution:
        return values
    exponent = int(np.log2(resolution))
    with np.errstate(over="ignore"):
        quotient = np.ldexp(values, -exponent)
        # A tiny negative value may have underflowed to zero, but lies in the bin below it all the same.
        floor = np.where((quotient == 0) & (values < 0), -1.0, np.floor(quotient))
        # From 2^53 on a float64 is a multiple of the resolution already (and the quotient may have overflowed).
        return np.where(np.abs(quotient) < 2.0**53, np.ldexp(floor, exponent), values)
