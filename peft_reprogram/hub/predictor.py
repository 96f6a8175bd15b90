from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import nn

from ..calibration import Calibration
from ..data import ImagePreprocessor
from ..ood import ModelOutputs, Score, Threshold, get_score
from . import layout
from .images import is_single_image, open_images


@dataclass(frozen=True)
class Prediction:
    """
    What a classifier says about one image.

    Args:
        label (`str`): The most probable class.
        probability (`float`): Its softmax probability, in [0, 1], calibrated where the classifier is. It says how the classes
            compare, not whether the image shows any of them.
        score (`float`): Out-of-distribution score; larger means more like the images the model was made for.
        is_ood (`bool`, *optional*): Whether the score lies below the threshold; `None` without a threshold.
        probabilities (`dict[str, float]`): The probability of each class.
    """

    label: str
    probability: float
    score: float
    is_ood: Optional[bool]
    probabilities: dict[str, float]


class Predictor:
    """
    A classifier that is ready for images: model, preprocessing, class names, calibration, out-of-distribution score and
    threshold.

    Args:
        classifier (`torch.nn.Module`): A [`ZeroShotClassifier`], or an image classifier whose output has `logits`.
        preprocess ([`ImagePreprocessor`]): Turns images into the model's input.
        class_names (`list[str]`): Names of the C classes in the order of the logits.
        score ([`Score`], *optional*): The out-of-distribution score; `mcm` for text-image models and `msp` for others by
            default.
        threshold ([`Threshold`], *optional*): Below it an image is called out-of-distribution. It is one of the model's own
            outputs, as the score is.
        calibration ([`Calibration`], *optional*): Acts on the logits before anything is decided, in the order that it
            defines: temperature, gamma, threshold. Where it has a threshold, no other may be given; without one, score and
            `threshold` look at the uncalibrated logits, as they do without calibration.

    Raises:
        ValueError: If there are two thresholds, one of another score, or a gamma for other classes.

    Example:

        ```py
        >>> predictor = load_classifier("user/adapter")
        >>> predictor.predict("photo.jpg")
        Prediction(label='cat', probability=0.97, score=-0.03, is_ood=False, ...)
        ```
    """

    def __init__(
        self,
        classifier: nn.Module,
        preprocess: ImagePreprocessor,
        class_names: list[str],
        score: Optional[Score] = None,
        threshold: Optional[Threshold] = None,
        calibration: Optional[Calibration] = None,
    ) -> None:
        from ..evaluation.readers import make_reader

        self.classifier = classifier.eval()
        self.preprocess = preprocess
        self.class_names = class_names
        default = get_score("mcm" if hasattr(classifier, "get_class_features") else "msp")
        self.calibration = calibration or Calibration()
        if self.calibration.gamma is not None:
            self.calibration.gamma.check_class_names(class_names)
        if self.calibration.threshold is not None:
            if threshold is not None:
                raise ValueError("the calibration has a threshold of its own: give no other `threshold`.")
            score, threshold = self.calibration.score, self.calibration.threshold
        self.score = default if score is None else score
        self.threshold = threshold
        if threshold is not None and threshold.score not in (None, self.score.name):
            raise ValueError(f"the threshold is one of the score {threshold.score!r}, not of {self.score.name!r}.")
        self._identity: Optional[str] = None
        if not all(self._belongs(part) for part in (self.score, threshold, self.calibration)):
            warnings.warn(
                "The calibration or the out-of-distribution threshold was fitted on another model, or under versions that load "
                "this one differently, so it is not used and `is_ood` will be None. Fit it anew, with "
                "`predictor.calibrate(images)` for instance.",
                UserWarning,
                stacklevel=2,
            )
            self.threshold = None
            if self.calibration.threshold is not None or not self._belongs(self.calibration):
                self.calibration = Calibration()
            self.score = default if self.score.identity is not None else self.score
        self._reader = make_reader(classifier, patch_features="patch_features" in self.score.needs)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.classifier.parameters()).device

    @property
    def identity(self) -> str:
        """Fingerprint of the model, which a threshold is bound to."""
        from ..evaluation.fingerprint import model_fingerprint

        if self._identity is None:
            self._identity = model_fingerprint(self.classifier)
        return self._identity

    def predict(
        self, images: Any, *, batch_size: int = 64, progress_bar: Optional[bool] = None
    ) -> Union[Prediction, list[Prediction]]:
        """
        Classify images and say which of them the classifier was not made for.

        Args:
            images: One image or an iterable of images, a column of a `datasets.Dataset` for instance: paths, http(s)
                addresses, PIL images, or arrays of shape `(height, width[, channels])`, `uint8` or float in [0, 1]. An array
                of four dimensions is a batch.
            batch_size (`int`, *optional*, defaults to 64): Images that are in memory and in the model at once.
            progress_bar (`bool`, *optional*): Whether to show a progress bar; for more than one batch by default.

        Returns:
            `Prediction` or `list[Prediction]`: One for one image, a list in the order of the images otherwise.

        Raises:
            UnreadableImageError: If an image cannot be found or decoded; the message has its position.
        """
        single = is_single_image(images)
        predictions: list[Prediction] = []
        for outputs in self._batches([images] if single else images, batch_size, progress_bar):
            predictions += self._predictions(outputs)
        return predictions[0] if single else predictions

    def outputs(self, images: Any, *, batch_size: int = 64, progress_bar: Optional[bool] = None) -> ModelOutputs:
        """
        Logits and features as the model gives them, to fit scores, thresholds and a calibration on.

        Args:
            images: As in [`~Predictor.predict`].
            batch_size (`int`, *optional*, defaults to 64): Images that are in memory and in the model at once.
            progress_bar (`bool`, *optional*): Whether to show a progress bar; for more than one batch by default.

        Returns:
            [`ModelOutputs`]: Of all images, on the CPU.
        """
        images = [images] if is_single_image(images) else images
        parts = [_to_cpu(part) for part in self._batches(images, batch_size, progress_bar)]
        if not parts:
            raise ValueError("there are no images.")
        merged: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("logits", "features", "patch_features")
            if getattr(parts[0], name) is not None
        }
        return replace(parts[0], **merged, identity=self.identity)

    def calibrate(self, images: Any, *, tpr: float = 0.95, batch_size: int = 64) -> Threshold:
        """
        Fit the out-of-distribution threshold on in-distribution images, and use it from now on.

        Args:
            images: In-distribution images that were not trained on, as in [`~Predictor.predict`].
            tpr (`float`, *optional*, defaults to 0.95): The fraction of them that stays in-distribution, in (0, 1].
            batch_size (`int`, *optional*, defaults to 64): Images that are in memory and in the model at once.

        Returns:
            [`Threshold`]: Also in `self.threshold`; [`~Predictor.save_calibration`] stores it with the adapter.
        """
        scores = self.score.score(self._scored(self.outputs(images, batch_size=batch_size)))
        self.threshold = Threshold.fit(scores, tpr, score=self.score, identity=self.identity)
        if self.calibration.threshold is not None:
            self.calibration = replace(self.calibration, threshold=self.threshold)
        return self.threshold

    def save_calibration(self, folder: Union[str, Path]) -> None:
        """
        Store score, threshold and calibration with the adapter, where [`load_classifier`] finds them, in place of earlier ones.

        Args:
            folder (`str` or `Path`): The adapter's folder.

        Raises:
            ValueError: If no threshold was fitted.
        """
        if self.threshold is None:
            raise ValueError("there is no threshold to save: fit one with `predictor.calibrate(images)`.")
        folder, stale = Path(folder), set()
        if self.calibration.threshold is None:
            if self.score.requires_fit:
                self.score.save(folder / layout.SCORE)
            else:
                stale = {layout.SCORE}
            self.threshold.save(folder / layout.THRESHOLD)
        else:
            stale = {layout.SCORE, layout.THRESHOLD}
        if self.calibration == Calibration():
            stale |= {layout.CALIBRATION, layout.CALIBRATION_SCORE, layout.GAMMA}
        else:
            self.calibration.save_pretrained(folder)
        # They would be taken for this model's, or before what was stored now.
        for name in stale:
            (folder / name).unlink(missing_ok=True)

    def to_pipeline(self, **kwargs: Any) -> Any:
        """
        The classifier as a `transformers.pipeline("image-classification")`.

        Args:
            **kwargs: Arguments of `transformers.pipeline`, such as `batch_size` or `top_k`.

        Returns:
            `transformers.ImageClassificationPipeline`: Gives labels and calibrated probabilities; it knows no threshold.
        """
        from .pipeline import make_pipeline

        return make_pipeline(self, **kwargs)

    def _batches(self, images: Iterable[Any], batch_size: int, progress_bar: Optional[bool]) -> Iterator[ModelOutputs]:
        from tqdm.auto import tqdm

        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        total = len(images) if isinstance(images, Sized) else None
        show = (total is None or total > batch_size) if progress_bar is None else progress_bar
        opened = open_images(images)
        with tqdm(total=total, desc="images", unit="image", disable=not show) as bar:
            while batch := list(islice(opened, batch_size)):
                yield self._read(self.preprocess(batch))
                bar.update(len(batch))

    @torch.no_grad()
    def _read(self, pixel_values: torch.Tensor) -> ModelOutputs:
        values: dict[str, Any] = {**self._reader.read(pixel_values.to(self.device)), **self._reader.head()}
        # What was fitted anonymously is compared with nothing, and the hash costs time.
        bound = self.score.identity is not None or (self.threshold is not None and self.threshold.identity is not None)
        return ModelOutputs(**values, identity=self.identity if bound else None)

    def _belongs(self, fitted: Any) -> bool:
        # The fingerprint costs time: it is taken only where there is one to compare.
        return fitted is None or fitted.identity is None or fitted.identity == self.identity

    def _scored(self, outputs: ModelOutputs) -> ModelOutputs:
        """The outputs that score and threshold look at."""
        return outputs if self.calibration.threshold is None else self.calibration.apply(outputs)

    def _predictions(self, outputs: ModelOutputs) -> list[Prediction]:
        scores = self.score.score(self._scored(outputs))
        ood = None if self.threshold is None else self.threshold.is_ood(scores, identity=outputs.identity).tolist()
        rows = self.calibration.logits(outputs.logits).softmax(dim=-1).tolist()
        predictions = []
        for index, (row, score) in enumerate(zip(rows, scores.tolist())):
            best = max(range(len(row)), key=row.__getitem__)
            predictions.append(
                Prediction(
                    label=self.class_names[best],
                    probability=row[best],
                    score=score,
                    is_ood=None if ood is None else ood[index],
                    probabilities=dict(zip(self.class_names, row)),
                )
            )
        return predictions


def _to_cpu(outputs: ModelOutputs) -> ModelOutputs:
    values = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    moved: dict[str, Any] = {name: v.cpu() for name, v in values.items() if isinstance(v, torch.Tensor)}
    return replace(outputs, **moved)
