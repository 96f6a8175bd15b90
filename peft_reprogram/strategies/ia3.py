"""Learned scales of activations in the image tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from peft import IA3Config
from torch import nn

from .image_tower import ImageTowerStrategy, dense_modules, wrap
from .linear_head import LinearHeadClassifier
from .registry import register


# What transformers' image towers call an attention's keys and values, and the second layer of a feed-forward block.
_KEYS_AND_VALUES = (".k_proj", ".v_proj", ".key", ".value")
_FEED_FORWARD = (".fc2", ".output.dense", ".down_proj", ".pwconv2")
_ATTENTION_OUTPUT = ".attention.output.dense"


@register
@dataclass(frozen=True)
class IA3(ImageTowerStrategy):
    """
    PEFT's (IA)^3 (arXiv 2205.05638) on the image tower: keys, values and the inner activations of the feed-forward blocks
    are scaled. A tower without such layers (a convolutional one) gets the outputs of its ungrouped convolutions scaled. The
    head starts as the zero-shot classifier.

    Args:
        lr (`float`, *optional*, defaults to 3e-3): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay, towards 0 rather than the start at 1.
    """

    name: ClassVar[str] = "ia3"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 3e-3}, {"lr": 1e-2}, {"lr": 1e-3})

    lr: float = 3e-3

    def prepare(self, classifier: LinearHeadClassifier) -> nn.Module:
        dense = dense_modules(classifier)
        keys_and_values = [name for name in dense if name.endswith(_KEYS_AND_VALUES)]
        feed_forward = [n for n in dense if n.endswith(_FEED_FORWARD) and not n.endswith(_ATTENTION_OUTPUT)]
        config = IA3Config(
            target_modules=keys_and_values + feed_forward or dense,
            feedforward_modules=feed_forward,
        )
        return wrap(classifier, config)
