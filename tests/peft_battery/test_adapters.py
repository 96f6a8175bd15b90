"""Several adapters on one model: adding, choosing, combining, switching off and removing them."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import peft
import pytest
import torch
from peft import PeftModel, get_layer_status, get_model_status, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from .tuner_types import adapter_parameters, randomize


@pytest.fixture
def two(case) -> tuple:
    """A model with two adapters, and its output with each."""
    model = case.adapted("first")
    model.add_adapter("second", case.config())
    randomize(model, "second", seed=1)
    inputs = case.model.inputs(3)
    first = case.model.predict(model, inputs)
    model.set_adapter("second")
    return case, model.eval(), inputs, first, case.model.predict(model, inputs)


def diagonal(case, output: torch.Tensor) -> torch.Tensor:
    # In a batch of pairs, sample i is the image i with the text i.
    return output.diagonal() if case.model.has_text else output


def test_a_fresh_adapter_is_the_base_model(any_case):
    inputs = any_case.model.inputs()
    model = get_peft_model(any_case.model.build(), any_case.config()).eval()
    expected = any_case.base_output(inputs)
    torch.testing.assert_close(any_case.model.predict(model, inputs), expected, rtol=1e-5, atol=1e-5)


def test_a_trained_adapter_changes_the_output(any_case):
    inputs = any_case.model.inputs()
    output = any_case.model.predict(any_case.adapted(), inputs)
    assert torch.isfinite(output).all()
    assert not torch.allclose(output, any_case.base_output(inputs), rtol=1e-4, atol=1e-5)


def test_disabled_adapters_are_the_base_model_bit_for_bit(any_case):
    inputs = any_case.model.inputs()
    model, expected = any_case.adapted(), any_case.base_output(inputs)
    before = any_case.model.predict(model, inputs)
    with model.disable_adapter():
        assert torch.equal(any_case.model.predict(model, inputs), expected)
    assert torch.equal(any_case.model.predict(model, inputs), before)
    model.base_model.disable_adapter_layers()
    assert torch.equal(any_case.model.predict(model, inputs), expected)
    model.base_model.enable_adapter_layers()
    assert torch.equal(any_case.model.predict(model, inputs), before)


def test_set_adapter_chooses(two):
    case, model, inputs, first, second = two
    assert not torch.allclose(first, second, rtol=1e-4)
    assert torch.equal(second, case.model.predict(model, inputs))
    model.set_adapter("first")
    assert model.active_adapters == ["first"]
    assert torch.equal(first, case.model.predict(model, inputs))


def test_only_the_active_adapter_is_trained(two):
    _, model, *_ = two
    assert all(parameter.requires_grad for parameter in adapter_parameters(model, "second").values())
    assert not any(parameter.requires_grad for parameter in adapter_parameters(model, "first").values())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(adapter_parameters(model, "second"))


def test_a_list_of_adapters_acts_together(two):
    case, model, inputs, first, second = two
    model.base_model.set_adapter(["first", "second"])
    assert model.active_adapters == ["first", "second"]
    both = case.model.predict(model, inputs)
    assert torch.isfinite(both).all()
    assert not torch.allclose(both, first, rtol=1e-4)
    assert not torch.allclose(both, second, rtol=1e-4)


def test_no_active_adapter_is_the_base_model(two):
    case, model, inputs, *_ = two
    model.base_model.set_adapter([])
    assert torch.equal(case.model.predict(model, inputs), case.base_output(inputs))


def test_a_deleted_adapter_leaves_nothing(two):
    case, model, inputs, first, _ = two
    with pytest.warns(UserWarning, match="Setting active adapter to first"):
        model.delete_adapter("second")
    assert model.active_adapters == ["first"]
    assert torch.equal(case.model.predict(model, inputs), first)
    assert not adapter_parameters(model, "second")
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            assert "second" not in layer._all_available_adapter_names()
            assert not [name for name, _ in layer.named_buffers() if "second" in name]
    with pytest.raises(ValueError, match="Adapter second does not exist"):
        model.delete_adapter("second")
    model.delete_adapter("first")
    # PeftModel itself expects an adapter.
    assert torch.equal(case.model.predict(model.base_model, inputs), case.base_output(inputs))


@pytest.mark.skipif(peft.__version__ < "0.21", reason="PEFT 0.20 overwrites the adapter, whatever its type")
def test_an_adapter_name_is_taken_once(two):
    case, model, inputs, _, second = two
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("second", case.config())
    assert torch.equal(case.model.predict(model, inputs), second)


def test_a_loaded_adapter_stands_beside_the_first(two, tmp_path):
    case, model, inputs, first, second = two
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.model.build(), tmp_path / "first", adapter_name="first").eval()
    result = loaded.load_adapter(tmp_path / "second", "second")
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(case.model.predict(loaded, inputs), first)
    loaded.set_adapter("second")
    assert torch.equal(case.model.predict(loaded, inputs), second)


def test_each_sample_has_its_adapter(two):
    case, model, inputs, first, second = two
    base = case.base_output(inputs)
    mixed = case.model.predict(model, {**inputs, "adapter_names": ["__base__", "first", "second"]})
    expected = torch.stack([diagonal(case, output)[i] for i, output in enumerate((base, first, second))])
    torch.testing.assert_close(diagonal(case, mixed), expected, rtol=1e-4, atol=1e-5)
    # and nothing of it stays
    assert torch.equal(case.model.predict(model, inputs), second)


def test_bad_adapter_names(two):
    case, model, inputs, *_ = two
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same as the number of inputs"):
        case.model.predict(model, {**inputs, "adapter_names": ["first"]})
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): third"):
        case.model.predict(model, {**inputs, "adapter_names": ["first", "second", "third"]})
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        case.model.predict(model, {**inputs, "adapter_names": ["first", "second", "second"]})


def test_disabling_wins_over_adapter_names(two):
    case, model, inputs, *_ = two
    with model.disable_adapter():
        output = case.model.predict(model, {**inputs, "adapter_names": ["first", "second", "__base__"]})
    torch.testing.assert_close(output, case.base_output(inputs), rtol=1e-5, atol=1e-5)


def test_unload_gives_the_base_model_back(two):
    case, model, inputs, *_ = two
    unloaded, fresh = model.unload(), case.model.build()
    assert type(unloaded) is type(fresh)
    assert not any(isinstance(module, BaseTunerLayer) for module in unloaded.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unloaded.modules())
    assert unloaded.state_dict().keys() == fresh.state_dict().keys()
    assert torch.equal(case.model.predict(unloaded, inputs), case.base_output(inputs))


def test_unloaded_models_can_be_adapted_again(one_of_each_kind):
    inputs = one_of_each_kind.model.inputs()
    model = one_of_each_kind.adapted()
    expected = one_of_each_kind.model.predict(model, inputs)
    unloaded = model.unload()
    torch.manual_seed(0)  # as before the first adapter
    again = get_peft_model(unloaded, one_of_each_kind.config()).eval()
    randomize(again)
    assert torch.equal(one_of_each_kind.model.predict(again, inputs), expected)


def test_status_reports(one_of_each_kind):
    model = one_of_each_kind.adapted()
    model.add_adapter("second", one_of_each_kind.config())
    trained = sum(parameter.numel() for parameter in adapter_parameters(model).values())
    printed = io.StringIO()
    with redirect_stdout(printed):
        model.print_trainable_parameters()
    assert printed.getvalue().startswith(f"trainable params: {trained:,d} || all params: ")
    layers = get_layer_status(model)
    assert layers
    assert all(status.enabled and status.available_adapters == ["default", "second"] for status in layers)
    status = get_model_status(model)
    assert status.peft_types == {"default": one_of_each_kind.tuner, "second": one_of_each_kind.tuner}
    assert status.trainable_params == trained
    assert status.requires_grad == {"default": True, "second": False}
    assert status.active_adapters == ["default"]
    assert status.num_adapter_layers == len(layers)


def test_two_adapters_with_their_own_heads(head_case):
    fields = {"modules_to_save": [head_case.model.head]}
    model = head_case.adapted("first", **fields)
    model.add_adapter("second", head_case.config(**fields))
    randomize(model, "second", seed=1)
    inputs = head_case.model.inputs(3)
    first = head_case.model.predict(model, inputs)
    model.set_adapter("second")
    second = head_case.model.predict(model, inputs)
    assert not torch.allclose(first, second, rtol=1e-4)
    with model.disable_adapter():
        assert torch.equal(head_case.model.predict(model, inputs), head_case.base_output(inputs))
    mixed = head_case.model.predict(model, {**inputs, "adapter_names": ["__base__", "second", "first"]})
    expected = torch.stack([head_case.base_output(inputs)[0], second[1], first[2]])
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_of_one(case):
    model, inputs = case.adapted(), case.model.inputs(3)
    alone = {key: value[1:2] for key, value in inputs.items()}
    output, all_three = case.model.predict(model, alone), case.model.predict(model, inputs)
    expected = all_three[1:2, 1:2] if case.model.has_text else all_three[1:2]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
