"""The metric's demo on a Space."""

from functools import partial
from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget


if __name__ == "__main__":
    metric = evaluate.load(str(Path(__file__).with_name("seen_unseen.py")))
    # The widget has fields for samples only, not for options: here class 0 is the one seen.
    metric.compute = partial(metric.compute, seen_classes=[0])
    launch_gradio_widget(metric)
