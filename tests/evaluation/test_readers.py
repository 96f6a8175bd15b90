import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    CLIPTextConfig,
    MobileNetV2Config,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from peft_reprogram import ZeroShotClassifier, set_residual_alpha
from peft_reprogram.evaluation.readers import class_names_of, make_reader
from peft_reprogram.ood import IncompatibleOutputsError, ModelOutputs

from .conftest import CLASSES, make_classifier


TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {"image_size": 32, "patch_size": 8}
CLASSIFIERS = {
    "vit": {**TOWER, **IMAGE},
    "dinov2": {**TOWER, **IMAGE},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.25},
}  # fmt: skip


def pixels(n=5):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make_plain(kind="vit", num_labels=3):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(
        AutoConfig.for_model(kind, **CLASSIFIERS[kind], num_labels=num_labels)
    )
    return model.eval()


def make_dual(vision):
    torch.manual_seed(0)
    text = CLIPTextConfig(**TOWER, vocab_size=600, max_position_embeddings=32, bos_token_id=0, eos_token_id=1)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)
    return VisionTextDualEncoderModel(config).eval()


@torch.no_grad()
def read(reader, batch):
    fields = reader.read(batch)
    return ModelOutputs(**fields, **reader.head())


@pytest.mark.parametrize("method", [None, "reprogrammer", "residual"])
def test_text_image_outputs_are_those_of_the_classifier(method):
    classifier = make_classifier(method)
    if method == "residual":
        set_residual_alpha(classifier.model, 0.3)
    outputs = read(make_reader(classifier), pixels())
    with torch.no_grad():
        assert torch.equal(outputs.logits, classifier(pixels()).logits)
        assert torch.equal(outputs.features, classifier.get_image_features(pixels()))
    torch.testing.assert_close(outputs.head(outputs.features).float(), outputs.logits)
    assert class_names_of(classifier) == CLASSES


def test_the_bias_of_a_sigmoid_model_is_read(classifier):
    torch.manual_seed(0)
    text = {
        **TOWER,
        "vocab_size": len(classifier.tokenizer),
        "max_position_embeddings": classifier.tokenizer.model_max_length,
    }
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config={**TOWER, **IMAGE}))
    siglip.logit_bias.data.fill_(-3.0)
    classifier = ZeroShotClassifier(siglip, classifier.tokenizer, CLASSES).eval()
    outputs = read(make_reader(classifier), pixels())
    with torch.no_grad():
        assert torch.equal(outputs.logits, classifier(pixels()).logits)
    torch.testing.assert_close(outputs.bias, torch.full((3,), -3.0))
    torch.testing.assert_close(outputs.head(outputs.features).float(), outputs.logits)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_features_of_a_classifier_are_what_its_head_sees(kind):
    model = make_plain(kind)
    outputs = read(make_reader(model), pixels())
    with torch.no_grad():
        assert torch.equal(outputs.logits, model(pixels()).logits)
    assert outputs.logit_scale is None
    torch.testing.assert_close(outputs.head(outputs.features).float(), outputs.logits)
    assert class_names_of(model) is None


def test_the_head_of_an_adapter_and_of_its_base_are_told_apart():
    model = get_peft_model(
        make_plain(), LoraConfig(target_modules=["q_proj", "query"], modules_to_save=["classifier"])
    ).eval()
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight += 1
    heads = []
    for disabled in (False, True):
        with model.disable_adapter() if disabled else torch.no_grad():
            outputs = read(make_reader(model), pixels())
        torch.testing.assert_close(outputs.head(outputs.features).float(), outputs.logits)
        heads.append(outputs.class_features)
    assert not torch.equal(*heads)


def test_without_a_linear_head_there_are_logits_alone():
    model = get_peft_model(make_plain(), LoraConfig(target_modules=["classifier"], init_lora_weights=False)).eval()
    outputs = read(make_reader(model), pixels())
    assert outputs.features is None
    assert outputs.class_features is None
    with torch.no_grad():
        assert torch.equal(outputs.logits, model(pixel_values=pixels()).logits)


@pytest.mark.parametrize("make", [make_classifier, make_plain])
def test_logits_are_not_rounded_under_autocast(make):
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = read(make_reader(model), pixels(64))
    assert not torch.equal(outputs.logits, outputs.logits.bfloat16().float())
    torch.testing.assert_close(outputs.head(outputs.features).float(), outputs.logits)


@torch.no_grad()
def test_patches_of_clip_go_where_its_class_token_goes(classifier):
    fields = make_reader(classifier, patch_features=True).read(pixels())
    vision = classifier.model.vision_model
    hidden = vision(pixel_values=pixels()).last_hidden_state
    class_token = classifier.model.visual_projection(vision.post_layernorm(hidden[:, 0]))
    torch.testing.assert_close(torch.nn.functional.normalize(class_token, dim=-1), fields["features"])
    expected = torch.stack([classifier.model.visual_projection(vision.post_layernorm(h[1:])) for h in hidden])
    torch.testing.assert_close(fields["patch_features"], expected)


@torch.no_grad()
def test_patches_of_a_convolutional_tower_average_to_the_image(classifier):
    dual = make_dual(MobileNetV2Config(image_size=32, depth_multiplier=0.25, hidden_size=1280))
    fields = make_reader(ZeroShotClassifier(dual, classifier.tokenizer, CLASSES).eval(), patch_features=True).read(
        pixels()
    )
    mean = torch.nn.functional.normalize(fields["patch_features"].mean(dim=1), dim=-1)
    torch.testing.assert_close(mean, fields["features"])


@torch.no_grad()
def test_patches_of_a_residual_model_do_not_disturb_its_features():
    residual = make_classifier("residual")
    plain = make_reader(residual).read(pixels())
    fields = make_reader(residual, patch_features=True).read(pixels())
    assert torch.equal(fields["features"], plain["features"])
    assert fields["patch_features"].shape[0] == 5


@pytest.mark.parametrize("kind", ["plain", "vit tower", "siglip"])
def test_patches_without_a_place_in_the_joint_space_are_refused(classifier, kind):
    if kind == "plain":
        model = make_plain()
    else:
        text = {**TOWER, "vocab_size": 600, "max_position_embeddings": 16}
        base = (
            make_dual(ViTConfig(**TOWER, **IMAGE))
            if kind == "vit tower"
            else SiglipModel(SiglipConfig(text_config=text, vision_config={**TOWER, **IMAGE}))
        )
        model = ZeroShotClassifier(base, classifier.tokenizer, CLASSES).eval()
    with pytest.raises(IncompatibleOutputsError, match="gl_mcm"):
        make_reader(model, patch_features=True)
