"""The image tower's normalisation layers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import LNTuningConfig
from torch import nn

from .image_tower import ImageTowerStrategy, norm_modules, wrap
from .linear_head import LinearHeadClassifier
from .registry import register


@register
@dataclass(frozen=True)
class LNTuning(ImageTowerStrategy):
    """
    PEFT's LN-tuning (arXiv 2312.11420) of the image tower: scales and shifts of its normalisation layers, and a head that
    starts as the zero-shot classifier. In a tower with batch normalisation it is those of batch normalisation that are
    trained, its running statistics stay (arXiv 2003.00152).

    Args:
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
    """

    name: ClassVar[str] = "ln_tuning"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 3e-4})

    def prepare(self, classifier: LinearHeadClassifier) -> nn.Module:
        norms = norm_modules(classifier)
        if not norms:
            raise ValueError(f"the image tower has no normalisation layers: leave the strategy {self.name!r} out.")
        with warnings.catch_warnings():
            # PEFT reads features off a layer's kind, which it does not use for these.
            warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
            return wrap(classifier, LNTuningConfig(target_modules=norms))
