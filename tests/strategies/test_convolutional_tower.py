"""A MobileNetV2 tower: depthwise convolutions, batch normalisation, no biases of its convolutions."""

from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from peft_reprogram.data import ImagePreprocessor
from peft_reprogram.strategies import get_strategy


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["lora", "ia3", "bitfit", "ln_tuning", "full", "linear_probe", "coop", "reprogrammer"]
)
def test_strategies_train_a_mobilenet(name, shared, task):
    path = shared / "models" / "lit-mobilenetv2"
    task = replace(task, model=str(path), preprocess=ImagePreprocessor.from_pretrained(path))
    strategy = get_strategy(name)
    zero_shot = task.zero_shot()
    images = task.preprocess(task.training.dataset["image"][:2])
    classifier = strategy.build(task).eval()
    tower = classifier.model.vision_model
    with torch.no_grad():
        if name != "coop":
            torch.testing.assert_close(classifier(images).logits, zero_shot(images).logits, rtol=1e-3, atol=1e-3)
    if name == "lora":
        wrapped = [m.get_base_layer() for m in tower.modules() if isinstance(m, LoraLayer)]
        ungrouped = [m for m in tower.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
        assert wrapped
        assert all(isinstance(layer, nn.Conv2d) and layer.groups == 1 for layer in wrapped)
        assert {id(layer) for layer in wrapped} <= {id(layer) for layer in ungrouped}
    classifier, result = strategy.fit(task)
    assert result.steps == 4
    buffers = dict(zero_shot.model.vision_model.named_buffers())
    trained = [
        (n, b) for n, b in classifier.named_buffers() if n.rpartition(".")[2] in ("running_mean", "running_var")
    ]
    assert trained
    for name_, statistic in trained:
        name_ = name_.replace(".base_layer", "").replace(".ln_tuning_layers.default", "")
        assert torch.equal(statistic, buffers[name_.partition("vision_model.")[2]])
