"""`python -m peft_reprogram.demo`: trains and compares adapters on the embedded model and data."""

from __future__ import annotations

import argparse
from pathlib import Path

from .run import SCORE, DemoRun, run_demo


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m peft_reprogram.demo",
        description="Trains and compares adapters on the embedded model and data.",
    )
    parser.add_argument("--output_dir", default="demo_output", help="folder to write to (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="a tenth of the training, to see that everything runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and training (default: %(default)s)")
    args = parser.parse_args()
    import torch

    # A model this small is slowed down by threads that wait for each other.
    torch.set_num_threads(1)
    run = run_demo(args.output_dir, short=args.short, seed=args.seed)
    print(f"\n{summary(run)}\n")
    print(f"{run.seconds:.0f} s. Pictures and all numbers: {Path(args.output_dir) / 'report.html'}")


def summary(run: DemoRun) -> str:
    """The demo's table as plain text."""
    rows = [
        [
            "",
            "ID",
            "mean shift",
            "worst shift",
            *(f"{name} AUROC" for name in ("letters", "photos")),
            "trained",
            "stored",
        ]
    ]
    for name, measures in run.results.models.items():
        ood = measures.ood[SCORE]
        cells = [measures.id["accuracy"], measures.shift_summary["mean"], measures.shift_summary["worst"]]
        cells += [ood["letters"]["auroc"], ood["photos"]["auroc"]]
        stored = f"{run.stored_bytes[name] / 1e3:,.0f} kB"
        rows.append([name, *(f"{100 * cell:.1f}" for cell in cells), f"{run.trained_parameters[name]:,}", stored])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


if __name__ == "__main__":
    main()
