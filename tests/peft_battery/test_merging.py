"""What can be merged into the base weights, exactly, and what can't."""

from __future__ import annotations

import re

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from .tuner_types import MERGEABLE, adapter_parameters, randomize


BOTTLENECK_REFUSAL = "bottleneck .* can't be merged .* non-linearity"
# What each type says when it can't be merged; types that are not named here merge.
REFUSALS = {
    "REPROGRAMMER": "pixel frame .* can't be merged .* train with `reprogram_image=False`",
    "RESIDUAL_REPROGRAMMER": r"residual .* can't be merged .* `set_residual_alpha\(model, 0.0\)`",
    "BOTTLENECK": BOTTLENECK_REFUSAL,
    "COMPACTER": BOTTLENECK_REFUSAL,
}


def base_weights(model) -> dict[str, torch.Tensor]:
    names = {
        name.replace(".base_layer", ""): tensor.clone() for name, tensor in model.get_base_model().named_parameters()
    }
    return {
        name: tensor for name, tensor in names.items() if not re.search(r"\b(reprogrammer|surgical|bottleneck)_", name)
    }


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def mergeable_fields(case) -> dict:
    if case.tuner not in MERGEABLE:
        pytest.skip("never merges")
    return MERGEABLE[case.tuner]


def mergeable(case, adapter_name: str = "default"):
    return case.adapted(adapter_name, **mergeable_fields(case))


def test_what_cannot_be_merged_says_so_and_changes_nothing(case):
    if case.tuner not in REFUSALS:
        pytest.skip("merges")
    inputs, model = case.model.inputs(), case.adapted()
    before, output = base_weights(model), case.model.predict(model, inputs)
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_and_unload(safe_merge=True)):
        with pytest.raises(ValueError, match=REFUSALS[case.tuner]):
            merge()
        assert_same_weights(base_weights(model), before)
        assert torch.equal(case.model.predict(model, inputs), output)


def test_a_residual_is_refused_even_without_a_frame(text_case):
    if text_case.tuner != "RESIDUAL_REPROGRAMMER":
        pytest.skip("has no residual")
    model = text_case.adapted(reprogram_image=False)
    with pytest.raises(ValueError, match=REFUSALS[text_case.tuner]):
        model.merge_and_unload()


def test_weights_merge_exactly_and_come_off_exactly(text_case):
    case, inputs = text_case, text_case.model.inputs()
    model = mergeable(case)
    before, output = base_weights(model), case.model.predict(model, inputs)
    model.merge_adapter(safe_merge=True)
    assert torch.equal(case.model.predict(model, inputs), output)
    merged = base_weights(model)
    assert any(not torch.equal(merged[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="please call `unmerge_adapter` first"):
        case.model.predict(model, {**inputs, "adapter_names": ["default", "default"]})
    with pytest.warns(UserWarning, match="[Aa]lready"):
        model.merge_adapter()
    assert_same_weights(base_weights(model), merged)
    model.unmerge_adapter()
    assert_same_weights(base_weights(model), before)
    assert torch.equal(case.model.predict(model, inputs), output)


def test_merge_and_unload(text_case):
    case, inputs = text_case, text_case.model.inputs()
    model = mergeable(case)
    output = case.model.predict(model, inputs)
    merged = model.merge_and_unload()
    assert type(merged) is type(case.model.build())
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    if case.tuner != "RESIDUAL_REPROGRAMMER":
        assert torch.equal(case.model.predict(merged, inputs), output)
    else:
        # At an alpha of 0 the features are normalised once more, which rounds.
        torch.testing.assert_close(case.model.predict(merged, inputs), output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_merge_exactly_into_half_precision(text_case, dtype):
    if text_case.tuner == "RESIDUAL_REPROGRAMMER":
        pytest.skip("the features are normalised once more, which rounds")
    from peft import get_peft_model

    case, inputs = text_case, text_case.model.inputs(dtype=dtype)
    model = get_peft_model(case.model.build(dtype), case.config(**mergeable_fields(case))).eval()
    randomize(model)
    output = case.model.predict(model, inputs)
    assert torch.equal(case.model.predict(model.merge_and_unload(), inputs), output)


def test_disabling_merged_weights_takes_them_off(text_case):
    case, inputs = text_case, text_case.model.inputs()
    model = mergeable(case)
    output = case.model.predict(model, inputs)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(case.model.predict(model, inputs), case.base_output(inputs))
    assert torch.equal(case.model.predict(model, inputs), output)


def test_several_adapters_merge_together_or_one_after_the_other(text_case):
    case, inputs = text_case, text_case.model.inputs()
    model = mergeable(case, "first")
    rows = {} if case.tuner == "SURGICAL" else {"token_indices": [5, 9, 12]}
    model.add_adapter("second", case.config(**MERGEABLE[case.tuner], **rows))
    randomize(model, "second", seed=1)
    model.base_model.set_adapter(["first", "second"])
    before, output = base_weights(model), case.model.predict(model, inputs)
    model.merge_adapter(["first", "second"])
    torch.testing.assert_close(case.model.predict(model, inputs), output, rtol=1e-5, atol=1e-5)
    together = base_weights(model)
    model.unmerge_adapter()
    assert_same_weights(base_weights(model), before)
    model.merge_adapter(["first"])
    with pytest.warns(UserWarning, match="You are now additionally merging second"):
        model.merge_adapter(["second"])
    assert_same_weights(base_weights(model), together)
    model.unmerge_adapter()
    assert_same_weights(base_weights(model), before)


def test_only_the_named_adapter_is_merged(text_case):
    case, inputs = text_case, text_case.model.inputs()
    model = mergeable(case, "first")
    output = case.model.predict(model, inputs)
    model.add_adapter("second", case.config(**MERGEABLE[case.tuner]))
    randomize(model, "second", seed=1)
    merged = model.merge_and_unload(adapter_names=["first"])
    torch.testing.assert_close(case.model.predict(merged, inputs), output, rtol=1e-5, atol=1e-5)


def test_broken_weights_are_not_merged(text_case):
    model = mergeable(text_case)
    before = base_weights(model)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter[0] = torch.nan
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"NaNs detected in the merged weights. The adapter default seems to be"):
            merge(safe_merge=True)
    assert_same_weights(base_weights(model), before)


def test_weighted_combinations_are_refused(one_of_each_kind):
    if one_of_each_kind.tuner not in REFUSALS:
        pytest.skip("its changes can be averaged")
    model = one_of_each_kind.adapted()
    with pytest.raises(NotImplementedError, match=r"can't be averaged.*`model.base_model.set_adapter"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
