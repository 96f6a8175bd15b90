"""Every loss against a formula written independently, sample by sample, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_reprogram.objectives import OBJECTIVES, get_objective


B, C, D = 7, 4, 6


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(B, D, generator=generator), dim=-1)
    classes = torch.nn.functional.normalize(torch.randn(C, D, generator=generator), dim=-1)
    scale = torch.tensor(5.0)
    return {
        "logits": scale * image @ classes.T,
        "labels": torch.tensor([0, 1, 1, 3, 0, 1, 2]),
        "image_features": image,
        "class_features": classes,
        "logit_scale": scale,
        "reference_logits": torch.randn(B, C, generator=generator) * 3,
        "reference_class_features": torch.nn.functional.normalize(torch.randn(C, D, generator=generator), dim=-1),
    }


def log_probabilities(row):
    """log softmax of a list of numbers, term by term."""
    highest = max(row)
    total = sum(math.exp(value - highest) for value in row)
    return [value - highest - math.log(total) for value in row]


def test_class_is_the_mean_negative_log_probability(batch):
    expected = (
        -sum(log_probabilities(row)[y] for row, y in zip(batch["logits"].tolist(), batch["labels"].tolist())) / B
    )
    assert get_objective("class")(**batch).item() == pytest.approx(expected, rel=1e-6)


def test_class_with_label_smoothing(batch):
    eps, expected = 0.2, 0.0
    for row, y in zip(batch["logits"].tolist(), batch["labels"].tolist()):
        logs = log_probabilities(row)
        expected -= ((1 - eps) * logs[y] + eps * sum(logs) / C) / B
    assert get_objective("class", label_smoothing=eps)(**batch).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 1.0), (4.0, 0.8), (0.5, 0.25)])
def test_focal(batch, gamma, alpha):
    expected = 0.0
    for row, y in zip(batch["logits"].tolist(), batch["labels"].tolist()):
        log_p = log_probabilities(row)[y]
        expected += alpha * (1 - math.exp(log_p)) ** gamma * -log_p / B
    assert get_objective("focal", gamma=gamma, alpha=alpha)(**batch).item() == pytest.approx(expected, rel=1e-5)


def test_focal_with_gamma_0_is_cross_entropy(batch):
    assert get_objective("focal", gamma=0.0)(**batch).item() == pytest.approx(get_objective("class")(**batch).item())


def test_focal_has_finite_gradients_on_certain_samples():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    loss = get_objective("focal", gamma=2.0)(logits, torch.tensor([0, 0]))
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert loss.item() == pytest.approx(500.0)


def pair_logits(batch):
    image, classes, labels = (
        batch["image_features"].tolist(),
        batch["class_features"].tolist(),
        batch["labels"].tolist(),
    )
    scale = batch["logit_scale"].item()
    return [[scale * sum(a * b for a, b in zip(image[i], classes[labels[j]])) for j in range(B)] for i in range(B)]


def test_contrastive_averages_over_all_pairs_of_one_class_in_both_directions(batch):
    pairs, labels, expected = pair_logits(batch), batch["labels"].tolist(), 0.0
    for direction in (pairs, [list(column) for column in zip(*pairs)]):
        for i, row in enumerate(direction):
            logs = log_probabilities(row)
            positives = [j for j in range(B) if labels[j] == labels[i]]
            expected -= sum(logs[j] for j in positives) / len(positives) / B / 2
    assert get_objective("contrastive")(**batch).item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_paper_takes_the_diagonal_and_weighs_it_by_focus(batch):
    pairs, expected = pair_logits(batch), 0.0
    for direction in (pairs, [list(column) for column in zip(*pairs)]):
        for i, row in enumerate(direction):
            log_p = log_probabilities(row)[i]
            expected += 0.8 * (1 - math.exp(log_p)) ** 4 * -log_p / B / 2
    assert get_objective("contrastive_paper")(**batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_two_contrastive_losses_agree_where_every_class_occurs_once(batch):
    once = {**batch, "labels": torch.arange(C)}
    once["image_features"] = batch["image_features"][:C]
    paper = get_objective("contrastive_paper", gamma=0.0, alpha=1.0)(**once)
    assert get_objective("contrastive")(**once).item() == pytest.approx(paper.item(), rel=1e-6)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_distillation(batch, weight, temperature):
    expected = 0.0
    for row, reference, y in zip(
        batch["logits"].tolist(), batch["reference_logits"].tolist(), batch["labels"].tolist()
    ):
        student = log_probabilities([value / temperature for value in row])
        teacher = log_probabilities([value / temperature for value in reference])
        divergence = sum(math.exp(t) * (t - s) for t, s in zip(teacher, student))
        expected += (-log_probabilities(row)[y] + weight * temperature**2 * divergence) / B
    objective = get_objective("distillation", weight=weight, temperature=temperature)
    assert objective(**batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_anchored_adds_the_mean_distance_of_the_class_embeddings(batch, weight):
    distances = []
    for row, reference in zip(batch["class_features"].tolist(), batch["reference_class_features"].tolist()):
        norms = math.sqrt(sum(a * a for a in row)) * math.sqrt(sum(b * b for b in reference))
        distances.append(1 - sum(a * b for a, b in zip(row, reference)) / norms)
    expected = get_objective("class")(**batch).item() + weight * sum(distances) / C
    assert get_objective("anchored", weight=weight)(**batch).item() == pytest.approx(expected, rel=1e-5)


def test_anchored_gives_the_reference_no_gradient(batch):
    for name in ("class_features", "reference_class_features"):
        batch[name].requires_grad_()
    get_objective("anchored")(**batch).backward()
    assert batch["reference_class_features"].grad is None
    assert batch["class_features"].grad.abs().sum() > 0


def test_distillation_gives_the_reference_no_gradient(batch):
    batch["reference_logits"].requires_grad_()
    batch["logits"].requires_grad_()
    get_objective("distillation")(**batch).backward()
    assert batch["reference_logits"].grad is None
    assert batch["logits"].grad.abs().sum() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_inputs_give_a_float32_loss_close_to_the_exact_one(batch, name):
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in batch.items()}
    upcast = {key: value.float() if value.is_floating_point() else value for key, value in half.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = get_objective(name)(**half)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(get_objective(name)(**upcast).item(), rel=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_matches_finite_differences(batch, name):
    objective, labels = get_objective(name), batch.pop("labels")
    trained = [
        key
        for key in ("logits", "image_features", "class_features")
        if name.startswith("contrastive") == (key != "logits")
    ]
    inputs = {key: value.clone() for key, value in batch.items()}
    for key in trained:
        inputs[key].requires_grad_()
    objective(labels=labels, **inputs).backward()
    for key in trained:
        step = torch.zeros_like(batch[key])
        step[1, 2] = 1e-2
        up = objective(labels=labels, **{**batch, key: batch[key] + step})
        down = objective(labels=labels, **{**batch, key: batch[key] - step})
        assert inputs[key].grad[1, 2].item() == pytest.approx((up - down).item() / 2e-2, abs=2e-3)


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**31 - 1))
def test_losses_are_finite_and_not_negative(batch_size, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.nn.functional.normalize(torch.randn(batch_size, D, generator=generator), dim=-1)
    prompts = torch.nn.functional.normalize(torch.randn(classes, D, generator=generator), dim=-1)
    labels = torch.randint(classes, (batch_size,), generator=generator)
    for name in OBJECTIVES:
        loss = get_objective(name)(
            100 * image @ prompts.T, labels, image_features=image, class_features=prompts, logit_scale=100.0,
            reference_logits=100 * torch.randn(batch_size, classes, generator=generator),
            reference_class_features=prompts.roll(1, dims=0),
        )  # fmt: skip
        assert torch.isfinite(loss)
        assert loss >= -1e-5


def test_unknown_objective_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no objective 'clas'.*class, focal, contrastive"):
        get_objective("clas")


def test_unknown_option_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no option \['gama'\].*\['gamma', 'alpha'\]"):
        get_objective("focal", gama=2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("class", {"label_smoothing": 1.0}),
        ("focal", {"gamma": -1.0}),
        ("contrastive_paper", {"alpha": 0.0}),
        ("distillation", {"temperature": 0.0}),
        ("distillation", {"weight": -1.0}),
        ("anchored", {"weight": -1.0}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must"):
        get_objective(name, **options)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("contrastive", "image_features"),
        ("distillation", "reference_logits"),
        ("anchored", "reference_class_features"),
    ],
)
def test_missing_inputs_are_named(batch, name, missing):
    with pytest.raises(ValueError, match=f"needs .*{missing}"):
        get_objective(name)(batch["logits"], batch["labels"])
