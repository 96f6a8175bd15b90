import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_reprogram import ReprogrammerConfig, ZeroShotClassifier, set_residual_alpha
from peft_reprogram.evaluation.fingerprint import data_fingerprint, model_fingerprint, preprocessing_fingerprint
from peft_reprogram.evaluation.inputs import as_image_data, corrupted

from .conftest import CLASSES, make_classifier, make_images, make_preprocess


def test_a_base_model_has_one_fingerprint_bare_and_under_a_disabled_adapter(classifier, adapted):
    bare = model_fingerprint(classifier)
    with_adapter = model_fingerprint(adapted)
    with adapted.model.disable_adapter():
        assert model_fingerprint(adapted) == bare
    assert model_fingerprint(adapted) == with_adapter != bare


@pytest.mark.parametrize("change", ["frame", "row", "base", "template", "class_names", "adapter off"])
def test_whatever_changes_the_outputs_changes_the_fingerprint(adapted, change):
    before = model_fingerprint(adapted)
    parameters = dict(adapted.named_parameters())
    if change == "template":
        adapted = ZeroShotClassifier(adapted.model, adapted.tokenizer, CLASSES, "a drawing of a {}")
    elif change == "class_names":
        adapted = ZeroShotClassifier(adapted.model, adapted.tokenizer, CLASSES[::-1])
    elif change == "adapter off":
        adapted.model.base_model.disable_adapter_layers()
    else:
        part = {"frame": "reprogrammer_frame", "row": "reprogrammer_rows", "base": "base_layer.weight"}[change]
        name = next(name for name in parameters if part in name)
        with torch.no_grad():
            parameters[name].view(-1)[0] += 1e-3
    assert model_fingerprint(adapted) != before


def test_alpha_of_the_residual_counts():
    residual = make_classifier("residual")
    first = model_fingerprint(residual)
    set_residual_alpha(residual.model, 0.7)
    assert model_fingerprint(residual) != first
    set_residual_alpha(residual.model, 0.4)
    assert model_fingerprint(residual) == first


def test_an_inactive_adapter_does_not_count_and_names_do_not_matter(adapted):
    before = model_fingerprint(adapted)
    config = adapted.model.peft_config["default"]
    torch.manual_seed(1)
    adapted.model.add_adapter(
        "other", ReprogrammerConfig(**{**config.to_dict(), "peft_type": None, "init_weights": False})
    )
    assert model_fingerprint(adapted) == before
    adapted.model.set_adapter("other")
    assert model_fingerprint(adapted) != before


def test_scaling_of_lora_counts(classifier):
    model = get_peft_model(classifier.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    lora = ZeroShotClassifier(model, classifier.tokenizer, CLASSES).eval()
    before = model_fingerprint(lora)
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.5)
    assert model_fingerprint(lora) != before


def test_fingerprints_are_the_same_in_another_process(adapted, id_images):
    view = corrupted(as_image_data(id_images, "id"), "fog", 2, 5, 32)
    here = [model_fingerprint(adapted), data_fingerprint(view), preprocessing_fingerprint(make_preprocess(32))]
    program = (
        "from tests.evaluation.conftest import *\n"
        "from peft_reprogram.evaluation.fingerprint import *\n"
        "from peft_reprogram.evaluation.inputs import *\n"
        "view = corrupted(as_image_data(make_images(23, seed=0), 'id'), 'fog', 2, 5, 32)\n"
        "print(model_fingerprint(make_classifier('reprogrammer')), data_fingerprint(view),"
        " preprocessing_fingerprint(make_preprocess(32)))"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert there == here


def test_data_and_preprocessing():
    data = as_image_data(make_images(6, seed=0), "id")
    variants = [
        data,
        data.select([0, 1, 2]),
        data.select([2, 1, 0]),
        corrupted(data, "fog", 1, 0, None),
        corrupted(data, "fog", 2, 0, None),
        corrupted(data, "fog", 1, 1, None),
        corrupted(data, "fog", 1, 0, 16),
        corrupted(data, "snow", 1, 0, None),
    ]
    assert len({data_fingerprint(variant) for variant in variants}) == len(variants)
    assert data_fingerprint(as_image_data(make_images(6, seed=0).to_iterable_dataset(), "id")) is None
    assert preprocessing_fingerprint(make_preprocess()) != preprocessing_fingerprint(make_preprocess(16))
