"""
Measures adapters, and their base model zero-shot, on in-distribution, shifted, corrupted and out-of-distribution images; the
same as `peft-reprogram evaluate`.

    python scripts/evaluate.py --adapter runs/cifar10 --model openai/clip-vit-base-patch32 --dataset uoft-cs/cifar10 \\
        --ood dtd=tanganke/dtd --residual_alpha 0.4 --scores msp mcm energy --output results.json
    accelerate launch scripts/evaluate.py --config scripts/configs/evaluate_cifar10.yaml --model MODEL --dataset DATA

A configuration file holds the same names as the flags; flags win over the file. `--help` lists them.
"""

import sys

from peft_reprogram.commands.evaluate import main
from peft_reprogram.commands.exit import run


if __name__ == "__main__":
    run(main, sys.argv[1:])
