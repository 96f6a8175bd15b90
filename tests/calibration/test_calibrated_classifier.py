"""One calibration for classifiers of every kind, and pseudo cross-validation through the package's own training."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from peft_reprogram import ReprogrammerConfig
from peft_reprogram.calibration import (
    CalibratedClassifier,
    Calibration,
    GammaCalibrator,
    SplitTraining,
    Temperature,
    fit_gamma,
)
from peft_reprogram.data import ImageData, ImagePreprocessor
from peft_reprogram.ood import Threshold
from peft_reprogram.training import TrainingConfig
from peft_reprogram.tuners.surgical import SurgicalConfig


NAMES = ["red", "green", "blue", "yellow", "violet", "grey"]
COLORS = np.array([(220, 30, 30), (30, 200, 30), (30, 30, 220), (210, 210, 30), (160, 30, 200), (120, 120, 120)])
SEEN = [0, 1, 2, 3]
SIZE = 8


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=4,
        id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)},
    )  # fmt: skip
    return ViTForImageClassification(config)


def linear_head() -> ViTForImageClassification:
    model = vit()
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    return model


FRAME = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_size": SIZE, "frame_inner": 4}
KINDS = {
    "full fine-tuning": vit,
    "linear head": linear_head,
    "lora": lambda: get_peft_model(vit(), LoraConfig(target_modules=r".*(q_proj|query)", r=2)),
    "surgical": lambda: get_peft_model(vit(), SurgicalConfig(blocks=["last", "head"])),
    "reprogrammer": lambda: get_peft_model(vit(), ReprogrammerConfig(**FRAME)),
}


def image_data(per_class: int, classes: list[int], seed: int) -> ImageData:
    rng = np.random.default_rng(seed)
    labels = [label for label in classes for _ in range(per_class)]
    images = [
        Image.fromarray(np.clip(COLORS[label] + rng.normal(0, 25, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8))
        for label in labels
    ]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)})
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    return ImageData(dataset, NAMES, "image", "label")


def preprocess() -> ImagePreprocessor:
    return ImagePreprocessor(ViTImageProcessor(size={"height": SIZE, "width": SIZE}))


def splits(kind: str, tmp_path, epochs: int = 1) -> SplitTraining:
    config = TrainingConfig(
        str(tmp_path / "runs"), epochs=epochs, batch_size=8, lr=1e-2, warmup_ratio=0.0, progress_bar=False
    )
    return SplitTraining(KINDS[kind], image_data(8, SEEN, 0), config, preprocess())


@pytest.mark.filterwarnings("ignore:Could not find a config file")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_classifier_is_calibrated_alike(kind, tmp_path):
    training, held_out = splits(kind, tmp_path), image_data(3, SEEN, 1)
    pcv = fit_gamma(
        "pcv", class_names=NAMES, seen_classes=SEEN, fine_tune=training, pretrained=training.predict(), data=held_out,
        labels=held_out.labels, num_splits=2, state_dir=tmp_path / "pcv",
    )  # fmt: skip
    assert np.isfinite(pcv.gamma)
    for seed, split in enumerate(pcv.details["splits"]):
        results = json.loads((tmp_path / "runs" / f"seed-{seed}" / "results.json").read_text())
        assert results["recipe"] == {"pseudo_seen_classes": split["pseudo_seen"]}
        assert results["seed"] == seed

    predict = training(SEEN, 9)
    logits = predict(training.data)
    alg = fit_gamma("alg", class_names=NAMES, seen_classes=SEEN, logits=logits, labels=training.data.labels)
    model = KINDS[kind]().eval()
    pixel_values = torch.randn(4, 3, SIZE, SIZE)
    for gamma in (alg, pcv):
        plain = model(pixel_values).logits
        classifier = CalibratedClassifier(model, Calibration(gamma=gamma)).eval()
        expected = plain + gamma.gamma * torch.tensor([0.0, 0, 0, 0, 1, 1])
        torch.testing.assert_close(classifier(pixel_values).logits, expected)
        assert torch.equal(classifier.predict(pixel_values).labels, expected.argmax(dim=-1))
    output = classifier(pixel_values, labels=torch.tensor([0, 1, 2, 5]))
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 5]))
    )
    assert classifier.class_names == NAMES

    classifier.save_pretrained(tmp_path / "saved")
    base = (
        PeftModel.from_pretrained(vit(), tmp_path / "saved")
        if isinstance(model, PeftModel)
        else type(model).from_pretrained(tmp_path / "saved")
    )
    loaded = CalibratedClassifier.from_pretrained(tmp_path / "saved", base.eval())
    assert torch.equal(loaded(pixel_values).logits, classifier(pixel_values).logits)


def test_only_images_of_the_seen_classes_are_trained_on_and_runs_continue(tmp_path):
    training = splits("linear head", tmp_path)
    logits = training([0, 2], 3)(training.data)
    results = json.loads((tmp_path / "runs" / "seed-3" / "results.json").read_text())
    assert results["steps"] == 16 // 8
    # The same split again is finished already: nothing is trained, the weights are the same.
    again = training([0, 2], 3)(training.data)
    assert torch.equal(logits, again)
    with pytest.raises(FileExistsError, match="pseudo_seen_classes"):
        training([0, 1], 3)
    with pytest.raises(ValueError, match="no images of the classes"):
        training([4], 4)


def test_thresholds_decide_from_calibrated_logits(tmp_path):
    gamma = GammaCalibrator(2.0, NAMES, SEEN, temperature=0.5)
    calibration = Calibration(Temperature(0.5, 10), gamma, Threshold(1.2, 0.95, 0.95, 10, "max_logit"))
    model = vit().eval()
    classifier = CalibratedClassifier(model, calibration)
    pixel_values = torch.randn(5, 3, SIZE, SIZE)
    prediction = classifier.predict(pixel_values)
    best = (model(pixel_values).logits / 0.5 + 2.0 * torch.tensor([0.0, 0, 0, 0, 1, 1])).amax(dim=-1)
    torch.testing.assert_close(prediction.ood_scores, best.detach())
    assert torch.equal(prediction.is_ood, best < 1.2)


def test_a_calibration_of_another_classifier_is_refused():
    other = GammaCalibrator(1.0, [*NAMES[:-1], "black"], SEEN)
    with pytest.raises(ValueError, match=r"another class list .*lacks \['black'\] and adds \['grey'\]"):
        CalibratedClassifier(vit(), Calibration(gamma=other))
    threshold = Threshold(0.5, 0.95, 0.95, 10, "mcm")
    with pytest.raises(ValueError, match=r"'mcm' looks at"):
        CalibratedClassifier(vit(), Calibration(threshold=threshold))


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_an_interrupted_save_leaves_no_calibration_of_another_classifier(tmp_path, monkeypatch):
    model = KINDS["surgical"]()
    CalibratedClassifier(model, Calibration(gamma=GammaCalibrator(1.0, NAMES, SEEN))).save_pretrained(tmp_path / "a")
    other = CalibratedClassifier(model, Calibration(gamma=GammaCalibrator(9.0, NAMES, SEEN)))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            other.save_pretrained(tmp_path / "a")
    assert Calibration.from_pretrained(tmp_path / "a").gamma.gamma == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
