"""Saving and loading through every door that PEFT and transformers have."""

from __future__ import annotations

import pytest
import torch
from peft import (
    AutoPeftModel,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from torch import nn

from .tuner_types import adapter_parameters, randomize
from .zoo import ZooModel


# transformers' own way to a second adapter
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")


def test_a_loaded_adapter_gives_the_same_output_bit_for_bit(any_case, tmp_path):
    inputs = any_case.model.inputs()
    model = any_case.adapted()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(any_case.model.build(), tmp_path).eval()
    assert torch.equal(any_case.model.predict(loaded, inputs), any_case.model.predict(model, inputs))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert PeftModel.from_pretrained(
        any_case.model.build(), tmp_path, is_trainable=True
    ).get_nb_trainable_parameters()[0]


def test_the_file_holds_the_adapter_and_nothing_else(case, tmp_path):
    model = case.adapted()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    parameters = adapter_parameters(model)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(p.numel() for p in parameters.values())
    assert sorted(tuple(tensor.shape) for tensor in saved.values()) == sorted(
        tuple(p.shape) for p in parameters.values()
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip


def test_the_configuration_comes_back(case, tmp_path):
    model = case.adapted()
    model.save_pretrained(tmp_path)
    loaded, config = PeftConfig.from_pretrained(tmp_path), model.peft_config["default"]
    assert type(loaded) is type(config)
    assert loaded.peft_type == case.tuner
    expected = config.to_dict()
    # Loading fills these in by itself.
    for values in (saved := loaded.to_dict(), expected):
        values.pop("inference_mode"), values.pop("auto_mapping")
    assert saved == expected


def test_without_safe_serialization(one_of_each_kind, tmp_path):
    inputs = one_of_each_kind.model.inputs()
    model = one_of_each_kind.adapted()
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").is_file()
    loaded = PeftModel.from_pretrained(one_of_each_kind.model.build(), tmp_path).eval()
    expected = one_of_each_kind.model.predict(model, inputs)
    assert torch.equal(one_of_each_kind.model.predict(loaded, inputs), expected)


def test_selected_adapters_go_to_subfolders(one_of_each_kind, tmp_path):
    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    model = case.adapted()
    for seed, name in enumerate(("other", "default2", "efaul"), start=1):
        model.add_adapter(name, case.config())
        randomize(model, name, seed)
    model.save_pretrained(tmp_path, selected_adapters=["default", "other"])
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"other"}
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == get_peft_model_state_dict(model).keys()
    model.set_adapter("other")
    loaded = PeftModel.from_pretrained(case.model.build(), tmp_path, subfolder="other").eval()
    assert torch.equal(case.model.predict(loaded, inputs), case.model.predict(model, inputs))


def test_heads_are_saved_with_the_adapter(head_case, tmp_path):
    inputs = head_case.model.inputs()
    model = head_case.adapted(modules_to_save=[head_case.model.head])
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any(key.endswith(f"{head_case.model.head}.weight") for key in saved)
    loaded = PeftModel.from_pretrained(head_case.model.build(), tmp_path).eval()
    assert torch.equal(head_case.model.predict(loaded, inputs), head_case.model.predict(model, inputs))


def test_low_cpu_mem_usage(case, tmp_path):
    inputs = case.model.inputs()
    model = case.adapted()
    model.save_pretrained(tmp_path)
    expected = case.model.predict(model, inputs)
    empty = inject_adapter_in_model(case.config(), case.model.build(), low_cpu_mem_usage=True)
    assert {parameter.device.type for parameter in adapter_parameters(empty).values()} == {"meta"}
    loaded = PeftModel.from_pretrained(case.model.build(), tmp_path, low_cpu_mem_usage=True).eval()
    assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}
    assert torch.equal(case.model.predict(loaded, inputs), expected)
    loaded.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    loaded.set_adapter("other")
    assert torch.equal(case.model.predict(loaded, inputs), expected)


def test_from_the_meta_device(one_of_each_kind, tmp_path):
    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    model = case.adapted()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.model.build().to("meta"), tmp_path, low_cpu_mem_usage=True)
    loaded.to_empty(device="cpu")
    # Whoever works like this fills the model himself; the adapter's own constants must not be garbage then.
    filled, base = loaded.get_base_model(), case.model.build()
    with torch.no_grad():
        for source, target in (
            (base.named_parameters, filled.named_parameters),
            (base.named_buffers, filled.named_buffers),
        ):
            tensors = {name.replace(".base_layer", ""): tensor for name, tensor in target()}
            for name, tensor in source():
                tensors[name].copy_(tensor)
    set_peft_model_state_dict(loaded, load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(case.model.predict(loaded.eval(), inputs), case.model.predict(model, inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False], ids=["float32 adapter", "adapter like the base"])
def test_half_precision_bases(case, dtype, autocast, tmp_path):
    inputs = case.model.inputs(dtype=dtype)
    model = get_peft_model(case.model.build(dtype), case.config(), autocast_adapter_dtype=autocast).eval()
    randomize(model)
    expected_dtype = torch.float32 if autocast else dtype
    assert {parameter.dtype for parameter in adapter_parameters(model).values()} == {expected_dtype}
    output = case.model.predict(model, inputs)
    assert output.dtype == dtype
    assert torch.isfinite(output).all()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.model.build(dtype), tmp_path, autocast_adapter_dtype=autocast).eval()
    assert {parameter.dtype for parameter in adapter_parameters(loaded).values()} == {expected_dtype}
    assert torch.equal(case.model.predict(loaded, inputs), output)
    with model.disable_adapter():
        assert torch.equal(case.model.predict(model, inputs), case.model.predict(case.model.build(dtype), inputs))


def with_five_classes(model: ZooModel) -> nn.Module:
    base = model.build()
    head = base.get_submodule(model.head)
    base.set_submodule(model.head, nn.Linear(head.in_features, 5))
    return base


def test_mismatched_sizes(head_case, tmp_path):
    head_case.adapted(modules_to_save=[head_case.model.head]).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(with_five_classes(head_case.model), tmp_path)
    base = with_five_classes(head_case.model)
    with pytest.warns(UserWarning, match="you passed `ignore_mismatched_sizes=True`"):
        loaded = PeftModel.from_pretrained(base, tmp_path, ignore_mismatched_sizes=True).eval()
    assert head_case.model.predict(loaded, head_case.model.inputs()).shape == (2, 5)


def test_hotswapping_is_loras_alone(one_of_each_kind, tmp_path):
    model = one_of_each_kind.adapted()
    model.save_pretrained(tmp_path)
    before = one_of_each_kind.model.predict(model, one_of_each_kind.model.inputs())
    with pytest.raises(ValueError, match=f"Hotswapping only supports LORA but {one_of_each_kind.tuner}"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
    assert torch.equal(one_of_each_kind.model.predict(model, one_of_each_kind.model.inputs()), before)


def test_injected_adapters(case):
    inputs = case.model.inputs()
    peft_model = case.adapted()
    model = inject_adapter_in_model(case.config(), case.model.build()).eval()
    result = set_peft_model_state_dict(model, get_peft_model_state_dict(peft_model))
    assert not result.unexpected_keys
    assert torch.equal(case.model.predict(model, inputs), case.model.predict(peft_model, inputs))


def test_the_transformers_way(case, tmp_path):
    inputs = case.model.inputs()
    peft_model = case.adapted()
    expected = case.model.predict(peft_model, inputs)

    model = case.model.build()
    model.add_adapter(case.config(), adapter_name="first")
    randomize(model, "first")
    model.eval()
    assert torch.equal(case.model.predict(model, inputs), expected)
    model.disable_adapters()
    assert torch.equal(case.model.predict(model, inputs), case.base_output(inputs))
    model.enable_adapters()
    model.add_adapter(case.config(), adapter_name="second")
    randomize(model, "second", seed=1)
    assert model.active_adapters() == ["second"]
    assert not torch.allclose(case.model.predict(model, inputs), expected, rtol=1e-4)
    model.set_adapter("first")
    assert torch.equal(case.model.predict(model, inputs), expected)

    model.save_pretrained(tmp_path)
    loaded = case.model.build()
    loaded.load_adapter(str(tmp_path), adapter_name="loaded")
    assert torch.equal(case.model.predict(loaded.eval(), inputs), expected)
    # what PEFT saved loads here too, and the other way round
    through_peft = PeftModel.from_pretrained(case.model.build(), tmp_path).eval()
    assert torch.equal(case.model.predict(through_peft, inputs), expected)


def test_auto_peft_model(one_of_each_kind, tmp_path):
    case, inputs = one_of_each_kind, one_of_each_kind.model.inputs()
    case.model.build().save_pretrained(tmp_path / "base")
    base = type(case.model.build()).from_pretrained(tmp_path / "base").requires_grad_(False).eval()
    model = get_peft_model(base, case.config()).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()
    assert type(loaded.get_base_model()) is type(base)
    assert torch.equal(case.model.predict(loaded, inputs), case.model.predict(model, inputs))
