from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from peft_reprogram.ood import IncompatibleOutputsError, NotFittedError, from_pytorch_ood, get_score


class NearestMean:
    """A features detector with pytorch-ood 0.4's interface: larger means more out-of-distribution."""

    requires_fit = True

    def fit_features(self, x, y):
        self.means = torch.stack([x[y == k].mean(dim=0) for k in y.unique()])
        return self

    def predict_features(self, x):
        return torch.cdist(x, self.means).amin(dim=1)


class NegativeEnergy:
    """A logits detector with pytorch-ood 0.4's interface."""

    requires_fit = False

    def predict_logits(self, logits):
        return -logits.logsumexp(dim=1)


class NeedsImages:
    requires_fit = False

    def predict(self, x):
        raise AssertionError("never called")


def test_features_detector(linear):
    score = from_pytorch_ood(NearestMean())
    assert score.name == "pytorch_ood/NearestMean"
    assert score.requires_fit
    assert score.needs == {"features"}
    assert score.fit_needs == {"features", "labels"}
    with pytest.raises(NotFittedError, match="pytorch_ood/NearestMean"):
        score.score(linear.inside)
    with pytest.raises(IncompatibleOutputsError, match="`labels`"):
        score.fit(linear.outside)
    score.fit(linear.train)
    means = torch.stack([linear.train.features[linear.train.labels == k].mean(dim=0) for k in range(6)])
    expected = -(linear.inside.features[:, None] - means).norm(dim=-1).amin(dim=1)
    torch.testing.assert_close(score.score(linear.inside), expected)
    assert score.score(linear.inside).min() > score.score(linear.outside).max()
    with pytest.raises(IncompatibleOutputsError, match="fitted on model"):
        score.score(replace(linear.inside, identity="another"))
    with pytest.raises(NotImplementedError, match="fit it again"):
        score.save("never.safetensors")
    with pytest.raises(NotImplementedError, match="fit it again"):
        score.load_state_dict({})


def test_logits_detector(linear):
    score = from_pytorch_ood(NegativeEnergy(), input="logits")
    assert not score.requires_fit
    assert score.is_fitted
    torch.testing.assert_close(score.score(linear.inside), get_score("energy").score(linear.inside))
    assert score.options["input"] == "logits"


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"has no predict_features or predict_logits method.*need the network"):
        from_pytorch_ood(NeedsImages())
    with pytest.raises(ValueError, match="has no predict_features method, only predict_logits"):
        from_pytorch_ood(NegativeEnergy(), input="features")
    with pytest.raises(ValueError, match="`input` must be 'features' or 'logits'"):
        from_pytorch_ood(NegativeEnergy(), input="images")


def test_the_real_package_agrees(linear):
    detectors = pytest.importorskip("pytorch_ood.detector")
    head = {"w": linear.train.class_features, "b": linear.train.bias}
    pairs = {
        "msp": (detectors.MaxSoftmax(None), {}),
        "max_logit": (detectors.MaxLogit(None), {}),
        "energy": (detectors.EnergyBased(None), {}),
        "entropy": (detectors.Entropy(None), {}),
        "gen": (detectors.GEN(None), {}),
        "kl_matching": (detectors.KLMatching(None), {}),
        "mahalanobis": (detectors.Mahalanobis(None), {}),
        "relative_mahalanobis": (detectors.RMD(None), {}),
        "knn": (detectors.KNN(None, k=5), {"k": 5}),
        "vim": (detectors.ViM(None, d=8, **head), {"dim": 8}),
    }
    for name, (detector, options) in pairs.items():
        theirs = from_pytorch_ood(detector).fit(linear.train)
        ours = get_score(name, **options).fit(linear.train)
        for samples in (linear.inside, linear.outside):
            # By rank, since constant factors differ; not exactly, since pytorch-ood computes in float32.
            agreement = spearmanr(theirs.score(samples).numpy(), ours.score(samples).numpy()).statistic
            assert agreement > 0.999, name
