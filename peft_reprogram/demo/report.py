"""The demo's report: one HTML file that needs nothing else, readable in light and dark, on a desk and on a phone."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..data import ImagePreprocessor
    from .data import DemoData
    from .run import DemoRun


_STYLE = """
:root { color-scheme: light dark; --ink: #0f172a; --soft: #475569; --line: #cbd5e1; --paper: #ffffff; --mark: #ecfdf5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e8f0; --soft: #94a3b8; --line: #334155; --paper: #0b1220; --mark: #052e2b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; }
p, li { color: var(--soft); max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.best { background: var(--mark); font-weight: 600; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #ffffff; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .9rem; }
details { margin-top: 1rem; } summary { cursor: pointer; }
"""


def write_report(run: DemoRun, data: DemoData, preprocess: ImagePreprocessor, path: Path) -> None:
    """
    Writes the report; the file appears whole or not at all.

    Args:
        run ([`DemoRun`]): What was trained and measured.
        data ([`DemoData`]): For the pictures of what the sets hold.
        preprocess ([`ImagePreprocessor`]): For the pictures of what the reprogrammed model sees.
        path (`Path`): The HTML file.
    """
    from ..atomic import replacing
    from ..evaluation.figures import score_histograms, shift_bars
    from .run import SCORE

    histograms = "\n".join(
        _figure(score_histograms(run.results, SCORE, name), f"{name}: {SCORE} score of digits and of other images.")
        for name in run.results.models
    )
    body = f"""
<h1>Five ways to use a tiny CLIP on handwritten digits</h1>
<p>The model was pre-trained on drawn characters and shapes; the digits are real scans. Each adaptation saw 16 digits of each
class. What counts is not only the accuracy on further digits (ID), but what is left of it under shift, and whether images that
are no digits can be told by their score.</p>
<div class="scroll">{_summary_table(run)}</div>
<p>In per cent; AUROC of the {SCORE} score, digits positive. Best value of each column marked. One seed, {_count(run)} test
digits: differences of two or three points are within the noise.</p>
<h2>What the frame has learnt</h2>
{_figure(frame_figure(run, data, preprocess), "The trained frame (grey: no change; contrast raised to the full range), and digits as the reprogrammed model sees them.")}
<h2>Under shift</h2>
{_figure(shift_examples(data), "One test digit under each shift, and images of the out-of-distribution sets.")}
{_figure(shift_bars(run.results), "Accuracy on the test digits and on each shift of them.")}
<h2>None of my classes</h2>
{histograms}
<h2>All numbers</h2>
<div class="scroll">{run.results.to_html()}</div>
"""
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>peft-reprogram demo</title>\n<style>{_STYLE}</style>\n</head>\n<body>{body}</body>\n</html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8")


def frame_figure(run: DemoRun, data: DemoData, preprocess: ImagePreprocessor) -> Figure:
    """The trained frame beside reprogrammed images."""
    import torch
    from matplotlib.figure import Figure

    from ..tuners.reprogrammer.functional import unpack_frame

    layer = run.reprogrammer.get_base_model().vision_model.embeddings
    frame, geometry = layer.reprogrammer_frame["default"].detach(), layer.reprogrammer_geometry["default"]
    mean, std = layer.reprogrammer_normalization["default"]
    with torch.no_grad():
        pictures = layer.reprogram(preprocess([data.test[i]["image"] for i in range(5)])) * std + mean
    program = torch.tanh(unpack_frame(frame, geometry))
    program = 0.5 + 0.5 * program / program.abs().max().clamp(min=1e-6)
    figure = Figure(figsize=(9, 1.9), layout="constrained")
    for axes, picture in zip(figure.subplots(1, 6), (program, *pictures)):
        axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_axis_off()
    return figure


def shift_examples(data: DemoData) -> Figure:
    """An example of each set."""
    from matplotlib.figure import Figure

    sets = {"digits (ID)": data.test, **data.shifts, **{f"{name} (OOD)": value for name, value in data.ood.items()}}
    figure = Figure(figsize=(9, 1.7), layout="constrained")
    for axes, (name, dataset) in zip(figure.subplots(1, len(sets)), sets.items()):
        axes.imshow(np.asarray(dataset[0]["image"]), interpolation="nearest")
        axes.set_title(name.replace("_", "\n"), fontsize=8)
        axes.set_axis_off()
    return figure


def _count(run: DemoRun) -> int:
    return next(entry["n"] for entry in run.results.sets.values() if entry["role"] == "id")


def _summary_table(run: DemoRun) -> str:
    from .run import SCORE

    columns = {
        "ID accuracy": lambda m: m.id["accuracy"],
        "mean shift": lambda m: m.shift_summary["mean"],
        "worst shift": lambda m: m.shift_summary["worst"],
        "letters AUROC": lambda m: m.ood[SCORE]["letters"]["auroc"],
        "photos AUROC": lambda m: m.ood[SCORE]["photos"]["auroc"],
    }
    values: dict[str, list[float]] = {
        name: [get(measures) for get in columns.values()] for name, measures in run.results.models.items()
    }
    best = [max(row[i] for row in values.values()) for i in range(len(columns))]
    head = "".join(f"<th>{title}</th>" for title in ("", *columns, "trained", "stored"))
    rows = []
    for name, row in values.items():
        cells = "".join(
            f'<td class="best">{100 * v:.1f}</td>' if v == top else f"<td>{100 * v:.1f}</td>"
            for v, top in zip(row, best)
        )
        sizes = f"<td>{run.trained_parameters[name]:,}</td><td>{run.stored_bytes[name] / 1e3:,.0f} kB</td>"
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}{sizes}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _figure(figure: Any, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    picture = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{picture}"><figcaption>{text}</figcaption></figure>'
