from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.covariance import EmpiricalCovariance, shrunk_covariance
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from peft_reprogram.ood import IncompatibleOutputsError, ModelOutputs, get_score


CLASSES, SIZE = 4, 10


def make(n, seed, offset=0.0):
    rng = np.random.default_rng(seed)
    weight = np.random.default_rng(99).normal(size=(CLASSES, SIZE))
    bias = np.random.default_rng(98).normal(size=CLASSES)
    labels = rng.integers(0, CLASSES, n)
    mixing = np.random.default_rng(97).normal(size=(SIZE, SIZE))
    features = 2 * weight[labels] + rng.normal(size=(n, SIZE)) @ mixing + offset
    return features, labels, weight, bias


def outputs_of(features, labels, weight, bias):
    return ModelOutputs(
        logits=torch.tensor(features @ weight.T + bias),
        features=torch.tensor(features),
        class_features=torch.tensor(weight),
        bias=torch.tensor(bias),
        labels=torch.tensor(labels),
    )


@pytest.fixture(scope="module")
def train():
    return make(300, 0)


@pytest.fixture(scope="module")
def test():
    return make(60, 1)


def class_residuals(features, labels):
    means = np.stack([features[labels == k].mean(axis=0) for k in np.unique(labels)])
    return means, features - means[np.unique(labels, return_inverse=True)[1]]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_mahalanobis(offset):
    (x, y, *head), (z, *_) = make(300, 0, offset), make(60, 1, offset)
    means, residuals = class_residuals(x, y)
    oracle = EmpiricalCovariance(assume_centered=True).fit(residuals)
    expected = -np.min([oracle.mahalanobis(z - m) for m in means], axis=0)
    score = get_score("mahalanobis").fit(outputs_of(x, y, *head))
    np.testing.assert_allclose(score.score(outputs_of(z, *make(60, 1)[1:2], *head)).numpy(), expected, rtol=1e-6)


def test_mahalanobis_with_shrinkage(train, test):
    x, y, *_ = train
    means, residuals = class_residuals(x, y)
    precision = np.linalg.inv(shrunk_covariance(np.cov(residuals.T, bias=True), shrinkage=0.2))
    deltas = test[0][:, None] - means
    expected = -np.einsum("nkd,de,nke->nk", deltas, precision, deltas).min(axis=1)
    score = get_score("mahalanobis", shrinkage=0.2).fit(outputs_of(*train))
    np.testing.assert_allclose(score.score(outputs_of(*test)).numpy(), expected, rtol=1e-9)


def test_mahalanobis_with_fewer_samples_than_dimensions(test):
    x, y, *head = make(9, 5)
    means, residuals = class_residuals(x, y)
    precision = np.linalg.pinv(residuals.T @ residuals / len(x), rcond=1e-10, hermitian=True)
    deltas = test[0][:, None] - means
    expected = -np.einsum("nkd,de,nke->nk", deltas, precision, deltas).min(axis=1)
    score = get_score("mahalanobis").fit(outputs_of(x, y, *head))
    np.testing.assert_allclose(score.score(outputs_of(*test)).numpy(), expected, rtol=1e-6)


def test_class_means_skip_absent_classes_and_refuse_unlabelled(train):
    x, y, *head = train
    present = y != 2
    score = get_score("mahalanobis").fit(outputs_of(x[present], y[present], *head))
    assert score.state_dict()["class_means"].shape == (CLASSES - 1, SIZE)
    with pytest.raises(ValueError, match="leave unlabelled samples out"):
        get_score("mahalanobis").fit(outputs_of(x, np.where(y == 2, -1, y), *head))


def test_relative_mahalanobis(train, test):
    x, y, *_ = train
    z = test[0]
    means, residuals = class_residuals(x, y)
    tied = EmpiricalCovariance(assume_centered=True).fit(residuals)
    background = EmpiricalCovariance().fit(x)
    nearest = np.min([tied.mahalanobis(z - m) for m in means], axis=0)
    score = get_score("relative_mahalanobis").fit(outputs_of(*train))
    np.testing.assert_allclose(score.score(outputs_of(*test)).numpy(), background.mahalanobis(z) - nearest, rtol=1e-8)


@pytest.mark.parametrize("k", [1, 7, 300])
def test_knn(train, test, k):
    def unit(a):
        return a / np.linalg.norm(a, axis=1, keepdims=True)

    distances, _ = NearestNeighbors(n_neighbors=k).fit(unit(train[0])).kneighbors(unit(test[0]))
    score = get_score("knn", k=k).fit(outputs_of(*train))
    np.testing.assert_allclose(score.score(outputs_of(*test)).numpy(), -distances[:, -1], rtol=1e-9)


def test_knn_in_chunks_and_beyond_the_bank(train, test, monkeypatch):
    score = get_score("knn", k=3).fit(outputs_of(*train))
    whole = score.score(outputs_of(*test))
    monkeypatch.setattr("peft_reprogram.ood.knn._CHUNK", 1000)
    torch.testing.assert_close(score.score(outputs_of(*test)), whole, rtol=1e-12, atol=0)
    with pytest.raises(
        ValueError, match=r"`k` of score 'knn' must be at most the number of samples to fit on \(300\)"
    ):
        get_score("knn", k=301).fit(outputs_of(*train))


@pytest.mark.parametrize("dim", [3, None])
def test_vim(train, test, dim):
    x, _, weight, bias = train
    z = test[0]
    size = dim or SIZE // 2
    origin = -np.linalg.pinv(weight) @ bias
    # PCA of the points and their mirror images: its mean is 0, so that it diagonalises the uncentred second moment.
    mirrored = np.concatenate([x - origin, origin - x])
    principal = PCA(n_components=size).fit(mirrored).components_

    def residual(a):
        centred = a - origin
        return np.linalg.norm(centred - centred @ principal.T @ principal, axis=1)

    alpha = (x @ weight.T + bias).max(axis=1).mean() / residual(x).mean()
    expected = logsumexp(z @ weight.T + bias, axis=1) - alpha * residual(z)
    score = get_score("vim", dim=dim).fit(outputs_of(*train))
    np.testing.assert_allclose(score.score(outputs_of(*test)).numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize(("size", "dim"), [(12, 6), (768, 512), (1600, 1000)])
def test_vim_takes_the_papers_dimensions(size, dim):
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(20, size)), rng.normal(size=(2, size))
    outputs = ModelOutputs(torch.tensor(features @ weight.T), torch.tensor(features), torch.tensor(weight))
    if size > 20:  # fewer samples than the principal subspace has dimensions
        with pytest.raises(ValueError, match=f"subspace of dimension {dim}"):
            get_score("vim").fit(outputs)
    else:
        assert get_score("vim").fit(outputs).state_dict()["residual_space"].shape == (size, size - dim)


def test_vim_on_a_cosine_head_uses_the_scaled_weight(train, test):
    x, y, weight, bias = train
    plain = get_score("vim").fit(outputs_of(*train)).score(outputs_of(*test))

    def scaled(features, labels):
        return ModelOutputs(
            torch.tensor(features @ weight.T + bias),
            torch.tensor(features),
            torch.tensor(weight / 20),
            logit_scale=20.0,
            bias=torch.tensor(bias),
            labels=torch.tensor(labels),
        )

    cosine = get_score("vim").fit(scaled(x, y)).score(scaled(*test[:2]))
    torch.testing.assert_close(cosine, plain, rtol=1e-9, atol=1e-9)


def test_vim_refuses_what_it_cannot_scale(train):
    x, y, weight, bias = train
    with pytest.raises(IncompatibleOutputsError, match="mean largest logit, which must be positive"):
        get_score("vim").fit(outputs_of(x, y, weight, bias - 1000))
    with pytest.raises(ValueError, match=r"`dim` of score 'vim' must be below the feature dimension \(10\)"):
        get_score("vim", dim=10).fit(outputs_of(*train))
