from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from ..atomic import filling
from .pipeline import CALIBRATION_FILE, Calibration, Prediction


class CalibratedClassifier(nn.Module):
    """
    A classifier with its calibration: the same interface, calibrated logits.

    Args:
        classifier (`torch.nn.Module`): Anything with `forward(pixel_values, labels=None)` and `.logits`: a transformers
            classifier or a [`ZeroShotClassifier`], fully fine-tuned, with a new head or with an adapter of any kind.
        calibration ([`Calibration`]): What was fitted for it.

    Raises:
        ValueError: If gamma was fitted for another class list, or the OOD score needs more than logits.

    Example:

        ```py
        >>> gamma = fit_gamma("alg", class_names=names, seen_classes=seen, logits=logits, labels=labels)
        >>> classifier = CalibratedClassifier(classifier, Calibration(gamma=gamma))
        >>> classifier.predict(pixel_values).labels
        ```
    """

    def __init__(self, classifier: nn.Module, calibration: Calibration) -> None:
        super().__init__()
        from ..evaluation.readers import class_names_of

        names = class_names_of(classifier)
        if calibration.gamma is not None and names is not None:
            calibration.gamma.check_class_names(names)
        if calibration.score is not None and calibration.score.needs != {"logits"}:
            raise ValueError(
                f"The OOD score {calibration.score.name!r} looks at {sorted(calibration.score.needs)}, but a classifier gives "
                "logits alone. Use `calibration.predict(outputs)`, or a threshold on a score of logits."
            )
        self.classifier: Any = classifier
        self.calibration = calibration

    @property
    def config(self) -> Any:
        """The base model's configuration."""
        return self.classifier.config

    @property
    def class_names(self) -> Optional[list[str]]:
        """The classes in the order of the logits; `None` where the classifier doesn't name them."""
        from ..evaluation.readers import class_names_of

        return class_names_of(self.classifier)

    def forward(
        self, pixel_values: torch.Tensor, labels: Optional[torch.Tensor] = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """
        Classify images.

        Args:
            pixel_values (`torch.Tensor`): Preprocessed images, shape `(B, 3, height, width)`.
            labels (`torch.Tensor`, *optional*): Class indices in [0, C), shape `(B,)`.

        Returns:
            `ImageClassifierOutput`: Calibrated `logits` `(B, C)`; their cross-entropy as `loss` if labels were given.
        """
        logits = self.calibration.logits(self.classifier(pixel_values=pixel_values, **kwargs).logits.float())
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)

    @torch.no_grad()
    def predict(self, pixel_values: torch.Tensor) -> Prediction:
        """
        Decide.

        Args:
            pixel_values (`torch.Tensor`): Preprocessed images, shape `(B, 3, height, width)`.

        Returns:
            [`Prediction`]: Labels, probabilities and, with a threshold, what is out-of-distribution.
        """
        return self.calibration.predict(self.classifier(pixel_values=pixel_values).logits)

    def save_pretrained(self, save_directory: Union[str, os.PathLike]) -> None:
        """
        Save the classifier (its adapter, if it has one) together with the calibration.

        Everything is written to a temporary folder first and then moved, the calibration last, so that an interrupted save
        leaves no calibration of another classifier.

        Args:
            save_directory (`str` or `os.PathLike`): Folder; created if needed.
        """
        with filling(Path(save_directory), last=CALIBRATION_FILE) as staging:
            self.classifier.save_pretrained(staging)
            self.calibration.save_pretrained(staging)

    @classmethod
    def from_pretrained(cls, path: Union[str, os.PathLike], classifier: nn.Module) -> CalibratedClassifier:
        """
        Put the calibration that was saved beside an adapter on its classifier.

        Args:
            path (`str` or `os.PathLike`): Folder that [`~CalibratedClassifier.save_pretrained`] wrote.
            classifier (`torch.nn.Module`): The classifier, loaded from the same folder.
        """
        return cls(classifier, Calibration.from_pretrained(path)).eval()
