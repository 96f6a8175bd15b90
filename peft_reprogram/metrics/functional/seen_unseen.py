"""Accuracy of a classifier that was fine-tuned on a part of its classes (arXiv 2409.16223)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import as_labels, as_logits, as_scores


class SeenUnseenCurve(NamedTuple):
    """
    Accuracies between each two neighbouring values of gamma at which a decision flips.

    Attributes:
        flips (`np.ndarray`): The G distinct values of gamma, ascending: below it a sample's best class is seen, above
            it unseen. Shape `(G,)`.
        acc_s_y (`np.ndarray`): Accuracy on samples of seen classes: below `flips[0]`, between `flips[0]` and
            `flips[1]`, ..., above `flips[-1]`. It falls from Acc_S/S to 0. Shape `(G + 1,)`.
        acc_u_y (`np.ndarray`): The same on samples of unseen classes; it rises from 0 to Acc_U/U. Shape `(G + 1,)`.
    """

    flips: np.ndarray
    acc_s_y: np.ndarray
    acc_u_y: np.ndarray


def seen_unseen_curve(logits: Any, labels: Any, seen_classes: Any) -> SeenUnseenCurve:
    """
    Sweeps the calibration factor gamma of argmax_c (z_c + gamma * 1[c unseen]) through every value that flips a
    decision. Exactly at a flip the outcome would depend on the order of the classes, so the curve has its points
    between the flips, where it does not.

    Args:
        logits (array-like): Over all classes, shape `(N, C)`, finite.
        labels (array-like of `int`): True class indices, shape `(N,)`.
        seen_classes (array-like of `int`): Indices of the classes that were fine-tuned on; neither none nor all.

    Returns:
        [`SeenUnseenCurve`]

    Raises:
        ValueError: If shapes, ranges or types do not fit, or `labels` lacks seen or unseen classes.
    """
    z, true, seen = _checked(logits, labels, seen_classes)
    best_seen, right_among_seen = _best_within(z, true, seen)
    best_unseen, right_among_unseen = _best_within(z, true, ~seen)
    flips, index = np.unique(best_seen - best_unseen, return_inverse=True)
    is_seen = seen[true]
    lost = np.bincount(index[right_among_seen], minlength=len(flips)) / is_seen.sum()
    won = np.bincount(index[right_among_unseen], minlength=len(flips)) / (~is_seen).sum()
    return SeenUnseenCurve(
        flips,
        np.append(np.cumsum(lost[::-1])[::-1], 0.0),
        np.insert(np.cumsum(won), 0, 0.0),
    )


def ausuc(logits: Any, labels: Any, seen_classes: Any) -> float:
    """
    Area under the seen-unseen accuracy curve (Chao et al. 2016, arXiv 1605.04253): trapezoid area under (Acc_S/Y,
    Acc_U/Y), swept exactly by [`seen_unseen_curve`], whose arguments and errors it has. The higher the better.

    Returns:
        `float`: Of [0, 1].
    """
    _, acc_s_y, acc_u_y = seen_unseen_curve(logits, labels, seen_classes)
    return float(np.sum((acc_s_y[:-1] - acc_s_y[1:]) * (acc_u_y[:-1] + acc_u_y[1:])) / 2)


def seen_unseen_metrics(logits: Any, labels: Any, seen_classes: Any, gamma: float = 0.0) -> dict[str, float]:
    """
    Accuracies on seen and unseen classes. `acc_a_b` reads: samples of classes A, decided among classes B, where Y are
    all, S the seen and U the unseen ones.

    Args:
        logits, labels, seen_classes: As for [`seen_unseen_curve`].
        gamma (`float`, *optional*, defaults to 0.0): Added to the logits of unseen classes.

    Returns:
        `dict[str, float]`: `acc_y_y`, `acc_s_y`, `acc_u_y` (at `gamma`), `acc_s_s`, `acc_u_u` (free of gamma), `ausuc`,
        `gamma`, and the numbers of samples `n_seen` and `n_unseen`. All accuracies are averages over samples.
    """
    z, true, seen = _checked(logits, labels, seen_classes)
    if not np.isfinite(gamma):
        raise ValueError(f"`gamma` must be finite, got {gamma}.")
    correct = np.argmax(z + gamma * ~seen, axis=1) == true
    is_seen = seen[true]
    return {
        "acc_y_y": float(correct.mean()),
        "acc_s_y": float(correct[is_seen].mean()),
        "acc_u_y": float(correct[~is_seen].mean()),
        "acc_s_s": float(_best_within(z, true, seen)[1][is_seen].mean()),
        "acc_u_u": float(_best_within(z, true, ~seen)[1][~is_seen].mean()),
        "ausuc": ausuc(z, true, np.flatnonzero(seen)),
        "gamma": float(gamma),
        "n_seen": int(is_seen.sum()),
        "n_unseen": int((~is_seen).sum()),
    }


def ncm_accuracy(reference_features: Any, reference_labels: Any, features: Any, labels: Any) -> float:
    """
    Accuracy of the nearest class mean by cosine similarity, which measures features free of the head: compare it before
    and after fine-tuning.

    Args:
        reference_features (array-like): Features that the class means are taken of, shape `(M, D)`.
        reference_labels (array-like of `int`): Their classes, shape `(M,)`.
        features (array-like): Features to classify, shape `(N, D)`.
        labels (array-like of `int`): Their classes, shape `(N,)`; each must occur in `reference_labels`.

    Returns:
        `float`: Of [0, 1].

    Raises:
        ValueError: If shapes do not fit, a class has no mean, or a mean or feature is zero (it has no direction).
    """
    reference = as_scores("reference_features", reference_features, ndim=2)
    reference_true = as_labels("reference_labels", reference_labels, length=len(reference), of="reference_features")
    query = as_scores("features", features, ndim=2)
    true = as_labels("labels", labels, length=len(query), of="features")
    if query.shape[1] != reference.shape[1]:
        raise ValueError(
            f"`features` and `reference_features` must have the same width, got {query.shape[1]} and "
            f"{reference.shape[1]}."
        )
    classes, index = np.unique(reference_true, return_inverse=True)
    missing = np.setdiff1d(true, classes)
    if missing.size:
        raise ValueError(f"`labels` has classes without a mean, since `reference_labels` lacks them: {missing[:10]}.")
    means = np.zeros((len(classes), reference.shape[1]))
    np.add.at(means, index, reference)
    # The sum points where the mean does; the length is normalised away.
    cosines = _directions("features", query) @ _directions("reference_features (class mean)", means).T
    return float(np.mean(classes[cosines.argmax(axis=1)] == true))


def _checked(logits: Any, labels: Any, seen_classes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, true = as_logits(logits, labels)
    classes = list(seen_classes)
    indices = as_labels("seen_classes", classes, length=len(classes), of="logits", num_classes=z.shape[1])
    seen = np.zeros(z.shape[1], bool)
    seen[indices] = True
    if seen.all() or not seen.any():
        raise ValueError(
            f"`seen_classes` must be some, not {'all' if seen.all() else 'none'}, of the {len(seen)} classes."
        )
    is_seen = seen[true]
    if is_seen.all() or not is_seen.any():
        absent = "unseen" if is_seen.all() else "seen"
        raise ValueError(f"`labels` has no sample of the {absent} classes: samples of both kinds are needed.")
    return z, true, seen


def _best_within(z: np.ndarray, true: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best logit among the member classes, and whether it is the true class's (the lowest index wins a tie)."""
    classes = np.flatnonzero(members)
    among = z[:, classes]
    return among.max(axis=1), classes[among.argmax(axis=1)] == true


def _directions(name: str, vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"`{name}` holds a zero vector (row {int(np.argmin(lengths))}), which has no direction.")
    return vectors / lengths
