"""Counts that merge: parts add up to the whole, and binning keeps within the bound it states."""

from __future__ import annotations

import functools
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_reprogram.metrics import PRESETS, ScoreCounts, autc, ood_bounds, ood_metrics


def assert_same(left: ScoreCounts, right: ScoreCounts):
    assert left.thresholds.tolist() == right.thresholds.tolist()
    assert left.id_counts.tolist() == right.id_counts.tolist()
    assert left.ood_counts.tolist() == right.ood_counts.tolist()
    assert (left.resolution, left.max_groups) == (right.resolution, right.max_groups)


values = st.one_of(
    st.floats(-1.7e308, 1.7e308, allow_nan=False),
    st.floats(-1, 1, allow_nan=False),
    st.integers(-4, 4).map(float),
)
parts = st.lists(st.tuples(st.lists(values, max_size=12), st.lists(values, max_size=12)), min_size=1, max_size=6)


@settings(max_examples=200)
@given(parts, st.sampled_from([None, 4, 7, 16]), st.randoms(use_true_random=False))
def test_parts_add_up_to_the_whole_in_any_order(parts, max_groups, random):
    whole = ScoreCounts.from_scores(
        [s for ids, _ in parts for s in ids], [s for _, oods in parts for s in oods], max_groups=max_groups
    )
    counted = [ScoreCounts.from_scores(ids, oods, max_groups=max_groups) for ids, oods in parts]
    random.shuffle(counted)
    assert_same(functools.reduce(operator.add, counted), whole)
    middle = len(counted) // 2
    if middle:  # a tree of merges, as processes do it
        left, right = sum(counted[:middle], ScoreCounts()), sum(counted[middle:], ScoreCounts())
        assert_same(right + left, whole)
    assert (whole.id_counts + whole.ood_counts > 0).all()
    assert (np.diff(whole.thresholds) > 0).all()
    assert max_groups is None or len(whole.thresholds) <= max_groups


@settings(max_examples=50)
@given(parts)
def test_exact_counts_are_the_histogram_of_distinct_values(parts):
    ids, oods = [s for part, _ in parts for s in part], [s for _, part in parts for s in part]
    counts = ScoreCounts.from_scores(ids, oods)
    assert counts.thresholds.tolist() == sorted({*ids, *oods})
    assert counts.id_counts.tolist() == [ids.count(t) for t in counts.thresholds]
    assert counts.ood_counts.tolist() == [oods.count(t) for t in counts.thresholds]
    assert counts.resolution == 0.0


@pytest.mark.parametrize("preset", PRESETS)
def test_metrics_of_merged_counts_are_those_of_the_scores(preset):
    rng = np.random.default_rng(3)
    ids, oods = rng.normal(1, 1, 1001), rng.normal(0, 1, 777).round(1)
    merged = sum(
        (ScoreCounts.from_scores(ids[rank::3], oods[rank::3]) for rank in range(3)),
        ScoreCounts(),
    )
    assert ood_metrics(merged, preset=preset) == ood_metrics(ids, oods, preset)


@settings(max_examples=150)
@given(
    n_id=st.integers(1, 300),
    n_ood=st.integers(1, 300),
    max_groups=st.integers(4, 40),
    scale=st.sampled_from([1e-9, 1.0, 1e9]),
    decimals=st.sampled_from([0, 1, 12]),
    preset=st.sampled_from(sorted(PRESETS)),
    tpr=st.sampled_from([0.5, 0.8, 0.95, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_truth_lies_within_the_stated_bound(n_id, n_ood, max_groups, scale, decimals, preset, tpr, seed):
    rng = np.random.default_rng(seed)
    ids, oods = rng.normal(1, 1, n_id).round(decimals) * scale, rng.normal(0, 2, n_ood).round(decimals) * scale
    truth = ood_metrics(ids, oods, preset, tpr)
    counts = ScoreCounts.from_scores(ids, oods, max_groups=max_groups)
    binned, bounds = ood_metrics(counts, preset=preset, tpr=tpr), ood_bounds(counts, preset, tpr)
    assert bounds.keys() == {name for name in truth if name in bounds}
    assert ("detection_error" in bounds) == (preset != "mcm")
    for name, (low, high) in bounds.items():
        assert low - 1e-12 <= truth[name] <= high + 1e-12, name
        assert low - 1e-12 <= binned[name] <= high + 1e-12, name
        assert low <= high
        if counts.resolution == 0:
            assert low == high == truth[name]
    assert binned["resolution"] == counts.resolution
    assert binned["tied_fraction"] >= truth["tied_fraction"]


def test_bound_is_tight_enough_to_be_of_use():
    """65,536 groups over 500,000 scores with a long tail: four digits are certain."""
    rng = np.random.default_rng(0)
    ids, oods = rng.normal(2, 1, 250_000), rng.standard_t(3, 250_000)
    chunks = [ScoreCounts.from_scores(ids[i::5], oods[i::5], max_groups=65_536) for i in range(5)]
    counts = sum(chunks, ScoreCounts())
    assert counts.resolution > 0
    assert len(counts.thresholds) <= 65_536
    truth = ood_metrics(ids, oods)
    for name, (low, high) in ood_bounds(counts).items():
        assert low - 1e-12 <= truth[name] <= high + 1e-12
        assert high - low < 5e-4, name


def test_memory_stays_constant_while_scores_stream_in():
    rng = np.random.default_rng(0)
    counts = ScoreCounts(max_groups=1024)
    sizes = []
    for _ in range(40):
        counts += ScoreCounts.from_scores(rng.lognormal(0, 3, 2000), rng.lognormal(-1, 3, 1000), max_groups=1024)
        sizes.append(len(counts.thresholds))
    assert max(sizes) <= 1024
    assert (counts.n_id, counts.n_ood) == (80_000, 40_000)


def test_binned_counts_stay_exact_while_they_fit():
    ids, oods = np.arange(10) / 8, np.arange(5) / 8
    counts = ScoreCounts.from_scores(ids, oods, max_groups=10)
    assert counts.resolution == 0.0
    assert ood_bounds(counts)["auroc"] == (ood_metrics(ids, oods)["auroc"],) * 2
    assert ScoreCounts.from_scores(ids, oods, max_groups=9).resolution == 0.25


def test_counts_travel_between_processes():
    counts = ScoreCounts.from_scores([0.1, 0.2, 0.2], [0.1], max_groups=8)
    assert_same(pickle.loads(pickle.dumps(counts)), counts)


def test_one_side_alone_is_fine_until_a_metric_is_asked_for():
    ids = ScoreCounts.from_scores([1.0, 2.0])
    with pytest.raises(ValueError, match="`ood_scores` is empty"):
        ood_metrics(ids)
    with pytest.raises(ValueError, match="`id_scores` is empty"):
        ood_metrics(ScoreCounts.from_scores(ood_scores=[1.0]))
    assert ScoreCounts().tied_fraction == 0.0
    assert ood_metrics(ids + ScoreCounts.from_scores((), [0.0]))["auroc"] == 1.0


def test_misuse_is_refused():
    counts = ScoreCounts.from_scores(np.arange(20.0), np.arange(20.0), max_groups=4)
    with pytest.raises(ValueError, match="`ood_scores` must be left out"):
        ood_metrics(counts, [1.0])
    with pytest.raises(ValueError, match="binned counts"):
        autc(counts)
    with pytest.raises(ValueError, match="`max_groups` must be at least 4"):
        ScoreCounts.from_scores([1.0], [1.0], max_groups=3)
    with pytest.raises(ValueError, match="`ood_scores` must be finite"):
        ScoreCounts.from_scores([1.0], [np.nan])
    with pytest.raises(TypeError):
        counts + 1
