from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from .pseudo_cross_validation import Predict


@dataclass(frozen=True)
class SplitTraining:
    """
    Fine-tuning for [`fit_gamma`] by [`~training.train`]; works for any classifier, whatever of it is trained.

    Args:
        make_classifier (`Callable`): Gives the pre-trained classifier, ready for training: wrapped by PEFT, frozen but for
            its head, or as it is. Called once for each split.
        data ([`ImageData`]): The training images, with labels.
        config ([`TrainingConfig`]): How to train. Each split has a folder of its own in `output_dir`, and its own seed; a
            split that was interrupted continues from its last checkpoint.
        preprocess ([`ImagePreprocessor`]): Turns images into `pixel_values`.
    """

    make_classifier: Callable[[], nn.Module]
    data: Any
    config: Any
    preprocess: Any

    def __call__(self, seen_classes: list[int], seed: int) -> Predict:
        """Fine-tune on the images of these classes."""
        from ..training import train

        rows = np.flatnonzero(np.isin(self.data.labels, seen_classes))
        if not len(rows):
            raise ValueError(f"The training data have no images of the classes {seen_classes[:5]}.")
        output_dir = Path(self.config.output_dir) / f"seed-{seed}"
        config = replace(self.config, output_dir=str(output_dir), seed=seed)
        classifier = self.make_classifier()
        recipe = {"pseudo_seen_classes": list(seen_classes)}
        train(classifier, self.data.select(rows), config, self.preprocess, recipe=recipe, resume=True)
        return self.predict(classifier)

    def predict(self, classifier: Optional[nn.Module] = None) -> Predict:
        """
        The logits of a classifier as a function of data.

        Args:
            classifier (`torch.nn.Module`, *optional*): The classifier; a new one, before training, if not given.

        Returns:
            `Callable`: Maps [`ImageData`] to logits, a float32 tensor `(N, C)`.
        """
        classifier = (self.make_classifier() if classifier is None else classifier).eval()

        @torch.no_grad()
        def predict(data: Any) -> torch.Tensor:
            from ..data import collate, prepare

            loader = torch.utils.data.DataLoader(
                prepare(data, self.preprocess), batch_size=self.config.eval_batch_size, collate_fn=collate
            )
            device = next(classifier.parameters()).device
            return torch.cat(
                [classifier(pixel_values=batch["pixel_values"].to(device)).logits.float().cpu() for batch in loader]
            )

        return predict
