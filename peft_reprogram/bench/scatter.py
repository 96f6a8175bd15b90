"""Two measures of a bed against each other, as a drawing that takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from .label_placement import place_labels
from .summary import Bed, Entry, Key, Point


# Okabe and Ito's colours, which colour-blind readers can tell apart too; the second is for dark pages.
PALETTE = (
    ("#0072b2", "#56b4e9"),
    ("#c44e00", "#ff8a3d"),
    ("#00805d", "#2ecc9b"),
    ("#b3457f", "#ee9ac6"),
    ("#946200", "#f0c14b"),
    ("#5b4bb5", "#aba0ff"),
    ("#7a1f1f", "#ff9d94"),
    ("#33691e", "#a5d66f"),
)
LINE_STYLES = ("-", "--", ":")
MARKERS = {"only": "o", "unmixed": "o", "paper": "s", "chosen": "^"}

# Colours of the page that matplotlib cannot know are drawn in stand-ins and put in afterwards.
_INK, _SOFT, _LINE, _PAPER = "#00a001", "#00a002", "#00a003", "#00a004"
_NAMES = {_INK: "ink", _SOFT: "soft", _LINE: "line", _PAPER: "paper"}
_FIRST_COLOR = 0x00B000
_FONT_SIZE = 8.0
_RADIUS = 2.9
_RING = 6.0


def color_index(strategies: list[str]) -> dict[str, int]:
    """Numbers the mixing strategies; number `i` is drawn in colour `i` of the palette, which begins anew after its end."""
    return {strategy: i for i, strategy in enumerate(strategies)}


def scatter(
    bed: Bed, x: tuple[Key, str], y: tuple[Key, str], colors: Mapping[str, int], prefix: str
) -> Optional[str]:  # fmt: skip
    """
    Draws the entries of a bed, numbered as in its table, and the curves of the mixing strategies.

    Args:
        bed ([`Bed`]): The bed.
        x, y (`tuple[Key, str]`): What the axes show, with their titles.
        colors (`Mapping[str, int]`): See [`color_index`].
        prefix (`str`): Makes the names within the drawing unique on the page; letters, digits and hyphens.

    Returns:
        `str`: An `<svg>` element whose colours are the custom properties `--ink`, `--soft`, `--line`, `--paper`, `--c0` .. `--c7`
        of the page; `None` if no entry has both measures.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    entries = [entry for entry in bed.entries if x[0] in entry.statistics and y[0] in entry.statistics]
    if not entries:
        return None
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the drawings of the report need matplotlib: pip install 'peft-reprogram[plots]'."
        ) from error

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": _FONT_SIZE, "path.simplify": False}):
        figure = Figure(figsize=(4.3, 3.8), dpi=72)
        axes = figure.add_axes((0.125, 0.12, 0.86, 0.865))
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_SOFT)
        axes.tick_params(color=_SOFT, labelcolor=_SOFT, labelsize=_FONT_SIZE, length=3)
        axes.grid(color=_LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{x[1]} (%)", color=_INK, fontsize=_FONT_SIZE + 1)
        axes.set_ylabel(f"{y[1]} (%)", color=_INK, fontsize=_FONT_SIZE + 1)
        along = _draw_curves(axes, bed, x[0], y[0], colors)
        front = {entry.number for entry in bed.front}
        for entry in entries:
            _draw_entry(axes, entry, _place(entry, x[0], y[0]), colors, entry.number in front)
            _draw_spread(axes, entry, x[0], y[0])
        axes.margins(0.07)
        figure.draw_without_rendering()
        _label(axes, entries, np.array([_place(entry, x[0], y[0]) for entry in entries]), front, along, colors)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _for_page(buffer.getvalue(), prefix)


def _place(point: Point, x: Key, y: Key) -> tuple[float, float]:
    return 100 * point.statistics[x].mean, 100 * point.statistics[y].mean


def _color(entry: Entry, colors: Mapping[str, int]) -> str:
    if entry.strategy not in colors:
        return _INK if entry.strategy == "zero_shot" else _SOFT
    return _palette_color(colors[entry.strategy])


def _palette_color(index: int) -> str:
    return f"#{_FIRST_COLOR + index % len(PALETTE):06x}"


def _draw_curves(axes: Any, bed: Bed, x: Key, y: Key, colors: Mapping[str, int]) -> np.ndarray:
    """Returns points along the curves, so close together that no label passes between them."""
    along = []
    for strategy, points in bed.curves.items():
        places = [_place(point, x, y) for point in points if x in point.statistics and y in point.statistics]
        if places:
            index = colors[strategy]
            style = LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)]
            axes.plot(
                *zip(*places),
                color=_palette_color(index),
                linewidth=1.3,
                linestyle=style,
                marker=".",
                markersize=3.5,
                zorder=2,
            )
            steps = np.linspace(0, len(places) - 1, 1 + 6 * (len(places) - 1))
            along += list(zip(*(np.interp(steps, range(len(places)), values) for values in zip(*places))))
    return np.array(along).reshape(-1, 2)


def _draw_entry(
    axes: Any, entry: Entry, place: tuple[float, float], colors: Mapping[str, int], on_front: bool
) -> None:
    color = _color(entry, colors)
    star = entry.strategy == "zero_shot"
    axes.plot(
        *place,
        marker="*" if star else MARKERS[entry.kind],
        markersize=11 if star else 2.3 * _RADIUS if entry.kind == "chosen" else 2 * _RADIUS,
        color=color,
        markeredgecolor=_PAPER,
        markeredgewidth=0.6,
        linestyle="none",
        zorder=4,
    )
    if on_front:
        axes.plot(
            *place,
            marker="o",
            markersize=2 * _RING,
            color="none",
            markeredgecolor=color,
            markeredgewidth=1,
            zorder=3,
        )


def _draw_spread(axes: Any, entry: Entry, x: Key, y: Key) -> None:
    horizontal, vertical = (100 * (entry.statistics[key].std or 0.0) for key in (x, y))
    axes.errorbar(
        *_place(entry, x, y),
        xerr=horizontal,
        yerr=vertical,
        fmt="none",
        ecolor=_SOFT,
        elinewidth=0.5,
        alpha=0.45,
        zorder=1,
    )


def _label(
    axes: Any,
    entries: list[Entry],
    places: np.ndarray,
    front: set[int],
    along: np.ndarray,
    colors: Mapping[str, int],
) -> None:
    from matplotlib.transforms import IdentityTransform

    # A drawing in SVG has 72 dots an inch: what is placed here in dots lies where it is drawn.
    dots = axes.transData.transform(places)
    obstacles = np.concatenate([dots, axes.transData.transform(along)]) if len(along) else dots
    radii = [_RING if entry.number in front else _RADIUS for entry in entries]
    texts = [str(entry.number) for entry in entries]
    sizes = np.array([[0.62 * _FONT_SIZE * len(text) + 1, _FONT_SIZE] for text in texts])
    box = axes.bbox
    limits = (box.x0, box.x1, box.y0, box.y1)
    # A line is thinner than a marker, and a label that touches one can still be read.
    centres = place_labels(dots, sizes, obstacles, limits, np.array(radii + [1.0] * len(along)))
    for entry, text, dot, centre in zip(entries, texts, dots, centres):
        if np.linalg.norm(centre - dot) > 1.8 * _FONT_SIZE:
            # From the marker's edge to the label's.
            step = (centre - dot) / np.linalg.norm(centre - dot)
            axes.plot(
                *zip(dot + (_RADIUS + 0.5) * step, centre - 0.62 * _FONT_SIZE * step),
                transform=IdentityTransform(),
                color=_SOFT,
                linewidth=0.5,
                zorder=3,
                scalex=False,
                scaley=False,
            )
        axes.text(
            *centre,
            text,
            transform=IdentityTransform(),
            color=_color(entry, colors) if entry.strategy in colors else _INK,
            fontsize=_FONT_SIZE,
            ha="center",
            va="center_baseline",
            zorder=5,
        )


def _for_page(drawing: str, prefix: str) -> str:
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", drawing)
    for stand_in, name in _NAMES.items():
        drawing = drawing.replace(stand_in, f"var(--{name})")
    for i in range(len(PALETTE)):
        drawing = drawing.replace(_palette_color(i), f"var(--c{i})")
    # It grows and shrinks with the page.
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawing, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
