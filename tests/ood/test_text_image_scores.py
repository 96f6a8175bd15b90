from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from peft_reprogram.ood import ModelOutputs, NotFittedError, get_score, mine_negative_labels, negative_prompts


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"images": (40, 16), "classes": (5, 16), "patches": (40, 9, 16), "words": (60, 16)}
    return {name: unit(rng.normal(size=shape)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def outputs(arrays):
    return ModelOutputs(
        logits=torch.tensor(100 * arrays["images"] @ arrays["classes"].T - 7.5),
        features=torch.tensor(arrays["images"]),
        class_features=torch.tensor(arrays["classes"]),
        logit_scale=100.0,
        bias=torch.tensor(-7.5),
        patch_features=torch.tensor(arrays["patches"]),
    )


@pytest.mark.parametrize("temperature", [0.01, 1.0, 2.0])
def test_mcm(arrays, outputs, temperature):
    expected = softmax(arrays["images"] @ arrays["classes"].T / temperature, axis=1).max(axis=1)
    scores = get_score("mcm", temperature=temperature).score(outputs).numpy()
    np.testing.assert_allclose(np.exp(scores), expected, rtol=1e-10)


def test_mcm_at_the_model_temperature_ranks_like_msp(outputs):
    mcm = get_score("mcm", temperature=1 / outputs.logit_scale).score(outputs)
    torch.testing.assert_close(mcm, get_score("msp").score(outputs))


@pytest.mark.parametrize(("temperature", "local_weight"), [(1.0, 1.0), (0.05, 1.0), (1.0, 0.3)])
def test_gl_mcm(arrays, outputs, temperature, local_weight):
    image = softmax(arrays["images"] @ arrays["classes"].T / temperature, axis=1).max(axis=1)
    patch = softmax(arrays["patches"] @ arrays["classes"].T / temperature, axis=2).max(axis=(1, 2))
    score = get_score("gl_mcm", temperature=temperature, local_weight=local_weight)
    np.testing.assert_allclose(np.exp(score.score(outputs).numpy()), image + local_weight * patch, rtol=1e-10)
    rescaled = replace(outputs, patch_features=outputs.patch_features * 3)
    torch.testing.assert_close(score.score(rescaled), score.score(outputs))


def neg_label_oracle(arrays, words, groups, temperature):
    """The paper's score on groups that are given as lists of row numbers of `words`."""
    per_group = []
    for rows in groups:
        texts = np.concatenate([arrays["classes"], words[rows]])
        per_group.append(softmax(arrays["images"] @ texts.T / temperature, axis=1)[:, :5].sum(axis=1))
    return np.mean(per_group, axis=0)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_neg_label_in_one_group(arrays, outputs, temperature):
    words = torch.tensor(arrays["words"])
    score = get_score("neg_label", negative_features=words * 5, temperature=temperature)
    expected = neg_label_oracle(arrays, arrays["words"], [list(range(60))], temperature)
    np.testing.assert_allclose(expit(score.score(outputs).numpy()), expected, rtol=1e-4)


def test_neg_label_averages_over_random_groups(arrays, outputs):
    words = torch.tensor(arrays["words"], dtype=torch.float32)
    score = get_score("neg_label", negative_features=words, groups=4, seed=3)
    shuffled = score.state_dict()["negative_features"]
    rows = [int((words - row).norm(dim=1).argmin()) for row in shuffled]
    assert sorted(rows) == list(range(60))
    assert rows != sorted(rows)
    expected = neg_label_oracle(arrays, arrays["words"], np.split(np.array(rows), 4), 0.01)
    np.testing.assert_allclose(expit(score.score(outputs).numpy()), expected, rtol=1e-4)
    again = get_score("neg_label", negative_features=words, groups=4, seed=3)
    assert torch.equal(again.score(outputs), score.score(outputs))
    other = get_score("neg_label", negative_features=words, groups=4, seed=4)
    assert not torch.equal(other.score(outputs), score.score(outputs))


def test_neg_label_loses_no_word_to_uneven_groups(arrays, outputs):
    words = torch.tensor(arrays["words"][:7], dtype=torch.float32)
    score = get_score("neg_label", negative_features=words, groups=3)
    order = [int((words - row).norm(dim=1).argmin()) for row in score.state_dict()["negative_features"]]
    expected = neg_label_oracle(arrays, arrays["words"], [order[:3], order[3:5], order[5:]], 0.01)
    np.testing.assert_allclose(expit(score.score(outputs).numpy()), expected, rtol=1e-4)


def test_neg_label_takes_a_group_per_hundred_words(outputs):
    words = torch.randn(250, 16, generator=torch.Generator().manual_seed(0))
    default = get_score("neg_label", negative_features=words).score(outputs)
    assert torch.equal(default, get_score("neg_label", negative_features=words, groups=2).score(outputs))
    assert not torch.equal(default, get_score("neg_label", negative_features=words, groups=1).score(outputs))


def test_neg_label_does_not_saturate():
    axes = torch.eye(3)
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    outputs = ModelOutputs(images @ axes[:1].T, images, axes[:1], logit_scale=1.0)
    scores = get_score("neg_label", negative_features=axes[1:], groups=2).score(outputs)
    assert torch.sigmoid(scores.float())[:2].unique().numel() == 1
    assert scores[1] > scores[0] > scores[2]


def test_neg_label_without_words_says_what_to_do(outputs):
    with pytest.raises(NotFittedError, match=r"no negative words.*negative_prompts"):
        get_score("neg_label").score(outputs)
    with pytest.raises(ValueError, match="no negative words"):
        get_score("neg_label").fit(outputs)


@pytest.mark.parametrize("percentile", [0.5, 0.95, 1.0])
def test_mining_keeps_the_farthest_words(arrays, percentile):
    nearness = np.quantile(arrays["words"] @ arrays["classes"].T, percentile, axis=1)
    words, classes = torch.tensor(arrays["words"]), torch.tensor(arrays["classes"])
    chosen = mine_negative_labels(words * 2, classes * 3, fraction=0.25, percentile=percentile)
    assert chosen.tolist() == np.argsort(nearness)[:15].tolist()
    assert len(mine_negative_labels(words, classes, fraction=0.001)) == 1


def test_mining_at_fit(arrays, outputs):
    words = torch.tensor(arrays["words"])
    mined = get_score("neg_label", negative_features=words, fraction=0.25).fit(outputs)
    by_hand = words[mine_negative_labels(words, outputs.class_features, fraction=0.25)]
    given = get_score("neg_label", negative_features=by_hand)
    assert torch.equal(mined.score(outputs), given.score(outputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "`fraction`"),
        ({"percentile": 95}, "`percentile`"),
        ({"candidate_features": torch.ones(4, 3)}, r"`candidate_features` must have shape \(W, 16\)"),
    ],
)
def test_mining_names_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        mine_negative_labels(
            **{"candidate_features": torch.ones(4, 16), "class_features": torch.ones(2, 16), **options}
        )


def test_built_in_words():
    prompts = negative_prompts()
    assert len(prompts) == len(set(prompts)) >= 300
    assert "a photo of a lamp" in prompts
    assert "This is a shiny photo" in prompts
    without = negative_prompts(["street_lamp", "Shiny Toy"], noun_template="{}", adjective_template="{}")
    assert not {"lamp", "street", "shiny", "toy"} & set(without)
    assert len(without) == len(prompts) - 4
