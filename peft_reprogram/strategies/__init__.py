"""Ways to fine-tune, each in a file of its own, behind one interface."""

from . import zero_shot  # noqa: F401  registers its strategies
from .registry import get_strategy, list_strategies, register
from .strategy import Strategy, Task


__all__ = ["Strategy", "Task", "get_strategy", "list_strategies", "register"]
