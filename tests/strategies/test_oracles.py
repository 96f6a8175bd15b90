"""Each strategy's own formula, written again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from peft_reprogram.strategies import get_strategy, list_strategies
from peft_reprogram.strategies.coop import ContextClassifier
from peft_reprogram.strategies.lp_ft import LPFT

from .conftest import CLASSES


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_wise_ft_mixes_all_weights_and_gives_them_back(task, pixel_values):
    strategy = get_strategy("wise_ft")
    tuned, _ = strategy.fit(task)
    end = {name: parameter.detach().clone() for name, parameter in tuned.named_parameters()}
    start = dict(strategy.build(task).named_parameters())
    seen = []
    for alpha, point in strategy.points(tuned, task):
        seen.append(alpha)
        expected = strategy.build(task).eval()
        with torch.no_grad():
            for name, parameter in expected.named_parameters():
                parameter.copy_((1 - alpha) * end[name] + alpha * start[name])
            torch.testing.assert_close(point(pixel_values).logits, expected(pixel_values).logits)
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert strategy.paper_alpha in seen
    assert all(torch.equal(parameter, end[name]) for name, parameter in tuned.named_parameters())


def test_wise_ft_gives_the_weights_back_when_it_is_left_amid_the_curve(task):
    strategy = get_strategy("wise_ft")
    tuned, _ = strategy.fit(task)
    end = tuned.head.weight.detach().clone()
    points = strategy.points(tuned, task)
    next(points), next(points)
    assert not torch.equal(tuned.head.weight, end)
    points.close()
    assert torch.equal(tuned.head.weight, end)


@pytest.mark.parametrize(
    ("name", "distance"), [("l2_sp", lambda d: 0.3 / 2 * (d**2).sum()), ("l1_sp", lambda d: 0.3 * d.abs().sum())]
)
def test_penalty_is_the_distance_of_the_tower_from_the_start(name, distance, task, pixel_values):
    classifier = get_strategy(name, strength=0.3).build(task).eval()
    start = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    assert classifier.penalty().item() == 0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    changes = [(p - start[n]).double() for n, p in classifier.named_parameters() if not n.startswith("head.")]
    expected = sum(distance(change) for change in changes)
    output = classifier(pixel_values, LABELS)
    torch.testing.assert_close(
        output.loss.double(), F.cross_entropy(output.logits, LABELS).double() + expected, rtol=1e-5, atol=1e-5
    )
    # Its gradient pulls every weight of the tower, and none of the head, back.
    weight = classifier.model.visual_projection.weight
    weight_gradient, head_gradient = torch.autograd.grad(
        classifier.penalty(), [weight, classifier.head.weight], allow_unused=True
    )
    change = weight.detach() - start["model.visual_projection.weight"]
    torch.testing.assert_close(weight_gradient, 0.3 * (change if name == "l2_sp" else change.sign()))
    assert head_gradient is None


def test_penalty_holds_the_tower(task):
    def moved(strength):
        config = replace(task.config, epochs=4, output_dir=f"{task.config.output_dir}-{strength}")
        classifier, _ = get_strategy("l2_sp", lr=1e-3, strength=strength).fit(replace(task, config=config))
        start = dict(get_strategy("full").build(task).model.named_parameters())
        return sum((p - start[name]).square().sum().item() for name, p in classifier.model.named_parameters())

    assert moved(100.0) < moved(0.0) / 2


def test_lp_ft_fine_tunes_from_the_head_of_its_probe(task, monkeypatch):
    train = LPFT.train
    starts = []

    def watched(self, classifier, task):
        starts.append({name: tensor.clone() for name, tensor in classifier.state_dict().items()})
        return train(self, classifier, task)

    monkeypatch.setattr(LPFT, "train", watched)
    tuned, result = LPFT(probe_lr=0.1).fit(task)
    probe = load_file(Path(task.config.output_dir) / "probe" / "model.safetensors")
    assert probe.keys() == {"head.weight", "head.bias"}
    zero_shot = LPFT().build(task).state_dict()
    (start,) = starts
    for name, tensor in start.items():
        assert torch.equal(tensor, probe.get(name, zero_shot[name]))
    assert not torch.equal(start["head.weight"], zero_shot["head.weight"])
    assert not torch.equal(start["head.weight"], tuned.head.weight)
    assert result.steps == 4


def test_context_of_the_template_gives_the_zero_shot_features(task, pixel_values):
    zero_shot = task.zero_shot()
    classifier = ContextClassifier(task.load_model(), task.load_tokenizer(), CLASSES, context_tokens=4).eval()
    ids = task.load_tokenizer()("a photo of a", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    before = classifier.get_class_features()
    with torch.no_grad():
        classifier.context.copy_(zero_shot.model.text_model.embeddings.token_embedding.weight[ids])
        torch.testing.assert_close(classifier.get_class_features(), zero_shot.get_class_features())
        torch.testing.assert_close(classifier(pixel_values).logits, zero_shot(pixel_values).logits)
    assert not torch.allclose(before, classifier.get_class_features())


def test_context_gets_the_gradient_of_finite_differences(task, pixel_values):
    classifier = get_strategy("coop").build(task).double().eval()
    images = pixel_values.double()
    (gradient,) = torch.autograd.grad(classifier(images, LABELS).loss, classifier.context)
    with torch.no_grad():
        for row, column in [(0, 0), (5, 17), (len(gradient) - 1, 3)]:
            losses = []
            for step in (1e-3, -1e-3):
                classifier.context[row, column] += step
                losses.append(classifier(images, LABELS).loss.item())
                classifier.context[row, column] -= step
            # The logits are float32.
            assert gradient[row, column].item() == pytest.approx((losses[0] - losses[1]) / 2e-3, abs=2e-3)


def test_context_is_as_long_as_the_positions_allow(task):
    positions = task.load_model().config.text_config.max_position_embeddings
    classifier = ContextClassifier(task.load_model(), task.load_tokenizer(), CLASSES, context_tokens=100)
    longest = max(len(ids) for ids in task.load_tokenizer()(CLASSES)["input_ids"])
    assert len(classifier.context) == positions - longest
    with pytest.raises(ValueError, match="leaves none for a context"):
        ContextClassifier(task.load_model(), task.load_tokenizer(), ["zero", "one " * 40], context_tokens=4)
    with pytest.raises(NotImplementedError, match="no reference"):
        classifier.zero_shot_logits(torch.zeros(1, 3, 32, 32))


def test_full_and_flyp_train_with_their_losses(task):
    assert get_strategy("full").training_config(task.config).objective == "class"
    assert get_strategy("flyp").training_config(task.config).objective == "contrastive"
    config = get_strategy("coop", lr=0.5).training_config(task.config)
    assert (config.optimizer, config.lr) == ("sgd", 0.5)


@pytest.mark.parametrize("name", ["linear_probe", "coop", "reprogrammer_text"])
def test_embedding_images_once_changes_nothing(name, task, tmp_path, pixel_values, monkeypatch):
    strategy = get_strategy(name)
    embedded, result = strategy.fit(task)
    assert "get_image_features" not in vars(embedded)
    monkeypatch.setattr(type(strategy), "frozen_images", False)
    plain, expected = strategy.fit(replace(task, config=replace(task.config, output_dir=str(tmp_path / "plain"))))
    assert [entry["loss"] for entry in result.history] == pytest.approx([entry["loss"] for entry in expected.history])
    with torch.no_grad():
        torch.testing.assert_close(embedded(pixel_values).logits, plain(pixel_values).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["reprogrammer_text", "reprogrammer_anchored"])
def test_the_epoch_factor_multiplies_the_budget(name, task):
    steps = get_strategy(name).fit(task)[1].steps
    longer = replace(task, config=replace(task.config, output_dir=task.config.output_dir + "-longer"))
    assert get_strategy(name, epoch_factor=3).fit(longer)[1].steps == 3 * steps
    by_steps = replace(task.config, max_steps=5)
    assert get_strategy(name, epoch_factor=3).training_config(by_steps).max_steps == 15
    for factor in (0, 1.5, "2"):
        with pytest.raises(ValueError, match="`epoch_factor` must be a number of at least 1"):
            get_strategy(name, epoch_factor=factor)


def test_only_frozen_images_are_embedded_once(task):
    for name in list_strategies():
        strategy = get_strategy(name)
        if strategy.frozen_images:
            classifier = strategy.build(task)
            features = classifier.get_image_features(torch.zeros(2, 3, 32, 32))
            assert not features.requires_grad, name
