from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Optional, Union

from ..config import SurgicalConfig
from .block_scores import BlockScores, Score, checked_score
from .plotting import depth_figure


@dataclass(frozen=True)
class SubTuning:
    """
    The blocks that greedy selection has chosen; printing it shows each round.

    Args:
        profile ([`BlockScores`]): Scores of the blocks alone.
        chosen (`list[str]`): Labels of the chosen candidates, in the order of choice.
        scores (`list[float]`): Score after each choice.
        num_trainings (`int`): Trainings of all rounds, the profile's included.
    """

    profile: BlockScores
    chosen: list[str]
    scores: list[float]
    num_trainings: int

    @property
    def blocks(self) -> list[str]:
        """The blocks to train, in the order of depth."""
        return list(_blocks(self.profile, self.chosen))

    def to_config(self, **fields: Any) -> SurgicalConfig:
        """A configuration that trains the chosen blocks; `fields` are its further fields."""
        return SurgicalConfig(blocks=self.blocks, **fields)

    def plot(self, path: Optional[Union[str, os.PathLike]] = None) -> Any:
        """
        The profile by depth, with the chosen blocks.

        Args:
            path (`str` or `os.PathLike`, *optional*): File to write the figure to.

        Returns:
            `matplotlib.figure.Figure`
        """
        baseline = (f"chosen together: {self.scores[-1]:.3f}", self.scores[-1])
        title = "SubTuning: " + ", ".join(self.chosen)
        return depth_figure(
            self.profile.scores, ylabel="held-out score", title=title, marked=self.chosen, baseline=baseline, path=path
        )

    def __str__(self) -> str:
        width = max(len(label) for label in self.chosen)
        lines = [f"SubTuning: {self.num_trainings} trainings"]
        lines += [f"+ {label.ljust(width)}  {score:.4f}" for label, score in zip(self.chosen, self.scores)]
        return "\n".join(lines)


def subtuning(
    profile: BlockScores, score: Score, *, epsilon: float = 0.0, max_blocks: Optional[int] = None
) -> SubTuning:
    """
    Greedy SubTuning (arXiv 2302.06354): start with the best block of the profile and add, round by round, the one with the
    largest gain, until no gain is above `epsilon`. Costs a training for each block that is left, each round.

    Args:
        profile ([`BlockScores`]): Scores of the blocks alone, from [`~selection.profile`].
        score (`Callable`): As for [`cross_validated`], and the one that the profile was made with.
        epsilon (`float`, *optional*, defaults to 0.0): The gain that a block must exceed, at least 0.
        max_blocks (`int`, *optional*): Most blocks to choose.

    Returns:
        [`SubTuning`]

    Raises:
        ValueError: If an argument is out of range, or a score isn't finite.
    """
    if epsilon < 0:
        raise ValueError(f"`epsilon` must be at least 0, got {epsilon}.")
    if max_blocks is not None and max_blocks < 1:
        raise ValueError(f"`max_blocks` must be at least 1, got {max_blocks}.")
    chosen, scores = [profile.best], [profile.scores[profile.best]]
    trainings = profile.num_trainings
    most = len(profile.candidates) if max_blocks is None else min(max_blocks, len(profile.candidates))
    while len(chosen) < most:
        left = [label for label in profile.candidates if label not in chosen]
        round_scores = {label: checked_score(score, _blocks(profile, [*chosen, label])) for label in left}
        trainings += len(left)
        best = max(round_scores, key=round_scores.__getitem__)
        if round_scores[best] - scores[-1] <= epsilon:
            break
        chosen.append(best)
        scores.append(round_scores[best])
    return SubTuning(profile, chosen, scores, trainings)


def _blocks(profile: BlockScores, chosen: list[str]) -> tuple[str, ...]:
    """Each block once, in the order of depth, so that a set of blocks is always written the same way."""
    ordered = [label for label in profile.candidates if label in chosen]
    return tuple(dict.fromkeys(block for label in ordered for block in profile.candidates[label]))
