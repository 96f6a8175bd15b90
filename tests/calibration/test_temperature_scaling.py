import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from peft_reprogram.calibration import Temperature


def samples(n: int = 200, classes: int = 5, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return scale * logits, np.array([rng.choice(classes, p=p) for p in probabilities])


def nll(log_temperature: float, logits: np.ndarray, labels: np.ndarray) -> float:
    z = logits / np.exp(log_temperature)
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]))


def test_it_follows_the_scale_of_the_logits():
    """Over ten orders of magnitude of the slope."""
    logits, labels = samples()
    value = Temperature.fit(logits, labels).value
    assert Temperature.fit(logits * 1e3, labels).value == pytest.approx(1e3 * value, rel=1e-8)
    assert Temperature.fit(logits / 1e3, labels).value == pytest.approx(1e-3 * value, rel=1e-8)


@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 3.0, 100.0])
def test_it_minimises_the_negative_log_likelihood(scale):
    logits, labels = samples(scale=scale)
    expected = minimize_scalar(nll, bounds=(-7, 7), args=(logits, labels), method="bounded", options={"xatol": 1e-10})
    fitted = Temperature.fit(torch.tensor(logits), torch.tensor(labels))
    assert np.log(fitted.value) == pytest.approx(expected.x, abs=1e-5)
    assert nll(np.log(fitted.value), logits, labels) <= expected.fun + 1e-12
    assert fitted.n == 200


def test_it_scales_and_survives_json():
    fitted = Temperature.fit(*samples())
    logits = torch.randn(3, 5, dtype=torch.bfloat16)
    assert fitted(logits).dtype == torch.bfloat16
    assert torch.equal(fitted(logits.double()), logits.double() / fitted.value)
    assert Temperature.from_dict(fitted.to_dict()) == fitted


def test_bad_calibration_sets_are_refused():
    logits, labels = samples()
    with pytest.raises(ValueError, match="calibration set is empty"):
        Temperature.fit(logits[:0], labels[:0])
    with pytest.raises(ValueError, match="all of them are classified right"):
        Temperature.fit(np.eye(5) * 3, np.arange(5))
    with pytest.raises(ValueError, match="say nothing about the labels"):
        Temperature.fit(np.eye(5) * 3, (np.arange(5) + 1) % 5)
    with pytest.raises(ValueError, match=r"[Nn]a[Nn]|finite"):
        Temperature.fit(np.full((2, 3), np.nan), np.array([0, 1]))
    with pytest.raises(ValueError, match="positive and finite"):
        Temperature(0.0, 1)
