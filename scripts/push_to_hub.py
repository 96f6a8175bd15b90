"""
Publishes an adapter with its processor, calibration, results and card, in one commit.

    python scripts/push_to_hub.py runs/cifar10 user/adapter --license apache-2.0

The same as `peft-reprogram push`; `--help` lists the options.
"""

import typer

from peft_reprogram.cli import push


if __name__ == "__main__":
    typer.run(push)
