from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from peft_reprogram.ood import IncompatibleOutputsError, Threshold, get_score


@given(
    scores=st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    tpr=st.sampled_from([0.01, 0.07, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0]),
)
def test_it_is_the_largest_score_that_keeps_the_tpr(scores, tpr):
    def kept(value):
        return Fraction(sum(s >= value for s in scores), len(scores))

    threshold = Threshold.fit(torch.tensor(scores), tpr)
    expected = max(s for s in scores if float(kept(s)) >= tpr)
    assert threshold.value == expected
    assert threshold.achieved_tpr == float(kept(expected))
    assert threshold.n == len(scores)
    is_ood = threshold.is_ood(torch.tensor(scores, dtype=torch.float32))
    assert is_ood.tolist() == [s < expected for s in scores]


def test_it_is_the_first_point_of_the_roc_curve():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 333), rng.normal(0, 1, 100)
    fpr, tpr, values = roc_curve(np.r_[np.ones(333), np.zeros(100)], np.r_[inside, outside], drop_intermediate=False)
    first = np.argmax(tpr >= 0.95)
    threshold = Threshold.fit(torch.tensor(inside))
    assert threshold.value == values[first]
    assert (~threshold.is_ood(torch.tensor(outside))).double().mean().item() == fpr[first]


def test_ties_stay_in_distribution():
    threshold = Threshold.fit(torch.tensor([1.0, 0.5, 0.5, 0.5, 0.1]), 0.4)
    assert threshold.value == 0.5
    assert threshold.achieved_tpr == 0.8
    assert threshold.is_ood(torch.tensor([0.5, 0.4999])).tolist() == [False, True]


def test_whole_numbers_survive_rounding():
    # 0.07 * 100 is 7.000000000000001 in floating point: seven samples are enough.
    assert Threshold.fit(torch.arange(100.0), 0.07).value == 93.0


def test_float32_scores_meet_their_own_threshold():
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    threshold = Threshold.fit(scores)
    assert threshold.is_ood(scores).sum().item() == 50
    assert threshold.is_ood(scores.double()).sum().item() == 50


def test_it_records_where_it_comes_from_and_survives_json(linear, tmp_path):
    score = get_score("knn", k=3).fit(linear.train)
    threshold = Threshold.fit(score.score(linear.inside), 0.9, score=score)
    assert threshold.score == "knn"
    assert threshold.options == {"k": 3}
    assert threshold.identity == linear.train.identity
    assert threshold.n == len(linear.inside)
    assert Threshold.from_dict(json.loads(json.dumps(threshold.to_dict()))) == threshold
    threshold.save(tmp_path / "adapter" / "threshold.json")
    assert Threshold.load(tmp_path / "adapter" / "threshold.json") == threshold
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["threshold.json"]
    assert threshold.is_ood(score.score(linear.outside), identity=linear.outside.identity).all()
    again = get_score(threshold.score, **threshold.options)
    assert again.options == score.options


def test_another_model_is_refused():
    threshold = Threshold.fit(torch.arange(10.0), score=get_score("msp"), identity="a")
    assert threshold.identity == "a"
    with pytest.raises(IncompatibleOutputsError, match="fitted on model 'a' but the scores come from 'b'"):
        threshold.is_ood(torch.zeros(1), identity="b")
    assert threshold.is_ood(torch.tensor([-1.0])).all()


@pytest.mark.parametrize(
    ("scores", "tpr", "message"),
    [
        ([], 0.95, "`id_scores` is empty"),
        ([1.0, float("nan")], 0.95, "`id_scores` holds NaN"),
        ([[1.0]], 0.95, r"`id_scores` must have shape \(N,\)"),
        ([1.0], 0.0, "`tpr` must be in"),
        ([1.0], 95, "`tpr` must be in"),
    ],
)
def test_bad_input_is_named(scores, tpr, message):
    with pytest.raises(ValueError, match=message):
        Threshold.fit(torch.tensor(scores), tpr)


def test_bad_files_and_scores_are_named():
    threshold = Threshold.fit(torch.arange(10.0))
    with pytest.raises(ValueError, match="`scores` holds NaN"):
        threshold.is_ood(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="a threshold needs"):
        Threshold.from_dict({"value": 1.0})
    with pytest.raises(ValueError, match="a threshold needs"):
        Threshold.from_dict({**threshold.to_dict(), "surprise": 1})
    with pytest.raises(ValueError, match="`value` must be finite"):
        Threshold.from_dict({**threshold.to_dict(), "value": float("inf")})
