import json
import subprocess
import sys

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip() -> CLIPModel:
    torch.manual_seed(0)
    return CLIPModel(
        CLIPConfig(
            text_config={**TOWER, "vocab_size": 60, "bos_token_id": 58, "eos_token_id": 59, "projection_dim": 16},
            vision_config={**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 16},
            projection_dim=16,
        )
    ).eval()


def vit() -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig(**TOWER, image_size=32, patch_size=8, num_labels=3))


@pytest.mark.parametrize("config_cls", [ReprogrammerConfig, ResidualReprogrammerConfig])
def test_saved_configuration_holds_everything(tmp_path, config_cls):
    config = config_cls(
        class_names=["cat", "dog"], template=["a {}", "the {}"], token_indices=[3, 1, 3], position_indices=[]
    )
    model = get_peft_model(clip(), config)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["peft_type"] == config_cls().peft_type.value
    assert content["image_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert content["image_size"] == [32, 32]
    assert content["frame_inner"] == [28, 28]
    assert content["token_indices"] == [1, 3]
    assert content["class_names"] == ["cat", "dog"]
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is config_cls
    assert loaded.image_size == (32, 32)
    assert loaded.template == ["a {}", "the {}"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reprogram_image": False, "reprogram_text": False}, "nothing to train"),
        ({"image_size": "224"}, "image_size"),
        ({"frame_inner": (1, 2, 3)}, "frame_inner"),
        ({"frame_dropout": 1.0}, "frame_dropout"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "positive"),
        ({"class_names": []}, "class_names"),
        ({"class_names": "cat"}, "class_names"),
        ({"class_names": ["cat", "cat"]}, "duplicates.*cat"),
        ({"class_names": ["cat", " "]}, "non-empty"),
        ({"template": "a photo"}, "exactly once"),
        ({"template": "{} and {}"}, "exactly once"),
        ({"template": []}, "template"),
        ({"token_indices": [-1]}, "token_indices"),
        ({"init_weights": "ones"}, "init_weights"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        ReprogrammerConfig(**fields)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, "0.4", None, True])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="residual_alpha"):
        ResidualReprogrammerConfig(residual_alpha=alpha)


def test_unknown_text_rows_name_the_ways_out():
    with pytest.raises(ValueError, match=r"class_names=.*token_indices=.*reprogram_text=False"):
        get_peft_model(clip(), ReprogrammerConfig())


def test_missing_tokenizer_names_the_ways_out():
    with pytest.raises(ValueError, match=r"for_classes.*token_indices"):
        get_peft_model(clip(), ReprogrammerConfig(class_names=["cat", "dog"]))


def test_unknown_normalization_names_the_ways_out():
    with pytest.raises(ValueError, match=r"image_mean=.*image_std="):
        get_peft_model(vit(), ReprogrammerConfig())


def test_unknown_image_size_names_the_way_out():
    model = ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]))
    with pytest.raises(ValueError, match=r"image_size="):
        get_peft_model(model, ReprogrammerConfig(image_mean=[0.5] * 3, image_std=[0.5] * 3))


def test_unsupported_model_lists_the_supported():
    with pytest.raises(ValueError, match=r"CLIPModel.*target_modules"):
        get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), ReprogrammerConfig())


def test_an_error_leaves_the_model_untouched():
    model = clip()
    modules = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="larger than the model's input"):
        get_peft_model(model, ReprogrammerConfig(frame_inner=64, token_indices=[1]))
    with pytest.raises(ValueError, match="belongs to another base model"):
        get_peft_model(clip(), ReprogrammerConfig(token_indices=[60]))
    assert [type(module) for module in model.modules()] == modules


def test_normalization_and_size_come_from_the_checkpoints_processor(tmp_path):
    vit().save_pretrained(tmp_path)
    ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3
    ).save_pretrained(tmp_path)
    config = ReprogrammerConfig()
    get_peft_model(ViTForImageClassification.from_pretrained(tmp_path), config)
    assert config.image_mean == pytest.approx([0.1, 0.2, 0.3])
    assert config.image_size == (32, 32)


def test_a_reprogrammer_loads_as_a_residual_one_and_back(tmp_path):
    model = get_peft_model(clip(), ReprogrammerConfig(token_indices=[1, 2], init_weights=False)).eval()
    model.save_pretrained(tmp_path / "plain")
    x, ids = torch.rand(2, 3, 32, 32), torch.tensor([[58, 1, 2, 59]])
    plain = PeftConfig.from_pretrained(tmp_path / "plain")
    residual_config = ResidualReprogrammerConfig.from_reprogrammer(plain, residual_alpha=0.0)
    residual = PeftModel.from_pretrained(clip(), tmp_path / "plain", config=residual_config).eval()
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=x).logits_per_image
        torch.testing.assert_close(residual(input_ids=ids, pixel_values=x).logits_per_image, expected)
    residual.save_pretrained(tmp_path / "residual")
    back = PeftModel.from_pretrained(clip(), tmp_path / "residual", config=plain).eval()
    with torch.no_grad():
        assert torch.equal(back(input_ids=ids, pixel_values=x).logits_per_image, expected)


def test_vit_b32_adapter_for_ten_classes_is_small(tmp_path):
    # Only the modules that the adapter touches need their real size.
    text = {**TOWER, "hidden_size": 512, "num_attention_heads": 8, "vocab_size": 49408, "eos_token_id": 49407}
    vision = {**TOWER, "image_size": 224, "patch_size": 32}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    # "a photo of a {}", ten one-token names, start and end.
    get_peft_model(
        model, ReprogrammerConfig(token_indices=list(range(16)), position_indices=list(range(8)))
    ).save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert 39_936 * 4 + 24 * 512 * 4 < size < 300_000


def test_same_logits_in_a_new_process_bit_for_bit(tmp_path):
    base = clip()
    base.save_pretrained(tmp_path / "base")
    base = CLIPModel.from_pretrained(tmp_path / "base").eval()
    model = get_peft_model(base, ResidualReprogrammerConfig(token_indices=[1, 2], init_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(1)
    inputs = {"input_ids": torch.tensor([[58, 1, 2, 59]]), "pixel_values": torch.rand(2, 3, 32, 32)}
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
    torch.save({"inputs": inputs, "expected": expected}, tmp_path / "case.pt")
    script = f"""
import torch, peft_reprogram
from peft import PeftModel
from transformers import CLIPModel
torch.set_num_threads({torch.get_num_threads()})
case = torch.load(r"{tmp_path / "case.pt"}")
base = CLIPModel.from_pretrained(r"{tmp_path / "base"}")
model = PeftModel.from_pretrained(base, r"{tmp_path / "adapter"}").eval()
with torch.no_grad():
    assert torch.equal(model(**case["inputs"]).logits_per_image, case["expected"])
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_paper_preset_differs_in_the_frame_it_starts_from():
    assert ReprogrammerConfig.for_classes(["a", "b"]).init_weights is True
    assert ReprogrammerConfig.for_classes(["a", "b"], preset="paper").init_weights == "normal"
    assert ReprogrammerConfig.for_classes(["a", "b"], preset="paper", init_weights=True).init_weights is True
    with pytest.raises(ValueError, match="`preset` must be 'default' or 'paper', got 'papre'"):
        ReprogrammerConfig.for_classes(["a", "b"], preset="papre")
