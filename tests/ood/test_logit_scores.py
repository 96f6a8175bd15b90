from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from peft_reprogram.ood import ModelOutputs, get_score


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(0, 3, (50, 12))


def scored(name, logits, **options):
    return get_score(name, **options).score(ModelOutputs(torch.tensor(logits))).numpy()


def test_msp(logits):
    np.testing.assert_allclose(np.exp(scored("msp", logits)), softmax(logits, axis=1).max(axis=1), rtol=1e-12)


def test_msp_keeps_its_order_where_the_probability_rounds_to_one():
    margins = torch.tensor([10.0, 20.0, 30.0, 60.0, 80.0])
    logits = torch.stack([margins, torch.zeros(5), torch.zeros(5)], dim=1)
    assert len(logits.softmax(dim=1).amax(dim=1).unique()) < 5
    scores = get_score("msp").score(ModelOutputs(logits))
    assert scores.dtype == torch.float32
    assert (scores.diff() > 0).all()


def test_msp_with_tied_and_with_single_classes():
    np.testing.assert_allclose(scored("msp", np.zeros((1, 4))), [-np.log(4)])
    np.testing.assert_allclose(scored("msp", np.array([[3.0], [-2.0]])), [0, 0])


def test_max_logit(logits):
    np.testing.assert_array_equal(scored("max_logit", logits), logits.max(axis=1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_energy(logits, temperature):
    np.testing.assert_allclose(
        scored("energy", logits, temperature=temperature),
        temperature * logsumexp(logits / temperature, axis=1),
        rtol=1e-12,
    )


def test_entropy(logits):
    np.testing.assert_allclose(scored("entropy", logits), -entropy(softmax(logits, axis=1), axis=1), rtol=1e-10)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("M", [1, 5, 100])
def test_gen(logits, gamma, M):
    p = -np.sort(-softmax(logits, axis=1), axis=1)[:, :M]
    np.testing.assert_allclose(
        scored("gen", logits, gamma=gamma, M=M), -(p**gamma * (1 - p) ** gamma).sum(1), rtol=1e-9
    )


def test_gen_is_exact_near_certainty():
    # Two classes: both terms are (q (1 - q))^gamma with q = sigmoid(-margin).
    q = np.exp(-60.0)
    np.testing.assert_allclose(scored("gen", np.array([[60.0, 0.0]]), gamma=0.1), [-2 * q**0.1], rtol=1e-10)


def test_kl_matching(logits):
    rng = np.random.default_rng(1)
    train = rng.normal(0, 3, (200, 12))
    train[:, 4] = -50  # never predicted: no template
    p_train, p = softmax(train, axis=1), softmax(logits, axis=1)
    predicted = p_train.argmax(axis=1)
    templates = [p_train[predicted == k].mean(axis=0) for k in np.unique(predicted)]
    assert len(templates) == 11
    expected = -np.min([entropy(p, np.broadcast_to(t, p.shape), axis=1) for t in templates], axis=0)
    score = get_score("kl_matching").fit(ModelOutputs(torch.tensor(train)))
    np.testing.assert_allclose(
        score.score(ModelOutputs(torch.tensor(logits))).numpy(), expected, rtol=1e-8, atol=1e-12
    )


def test_kl_matching_with_confident_templates_stays_finite():
    train = torch.tensor([[0.0, 2000.0], [2000.0, 0.0]])
    score = get_score("kl_matching").fit(ModelOutputs(train))
    certain, torn = score.score(ModelOutputs(torch.tensor([[0.0, 2000.0], [0.0, 0.0]])))
    assert certain.item() == 0
    assert torn.item() == pytest.approx(-(1000 - np.log(2)))
