"""Confidence intervals against scipy and against the coverage they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from peft_reprogram.metrics import accuracy, auroc, bootstrap_interval, mean_and_std, ood_metrics


def test_interval_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=200)
    got = bootstrap_interval(lambda x: float(x.mean()), values, resamples=4000, confidence=0.9, seed=1)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    standard_error = values.std() / np.sqrt(len(values))
    assert got.value == values.mean()
    assert got.low == pytest.approx(reference.low, abs=0.15 * standard_error)
    assert got.high == pytest.approx(reference.high, abs=0.15 * standard_error)
    assert got.confidence == 0.9


def test_intervals_cover_the_truth_as_often_as_they_say():
    truth = stats.norm.cdf(1 / np.sqrt(2))  # AUROC of N(1, 1) against N(0, 1)
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        interval = bootstrap_interval(
            auroc, rng.normal(1, 1, 80), rng.normal(0, 1, 60), resamples=100, confidence=0.9, seed=seed
        )
        assert interval.low <= interval.value <= interval.high
        hits += interval.low <= truth <= interval.high
    assert 80 <= hits <= 98


def test_paired_rows_stay_together():
    labels = np.arange(50) % 5
    got = bootstrap_interval(accuracy, labels, labels, paired=True, resamples=20)
    assert (got.low, got.high) == (1.0, 1.0)
    apart = bootstrap_interval(accuracy, labels, labels, resamples=20)
    assert apart.high < 0.6


def test_all_metrics_from_the_same_draws():
    rng = np.random.default_rng(0)
    ids, oods = rng.normal(1, 1, 100), rng.normal(0, 1, 80)
    got = bootstrap_interval(ood_metrics, ids, oods, resamples=50, seed=4)
    assert {"auroc", "aupr_in", "aupr_out", "fpr", "fpr_ood_positive", "detection_error"} <= got.keys()
    assert not {"preset", "positive", "n_id", "n_ood"} & got.keys()
    assert got["auroc"] == bootstrap_interval(auroc, ids, oods, resamples=50, seed=4)
    assert got["auroc"] != bootstrap_interval(auroc, ids, oods, resamples=50, seed=5)


def test_mean_and_std():
    values = [0.91, 0.87, 0.9]
    mean, std, n = mean_and_std(values)
    assert (mean, std, n) == (pytest.approx(np.mean(values)), pytest.approx(stats.tstd(values)), 3)
    assert str(mean_and_std(values)) == "0.8933 ± 0.021 (n = 3)"
    assert mean_and_std([0.5]) == (0.5, None, 1)
    assert str(mean_and_std([0.5])) == "0.5"


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="`samples` must be one or more arrays"):
        bootstrap_interval(np.mean)
    with pytest.raises(ValueError, match="`samples` must be one or more arrays"):
        bootstrap_interval(np.mean, [])
    with pytest.raises(ValueError, match=r"same length where `paired=True`, got \[1, 2\]"):
        bootstrap_interval(accuracy, [1], [1, 2], paired=True)
    with pytest.raises(ValueError, match="`resamples` must be at least 2"):
        bootstrap_interval(np.mean, [1.0], resamples=1)
    with pytest.raises(ValueError, match="`confidence` must be a fraction strictly between 0 and 1, got 95"):
        bootstrap_interval(np.mean, [1.0], confidence=95)
    with pytest.raises(ValueError, match="`values` is empty"):
        mean_and_std([])
    with pytest.raises(ValueError, match="`values` must be finite"):
        mean_and_std([np.nan])
