"""The residual against its formula, `(1 - a) f + a f0` of unit features, written from the base model's own parts."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig, set_residual_alpha
from peft_reprogram.tuners.reprogrammer.layer import PixelReprogrammer, RowReprogrammer

from .tuner_types import TUNERS, adapted, adapter_parameters, randomize
from .zoo import CORE, FURTHER, ZooModel


TRANSFORMERS_4 = transformers.__version__.startswith("4.")
ALL = {**CORE, **FURTHER}
TEXT_IMAGE = {name: model for name, model in ALL.items() if model.has_text}
CLASSIFIERS = {name: model for name, model in ALL.items() if model.kind == "classifier"}


@pytest.fixture(params=TEXT_IMAGE.values(), ids=TEXT_IMAGE)
def text_image(request) -> ZooModel:
    return request.param


@pytest.fixture(params=CLASSIFIERS.values(), ids=CLASSIFIERS)
def classifier(request) -> ZooModel:
    return request.param


def residual(model: ZooModel, **fields) -> PeftModel:
    return adapted(model, TUNERS["RESIDUAL_REPROGRAMMER"](model, **fields))


def plain(model: ZooModel) -> PeftModel:
    """The Reprogrammer with the same weights."""
    return adapted(model, TUNERS["REPROGRAMMER"](model))


def unit(features) -> torch.Tensor:
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    return features / features.norm(dim=-1, keepdim=True)


def image_features(model: nn.Module, inputs) -> torch.Tensor:
    return model.get_image_features(pixel_values=inputs["pixel_values"])


def text_features(model: nn.Module, inputs) -> torch.Tensor:
    return model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


def logits(base: nn.Module, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    scale = base.logit_scale.exp() if hasattr(base, "logit_scale") else 1 / base.temperature
    bias = base.logit_bias if hasattr(base, "logit_bias") else 0.0
    return scale * image @ text.t() + bias


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("renormalize", [False, True])
def test_features_and_logits_are_the_mix_on_both_towers(text_image, alpha, renormalize):
    inputs, base = text_image.inputs(3), text_image.build()
    model = residual(text_image, residual_renormalize=renormalize)
    set_residual_alpha(model, alpha)
    with torch.no_grad():
        f, f0, output = plain(text_image)(**inputs), base(**inputs), model(**inputs)
        image = (1 - alpha) * unit(f.image_embeds) + alpha * unit(f0.image_embeds)
        text = (1 - alpha) * unit(f.text_embeds) + alpha * unit(f0.text_embeds)
        torch.testing.assert_close(unit(image_features(model, inputs)), unit(image), rtol=1e-4, atol=1e-5)
        if (
            text_image.name != "chinese-clip" or not TRANSFORMERS_4
        ):  # its `get_text_features` fails there without us too
            torch.testing.assert_close(unit(text_features(model, inputs)), unit(text), rtol=1e-4, atol=1e-5)
        if renormalize:
            image, text = unit(image), unit(text)
        torch.testing.assert_close(output.image_embeds, image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.text_embeds, text, rtol=1e-4, atol=1e-5)
        expected = logits(base, image, text)
        torch.testing.assert_close(output.logits_per_image, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.logits_per_text, expected.t(), rtol=1e-4, atol=1e-4)
        as_tuple = model(**inputs, return_dict=False)
    torch.testing.assert_close(as_tuple[0], output.logits_per_image)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_classifiers_mix_their_logits(classifier, alpha):
    inputs, base = classifier.inputs(3), classifier.build()
    model = residual(classifier)
    set_residual_alpha(model, alpha)
    mix = (1 - alpha) * classifier.predict(plain(classifier), inputs) + alpha * classifier.predict(base, inputs)
    torch.testing.assert_close(classifier.predict(model, inputs), mix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_image_embeddings_are_the_mix(alpha):
    zoo = CORE["clip-vision"]
    inputs, base, model = zoo.inputs(3), zoo.build(), residual(zoo)
    set_residual_alpha(model, alpha)
    with torch.no_grad():
        reprogrammed = unit(plain(zoo)(**inputs).image_embeds)
        expected = (1 - alpha) * reprogrammed + alpha * unit(base(**inputs).image_embeds)
        torch.testing.assert_close(model(**inputs).image_embeds, expected, rtol=1e-4, atol=1e-5)


def test_the_ends_of_alpha_are_the_two_models(text_image):
    inputs, model = text_image.inputs(3), residual(text_image)
    set_residual_alpha(model, 0.0)
    expected = text_image.predict(plain(text_image), inputs)
    torch.testing.assert_close(text_image.predict(model, inputs), expected, rtol=1e-4, atol=1e-4)
    set_residual_alpha(model, 1.0)
    expected = text_image.predict(text_image.build(), inputs)
    torch.testing.assert_close(text_image.predict(model, inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["clip", "vit", "resnet"])
def test_weights_are_interchangeable(name, tmp_path):
    zoo = ALL[name]
    inputs, model = zoo.inputs(), plain(zoo)
    model.save_pretrained(tmp_path / "plain")
    config = ResidualReprogrammerConfig.from_reprogrammer(
        ReprogrammerConfig.from_pretrained(tmp_path / "plain"), residual_alpha=0.3
    )
    mixed = PeftModel.from_pretrained(zoo.build(), tmp_path / "plain", config=config).eval()
    expected = residual(zoo)
    set_residual_alpha(expected, 0.3)
    assert torch.equal(zoo.predict(mixed, inputs), zoo.predict(expected, inputs))

    mixed.save_pretrained(tmp_path / "residual")
    back = PeftModel.from_pretrained(zoo.build(), tmp_path / "residual").eval()
    assert back.peft_config["default"].residual_alpha == 0.3
    assert torch.equal(zoo.predict(back, inputs), zoo.predict(mixed, inputs))
    config = TUNERS["REPROGRAMMER"](zoo)
    again = PeftModel.from_pretrained(zoo.build(), tmp_path / "residual", config=config).eval()
    assert torch.equal(zoo.predict(again, inputs), zoo.predict(model, inputs))


def test_a_changed_alpha_is_saved(tmp_path):
    zoo = CORE["clip"]
    model = residual(zoo)
    set_residual_alpha(model, 0.75)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(zoo.build(), tmp_path).eval()
    assert torch.equal(zoo.predict(loaded, zoo.inputs()), zoo.predict(model, zoo.inputs()))


@pytest.mark.parametrize("name", ["clip", "siglip", "align", "clip-vision", "vit", "resnet"])
def test_gradients_of_the_image_flow_through_both_branches(name):
    """What an attack differentiates: the mix, not one half of it."""
    zoo, alpha = ALL[name], 0.3
    inputs = zoo.inputs()
    pixels = inputs.pop("pixel_values")
    base, reprogrammed, model = zoo.build(), plain(zoo), residual(zoo)
    set_residual_alpha(model, alpha)

    def gradient(function) -> torch.Tensor:
        x = pixels.clone().requires_grad_(True)
        function({**inputs, "pixel_values": x}).sum().backward()
        return x.grad

    def formula(batch) -> torch.Tensor:
        if zoo.kind == "classifier":
            return (1 - alpha) * zoo.outputs(reprogrammed, batch) + alpha * zoo.outputs(base, batch)
        if zoo.kind == "image-embedding":
            f, f0 = (unit(m(**batch).image_embeds) for m in (reprogrammed, base))
            return unit((1 - alpha) * f + alpha * f0)
        f, f0 = (unit(image_features(m, batch)) for m in (reprogrammed, base))
        t, t0 = (unit(text_features(m, batch)) for m in (reprogrammed, base))
        return logits(base, (1 - alpha) * f + alpha * f0, (1 - alpha) * t + alpha * t0)

    actual = gradient(lambda batch: zoo.outputs(model, batch))
    torch.testing.assert_close(actual, gradient(formula), rtol=1e-3, atol=1e-4 * actual.abs().max().item())


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_training_is_the_reprogrammers_unless_asked(name):
    zoo = ALL[name]
    inputs = zoo.inputs()

    def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
        zoo.outputs(model.train(), inputs).pow(2).sum().backward()
        return {key: parameter.grad for key, parameter in adapter_parameters(model).items()}

    expected = gradients(plain(zoo))
    off, on = gradients(residual(zoo)), gradients(residual(zoo, residual_in_training=True))
    for key, value in expected.items():
        torch.testing.assert_close(off[key], value, rtol=1e-4, atol=1e-5)
        assert on[key].abs().sum() > 0
        assert not torch.allclose(on[key], value, rtol=1e-2)


def test_losses_of_the_model_itself_are_refused():
    zoo = CORE["vit"]
    model = residual(zoo)
    with pytest.raises(ValueError, match="compute the loss from the logits"):
        CORE["clip"].outputs(residual(CORE["clip"]), {**CORE["clip"].inputs(), "return_loss": True})
    # A classifier's loss is computed from the mixed backbone.
    output = model(**zoo.inputs(), labels=torch.tensor([0, 1]))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([0, 1])))


def test_adapters_of_different_alpha_do_not_act_together():
    zoo = CORE["clip"]
    model = residual(zoo)
    model.add_adapter("other", TUNERS["RESIDUAL_REPROGRAMMER"](zoo, residual_alpha=0.7))
    randomize(model, "other", seed=1)
    inputs = zoo.inputs(3)
    first = zoo.predict(model, inputs)
    model.set_adapter("other")
    second = zoo.predict(model, inputs)
    mixed = zoo.predict(model, {**inputs, "adapter_names": ["default", "other", "__base__"]})
    base = zoo.predict(zoo.build(), inputs)
    torch.testing.assert_close(
        mixed.diagonal(), torch.stack([first[0, 0], second[1, 1], base[2, 2]]), rtol=1e-4, atol=1e-4
    )
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"`set_residual_alpha\(model, alpha\)`"):
        zoo.predict(model, inputs)
    set_residual_alpha(model, 0.5)
    assert torch.isfinite(zoo.predict(model, inputs)).all()


def test_set_residual_alpha_says_what_it_needs():
    zoo = CORE["clip"]
    with pytest.raises(ValueError, match=r"no residual reprogrammer.*from_reprogrammer"):
        set_residual_alpha(plain(zoo), 0.5)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        set_residual_alpha(residual(zoo), 1.5)
    with pytest.raises(ValueError, match="named 'other'"):
        set_residual_alpha(residual(zoo), 0.5, "other")


def test_both_kinds_on_one_model():
    """Without PeftModel, a Reprogrammer and a Residual Reprogrammer can stand side by side."""
    zoo = CORE["clip"]
    inputs, model = zoo.inputs(), zoo.build()
    model.add_adapter(TUNERS["RESIDUAL_REPROGRAMMER"](zoo, reprogram_text=False), "mixed")
    randomize(model, "mixed")
    expected = zoo.predict(model.eval(), inputs)
    with pytest.warns(UserWarning, match="Already found a `peft_config`"):
        model.add_adapter(TUNERS["REPROGRAMMER"](zoo), "plain")
    randomize(model, "plain")
    assert any(isinstance(module, RowReprogrammer) for module in model.modules())
    torch.testing.assert_close(zoo.predict(model.eval(), inputs), zoo.predict(plain(zoo), inputs))
    model.set_adapter("mixed")
    assert torch.equal(zoo.predict(model, inputs), expected)


def test_a_model_that_is_not_in_the_list_mixes_at_its_end():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.head(self.stem(pixel_values).relu().mean((2, 3)))

    torch.manual_seed(0)
    base = Network().requires_grad_(False).eval()
    fields = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_size": 10, "target_modules": ["stem"]}
    x = torch.rand(2, 3, 10, 10) * 2 - 1
    clean = base(x)
    model = get_peft_model(base, ResidualReprogrammerConfig(**fields, residual_alpha=1.0)).eval()
    randomize(model)
    assert isinstance(model.get_base_model().stem, PixelReprogrammer)
    torch.testing.assert_close(model(x), clean)
    set_residual_alpha(model, 0.0)
    reprogrammed = model(x)
    assert not torch.allclose(reprogrammed, clean)
    set_residual_alpha(model, 0.25)
    torch.testing.assert_close(model(x), 0.75 * reprogrammed + 0.25 * clean)
