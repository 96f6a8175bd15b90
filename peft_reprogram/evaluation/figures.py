"""Results as pictures. Each function returns a matplotlib `Figure`; matplotlib is imported when one is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from ..atomic import replacing
from .curves import ROC_GRID


if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import Results


# Okabe and Ito's colours, which colour-blind readers can tell apart too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LINE_STYLES = ("-", "--", ":")
ID_COLOR, OOD_COLOR = COLORS[0], COLORS[1]


def roc_curves(results: Results, score: Optional[str] = None, model: Optional[str] = None) -> Figure:
    """
    ROC curves of one score, one for each out-of-distribution set; ID positive.

    Args:
        results ([`Results`]): With out-of-distribution sets.
        score (`str`, *optional*): The score; the best by mean AUROC if left out.
        model (`str`, *optional*): The model; may be left out if there is only one.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: If model or score is not in the results.
    """
    score = _score(results, score, model)
    measures = results.measures(model)
    figure = _figure(5.2, 5)
    axes = figure.subplots()
    for i, (name, curve) in enumerate(measures.curves["scores"][score]["ood"].items()):
        auroc = measures.ood[score][name]["auroc"]
        # The curve begins at the origin, also where some images score above all of the other side.
        axes.plot([0, *ROC_GRID], [0, *curve["tpr"]], **_line(i), label=f"{name} ({100 * auroc:.1f})")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
    tpr = results.conventions["tpr"]
    axes.axhline(tpr, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    axes.set(
        xlabel="false positive rate (OOD taken for ID)", ylabel="true positive rate (ID)", xlim=(0, 1), ylim=(0, 1.005)
    )
    axes.set_title(f"{score}, {_name(results, model)}")
    axes.legend(title="OOD set (AUROC in %)", loc="lower right", fontsize="small", title_fontsize="small")
    return figure


def score_histograms(results: Results, score: Optional[str] = None, model: Optional[str] = None) -> Figure:
    """
    How a score distributes on in-distribution images and on each out-of-distribution set.

    Args:
        results, score, model: As for [`roc_curves`].

    Returns:
        `matplotlib.figure.Figure`: One panel for each set.
    """
    score = _score(results, score, model)
    measures = results.measures(model)
    curves = measures.curves["scores"][score]
    columns = min(4, len(curves["ood"]))
    rows = -(-len(curves["ood"]) // columns)
    figure = _figure(2.6 * columns + 0.6, 2.0 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    edges = np.linspace(curves["range"][0], curves["range"][1], len(curves["id"]) + 1)
    for panel, (name, curve) in zip(panels.flat, curves["ood"].items()):
        for counts, color, label in ((curves["id"], ID_COLOR, "ID"), (curve["counts"], OOD_COLOR, "OOD")):
            share = np.asarray(counts) / sum(counts)
            panel.stairs(share, edges, fill=True, color=color, alpha=0.45, label=label)
            panel.stairs(share, edges, color=color, linewidth=0.8)
        panel.set_title(f"{name}: AUROC {100 * measures.ood[score][name]['auroc']:.1f} %", fontsize="small")
        panel.set_yticks([])
        panel.tick_params(labelsize="small")
    for column in range(columns):
        last = (len(curves["ood"]) - 1 - column) // columns
        panels[last, column].tick_params(labelbottom=True)
        for panel in panels[last + 1 :, column]:
            panel.remove()
    panels.flat[0].legend(fontsize="small")
    figure.supxlabel(f"{score} (larger = more in-distribution)", fontsize="medium")
    figure.suptitle(f"{score}, {_name(results, model)}", fontsize="medium")
    return figure


def reliability_diagram(results: Results, model: Optional[str] = None) -> Figure:
    """
    Accuracy against confidence on the in-distribution set, and how many images have which confidence.

    Args:
        results ([`Results`]): The results.
        model (`str`, *optional*): The model; may be left out if there is only one.

    Returns:
        `matplotlib.figure.Figure`
    """
    measures = results.measures(model)
    bins = {name: np.asarray(values) for name, values in measures.curves["reliability"].items()}
    width = 1 / measures.calibration["bins"]
    left = bins["upper"] - width
    figure = _figure(4.6, 5)
    diagram, counts = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (4, 1)})
    diagram.bar(left, bins["accuracy"], width, align="edge", color=ID_COLOR, edgecolor="white", label="accuracy")
    gap = bins["confidence"] - bins["accuracy"]
    diagram.bar(
        left, gap, width, bottom=bins["accuracy"], align="edge", color=OOD_COLOR, alpha=0.35, label="gap to confidence"
    )
    diagram.plot([0, 1], [0, 1], color="0.4", linewidth=0.8)
    diagram.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    diagram.set_title(f"{_name(results, model)}: ECE {100 * measures.calibration['ece']:.1f} %")
    diagram.legend(loc="upper left", fontsize="small")
    counts.bar(left, bins["count"], width, align="edge", color="0.6", edgecolor="white")
    counts.set(xlabel="confidence", ylabel="images")
    return figure


def shift_bars(results: Results) -> Figure:
    """
    Accuracy of each model on the in-distribution set and on each shift.

    Args:
        results ([`Results`]): The results.

    Returns:
        `matplotlib.figure.Figure`
    """
    sets = ["id", *(name for name, entry in results.sets.items() if entry["role"] == "shift")]
    figure = _figure(max(4.5, 1.2 + 0.32 * len(sets) * (len(results.models) + 1)), 3.6)
    axes = figure.subplots()
    width = 0.8 / len(results.models)
    for i, (model, measures) in enumerate(results.models.items()):
        accuracies = [100 * (measures.id if name == "id" else measures.shifts[name])["accuracy"] for name in sets]
        places = np.arange(len(sets)) + (i - (len(results.models) - 1) / 2) * width
        bars = axes.bar(places, accuracies, width, color=COLORS[i % len(COLORS)], label=model)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    # A character of the labels is about 0.09 inches wide.
    if 0.09 * max(map(len, sets)) < 0.8 * figure.get_figwidth() / len(sets):
        axes.set_xticks(range(len(sets)), sets)
    else:
        axes.set_xticks(range(len(sets)), sets, rotation=30, ha="right", rotation_mode="anchor")
    axes.set(ylabel="accuracy (%)", ylim=(0, 105))
    if len(results.models) > 1:
        figure.legend(loc="outside upper center", fontsize="small", ncols=3)
    else:
        axes.set_title(next(iter(results.models)))
    return figure


def corruption_heat_map(results: Results, model: Optional[str] = None) -> Figure:
    """
    Accuracy for each corruption and severity.

    Args:
        results ([`Results`]): With corruptions.
        model (`str`, *optional*): The model; may be left out if there is only one.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: If no corruption was measured.
    """
    measures = results.measures(model)
    if not measures.corruptions:
        raise ValueError("the results have no corruptions: evaluate with `corruptions`.")
    names = list(measures.corruptions)
    severities = list(next(iter(measures.corruptions.values())))
    accuracies = 100 * np.asarray([[measures.corruptions[name][s] for s in severities] for name in names])
    clean = 100 * measures.id["accuracy"]
    figure = _figure(2.6 + 0.62 * len(severities), 1.3 + 0.27 * len(names))
    axes = figure.subplots()
    highest = max(clean, float(accuracies.max()))
    image = axes.imshow(accuracies, aspect="auto", cmap="viridis", vmin=0, vmax=highest)
    for (row, column), value in np.ndenumerate(accuracies):
        color = "white" if value < highest / 2 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize="small", color=color)
    axes.set_xticks(range(len(severities)), severities)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(xlabel="severity")
    axes.set_title(f"{_name(results, model)}: accuracy (%)\nuncorrupted {clean:.1f}", fontsize="medium")
    figure.colorbar(image, ax=axes, fraction=0.06)
    return figure


def save_figures(
    results: Results, folder: Union[str, Path], score: Optional[str] = None, dpi: int = 120
) -> list[Path]:
    """
    Draw every figure that the results have something for, as PNG files.

    Args:
        results ([`Results`]): The results.
        folder (`str` or `Path`): Where to; created if needed.
        score (`str`, *optional*): The score of ROC curves and histograms; the best of each model by mean AUROC if left out.
        dpi (`int`, *optional*, defaults to 120): Dots an inch.

    Returns:
        `list[Path]`: The files.
    """
    folder = Path(folder)
    drawings: dict[str, Callable[[], Any]] = {}
    for model, measures in results.models.items():
        suffix = re.sub(r"[^\w.-]+", "_", model)
        drawings[f"reliability_{suffix}"] = partial(reliability_diagram, results, model)
        if measures.ood:
            drawings[f"roc_{suffix}"] = partial(roc_curves, results, score, model)
            drawings[f"histograms_{suffix}"] = partial(score_histograms, results, score, model)
        if measures.corruptions:
            drawings[f"corruptions_{suffix}"] = partial(corruption_heat_map, results, model)
    if any(entry["role"] == "shift" for entry in results.sets.values()):
        drawings["shifts"] = partial(shift_bars, results)
    paths = []
    for name, draw in drawings.items():
        path = folder / f"{name}.png"
        with replacing(path) as temporary:
            draw().savefig(temporary, dpi=dpi, format="png")
        paths.append(path)
    return paths


def _figure(width: float, height: float) -> Figure:
    # No pyplot: it keeps every figure alive and wants to know about screens.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _line(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)]}


def _name(results: Results, model: Optional[str]) -> str:
    return model if model is not None else next(iter(results.models))


def _score(results: Results, score: Optional[str], model: Optional[str]) -> str:
    ood = results.measures(model).ood
    if not ood:
        raise ValueError("the results have no out-of-distribution sets: evaluate with `ood`.")
    if score is None:
        return max(ood, key=lambda name: float(np.mean([metrics["auroc"] for metrics in ood[name].values()])))
    if score not in ood:
        raise ValueError(f"the score {score!r} was not measured; there are {', '.join(ood)}.")
    return score
