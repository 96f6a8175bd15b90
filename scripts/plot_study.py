"""
Draws what docs/study.md shows: on each bed ID accuracy against mean shift accuracy and against mean OOD AUROC.

    python scripts/plot_study.py runs/study/results*.jsonl --output docs/images/study_scatter.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

from matplotlib import pyplot as plt

from peft_reprogram.atomic import replacing
from peft_reprogram.bench import read_rows
from peft_reprogram.bench.summary import Bed, summarize


LONGER = "reprogrammer_text, 4 x epochs"
# Colour and marker of what is trained. Okabe and Ito's colours.
KINDS = {
    "zero-shot": ("#000000", "*", ["zero_shot"]),
    "whole image tower": ("#d55e00", "s", ["full", "lp_ft", "flyp", "l2_sp", "wise_ft"]),
    "parts of the image tower": ("#e69f00", "D", ["lora", "ia3", "bitfit", "ln_tuning", "adapter", "compacter"]),
    "nothing in the image tower": ("#999999", "o", ["linear_probe", "coop"]),
    "reprogrammers": (
        "#0072b2",
        "^",
        ["reprogrammer_image", "reprogrammer_text", LONGER, "reprogrammer", "reprogrammer_anchored"],
    ),
}
CURVES = {
    "wise_ft": ("#d55e00", "-"),
    "reprogrammer_text": ("#0072b2", "-"),
    LONGER: ("#0072b2", "--"),
    "reprogrammer_anchored": ("#56b4e9", "-"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+", help="The results stores of the bench.")
    parser.add_argument("--output", type=Path, required=True, help="The picture.")
    options = parser.parse_args()
    beds = summarize(read_rows(options.stores))
    figure, axes = plt.subplots(2, len(beds), figsize=(3.4 * len(beds), 6.4), squeeze=False, layout="constrained")
    for bed, column in zip(beds, axes.T, strict=True):
        column[0].set_title(f"{bed.task}, {bed.shots} shots", fontsize=10)
        column[1].set_xlabel("ID accuracy (%)")
        for measure, panel in enumerate(column, start=1):
            draw(panel, bed, measure)
    axes[0, 0].set_ylabel("mean shift accuracy (%)")
    axes[1, 0].set_ylabel("mean OOD AUROC (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    with replacing(options.output) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw(panel: plt.Axes, bed: Bed, measure: int) -> None:
    """One panel: curves over α, then a point for each strategy as it was trained."""
    x, y = bed.axes[0], bed.axes[measure]
    for strategy, (color, style) in CURVES.items():
        places = [
            (100 * point.statistics[x].mean, 100 * point.statistics[y].mean) for point in bed.curves.get(strategy, ())
        ]
        panel.plot(
            [x for x, _ in places],
            [y for _, y in places],
            style,
            color=color,
            linewidth=1,
            label=f"{strategy}, over α",
        )
    for kind, (color, marker, strategies) in KINDS.items():
        entries = [
            entry for entry in bed.entries if entry.strategy in strategies and entry.kind in ("only", "unmixed")
        ]
        panel.scatter(
            [100 * entry.statistics[x].mean for entry in entries],
            [100 * entry.statistics[y].mean for entry in entries],
            color=color,
            marker=marker,
            s=90 if marker == "*" else 28,
            label=kind,
            zorder=3,
        )
    panel.grid(alpha=0.3)


if __name__ == "__main__":
    main()
