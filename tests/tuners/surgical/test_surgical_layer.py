"""The wrapped layers against copies of the modules that hold the changed parameters themselves."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN, ConvNextV2LayerNorm
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2LayerScale

from peft_reprogram.tuners.surgical import SurgicalConfig
from peft_reprogram.tuners.surgical.layer import SurgicalLayer
from peft_reprogram.tuners.surgical.leaves import is_quantized, leaf_kind


IMAGES, TOKENS = (4, 6, 8, 8), (4, 5, 6)
LAYERS = {
    "linear": (lambda: nn.Linear(6, 3), TOKENS),
    "linear without bias": (lambda: nn.Linear(6, 3, bias=False), TOKENS),
    "conv1d": (lambda: nn.Conv1d(5, 4, 3, padding=1), TOKENS),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), IMAGES),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding="same", padding_mode="reflect", bias=False), IMAGES),
    "conv3d": (lambda: nn.Conv3d(6, 2, (1, 2, 2)), (4, 6, 1, 4, 4)),
    "layer norm": (lambda: nn.LayerNorm(6), TOKENS),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), TOKENS),
    "rms norm": (lambda: nn.RMSNorm(6), TOKENS),
    "group norm": (lambda: nn.GroupNorm(2, 6), IMAGES),
    "batch norm": (lambda: nn.BatchNorm2d(6), IMAGES),
    "convnext norm": (lambda: ConvNextLayerNorm(6, data_format="channels_first"), IMAGES),
    "convnext-v2 norm": (lambda: ConvNextV2LayerNorm(8, data_format="channels_last"), IMAGES),
    "response norm": (lambda: ConvNextV2GRN(8), IMAGES),
    "layer scale": (lambda: Dinov2LayerScale(Dinov2Config(hidden_size=6)), TOKENS),
    "embedding": (lambda: nn.Embedding(11, 6, padding_idx=0), None),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
    input = torch.randint(0, 11, (4, 5)) if shape is None else torch.randn(shape).to(dtype)
    return module.to(dtype).requires_grad_(False), input


def wrap(module: nn.Module, *adapters: str, seed: int = 1, **fields) -> SurgicalLayer:
    config = SurgicalConfig(target_modules=["x"], **fields)
    first, *others = adapters or ("default",)
    layer = SurgicalLayer(module, leaf_kind(module), first, config)
    for other in others:
        layer.update_layer(other, config)
    layer.set_adapter([first])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(layer):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def trained(layer: SurgicalLayer) -> list[nn.Parameter]:
    return [p for name in layer.adapter_layer_names for p in getattr(layer, name).values()]


def with_changes(module: nn.Module, layer: SurgicalLayer, *adapters: str) -> nn.Module:
    """A copy whose own parameters are changed, added up in float32 and rounded once."""
    module = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        container = layer.surgical_bias if name == "bias" else layer.surgical_weight
        total = parameter.data.float()
        for adapter in adapters:
            if adapter in container:
                total = total + container[adapter].data
        parameter.data = total.to(parameter.dtype)
    return module.requires_grad_(True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_bitwise_those_of_changed_parameters(name, dtype):
    module, input = build(name, dtype)
    layer = wrap(copy.deepcopy(module))
    assert all(parameter.dtype == torch.float32 for parameter in trained(layer))
    expected = with_changes(module, layer, "default")(input)
    assert not torch.equal(expected, module(input))
    assert torch.equal(layer(input), expected)
    assert layer(input).dtype == expected.dtype

    originals = {key: value.clone() for key, value in layer.base_layer.named_parameters()}
    layer.merge()
    assert torch.equal(layer(input), expected)
    assert torch.equal(layer.base_layer(input), expected)
    layer.unmerge()
    assert all(torch.equal(value, originals[key]) for key, value in layer.base_layer.named_parameters())
    assert torch.equal(layer(input), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_parameters(name):
    module, input = build(name)
    layer = wrap(module)
    reference = with_changes(module, layer, "default")
    weights = torch.randn(reference(input).shape, generator=torch.Generator().manual_seed(2))
    (reference(input) * weights).sum().backward()
    (layer(input) * weights).sum().backward()
    for key, parameter in reference.named_parameters():
        change = (layer.surgical_bias if key == "bias" else layer.surgical_weight)["default"]
        torch.testing.assert_close(change.grad, parameter.grad, rtol=1e-5, atol=1e-5)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_a_fresh_change_is_zero(name):
    module, input = build(name)
    config = SurgicalConfig(target_modules=["x"])
    layer = SurgicalLayer(module, leaf_kind(module), "default", config)
    assert torch.equal(layer(input), module(input))
    assert not any(parameter.any() for parameter in trained(layer))


@pytest.mark.parametrize("name", LAYERS)
def test_changes_of_several_adapters_add_up_and_merge_one_after_the_other(name):
    module, input = build(name)
    layer = wrap(copy.deepcopy(module), "a", "b")
    layer.set_adapter(["a", "b"])
    both = with_changes(module, layer, "a", "b")(input)
    assert torch.equal(layer(input), both)
    layer.merge(adapter_names=["a"])
    assert torch.equal(layer.base_layer(input), with_changes(module, layer, "a")(input))
    assert torch.equal(layer(input), both), "one merged, the other still added"
    with pytest.warns(UserWarning, match="Already following adapters were merged a"):
        layer.merge(adapter_names=["b"])
    assert torch.equal(layer.base_layer(input), both)
    layer.unmerge()
    assert all(torch.equal(x, y) for x, y in zip(layer.base_layer.parameters(), module.parameters()))


@pytest.mark.parametrize("name", LAYERS)
def test_each_sample_through_an_adapter_of_its_own(name):
    module, input = build(name)
    layer = wrap(module, "a", "b")
    with layer.per_sample(["b", "__base__", "a", "b"]):
        mixed = layer(input)
    expected = {
        "__base__": module(input),
        **{adapter: with_changes(module, layer, adapter)(input) for adapter in ("a", "b")},
    }
    for sample, adapter in enumerate(["b", "__base__", "a", "b"]):
        torch.testing.assert_close(mixed[sample], expected[adapter][sample])


def test_position_ids_shared_by_a_batch_are_looked_up_for_each_sample():
    module, _ = build("embedding")
    layer = wrap(module, "a", "b")
    ids = torch.arange(1, 5).unsqueeze(0)
    with layer.per_sample(["a", "b", "__base__"]):
        rows = layer(ids)
    assert torch.equal(rows[0], with_changes(module, layer, "a")(ids)[0])
    assert torch.equal(rows[1], with_changes(module, layer, "b")(ids)[0])
    assert torch.equal(rows[2], module(ids)[0])


def test_a_layer_that_does_not_see_samples_refuses_to_mix():
    module, input = build("linear")
    layer = wrap(module)
    with (
        layer.per_sample(["default"] * 2),
        pytest.raises(ValueError, match=r"Length of `adapter_names`.*2 and 4.*see no samples \(this is Linear\)"),
    ):
        layer(input)


def test_disabling_gives_the_base_back_even_if_merged():
    module, input = build("linear")
    layer = wrap(copy.deepcopy(module))
    layer.merge()
    layer.enable_adapters(False)
    assert torch.equal(layer(input), module(input))
    assert not layer.merged
    assert not any(parameter.requires_grad for parameter in trained(layer))


def test_safe_merge_refuses_before_it_changes_anything():
    module, input = build("conv2d")
    layer = wrap(copy.deepcopy(module))
    with torch.no_grad():
        layer.surgical_bias["default"][0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert not layer.merged
    assert torch.equal(layer.base_layer(input), module(input))


def test_statistics_stay_frozen_even_in_training_mode():
    module, input = build("batch norm")
    layer = wrap(copy.deepcopy(module))
    expected = layer(input)
    layer.train()
    assert torch.equal(layer(input), expected)
    assert torch.equal(layer.base_layer.running_mean, module.running_mean)
    assert torch.equal(layer.base_layer.num_batches_tracked, module.num_batches_tracked)


def test_weights_without_biases():
    module, input = build("conv2d")
    layer = wrap(module, train_bias=False)
    assert not layer.surgical_bias
    assert torch.equal(layer(input), with_changes(module, layer, "default")(input))


def test_wide_bases_get_wide_changes_and_attributes_pass_through():
    module, _ = build("conv2d", torch.float64)
    layer = wrap(module)
    assert all(parameter.dtype == torch.float64 for parameter in trained(layer))
    assert layer.stride == (2, 2)
    assert layer.weight is module.weight
    assert (layer.in_features, layer.out_features) == (6, 4)
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing


def test_small_steps_survive_a_base_in_half_precision():
    module, input = build("linear", torch.bfloat16)
    layer = wrap(module)
    optimizer = torch.optim.SGD(trained(layer), lr=1e-5)
    with torch.no_grad():
        for parameter in trained(layer):
            parameter.zero_()
    for _ in range(10):
        optimizer.zero_grad()
        layer(input).sum().backward()
        optimizer.step()
    gradient = input.float().sum(dim=(0, 1)).expand(3, 6)
    torch.testing.assert_close(layer.surgical_weight["default"], -1e-4 * gradient, rtol=2e-2, atol=1e-6)


class QuantizedLinear(nn.Linear):
    """As in bitsandbytes: a linear with a forward pass of its own."""

    def __init__(self):
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)

    def forward(self, input):
        return input @ self.weight.float().T


@pytest.mark.parametrize(
    "module",
    [
        QuantizedLinear(),
        nn.Embedding(3, 2, max_norm=1.0),
        nn.LayerNorm(3, elementwise_affine=False),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.ReLU(),
        nn.MultiheadAttention(4, 2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modules_that_compute_something_else_are_not_leaves(module):
    assert leaf_kind(module) is None
    assert is_quantized(module) == isinstance(module, QuantizedLinear)
