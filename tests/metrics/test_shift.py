"""Accuracy under shift against definitions written out by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from peft_reprogram.metrics import (
    ALEXNET_ERRORS,
    RobustnessBaseline,
    accuracy,
    balanced_accuracy,
    effective_robustness,
    group_accuracies,
    mean_corruption_error,
    relative_robustness,
    shift_metrics,
    summarize_shifts,
    worst_group_accuracy,
)


pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=60)
@given(pairs)
def test_accuracies_equal_sklearn(samples):
    predictions, labels = map(list, zip(*samples))
    assert accuracy(predictions, labels) == pytest.approx(sk.accuracy_score(labels, predictions), abs=1e-15)
    # scikit-learn warns where a class is predicted that does not occur; recall over the classes that do is the same.
    expected = sk.recall_score(labels, predictions, labels=sorted(set(labels)), average="macro", zero_division=0)
    assert balanced_accuracy(predictions, labels) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from(["land", "water"])), min_size=1))
def test_groups(samples):
    predictions, labels, groups = map(list, zip(*samples))
    got = group_accuracies(predictions, labels, groups)
    for group in set(groups):
        of = [p == y for p, y, g in samples if g == group]
        assert got[group] == pytest.approx(sum(of) / len(of), abs=1e-15)
    assert got.keys() == set(groups)
    assert worst_group_accuracy(predictions, labels, groups) == min(got.values())


def test_shift_metrics_and_their_sum():
    predictions = [0, 1, 1, 0, 0, 0, 1, 1]
    labels = [0, 1, 1, 1, 0, 0, 0, 1]
    shifts = ["id"] * 4 + ["sketch"] * 3 + ["v2"]
    got = shift_metrics(predictions, labels, shifts, id_name="id")
    assert got["accuracy"] == {"id": 3 / 4, "sketch": 2 / 3, "v2": 1.0}
    assert got["balanced_accuracy"] == {"id": pytest.approx((1 + 2 / 3) / 2), "sketch": 2 / 3, "v2": 1.0}
    assert got["n"] == {"id": 4, "sketch": 3, "v2": 1}
    assert got["mean"] == pytest.approx((2 / 3 + 1) / 2)
    assert (got["worst"], got["worst_shift"], got["n_shifts"]) == (2 / 3, "sketch", 2)
    assert got["relative_robustness"] == {"sketch": pytest.approx(8 / 9), "v2": pytest.approx(4 / 3)}
    assert got["mean_relative_robustness"] == pytest.approx(10 / 9)
    without = shift_metrics(predictions, labels, shifts)
    assert without["mean"] == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    assert "relative_robustness" not in without


def logit(p):
    return math.log(p / (1 - p))


def test_effective_robustness_against_numpy_polyfit():
    rng = np.random.default_rng(0)
    ids = rng.uniform(0.5, 0.9, 12)
    shifted = 1 / (1 + np.exp(-(0.9 * np.log(ids / (1 - ids)) - 0.7 + rng.normal(0, 0.1, 12))))
    baseline = RobustnessBaseline.fit(ids, shifted)
    slope, intercept = np.polyfit([logit(p) for p in ids], [logit(p) for p in shifted], 1)
    assert (baseline.slope, baseline.intercept) == pytest.approx((slope, intercept), rel=1e-9)
    assert baseline.n_models == 12
    expected = 1 / (1 + math.exp(-(slope * logit(0.75) + intercept)))
    assert baseline.predict(0.75) == pytest.approx(expected, abs=1e-12)
    assert effective_robustness(0.7, 0.75, baseline) == pytest.approx(0.7 - expected, abs=1e-12)
    on_the_line = RobustnessBaseline.fit([0.5, 0.8], [0.3, 0.6])
    assert effective_robustness(0.6, 0.8, on_the_line) == pytest.approx(0, abs=1e-12)


# The percentages of the paper's tables.
PUBLISHED = {
    "gaussian_noise": 88.6,
    "shot_noise": 89.4,
    "impulse_noise": 92.3,
    "defocus_blur": 82.0,
    "glass_blur": 82.6,
    "motion_blur": 78.6,
    "zoom_blur": 79.8,
    "snow": 86.7,
    "frost": 82.7,
    "fog": 81.9,
    "brightness": 56.5,
    "contrast": 85.3,
    "elastic_transform": 64.6,
    "pixelate": 71.8,
    "jpeg_compression": 60.7,
}


def test_alexnet_errors_are_the_published_ones():
    assert ALEXNET_ERRORS.keys() == PUBLISHED.keys()
    for name, percent in PUBLISHED.items():
        assert 100 * ALEXNET_ERRORS[name] == pytest.approx(percent, abs=0.0501), name


def test_mean_corruption_error():
    rng = np.random.default_rng(0)
    errors = {name: rng.uniform(0.1, 0.9, 5).tolist() for name in PUBLISHED}
    got = mean_corruption_error(errors, normalization="alexnet")
    expected = {name: sum(values) / (5 * ALEXNET_ERRORS[name]) for name, values in errors.items()}
    assert got["corruption_error"] == pytest.approx(expected)
    assert got["mce"] == pytest.approx(sum(expected.values()) / 15)
    assert (got["normalization"], got["n_corruptions"], got["n_severities"]) == ("alexnet", 15, 5)
    raw = mean_corruption_error(errors, normalization="none")
    assert raw["mce"] == pytest.approx(np.mean(list(errors.values())))
    assert raw["normalization"] == "none"
    itself = {name: [value] * 5 for name, value in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(itself, normalization="alexnet")["mce"] == pytest.approx(1.0)


def test_normalization_is_never_assumed():
    with pytest.raises(TypeError, match="normalization"):
        mean_corruption_error({"fog": [0.5]})
    with pytest.raises(ValueError, match="Unknown `normalization` 'raw'; known are 'alexnet' and 'none'"):
        mean_corruption_error({"fog": [0.5]}, normalization="raw")


@pytest.mark.parametrize(
    ("errors", "normalization", "message"),
    [
        ({}, "none", "`errors` is empty"),
        ({"fog": [50.0]}, "none", r"`errors\['fog'\]` must be a fraction between 0 and 1, got 50"),
        ({"fog": [math.nan]}, "none", r"`errors\['fog'\]` must be finite"),
        ({"fog": [0.1], "snow": [0.1, 0.2]}, "none", r"same number of severities everywhere, got \[1, 2\]"),
        ({"fog": [0.1] * 5}, "alexnet", "missing .*'gaussian_noise'"),
        ({**dict.fromkeys(PUBLISHED, [0.1] * 5), "spatter": [0.1] * 5}, "alexnet", r"AlexNet error \['spatter'\]"),
        (dict.fromkeys(PUBLISHED, [0.1] * 4), "alexnet", "severities 4"),
    ],
)
def test_bad_corruption_errors_are_refused(errors, normalization, message):
    with pytest.raises(ValueError, match=message):
        mean_corruption_error(errors, normalization=normalization)


@pytest.mark.parametrize("metric", [accuracy, balanced_accuracy])
@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], [], "`predictions` is empty"),
        ([1], [1, 2], "`labels` and `predictions` must have the same length, got 2 and 1"),
        ([0.5], [1], "`predictions` must hold integers"),
        ([[1]], [1], r"`predictions` must have 1 dimension, got an array of shape \(1, 1\)"),
    ],
)
def test_bad_predictions_are_refused(metric, predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(predictions, labels)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="`shift_accuracy` must be a fraction between 0 and 1, got 70"):
        relative_robustness(70, 0.5)
    with pytest.raises(ValueError, match="`id_accuracy` is 0"):
        relative_robustness(0.5, 0)
    with pytest.raises(ValueError, match="`id_accuracies` must be a fraction strictly between 0 and 1, got 1"):
        RobustnessBaseline.fit([0.5, 1.0], [0.5, 0.6])
    with pytest.raises(ValueError, match="same length, got 2 and 1"):
        RobustnessBaseline.fit([0.5, 0.6], [0.5])
    with pytest.raises(ValueError, match="two or more different values"):
        RobustnessBaseline.fit([0.5, 0.5], [0.4, 0.6])
    with pytest.raises(ValueError, match="`accuracies` is empty"):
        summarize_shifts({})
    with pytest.raises(ValueError, match=r"`accuracies\['v2'\]` must be a fraction"):
        summarize_shifts({"v2": math.nan})
    with pytest.raises(ValueError, match="`groups` must name one for each of the 2"):
        group_accuracies([0, 1], [0, 1], ["a"])
    with pytest.raises(ValueError, match="`id_name` 'val' is not among `shifts`, which has 'a', 'b'"):
        shift_metrics([0, 1], [0, 1], ["a", "b"], id_name="val")
    with pytest.raises(ValueError, match="nothing but the in-distribution set 'a'"):
        shift_metrics([0, 1], [0, 1], ["a", "a"], id_name="a")
