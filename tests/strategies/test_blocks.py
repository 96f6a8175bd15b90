"""Strategies that ask which block to train."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from peft_reprogram.data import collate, prepare, train_validation_split
from peft_reprogram.strategies import get_strategy
from peft_reprogram.strategies.blocks import WHOLE, parameters_by_block, tensor_groups
from peft_reprogram.training import train
from peft_reprogram.tuners.surgical.selection import auto_rgn, auto_snr

from .conftest import make_data


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def batches_of(task):
    data = prepare(task.training, task.preprocess)
    return [collate([data[i] for i in range(start, start + 6)]) for start in (0, 6)]


def trained(classifier):
    return {name: p.detach().clone() for name, p in classifier.named_parameters() if p.requires_grad}


def test_blocks_divide_what_the_whole_trains(task):
    classifier = get_strategy("surgical", block="all").build(task)
    parts = parameters_by_block(classifier)
    assert list(parts) == list(WHOLE)
    names = [name for part in parts.values() for name in part]
    assert len(names) == len(set(names))
    assert set(names) == set(trained(classifier))
    for block in WHOLE:
        alone = get_strategy("surgical", block=block).build(task)
        # The adapter alone, except for the linear head.
        assert set(trained(alone)) == set(parts[block])
    assert {"head.weight", "head.bias"} < set(parts["head"])


def test_the_adapted_classifier_starts_as_zero_shot(task, pixel_values):
    expected = task.zero_shot()(pixel_values).logits
    for strategy in ("surgical", "auto_rgn", "side_tuning", "bi_tuning"):
        classifier = get_strategy(strategy).build(task).eval()
        assert torch.allclose(classifier(pixel_values).logits, expected, atol=1e-4), strategy


def test_an_unknown_block_lists_the_known_ones(task):
    with pytest.raises(ValueError, match=r"no block 'lats'. Its blocks are 'embedding', 'first'"):
        get_strategy("surgical", block="lats").build(task)


def test_a_plain_classifier_can_be_adapted_too():
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1], layer_type="basic", num_labels=3)
    )
    adapted = get_strategy("surgical", block="head").prepare(model)
    assert all(".classifier." in name for name in trained(adapted))


def optimizer_of(classifier, config):
    optimizer = torch.optim.AdamW(tensor_groups(classifier, config), lr=config.lr)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


@pytest.mark.parametrize(("name", "measure"), [("auto_rgn", auto_rgn), ("auto_snr", auto_snr)])
def test_rates_follow_the_gradients_of_each_epoch(task, name, measure):
    strategy = get_strategy(name, lr=0.5)
    config = strategy.training_config(task.config)
    classifier = strategy.build(task)
    batches = batches_of(task)
    optimizer, scheduler = optimizer_of(classifier, config)
    hook = strategy.on_epoch_start(classifier, config)
    for _ in range(2):
        hook(0, optimizer, scheduler, batches)
        expected = measure(classifier, batches)
        rates = dict(zip([group["tensor"] for group in optimizer.param_groups], scheduler.base_lrs))
        assert rates == {name: pytest.approx(0.5 * weight) for name, weight in expected.weights.items()}
        classifier(**batches[0]).loss.backward()
        optimizer.step()
    assert optimizer.state  # moments are kept


def test_auto_rgn_can_forget_moments_as_the_released_code(task):
    strategy = get_strategy("auto_rgn", reset_state=True)
    config = strategy.training_config(task.config)
    classifier = strategy.build(task)
    optimizer, scheduler = optimizer_of(classifier, config)
    classifier(**batches_of(task)[0]).loss.backward()
    optimizer.step()
    strategy.on_epoch_start(classifier, config)(1, optimizer, scheduler, batches_of(task))
    assert not optimizer.state


@pytest.mark.parametrize("order", ["last_to_first", "first_to_last"])
def test_each_fifth_of_the_epochs_unfreezes_another_block(task, tmp_path, order):
    strategy = get_strategy("gradual_unfreezing", order=order, lr=1e-2)
    blocks = list(WHOLE) if order == "first_to_last" else list(reversed(WHOLE))
    moved = []
    for epochs in range(1, 6):
        # As many of five epochs as give `epochs`: two steps each.
        config = replace(task.config, epochs=5, output_dir=str(tmp_path / str(epochs)))
        classifier = strategy.build(task)
        before = trained(classifier)
        config = strategy.training_config(config)
        hook = strategy.on_epoch_start(classifier, config)

        def stop(epoch, *rest, hook=hook, last=epochs):
            if epoch == last:
                raise KeyboardInterrupt
            hook(epoch, *rest)

        groups = strategy.parameter_groups(classifier, config)
        try:
            train(classifier, task.training, config, task.preprocess, parameter_groups=groups, on_epoch_start=stop)
        except KeyboardInterrupt:
            assert epochs < 5
        after = trained(classifier)
        parts = parameters_by_block(classifier)
        moved.append({block for block in WHOLE if any(not torch.equal(before[n], after[n]) for n in parts[block])})
    assert moved == [set(blocks[: count + 1]) for count in range(5)]


@pytest.mark.parametrize("epochs", [1, 2, 4, 7, 10])
def test_all_is_unfrozen_in_the_last_epoch(task, epochs):
    strategy = get_strategy("gradual_unfreezing")
    classifier = strategy.build(task)
    config = strategy.training_config(replace(task.config, epochs=epochs))
    optimizer = torch.optim.AdamW(strategy.parameter_groups(classifier, config))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    hook, rates = strategy.on_epoch_start(classifier, config), []
    for epoch in range(epochs):
        hook(epoch, optimizer, scheduler, ())
        rates.append(sum(rate > 0 for rate in scheduler.base_lrs))
    assert rates == sorted(rates)
    assert rates[0] >= 1
    assert rates[-1] == len(WHOLE)


def test_gradual_unfreezing_needs_epochs_and_an_order(task):
    with pytest.raises(ValueError, match="'last_to_first' or 'first_to_last', got 'middle'"):
        get_strategy("gradual_unfreezing", order="middle")
    with pytest.raises(ValueError, match="give `epochs`, not `max_steps`"):
        get_strategy("gradual_unfreezing").training_config(replace(task.config, max_steps=3))


def test_subtuning_trains_what_helps_on_rows_that_it_has_not_seen(task):
    task = replace(task, training=make_data(15))
    strategy = get_strategy("subtuning", candidates=("embedding", "first", "last"), lr=1e-2)
    classifier, result = strategy.fit(task)
    folder = Path(task.config.output_dir)
    choice = json.loads((folder / "subtuning.json").read_text())
    runs = {path.name: json.loads((path / "results.json").read_text()) for path in (folder / "candidates").iterdir()}
    assert {"embedding+head", "first+head", "last+head", "head"} <= set(runs)
    kept, held_out = train_validation_split(task.training, 0.2, task.config.seed)
    for path in (folder / "candidates").iterdir():
        run = json.loads((path / "run.json").read_text())
        assert (run["training_data"]["rows"], run["validation_data"]["rows"]) == (len(kept), len(held_out))
    for block, score in choice["profile"].items():
        assert runs[f"{block}+head"]["validation"]["accuracy"] == score
    best = max(choice["profile"].values())
    assert choice["profile"][choice["blocks"][0]] == best or len(choice["blocks"]) > 1
    assert choice["scores"][0] == best
    parts = parameters_by_block(classifier)
    assert set(parts) == {*choice["blocks"], "head"}
    assert result.seconds >= sum(run["seconds"] for run in runs.values())
    # A finished choice is not made again.
    modified = {path: path.stat().st_mtime_ns for path in (folder / "candidates").rglob("results.json")}
    again, _ = strategy.fit(task)
    assert modified == {path: path.stat().st_mtime_ns for path in (folder / "candidates").rglob("results.json")}
    assert all(torch.equal(value, trained(again)[name]) for name, value in trained(classifier).items())
