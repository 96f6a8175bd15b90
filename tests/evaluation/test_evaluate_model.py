import json

import numpy as np
import pytest
from datasets import ClassLabel
from sklearn.metrics import accuracy_score, roc_auc_score
from transformers import ViTConfig, ViTForImageClassification

from peft_reprogram.data import ImageData
from peft_reprogram.evaluation import Results, evaluate_model, fit_threshold
from peft_reprogram.evaluation.inputs import as_image_data
from peft_reprogram.metrics import mean_corruption_error
from peft_reprogram.ood import IncompatibleOutputsError, NotFittedError, Score, Threshold, get_score
from peft_reprogram.shift import list_corruptions

from .conftest import CLASSES, make_images
from .test_extraction import expected_logits


QUIET = {"batch_size": 5, "progress_bar": False}


@pytest.fixture
def sets(id_images, shifted_images, ood_images):
    return {"id": id_images, "shifts": {"shift": shifted_images}, "ood": {"letters": ood_images}}


def test_adapter_and_base_are_measured_side_by_side(adapted, classifier, sets, preprocess, tmp_path):
    results = evaluate_model(
        adapted, **sets, preprocess=preprocess, baseline=True, scores=["msp", "energy"], cache_dir=tmp_path, **QUIET
    )
    assert list(results.models) == ["zero_shot", "reprogrammer"]
    alone = evaluate_model(classifier, **sets, preprocess=preprocess, scores=["msp", "energy"], **QUIET).models[
        "zero_shot"
    ]
    base = results.models["zero_shot"]
    assert base.identity == alone.identity != results.models["reprogrammer"].identity
    assert base.ood == alone.ood
    assert base.calibration == alone.calibration
    for model, owner in ((base, classifier), (results.models["reprogrammer"], adapted)):
        logits = {
            name: expected_logits(owner, as_image_data(data, name), preprocess).double()
            for name, data in (
                ("id", sets["id"]),
                ("shift", sets["shifts"]["shift"]),
                ("letters", sets["ood"]["letters"]),
            )
        }
        assert model.id["accuracy"] == accuracy_score(sets["id"]["label"], logits["id"].argmax(1))
        # The shifted set numbers its two classes otherwise.
        truth = np.array([2, 0])[sets["shifts"]["shift"]["label"]]
        assert model.shifts["shift"]["accuracy"] == accuracy_score(truth, logits["shift"].argmax(1))
        assert model.shift_summary["worst_shift"] == "shift"
        msp = [logits[name].softmax(1).amax(1).numpy() for name in ("id", "letters")]
        auroc = roc_auc_score(np.repeat([1, 0], [23, 11]), np.concatenate(msp))
        assert model.ood["msp"]["letters"]["auroc"] == pytest.approx(auroc, abs=1e-9)
    assert {name: entry["n"] for name, entry in results.sets.items()} == {"id": 23, "shift": 9, "letters": 11}
    assert {entry["role"] for entry in results.sets.values()} == {"id", "shift", "ood"}
    assert results.conventions["preset"] == "default"


def test_every_score_that_applies(classifier, sets, preprocess):
    results = evaluate_model(
        classifier,
        **sets,
        preprocess=preprocess,
        scores="all",
        fit=make_images(60, seed=3),
        full_spectrum=True,
        **QUIET,
    )
    measures = results.models["zero_shot"]
    assert set(measures.ood) >= {"gl_mcm", "neg_label", "knn", "vim", "mahalanobis", "react", "kl_matching"}
    assert set(measures.skipped_scores) == {"ash", "scale"}
    assert "linear head" in measures.skipped_scores["ash"]
    assert measures.ood.keys() == measures.ood_full_spectrum.keys()
    assert {entry["letters"]["n_id"] for entry in measures.ood_full_spectrum.values()} == {32}
    text = results.to_markdown()
    assert all(score in text for score in measures.ood)


def test_corruptions(classifier, id_images, preprocess):
    results = evaluate_model(
        classifier,
        id=id_images,
        preprocess=preprocess,
        corruptions=["fog", "saturate"],
        severities=[1, 4],
        seed=7,
        **QUIET,
    )
    measures = results.models["zero_shot"]
    assert {name: list(by) for name, by in measures.corruptions.items()} == {"fog": ["1", "4"], "saturate": ["1", "4"]}
    # `saturate` is not among the corruptions that the mean is over, and AlexNet's errors are no measure of three classes.
    fog = [1 - value for value in measures.corruptions["fog"].values()]
    assert measures.corruption_summary == {"none": mean_corruption_error({"fog": fog}, normalization="none")}
    again = evaluate_model(
        classifier,
        id=id_images,
        preprocess=preprocess,
        corruptions=["saturate", "fog"],
        severities=[4],
        seed=7,
        **QUIET,
    )
    assert again.models["zero_shot"].corruptions["fog"]["4"] == measures.corruptions["fog"]["4"]


def test_alexnet_normalises_imagenet_alone():
    from peft_reprogram.evaluation.measurement import _corruption_summary

    complete = {name: dict.fromkeys("12345", 0.5) for name in list_corruptions()}
    errors = {name: [0.5] * 5 for name in complete}
    assert _corruption_summary(complete, 1000)["alexnet"] == mean_corruption_error(errors, normalization="alexnet")
    assert "alexnet" not in _corruption_summary(complete, 10)
    del complete["fog"]["5"]
    complete = {name: {"1": 0.5} for name in complete}
    assert "alexnet" not in _corruption_summary(complete, 1000)


def test_streams_give_the_same_numbers(classifier, sets, preprocess):
    whole = evaluate_model(
        classifier, **sets, preprocess=preprocess, corruptions=["contrast"], severities=[2], **QUIET
    )
    streams = {
        "id": sets["id"].to_iterable_dataset(),
        "shifts": {"shift": sets["shifts"]["shift"].to_iterable_dataset()},
        "ood": {"letters": sets["ood"]["letters"].to_iterable_dataset()},
    }
    streamed = evaluate_model(
        classifier, **streams, preprocess=preprocess, corruptions=["contrast"], severities=[2], **QUIET
    )
    first, second = (results.models["zero_shot"].__dict__ for results in (whole, streamed))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_an_image_classifier(preprocess, id_images, ood_images):
    names = dict(enumerate(CLASSES[::-1]))
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    results = evaluate_model(
        model,
        id=id_images,
        ood={"ood": ood_images},
        preprocess=preprocess,
        scores="all",
        fit=make_images(60, seed=3),
        **QUIET,
    )
    measures = results.models["base"]
    logits = expected_logits(model, as_image_data(id_images, "id"), preprocess)
    assert measures.id["accuracy"] == accuracy_score(2 - np.array(id_images["label"]), logits.argmax(1))
    assert {"mcm", "gl_mcm", "neg_label"} <= set(measures.skipped_scores)
    assert {"knn", "vim", "react"} <= set(measures.ood)


def test_threshold_belongs_to_the_model_and_its_score(adapted, id_images, preprocess, tmp_path):
    threshold, score = fit_threshold(
        adapted, calibration=id_images, preprocess=preprocess, score=get_score("knn", k=2), tpr=0.8,
        fit=make_images(30, seed=3), cache_dir=tmp_path, **QUIET,
    )  # fmt: skip
    assert isinstance(threshold, Threshold)
    assert isinstance(score, Score)
    assert (threshold.tpr, threshold.n, threshold.score, threshold.options) == (0.8, 23, "knn", {"k": 2})
    assert threshold.achieved_tpr >= 0.8
    with adapted.model.disable_adapter():
        other, _ = fit_threshold(adapted, calibration=id_images, preprocess=preprocess, cache_dir=tmp_path, **QUIET)
    assert threshold.identity == score.identity != other.identity


BAD = {
    "score": ({"scores": ["entrophy"]}, "unknown score 'entrophy'; known scores: .*entropy"),
    "corruption": ({"corruptions": ["rain"]}, "Unknown corruption 'rain'; choose one of: .*snow"),
    "kind": ({"corruptions": "storms"}, "Unknown kind of corruption 'storms'"),
    "severity": ({"corruptions": ["fog"], "severities": [0]}, "severity must be a whole number from 1 .* got 0"),
    "preset": ({"preset": "oodopen"}, "Unknown `preset` 'oodopen'; known are 'default', 'ibm', 'openood', 'mcm'"),
    "tpr": ({"tpr": 95}, "`tpr` must be a fraction .* got 95. Divide a percentage by 100"),
    "selection": ({"selection": "best"}, "`selection` must be one of 'last', 'val', 'test', got 'best'"),
    "full spectrum": ({"full_spectrum": True, "shifts": {}}, "give `shifts` and `ood`"),
    "baseline": (
        {"baseline": True},
        "`baseline` measures the model without its adapters, but ZeroShotClassifier has none",
    ),
    "name": ({"ood": {"shift": make_images(3, 0)}}, r"set names \['shift'\] stand for two sets"),
    "empty": ({"ood": {"none": make_images(3, 0).select([])}}, "the set 'none' .* is empty"),
    "no labels": ({"shifts": {"bare": make_images(3, 0, names=None)}}, "'bare' .* carries no labels.* `ood`"),
    "other classes": (
        {"shifts": {"animals": make_images(4, 0, names=["zero", "cat"])}},
        r"classes of the set 'animals' .* no in-distribution class of the same name: 'cat'.*'one'.*class_map",
    ),
    "one class": (
        {"calibration": make_images(4, 0).filter(lambda row: row["label"] == 1)},
        "the set 'calibration' .* shows the class 'one' alone.*few_shot",
    ),
    "not fitted": ({"scores": ["knn"]}, r"\['knn'\] are fitted on in-distribution images: give .* `fit`"),
    "not for it": ({"scores": ["ash"]}, "'ash' .* linear head"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_how_to_mend_it(classifier, sets, preprocess, tmp_path, case):
    changed, message = BAD[case]
    arguments = {**sets, "preprocess": preprocess, "cache_dir": tmp_path / "cache", **QUIET, **changed}
    with pytest.raises((ValueError, NotFittedError, IncompatibleOutputsError), match=f"(?s){message}"):
        evaluate_model(classifier, **arguments)
    if case not in ("one class", "not for it", "empty"):
        assert not (tmp_path / "cache").exists()  # it was found out before any work was done


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_outside_the_classes_are_named(classifier, id_images, preprocess, streaming):
    wrong = id_images.cast_column("label", ClassLabel(names=[*CLASSES, "three"])).map(lambda row: {"label": 3})
    wrong = wrong.to_iterable_dataset() if streaming else wrong
    data = as_image_data(wrong, "id")
    data = ImageData(data.dataset, CLASSES, data.image_column, data.label_column, "test.parquet")
    with pytest.raises(ValueError, match=r"the set 'id' has the labels \[3\], .* numbered 0 to 2"):
        evaluate_model(classifier, id=data, preprocess=preprocess, **QUIET)


def test_what_is_no_set_of_images_is_refused(classifier, id_images, preprocess):
    with pytest.raises(TypeError, match=r"the set 'id' must be .* got list. `load_image_data`"):
        evaluate_model(classifier, id=[1, 2], preprocess=preprocess)
    with pytest.raises(ValueError, match=r"'id' needs one column of type Image .* it has 'label' \(ClassLabel\)"):
        evaluate_model(classifier, id=id_images.select_columns(["label"]), preprocess=preprocess)


def test_results_are_json(classifier, sets, preprocess, tmp_path):
    results = evaluate_model(classifier, **sets, preprocess=preprocess, **QUIET)
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    content = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert content["versions"]["torch"]
    assert content["seed"] == 0
    assert content["command"]
