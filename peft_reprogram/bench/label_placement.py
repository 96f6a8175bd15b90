"""Where to write labels of points that lie close together."""

from __future__ import annotations

import numpy as np


# In units of the label's height. The nearest place that is free wins, so few labels go far.
DISTANCES = (1.1, 1.3, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.5)
DIRECTIONS = 16


def place_labels(
    points: np.ndarray,
    sizes: np.ndarray,
    obstacles: np.ndarray,
    limits: tuple[float, float, float, float],
    radii: np.ndarray,
) -> np.ndarray:
    """
    Places labels near their points so that they overlap neither each other nor a marker, as far as there is room. Greedy: the
    most crowded point first, each label at the place of least overlap, and among equal places at the nearest.

    Args:
        points (`np.ndarray`): Points to label, shape `(N, 2)`, in the units of the drawing.
        sizes (`np.ndarray`): Width and height of the labels, shape `(N, 2)`.
        obstacles (`np.ndarray`): Centres of markers to keep clear of, shape `(M, 2)`; those of `points` among them.
        limits (`tuple[float, float, float, float]`): Left, right, bottom and top edge of the drawing.
        radii (`np.ndarray`): Of these markers, shape `(M,)`.

    Returns:
        `np.ndarray`: Centres of the labels, shape `(N, 2)`.
    """
    places = np.array(points, np.float64)
    if not len(points):
        return places
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS + np.pi / 4
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    gaps = np.linalg.norm(points[:, None] - obstacles[None], axis=-1)
    crowd = np.sum(gaps < 4 * sizes[:, 1:], axis=1)
    placed: list[int] = []
    for i in np.argsort(-crowd, kind="stable"):
        half = sizes[i] / 2
        steps = np.concatenate([circle * distance for distance in DISTANCES]) * half[1] * 2
        # A wide label keeps the same gap at its sides.
        candidates = points[i] + steps + np.sign(np.round(steps, 9)) * [max(half[0] - half[1], 0), 0]
        outside = np.maximum(limits[0] - (candidates[:, 0] - half[0]), candidates[:, 0] + half[0] - limits[1])
        outside = np.maximum(
            outside, np.maximum(limits[2] - (candidates[:, 1] - half[1]), candidates[:, 1] + half[1] - limits[3])
        )
        cost = 100.0 * np.maximum(outside, 0)
        cost += 10 * _overlap(candidates, half, obstacles, np.repeat(radii[:, None], 2, axis=1)).sum(axis=1)
        if placed:
            cost += 20 * _overlap(candidates, half, places[placed], sizes[placed] / 2).sum(axis=1)
        cost += 0.02 * np.linalg.norm(steps, axis=1)
        places[i] = candidates[np.argmin(cost)]
        placed.append(int(i))
    return places


def _overlap(centres: np.ndarray, half: np.ndarray, others: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Area that boxes have in common, shape `(centres, others)`."""
    sides = half + halves[None] - np.abs(centres[:, None] - others[None])
    limits = 2 * np.minimum(half, halves)[None]
    return np.prod(np.clip(sides, 0, limits), axis=-1)
