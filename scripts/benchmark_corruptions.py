"""Prints how many images per second one core corrupts, at 32 and at 224 pixels, at the slowest of the five severities.

Seconds are those of processor time, so that other programs on the machine do not count.

Example:
    OMP_NUM_THREADS=1 python scripts/benchmark_corruptions.py --sizes 32 224 --seconds 0.5
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from PIL import Image

from peft_reprogram.shift import corrupt, list_corruptions


def natural_images(count: int, size: int) -> np.ndarray:
    """Smooth random pictures with texture; shot noise and JPEG cost depends on the content."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int64)
        images.append(np.clip(smooth + generator.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))
    return np.stack(images)


def images_per_second(images: np.ndarray, name: str, severity: int, seconds: float) -> float:
    indices = range(len(images))
    corrupt(images[:1], name, severity, indices=[0])
    done, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        corrupt(images, name, severity, indices=indices)
        done += len(images)
    return done / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], help="side of the images, in pixels")
    parser.add_argument("--seconds", type=float, default=0.3, help="least time per corruption and severity")
    parser.add_argument("--values", type=int, default=2**20, help="pixel values per batch")
    parser.add_argument("--corruptions", nargs="+", default=list_corruptions("all"), help="names; all 19 by default")
    arguments = parser.parse_args()
    batches = [natural_images(max(1, arguments.values // (3 * size**2)), size) for size in arguments.sizes]
    print(f"{'images/s':<20}" + "".join(f"{f'{len(b)} x {b.shape[1]} px':>16}" for b in batches))
    for name in arguments.corruptions:
        rates = [
            min(images_per_second(batch, name, severity, arguments.seconds) for severity in range(1, 6))
            for batch in batches
        ]
        print(f"{name:<20}" + "".join(f"{rate:>16,.0f}" for rate in rates), flush=True)


if __name__ == "__main__":
    main()
