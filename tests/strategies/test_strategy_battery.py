"""What holds for every strategy, on a tiny CLIP."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peft_reprogram.evaluation import evaluate_model, model_fingerprint
from peft_reprogram.strategies import get_strategy, list_strategies
from peft_reprogram.training import _Run

from .conftest import CLASSES, make_data


TRAINING = [name for name in list_strategies() if name != "zero_shot"]
# All that may be trained, by its name in the classifier.
HEAD = r"head\.(weight|bias)"
TOWER = r"model\.(vision_model|visual_projection)\..*"
WRAPPED = r"model\.base_model\.model\.vision_model\.(.*\.)?"
TRAINED = {
    "linear_probe": HEAD,
    "full": f"{HEAD}|{TOWER}",
    "lp_ft": f"{HEAD}|{TOWER}",
    "wise_ft": f"{HEAD}|{TOWER}",
    "l2_sp": f"{HEAD}|{TOWER}",
    "l1_sp": f"{HEAD}|{TOWER}",
    "flyp": r"model\..*",
    "coop": r"model\.text_model\.embeddings\.token_embedding\.context",
    "lora": rf"{HEAD}|{WRAPPED}(q_proj|k_proj|v_proj|out_proj|fc1|fc2)\.lora_[AB]\.default\.weight",
    "ia3": rf"{HEAD}|{WRAPPED}(k_proj|v_proj|fc2)\.ia3_l\.default",
    "bitfit": rf"{HEAD}|model\.vision_model\..*\.bias",
    "ln_tuning": rf"{HEAD}|{WRAPPED}(\w*norm\w*|\w*layrnorm)\.ln_tuning_layers\.default\.(weight|bias)",
    "reprogrammer": r".*reprogrammer_(frame|rows)\.default",
    "reprogrammer_image": r".*reprogrammer_frame\.default",
    "reprogrammer_text": r".*reprogrammer_rows\.default",
}


class Killed(Exception):
    """A run ends here."""


def names_of_trained(classifier):
    return {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}


def state(classifier):
    return {name: tensor.clone() for name, tensor in classifier.state_dict().items()}


def logits_of(classifier, pixel_values):
    with torch.no_grad():
        return classifier(pixel_values).logits


def test_every_strategy_has_as_many_trials_with_options_that_it_has():
    assert get_strategy("zero_shot").grid == ({},)
    for name in TRAINING:
        strategy = get_strategy(name)
        assert len(strategy.grid) == 3, name
        trials = [strategy.with_options(**options) for options in strategy.grid]
        assert len(set(trials)) == 3, name
        assert strategy.__doc__ is not None
        assert "arXiv" in strategy.__doc__, name


@pytest.mark.parametrize("name", TRAINING)
def test_trains_what_it_says_and_saves_that_alone(name, task, pixel_values):
    strategy = get_strategy(name)
    torch.manual_seed(task.config.seed)
    start = state(strategy.build(task))
    classifier, result = strategy.fit(task)
    trained = names_of_trained(classifier)
    assert not classifier.training
    assert result.steps == 4
    assert result.trainable_parameters == sum(dict(classifier.named_parameters())[n].numel() for n in trained)

    after = state(classifier)
    changed = {key for key in after.keys() & start.keys() if not torch.equal(after[key], start[key])}
    # Queues and the slow copy of the weights move too, in buffers.
    assert changed <= trained | (set(dict(classifier.named_buffers())) if name == "bi_tuning" else set())
    if name in TRAINED:
        assert after.keys() == start.keys()
        assert trained == {key for key, _ in classifier.named_parameters() if re.fullmatch(TRAINED[name], key)}
        # Keys' biases are of no consequence in a softmax, and a first step moves no factor of zero.
        assert len(changed) >= 0.8 * len(trained)

    folder = Path(task.config.output_dir)
    saved = [tensor for path in folder.glob("*.safetensors") for tensor in load_file(path).values()]
    assert sum(tensor.numel() for tensor in saved) == result.trainable_parameters
    assert sorted(tensor.double().sum().item() for tensor in saved) == pytest.approx(
        sorted(after[key].double().sum().item() for key in trained), abs=1e-6
    )
    recipe = json.loads((folder / "results.json").read_text())["recipe"]
    assert recipe["strategy"] == name
    assert torch.isfinite(logits_of(classifier, pixel_values)).all()


@pytest.mark.parametrize("name", TRAINING)
def test_a_killed_run_goes_on_to_the_same_result(name, task, tmp_path, pixel_values, monkeypatch):
    strategy = get_strategy(name)
    whole, whole_result = strategy.fit(task)
    again = replace(task, config=replace(task.config, output_dir=str(tmp_path / "killed")))
    checkpoint = _Run._checkpoint

    def kill_after_the_first(run):
        checkpoint(run)
        if run.progress.epoch == 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_checkpoint", kill_after_the_first)
        with pytest.raises(Killed):
            strategy.fit(again)
    resumed, result = strategy.fit(again)
    assert result.steps == whole_result.steps
    assert torch.equal(logits_of(resumed, pixel_values), logits_of(whole, pixel_values))
    # A finished run is not trained again.
    finished, result = strategy.fit(again)
    assert result.history == json.loads((tmp_path / "killed" / "results.json").read_text())["history"]
    assert torch.equal(logits_of(finished, pixel_values), logits_of(whole, pixel_values))


@pytest.mark.parametrize("name", list_strategies())
def test_every_point_is_measured_as_what_it_is(name, task, pixel_values, preprocess):
    strategy = get_strategy(name)
    untrained = model_fingerprint(strategy.build(task))
    classifier, _ = strategy.fit(task)
    fingerprints, alphas = [], []
    for alpha, point in strategy.points(classifier, task):
        fingerprints.append(model_fingerprint(point))
        alphas.append(alpha)
        results = evaluate_model(
            point,
            id=make_data(6, seed=2),
            ood={"far": make_data(6, seed=3)},
            preprocess=preprocess,
            scores=["msp", "energy"],
            name="point",
            progress_bar=False,
        )
        accuracy = results.models["point"].id["accuracy"]
        images = preprocess(make_data(6, seed=2).dataset["image"])
        predicted = logits_of(point, images).argmax(dim=1).tolist()
        assert accuracy == sum(p == i % len(CLASSES) for i, p in enumerate(predicted)) / 6
    assert len(set(fingerprints)) == len(fingerprints) == len(set(alphas))
    if name != "zero_shot":
        assert untrained not in fingerprints
    else:
        assert fingerprints == [untrained]


def test_reprogrammers_have_the_curve_of_the_residual():
    for name in ("reprogrammer", "reprogrammer_image", "reprogrammer_text"):
        strategy = get_strategy(name)
        assert strategy.residual_alphas == (0.2, 0.4, 0.6, 0.8)
        assert strategy.paper_alpha == 0.4
