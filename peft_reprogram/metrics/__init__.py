"""
Metrics whose convention is part of the number: OOD detection, distribution shift, calibration, seen and unseen classes.

The functions come from [`functional`](./functional) and need numpy alone. Each folder beside it is an `evaluate` module
over them, loaded by `evaluate.load(peft_reprogram.metrics.path("ood_detection"))`.
"""

from pathlib import Path

from .functional import *  # noqa: F403
from .functional import __all__ as _functions


MODULES = ("ood_detection", "shift_accuracy", "calibration_error", "seen_unseen")


def path(name: str) -> str:
    """
    Where an `evaluate` module of this package lies, for `evaluate.load`.

    Args:
        name (`str`): One of `MODULES`: `"ood_detection"`, `"shift_accuracy"`, `"calibration_error"`, `"seen_unseen"`.

    Returns:
        `str`: Its folder. The folder can be pushed to the Hub as a Space as it is.

    Raises:
        ValueError: If there is no such module; the message lists those there are.
    """
    if name not in MODULES:
        raise ValueError(f"Unknown metric module {name!r}; known are {', '.join(map(repr, MODULES))}.")
    return str(Path(__file__).parent / name)


__all__ = [*_functions, "MODULES", "path"]
