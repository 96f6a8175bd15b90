"""Every metric of a model, from the stored outputs of one pass over each set."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..calibration.temperature import NoTemperatureError, Temperature
from ..metrics import (
    accuracy,
    balanced_accuracy,
    brier_score,
    log_softmax,
    mean_corruption_error,
    negative_log_likelihood,
    ood_metrics,
    reliability_bins,
    summarize_shifts,
)
from ..ood import IncompatibleOutputsError, ModelOutputs, NotFittedError, Score
from ..shift import list_corruptions
from .curves import score_curves
from .results import ModelMeasures
from .stored_outputs import StoredOutputs


CALIBRATION_BINS = 15
# The errors of AlexNet that normalise mCE are those on ImageNet.
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class LabelledOutputs:
    """
    Stored outputs with labels in terms of the classifier's classes.

    Args:
        outputs ([`StoredOutputs`]): N rows.
        labels (`np.ndarray`): `(N,)`, each an index of a class.
    """

    outputs: StoredOutputs
    labels: np.ndarray

    def load(self) -> ModelOutputs:
        """The rows with their labels, in memory."""
        outputs = self.outputs.load(without=frozenset({"patch_features", "labels"}))
        return replace(outputs, labels=torch.from_numpy(self.labels))


@dataclass(frozen=True)
class Passes:
    """
    The passes of one model over all sets.

    Args:
        id ([`LabelledOutputs`]): In-distribution images.
        shifts (`Mapping[str, LabelledOutputs]`): Shifted images.
        corruptions (`Mapping[str, Mapping[int, LabelledOutputs]]`): Corruption -> severity -> images.
        ood (`Mapping[str, StoredOutputs]`): Out-of-distribution images.
        fit ([`LabelledOutputs`], *optional*): In-distribution images that scores are fitted on.
        calibration ([`LabelledOutputs`], *optional*): Held-out in-distribution images that the temperature is fitted on.
    """

    id: LabelledOutputs
    shifts: Mapping[str, LabelledOutputs]
    corruptions: Mapping[str, Mapping[int, LabelledOutputs]]
    ood: Mapping[str, StoredOutputs]
    fit: LabelledOutputs | None
    calibration: LabelledOutputs | None


def measure(
    passes: Passes,
    class_names: Sequence[str],
    scores: Mapping[str, Score],
    *,
    preset: str,
    tpr: float,
    full_spectrum: bool,
    skip_scores: bool,
) -> ModelMeasures:
    """
    Compute everything.

    Args:
        passes ([`Passes`]): The model's outputs.
        class_names (`Sequence[str]`): The classes in label order.
        scores (`Mapping[str, Score]`): The OOD scores by the name to report them under; they are copied, then fitted.
        preset (`str`): Convention of the OOD metrics.
        tpr (`float`): True positive rate of the FPR.
        full_spectrum (`bool`): Whether to count shifted images as in-distribution, too.
        skip_scores (`bool`): Whether to note that a score does not apply to the model instead of raising.

    Returns:
        [`ModelMeasures`]

    Raises:
        ValueError: If a score does not apply to the model.
    """
    predictions, calibration, reliability = _classification(passes.id)
    id_measures = _accuracies(predictions, passes.id.labels, class_names)
    if passes.calibration is not None:
        held_out = passes.calibration.load()
        assert held_out.labels is not None
        try:
            temperature = Temperature.fit(held_out.logits, held_out.labels).value
            calibration["scaled"] = _classification(passes.id, temperature)[1]
        except NoTemperatureError as error:
            calibration["not_scaled"] = str(error)
    measures = ModelMeasures(passes.id.outputs.identity, id_measures, calibration, curves={"reliability": reliability})
    measures.shifts = {
        name: _accuracies(_predictions(shift.outputs), shift.labels, class_names)
        for name, shift in passes.shifts.items()
    }
    if measures.shifts:
        accuracies = {name: shift["accuracy"] for name, shift in measures.shifts.items()}
        # Nothing can be kept of an accuracy of zero.
        measures.shift_summary = summarize_shifts(accuracies, id_measures["accuracy"] or None)
    measures.corruptions = {
        name: {str(severity): _accuracy(outputs) for severity, outputs in by_severity.items()}
        for name, by_severity in passes.corruptions.items()
    }
    measures.corruption_summary = _corruption_summary(measures.corruptions, len(class_names))
    if passes.ood:
        _measure_scores(measures, passes, scores, preset, tpr, full_spectrum, skip_scores)
    return measures


def score_outputs(score: Score, outputs: StoredOutputs) -> np.ndarray:
    """
    The scores of stored outputs, a chunk at a time.

    Args:
        score ([`Score`]): Fitted, where it needs it.
        outputs ([`StoredOutputs`]): N rows.

    Returns:
        `np.ndarray`: `(N,)`, float64.
    """
    chunks = outputs.chunks(without=frozenset({"patch_features", "labels"}) - score.needs)
    return np.concatenate([score.score(chunk).double().numpy() for chunk in chunks])


def fitted(score: Score, fit: LabelledOutputs | None) -> Score:
    """
    A copy of a score, fitted unless it was.

    Raises:
        NotFittedError: If it needs fitting and there is nothing to fit on.
    """
    score = copy.deepcopy(score)
    if not score.is_fitted:
        if fit is None:
            raise NotFittedError(
                f"score {score.name!r} is fitted on in-distribution images: give some of the training set as `fit`."
            )
        score.fit(fit.load())
    return score


def _measure_scores(
    measures: ModelMeasures,
    passes: Passes,
    scores: Mapping[str, Score],
    preset: str,
    tpr: float,
    full_spectrum: bool,
    skip_scores: bool,
) -> None:
    measures.curves["scores"] = {}
    for label, template in scores.items():
        try:
            score = fitted(template, passes.fit)
            id_scores = score_outputs(score, passes.id.outputs)
            ood_scores = {name: score_outputs(score, outputs) for name, outputs in passes.ood.items()}
        except (IncompatibleOutputsError, NotFittedError, ValueError) as error:
            if not skip_scores:
                raise
            measures.skipped_scores[label] = str(error)
            continue
        measures.ood[label] = {
            name: ood_metrics(id_scores, values, preset=preset, tpr=tpr) for name, values in ood_scores.items()
        }
        measures.curves["scores"][label] = score_curves(id_scores, ood_scores)
        if full_spectrum:
            shifted = [score_outputs(score, shift.outputs) for shift in passes.shifts.values()]
            spectrum = np.concatenate([id_scores, *shifted])
            measures.ood_full_spectrum[label] = {
                name: ood_metrics(spectrum, values, preset=preset, tpr=tpr) for name, values in ood_scores.items()
            }


def _predictions(outputs: StoredOutputs) -> np.ndarray:
    return np.concatenate([chunk.logits.argmax(dim=1).numpy() for chunk in outputs.chunks(_ALL_BUT_LOGITS)])


def _accuracy(outputs: LabelledOutputs) -> float:
    return accuracy(_predictions(outputs.outputs), outputs.labels)


def _accuracies(predictions: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    right = np.bincount(labels, predictions == labels, len(class_names))
    total = np.bincount(labels, minlength=len(class_names))
    return {
        "accuracy": accuracy(predictions, labels),
        "balanced_accuracy": balanced_accuracy(predictions, labels),
        "class_accuracy": {name: float(right[i] / total[i]) for i, name in enumerate(class_names) if total[i]},
        "n": len(labels),
    }


def _classification(
    id: LabelledOutputs, temperature: float = 1.0
) -> tuple[np.ndarray, dict[str, Any], dict[str, list[float]]]:
    """Predictions of all rows, metrics of calibration, and the reliability diagram; logits a chunk at a time."""
    predictions, confidences, nll, brier = [], [], 0.0, 0.0
    labels = np.split(id.labels, np.cumsum([len(chunk) for chunk in id.outputs.chunks(_ALL_BUT_LOGITS)])[:-1])
    for chunk, true in zip(id.outputs.chunks(_ALL_BUT_LOGITS), labels):
        logits = chunk.logits.numpy()
        predictions.append(logits.argmax(axis=1))
        confidences.append(np.exp(log_softmax(logits, temperature).max(axis=1)))
        nll += len(true) * negative_log_likelihood(logits, true, temperature)
        brier += len(true) * brier_score(logits, true, temperature)
    predicted = np.concatenate(predictions)
    confidence = np.concatenate(confidences).clip(max=1)
    correct = predicted == id.labels
    diagrams = {
        binning: reliability_bins(confidence, correct, bins=CALIBRATION_BINS, binning=binning)
        for binning in ("equal_width", "equal_mass")
    }
    ece, ece_equal_mass = (
        float(np.sum(bins["count"] * np.abs(bins["accuracy"] - bins["confidence"])) / len(correct))
        for bins in diagrams.values()
    )
    metrics = {
        "ece": ece,
        "ece_equal_mass": ece_equal_mass,
        "nll": float(nll / len(correct)),
        "brier": float(brier / len(correct)),
        "confidence": float(confidence.mean()),
        "temperature": temperature,
        "bins": CALIBRATION_BINS,
    }
    return predicted, metrics, {name: values.tolist() for name, values in diagrams["equal_width"].items()}


def _corruption_summary(corruptions: Mapping[str, Mapping[str, float]], num_classes: int) -> dict[str, Any]:
    if not corruptions:
        return {}
    common = [name for name in list_corruptions() if name in corruptions]
    errors = {name: [1 - value for value in corruptions[name].values()] for name in common or corruptions}
    summary = {"none": mean_corruption_error(errors, normalization="none")}
    complete = len(common) == len(list_corruptions()) and all(len(values) == 5 for values in errors.values())
    if complete and num_classes == IMAGENET_CLASSES:
        summary["alexnet"] = mean_corruption_error(errors, normalization="alexnet")
    return summary


_ALL_BUT_LOGITS = frozenset({"features", "patch_features", "labels"})
