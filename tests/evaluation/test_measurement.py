import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score, roc_curve

from peft_reprogram.calibration import Temperature
from peft_reprogram.evaluation import Extraction
from peft_reprogram.evaluation.curves import ROC_GRID, score_curves
from peft_reprogram.evaluation.curves import roc_curve as stored_roc_curve
from peft_reprogram.evaluation.inputs import as_image_data
from peft_reprogram.evaluation.measurement import LabelledOutputs, Passes, measure, score_outputs
from peft_reprogram.evaluation.scoring import requested_scores
from peft_reprogram.metrics import calibration_metrics, negative_log_likelihood, ood_metrics
from peft_reprogram.ood import get_score

from .conftest import CLASSES


CONVENTION = {"preset": "default", "tpr": 0.95, "full_spectrum": False, "skip_scores": False}


@pytest.fixture
def outputs(preprocess, classifier, id_images, ood_images, tmp_path, monkeypatch):
    # Several chunks, the last of them short.
    monkeypatch.setattr("peft_reprogram.evaluation.stored_outputs.CHUNK_SIZE", 10)
    extract = Extraction(preprocess, tmp_path, progress_bar=False)
    sets = {"id": id_images, "ood": ood_images}
    return {name: extract(classifier, as_image_data(images, name)) for name, images in sets.items()}


def make_passes(outputs, labels=None, **others):
    labels = outputs["id"].labels if labels is None else labels
    defaults = {"shifts": {}, "corruptions": {}, "ood": {}, "fit": None, "calibration": None}
    return Passes(id=LabelledOutputs(outputs["id"], labels), **{**defaults, **others})


def test_classification_equals_sklearn(outputs):
    measures = measure(make_passes(outputs), CLASSES, {}, **CONVENTION)
    logits, labels = outputs["id"].load().logits.double().numpy(), outputs["id"].labels
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    assert measures.id["accuracy"] == accuracy_score(labels, predicted)
    assert measures.id["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-15)
    assert measures.id["n"] == 23
    for index, name in enumerate(CLASSES):
        assert measures.id["class_accuracy"][name] == np.mean(predicted[labels == index] == index)
    assert measures.calibration["nll"] == pytest.approx(log_loss(labels, probabilities, labels=[0, 1, 2]), rel=1e-12)
    whole = calibration_metrics(logits, labels)
    for name in ("ece", "ece_equal_mass", "nll", "brier", "confidence"):
        assert measures.calibration[name] == pytest.approx(whole[name], rel=1e-12)
    assert sum(measures.curves["reliability"]["count"]) == 23


def test_detection_equals_sklearn_and_full_spectrum_adds_the_shifts(outputs):
    shift = LabelledOutputs(outputs["ood"], np.zeros(11, np.int64))
    passes = make_passes(outputs, shifts={"shift": shift}, ood={"ood": outputs["ood"]})
    measures = measure(passes, CLASSES, {"energy": get_score("energy")}, **{**CONVENTION, "full_spectrum": True})
    inside, outside = (score_outputs(get_score("energy"), outputs[name]) for name in ("id", "ood"))
    assert np.array_equal(inside, get_score("energy").score(outputs["id"].load()).numpy())
    for key, positive in (("ood", inside), ("ood_full_spectrum", np.concatenate([inside, outside]))):
        found = getattr(measures, key)["energy"]["ood"]
        truth = np.repeat([1, 0], [len(positive), len(outside)])
        assert found["auroc"] == pytest.approx(roc_auc_score(truth, np.concatenate([positive, outside])), abs=1e-12)
        assert found == ood_metrics(positive, outside)


def test_a_score_is_fitted_on_a_copy_for_each_model(outputs):
    score = get_score("knn", k=3)
    fit = LabelledOutputs(outputs["id"], outputs["id"].labels)
    measures = measure(
        make_passes(outputs, ood={"ood": outputs["ood"]}, fit=fit), CLASSES, {"knn": score}, **CONVENTION
    )
    assert not score.is_fitted
    expected = get_score("knn", k=3).fit(outputs["id"].load())
    scores = [expected.score(outputs[name].load()).numpy() for name in ("id", "ood")]
    assert measures.ood["knn"]["ood"] == ood_metrics(*scores)


def test_calibration_is_reported_after_scaling_too(outputs):
    logits = outputs["id"].load().logits.numpy()
    labels = logits.argmax(axis=1)
    labels[:4] = logits[:4].argmin(axis=1)  # mostly right, so there is a best temperature
    held_out = LabelledOutputs(outputs["id"], labels)
    measures = measure(make_passes(outputs, calibration=held_out), CLASSES, {}, **CONVENTION)
    temperature = Temperature.fit(logits, labels).value
    assert measures.calibration["scaled"]["temperature"] == temperature
    expected = negative_log_likelihood(logits, outputs["id"].labels, temperature)
    assert measures.calibration["scaled"]["nll"] == pytest.approx(expected)


def test_where_no_temperature_is_best_the_reason_is_reported(outputs):
    always_right = LabelledOutputs(outputs["id"], outputs["id"].load().logits.argmax(dim=1).numpy())
    measures = measure(make_passes(outputs, calibration=always_right), CLASSES, {}, **CONVENTION)
    assert "scaled" not in measures.calibration
    assert "all of them are classified right" in measures.calibration["not_scaled"]


@pytest.mark.parametrize("ties", [False, True])
def test_the_stored_curve_is_the_roc_curve(ties):
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 400), rng.normal(0, 1, 150)
    if ties:
        inside, outside = inside.round(), outside.round()
    fpr, tpr, _ = roc_curve(np.repeat([1, 0], [400, 150]), np.concatenate([inside, outside]), drop_intermediate=False)
    stored = stored_roc_curve(inside, outside)
    assert stored[-1] == 1
    assert np.all(np.diff(stored) >= 0)
    highest = {x: tpr[fpr == x].max() for x in fpr}
    np.testing.assert_allclose(stored, np.interp(ROC_GRID, list(highest), list(highest.values())), atol=1e-12)


def test_histograms_count_every_score():
    scores = score_curves(np.array([0.0, 1, 2, 1e9]), {"a": np.arange(50.0), "constant": np.full(7, 3.0)})
    assert sum(scores["id"]) == 4
    assert sum(scores["ood"]["a"]["counts"]) == 50
    assert sum(scores["ood"]["constant"]["counts"]) == 7
    constant = score_curves(np.ones(3), {"a": np.ones(2)})
    assert sum(constant["id"]) == 3
    assert constant["ood"]["a"]["tpr"][50] == 0.5


def test_scores_are_named_by_what_is_not_default():
    assert list(requested_scores(["msp", get_score("mcm", temperature=0.01)])) == ["msp", "mcm(temperature=0.01)"]
    assert list(requested_scores("energy")) == ["energy"]
    with pytest.raises(ValueError, match="'msp' is asked for twice"):
        requested_scores(["msp", get_score("msp")])
