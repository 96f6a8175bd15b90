"""Seen and unseen classes against a brute-force sweep of gamma, ties included."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from peft_reprogram.metrics import ausuc, ncm_accuracy, seen_unseen_curve, seen_unseen_metrics


def sweep(logits, labels, seen):
    """Predicts anew at one gamma between each two flips, in exact arithmetic on the classes' argmax."""
    unseen = [c for c in range(len(logits[0])) if c not in seen]
    z = [[Fraction(v) for v in row] for row in logits]
    flips = sorted({max(row[c] for c in seen) - max(row[c] for c in unseen) for row in z})
    gammas = [flips[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(flips)), flips[-1] + 1]
    points = []
    for gamma in gammas:
        hits = []
        for row, label in zip(z, labels):
            shifted = [v + (gamma if c in unseen else 0) for c, v in enumerate(row)]
            hits.append((label in seen, shifted.index(max(shifted)) == label))
        points.append(
            tuple(
                Fraction(sum(hit for kind, hit in hits if kind is of), sum(kind is of for kind, _ in hits))
                for of in (True, False)
            )
        )
    return flips, points


@st.composite
def problems(draw):
    classes = draw(st.integers(2, 5))
    seen = draw(st.sets(st.integers(0, classes - 1), min_size=1, max_size=classes - 1))
    n = draw(st.integers(2, 25))
    # Quarters tie often and subtract exactly; the oracle compares fractions, so flips must not be rounded.
    value = st.integers(-6, 6).map(lambda k: k / 4)
    logits = draw(st.lists(st.lists(value, min_size=classes, max_size=classes), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    kinds = {label in seen for label in labels}
    assume(len(kinds) == 2)
    return logits, labels, seen


@settings(max_examples=150)
@given(problems())
def test_curve_and_area_equal_brute_force(problem):
    logits, labels, seen = problem
    flips, points = sweep(logits, labels, seen)
    curve = seen_unseen_curve(logits, labels, seen)
    assert curve.flips.tolist() == [float(f) for f in flips]
    assert curve.acc_s_y == pytest.approx([float(s) for s, _ in points], abs=1e-12)
    assert curve.acc_u_y == pytest.approx([float(u) for _, u in points], abs=1e-12)
    area = sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    assert ausuc(logits, labels, seen) == pytest.approx(float(area), abs=1e-12)


@settings(max_examples=60)
@given(problems(), st.floats(-3, 3))
def test_accuracies_equal_their_definitions(problem, gamma):
    logits, labels, seen = problem
    z, y = np.array(logits), np.array(labels)
    members = np.isin(np.arange(z.shape[1]), list(seen))
    is_seen = members[y]
    hit = (z + gamma * ~members).argmax(1) == y
    within = {
        "acc_s_s": np.where(members, z, -np.inf).argmax(1)[is_seen] == y[is_seen],
        "acc_u_u": np.where(members, -np.inf, z).argmax(1)[~is_seen] == y[~is_seen],
        "acc_y_y": hit,
        "acc_s_y": hit[is_seen],
        "acc_u_y": hit[~is_seen],
    }
    got = seen_unseen_metrics(logits, labels, seen, gamma)
    for name, values in within.items():
        assert got[name] == pytest.approx(values.mean(), abs=1e-12), name
    assert got["ausuc"] == ausuc(logits, labels, seen)
    assert (got["gamma"], got["n_seen"], got["n_unseen"]) == (gamma, is_seen.sum(), (~is_seen).sum())
    curve = seen_unseen_curve(logits, labels, seen)
    assert curve.acc_s_y[[0, -1]] == pytest.approx([got["acc_s_s"], 0])
    assert curve.acc_u_y[[0, -1]] == pytest.approx([0, got["acc_u_u"]])


def test_area_of_a_perfect_and_of_a_blind_classifier():
    labels = [0, 1, 2, 3]
    assert ausuc(np.eye(4), labels, [0, 1]) == 1.0
    # Every flip at once: a straight line from (1, 0) to (0, 1).
    assert ausuc([[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]], labels, [0, 1]) == 0.5


def test_gamma_may_be_any_seen_class_container():
    logits, labels = np.eye(3), [0, 1, 2]
    values = {ausuc(logits, labels, seen) for seen in ([0, 1], (0, 1), {0, 1}, np.array([1, 0]), range(2))}
    assert values == {1.0}


def test_ncm_equals_a_loop():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 8))
    reference_labels, labels = rng.integers(4, size=60) * 3, rng.integers(4, size=50) * 3
    reference = means[reference_labels // 3] + rng.normal(size=(60, 8))
    features = (means[labels // 3] + rng.normal(size=(50, 8))) * rng.uniform(0.1, 10, (50, 1))
    right = 0
    for feature, label in zip(features, labels):
        cosines = {}
        for c in set(reference_labels.tolist()):
            mean = reference[reference_labels == c].mean(0)
            cosines[c] = feature @ mean / np.linalg.norm(feature) / np.linalg.norm(mean)
        right += max(cosines, key=cosines.get) == label
    got = ncm_accuracy(reference, reference_labels, features, labels)
    assert got == pytest.approx(right / 50)
    assert 0.3 < got < 1.0
    classes = np.unique(reference_labels)
    class_means = [reference[reference_labels == c].mean(0) for c in classes]
    nearest = KNeighborsClassifier(1, metric="cosine").fit(class_means, classes)
    assert got == pytest.approx(nearest.score(features, labels))


@pytest.mark.parametrize("metric", [ausuc, seen_unseen_curve, seen_unseen_metrics])
@pytest.mark.parametrize(
    ("logits", "labels", "seen", "message"),
    [
        ([[1.0, 2.0]] * 2, [0, 1], [], "`seen_classes` must be some, not none, of the 2 classes"),
        ([[1.0, 2.0]] * 2, [0, 1], [0, 1], "`seen_classes` must be some, not all, of the 2 classes"),
        ([[1.0, 2.0]] * 2, [0, 1], [2], "`seen_classes` must lie in 0 .. 1"),
        ([[1.0, 2.0]] * 2, [0, 0], [0], "`labels` has no sample of the unseen classes"),
        ([[1.0, 2.0]] * 2, [1, 1], [0], "`labels` has no sample of the seen classes"),
        ([[1.0, np.inf]] * 2, [0, 1], [0], "`logits` must be finite, but holds 0 NaN and 2 infinite"),
        ([[1.0, 2.0]] * 2, [0], [0], "`labels` and `logits` must have the same length, got 1 and 2"),
        ([[1.0, 2.0]] * 2, [0, 1], ["cat"], "`seen_classes` must hold integers"),
    ],
)
def test_bad_input_is_refused(metric, logits, labels, seen, message):
    with pytest.raises(ValueError, match=message):
        metric(logits, labels, seen)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="`gamma` must be finite"):
        seen_unseen_metrics(np.eye(2), [0, 1], [0], gamma=np.nan)
    with pytest.raises(ValueError, match="same width, got 3 and 2"):
        ncm_accuracy(np.eye(2), [0, 1], np.eye(3), [0, 1, 1])
    with pytest.raises(ValueError, match=r"classes without a mean, .* lacks them: \[7\]"):
        ncm_accuracy(np.eye(2), [0, 1], np.eye(2), [0, 7])
    with pytest.raises(ValueError, match=r"`features` holds a zero vector \(row 1\)"):
        ncm_accuracy(np.eye(2), [0, 1], [[1.0, 0.0], [0.0, 0.0]], [0, 1])
