"""The blocks that help most on held-out data are trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Optional

import torch
from torch import nn

from ..atomic import replacing
from ..data import train_validation_split
from ..training import TrainingConfig, TrainingResult, train
from ..tuners.surgical.selection import profile, subtuning
from .blocks import adapt_blocks
from .image_tower import ImageTowerStrategy
from .linear_head import LinearHeadClassifier
from .registry import register
from .strategy import Task


CHOICE_FILE = "subtuning.json"


@register
@dataclass(frozen=True)
class SubTuning(ImageTowerStrategy):
    """
    SubTuning (arXiv 2302.06354): each candidate is trained alone with the head and scored on a held-out part of the training
    images; the best is kept, and others are added greedily as long as they help. What was chosen is then trained on all
    training images. With `c` candidates that costs up to `c (c + 1) / 2 + 1` trainings beside the last one; each of them is
    kept in the folder `candidates` and not repeated.

    Args:
        lr (`float`, *optional*, defaults to 1e-3): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay; of the change, so towards the pre-trained
            weights.
        candidates (`tuple[str, ...]`, *optional*): Names of blocks as [`~tuners.surgical.describe_blocks`] lists them; the
            paper takes every layer (`"block:0"`, `"block:1"` ...), the default are the embedding and the thirds.
        validation_fraction (`float`, *optional*, defaults to 0.2): Share of each class that is held out.
        epsilon (`float`, *optional*, defaults to 0.0): Accuracy that a further block must add.
    """

    name: ClassVar[str] = "subtuning"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-2})

    candidates: tuple[str, ...] = ("embedding", "first", "middle", "last")
    validation_fraction: float = 0.2
    epsilon: float = 0.0

    def fit(self, task: Task) -> tuple[nn.Module, Optional[TrainingResult]]:
        """Chooses, builds and trains. The seconds of the result are those of all trainings."""
        torch.manual_seed(task.config.seed)
        blocks, seconds = self._choose(task)
        classifier = adapt_blocks(LinearHeadClassifier(task.zero_shot()), (*blocks, "head"))
        result = self.train(classifier, task)
        return classifier.eval(), replace(result, seconds=round(result.seconds + seconds, 3))

    def prepare(self, classifier: nn.Module) -> nn.Module:
        """All that may come to be trained."""
        return adapt_blocks(classifier, (*self.candidates, "head"))

    def _choose(self, task: Task) -> tuple[list[str], float]:
        folder = Path(task.config.output_dir)
        if (folder / CHOICE_FILE).is_file():
            choice = json.loads((folder / CHOICE_FILE).read_text("utf-8"))
            return choice["blocks"], choice["seconds"]
        seconds: list[float] = []
        score = self._score(task, seconds)
        classifier = LinearHeadClassifier(task.zero_shot())
        alone = profile(classifier.model, score, always=("head",), blocks=self.candidates)
        chosen = subtuning(alone, score, epsilon=self.epsilon)
        blocks = [block for block in chosen.blocks if block != "head"]
        choice = {"blocks": blocks, "profile": alone.scores, "scores": chosen.scores, "seconds": sum(seconds)}
        with replacing(folder / CHOICE_FILE) as path:
            path.write_text(json.dumps(choice, indent=2) + "\n", "utf-8")
        return blocks, sum(seconds)

    def _score(self, task: Task, seconds: list[float]) -> Callable[[tuple[str, ...]], float]:
        training, held_out = train_validation_split(task.training, self.validation_fraction, task.config.seed)

        def score(blocks: tuple[str, ...]) -> float:
            folder = Path(task.config.output_dir) / "candidates" / "+".join(blocks).replace(":", "-")
            config: TrainingConfig = replace(self.training_config(task.config), output_dir=str(folder))
            classifier = adapt_blocks(LinearHeadClassifier(task.zero_shot()), blocks)
            result = train(
                classifier,
                training,
                config,
                task.preprocess,
                validation=held_out,
                recipe={"blocks": list(blocks)},
                resume=True,
            )
            seconds.append(result.seconds)
            assert result.validation is not None
            return result.validation["accuracy"]

        return score
