"""Metrics of accuracy under distribution shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import as_fraction, as_predictions, as_scores


# Mean error over the five severities of AlexNet on ImageNet-C, as published with Hendrycks & Dietterich 2019
# (arXiv 1903.12261); in percent and rounded they are the numbers of the paper's tables.
ALEXNET_ERRORS: dict[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def accuracy(predictions: Any, labels: Any) -> float:
    """
    Top-1 accuracy.

    Args:
        predictions (array-like of `int`): Predicted class indices, shape `(N,)`.
        labels (array-like of `int`): True class indices, shape `(N,)`.

    Returns:
        `float`: Of [0, 1].

    Raises:
        ValueError: If there is no sample, or lengths or types do not fit.
    """
    predicted, true = as_predictions(predictions, labels)
    return float(np.mean(predicted == true))


def balanced_accuracy(predictions: Any, labels: Any) -> float:
    """
    Mean over the classes that occur in `labels` of the accuracy on that class: for sets whose class mix differs from
    the in-distribution set's. Arguments, result and errors are those of [`accuracy`].
    """
    predicted, true = as_predictions(predictions, labels)
    return float(np.mean(_accuracy_by(true, predicted == true)[1]))


def group_accuracies(predictions: Any, labels: Any, groups: Any) -> dict[Any, float]:
    """
    Top-1 accuracy of each group of samples, such as class x background in Waterbirds.

    Args:
        predictions, labels: As for [`accuracy`].
        groups (sequence of `int` or `str`): The group of each sample, shape `(N,)`.

    Returns:
        `dict`: Group -> accuracy of [0, 1], groups sorted.

    Raises:
        ValueError: As for [`accuracy`], or if `groups` has another length.
    """
    predicted, true = as_predictions(predictions, labels)
    names = _as_names("groups", groups, len(predicted))
    found, values = _accuracy_by(names, predicted == true)
    return dict(zip(found.tolist(), values.tolist()))


def worst_group_accuracy(predictions: Any, labels: Any, groups: Any) -> float:
    """Lowest accuracy of any group (Sagawa et al. 2020, arXiv 1911.08731); arguments as for [`group_accuracies`]."""
    return min(group_accuracies(predictions, labels, groups).values())


def relative_robustness(shift_accuracy: float, id_accuracy: float) -> float:
    """
    The part of the in-distribution accuracy that is kept under shift: shift accuracy / ID accuracy.

    Args:
        shift_accuracy (`float`): Of [0, 1].
        id_accuracy (`float`): Of (0, 1].

    Returns:
        `float`: 1.0 if nothing is lost; above 1 if the shifted set is the easier one.
    """
    reference = as_fraction("id_accuracy", id_accuracy)
    if reference == 0:
        raise ValueError("`id_accuracy` is 0: no part of it can be kept.")
    return as_fraction("shift_accuracy", shift_accuracy) / reference


@dataclass(frozen=True)
class RobustnessBaseline:
    """
    The shift accuracy to expect of a model from its ID accuracy: a line in logit space (Taori et al. 2020,
    arXiv 2007.00644), logit(shift accuracy) = slope * logit(ID accuracy) + intercept.

    Attributes:
        slope (`float`), intercept (`float`): Of the line.
        n_models (`int`): Number of reference models it was fitted to.
    """

    slope: float
    intercept: float
    n_models: int

    @classmethod
    def fit(cls, id_accuracies: Sequence[float], shift_accuracies: Sequence[float]) -> RobustnessBaseline:
        """
        Fits the line by least squares to reference models without any robustness intervention.

        Args:
            id_accuracies (sequence of `float`): ID accuracies of the reference models, of (0, 1), shape `(M,)`, M >= 2.
            shift_accuracies (sequence of `float`): Their accuracies on the shifted set, of (0, 1), shape `(M,)`.

        Raises:
            ValueError: If there are fewer than two models, lengths differ, an accuracy is not strictly between 0 and 1
                (its logit is infinite), or all ID accuracies agree.
        """
        x = _logit([as_fraction("id_accuracies", value, open_ends=True) for value in id_accuracies])
        y = _logit([as_fraction("shift_accuracies", value, open_ends=True) for value in shift_accuracies])
        if len(x) != len(y):
            raise ValueError(
                f"`id_accuracies` and `shift_accuracies` must have the same length, got {len(x)} and {len(y)}."
            )
        if len(np.unique(x)) < 2:
            raise ValueError("`id_accuracies` must hold two or more different values to fit a line through.")
        centred = x - x.mean()
        slope = float(np.sum(centred * (y - y.mean())) / np.sum(centred**2))
        return cls(slope, float(y.mean() - slope * x.mean()), len(x))

    def predict(self, id_accuracy: float) -> float:
        """Returns the expected shift accuracy of a model with this ID accuracy of (0, 1)."""
        z = self.slope * _logit([as_fraction("id_accuracy", id_accuracy, open_ends=True)])[0] + self.intercept
        return float(0.5 + 0.5 * np.tanh(z / 2))


def effective_robustness(shift_accuracy: float, id_accuracy: float, baseline: RobustnessBaseline) -> float:
    """
    Accuracy under shift above what the ID accuracy lets expect (Taori et al. 2020, arXiv 2007.00644).

    Args:
        shift_accuracy (`float`): Of [0, 1].
        id_accuracy (`float`): Of (0, 1), without its ends.
        baseline ([`RobustnessBaseline`]): Fitted to reference models on the same two sets.

    Returns:
        `float`: A difference of accuracies, of [-1, 1]; 0 on the baseline.
    """
    return as_fraction("shift_accuracy", shift_accuracy) - baseline.predict(id_accuracy)


def summarize_shifts(accuracies: Mapping[str, float], id_accuracy: float | None = None) -> dict[str, Any]:
    """
    Sums up the accuracies on several shifts.

    Args:
        accuracies (`Mapping[str, float]`): Shift -> accuracy of [0, 1]; the in-distribution set is not among them.
        id_accuracy (`float`, *optional*): Accuracy on the in-distribution set, of (0, 1].

    Returns:
        `dict`: `mean`, `worst`, `worst_shift` (its name), `n_shifts`, and if `id_accuracy` is given `id_accuracy`,
        `relative_robustness` (shift -> fraction) and `mean_relative_robustness`.

    Raises:
        ValueError: If there is no shift, or an accuracy is not a fraction.
    """
    if not accuracies:
        raise ValueError("`accuracies` is empty: at least one shift is needed.")
    values = {name: as_fraction(f"accuracies[{name!r}]", value) for name, value in accuracies.items()}
    worst = min(values, key=values.__getitem__)
    summary: dict[str, Any] = {
        "mean": float(np.mean(list(values.values()))),
        "worst": values[worst],
        "worst_shift": worst,
        "n_shifts": len(values),
    }
    if id_accuracy is not None:
        kept = {name: relative_robustness(value, id_accuracy) for name, value in values.items()}
        summary["id_accuracy"] = float(id_accuracy)
        summary["relative_robustness"] = kept
        summary["mean_relative_robustness"] = float(np.mean(list(kept.values())))
    return summary


def shift_metrics(predictions: Any, labels: Any, shifts: Any, id_name: str | None = None) -> dict[str, Any]:
    """
    Accuracy on each shift and in sum, from samples of all sets together.

    Args:
        predictions, labels: As for [`accuracy`].
        shifts (sequence of `str`): Name of the set that each sample belongs to, shape `(N,)`.
        id_name (`str`, *optional*): Which of these names is the in-distribution set; it is then left out of mean and
            worst, and relative robustness is reported.

    Returns:
        `dict`: `accuracy`, `balanced_accuracy` and `n` (name -> value, ID set included) and the entries of
        [`summarize_shifts`].

    Raises:
        ValueError: As for [`accuracy`]; or if `id_name` is not among the names, or is the only one.
    """
    predicted, true = as_predictions(predictions, labels)
    names = _as_names("shifts", shifts, len(predicted))
    members = {str(name): names == name for name in np.unique(names)}
    accuracies = {name: accuracy(predicted[of], true[of]) for name, of in members.items()}
    if id_name is not None and id_name not in accuracies:
        raise ValueError(f"`id_name` {id_name!r} is not among `shifts`, which has {', '.join(map(repr, accuracies))}.")
    shifted = {name: value for name, value in accuracies.items() if name != id_name}
    if not shifted:
        raise ValueError(f"`shifts` holds nothing but the in-distribution set {id_name!r}.")
    return {
        "accuracy": accuracies,
        "balanced_accuracy": {name: balanced_accuracy(predicted[of], true[of]) for name, of in members.items()},
        "n": {name: int(of.sum()) for name, of in members.items()},
        **summarize_shifts(shifted, None if id_name is None else accuracies[id_name]),
    }


def mean_corruption_error(errors: Mapping[str, Sequence[float]], *, normalization: str) -> dict[str, Any]:
    """
    Corruption error of each corruption, averaged over its severities, and their mean mCE (Hendrycks & Dietterich 2019,
    arXiv 1903.12261). The normalisation has no default, since numbers of the one kind pass for the other too easily.

    Args:
        errors (`Mapping[str, Sequence[float]]`): Corruption -> top-1 error (1 - accuracy, of [0, 1]) at each severity.
        normalization (`str`): `"alexnet"` divides by AlexNet's error on ImageNet-C, as the paper's mCE does: it wants
            exactly the 15 corruptions of `ALEXNET_ERRORS` at five severities each. `"none"` leaves the errors as they
            are and takes any corruptions, as is usual on CIFAR-10-C.

    Returns:
        `dict`: `mce` and `corruption_error` (corruption -> CE), both as fractions (1.0 is AlexNet's if normalised),
        `normalization`, `n_corruptions` and `n_severities`.

    Raises:
        ValueError: If corruptions are missing or not known, numbers of severities differ, or an error is no fraction.
    """
    if normalization not in ("alexnet", "none"):
        raise ValueError(f"Unknown `normalization` {normalization!r}; known are 'alexnet' and 'none'.")
    if not errors:
        raise ValueError("`errors` is empty: at least one corruption is needed.")
    table = {name: as_scores(f"errors[{name!r}]", values) for name, values in errors.items()}
    for name, values in table.items():
        for value in values:
            as_fraction(f"errors[{name!r}]", value)
    severities = {len(values) for values in table.values()}
    if len(severities) != 1:
        raise ValueError(f"`errors` must have the same number of severities everywhere, got {sorted(severities)}.")
    if normalization == "alexnet":
        missing = [name for name in ALEXNET_ERRORS if name not in table]
        unknown = [name for name in table if name not in ALEXNET_ERRORS]
        if missing or unknown or severities != {5}:
            raise ValueError(
                "`errors` must hold the 15 corruptions of ImageNet-C at 5 severities for `normalization='alexnet'`: "
                f"missing {missing}, without a published AlexNet error {unknown}, severities {severities.pop()}. "
                f"Known are {', '.join(ALEXNET_ERRORS)}; use `normalization='none'` for others."
            )
    scale = ALEXNET_ERRORS if normalization == "alexnet" else dict.fromkeys(table, 1.0)
    corruption_error = {name: float(np.mean(values) / scale[name]) for name, values in table.items()}
    return {
        "mce": float(np.mean(list(corruption_error.values()))),
        "corruption_error": corruption_error,
        "normalization": normalization,
        "n_corruptions": len(table),
        "n_severities": severities.pop(),
    }


def _logit(fractions: Sequence[float]) -> np.ndarray:
    p = np.asarray(fractions, np.float64)
    return np.log(p) - np.log1p(-p)


def _as_names(name: str, values: Any, length: int) -> np.ndarray:
    names = np.asarray(values)
    if names.shape != (length,):
        raise ValueError(f"`{name}` must name one for each of the {length} `predictions`, got shape {names.shape}.")
    return names


def _accuracy_by(keys: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, index = np.unique(keys, return_inverse=True)
    return found, np.bincount(index, weights=correct) / np.bincount(index)
