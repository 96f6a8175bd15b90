"""Robust adaptation of vision and text-image models as PEFT adapters. Importing this package makes PEFT know its types."""

from ._version import __version__
from .classifier import ZeroShotClassifier
from .tuners.reprogrammer import (
    ReprogrammerConfig,
    ReprogrammerModel,
    ResidualReprogrammerConfig,
    ResidualReprogrammerModel,
    set_residual_alpha,
)


__all__ = [
    "ReprogrammerConfig",
    "ReprogrammerModel",
    "ResidualReprogrammerConfig",
    "ResidualReprogrammerModel",
    "ZeroShotClassifier",
    "__version__",
    "set_residual_alpha",
]
