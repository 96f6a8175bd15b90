from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar


if TYPE_CHECKING:
    from .score import Score

    ScoreClass = TypeVar("ScoreClass", bound=type[Score])


_SCORES: dict[str, type[Score]] = {}


def register_score(name: str) -> Callable[[ScoreClass], ScoreClass]:
    """
    Class decorator that makes a [`Score`] available under a name.

    Args:
        name (`str`): The name that [`get_score`] will know it by; must be new.

    Returns:
        `Callable`: The decorator.
    """

    def register(cls: ScoreClass) -> ScoreClass:
        if name in _SCORES:
            raise ValueError(f"a score named {name!r} is registered already; choose another name.")
        cls.name = name
        _SCORES[name] = cls
        return cls

    return register


def list_scores() -> list[str]:
    """Names of all out-of-distribution scores, sorted."""
    return sorted(_SCORES)


def get_score(name: str, **options: Any) -> Score:
    """
    Make an out-of-distribution score.

    Args:
        name (`str`): One of [`list_scores`].
        **options: The score's options, e.g. `temperature=0.5` for `"energy"`; see the class.

    Returns:
        [`Score`]: Not fitted yet where the score needs fitting.

    Raises:
        ValueError: unknown name or option (the message lists the known ones), or an option out of its range.
    """
    if name not in _SCORES:
        raise ValueError(f"unknown score {name!r}; known scores: {', '.join(list_scores())}.")
    known = list(inspect.signature(_SCORES[name]).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"unknown option {', '.join(map(repr, unknown))} for score {name!r}; "
            f"known options: {', '.join(known) or '(it has none)'}."
        )
    return _SCORES[name](**options)
