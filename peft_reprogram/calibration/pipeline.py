from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, Union

import torch

from ..atomic import replacing
from ..ood import ModelOutputs, Score, Threshold, get_score
from .gamma import GammaCalibrator, fit_gamma
from .temperature import Temperature


CALIBRATION_FILE = "calibration.json"
SCORE_FILE = "calibration_score.safetensors"


class Prediction(NamedTuple):
    """
    Decisions for N images.

    Attributes:
        labels (`torch.Tensor`): Class indices, `(N,)` int64.
        probabilities (`torch.Tensor`): Softmax of the calibrated logits, `(N, C)`.
        ood_scores (`torch.Tensor`, *optional*): `(N,)`, larger means more in-distribution; `None` without a threshold.
        is_ood (`torch.Tensor`, *optional*): Booleans `(N,)`; `None` without a threshold.
    """

    labels: torch.Tensor
    probabilities: torch.Tensor
    ood_scores: Optional[torch.Tensor]
    is_ood: Optional[torch.Tensor]


@dataclass(frozen=True)
class Calibration:
    """
    Everything that is fitted after training, in the order in which it acts: logits are divided by the temperature, gamma is
    added to those of absent classes, and the OOD score of the result is compared to the threshold.

    The order is part of the numbers: gamma is in units of scaled logits, and the threshold one of scores of calibrated
    logits. [`Calibration.fit`] fits each step on what the steps before it give.

    Args:
        temperature ([`Temperature`], *optional*): First step.
        gamma ([`GammaCalibrator`], *optional*): Second step.
        threshold ([`Threshold`], *optional*): Third step.
        score ([`Score`], *optional*): What the threshold is compared to; made from the name in the threshold if not given
            and nothing has to be fitted for it. A score that looks at features rather than logits is not touched by the
            first two steps.
        identity (`str`, *optional*): Identity of the model that it was fitted for.

    Raises:
        ValueError: If gamma was fitted at another temperature, or the threshold is one of an unknown or another score.
    """

    temperature: Optional[Temperature] = None
    gamma: Optional[GammaCalibrator] = None
    threshold: Optional[Threshold] = None
    score: Optional[Score] = None
    identity: Optional[str] = None

    def __post_init__(self) -> None:
        scale = 1.0 if self.temperature is None else self.temperature.value
        if self.gamma is not None and abs(self.gamma.temperature / scale - 1) > 1e-6:
            raise ValueError(
                f"gamma was fitted on logits divided by {self.gamma.temperature:g}, but the temperature here is {scale:g}. "
                "Temperature acts first: pass `gamma.at_temperature(temperature.value)`."
            )
        if self.threshold is None:
            return
        name = self.threshold.score
        if self.score is None:
            if name is None:
                raise ValueError("The threshold doesn't say which score it is for. Pass `score=...`.")
            score = get_score(name, **self.threshold.options)
            if score.requires_fit:
                raise ValueError(f"The threshold is one of the fitted score {name!r}. Pass that, as `score=...`.")
            object.__setattr__(self, "score", score)
        elif name is not None and (name, self.threshold.options) != (self.score.name, self.score.options):
            raise ValueError(f"The threshold was fitted on the score {name!r}, not on {self.score.name!r}.")

    @classmethod
    def fit(
        cls,
        outputs: ModelOutputs,
        labels: Any = None,
        *,
        temperature: bool = True,
        gamma: Optional[Union[Literal["alg"], GammaCalibrator]] = None,
        class_names: Optional[Sequence[str]] = None,
        seen_classes: Optional[Sequence[Union[int, str]]] = None,
        score: Optional[Union[str, Score]] = None,
        tpr: float = 0.95,
        training_outputs: Optional[ModelOutputs] = None,
        training_labels: Any = None,
    ) -> Calibration:
        """
        Fit all steps, each on what the steps before it give.

        Args:
            outputs ([`ModelOutputs`]): Of held-out in-distribution images.
            labels (array-like of `int`, *optional*): Their classes; `outputs.labels` if not given.
            temperature (`bool`, *optional*, defaults to `True`): Whether to fit a temperature.
            gamma (`"alg"` or [`GammaCalibrator`], *optional*): `"alg"` fits it on the training outputs, a calibrator (by PCV,
                say) is brought to the temperature.
            class_names (`Sequence[str]`, *optional*): All classes; needed by `"alg"`.
            seen_classes (`Sequence`, *optional*): The classes that were fine-tuned on; needed by `"alg"`.
            score (`str` or [`Score`], *optional*): Fit a threshold on this score.
            tpr (`float`, *optional*, defaults to 0.95): Fraction of `outputs` that the threshold lets pass.
            training_outputs ([`ModelOutputs`], *optional*): Of the training images, for `"alg"`.
            training_labels (array-like of `int`, *optional*): Their classes.

        Returns:
            [`Calibration`]

        Raises:
            ValueError: If something is missing or doesn't fit.
        """
        if not len(outputs):
            raise ValueError("The calibration set is empty.")
        labels = outputs.labels if labels is None else labels
        if temperature and labels is None:
            raise ValueError("A temperature needs the classes of the calibration set. Pass `labels=...`.")
        scaling = Temperature.fit(outputs.logits, labels) if temperature else None
        scale = 1.0 if scaling is None else scaling.value
        calibrator: Optional[GammaCalibrator] = None
        if isinstance(gamma, GammaCalibrator):
            calibrator = gamma.at_temperature(scale)
        elif gamma == "alg":
            if training_outputs is None or class_names is None or seen_classes is None:
                raise ValueError("ALG needs `training_outputs`, `class_names` and `seen_classes`.")
            training_labels = training_outputs.labels if training_labels is None else training_labels
            calibrator = fit_gamma(
                "alg",
                class_names=class_names,
                seen_classes=seen_classes,
                logits=training_outputs.logits / scale,
                labels=training_labels,
            )
            calibrator = replace(calibrator, temperature=scale)
        elif gamma is not None:
            raise ValueError(f"`gamma` must be 'alg' or a GammaCalibrator, got {gamma!r}.")
        calibration = cls(scaling, calibrator, identity=outputs.identity)
        if score is None:
            return calibration
        score = get_score(score) if isinstance(score, str) else score
        id_scores = score.score(calibration.apply(outputs))
        threshold = Threshold.fit(id_scores, tpr, score=score, identity=outputs.identity)
        return replace(calibration, threshold=threshold, score=score)

    def logits(self, logits: torch.Tensor) -> torch.Tensor:
        """
        Calibrated logits: temperature, then gamma.

        Args:
            logits (`torch.Tensor`): Shape `(..., C)`.

        Returns:
            `torch.Tensor`: Same shape and dtype.
        """
        if self.temperature is not None:
            logits = self.temperature(logits)
        return logits if self.gamma is None else self.gamma(logits)

    def apply(self, outputs: ModelOutputs) -> ModelOutputs:
        """The outputs with calibrated logits."""
        return replace(outputs, logits=self.logits(outputs.logits))

    @torch.no_grad()
    def predict(self, outputs: Union[ModelOutputs, torch.Tensor]) -> Prediction:
        """
        Decide.

        Args:
            outputs ([`ModelOutputs`] or `torch.Tensor`): Outputs of the classifier, or logits `(N, C)` where the score needs
                nothing else.

        Returns:
            [`Prediction`]
        """
        if isinstance(outputs, torch.Tensor):
            outputs = ModelOutputs(logits=outputs)
        calibrated = self.apply(outputs)
        scores = is_ood = None
        if self.threshold is not None:
            assert self.score is not None
            scores = self.score.score(calibrated)
            is_ood = self.threshold.is_ood(scores, identity=calibrated.identity)
        return Prediction(calibrated.logits.argmax(dim=-1), calibrated.logits.softmax(dim=-1), scores, is_ood)

    def save_pretrained(self, save_directory: Union[str, os.PathLike]) -> None:
        """
        Write everything beside an adapter; each file appears whole or not at all, the one that names the others last.

        Args:
            save_directory (`str` or `os.PathLike`): Folder; created if needed.
        """
        folder = Path(save_directory)
        steps = {"temperature": self.temperature, "gamma": self.gamma, "threshold": self.threshold}
        content: dict[str, Any] = {name: step.to_dict() for name, step in steps.items() if step is not None}  # type: ignore[attr-defined]
        content["score"] = None if self.score is None else {"name": self.score.name, "options": self.score.options}
        content["identity"] = self.identity
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if self.score is not None and self.score.requires_fit:
            self.score.save(folder / SCORE_FILE)
        with replacing(folder / CALIBRATION_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, path: Union[str, os.PathLike]) -> Calibration:
        """
        Read what `save_pretrained` wrote.

        Args:
            path (`str` or `os.PathLike`): The folder.

        Raises:
            FileNotFoundError: If there is no calibration.
        """
        file = Path(path) / CALIBRATION_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{path} has no {CALIBRATION_FILE}: nothing was calibrated, or saved elsewhere.")
        content = json.loads(file.read_text(encoding="utf-8"))
        named = content.get("score")
        score = None
        if named is not None:
            score = get_score(named["name"], **named["options"])
            if score.requires_fit:
                score = Score.load(Path(path) / SCORE_FILE)
        return cls(
            Temperature.from_dict(content["temperature"]) if "temperature" in content else None,
            GammaCalibrator.from_dict(content["gamma"]) if "gamma" in content else None,
            Threshold.from_dict(content["threshold"]) if "threshold" in content else None,
            score,
            content.get("identity"),
        )
