"""The pre-trained model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .registry import register
from .strategy import Strategy, Task


@register
@dataclass(frozen=True)
class ZeroShot(Strategy):
    """The pre-trained text-image model, told the class names and nothing else."""

    name: ClassVar[str] = "zero_shot"

    def build(self, task: Task) -> nn.Module:
        return task.zero_shot()
