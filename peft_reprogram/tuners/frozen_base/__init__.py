"""What our tuner types have in common: they adapt a base model of which nothing moves, batch-norm statistics included."""

from .layer import BASE, FrozenBaseLayer
from .model import FrozenBaseTuner
from .module_paths import canonical_path


__all__ = ["BASE", "FrozenBaseLayer", "FrozenBaseTuner", "canonical_path"]
