from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..atomic import replacing
from ..metrics import seen_unseen_curve
from .temperature import as_array


# Gives logits `(N, C)` over all classes of whatever data it is handed.
Predict = Callable[[Any], Any]


class FineTune(Protocol):
    """
    Fine-tunes the pre-trained classifier on samples of some classes.

    Args:
        seen_classes (`list[int]`): Indices of these classes.
        seed (`int`): Seed of the training.

    Returns:
        `Callable`: `predict(data) -> (N, C)` logits of the fine-tuned classifier over all classes.
    """

    def __call__(self, seen_classes: list[int], seed: int) -> Predict: ...


@dataclass(frozen=True)
class PseudoSplit:
    """
    What one split gave.

    Args:
        pseudo_seen (`list[int]`): The half of the seen classes that was fine-tuned on; the other half was taken as absent.
        gamma (`float`): The best value.
        accuracy (`float`): Accuracy at it, among the seen classes.
        absent_accuracy (`float`): Accuracy on the pseudo-absent classes at it.
        floor (`float`): Accuracy of the pre-trained classifier on the pseudo-absent classes.
        reached (`bool`): Whether any value brings the pseudo-absent classes to the floor.
    """

    pseudo_seen: list[int]
    gamma: float
    accuracy: float
    absent_accuracy: float
    floor: float
    reached: bool


def pseudo_cross_validation(
    *,
    fine_tune: FineTune,
    pretrained: Predict,
    data: Any,
    labels: np.ndarray,
    seen_classes: list[int],
    class_names: list[str],
    num_splits: int,
    seed: int,
    state_dir: Path | None,
) -> list[PseudoSplit]:
    """The splits of [`fit_gamma`] with `method="pcv"`, whose arguments these are."""
    labels = np.asarray(labels)
    _check(labels, seen_classes, num_splits)
    key = _fingerprint(labels, seen_classes, class_names, num_splits, seed)
    splits = []
    columns = np.array(seen_classes)
    # Labels as indices into the seen classes, which alone take part.
    true = np.searchsorted(columns, labels)
    base: np.ndarray | None = None
    for index in range(num_splits):
        path = None if state_dir is None else state_dir / f"split-{index}.json"
        if path is not None and path.is_file():
            splits.append(_read(path, key))
            continue
        order = np.random.default_rng([seed, index]).permutation(len(columns))
        half = np.sort(order[: (len(columns) + 1) // 2])
        if base is None:
            base = _logits(pretrained, data, labels, class_names)[:, columns]
        predict = fine_tune(columns[half].tolist(), seed + index)
        tuned = _logits(predict, data, labels, class_names)[:, columns]
        absent = ~np.isin(true, half)
        floor = float(np.mean(base.argmax(axis=1)[absent] == true[absent]))
        gamma, accuracy, absent_accuracy = best_gamma(tuned, true, half.tolist(), floor)
        split = PseudoSplit(columns[half].tolist(), gamma, accuracy, absent_accuracy, floor, absent_accuracy >= floor)
        if path is not None:
            _write(path, key, split)
        splits.append(split)
    return splits


def best_gamma(
    logits: Any, labels: Any, seen_classes: Sequence[int], floor: float = 0.0
) -> tuple[float, float, float]:
    """
    The gamma with the highest accuracy, of those that bring the accuracy on absent classes to `floor` at least.

    Every interval between two values at which a decision flips is tried, and gamma is taken from its middle. Of intervals
    with the same accuracy, the one with the better accuracy on absent classes wins, then the smaller gamma. Where no gamma
    reaches the floor, those come into question that come closest.

    Args:
        logits (array-like): Of held-out samples, shape `(N, C)`.
        labels (array-like of `int`): Their classes, shape `(N,)`; of seen and absent classes.
        seen_classes (`Sequence[int]`): Indices of the classes that were fine-tuned on.
        floor (`float`, *optional*, defaults to 0.0): Accuracy in [0, 1].

    Returns:
        `tuple[float, float, float]`: gamma, the accuracy at it, and the accuracy on absent classes at it.
    """
    labels = as_array(labels)
    curve = seen_unseen_curve(as_array(logits), labels, seen_classes)
    share = float(np.isin(labels, list(seen_classes)).mean())
    accuracy = share * curve.acc_s_y + (1 - share) * curve.acc_u_y
    # Accuracies are fractions of whole numbers of samples; sums of them differ in the last bits.
    reachable = curve.acc_u_y >= min(floor, curve.acc_u_y.max()) - 1e-9
    accuracy = np.where(reachable, np.round(accuracy, 9), -1.0)
    candidates = np.flatnonzero(accuracy == accuracy.max())
    best = candidates[np.argmax(np.round(curve.acc_u_y[candidates], 9))]
    flips = curve.flips
    ends = np.concatenate([[flips[0] - 1], (flips[:-1] + flips[1:]) / 2, [flips[-1] + 1]])
    absent_accuracy = float(curve.acc_u_y[best])
    return float(ends[best]), float(share * curve.acc_s_y[best] + (1 - share) * absent_accuracy), absent_accuracy


def _check(labels: np.ndarray, seen_classes: list[int], num_splits: int) -> None:
    if num_splits < 1:
        raise ValueError(f"`num_splits` must be at least 1, got {num_splits}.")
    if len(seen_classes) < 4:
        raise ValueError(
            f"PCV fine-tunes on half of the seen classes, and takes at least 4 of them; got {len(seen_classes)}. Use "
            "`method='alg'`."
        )
    if labels.ndim != 1 or not len(labels):
        raise ValueError("The calibration set is empty: PCV needs held-out samples of the seen classes, with labels.")
    outside = np.setdiff1d(labels, seen_classes)
    if outside.size:
        raise ValueError(f"`labels` has samples of absent classes ({outside[:5].tolist()}): PCV must not know them.")
    missing = np.setdiff1d(seen_classes, labels)
    if missing.size:
        raise ValueError(f"`data` has no sample of the seen classes {missing[:5].tolist()}; PCV needs some of each.")


def _logits(predict: Predict, data: Any, labels: np.ndarray, class_names: list[str]) -> np.ndarray:
    logits = as_array(predict(data))
    if logits.shape != (len(labels), len(class_names)):
        raise ValueError(
            f"`predict(data)` must give logits of shape {(len(labels), len(class_names))}, one row for each label and one "
            f"column for each class, got {logits.shape}."
        )
    return logits


def _fingerprint(
    labels: np.ndarray, seen_classes: list[int], class_names: list[str], num_splits: int, seed: int
) -> str:
    content = json.dumps([labels.tolist(), seen_classes, class_names, num_splits, seed])
    return hashlib.sha256(content.encode()).hexdigest()


def _write(path: Path, key: str, split: PseudoSplit) -> None:
    text = json.dumps({"run": key, **asdict(split)}, indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read(path: Path, key: str) -> PseudoSplit:
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.pop("run", None) != key:
        raise ValueError(
            f"{path} belongs to another run: classes, samples, seed or number of splits differ. Choose another `state_dir`, "
            "or delete it."
        )
    return PseudoSplit(**content)
