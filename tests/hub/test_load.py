import json
import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoImageProcessor, CLIPModel, ViTForImageClassification

from peft_reprogram import ReprogrammerConfig, ZeroShotClassifier
from peft_reprogram.calibration import Calibration
from peft_reprogram.demo.pretraining import build_tokenizer
from peft_reprogram.hub import Prediction, load_classifier
from peft_reprogram.ood import Threshold, get_score


CLASSES = ["zero", "one", "two | <b>many</b>"]


@torch.no_grad()
def logits(classifier, images) -> torch.Tensor:
    return classifier(pixel_values=images).logits


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_logits_are_those_that_were_saved(adapter, base, pixel_values):
    saved = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), adapter)
    expected = ZeroShotClassifier(saved, build_tokenizer(), CLASSES).eval()
    predictor = load_classifier(adapter)
    assert torch.equal(logits(predictor.classifier, pixel_values), logits(expected, pixel_values))
    assert predictor.class_names == CLASSES
    assert not any(parameter.requires_grad for parameter in predictor.classifier.parameters())


def test_classifier_with_a_head_of_its_own(vit_adapter, pixel_values, pictures):
    config = json.loads((vit_adapter / "adapter_config.json").read_text())
    labels = dict(enumerate(CLASSES))
    base = ViTForImageClassification.from_pretrained(
        config["base_model_name_or_path"], id2label=labels, ignore_mismatched_sizes=True
    )
    expected = PeftModel.from_pretrained(base, vit_adapter).eval()
    predictor = load_classifier(vit_adapter)
    assert torch.equal(logits(predictor.classifier, pixel_values), logits(expected, pixel_values))
    prediction = predictor.predict(pictures[0])
    assert prediction.label in CLASSES
    assert prediction.score == pytest.approx(torch.tensor(prediction.probability).log().item(), abs=1e-5)


def test_head_that_was_not_saved_is_noticed(vit_adapter):
    config = json.loads((vit_adapter / "adapter_config.json").read_text())
    config["modules_to_save"] = None
    (vit_adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="hold no classification head"):
        load_classifier(vit_adapter)


def test_other_adapter_types_and_whole_models(base, tmp_path, pixel_values):
    from peft import LoraConfig

    from peft_reprogram.tuners.surgical import SurgicalConfig

    tokenizer, processor = build_tokenizer(), AutoImageProcessor.from_pretrained(base)
    torch.manual_seed(1)
    lora = get_peft_model(
        CLIPModel.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    surgical = get_peft_model(CLIPModel.from_pretrained(base), SurgicalConfig(blocks="first", init_weights=False))
    for name, model in (("lora", lora), ("surgical", surgical), ("whole", CLIPModel.from_pretrained(base))):
        classifier = ZeroShotClassifier(model, tokenizer, CLASSES, ["a {}", "the {}"]).eval()
        classifier.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        loaded = load_classifier(tmp_path / name)
        assert torch.equal(logits(loaded.classifier, pixel_values), logits(classifier, pixel_values))


def test_adapter_alone_is_completed_from_base_and_configuration(adapter, base, pixel_values):
    expected = logits(load_classifier(adapter).classifier, pixel_values)
    for file in adapter.iterdir():
        if file.name not in ("adapter_config.json", "adapter_model.safetensors"):
            file.unlink()
    predictor = load_classifier(adapter)
    assert torch.equal(logits(predictor.classifier, pixel_values), expected)
    given = CLIPModel.from_pretrained(base)
    assert torch.equal(logits(load_classifier(adapter, model=given).classifier, pixel_values), expected)


def test_wrong_base_model_is_named(adapter, base, tmp_path):
    from transformers import CLIPConfig

    config = CLIPConfig.from_pretrained(base)
    config.text_config.hidden_size, config.text_config.intermediate_size = 64, 64
    CLIPModel(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"does not fit the base model CLIPModel .*has the shape .* and must have"):
        load_classifier(adapter, model=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"cannot load .*nowhere"):
        load_classifier(adapter, model=tmp_path / "nowhere")


def test_adapter_of_another_architecture(adapter, vit_adapter, tmp_path):
    (adapter / "zero_shot_classifier.json").unlink()
    with pytest.raises(ValueError, match="does not fit the base model ViTForImageClassification"):
        load_classifier(adapter, model=ViTForImageClassification.from_pretrained(tmp_path / "vit"))


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_missing_files_are_named(adapter, missing):
    (adapter / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load_classifier(adapter)


def test_what_cannot_be_found(tmp_path, adapter):
    with pytest.raises(FileNotFoundError, match=r"no folder .* no name of a repository"):
        load_classifier(tmp_path / "a" / "b" / "c")
    with pytest.raises(ValueError, match="local folder, which has no `revision`"):
        load_classifier(adapter, revision="main")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for value, error in (("/gone/base", "a folder that is not here"), (None, "does not name its base model")):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": value}))
        with pytest.raises((FileNotFoundError, ValueError), match=error):
            load_classifier(adapter)


def test_classes_that_nobody_names(base, tmp_path):
    model = get_peft_model(
        CLIPModel.from_pretrained(base),
        ReprogrammerConfig(reprogram_text=False, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    )
    model.save_pretrained(tmp_path / "nameless")
    with pytest.raises(ValueError, match="does not name its classes"):
        load_classifier(tmp_path / "nameless")
    predictor = load_classifier(tmp_path / "nameless", class_names=["a", "b"])
    assert predictor.class_names == ["a", "b"]


def test_calibration_is_stored_with_the_adapter(adapter, pictures):
    predictor = load_classifier(adapter)
    assert predictor.predict(pictures[0]).is_ood is None
    with pytest.raises(ValueError, match="no threshold to save"):
        predictor.save_calibration(adapter)
    threshold = predictor.calibrate(pictures, tpr=0.6)
    predictor.save_calibration(adapter)
    loaded = load_classifier(adapter)
    assert loaded.threshold == threshold
    predictions = loaded.predict(pictures)
    assert [p.is_ood for p in predictions] == [p.score < threshold.value for p in predictions]
    assert sum(p.is_ood for p in predictions) == 2  # of 5, three stay at a TPR of 0.6


def store_knn(adapter, pictures):
    """Fits a score and its threshold, and stores both with the adapter."""
    predictor = load_classifier(adapter)
    predictor.score = get_score("knn", k=1)
    predictor.score.fit(predictor.outputs(pictures[:3]))
    predictor.calibrate(pictures[3:])
    predictor.save_calibration(adapter)
    return predictor


def test_score_that_learns_is_stored_too(adapter, pictures):
    predictor = store_knn(adapter, pictures)
    again = load_classifier(adapter)
    assert again.score.name == "knn"
    assert again.predict(pictures) == predictor.predict(pictures)


def test_threshold_of_another_adapter_is_not_used(adapter, tmp_path, pictures):
    predictor = load_classifier(adapter)
    predictor.calibrate(pictures)
    predictor.save_calibration(adapter)
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value + 0.01 for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="fitted on another model"):
        other = load_classifier(adapter)
    prediction = other.predict(pictures[0])
    assert isinstance(prediction, Prediction)
    assert prediction.is_ood is None


def test_what_is_fitted_anew_takes_the_place_of_another_adapters(adapter, pictures):
    store_knn(adapter, pictures)
    foreign = Threshold(0.0, 0.95, 1.0, 5, "msp", {}, "0" * 32)
    Calibration(threshold=foreign, score=get_score("msp"), identity="0" * 32).save_pretrained(adapter)
    with pytest.warns(UserWarning, match="Fit it anew"):
        again = load_classifier(adapter)
    threshold = again.calibrate(pictures, tpr=0.6)
    again.save_calibration(adapter)
    loaded = load_classifier(adapter)
    assert loaded.threshold == threshold
    assert not (adapter / "calibration.json").exists()
    assert not (adapter / "ood_score.safetensors").exists()


def test_copy_of_the_folder_is_the_same_adapter(adapter, tmp_path, pictures):
    predictor = load_classifier(adapter)
    predictor.calibrate(pictures)
    predictor.save_calibration(adapter)
    moved = load_classifier(shutil.move(adapter, tmp_path / "elsewhere"))
    assert moved.predict(pictures) == predictor.predict(pictures)
