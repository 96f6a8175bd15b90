"""
Trains an adapter for an image classification task; the same as `peft-reprogram train`.

    accelerate launch scripts/train.py --model openai/clip-vit-base-patch32 --dataset uoft-cs/cifar10 --shots 16 --output_dir runs/cifar10
    accelerate launch scripts/train.py --config scripts/configs/train_cifar10.yaml --model MODEL --dataset DATA --output_dir OUT

A configuration file holds the same names as the flags; flags win over the file. `--help` lists them.
"""

import sys

from peft_reprogram.commands.exit import run
from peft_reprogram.commands.train import main


if __name__ == "__main__":
    run(main, sys.argv[1:])
