from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union


def depth_figure(
    values: dict[str, float],
    *,
    ylabel: str,
    title: str,
    points: Sequence[tuple[int, float]] = (),
    marked: Sequence[str] = (),
    baseline: Optional[tuple[str, float]] = None,
    path: Optional[Union[str, os.PathLike]] = None,
) -> Any:
    """
    A quantity by depth.

    Args:
        values (`dict[str, float]`): Heights by label, in the order of depth.
        ylabel (`str`): What they are.
        title (`str`): Title.
        points (`Sequence[tuple[int, float]]`, *optional*): Further points `(position, height)`.
        marked (`Sequence[str]`, *optional*): Labels to stress.
        baseline (`tuple[str, float]`, *optional*): Name and height of a horizontal line.
        path (`str` or `os.PathLike`, *optional*): File to write to.

    Returns:
        `matplotlib.figure.Figure`
    """
    from matplotlib.figure import Figure

    labels, heights = list(values), list(values.values())
    figure = Figure(figsize=(max(5.0, 0.45 * len(labels) + 2), 3.6), layout="constrained")
    axes = figure.add_subplot()
    if points:
        axes.scatter(
            [position for position, _ in points],
            [height for _, height in points],
            s=12,
            color="0.7",
            label="tensors",
            zorder=1,
        )
    axes.plot(range(len(labels)), heights, marker="o", color="C0", zorder=2)
    chosen = [index for index, label in enumerate(labels) if label in marked]
    if chosen:
        axes.scatter(chosen, [heights[i] for i in chosen], s=90, marker="*", color="C3", label="chosen", zorder=3)
    if baseline is not None:
        axes.axhline(baseline[1], color="0.4", linestyle="--", linewidth=1, label=baseline[0])
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    if points or chosen or baseline is not None:
        axes.legend(frameon=False)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure
