"""Bottleneck adapters and Compacter: what is trained, on a transformer and on a convolutional tower."""

import re
from dataclasses import replace

import pytest
import torch

from peft_reprogram.data import ImagePreprocessor
from peft_reprogram.strategies import get_strategy
from peft_reprogram.tuners.bottleneck.layer import BottleneckLayer


TRAINED = {
    "adapter": r"bottleneck_(down|up)\.default\.(weight|bias)",
    "compacter": r"bottleneck_((down|up)\.default\.(left|right|bias)|rule\.default)",
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_image_tower_alone_is_adapted(name, task, pixel_values):
    classifier = get_strategy(name).build(task).eval()
    layers = [module for module in classifier.model.modules() if isinstance(module, BottleneckLayer)]
    blocks = len(classifier.model.get_base_model().vision_model.encoder.layers)
    assert len(layers) == 2 * blocks
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    tower = rf"model\.base_model\.model\.vision_model\..*\.(out_proj|fc2)\.{TRAINED[name]}"
    assert all(re.fullmatch(tower, key) for key in trained - {"head.weight", "head.bias"})
    with torch.no_grad():
        expected = task.zero_shot()(pixel_values).logits
        torch.testing.assert_close(classifier(pixel_values).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "count"), [("adapter", 58_538), ("compacter", 4_780)])
def test_a_mobilenet(name, count, shared, task):
    path = shared / "models" / "lit-mobilenetv2"
    task = replace(task, model=str(path), preprocess=ImagePreprocessor.from_pretrained(path))
    classifier = get_strategy(name).build(task)
    head = sum(parameter.numel() for parameter in classifier.head.parameters())
    assert sum(p.numel() for p in classifier.parameters() if p.requires_grad) == count + head
    images = task.preprocess(task.training.dataset["image"][:2])
    before = {key: buffer.clone() for key, buffer in classifier.named_buffers()}
    classifier.train()
    classifier(images, labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in classifier.parameters() if p.requires_grad)
    assert all(torch.equal(before[key], buffer) for key, buffer in classifier.named_buffers())
