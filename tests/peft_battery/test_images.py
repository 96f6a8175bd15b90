"""Sizes, channels and geometries of what a Reprogrammer is put around."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from .tuner_types import TUNERS, adapted, randomize
from .zoo import CORE, FURTHER, IMAGE_MEAN, IMAGE_STD, ZooModel, normalize


pytestmark = pytest.mark.parametrize("tuner", ["REPROGRAMMER", "RESIDUAL_REPROGRAMMER"])
VISION = ["clip", "clip-vision", "vit", "swin", "resnet"]


def images(model: ZooModel, height: int, width: int, batch_size: int = 2) -> dict[str, torch.Tensor]:
    inputs = model.inputs(batch_size)
    generator = torch.Generator().manual_seed(1)
    inputs["pixel_values"] = normalize(torch.rand(batch_size, 3, height, width, generator=generator))
    return inputs


def reprogrammed_pixels(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What arrives at the module that the base model feeds with images."""
    seen = []
    layer = next(module for module in model.modules() if hasattr(module, "reprogrammer_frame"))
    handle = layer.base_layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["pixel_values"]), with_kwargs=True
    )
    with torch.no_grad(), handle:
        model(**inputs)
    return seen[0] * torch.tensor(IMAGE_STD).view(3, 1, 1) + torch.tensor(IMAGE_MEAN).view(3, 1, 1)


@pytest.mark.parametrize("name", VISION)
def test_adapters_of_different_geometry(tuner, name, tmp_path):
    model = CORE[name]
    size = model.image_size
    geometries = {
        "wide": {"frame_inner": size // 2},
        "flat": {"frame_inner": (size, size - 6)},
        "small picture": {"up_resolution": size - 8, "frame_inner": size - 8},
        "all": {"frame_inner": 0},
    }
    peft_model = adapted(model, TUNERS[tuner](model), "default")
    inputs = images(model, size, size)
    outputs = {"default": model.predict(peft_model, inputs)}
    for seed, (adapter, fields) in enumerate(geometries.items(), start=1):
        peft_model.add_adapter(adapter, TUNERS[tuner](model, **fields))
        randomize(peft_model, adapter, seed)
        peft_model.set_adapter(adapter)
        outputs[adapter] = model.predict(peft_model.eval(), inputs)
    peft_model.save_pretrained(tmp_path)
    for adapter, output in outputs.items():
        peft_model.set_adapter(adapter)
        assert torch.equal(model.predict(peft_model, inputs), output)
        folder = tmp_path if adapter == "default" else tmp_path / adapter
        loaded = PeftModel.from_pretrained(model.build(), folder).eval()
        assert torch.equal(model.predict(loaded, inputs), output)
    peft_model.set_adapter("flat")
    pixels = reprogrammed_pixels(peft_model, inputs)
    original = inputs["pixel_values"] * torch.tensor(IMAGE_STD).view(3, 1, 1) + torch.tensor(IMAGE_MEAN).view(3, 1, 1)
    torch.testing.assert_close(pixels[..., 3:-3], original[..., 3:-3])
    assert not torch.allclose(pixels[..., :3], original[..., :3])


@pytest.mark.parametrize("name", ["clip", "vit", "siglip"])
def test_larger_and_oblong_images_with_interpolated_positions(tuner, name):
    model = CORE[name]
    height, width = 42, 36
    peft_model = adapted(model, TUNERS[tuner](model, image_size=(height, width)))
    inputs = {**images(model, height, width), "interpolate_pos_encoding": True}
    output = model.predict(peft_model, inputs)
    base_output = model.predict(model.build(), inputs)
    assert output.shape == base_output.shape
    assert not torch.allclose(output, base_output, rtol=1e-3)
    with peft_model.disable_adapter():
        assert torch.equal(model.predict(peft_model, inputs), base_output)
    pixels = reprogrammed_pixels(peft_model, inputs)
    assert pixels.shape == (2, 3, height, width)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_oblong_images_of_convolutional_networks(tuner, name):
    model = CORE[name]
    peft_model = adapted(model, TUNERS[tuner](model, image_size=(48, 32)))
    assert torch.isfinite(model.predict(peft_model, images(model, 48, 32))).all()


@pytest.mark.parametrize("size", [(31, 30), (60, 60), (8, 8)])
@pytest.mark.parametrize("name", ["clip", "vit", "resnet"])
def test_images_of_another_size_are_refused(tuner, name, size):
    model = CORE[name]
    peft_model = adapted(model, TUNERS[tuner](model))
    side = model.image_size
    with pytest.raises(
        ValueError, match=rf"made for images of {side}x{side} pixels, got {size[0]}x{size[1]}.*image_size="
    ):
        model.predict(peft_model, images(model, *size))


@pytest.mark.parametrize("channels", [1, 4])
def test_images_that_are_not_rgb_are_refused(tuner, channels):
    model = CORE["vit"]
    peft_model = adapted(model, TUNERS[tuner](model))
    with pytest.raises(ValueError, match=r'RGB images of shape .*image.convert\("RGB"\)'):
        peft_model(pixel_values=torch.rand(2, channels, 30, 30))


def test_models_for_other_channels_are_refused(tuner):
    from transformers import ViTConfig, ViTForImageClassification

    base = ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=6, num_channels=1)
    )  # fmt: skip
    before = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=r"1 channels.*another PEFT method"):
        get_peft_model(base, TUNERS[tuner](CORE["vit"]))
    assert [name for name, _ in base.named_modules()] == before


@pytest.mark.parametrize("name", [*CORE, *FURTHER])
def test_the_frame_alone_is_touched(tuner, name):
    model = {**CORE, **FURTHER}[name]
    peft_model = adapted(model, TUNERS[tuner](model))
    inputs = model.inputs()
    border = (model.image_size - peft_model.peft_config["default"].frame_inner[0]) // 2
    pixels = reprogrammed_pixels(peft_model, inputs)
    original = inputs["pixel_values"] * torch.tensor(IMAGE_STD).view(3, 1, 1) + torch.tensor(IMAGE_MEAN).view(3, 1, 1)
    inner = slice(border, model.image_size - border)
    torch.testing.assert_close(pixels[..., inner, inner], original[..., inner, inner])
    assert (pixels != original)[:, :, :border].float().mean() > 0.5


def test_frames_act_one_after_the_other(tuner):
    """Two active frames: the second sees what the first has made."""
    model = CORE["vit"]
    peft_model = adapted(model, TUNERS[tuner](model), "first")
    peft_model.add_adapter("second", TUNERS[tuner](model, frame_inner=10))
    randomize(peft_model, "second", seed=1)
    inputs = model.inputs()
    peft_model.set_adapter("first")
    between = normalize(reprogrammed_pixels(peft_model, inputs))
    peft_model.set_adapter("second")
    expected = reprogrammed_pixels(peft_model, {"pixel_values": between})
    peft_model.base_model.set_adapter(["first", "second"])
    torch.testing.assert_close(reprogrammed_pixels(peft_model, inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_target_that_gets_no_images_is_named(tuner):
    model = CORE["vit"]
    peft_model = adapted(model, TUNERS[tuner](model, target_modules=["vit.layernorm"]))
    with pytest.raises((ValueError, TypeError), match=r"RGB images|without images"):
        model.predict(peft_model, model.inputs())
