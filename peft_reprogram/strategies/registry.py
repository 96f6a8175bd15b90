"""The strategies by name."""

from __future__ import annotations

from typing import Any

from .strategy import Strategy


_STRATEGIES: dict[str, type[Strategy]] = {}


def register(strategy: type[Strategy]) -> type[Strategy]:
    """Class decorator that makes a strategy known by its `name`."""
    if strategy.name in _STRATEGIES:
        raise ValueError(f"there is a strategy {strategy.name!r} already: choose another `name`.")
    _STRATEGIES[strategy.name] = strategy
    return strategy


def list_strategies() -> list[str]:
    """Names of all strategies, in alphabetical order."""
    return sorted(_STRATEGIES)


def get_strategy(name: str, **options: Any) -> Strategy:
    """
    A strategy by its name.

    Args:
        name (`str`): One of [`list_strategies`].
        **options: Its hyper-parameters.

    Returns:
        [`Strategy`]

    Raises:
        ValueError: If there is no such strategy or option; the message lists those there are.
    """
    if name not in _STRATEGIES:
        raise ValueError(f"there is no strategy {name!r}; there are {', '.join(list_strategies())}.")
    return _STRATEGIES[name]().with_options(**options)
