"""OOD metrics against the golden values, definitions in exact fractions, and scikit-learn."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from peft_reprogram.metrics import (
    PRESETS,
    aupr,
    auroc,
    autc,
    detection_error,
    fpr_at_tpr,
    ood_metrics,
    split_scores,
)


A = ([0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.3], [0.88, 0.65, 0.55, 0.4, 0.1])
B = ([0.9, 0.9, 0.9, 0.8, 0.8, 0.5, 0.5, 0.5, 0.5, 0.2], [0.9, 0.8, 0.5, 0.5, 0.1])
E = ([0.5] * 8, [0.5] * 8)

# What the original implementations print, x100.
GOLDEN = {
    ("A", "ibm"): {"fpr": 80.0, "auroc": 74.0, "aupr_in": 80.338, "aupr_out": 51.184, "detection_error": 26.667},
    ("A", "openood"): {"fpr": 70.0, "auroc": 74.0, "aupr_in": 85.338, "aupr_out": 61.184, "detection_error": 25.0},
    ("A", "mcm"): {"fpr": 80.0, "auroc": 74.0, "aupr_in": 86.298, "aupr_out": 65.095},
    ("A", "default"): {"fpr": 80.0, "fpr_ood_positive": 70.0, "auroc": 74.0, "detection_error": 25.0},
    ("B", "ibm"): {"fpr": 80.0, "auroc": 59.0, "aupr_in": 61.06, "detection_error": 26.67},
    ("B", "openood"): {"fpr": 100.0, "auroc": 59.0, "aupr_in": 76.06, "detection_error": 40.0},
    ("B", "mcm"): {"fpr": 80.0, "auroc": 59.0, "aupr_in": 71.62},
    ("B", "default"): {"fpr": 80.0, "fpr_ood_positive": 100.0, "auroc": 59.0, "aupr_in": 71.62},
    ("E", "ibm"): {"fpr": 0.0, "fpr_ood_positive": 100.0, "aupr_in": 25.0, "auroc": 50.0},
    ("E", "openood"): {"fpr": 100.0, "aupr_in": 75.0, "auroc": 50.0},
    ("E", "mcm"): {"fpr": 100.0, "aupr_in": 50.0, "auroc": 50.0},
    ("E", "default"): {"fpr": 100.0, "aupr_in": 50.0, "auroc": 50.0},
}
CASES = {"A": A, "B": B, "E": E}


def exact_oracle(id_scores, ood_scores, preset, tpr=Fraction(95, 100)):
    """The table of conventions read literally, one threshold after another, in exact fractions."""

    def curve(positives, negatives):
        points = []
        for t in sorted({*positives, *negatives}, reverse=True):
            points.append((sum(p >= t for p in positives), sum(n >= t for n in negatives)))
        return points

    def first_reaching(positives, negatives):
        for tp, fp in curve(positives, negatives):
            if Fraction(tp, len(positives)) >= tpr:
                return Fraction(fp, len(negatives))
        raise AssertionError("the last point has recall 1")

    def average_precision(positives, negatives):
        area, before = Fraction(0), 0
        for tp, fp in curve(positives, negatives):
            area += Fraction(tp - before, len(positives)) * Fraction(tp, tp + fp)
            before = tp
        return area

    def trapezoid(start):
        def area_of(positives, negatives):
            area, before, precision = Fraction(0), 0, Fraction(start)
            for tp, fp in curve(positives, negatives):
                now = Fraction(tp, tp + fp)
                area += Fraction(tp - before, len(positives)) * (now + precision) / 2
                before, precision = tp, now
            return area

        return area_of

    minus_id, minus_ood = [-s for s in id_scores], [-s for s in ood_scores]
    n_id, n_ood = len(id_scores), len(ood_scores)
    corners = [(0, 0), *curve(id_scores, ood_scores)]
    pooled = min(Fraction(n_id - tp + fp, n_id + n_ood) for tp, fp in corners)
    balanced = min((Fraction(n_id - tp, n_id) + Fraction(fp, n_ood)) / 2 for tp, fp in corners)
    if preset == "ibm":
        threshold = sorted(id_scores)[round((1 - tpr) * n_id)]
        fpr, area, error = Fraction(sum(s > threshold for s in ood_scores), n_ood), trapezoid(0), pooled
    elif preset == "openood":
        fpr, area, error = first_reaching(minus_ood, minus_id), trapezoid(1), balanced
    elif preset == "mcm":
        points, fpr, error, area = corners[1:], None, None, average_precision
        points = points[: [tp for tp, _ in points].index(n_id) + 1]
        # The original subtracts in floating point, which decides between two recalls that are equally near.
        nearest = min(abs(tp / n_id - float(tpr)) for tp, _ in points)
        chosen = max(tp for tp, _ in points if abs(tp / n_id - float(tpr)) == nearest)
        fpr = Fraction(max(fp for tp, fp in points if tp == chosen), n_ood)
    else:
        fpr, area, error = first_reaching(id_scores, ood_scores), average_precision, balanced
    wins = sum((i > o) + Fraction(i == o, 2) for i in id_scores for o in ood_scores)
    return {
        "auroc": wins / n_id / n_ood,
        "aupr_in": area(id_scores, ood_scores),
        "aupr_out": area(minus_ood, minus_id),
        "fpr": fpr,
        "fpr_ood_positive": first_reaching(minus_ood, minus_id),
        "detection_error": error,
    }


def assert_equals_oracle(id_scores, ood_scores, preset):
    expected = exact_oracle(id_scores, ood_scores, preset)
    got = ood_metrics(id_scores, ood_scores, preset)
    for name, value in expected.items():
        if value is None:
            assert got[name] is None, name
        else:
            assert got[name] == pytest.approx(float(value), abs=1e-12), name


@pytest.mark.parametrize(("case", "preset"), GOLDEN)
def test_golden_values(case, preset):
    got = ood_metrics(*CASES[case], preset)
    for name, printed in GOLDEN[case, preset].items():
        digits = len(f"{printed}".partition(".")[2])
        assert round(100 * got[name], digits) == pytest.approx(printed, abs=1e-9), name
    assert_equals_oracle(*CASES[case], preset)


def test_golden_values_in_fractions():
    """The same as closed expressions worked out by hand, to the last bit that a float64 has."""
    got = ood_metrics(*A, "ibm")
    assert got["auroc"] == pytest.approx(37 / 50, abs=1e-15)
    assert got["detection_error"] == pytest.approx(4 / 15, abs=1e-15)
    assert ood_metrics(*B, "ibm")["detection_error"] == pytest.approx(4 / 15, abs=1e-15)
    # A: OOD .88 comes after three ID scores, .65 after seven, .55 after eight, .4 after nine.
    precisions = [1, 1, 1, 4 / 5, 5 / 6, 6 / 7, 7 / 8, 8 / 10, 9 / 12, 10 / 14]
    assert aupr(*A, preset="mcm") == pytest.approx(sum(precisions) / 10, abs=1e-15)


@pytest.mark.parametrize("preset", PRESETS)
def test_convention_travels_with_the_numbers(preset):
    got = ood_metrics(*B, preset, tpr=0.9)
    assert (got["preset"], got["tpr"], got["n_id"], got["n_ood"]) == (preset, 0.9, 10, 5)
    assert got["positive"] == ("ood" if preset == "openood" else "id")
    assert got["tied_fraction"] == pytest.approx(13 / 15)  # all but .2 and .1
    assert got["resolution"] == 0.0
    assert ood_metrics(*A, preset)["tied_fraction"] == 0.0


tied = st.integers(-3, 3).map(lambda k: k / 4)
free = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: x + 0.0)
side = st.one_of(st.lists(tied, min_size=1, max_size=40), st.lists(free, min_size=1, max_size=25))


@settings(max_examples=120)
@given(side, side, st.sampled_from(sorted(PRESETS)))
def test_every_preset_equals_its_definition(id_scores, ood_scores, preset):
    assert_equals_oracle(id_scores, ood_scores, preset)


def sklearn_values(id_scores, ood_scores):
    labels = np.r_[np.ones(len(id_scores)), np.zeros(len(ood_scores))]
    scores = np.r_[id_scores, ood_scores]
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    fpr_ood, tpr_ood, _ = sk.roc_curve(1 - labels, -scores, drop_intermediate=False)
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    return {
        "auroc": sk.roc_auc_score(labels, scores),
        "aupr_in": sk.average_precision_score(labels, scores),
        "aupr_out": sk.average_precision_score(1 - labels, -scores),
        "aupr_in_trapezoid": sk.auc(recall, precision),
        "fpr": fpr[np.argmax(tpr >= 0.95)],
        "fpr_ood_positive": fpr_ood[np.argmax(tpr_ood >= 0.95)],
        "detection_error": np.min(1 - tpr + fpr) / 2,
    }


@settings(max_examples=60)
@given(
    n_id=st.integers(1, 400),
    n_ood=st.integers(1, 400),
    levels=st.sampled_from([2, 5, 50, 0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_sklearn_on_random_and_tied_scores(n_id, n_ood, levels, seed):
    rng = np.random.default_rng(seed)
    id_scores, ood_scores = rng.normal(1, 1, n_id), rng.normal(0, 1.5, n_ood)
    if levels:
        id_scores, ood_scores = np.round(id_scores * levels / 5), np.round(ood_scores * levels / 5)
    expected = sklearn_values(id_scores, ood_scores)
    got = {
        **ood_metrics(id_scores, ood_scores),
        "aupr_in_trapezoid": aupr(id_scores, ood_scores, preset="openood"),
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=60)
@given(side, side, st.sampled_from(sorted(PRESETS)))
def test_strictly_increasing_transform_changes_nothing(id_scores, ood_scores, preset):
    levels = {value: rank for rank, value in enumerate(sorted({*id_scores, *ood_scores}))}
    ranked = ood_metrics(
        [math.expm1(levels[s] / 10) for s in id_scores], [math.expm1(levels[s] / 10) for s in ood_scores], preset
    )
    assert ranked == ood_metrics(id_scores, ood_scores, preset)


@settings(max_examples=60)
@given(side, side)
def test_swapping_sides_maps_as_it_must(id_scores, ood_scores):
    got = ood_metrics(id_scores, ood_scores)
    # Sides exchanged, same direction: everything is ranked the wrong way round.
    assert auroc(ood_scores, id_scores) == pytest.approx(1 - got["auroc"], abs=1e-12)
    # Sides exchanged and scores negated: the same separation seen from the other class.
    mirrored = ood_metrics([-s for s in ood_scores], [-s for s in id_scores])
    assert mirrored["auroc"] == pytest.approx(got["auroc"], abs=1e-12)
    assert mirrored["aupr_in"] == pytest.approx(got["aupr_out"], abs=1e-12)
    assert mirrored["aupr_out"] == pytest.approx(got["aupr_in"], abs=1e-12)
    assert mirrored["fpr"] == pytest.approx(got["fpr_ood_positive"], abs=1e-12)
    assert mirrored["detection_error"] == pytest.approx(got["detection_error"], abs=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_single_functions_agree_with_all_at_once(preset):
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    got = ood_metrics(id_scores, ood_scores, preset, tpr=0.8)
    assert auroc(id_scores, ood_scores) == got["auroc"]
    assert aupr(id_scores, ood_scores, preset=preset) == got["aupr_in"]
    assert aupr(id_scores, ood_scores, positive="ood", preset=preset) == got["aupr_out"]
    assert fpr_at_tpr(id_scores, ood_scores, tpr=0.8, preset=preset) == got["fpr"]
    assert fpr_at_tpr(id_scores, ood_scores, tpr=0.8, positive="ood") == got["fpr_ood_positive"]
    assert detection_error(id_scores, ood_scores, preset=preset) == got["detection_error"]


@pytest.mark.parametrize("n", [1, 10, 30, 50, 70, 999, 1000, 20_001])
def test_ibm_rank_rounds_halves_to_even(n):
    id_scores = np.arange(n, dtype=float)
    threshold = id_scores[round(0.05 * n)]
    ood_scores = np.arange(n) + 0.5
    assert fpr_at_tpr(id_scores, ood_scores, preset="ibm") == np.mean(ood_scores > threshold)


def test_scores_are_never_transformed():
    """Energy scores lie far above 1; a sigmoid would make them all ties."""
    rng = np.random.default_rng(1)
    id_scores, ood_scores = rng.normal(60, 5, 500), rng.normal(52, 5, 500)
    assert auroc(id_scores, ood_scores) == pytest.approx(sklearn_values(id_scores, ood_scores)["auroc"], abs=1e-12)
    assert auroc(id_scores, ood_scores) > 0.8


@settings(max_examples=60)
@given(side, side)
def test_autc_is_the_area_under_both_error_curves(id_scores, ood_scores):
    scores = np.r_[id_scores, ood_scores]
    low, high = scores.min(), scores.max()
    if low == high:
        with pytest.raises(ValueError, match="no range"):
            autc(id_scores, ood_scores)
        return
    # Both rates are step functions of the threshold: integrate them piece by piece.
    knots = np.unique((scores - low) / (high - low))
    scaled_id, scaled_ood = (np.array(id_scores) - low) / (high - low), (np.array(ood_scores) - low) / (high - low)
    area = 0.0
    for left, right in itertools.pairwise(knots):
        middle = (left + right) / 2
        area += (right - left) * (np.mean(scaled_ood > middle) + np.mean(scaled_id < middle)) / 2
    assert autc(id_scores, ood_scores) == pytest.approx(area, abs=1e-9)


def test_autc_rewards_the_gap_that_auroc_does_not_see():
    assert auroc([0.9, 1.0], [0.0, 0.1]) == auroc([0.51, 1.0], [0.0, 0.5]) == 1.0
    assert autc([1.0, 1.0], [0.0, 0.0]) == 0.0
    assert autc([0.9, 1.0], [0.0, 0.1]) == pytest.approx(0.05)
    assert autc([0.51, 1.0], [0.0, 0.5]) > autc([0.9, 1.0], [0.0, 0.1])
    assert autc([-1.5e308, 1.5e308], [-1.5e308]) == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_takes_torch_tensors_of_any_float_type(dtype):
    id_scores = torch.tensor(B[0], dtype=dtype, requires_grad=True)
    ood_scores = torch.tensor(B[1], dtype=dtype)
    assert auroc(id_scores, ood_scores) == pytest.approx(0.59, abs=1e-12)


def test_input_is_left_as_it_was():
    id_scores, ood_scores = np.array([3.0, 1.0, 2.0]), np.array([0.0, 5.0])
    ood_metrics(id_scores, ood_scores)
    assert id_scores.tolist() == [3.0, 1.0, 2.0]
    assert ood_scores.tolist() == [0.0, 5.0]


@pytest.mark.parametrize(
    ("id_scores", "ood_scores", "message"),
    [
        ([], [1.0], "`id_scores` is empty"),
        ([1.0], [], "`ood_scores` is empty"),
        ([1.0, math.nan, math.inf], [1.0], r"`id_scores` must be finite, but holds 1 NaN and 1 infinite .* index 1"),
        ([1.0], [1.0, -math.inf], r"`ood_scores` must be finite, but holds 0 NaN and 1 infinite .* index 1"),
        ([[1.0, 2.0]], [1.0], r"`id_scores` must have 1 dimension\(s\), got an array of shape \(1, 2\)"),
        (["a"], [1.0], "`id_scores` must hold real numbers"),
        ([1.0], [[1.0], [1.0, 2.0]], "`ood_scores` must be an array of numbers"),
        ([1.0], None, "`ood_scores` is missing"),
    ],
)
def test_bad_scores_are_refused_by_name(id_scores, ood_scores, message):
    for metric in (ood_metrics, auroc, aupr, fpr_at_tpr, detection_error, autc):
        with pytest.raises(ValueError, match=message):
            metric(id_scores, ood_scores)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="Unknown `preset` 'mmc'; known are 'default', 'ibm', 'openood', 'mcm'"):
        ood_metrics(*A, "mmc")
    with pytest.raises(ValueError, match="`positive` must be 'id' or 'ood', got 'in'"):
        aupr(*A, positive="in")


@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, 95, math.nan])
def test_tpr_out_of_range_is_refused(tpr):
    for metric in (ood_metrics, fpr_at_tpr):
        with pytest.raises(ValueError, match="`tpr` must be a fraction above 0 and at most 1"):
            metric(*A, tpr=tpr)


def test_split_scores():
    id_scores, ood_scores = split_scores([0.1, 0.9, 0.4], [False, True, True])
    assert (id_scores.tolist(), ood_scores.tolist()) == ([0.9, 0.4], [0.1])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "`predictions` is empty"),
        ([1.0, 2.0], [1], "`references` and `predictions` must have the same length, got 1 and 2"),
        ([1.0, 2.0], [1, 1], r"`references` are all 1 \(in-distribution\)"),
        ([1.0, 2.0], [0, 0], r"`references` are all 0 \(out-of-distribution\)"),
        ([1.0, 2.0], [0, 2], r"`references` must be 1 \(ID\) or 0 \(OOD\), got the values \[0, 2\]"),
        ([1.0, 2.0], [0.0, 1.0], "`references` must hold integers"),
        ([1.0, math.nan], [0, 1], "`predictions` must be finite"),
    ],
)
def test_split_scores_refuses(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        split_scores(predictions, references)
