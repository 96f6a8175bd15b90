"""Bi-tuning's loss against a loop over keys, its queues and its slow copy; side-tuning's mix."""

import math

import pytest
import torch
import torch.nn.functional as F

from peft_reprogram.strategies import get_strategy
from peft_reprogram.strategies.bi_tuning import BiTuningClassifier
from peft_reprogram.strategies.side_tuning import SideTuningClassifier


OPTIONS = {"queue_size": 4, "temperature": 0.2, "momentum": 0.9, "projection_dim": 5, "contrastive_weight": 0.7}
LABELS = torch.tensor([0, 2, 0, 1, 0, 0])


@pytest.fixture
def classifier(task):
    torch.manual_seed(1)
    return BiTuningClassifier(task.zero_shot(), **OPTIONS).train()


def by_hand(anchor, own, queue, label):
    """The term of one image: the mean over positive keys of the negative logarithm of their softmax share."""
    keys = [(own, True)]
    keys += [(key, index == label) for index, rows in enumerate(queue) for key in rows]
    values = [math.exp(float(anchor @ key) / OPTIONS["temperature"]) for key, _ in keys]
    terms = [-math.log(value / sum(values)) for value, (_, positive) in zip(values, keys) if positive]
    return sum(terms) / len(terms)


def test_the_contrastive_terms_are_those_of_the_paper(classifier):
    generator = torch.Generator().manual_seed(2)

    def unit(width):
        return F.normalize(torch.randn(len(LABELS), width, generator=generator), dim=-1)

    width = classifier.head.in_features
    features, projections, keys = unit(width), unit(5), unit(5)
    rows = F.normalize(classifier.head.weight.detach(), dim=-1)
    expected = [
        by_hand(rows[label], features[i], classifier.queue_features, label)
        + by_hand(projections[i], keys[i], classifier.queue_projections, label)
        for i, label in enumerate(LABELS.tolist())
    ]
    loss = classifier.contrastive_loss(features, projections, keys, LABELS)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_the_loss_is_cross_entropy_and_the_terms_and_queues_are_first_in_first_out(classifier, pixel_values):
    before = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    output = classifier(pixel_values, LABELS)
    with torch.no_grad():
        # Before any step the slow copy equals the weights.
        features = classifier.get_image_features(pixel_values)
        projections = F.normalize(classifier.projector(features), dim=-1)
        after = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
        for name in ("queue_features", "queue_projections"):
            getattr(classifier, name).copy_(before[name])
        terms = classifier.contrastive_loss(features, projections, projections, LABELS)
    expected = F.cross_entropy(output.logits, LABELS) + 0.7 * terms
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    output.loss.backward()
    assert all(p.grad is not None for name, p in classifier.named_parameters() if name.startswith("projector"))

    for name, values in (("queue_features", features), ("queue_projections", projections)):
        expected_queue, positions = before[name].clone(), [0, 0, 0]
        for value, label in zip(values, LABELS.tolist()):
            expected_queue[label, positions[label] % 4] = value
            positions[label] += 1
        assert torch.allclose(after[name], expected_queue, atol=1e-6)
        assert after["queue_positions"].tolist() == [p % 4 for p in positions]


def test_more_images_of_a_class_than_its_queue_holds(classifier, pixel_values):
    labels = torch.ones(6, dtype=torch.int64)
    classifier(pixel_values, labels)
    with torch.no_grad():
        features = classifier.get_image_features(pixel_values)
    # The last four of six, where they fall: places 2, 3, 0, 1.
    assert torch.allclose(classifier.queue_features[1], features[[4, 5, 2, 3]], atol=1e-6)
    assert classifier.queue_positions.tolist() == [0, 2, 0]


def test_the_copy_follows_slowly(classifier, pixel_values):
    classifier(pixel_values, LABELS)
    name, parameter = classifier._followed()[0]
    start = classifier.momentum_0.clone()
    assert torch.equal(start, parameter)
    with torch.no_grad():
        parameter.add_(1.0)
    classifier(pixel_values, LABELS)
    assert torch.allclose(classifier.momentum_0, start + 0.1, atol=1e-6)
    assert not name.startswith("head")


def test_evaluation_has_no_part_in_it(classifier, pixel_values):
    classifier.eval()
    before = classifier.queue_features.clone()
    output = classifier(pixel_values, LABELS)
    assert output.loss.item() == pytest.approx(F.cross_entropy(output.logits, LABELS).item(), rel=1e-5)
    assert torch.equal(before, classifier.queue_features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 0}, "must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"momentum": 1.5}, r"`momentum` must be in \[0, 1\], got 1.5"),
        ({"contrastive_weight": -1.0}, "`contrastive_weight` must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        get_strategy("bi_tuning", **options).build(task)


def test_side_tuning_mixes_by_the_gate(task, pixel_values):
    classifier = SideTuningClassifier(task.zero_shot(), width=8, depth=2).eval()
    base = task.zero_shot().get_image_features(pixel_values)
    with torch.no_grad():
        classifier.gate.fill_(0.8)
        classifier.side[-1].weight.normal_()
        side = classifier.side(pixel_values)
        share = 1 / (1 + math.exp(-0.8))
        mixed = share * base + (1 - share) * side
        assert torch.allclose(
            classifier.get_image_features(pixel_values), mixed / mixed.norm(dim=1, keepdim=True), atol=1e-6
        )
        classifier.gate.fill_(50.0)
        assert torch.allclose(classifier.get_image_features(pixel_values), base, atol=1e-6)


def test_side_tuning_learns_the_gate_and_leaves_the_tower(task):
    classifier, _ = get_strategy("side_tuning", lr=1e-2).fit(task)
    assert classifier.gate.item() != 0
    base = task.zero_shot().model.vision_model.state_dict()
    assert all(torch.equal(value, base[name]) for name, value in classifier.model.vision_model.state_dict().items())
    for options, message in (({"width": 12}, "multiple of 8"), ({"depth": 0}, "`depth` must be at least 1")):
        with pytest.raises(ValueError, match=message):
            get_strategy("side_tuning", **options).build(task)
