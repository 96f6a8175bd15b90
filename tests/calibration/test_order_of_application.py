import pytest
import torch

from peft_reprogram.calibration import Calibration, GammaCalibrator, Temperature, alg_gamma
from peft_reprogram.ood import ModelOutputs, Threshold, get_score


NAMES = ["ant", "bee", "cat", "dog", "elk"]
SEEN = [0, 1, 2]
ABSENT = torch.tensor([0.0, 0, 0, 1, 1])


def outputs(n: int = 80, seed: int = 0, only: int = 5) -> ModelOutputs:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, only, (n,), generator=generator)
    features = torch.randn(n, 7, generator=generator)
    logits = 3 * torch.randn(n, 5, generator=generator) + 4 * torch.eye(5)[labels] - 2 * ABSENT
    return ModelOutputs(logits=logits, features=features, labels=labels)


def test_logits_are_scaled_then_shifted_then_scored():
    calibration = Calibration(
        Temperature(2.0, 10),
        GammaCalibrator(0.7, NAMES, SEEN, temperature=2.0),
        Threshold(2.5, 0.95, 0.95, 10, "max_logit"),
    )
    given = outputs()
    expected = given.logits / 2.0 + 0.7 * ABSENT
    assert torch.equal(calibration.logits(given.logits), expected)
    prediction = calibration.predict(given)
    torch.testing.assert_close(prediction.probabilities, expected.softmax(dim=-1))
    assert torch.equal(prediction.labels, expected.argmax(dim=-1))
    torch.testing.assert_close(prediction.ood_scores, expected.amax(dim=-1))
    assert torch.equal(prediction.is_ood, prediction.ood_scores < 2.5)
    assert 0 < prediction.is_ood.sum() < len(given)
    # No other order gives these numbers.
    swapped = (given.logits + 0.7 * ABSENT) / 2.0
    assert not torch.equal(swapped.argmax(dim=-1), prediction.labels) or not torch.allclose(swapped, expected)


def test_each_step_is_fitted_on_what_the_steps_before_it_give():
    held_out, training = outputs(), outputs(seed=1, only=3)
    calibration = Calibration.fit(
        held_out, gamma="alg", class_names=NAMES, seen_classes=SEEN, score="energy", tpr=0.9, training_outputs=training
    )
    temperature = Temperature.fit(held_out.logits, held_out.labels)
    assert calibration.temperature == temperature
    gamma = alg_gamma(training.logits / temperature.value, training.labels, SEEN)
    assert calibration.gamma.gamma == pytest.approx(gamma)
    assert calibration.gamma.temperature == temperature.value
    scores = get_score("energy").score(calibration.apply(held_out))
    assert calibration.threshold == Threshold.fit(scores, 0.9, score=get_score("energy"))
    prediction = calibration.predict(held_out)
    assert (~prediction.is_ood).float().mean() >= 0.9
    assert torch.equal(prediction.ood_scores, scores)


def test_a_gamma_from_elsewhere_is_brought_to_the_temperature():
    held_out = outputs()
    gamma = GammaCalibrator(1.2, NAMES, SEEN, method="pcv")
    calibration = Calibration.fit(held_out, gamma=gamma)
    expected = gamma(held_out.logits) / calibration.temperature.value
    torch.testing.assert_close(calibration.logits(held_out.logits), expected)
    with pytest.raises(ValueError, match=r"at_temperature\(temperature.value\)"):
        Calibration(Temperature(2.0, 5), gamma)


@pytest.mark.parametrize(
    "steps", [(), ("temperature",), ("gamma",), ("threshold",), ("temperature", "gamma", "threshold")]
)
def test_any_steps_may_be_missing_and_all_survive_saving(steps, tmp_path):
    held_out = outputs()
    calibration = Calibration.fit(
        held_out,
        temperature="temperature" in steps,
        gamma=GammaCalibrator(1.0, NAMES, SEEN) if "gamma" in steps else None,
        score="msp" if "threshold" in steps else None,
    )
    assert [name for name in ("temperature", "gamma", "threshold") if getattr(calibration, name) is not None] == list(
        steps
    )
    calibration.save_pretrained(tmp_path / "adapter")
    loaded = Calibration.from_pretrained(tmp_path / "adapter")
    assert loaded == calibration or (loaded.temperature, loaded.gamma, loaded.threshold) == (
        calibration.temperature, calibration.gamma, calibration.threshold,
    )  # fmt: skip
    for first, second in zip(loaded.predict(held_out), calibration.predict(held_out)):
        assert first is second is None or torch.equal(first, second)
    if steps == ():
        assert torch.equal(calibration.logits(held_out.logits), held_out.logits)


def test_a_score_that_is_fitted_is_saved_with_it(tmp_path):
    held_out = outputs()
    score = get_score("knn", k=3).fit(outputs(seed=2))
    calibration = Calibration.fit(held_out, score=score)
    calibration.save_pretrained(tmp_path)
    loaded = Calibration.from_pretrained(tmp_path)
    assert torch.equal(loaded.predict(held_out).is_ood, calibration.predict(held_out).is_ood)


def test_what_does_not_fit_is_refused(tmp_path):
    held_out = outputs()
    with pytest.raises(ValueError, match="calibration set is empty"):
        Calibration.fit(ModelOutputs(logits=torch.zeros(0, 5)))
    with pytest.raises(ValueError, match="needs the classes"):
        Calibration.fit(ModelOutputs(logits=held_out.logits))
    with pytest.raises(ValueError, match="ALG needs `training_outputs`"):
        Calibration.fit(held_out, gamma="alg")
    with pytest.raises(ValueError, match="'alg' or a GammaCalibrator"):
        Calibration.fit(held_out, gamma="pcv")
    with pytest.raises(ValueError, match="which score it is for"):
        Calibration(threshold=Threshold(0.5, 0.95, 0.95, 10))
    with pytest.raises(ValueError, match="one of the fitted score 'knn'"):
        Calibration(threshold=Threshold.fit(torch.rand(9), score=get_score("knn", k=3)))
    with pytest.raises(ValueError, match="fitted on the score 'msp', not on 'energy'"):
        Calibration(threshold=Threshold(0.5, 0.95, 0.95, 10, "msp"), score=get_score("energy"))
    with pytest.raises(FileNotFoundError, match=r"no calibration\.json"):
        Calibration.from_pretrained(tmp_path)
