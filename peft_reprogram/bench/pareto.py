"""What cannot be bettered in one respect without loss in another."""

from __future__ import annotations

from typing import Any

import numpy as np


def pareto_front(points: Any) -> np.ndarray:
    """
    Which points lie on the Pareto front: those that no other point dominates, that is, matches in every respect and betters
    in at least one. Points that agree in every respect do not dominate each other, so all of them stay.

    Args:
        points (array-like of `float`): One row a point, one column a respect, larger is better, shape `(N, K)`, finite,
            K >= 1. N may be 0.

    Returns:
        `np.ndarray`: `bool`, shape `(N,)`.

    Raises:
        ValueError: If the shape is another, or a value is not finite.
    """
    values = _as_points(points)
    front = np.ones(len(values), bool)
    for i, point in enumerate(values):
        front[i] = not np.any(np.all(values >= point, axis=1) & np.any(values > point, axis=1))
    return front


def frontier_area(points: Any, lower: tuple[float, float], upper: tuple[float, float]) -> float:
    """
    Area under the Pareto front of points in the plane, within a box: the two-dimensional hypervolume with `lower` as its
    reference point.

    The convention is the staircase: a point stands for what is at most as good as itself in both respects, and nothing is
    interpolated between two points, since there need not be a model there. A point beyond `upper` counts as if it lay on the
    edge of the box, a point that does not better `lower` in both respects adds nothing. Divided by the area of the box it is
    a share of it; areas are comparable only for the same limits.

    Args:
        points (array-like of `float`): Shape `(N, 2)`, larger is better, finite.
        lower (`tuple[float, float]`): Lower limits of the two axes.
        upper (`tuple[float, float]`): Upper limits, each above its lower limit.

    Returns:
        `float`: From 0 (no point in the box) to the area of the box (a point at or beyond `upper`).

    Raises:
        ValueError: If the shape is another, a value is not finite, or limits are not in order.

    Example:

    ```py
    >>> frontier_area([[0.5, 1.0], [1.0, 0.5]], lower=(0, 0), upper=(1, 1))
    0.75
    ```
    """
    values = _as_points(points)
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if values.shape[1] != 2:
        raise ValueError(f"`points` must have two columns, got shape {values.shape}.")
    if low.shape != (2,) or high.shape != (2,) or not np.all(np.isfinite([low, high])) or not np.all(low < high):
        raise ValueError(f"`lower` must hold two finite limits, each below that of `upper`, got {lower} and {upper}.")
    sides = np.clip(values, low, high) - low
    area, height = 0.0, 0.0
    # From the right: each point adds the strip by which it rises above all that reach further.
    for width, level in sides[np.lexsort((sides[:, 1], sides[:, 0]))[::-1]]:
        area += width * max(level - height, 0.0)
        height = max(height, level)
    return float(area)


def _as_points(points: Any) -> np.ndarray:
    values = np.asarray(points, np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            f"`points` must hold one row a point and one column a respect, shape (N, K) with K >= 1, got {values.shape}."
        )
    if not np.all(np.isfinite(values)):
        raise ValueError("`points` must be finite: leave out what was not measured in every respect.")
    return values
