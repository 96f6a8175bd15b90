from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from torch import nn

from ..blocks import describe_blocks
from ..config import SurgicalConfig
from .plotting import depth_figure


# Trains the named blocks and nothing else, from the pre-trained model, and returns a score on held-out data of the target:
# larger is better. Of no blocks at all, the score of the pre-trained model.
Score = Callable[[tuple[str, ...]], float]


@dataclass(frozen=True)
class BlockScores:
    """
    Held-out scores after training one candidate at a time; printing it shows a table.

    Args:
        method (`str`): How the candidates were made.
        candidates (`dict[str, tuple[str, ...]]`): The blocks of each, by label, in the order of depth.
        scores (`dict[str, float]`): Their scores; larger is better.
        base (`float`, *optional*): Score of the model before any training.
    """

    method: str
    candidates: dict[str, tuple[str, ...]]
    scores: dict[str, float]
    base: Optional[float] = None

    @property
    def best(self) -> str:
        """Label of the best candidate; of equals, the first."""
        return max(self.scores, key=self.scores.__getitem__)

    @property
    def num_trainings(self) -> int:
        """What it cost."""
        return len(self.scores)

    def to_config(self, **fields: Any) -> SurgicalConfig:
        """A configuration that trains the best candidate's blocks; `fields` are its further fields."""
        return SurgicalConfig(blocks=list(self.candidates[self.best]), **fields)

    def plot(self, path: Optional[Union[str, os.PathLike]] = None) -> Any:
        """
        The scores by depth.

        Args:
            path (`str` or `os.PathLike`, *optional*): File to write the figure to.

        Returns:
            `matplotlib.figure.Figure`
        """
        baseline = None if self.base is None else ("before training", self.base)
        return depth_figure(
            self.scores, ylabel="held-out score", title=self.method, marked=[self.best], baseline=baseline, path=path
        )

    def __str__(self) -> str:
        width = max(len("before training"), *(len(label) for label in self.scores))
        lines = [f"{self.method}: {self.num_trainings} trainings"]
        if self.base is not None:
            lines.append(f"{'before training'.ljust(width)}  {self.base:.4f}")
        lines += [
            f"{label.ljust(width)}  {score:.4f}{'  *' if label == self.best else ''}"
            for label, score in self.scores.items()
        ]
        return "\n".join(lines)


def cross_validated(
    candidates: Union[Sequence[str], Mapping[str, Sequence[str]]], score: Score, *, base: bool = False
) -> BlockScores:
    """
    Train each candidate and keep the best on held-out data of the target (arXiv 2210.11466). Costs a training each.

    Args:
        candidates (`Sequence[str]` or `Mapping[str, Sequence[str]]`): Names of blocks, e.g. `["first", "middle", "last"]`, or
            labels with several blocks each.
        score (`Callable`): `(blocks) -> float`: trains these blocks (and nothing else) from the pre-trained model and returns
            its score on held-out data, larger is better.
        base (`bool`, *optional*, defaults to `False`): Whether to score the untrained model too, as `score(())`.

    Returns:
        [`BlockScores`]

    Raises:
        ValueError: If there are no candidates, or a score isn't finite.
    """
    named = dict(candidates) if isinstance(candidates, Mapping) else {name: (name,) for name in candidates}
    return score_candidates("best block by held-out score", named, score, base)


def profile(
    model: nn.Module, score: Score, *, always: Sequence[str] = (), blocks: Optional[Sequence[str]] = None
) -> BlockScores:
    """
    What each block is worth alone: the fine-tuning profile of arXiv 2302.06354. Costs a training for each block, which is
    one for each layer by default.

    Args:
        model (`torch.nn.Module`): The model, for the names of its blocks.
        score (`Callable`): As for [`cross_validated`].
        always (`Sequence[str]`, *optional*): Blocks that are trained with each, e.g. `["head"]`.
        blocks (`Sequence[str]`, *optional*): Which blocks; `embedding` and all layers if not given.

    Returns:
        [`BlockScores`]: With the score of `always` alone as `base`; feeds [`subtuning`].
    """
    names = _layers(model) if blocks is None else list(blocks)
    named = {name: (name, *always) for name in names}
    return score_candidates("fine-tuning profile", named, score, True, tuple(always))


def score_candidates(
    method: str,
    candidates: Mapping[str, Sequence[str]],
    score: Score,
    base: bool,
    always: tuple[str, ...] = (),
) -> BlockScores:
    """Scores of all candidates, checked."""
    if not candidates:
        raise ValueError("There are no candidates to choose from.")
    named = {label: tuple(blocks) for label, blocks in candidates.items()}
    return BlockScores(
        method,
        named,
        {label: checked_score(score, blocks) for label, blocks in named.items()},
        checked_score(score, always) if base else None,
    )


def checked_score(score: Score, blocks: tuple[str, ...]) -> float:
    """A score that can be compared."""
    value = float(score(blocks))
    if not math.isfinite(value):
        raise ValueError(
            f"`score` gave {value} for the blocks {list(blocks)}; candidates are compared by finite scores."
        )
    return value


def _layers(model: nn.Module) -> list[str]:
    return [name for name in describe_blocks(model).names if name.startswith(("embedding", "block:"))]
