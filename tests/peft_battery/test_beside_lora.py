"""Adapters of this package and of PEFT's own methods on one model.

`PeftModel.set_adapter` reaches the layers of its own method; `peft.functional.set_adapter` reaches all.
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.functional import set_adapter
from peft.tuners.tuners_utils import BaseTunerLayer

from peft_reprogram import SurgicalConfig
from peft_reprogram.tuners.surgical.layer import SurgicalLayer

from .tuner_types import adapter_parameters, randomize


pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")


def lora(case) -> LoraConfig:
    return LoraConfig(r=2, target_modules=rf".*({case.model.linear})", init_lora_weights=False)


def with_lora(case) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(case.model.build(), lora(case), adapter_name="low_rank").eval()


def test_injected_beside_a_lora(one_of_each_kind, tmp_path):
    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    model = with_lora(case)
    lora_alone = case.model.predict(model, inputs)
    inject_adapter_in_model(case.config(), model.get_base_model(), adapter_name="other")
    model.eval()
    torch.testing.assert_close(case.model.predict(model, inputs), lora_alone, rtol=1e-5, atol=1e-5)

    set_adapter(model, ["low_rank", "other"])
    randomize(model, "other")
    both = case.model.predict(model, inputs)
    assert not torch.allclose(both, lora_alone, rtol=1e-4)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {*adapter_parameters(model, "low_rank"), *adapter_parameters(model, "other")}

    with model.disable_adapter():
        assert torch.equal(case.model.predict(model, inputs), case.base_output(inputs))
    assert torch.equal(case.model.predict(model, inputs), both)
    set_adapter(model, ["low_rank"])
    assert torch.equal(case.model.predict(model, inputs), lora_alone)
    set_adapter(model, ["low_rank", "other"])

    # Each is saved as what it is, and loads alone.
    model.save_pretrained(tmp_path)
    assert not [name for name in get_peft_model_state_dict(model, adapter_name="other") if "lora_" in name]
    alone = PeftModel.from_pretrained(case.model.build(), tmp_path / "other").eval()
    set_adapter(model, ["other"])
    assert torch.equal(case.model.predict(alone, inputs), case.model.predict(model, inputs))

    unloaded = model.unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in unloaded.modules())
    assert torch.equal(case.model.predict(unloaded, inputs), case.base_output(inputs))


def test_a_lora_injected_beside_it(one_of_each_kind):
    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    model = case.adapted("first")
    alone = case.model.predict(model, inputs)
    torch.manual_seed(0)
    inject_adapter_in_model(lora(case), model.get_base_model(), adapter_name="low_rank")
    model.eval()
    set_adapter(model, ["first"])
    assert torch.equal(case.model.predict(model, inputs), alone)
    set_adapter(model, ["first", "low_rank"])
    both = case.model.predict(model, inputs)
    assert not torch.allclose(both, alone, rtol=1e-4)
    set_adapter(model, ["low_rank"])
    assert torch.equal(case.model.predict(model, inputs), case.model.predict(with_lora(case), inputs))


def test_the_transformers_way(one_of_each_kind):
    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    model = case.model.build()
    torch.manual_seed(0)
    model.add_adapter(lora(case), "low_rank")
    lora_alone = case.model.predict(model.eval(), inputs)
    model.add_adapter(case.config(), "other")
    randomize(model, "other")
    model.set_adapter(["low_rank", "other"])
    both = case.model.predict(model.eval(), inputs)
    assert not torch.allclose(both, lora_alone, rtol=1e-4)
    model.set_adapter("low_rank")
    assert torch.equal(case.model.predict(model, inputs), lora_alone)


def test_a_lora_inside_of_what_is_wrapped(one_of_each_kind):
    """The LoRA has to come first: PEFT passes by what lies inside of the layers of another method."""
    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    patches = {"clip": "patch_embedding", "vit": "projection", "resnet": "embedder.convolution"}[case.model.name]
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=[patches], init_lora_weights=False)
    model = get_peft_model(case.model.build(), config, adapter_name="low_rank").eval()
    lora_alone = case.model.predict(model, inputs)
    assert not torch.allclose(lora_alone, case.base_output(inputs), rtol=1e-4)
    inject_adapter_in_model(case.config(), model.get_base_model(), adapter_name="other")
    torch.testing.assert_close(case.model.predict(model.eval(), inputs), lora_alone, rtol=1e-5, atol=1e-5)
    unloaded = model.unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in unloaded.modules())
    assert torch.equal(case.model.predict(unloaded, inputs), case.base_output(inputs))


def overlapping(case, outer: str) -> PeftModel:
    """A surgical adapter of every layer of `block:1` inside of a LoRA's layers; either method may have the `PeftModel`."""
    surgical = SurgicalConfig(blocks=["block:1"])
    if outer == "surgical":
        model = get_peft_model(case.model.build(), surgical, adapter_name="other")
        inject_adapter_in_model(lora(case), model.get_base_model(), adapter_name="low_rank")
    else:
        base = inject_adapter_in_model(surgical, case.model.build(), adapter_name="other")
        model = get_peft_model(base, lora(case), adapter_name="low_rank")
    randomize(model, "other")
    set_adapter(model, ["other", "low_rank"])
    shared = [layer for layer in model.modules() if isinstance(getattr(layer, "base_layer", None), SurgicalLayer)]
    assert shared
    return model.eval()


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
def test_a_lora_laid_over_a_surgical_adapter_merges_with_it(one_of_each_kind):
    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    if case.tuner != "SURGICAL":
        pytest.skip("has layers of its own around other modules")
    model = overlapping(case, "surgical")
    output = case.model.predict(model, inputs)
    merged = model.merge_and_unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    torch.testing.assert_close(case.model.predict(merged, inputs), output, rtol=1e-4, atol=1e-5)

    # LoRA's own `merge_and_unload` knows its own layers alone; in two steps nothing is lost.
    model = overlapping(case, "lora")
    output = case.model.predict(model, inputs)
    model.merge_adapter()
    torch.testing.assert_close(case.model.predict(model, inputs), output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(case.model.predict(model.unload(), inputs), output, rtol=1e-4, atol=1e-5)


def test_trained_together(one_of_each_kind):
    case = one_of_each_kind
    model = with_lora(case)
    inject_adapter_in_model(case.config(), model.get_base_model(), adapter_name="other")
    set_adapter(model, ["low_rank", "other"])
    model.train()
    case.model.outputs(model, case.model.inputs()).pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_peft_models_of_one_kind_only(one_of_each_kind):
    """PEFT keeps a list of what its mixed models take; `inject_adapter_in_model` is the way, as above."""
    case = one_of_each_kind
    with pytest.raises(ValueError, match=f"'{case.tuner}' is not compatible with the `PeftMixedModel`"):
        get_peft_model(case.model.build(), case.config(), mixed=True)
    mixed = get_peft_model(case.model.build(), lora(case), mixed=True)
    with pytest.raises(ValueError, match=f"'{case.tuner}' is not compatible with the `PeftMixedModel`"):
        mixed.add_adapter("other", case.config())
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        with_lora(case).add_adapter("other", case.config())
