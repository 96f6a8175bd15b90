"""Calibration against scikit-learn, scipy and a loop over bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import softmax
from sklearn import metrics as sk

from peft_reprogram.metrics import (
    brier_score,
    calibration_metrics,
    expected_calibration_error,
    log_softmax,
    negative_log_likelihood,
    reliability_bins,
)


def sample(n, classes, seed, decimals=12):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(0, 2, (n, classes)) + 2 * np.eye(classes)[labels]
    return logits.round(decimals), labels


cases = {
    "n": st.integers(1, 120),
    "classes": st.integers(2, 6),
    "seed": st.integers(0, 2**32 - 1),
    "temperature": st.floats(0.1, 20),
}


@settings(max_examples=50)
@given(**cases)
def test_nll_and_brier_equal_their_oracles(n, classes, seed, temperature):
    logits, labels = sample(n, classes, seed)
    probabilities = softmax(logits / temperature, axis=1)
    expected = -scipy_log_softmax(logits / temperature, axis=1)[np.arange(n), labels].mean()
    assert negative_log_likelihood(logits, labels, temperature) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    expected = np.mean(np.sum((probabilities - np.eye(classes)[labels]) ** 2, axis=1))
    assert brier_score(logits, labels, temperature) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    if probabilities.min() > 1e-12:  # scikit-learn clips below
        sklearn_value = sk.log_loss(labels, probabilities, labels=np.arange(classes))
        # Log-probabilities are logits that are normalised already.
        assert negative_log_likelihood(np.log(probabilities), labels) == pytest.approx(sklearn_value, rel=1e-9)


@settings(max_examples=60)
@given(**cases, bins=st.integers(1, 20), decimals=st.sampled_from([0, 12]))
def test_equal_width_ece_equals_a_loop_over_bins(n, classes, seed, temperature, bins, decimals):
    logits, labels = sample(n, classes, seed, decimals)
    probabilities = softmax(logits / temperature, axis=1)
    confidence, correct = probabilities.max(1), logits.argmax(1) == labels
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.sum() / n * abs(correct[inside].mean() - confidence[inside].mean())
    if np.abs(confidence[:, None] - np.arange(1, bins) / bins).min(initial=1) > 1e-12:  # else rounding picks the bin
        got = expected_calibration_error(logits, labels, temperature, bins=bins)
        assert got == pytest.approx(total, abs=1e-9)


@settings(max_examples=60)
@given(n=st.integers(1, 100), bins=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_equal_mass_bins_hold_equally_many(n, bins, seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(n), rng.random(n) < 0.5
    table = reliability_bins(confidence, correct, bins=bins, binning="equal_mass")
    assert table["count"].sum() == n
    assert table["count"].max() - table["count"].min() <= 1
    assert len(table["count"]) == min(n, bins)
    # Whatever the order of the samples.
    order = rng.permutation(n)
    again = reliability_bins(confidence[order], correct[order], bins=bins, binning="equal_mass")
    for name, values in table.items():
        assert again[name] == pytest.approx(values, abs=1e-12), name


def test_ties_are_not_separated_by_equal_mass_bins():
    table = reliability_bins([0.5] * 6 + [0.9] * 2, [1] * 3 + [0] * 3 + [1, 1], bins=4, binning="equal_mass")
    assert table["count"].tolist() == [6, 2]
    assert table["accuracy"].tolist() == [0.5, 1.0]
    assert table["confidence"] == pytest.approx([0.5, 0.9])


def test_bin_edges_belong_to_the_bin_below():
    table = reliability_bins([0.0, 0.2, 0.4, 1.0], [1, 1, 1, 1], bins=5)
    assert table["upper"].tolist() == [0.2, 0.4, 1.0]
    assert table["count"].tolist() == [2, 1, 1]


def test_a_perfectly_calibrated_sample_has_no_error():
    log_odds = np.log(0.75 / 0.25)
    logits, labels = np.tile([log_odds, 0.0], (4, 1)), [0, 0, 0, 1]
    assert expected_calibration_error(logits, labels) == pytest.approx(0, abs=1e-15)
    assert expected_calibration_error(logits, [0, 0, 0, 0], binning="equal_mass") == pytest.approx(0.25)


def test_all_at_once_agrees_with_the_single_functions():
    logits, labels = sample(200, 5, 0)
    got = calibration_metrics(logits, labels, 1.7, bins=10)
    assert got["ece"] == expected_calibration_error(logits, labels, 1.7, bins=10)
    assert got["ece_equal_mass"] == expected_calibration_error(logits, labels, 1.7, bins=10, binning="equal_mass")
    assert got["nll"] == negative_log_likelihood(logits, labels, 1.7)
    assert got["brier"] == brier_score(logits, labels, 1.7)
    assert got["accuracy"] == np.mean(logits.argmax(1) == labels)
    assert got["confidence"] == pytest.approx(softmax(logits / 1.7, axis=1).max(1).mean())
    assert (got["temperature"], got["bins"], got["n"]) == (1.7, 10, 200)


def test_logits_are_upcast_before_the_softmax():
    logits = torch.tensor([[100.0, 99.0], [50.0, 53.0]], dtype=torch.bfloat16)
    expected = torch.log_softmax(logits.double(), dim=1).numpy()
    assert log_softmax(logits) == pytest.approx(expected, abs=1e-14)
    assert log_softmax([[1e4, -1e4]]).tolist() == [[0.0, -2e4]]
    assert negative_log_likelihood([[1e4, -1e4]], [1]) == 2e4


@pytest.mark.parametrize(
    "metric", [negative_log_likelihood, brier_score, expected_calibration_error, calibration_metrics]
)
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[1.0, np.nan]], [0], r"`logits` must be finite, but holds 1 NaN and 0 infinite .* index \(0, 1\)"),
        (np.empty((0, 3)), [], "`logits` is empty"),
        ([1.0, 2.0], [0], r"`logits` must have 2 dimension\(s\)"),
        ([[1.0]], [0], "2 or more classes"),
        ([[1.0, 2.0]], [0, 1], "`labels` and `logits` must have the same length, got 2 and 1"),
        ([[1.0, 2.0]], [2], r"`labels` must lie in 0 .. 1 \(`logits` has 2 classes\), got values from 2 to 2"),
        ([[1.0, 2.0]], [-1], "`labels` must lie in 0 .. 1"),
    ],
)
def test_bad_input_is_refused(metric, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(logits, labels)


@pytest.mark.parametrize("temperature", [0, -1, np.inf, np.nan])
def test_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
        calibration_metrics([[1.0, 2.0]], [0], temperature)


def test_bad_bins_are_refused():
    with pytest.raises(ValueError, match="`bins` must be at least 1, got 0"):
        expected_calibration_error([[1.0, 2.0]], [0], bins=0)
    with pytest.raises(ValueError, match="Unknown `binning` 'quantile'; known are 'equal_width', 'equal_mass'"):
        expected_calibration_error([[1.0, 2.0]], [0], binning="quantile")
    with pytest.raises(ValueError, match=r"`confidences` must lie in \[0, 1\]"):
        reliability_bins([1.5], [1])
