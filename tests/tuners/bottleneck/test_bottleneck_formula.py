"""What the adapters compute, against the formulas of the papers written out here."""

from __future__ import annotations

import math

import pytest
import torch
from peft import get_peft_model
from torch import nn

from peft_reprogram import BottleneckConfig, CompacterConfig
from peft_reprogram.tuners.bottleneck.hypercomplex import HypercomplexFactors, new_rule


FUNCTIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


class Net(nn.Module):
    """One module of each kind whose output can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.layer_norm = nn.LayerNorm(12)
        self.linear = nn.Linear(12, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return self.linear(self.layer_norm(x.flatten(2).transpose(1, 2)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return net.requires_grad_(False).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(1))


def adapted(net: Net, config: BottleneckConfig):
    torch.manual_seed(2)
    model = get_peft_model(net, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    return model


def output_of(model, name: str, x: torch.Tensor) -> torch.Tensor:
    seen = []
    with (
        torch.no_grad(),
        model.base_model.model.get_submodule(name).register_forward_hook(lambda _, args, output: seen.append(output)),
    ):
        model(x)
    return seen[0]


def kron_sum(rule: torch.Tensor, factors: HypercomplexFactors) -> torch.Tensor:
    """Equation 5 and 7 of arXiv 2106.04647."""
    return sum(torch.kron(rule[i], factors.left[i] @ factors.right[i]) for i in range(len(rule)))


def by_hand(h: torch.Tensor, down, up, bias_down, bias_up, function, channel_axis: int) -> torch.Tensor:
    axis = "bchw,oc->bohw" if channel_axis == 1 else "btc,oc->bto"
    shape = (1, -1, 1, 1) if channel_axis == 1 else (-1,)
    hidden = function(torch.einsum(axis, h, down) + bias_down.view(shape))
    return h + torch.einsum(axis, hidden, up) + bias_up.view(shape)


@pytest.mark.parametrize("non_linearity", FUNCTIONS)
@pytest.mark.parametrize(("target", "axis"), [("conv", 1), ("norm", 1), ("layer_norm", -1), ("linear", -1)])
@pytest.mark.parametrize("compacter", [False, True])
def test_the_formula(net, images, target, axis, non_linearity, compacter):
    fields = {"target_modules": [target], "reduction_factor": 4, "non_linearity": non_linearity}
    config = CompacterConfig(phm_dim=2, phm_rank=3, **fields) if compacter else BottleneckConfig(**fields)
    model = adapted(net, config)
    layer = model.base_model.model.get_submodule(target)
    h = output_of(model, f"{target}.base_layer", images)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    with torch.no_grad():
        if compacter:
            rule = layer.bottleneck_rule["default"]
            weights = kron_sum(rule, down), kron_sum(rule, up)
        else:
            weights = down.weight, up.weight
        # A quarter, in a Compacter rounded up to an even number.
        inner = 4 if compacter else layer.width // 4
        assert weights[0].shape == weights[1].t().shape == (inner, layer.width)
        expected = by_hand(h, *weights, down.bias, up.bias, FUNCTIONS[non_linearity], axis)
    actual = output_of(model, target, images)
    assert not torch.allclose(actual, h, atol=0.1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=[(12, 4, 2, 1), (8, 16, 4, 3), (6, 6, 3, 2), (5, 7, 1, 1)], ids=str)
def sizes(request):
    return request.param


def test_the_weight_is_a_sum_of_kronecker_products(sizes):
    in_features, out_features, dim, rank = sizes
    torch.manual_seed(0)
    factors, rule = HypercomplexFactors(in_features, out_features, dim, rank), new_rule(dim)
    weight = factors.weight(rule)
    assert weight.shape == (out_features, in_features)
    torch.testing.assert_close(weight, kron_sum(rule, factors))


def test_a_drawn_hypercomplex_weight_has_the_scale_of_a_linear_layers():
    torch.manual_seed(0)
    weights = torch.stack([HypercomplexFactors(64, 32, 4, 2).weight(new_rule(4)) for _ in range(200)])
    assert weights.std().item() == pytest.approx(nn.Linear(64, 3200).weight.std().item(), rel=0.1)


def test_active_adapters_are_added_up(net, images):
    model = adapted(net, BottleneckConfig(target_modules=["linear"]))
    model.add_adapter("other", BottleneckConfig(target_modules=["linear"], init_weights=False))
    h = output_of(model, "linear.base_layer", images)
    one = output_of(model, "linear", images)
    model.set_adapter("other")
    other = output_of(model, "linear", images)
    model.base_model.set_adapter(["default", "other"])
    both = output_of(model, "linear", images)
    torch.testing.assert_close(both, one + other - h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config_cls", [BottleneckConfig, CompacterConfig])
def test_fresh_adapters_are_the_base_model_bit_for_bit(net, images, config_cls):
    expected = net(images)
    model = get_peft_model(net, config_cls(target_modules=["conv", "norm", "layer_norm", "linear"])).eval()
    with torch.no_grad():
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize("config_cls", [BottleneckConfig, CompacterConfig])
def test_fresh_adapters_learn_at_once(net, images, config_cls):
    model = get_peft_model(net, config_cls(target_modules=["linear"]))
    model(images).pow(2).sum().backward()
    up = model.base_model.model.linear.bottleneck_up["default"]
    changing = up.right if config_cls is CompacterConfig else up.weight
    assert (changing.grad != 0).all()


def test_dropout_acts_in_training_alone(net, images):
    model = adapted(net, BottleneckConfig(target_modules=["linear"], dropout=0.5))
    expected = model(images)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(images), model(images))
    mean = torch.stack([model(images) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=0.2, atol=0.2)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_those_of_finite_differences(net, images, shared):
    config = CompacterConfig(target_modules=["norm", "linear"], phm_dim=2, reduction_factor=4, shared_phm_rule=shared)
    model = adapted(net, config).double()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(images.double()).sin().sum().backward()
    for parameter in parameters:
        direction = torch.randn_like(parameter)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                parameter.add_(step * direction)
                values.append(model(images.double()).sin().sum())
        with torch.no_grad():
            parameter.add_(1e-6 * direction)
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)
