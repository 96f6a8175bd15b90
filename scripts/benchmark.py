"""
Compares strategies of fine-tuning: models x tasks x shots x strategies x seeds, with one honest table at the end.

    accelerate launch scripts/benchmark.py --config scripts/configs/benchmark_demo.yaml --output_dir runs/bench

A bench that was killed goes on where it stopped. `--help` lists the flags; the configuration is described at
`peft_reprogram.bench.BenchConfig`.
"""

import sys

from peft_reprogram.commands.benchmark import main
from peft_reprogram.commands.exit import run


if __name__ == "__main__":
    run(main, sys.argv[1:])
