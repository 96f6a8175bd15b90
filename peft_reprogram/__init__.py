"""Robust adaptation of vision and text-image models as PEFT adapters. Importing this package makes PEFT know its types."""

from ._version import __version__
from .classifier import ZeroShotClassifier
from .hub import load_classifier, push_to_hub
from .tuners.bottleneck import BottleneckConfig, BottleneckModel, CompacterConfig, CompacterModel
from .tuners.reprogrammer import (
    ReprogrammerConfig,
    ReprogrammerModel,
    ResidualReprogrammerConfig,
    ResidualReprogrammerModel,
    set_residual_alpha,
)
from .tuners.surgical import SurgicalConfig, SurgicalModel, describe_blocks


__all__ = [
    "BottleneckConfig",
    "BottleneckModel",
    "CompacterConfig",
    "CompacterModel",
    "ReprogrammerConfig",
    "ReprogrammerModel",
    "ResidualReprogrammerConfig",
    "ResidualReprogrammerModel",
    "SurgicalConfig",
    "SurgicalModel",
    "ZeroShotClassifier",
    "__version__",
    "describe_blocks",
    "load_classifier",
    "push_to_hub",
    "set_residual_alpha",
]
