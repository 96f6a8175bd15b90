"""Gradient criteria against plain loops over the parameters, choices by score against exhaustive search."""

import itertools
import math

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, get_scheduler

from peft_reprogram.tuners.surgical import SurgicalConfig
from peft_reprogram.tuners.surgical.selection import (
    auto_rgn,
    auto_snr,
    cross_validated,
    defrosting,
    profile,
    subtuning,
)


BLOCKS = ["embedding", "first", "middle", "last", "head"]


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batches(n: int = 7) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randn(4, 3, 8, 8, generator=generator),
            "labels": torch.randint(0, 3, (4,), generator=generator),
        }
        for _ in range(n)
    ]


def gradients(model: nn.Module, names: list[str], count: int) -> dict[str, np.ndarray]:
    """By a plain loop: `(count, *shape)` for each parameter."""
    found = {name: [] for name in names}
    for batch in batches()[:count]:
        model.zero_grad()
        model(**batch).loss.backward()
        for name in names:
            found[name].append(model.get_parameter(name).grad.double().numpy().copy())
    return {name: np.stack(values) for name, values in found.items()}


def base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".surgical_", ".").removesuffix(".default")


@pytest.fixture(params=["surgical", "surgical, trained", "full"])
def model_and_reference(request):
    """A model in training, and the same network with ordinary parameters."""
    if request.param == "full":
        return vit(), vit()
    model = get_peft_model(vit(), SurgicalConfig(blocks=BLOCKS)).eval()
    reference = vit()
    if request.param == "surgical, trained":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
                    reference.get_parameter(base_name(name)).add_(parameter)
    return model, reference


@pytest.mark.parametrize("count", [1, 5])
def test_rgn_is_that_of_a_plain_loop(model_and_reference, count):
    model, reference = model_and_reference
    weights = auto_rgn(model, batches(), num_batches=count)
    names = [base_name(name) for name in weights.values]
    assert names == [base_name(name) for name, p in model.named_parameters() if p.requires_grad]
    expected = {
        name: np.mean([np.linalg.norm(g) for g in grads])
        / np.linalg.norm(reference.get_parameter(name).detach().double().numpy())
        for name, grads in gradients(reference, names, count).items()
    }
    largest = max(expected.values())
    for name, value in weights.values.items():
        # A key's bias shifts all scores of a row alike: its gradient is rounding.
        np.testing.assert_allclose(value, expected[base_name(name)], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(weights.weights[name], expected[base_name(name)] / largest, rtol=1e-4, atol=1e-6)
    assert max(weights.weights.values()) == 1.0
    assert weights.num_batches == count
    assert all(parameter.grad is None for parameter in model.parameters())


def test_snr_over_mini_batches_is_that_of_a_plain_loop(model_and_reference):
    model, reference = model_and_reference
    weights = auto_snr(model, batches(), num_batches=6, threshold=0.3)
    names = [base_name(name) for name in weights.values]
    expected = {}
    for name, grads in gradients(reference, names, 6).items():
        variance = grads.var(axis=0, ddof=1)
        expected[name] = np.mean((grads.mean(axis=0) ** 2)[variance > 0] / variance[variance > 0])
    largest = max(expected.values())
    for name, value in weights.values.items():
        if ".k_proj.bias" not in base_name(name) and ".key.bias" not in base_name(name):
            np.testing.assert_allclose(value, expected[base_name(name)] / largest, rtol=5e-3)
        assert weights.weights[name] == float(value >= 0.3)
    assert set(weights.weights.values()) == {0.0, 1.0}


def test_snr_of_the_released_form_is_that_of_a_plain_loop():
    model, reference = vit(), vit()
    weights = auto_snr(model, batches(), num_batches=3, form="released")
    expected = {
        name: np.mean([np.mean(g**2 / ((g.var(axis=0, ddof=1) if len(g) > 1 else 0 * g[0]) + 1e-8)) for g in grads])
        for name, grads in gradients(reference, list(weights.values), 3).items()
    }
    largest = max(expected.values())
    for name, value in weights.values.items():
        np.testing.assert_allclose(value, expected[name] / largest, rtol=1e-3, atol=1e-9)
        assert weights.weights[name] == float(value >= 0.95)


def test_a_tensor_of_zeros_learns_in_full_and_does_not_drown_the_others():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        net[2].bias.zero_()
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    weights = auto_rgn(net, [(x, y)], loss=loss)
    assert math.isinf(weights.values["2.bias"])
    assert weights.weights["2.bias"] == 1.0
    assert max(weights.weights[name] for name in ("0.weight", "0.bias", "2.weight")) == 1.0
    assert weights.blocks["2.bias"] == "2"


def test_parameter_groups_train_each_tensor_at_its_rate():
    model = get_peft_model(vit(), SurgicalConfig(blocks=BLOCKS))
    weights = auto_rgn(model, batches())
    optimizer = torch.optim.SGD(weights.parameter_groups(model, lr=0.1, weight_decay=0.0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(**batches()[0]).loss.backward()
    optimizer.step()
    for name, weight in weights.weights.items():
        parameter = model.get_parameter(name)
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * weight * parameter.grad)


@pytest.mark.parametrize("reset_state", [False, True])
def test_a_new_epoch_changes_the_rates_and_keeps_or_forgets_the_moments(reset_state):
    model = get_peft_model(vit(), SurgicalConfig(blocks=["last", "head"]))
    first = auto_rgn(model, batches()[:2])
    optimizer = torch.optim.AdamW(first.parameter_groups(model, lr=0.1))
    for batch in batches()[:3]:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    moments = {p: state["exp_avg"].clone() for p, state in optimizer.state.items()}
    assert moments
    second = auto_rgn(model, batches()[3:])
    second.update(optimizer, lr=0.05, reset_state=reset_state)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05 * w for w in second.weights.values()]
    assert [group["lr"] for group in optimizer.param_groups] != [0.1 * w for w in first.weights.values()]
    if reset_state:
        assert not optimizer.state
    else:
        assert all(torch.equal(optimizer.state[p]["exp_avg"], moment) for p, moment in moments.items())
    with pytest.raises(ValueError, match="groups are not those of these tensors"):
        second.update(torch.optim.SGD(model.parameters(), lr=1.0), lr=0.1)


def test_a_scheduler_goes_on_with_the_new_rates():
    model = get_peft_model(vit(), SurgicalConfig(blocks=["head"]))
    weights = auto_rgn(model, batches())
    optimizer = torch.optim.AdamW(weights.parameter_groups(model, lr=0.1))
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=10)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    weights.update(optimizer, lr=0.2, scheduler=scheduler)
    optimizer.step()
    scheduler.step()
    for group, weight in zip(optimizer.param_groups, weights.weights.values()):
        assert group["lr"] == pytest.approx(0.2 * weight * 0.5)


def test_weights_feed_a_configuration_and_freeze():
    model = get_peft_model(vit(), SurgicalConfig(blocks=BLOCKS))
    weights = auto_snr(model, batches(), threshold=0.2)
    awake = {name for name, weight in weights.weights.items() if weight}
    config = weights.to_config(train_bias=False)
    chosen = get_peft_model(vit(), config)
    assert {base_name(n).rpartition(".")[0] for n, p in chosen.named_parameters() if p.requires_grad} == {
        base_name(name).rpartition(".")[0] for name in awake
    }
    weights.freeze(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == awake
    with pytest.raises(ValueError, match="`threshold` must be in"):
        weights.to_config(threshold=0)


def test_the_table_and_the_figure_go_by_depth(tmp_path):
    model = get_peft_model(vit(), SurgicalConfig(blocks=BLOCKS))
    weights = auto_rgn(model, batches())
    means = weights.by_block()
    assert list(means) == ["embedding", "block:0", "block:1", "block:2", "head"]
    head = [weight for name, weight in weights.weights.items() if "classifier" in name]
    assert means["head"] == pytest.approx(np.mean(head))
    text = str(weights)
    assert "5 mini-batches (5 forward and backward passes)" in text
    assert f"{means['block:1']:.3f}" in text
    figure = weights.plot(tmp_path / "weights.png")
    assert (tmp_path / "weights.png").stat().st_size > 0
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), list(means.values()))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(means)


def test_bad_measurements_are_refused():
    model = get_peft_model(vit(), SurgicalConfig(blocks=["head"]))
    with pytest.raises(ValueError, match="`batches` is empty"):
        auto_rgn(model, [])
    with pytest.raises(ValueError, match="needs at least 2"):
        auto_snr(model, batches()[:1])
    with pytest.raises(ValueError, match="`num_batches` must be at least 1"):
        auto_rgn(model, batches(), num_batches=0)
    with pytest.raises(ValueError, match="'paper' or 'released'"):
        auto_snr(model, batches(), form="other")
    with pytest.raises(ValueError, match="gave no loss"):
        auto_rgn(model, [{"pixel_values": torch.zeros(1, 3, 8, 8)}])
    with pytest.raises(ValueError, match="mini-batch 0 is nan"):
        auto_rgn(model, [{"pixel_values": torch.full((1, 3, 8, 8), torch.nan), "labels": torch.zeros(1).long()}])
    with pytest.raises(ValueError, match="trains nothing"):
        auto_rgn(vit().requires_grad_(False), batches())


# A made-up landscape: what each layer adds, and what two of them add less together, since they do the same.
VALUE = {"embedding": 0.05, "block:0": 0.30, "block:1": 0.28, "block:2": 0.10, "head": 0.02}
OVERLAP = {frozenset({"block:0", "block:1"}): 0.27, frozenset({"block:0", "embedding"}): 0.04}


def score(blocks: tuple[str, ...]) -> float:
    lost = sum(OVERLAP.get(frozenset(pair), 0.0) for pair in itertools.combinations(blocks, 2))
    return 0.5 + sum(VALUE[block] for block in blocks) - lost - 0.03 * max(len(blocks) - 2, 0)


def test_greedy_choice_finds_what_exhaustive_search_finds():
    result = profile(vit(), score)
    assert result.scores == {name: score((name,)) for name in ("embedding", "block:0", "block:1", "block:2")}
    assert result.base == score(())
    chosen = subtuning(result, score)
    everything = [c for size in range(1, 5) for c in itertools.combinations(result.candidates, size)]
    best = max(everything, key=score)
    assert tuple(chosen.blocks) == best == ("block:0", "block:2")
    assert chosen.scores[-1] == pytest.approx(score(best))
    # 4 alone, then 3, and 2 more that add nothing.
    assert chosen.num_trainings == 4 + 3 + 2
    assert chosen.to_config(train_norm=False).blocks == ["block:0", "block:2"]


def test_greedy_choice_stops_by_gain_or_number():
    result = profile(vit(), score)
    assert subtuning(result, score, epsilon=0.2).chosen == ["block:0"]
    assert subtuning(result, score, epsilon=0.2).num_trainings == 4 + 3
    assert subtuning(result, score, max_blocks=1).num_trainings == 4
    with pytest.raises(ValueError, match="`epsilon`"):
        subtuning(result, score, epsilon=-1)
    with pytest.raises(ValueError, match="`max_blocks`"):
        subtuning(result, score, max_blocks=0)


def test_blocks_that_are_always_trained_are_trained_with_each():
    seen = []

    def recording(blocks):
        seen.append(blocks)
        return score(blocks)

    result = profile(vit(), recording, always=["head"], blocks=["block:0", "block:2"])
    assert seen == [("block:0", "head"), ("block:2", "head"), ("head",)]
    seen.clear()
    assert subtuning(result, recording).blocks == ["block:0", "head", "block:2"]
    assert seen == [("block:0", "head", "block:2")]


def test_the_best_block_is_kept():
    result = cross_validated(["embedding", "block:0", "head"], score, base=True)
    assert result.best == "block:0"
    assert (result.base, result.num_trainings) == (0.5, 3)
    assert result.to_config().blocks == ["block:0"]
    pairs = cross_validated({"ends": ["embedding", "head"], "middle": ["block:1"]}, score)
    assert pairs.best == "middle"
    assert "3 trainings" in str(result)
    assert "block:0          0.8000  *" in str(result)
    with pytest.raises(ValueError, match="no candidates"):
        cross_validated([], score)
    with pytest.raises(ValueError, match=r"gave nan for the blocks \['head'\]"):
        cross_validated(["head"], lambda blocks: math.nan)


def test_the_sweep_over_frozen_depth():
    result = defrosting(vit(), score)
    assert result.candidates == {
        "0 frozen": ("embedding", "block:0", "block:1", "block:2", "head"),
        "1 frozen": ("block:0", "block:1", "block:2", "head"),
        "2 frozen": ("block:1", "block:2", "head"),
        "3 frozen": ("block:2", "head"),
        "4 frozen": ("head",),
    }
    assert result.best == max(result.candidates, key=lambda label: score(result.candidates[label]))
    assert list(defrosting(vit(), score, step=3).candidates) == ["0 frozen", "3 frozen", "4 frozen"]
    assert list(defrosting(vit(), score, always=()).candidates)[-1] == "3 frozen"
    with pytest.raises(ValueError, match="`step`"):
        defrosting(vit(), score, step=0)


def test_profiles_are_drawn_by_depth(tmp_path):
    result = profile(vit(), score)
    figure = result.plot(tmp_path / "profile.png")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), list(result.scores.values()))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["chosen", "before training"]
    chosen = subtuning(result, score)
    figure = chosen.plot(tmp_path / "subtuning.png")
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets()[:, 0], [1, 3])
    assert "SubTuning: 9 trainings" in str(chosen)
    assert "+ block:2  0.9000" in str(chosen)
