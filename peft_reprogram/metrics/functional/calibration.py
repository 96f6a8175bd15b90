"""Metrics of how far a classifier's probabilities can be believed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import as_labels, as_logits, as_scores


BINNINGS = ("equal_width", "equal_mass")


def log_softmax(logits: Any, temperature: float = 1.0) -> np.ndarray:
    """
    Log-probabilities in float64: logits are upcast before anything is exponentiated.

    Args:
        logits (array-like): Shape `(N, C)`, finite.
        temperature (`float`, *optional*, defaults to 1.0): Positive; logits are divided by it.

    Returns:
        `np.ndarray`: Shape `(N, C)`.

    Raises:
        ValueError: If logits are not finite or the temperature is not positive.
    """
    if not (temperature > 0 and np.isfinite(temperature)):
        raise ValueError(f"`temperature` must be positive and finite, got {temperature}.")
    scaled = as_scores("logits", logits, ndim=2) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def negative_log_likelihood(logits: Any, labels: Any, temperature: float = 1.0) -> float:
    """
    Mean negative log-likelihood of the true class (cross-entropy), in nats.

    Args:
        logits (array-like): Shape `(N, C)`; log-probabilities serve as well.
        labels (array-like of `int`): True class indices, shape `(N,)`.
        temperature (`float`, *optional*, defaults to 1.0): Positive; logits are divided by it.

    Returns:
        `float`: At least 0.

    Raises:
        ValueError: If shapes, ranges or types do not fit, or logits are not finite.
    """
    array, true = as_logits(logits, labels)
    return float(-np.mean(log_softmax(array, temperature)[np.arange(len(true)), true]))


def brier_score(logits: Any, labels: Any, temperature: float = 1.0) -> float:
    """
    Mean squared distance of the probabilities from the one-hot truth, summed over classes (Brier 1950): 0 is perfect,
    2 is sure and wrong everywhere. Arguments and errors are those of [`negative_log_likelihood`].
    """
    array, true = as_logits(logits, labels)
    distance = np.exp(log_softmax(array, temperature))
    distance[np.arange(len(true)), true] -= 1
    return float(np.mean(np.sum(distance**2, axis=1)))


def reliability_bins(
    confidences: Any, correct: Any, *, bins: int = 15, binning: str = "equal_width"
) -> dict[str, np.ndarray]:
    """
    What a reliability diagram shows: confidence and accuracy of samples binned by confidence.

    Args:
        confidences (array-like): Probability of the predicted class, of [0, 1], shape `(N,)`.
        correct (array-like of `bool`): Whether the prediction is right, shape `(N,)`.
        bins (`int`, *optional*, defaults to 15): Number of bins, at least 1.
        binning (`str`, *optional*, defaults to `"equal_width"`): `"equal_width"` divides [0, 1] evenly, each bin
            without its lower and with its upper end. `"equal_mass"` puts N / bins samples in each; samples of the same
            confidence are never separated, so the result does not depend on their order.

    Returns:
        `dict[str, np.ndarray]`: For each bin that is not empty: `upper` (its highest confidence), `count`, mean
        `confidence` and `accuracy`.

    Raises:
        ValueError: If `bins` or `binning` is not as described, lengths differ, or a confidence is outside [0, 1].
    """
    confidence = as_scores("confidences", confidences)
    right = as_labels("correct", correct, length=len(confidence), of="confidences", num_classes=2)
    if confidence.min() < 0 or confidence.max() > 1:
        raise ValueError("`confidences` must lie in [0, 1]; give probabilities, not logits or percentages.")
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    if binning == "equal_width":
        edges = np.arange(1, bins) / bins
    elif binning == "equal_mass":
        ranks = np.ceil(np.arange(1, bins) * len(confidence) / bins).astype(int) - 1
        edges = np.unique(np.sort(confidence)[ranks])
    else:
        raise ValueError(f"Unknown `binning` {binning!r}; known are {', '.join(map(repr, BINNINGS))}.")
    index = np.searchsorted(edges, confidence, side="left")
    count = np.bincount(index, minlength=len(edges) + 1)
    filled = count > 0
    return {
        "upper": np.append(edges, 1.0)[filled],
        "count": count[filled],
        "confidence": np.bincount(index, confidence, len(edges) + 1)[filled] / count[filled],
        "accuracy": np.bincount(index, right, len(edges) + 1)[filled] / count[filled],
    }


def expected_calibration_error(
    logits: Any, labels: Any, temperature: float = 1.0, *, bins: int = 15, binning: str = "equal_width"
) -> float:
    """
    Expected calibration error of the predicted class: |accuracy - confidence| averaged over the samples' bins (Naeini
    et al. 2015; Guo et al. 2017, arXiv 1706.04599).

    Args:
        logits, labels, temperature: As for [`negative_log_likelihood`].
        bins (`int`, *optional*, defaults to 15), binning (`str`, *optional*, defaults to `"equal_width"`): As for
            [`reliability_bins`].

    Returns:
        `float`: Of [0, 1].
    """
    array, true = as_logits(logits, labels)
    probabilities = np.exp(log_softmax(array, temperature))
    return _ece(probabilities.max(axis=1), array.argmax(axis=1) == true, bins, binning)


def calibration_metrics(logits: Any, labels: Any, temperature: float = 1.0, *, bins: int = 15) -> dict[str, float]:
    """
    All metrics of calibration at one temperature. For "before and after" call it at 1.0 and at the fitted temperature.

    Args:
        logits, labels, temperature: As for [`negative_log_likelihood`].
        bins (`int`, *optional*, defaults to 15): Number of bins of both calibration errors.

    Returns:
        `dict[str, float]`: `ece` (equal width), `ece_equal_mass`, `nll`, `brier`, `accuracy`, mean `confidence`; and
        the convention: `temperature`, `bins`, `n`.
    """
    array, true = as_logits(logits, labels)
    probabilities = np.exp(log_softmax(array, temperature))
    confidence, correct = probabilities.max(axis=1), array.argmax(axis=1) == true
    return {
        "ece": _ece(confidence, correct, bins, "equal_width"),
        "ece_equal_mass": _ece(confidence, correct, bins, "equal_mass"),
        "nll": negative_log_likelihood(array, true, temperature),
        "brier": brier_score(array, true, temperature),
        "accuracy": float(correct.mean()),
        "confidence": float(confidence.mean()),
        "temperature": float(temperature),
        "bins": bins,
        "n": len(true),
    }


def _ece(confidence: np.ndarray, correct: np.ndarray, bins: int, binning: str) -> float:
    table = reliability_bins(confidence, correct, bins=bins, binning=binning)
    return float(np.sum(table["count"] * np.abs(table["accuracy"] - table["confidence"])) / len(correct))
