from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from peft_reprogram.ood import IncompatibleOutputsError, ModelOutputs, get_score


SIZE = 20


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {
        "features": rng.gamma(0.5, 2.0, (30, SIZE)),
        "weight": rng.normal(size=(4, SIZE)),
        "bias": rng.normal(size=4),
    }


def outputs_of(features, arrays, **fields):
    weight, bias = arrays["weight"], arrays["bias"]
    return ModelOutputs(
        torch.tensor(features @ weight.T + bias),
        torch.tensor(features),
        torch.tensor(weight),
        bias=torch.tensor(bias),
        **fields,
    )


def energy_of(features, arrays):
    return logsumexp(features @ arrays["weight"].T + arrays["bias"], axis=1)


def test_without_shaping_it_is_the_energy(arrays):
    outputs = outputs_of(arrays["features"], arrays)
    energy = get_score("energy").score(outputs)
    torch.testing.assert_close(get_score("ash", variant="p", percentile=0.0).score(outputs), energy)


@pytest.mark.parametrize("percentile", [0.5, 0.9])
def test_react(arrays, percentile):
    train = np.random.default_rng(1).gamma(0.5, 2.0, (100, SIZE))
    expected = energy_of(np.minimum(arrays["features"], np.percentile(train, 100 * percentile)), arrays)
    score = get_score("react", percentile=percentile).fit(outputs_of(train, arrays))
    np.testing.assert_allclose(score.score(outputs_of(arrays["features"], arrays)).numpy(), expected, rtol=1e-10)


def test_react_on_more_activations_than_torch_can_sort():
    features = torch.arange(2**24 + 16, dtype=torch.float32).reshape(16, -1)
    score = get_score("react", percentile=0.5).fit(ModelOutputs(torch.zeros(16, 1), features))
    assert score.state_dict()["ceiling"].item() == pytest.approx((2**24 + 15) / 2)


def shaped_by_hand(row, variant, percentile):
    kept = SIZE - round(SIZE * percentile)
    top = np.argsort(-row)[:kept]
    out = np.zeros_like(row)
    out[top] = row[top]
    if variant == "b":
        out[top] = row.sum() / kept
    if variant == "s":
        out *= np.exp(row.sum() / row[top].sum())
    if variant == "scale":
        out = row * np.exp(row.sum() / row[top].sum())
    return out


@pytest.mark.parametrize(("variant", "default"), [("p", 0.60), ("b", 0.65), ("s", 0.90)])
@pytest.mark.parametrize("percentile", [None, 0.3])
def test_ash(arrays, variant, default, percentile):
    shaped = np.stack([shaped_by_hand(row, variant, percentile or default) for row in arrays["features"]])
    score = get_score("ash", variant=variant, percentile=percentile)
    scores = score.score(outputs_of(arrays["features"], arrays)).numpy()
    np.testing.assert_allclose(scores, energy_of(shaped, arrays), rtol=1e-10)
    assert score.options == {"variant": variant, "percentile": percentile or default}


@pytest.mark.parametrize("percentile", [0.85, 0.3])
def test_scale(arrays, percentile):
    shaped = np.stack([shaped_by_hand(row, "scale", percentile) for row in arrays["features"]])
    scores = get_score("scale", percentile=percentile).score(outputs_of(arrays["features"], arrays)).numpy()
    np.testing.assert_allclose(scores, energy_of(shaped, arrays), rtol=1e-10)


@pytest.mark.parametrize("name", ["ash", "scale"])
def test_dead_samples_are_scored_by_the_bias(arrays, name):
    scores = get_score(name).score(outputs_of(np.zeros((2, SIZE)), arrays)).numpy()
    np.testing.assert_allclose(scores, logsumexp(arrays["bias"]))


@pytest.mark.parametrize("name", ["ash", "scale"])
def test_signed_features_are_refused(arrays, name):
    with pytest.raises(
        IncompatibleOutputsError, match=r"`features` has negative entries; use 'react', 'vim' or 'knn'"
    ):
        get_score(name).score(outputs_of(arrays["features"] - 1, arrays))
