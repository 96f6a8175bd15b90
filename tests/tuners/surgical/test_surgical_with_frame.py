"""A surgical adapter and a Reprogrammer on one model: PEFT keeps one type a `PeftModel`, so one is injected, one wraps."""

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from transformers import CLIPImageProcessorPil

from peft_reprogram import ReprogrammerConfig, SurgicalConfig, ZeroShotClassifier
from peft_reprogram.demo.pretraining import build_model, build_tokenizer


CLASSES = ["zero", "one", "two"]
TOKENIZER = build_tokenizer()

pytestmark = [
    # peft warns of what is done here on purpose
    pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]


def both(frame_outside=True):
    processor = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    configs = [
        SurgicalConfig(blocks=["first"]),
        ReprogrammerConfig.for_classes(CLASSES, tokenizer=TOKENIZER, image_processor=processor),
    ]
    if not frame_outside:
        configs.reverse()
    model = inject_adapter_in_model(configs[0], build_model(TOKENIZER), adapter_name="inner")
    return ZeroShotClassifier(get_peft_model(model, configs[1]), TOKENIZER, CLASSES)


@pytest.mark.parametrize("frame_outside", [True, False])
def test_both_are_trained_and_nothing_else(frame_outside):
    classifier = both(frame_outside).train()
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    trained = [name for name, p in classifier.named_parameters() if p.requires_grad]
    assert all("surgical_" in name or "reprogrammer_" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    classifier(torch.rand(3, 3, 32, 32, generator=generator), torch.arange(3)).loss.backward()
    optimizer.step()
    moved = {name for name, p in classifier.named_parameters() if not torch.equal(before[name], p)}
    assert moved <= set(trained)
    assert any("surgical_weight" in name for name in moved)
    assert any("reprogrammer_frame" in name for name in moved)


def test_each_state_is_taken_and_given_back():
    trained, fresh = both().eval(), both().eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    pixel_values = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(trained(pixel_values).logits, fresh(pixel_values).logits, atol=1e-4)
    frame = get_peft_model_state_dict(trained.model)
    assert all("reprogrammer" in name for name in frame)
    set_peft_model_state_dict(fresh.model, frame)
    blocks = get_peft_model_state_dict(trained.model.get_base_model(), adapter_name="inner")
    assert all("surgical" in name for name in blocks)
    set_peft_model_state_dict(fresh.model.get_base_model(), blocks, adapter_name="inner")
    assert torch.equal(trained(pixel_values).logits, fresh(pixel_values).logits)


def test_one_peft_model_refuses_two_types():
    model = get_peft_model(build_model(TOKENIZER), SurgicalConfig(blocks=["first"]))
    config = ReprogrammerConfig.for_classes(CLASSES, tokenizer=TOKENIZER, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("frame", config)
