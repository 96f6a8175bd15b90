import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from peft_reprogram import ZeroShotClassifier
from peft_reprogram.evaluation import model_fingerprint
from peft_reprogram.objectives import get_objective
from peft_reprogram.strategies import get_strategy
from peft_reprogram.strategies.linear_head import LinearHeadClassifier
from tests.peft_battery.zoo import BOS, CORE, EOS, FURTHER

from .conftest import CLASSES


TEXT_IMAGE = {name: model for name, model in {**CORE, **FURTHER}.items() if model.kind == "text-image"}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """For the zoo's models: a token for each word."""
    words = {"[PAD]": 0, "[UNK]": 2, "[BOS]": BOS, "[EOS]": EOS}
    words.update({word: i for i, word in enumerate(["a", "photo", "of", *CLASSES], start=3)})
    words.update({f"[{i}]": i for i in range(99) if i not in words.values()})
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", BOS), ("[EOS]", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    )


@pytest.mark.parametrize("name", TEXT_IMAGE)
def test_starts_with_the_zero_shot_logits_of_every_model(name, tokenizer):
    zoo_model = TEXT_IMAGE[name]
    zero_shot = ZeroShotClassifier(zoo_model.build(), tokenizer, CLASSES).eval()
    images = zoo_model.inputs(4)["pixel_values"]
    with torch.no_grad():
        expected = zero_shot(images).logits
        classifier = LinearHeadClassifier(zero_shot).eval()
        torch.testing.assert_close(classifier(images).logits, expected, rtol=1e-4, atol=1e-4)
    assert {n for n, p in classifier.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert not any("text" in name for name, _ in classifier.named_parameters())


def test_random_head_is_drawn_by_its_seed(task):
    heads = [LinearHeadClassifier(task.zero_shot(), init="random", seed=seed).head for seed in (0, 0, 1)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    with pytest.raises(ValueError, match="'text' or 'random'"):
        LinearHeadClassifier(task.zero_shot(), init="zeros")


def test_loss_is_that_of_the_objective(task, pixel_values):
    classifier = LinearHeadClassifier(task.zero_shot()).eval()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    logits = classifier(pixel_values).logits
    assert classifier(pixel_values).loss is None
    torch.testing.assert_close(classifier(pixel_values, labels).loss, F.cross_entropy(logits, labels))
    classifier.objective = get_objective("focal", gamma=2.0)
    right = logits.softmax(dim=1)[torch.arange(6), labels]
    torch.testing.assert_close(classifier(pixel_values, labels).loss, (-((1 - right) ** 2) * right.log()).mean())
    classifier.objective = get_objective("contrastive")
    with pytest.raises(ValueError, match="needs image_features"):
        classifier(pixel_values, labels)


def test_frozen_parts_stay_in_evaluation_mode(tokenizer):
    zoo_model = FURTHER["align"]
    classifier = LinearHeadClassifier(ZeroShotClassifier(zoo_model.build(), tokenizer, CLASSES)).train()
    assert classifier.training
    assert not any(module.training for module in classifier.model.modules())
    classifier.model.requires_grad_(True)
    assert all(module.training for module in classifier.train().modules())
    norms = [m for m in classifier.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    norms[0].requires_grad_(False)
    classifier.train()
    assert [module.training for module in norms] == [False] + [True] * (len(norms) - 1)


@pytest.mark.parametrize("name", ["linear_probe", "full", "lora", "ia3", "ln_tuning", "bitfit", "coop"])
def test_saved_file_gives_the_trained_classifier_back(name, task, pixel_values):
    strategy = get_strategy(name)
    trained, _ = strategy.fit(task)
    loaded = strategy.build(task)
    before = loaded.eval()(pixel_values).logits
    loaded.load_trained(task.config.output_dir)
    assert torch.equal(loaded(pixel_values).logits, trained(pixel_values).logits)
    assert not torch.equal(loaded(pixel_values).logits, before)
    assert model_fingerprint(loaded) == model_fingerprint(trained)


def test_statistics_of_batch_norm_that_moved_are_saved(tokenizer, tmp_path):
    def make():
        classifier = LinearHeadClassifier(ZeroShotClassifier(FURTHER["align"].build(), tokenizer, CLASSES))
        return classifier.requires_grad_(True)

    images = FURTHER["align"].inputs(4)["pixel_values"]
    trained = make()
    trained.save_pretrained(tmp_path / "before")
    assert not any("running" in name for name in load_file(tmp_path / "before" / "model.safetensors"))
    with torch.no_grad():
        trained.train()(images)
    trained.save_pretrained(tmp_path / "after")
    loaded = make()
    loaded.load_trained(tmp_path / "after")
    assert all(torch.equal(a, b) for a, b in zip(trained.buffers(), loaded.buffers(), strict=True))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images).logits, trained.eval()(images).logits)
    # What was loaded is saved again.
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == trained.state_dict().keys()


def test_a_file_of_something_else_is_refused(task, tmp_path):
    probe = get_strategy("linear_probe").build(task)
    probe.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="differ in name or shape"):
        get_strategy("full").build(task).load_trained(tmp_path / "saved")
    probe.class_names = ["a", "b", "c"]
    with pytest.raises(ValueError, match="of the classes"):
        probe.load_trained(tmp_path / "saved")


@pytest.mark.parametrize("part", ["head.weight", "head.bias", "visual_projection.weight", "lora_B.default.weight"])
def test_all_of_it_is_in_the_fingerprint(part, task):
    classifier = get_strategy("lora").build(task)
    before = model_fingerprint(classifier)
    parameter = next(p for name, p in classifier.named_parameters() if name.endswith(part))
    with torch.no_grad():
        parameter.view(-1)[0] += 1e-3
    assert model_fingerprint(classifier) != before


def test_settings_of_the_adapter_are_in_the_fingerprint(task):
    strategy = get_strategy("ia3")
    classifier = strategy.build(task)
    before = model_fingerprint(classifier)
    classifier.model.peft_config["default"].feedforward_modules = set()
    assert model_fingerprint(classifier) != before
