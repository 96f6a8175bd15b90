"""
Compares strategies of fine-tuning: models x tasks x shots x strategies x seeds, with one honest table at the end.

    peft-reprogram benchmark --config bench.yaml --output_dir runs/bench
    peft-reprogram benchmark --config bench.yaml --root DATA --output_dir runs/bench --shard 0/2
    peft-reprogram benchmark --report runs/bench/results*.jsonl --output_dir runs/bench
    accelerate launch -m peft_reprogram.commands.benchmark --config bench.yaml --output_dir runs/bench

A bench that was killed goes on where it stopped. Shards write stores of their own; those in one folder are reported on
together, those of several machines with --report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .exit import run


def main(arguments: Sequence[str]) -> None:
    """
    Runs a bench, or reports on stores that are there.

    Args:
        arguments (`Sequence[str]`): The command line without the program's name.
    """
    options = _parser().parse_args(arguments)
    output_dir = Path(options.output_dir)
    if options.report:
        _report(options.report, output_dir, options.score)
        return
    if options.config is None:
        raise ValueError("give `--config`, the bench to run, or `--report`, the stores to make a table of.")

    import datasets
    import torch
    import transformers
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from ..bench import BenchRunner, load_config, parse_shard

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    config = load_config(options.config)
    # Processes without accelerators find each other too, which Accelerate otherwise leaves to a variable.
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    BenchRunner(config, output_dir, options.root, parse_shard(options.shard), options.keep_adapters).run()
    if PartialState().is_main_process:
        # Those of other shards too: what they have finished was not run again here.
        _report(sorted(output_dir.glob("results*.jsonl")), output_dir, options.score or config.scores[0])


def _report(stores: Sequence[Path], output_dir: Path, score: str | None) -> None:
    from ..atomic import replacing
    from ..bench import read_rows, to_markdown, write_report

    rows = read_rows(stores)
    if not rows:
        raise ValueError(f"there is no finished cell to report on in {', '.join(map(str, stores)) or output_dir}.")
    chosen: dict[str, Any] = {} if score is None else {"score": score}
    output_dir.mkdir(parents=True, exist_ok=True)
    write_report(rows, output_dir / "report.html", **chosen)
    with replacing(output_dir / "report.md") as temporary:
        temporary.write_text(to_markdown(rows, **chosen), "utf-8")
    print(f"{len(rows)} cells: {output_dir / 'report.html'}, {output_dir / 'report.md'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peft-reprogram benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="The bench, a YAML file.")
    parser.add_argument("--output_dir", required=True, help="Where the results store and the report go.")
    parser.add_argument("--root", default=".", help="Folder that the paths in the configuration are relative to.")
    parser.add_argument("--shard", default="0/1", help="i/n: run the i-th of n parts here, counted from 0.")
    parser.add_argument("--keep_adapters", action="store_true", help="Keeps what each cell trained.")
    parser.add_argument(
        "--score", help="The out-of-distribution score of the report; the first of the bench, with --report energy."
    )
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="STORE", help="Only makes the report of these stores."
    )
    return parser


if __name__ == "__main__":
    run(main, sys.argv[1:])
