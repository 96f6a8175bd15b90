"""A calibration that was saved with an adapter acts in predictions and in the pipeline, in the order that it defines."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_reprogram.calibration import CalibratedClassifier, Calibration, GammaCalibrator, Temperature
from peft_reprogram.hub import Predictor, UnsafeAdapterError, load_classifier
from peft_reprogram.ood import ModelOutputs, Threshold, get_score


CLASSES = ["zero", "one", "two | <b>many</b>"]
LABELS = torch.tensor([0, 1, 2, 0, 1])


def probabilities(predictions) -> torch.Tensor:
    return torch.tensor([[prediction.probabilities[name] for name in CLASSES] for prediction in predictions])


@pytest.fixture
def calibration() -> Calibration:
    """All steps, each of which changes a decision or a number."""
    gamma = GammaCalibrator(1.5, CLASSES, [0, 1], temperature=2.0)
    return Calibration(Temperature(2.0, 100), gamma, Threshold(0.4, 0.95, 0.95, 100, "msp"))


def test_steps_act_in_their_order(adapter, calibration, pictures):
    plain = load_classifier(adapter)
    logits = plain.outputs(pictures).logits
    calibrated = logits / 2.0 + torch.tensor([0.0, 0.0, 1.5])
    expected, scores = torch.softmax(calibrated, dim=-1), get_score("msp").score(ModelOutputs(logits=calibrated))
    middle = scores.median().item()
    replace(calibration, threshold=replace(calibration.threshold, value=middle)).save_pretrained(adapter)
    predictor = load_classifier(adapter)
    predictions = predictor.predict(pictures)
    torch.testing.assert_close(probabilities(predictions), expected)
    assert not torch.allclose(expected, probabilities(plain.predict(pictures)), atol=0.05)
    torch.testing.assert_close(torch.tensor([p.score for p in predictions]), scores)
    assert [p.is_ood for p in predictions] == (scores < middle).tolist()
    assert sum(p.is_ood for p in predictions) == 2
    # The outputs stay the model's own, so that something else can be fitted on them.
    assert torch.equal(predictor.outputs(pictures).logits, logits)


def test_the_pipeline_gives_the_same_probabilities(adapter, calibration, pictures):
    calibration.save_pretrained(adapter)
    predictor = load_classifier(adapter)
    for prediction, entries in zip(predictor.predict(pictures), predictor.to_pipeline(top_k=3)(pictures), strict=True):
        assert {entry["label"]: entry["score"] for entry in entries} == pytest.approx(
            prediction.probabilities, abs=1e-6
        )


def test_a_calibrated_classifier_is_loaded_as_it_was_saved(adapter, pictures, tmp_path):
    predictor = load_classifier(adapter)
    outputs = predictor.outputs(pictures)
    fitted = Calibration.fit(outputs, LABELS, temperature=False, score="energy", tpr=0.6)
    assert fitted.identity == fitted.threshold.identity == predictor.identity
    CalibratedClassifier(predictor.classifier, fitted).save_pretrained(tmp_path / "saved")
    predictor.preprocess.save_pretrained(tmp_path / "saved")
    decided = load_classifier(tmp_path / "saved").predict(pictures)
    expected = fitted.predict(outputs)
    assert [p.is_ood for p in decided] == expected.is_ood.tolist()
    assert sum(p.is_ood for p in decided) == 2
    torch.testing.assert_close(torch.tensor([p.score for p in decided]), expected.ood_scores)


def test_a_fitted_score_comes_with_it(adapter, pictures):
    outputs = load_classifier(adapter).outputs(pictures)
    score = get_score("knn", k=1).fit(outputs[:3])
    fitted = Calibration.fit(outputs, LABELS, temperature=False, score=score)
    fitted.save_pretrained(adapter)
    assert [p.is_ood for p in load_classifier(adapter).predict(pictures)] == fitted.predict(outputs).is_ood.tolist()
    (adapter / "calibration_score.safetensors").unlink()
    with pytest.raises(UnsafeAdapterError, match=r"calibration_score.safetensors is missing"):
        load_classifier(adapter)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gamma_alone_acts_on_the_logits_as_they_are(adapter, pictures, temperature):
    logits = load_classifier(adapter).outputs(pictures).logits
    GammaCalibrator(0.5, CLASSES, [0, 1], temperature=temperature).save_pretrained(adapter)
    expected = torch.softmax(logits + torch.tensor([0.0, 0.0, 0.5 * temperature]), dim=-1)
    torch.testing.assert_close(probabilities(load_classifier(adapter).predict(pictures)), expected)


def test_a_threshold_of_the_uncalibrated_outputs_stays_one(adapter, calibration, pictures):
    predictor = load_classifier(adapter)
    predictor.calibrate(pictures, tpr=0.6)
    predictor.save_calibration(adapter)
    before = predictor.predict(pictures)
    replace(calibration, threshold=None, score=None).save_pretrained(adapter)
    both = load_classifier(adapter)
    after = both.predict(pictures)
    assert [(p.score, p.is_ood) for p in after] == [(p.score, p.is_ood) for p in before]
    assert [p.probability for p in after] != [p.probability for p in before]
    calibration.save_pretrained(adapter)  # with a threshold of its own, which takes its place
    assert load_classifier(adapter).threshold == calibration.threshold
    with pytest.raises(ValueError, match="give no other `threshold`"):
        Predictor(both.classifier, both.preprocess, CLASSES, threshold=both.threshold, calibration=calibration)


def test_a_new_threshold_is_one_of_calibrated_logits_where_the_old_one_was(adapter, calibration, pictures):
    calibration.save_pretrained(adapter)
    predictor = load_classifier(adapter)
    threshold = predictor.calibrate(pictures, tpr=0.6)
    predictor.save_calibration(adapter)
    assert not (adapter / "ood_threshold.json").exists()
    again = load_classifier(adapter)
    assert again.threshold == threshold
    assert sum(p.is_ood for p in again.predict(pictures)) == 2
    assert again.calibration.gamma == calibration.gamma


def test_a_calibration_of_another_adapter_is_not_used(adapter, calibration, pictures):
    predictor = load_classifier(adapter)
    replace(calibration, identity=predictor.identity).save_pretrained(adapter)
    assert load_classifier(adapter).calibration.gamma == calibration.gamma
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value + 0.01 for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="fitted on another model"):
        other = load_classifier(adapter)
    assert other.calibration == Calibration()
    assert other.predict(pictures[0]).is_ood is None


def test_classes_in_another_order_are_refused(adapter, calibration):
    replace(calibration, gamma=replace(calibration.gamma, class_names=CLASSES[::-1])).save_pretrained(adapter)
    with pytest.raises(UnsafeAdapterError, match=r"calibration.json, gamma: gamma was fitted for other classes"):
        load_classifier(adapter)
    calibration.save_pretrained(adapter)
    with pytest.raises(ValueError, match="gamma was fitted for another class list"):
        load_classifier(adapter, class_names=["a", "b", "c"])


GAMMA = {"gamma": 1.0, "class_names": CLASSES, "seen_classes": [0, 1]}
SCORE = {"name": "msp", "options": {}}
THRESHOLD = {"value": 0.0, "tpr": 0.95, "achieved_tpr": 1.0, "n": 5, "score": "msp", "options": {}, "identity": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"temperature": 2.0}, "temperature must hold a JSON object"),
        ({"temperature": {"value": "2", "n": 1}}, "has '2' for `value`, which must be a finite number"),
        ({"temperature": {"value": float("inf"), "n": 1}}, "has inf for `value`"),
        ({"temperature": {"value": 0.0, "n": 1}}, "must be positive"),
        ({"temperature": {"value": 1.0}}, "n"),
        ({"temperature": {"value": 1.0, "n": 1, "evil": 1}}, "evil"),
        ({"gamma": {**GAMMA, "gamma": float("nan")}}, "gamma has nan for `gamma`, which must be a finite number"),
        ({"gamma": {**GAMMA, "gamma": True}}, "has True for `gamma`"),
        ({"gamma": {**GAMMA, "temperature": -1.0}}, "must be positive"),
        ({"gamma": {**GAMMA, "class_names": "abc"}}, "for `class_names`"),
        ({"gamma": {**GAMMA, "class_names": [1, 2, 3]}}, "for `class_names`"),
        ({"gamma": {**GAMMA, "class_names": ["a", "b", "c"]}}, "fitted for other classes"),
        ({"gamma": {**GAMMA, "class_names": [str(i) for i in range(200_000)]}}, "200,000 names; at most"),
        ({"gamma": {**GAMMA, "seen_classes": [0] * 1_000_000}}, "more `seen_classes` than classes"),
        ({"gamma": {**GAMMA, "seen_classes": [0, 10**30]}}, "proper subset"),
        ({"gamma": {**GAMMA, "seen_classes": ["zero", "one"]}}, "for `seen_classes`"),
        ({"gamma": {**GAMMA, "seen_classes": [[0]]}}, "for `seen_classes`"),
        ({"gamma": GAMMA, "temperature": {"value": 3.0, "n": 1}}, "gamma was fitted on logits divided by 1"),
        ({"threshold": []}, "threshold must hold a JSON object"),
        ({"threshold": {**THRESHOLD, "value": float("-inf")}}, "has -inf for `value`"),
        ({"threshold": {**THRESHOLD, "score": 7}}, "for `score`"),
        ({"threshold": THRESHOLD, "score": {"name": "energy", "options": {}}}, "fitted on the score 'msp'"),
        ({"threshold": THRESHOLD, "score": {"name": ["msp"], "options": {}}}, "must hold a name and options"),
        ({"threshold": THRESHOLD, "score": {**SCORE, "module": "os"}}, "must hold a name and options"),
        ({"threshold": THRESHOLD, "score": {"name": "nothing", "options": {}}}, "unknown score"),
        ({"threshold": THRESHOLD, "score": {"name": "msp", "options": {"temperature": "evil"}}}, "temperature"),
        ({"identity": 7}, "has 7 for `identity`"),
    ],
)
def test_hostile_calibration(adapter, content, message):
    (adapter / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(UnsafeAdapterError) as caught:
        load_classifier(adapter)
    assert message in str(caught.value)
    assert "calibration" in str(caught.value)
    assert len(str(caught.value)) < 1000
    if "gamma" in content and "temperature" not in content:
        (adapter / "calibration.json").unlink()
        (adapter / "gamma.json").write_text(json.dumps(content["gamma"]))
        with pytest.raises(UnsafeAdapterError) as caught:
            load_classifier(adapter)
        assert message.removeprefix("gamma ") in str(caught.value)
