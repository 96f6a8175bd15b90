"""A small network beside the frozen one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from .image_tower import ImageTowerStrategy
from .linear_head import LinearHeadClassifier
from .registry import register
from .strategy import Task


class SideTuningClassifier(LinearHeadClassifier):
    """
    A [`LinearHeadClassifier`] whose embeddings are a learned mix of those of the frozen image side, `B(x)`, and of a small
    network's, `S(x)`: `sigmoid(t) B(x) + (1 - sigmoid(t)) S(x)`, of unit length again. `t` starts at 0 and `S` with a last
    layer of zeros, so that training starts from the zero-shot logits.

    Args:
        *args: As of [`LinearHeadClassifier`].
        width (`int`): Channels of the small network's first layer, a multiple of 8; they double with each further layer.
        depth (`int`): Number of its convolutions, each of which halves the resolution; at least 1.
        **kwargs: As of [`LinearHeadClassifier`].

    Raises:
        ValueError: If `width` or `depth` is out of range.
    """

    def __init__(self, *args: Any, width: int, depth: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if width < 8 or width % 8:
            raise ValueError(f"`width` must be a multiple of 8 and at least 8, got {width}.")
        if depth < 1:
            raise ValueError(f"`depth` must be at least 1, got {depth}.")
        self.gate = nn.Parameter(torch.zeros(()))
        self.side = _side_network(width, depth, self.head.in_features).to(self.head.weight)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        share = self.gate.sigmoid()
        base = super().get_image_features(pixel_values)
        return F.normalize(share * base + (1 - share) * self.side(pixel_values), dim=-1)


@register
@dataclass(frozen=True)
class SideTuning(ImageTowerStrategy):
    """
    Side-tuning (arXiv 1912.13503): the image tower stays as it is, and a small convolutional network, a linear head and the
    share of the two are trained.

    Args:
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
        width (`int`, *optional*, defaults to 16): Channels of the small network's first layer.
        depth (`int`, *optional*, defaults to 4): Its convolutions.
    """

    name: ClassVar[str] = "side_tuning"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2})

    width: int = 16
    depth: int = 4

    def build(self, task: Task) -> nn.Module:
        return SideTuningClassifier(task.zero_shot(), width=self.width, depth=self.depth)


def _side_network(width: int, depth: int, out_features: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for index in range(depth):
        out_channels = width * 2**index
        # Groups, not batches: a batch says nothing of what is shifted in a single image.
        layers += [
            nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, out_channels),
        ]
        layers.append(nn.ReLU())
        channels = out_channels
    last = nn.Linear(channels, out_features)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
