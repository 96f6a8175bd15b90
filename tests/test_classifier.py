import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

from peft_reprogram import (
    ReprogrammerConfig,
    ResidualReprogrammerConfig,
    ZeroShotClassifier,
    set_residual_alpha,
)
from peft_reprogram.objectives import get_objective
from peft_reprogram.tuners.reprogrammer.prompts import class_prompts, prompt_rows


WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "photo", "of", "the", "cat", "dog", "fire", "engine"]
CLASSES = ["cat", "dog", "fire engine"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=12,
    )


def clip() -> CLIPModel:
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3}
    return CLIPModel(
        CLIPConfig(
            text_config={**text, "projection_dim": 8},
            vision_config={**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 8},
            projection_dim=8,
        )
    ).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def reprogrammed(tokenizer, config_cls=ResidualReprogrammerConfig, **fields) -> torch.nn.Module:
    config = config_cls.for_classes(CLASSES, tokenizer=tokenizer, init_weights=False, **fields)
    return get_peft_model(clip(), config).eval()


def features(output) -> torch.Tensor:
    return getattr(output, "pooler_output", output)


def test_logits_and_loss_are_those_of_the_model(tokenizer, images):
    model = clip()
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    labels = torch.tensor([0, 2, 1, 1])
    encoded = tokenizer(["a photo of a " + name for name in CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(
            pixel_values=images, **{k: encoded[k] for k in ("input_ids", "attention_mask")}
        ).logits_per_image
        output = classifier(images, labels)
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, F.cross_entropy(expected, labels))
    assert classifier.num_labels == 3


def test_siglip_logits_have_their_bias(tokenizer, images):
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config={**text, "pad_token_id": 0}, vision_config=vision)).eval()
    # SigLIP's tokenizers give no mask: its text tower sees the padding, at the length it was trained with.
    tokenizer.model_input_names = ["input_ids"]
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    encoded = tokenizer(["a photo of a " + name for name in CLASSES], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=images, input_ids=encoded["input_ids"]).logits_per_image
        assert encoded["input_ids"].shape == (3, 12)
        torch.testing.assert_close(classifier(images).logits, expected, rtol=1e-5, atol=1e-5)
    assert prompt_rows(tokenizer, CLASSES, ["a photo of a {}"]) == ([0, 2, 3, 4, 5, 6, 8, 9, 10, 11], 12)


def test_templates_are_averaged_on_the_sphere(tokenizer, images):
    model = clip()
    templates = ["a photo of a {}", "the {}"]
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES, templates).eval()
    with torch.no_grad():
        parts = []
        for template in templates:
            encoded = tokenizer([template.replace("{}", c) for c in CLASSES], padding=True, return_tensors="pt")
            out = model.get_text_features(encoded["input_ids"], attention_mask=encoded["attention_mask"])
            parts.append(F.normalize(features(out), dim=-1))
        expected = F.normalize((parts[0] + parts[1]) / 2, dim=-1)
        torch.testing.assert_close(classifier.get_class_features(), expected, rtol=1e-5, atol=1e-6)


def test_residual_mix_enters_unrenormalised(tokenizer, images):
    model = reprogrammed(tokenizer)
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    encoded = tokenizer(["a photo of a " + name for name in CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(
            pixel_values=images, input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        ).logits_per_image
        torch.testing.assert_close(classifier(images).logits, expected, rtol=1e-5, atol=1e-5)
        assert (classifier.get_image_features(images).norm(dim=-1) < 0.9995).all()


def count_text_calls(model) -> list:
    calls = []
    model.text_model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_text_is_encoded_once_in_evaluation(tokenizer, images):
    model = reprogrammed(tokenizer, ReprogrammerConfig)
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    calls = count_text_calls(model)
    with torch.no_grad():
        for _ in range(3):
            classifier(images)
    assert len(calls) == 1


def test_text_is_encoded_once_a_step_for_the_prompts_at_their_own_length(tokenizer, images):
    model = reprogrammed(tokenizer, ReprogrammerConfig)
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).train()
    shapes = []
    model.text_model.register_forward_hook(lambda m, a, k, o: shapes.append(k["input_ids"].shape), with_kwargs=True)
    classifier(images, torch.tensor([0, 1, 2, 0])).loss.backward()
    assert shapes == [(3, 8)]


def change_weights(model):
    with torch.no_grad():
        rows = model.text_model.embeddings.token_embedding.reprogrammer_rows["default"]
        rows.add_(torch.linspace(0, 1, rows.numel()).view_as(rows))


def step(model):
    parameter = model.text_model.embeddings.token_embedding.reprogrammer_rows["default"]
    # Not a constant: layer normalisation would take it away.
    parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
    torch.optim.Adam([parameter], lr=1.0).step()


def load(model):
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    set_peft_model_state_dict(model, {k: v * 2 for k, v in get_peft_model_state_dict(model).items()})


def switch(model):
    config = ResidualReprogrammerConfig.for_classes(CLASSES, token_indices=[8, 9], init_weights=False)
    model.add_adapter("other", config)
    model.set_adapter("other")


@pytest.mark.parametrize(
    "change",
    [change_weights, step, load, switch, lambda model: set_residual_alpha(model, 0.9), lambda model: model.unload()],
    ids=["in place", "optimizer", "state dict", "active adapter", "alpha", "unload"],
)
def test_cache_is_dropped_when_the_adapter_changes(tokenizer, change):
    model = reprogrammed(tokenizer)
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    with torch.no_grad():
        before = classifier.get_class_features()
        assert classifier.get_class_features() is before
        change(model)
        after = classifier.get_class_features()
        fresh = ZeroShotClassifier(model, tokenizer, CLASSES).eval().get_class_features()
    assert not torch.allclose(after, before)
    assert torch.equal(after, fresh)


def test_cache_is_dropped_when_the_adapter_is_disabled_and_enabled(tokenizer, images):
    model = reprogrammed(tokenizer)
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    with torch.no_grad():
        adapted = classifier(images).logits
        with model.disable_adapter():
            disabled = classifier(images).logits
        assert torch.equal(classifier(images).logits, adapted)
        zero_shot = ZeroShotClassifier(clip().requires_grad_(False), tokenizer, CLASSES).eval()(images).logits
        assert torch.equal(disabled, zero_shot)
        assert torch.equal(classifier.zero_shot_logits(images), zero_shot)
        assert torch.equal(classifier(images).logits, adapted)


def test_gradients_reach_the_text_in_evaluation_mode_too(tokenizer, images):
    model = reprogrammed(tokenizer, ReprogrammerConfig)
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    for context in (torch.no_grad(), nullcontext(), nullcontext()):
        with context:
            loss = classifier(images, torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    assert model.text_model.embeddings.token_embedding.reprogrammer_rows["default"].grad.abs().sum() > 0


def test_objective_gets_what_it_requires(tokenizer, images):
    model = reprogrammed(tokenizer, ReprogrammerConfig)
    seen = {}

    class Objective:
        requires = frozenset({"reference_logits"})

        def __call__(self, logits, labels, **inputs):
            seen.update(inputs)
            return logits.sum()

    classifier = ZeroShotClassifier(model, tokenizer, CLASSES, objective=Objective()).train()
    output = classifier(images, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(output.loss, output.logits.sum())
    expected = seen["logit_scale"] * seen["image_features"] @ seen["class_features"].T
    torch.testing.assert_close(output.logits, expected)
    with torch.no_grad():
        zero_shot = ZeroShotClassifier(clip(), tokenizer, CLASSES).eval()(images).logits
    torch.testing.assert_close(seen["reference_logits"], zero_shot)
    assert "reference_class_features" not in seen


def test_an_anchored_objective_gets_the_class_embeddings_of_the_base(tokenizer, images):
    classifier = ZeroShotClassifier(
        reprogrammed(tokenizer, ReprogrammerConfig),
        tokenizer,
        CLASSES,
        objective=get_objective("anchored", weight=2.0),
    ).train()
    labels = torch.tensor([0, 1, 2, 0])
    output = classifier(images, labels)
    with torch.no_grad():
        base = ZeroShotClassifier(clip(), tokenizer, CLASSES).eval().get_class_features()
    torch.testing.assert_close(classifier.zero_shot_class_features(), base)
    distance = (1 - (classifier.get_class_features() * base).sum(dim=-1)).mean()
    assert distance > 1e-4
    expected = torch.nn.functional.cross_entropy(output.logits, labels) + 2 * distance
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("wrap", [None, "reprogrammer", "lora"])
def test_save_and_load(tmp_path, tokenizer, images, wrap):
    clip().save_pretrained(tmp_path / "base")
    model = CLIPModel.from_pretrained(tmp_path / "base").eval()
    if wrap == "reprogrammer":
        config = ResidualReprogrammerConfig.for_classes(CLASSES, tokenizer=tokenizer, init_weights=False)
        model = get_peft_model(model, config)
    elif wrap == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES, ["a photo of a {}", "the {}"]).eval()
    with torch.no_grad():
        expected = classifier(images).logits
    classifier.save_pretrained(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "out")
    assert isinstance(loaded.model, PeftModel) == (wrap is not None)
    assert loaded.class_names == CLASSES
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, expected)


def test_an_interrupted_save_leaves_nothing_half_written(tmp_path, tokenizer, monkeypatch):
    classifier = ZeroShotClassifier(reprogrammed(tokenizer), tokenizer, CLASSES)
    classifier.save_pretrained(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    change_weights(classifier.model)
    with pytest.raises(KeyboardInterrupt):
        classifier.save_pretrained(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_missing_pieces_are_named(tmp_path, tokenizer):
    model = reprogrammed(tokenizer)
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match=r"PeftModel.from_pretrained"):
        ZeroShotClassifier.from_pretrained(tmp_path / "bare")
    ZeroShotClassifier(model, tokenizer, CLASSES).save_pretrained(tmp_path / "nameless")
    with pytest.raises(ValueError, match=r"does not name its base model"):
        ZeroShotClassifier.from_pretrained(tmp_path / "nameless")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "nameless", model=clip())
    assert loaded.class_names == CLASSES


def test_a_model_without_text_features_is_refused(tokenizer):
    model = ViTForImageClassification(ViTConfig(**TOWER, image_size=32, patch_size=8))
    with pytest.raises(TypeError, match="classification head"):
        ZeroShotClassifier(model, tokenizer, CLASSES)


@pytest.mark.parametrize(
    ("class_names", "template", "message"),
    [([], "a {}", "class_names"), (["cat", "cat"], "a {}", "duplicates"), (["cat"], "a photo", "exactly once")],
)
def test_bad_prompts(tokenizer, class_names, template, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(clip(), tokenizer, class_names, template)


def test_a_template_is_never_formatted():
    # Templates and class names may come from a downloaded file.
    assert class_prompts(["{0.__class__}"], ["a {} {0.__class__}"]) == ["a {0.__class__} {0.__class__}"]


def test_class_names_survive_json(tmp_path, tokenizer):
    classifier = ZeroShotClassifier(reprogrammed(tokenizer), tokenizer, ["cat été", "dog 猫", "猫"])
    classifier.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "zero_shot_classifier.json").read_text("utf-8"))["class_names"]
        == classifier.class_names
    )


def test_trainer_accumulates_gradients_as_it_does_for_any_classifier(tmp_path, tokenizer, images):
    from transformers import Trainer, TrainingArguments

    rows = [{"pixel_values": images[i % 4], "labels": torch.tensor(i % 3)} for i in range(6)]

    def trained_rows(batch_size: int, accumulation: int) -> torch.Tensor:
        model = reprogrammed(tokenizer, ReprogrammerConfig)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            data_seed=0,
            dataloader_pin_memory=False,
        )
        Trainer(ZeroShotClassifier(model, tokenizer, CLASSES), arguments, train_dataset=rows).train()
        return model.text_model.embeddings.token_embedding.reprogrammer_rows["default"].detach().clone()

    start = reprogrammed(tokenizer, ReprogrammerConfig).text_model.embeddings.token_embedding.reprogrammer_rows[
        "default"
    ]
    whole, parts = trained_rows(6, 1), trained_rows(2, 3)
    assert (whole - start).abs().max() > 1e-3
    torch.testing.assert_close(parts - start, whole - start, rtol=1e-3, atol=1e-5)


def test_zero_shot_logits_of_an_injected_adapter_are_the_bases(tokenizer, images):
    model = clip()
    model.requires_grad_(False)
    with torch.no_grad():
        expected = ZeroShotClassifier(model, tokenizer, CLASSES).eval()(images).logits
    model.add_adapter(ReprogrammerConfig.for_classes(CLASSES, tokenizer=tokenizer, init_weights=False), "first")
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES)
    for mode in (True, False):
        classifier.train(mode)
        adapted = classifier(images).logits
        torch.testing.assert_close(classifier.zero_shot_logits(images), expected)
        assert not torch.allclose(adapted, expected, atol=1e-3)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_logits_are_float32_under_autocast_and_the_cache_knows_it(tokenizer, images):
    classifier = ZeroShotClassifier(reprogrammed(tokenizer), tokenizer, CLASSES).eval()
    with torch.no_grad():
        expected = classifier(images).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = classifier(images).logits
            image, classes = classifier.get_image_features(images).float(), classifier.get_class_features().float()
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, classifier.logit_scale * image @ classes.T)
        assert torch.equal(classifier(images).logits, expected)


def test_text_of_a_frozen_adapter_is_encoded_once_with_gradients_on(tokenizer, images):
    model = reprogrammed(tokenizer, ReprogrammerConfig).requires_grad_(False)
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    calls = count_text_calls(model)
    for _ in range(3):
        classifier(images)
    assert len(calls) == 1


@pytest.mark.parametrize("names", [["cat", "cat  "], ["Zebra", "yak"], ["a a a a a a a cat", "a a a a a a a dog"]])
def test_classes_of_the_same_tokens_are_refused(tokenizer, names):
    with pytest.raises(ValueError, match=r"same tokens.*Rename"):
        ZeroShotClassifier(clip(), tokenizer, names)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, 1, 2]])
def test_labels_outside_the_classes(tokenizer, images, labels):
    classifier = ZeroShotClassifier(clip(), tokenizer, CLASSES)
    with pytest.raises(ValueError, match=r"class indices in \[0, 3\)"):
        classifier(images, torch.tensor(labels))


def test_adapter_of_any_name_is_saved_and_several_active_are_refused(tmp_path, tokenizer, images):
    config = ResidualReprogrammerConfig.for_classes(CLASSES, tokenizer=tokenizer, init_weights=False)
    model = get_peft_model(clip(), config, adapter_name="first").eval()
    model.add_adapter("second", config)
    model.set_adapter("second")
    classifier = ZeroShotClassifier(model, tokenizer, CLASSES).eval()
    with torch.no_grad():
        expected = classifier(images).logits
        classifier.save_pretrained(tmp_path / "out")
        loaded = ZeroShotClassifier.from_pretrained(tmp_path / "out", model=clip())
        assert torch.equal(loaded(images).logits, expected)
    model.base_model.set_adapter(["first", "second"])
    with pytest.raises(ValueError, match="set_adapter"):
        classifier.save_pretrained(tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_adapter_of_another_base_names_the_fix(tmp_path, tokenizer):
    ZeroShotClassifier(reprogrammed(tokenizer), tokenizer, CLASSES).save_pretrained(tmp_path)
    text = {**TOWER, "hidden_size": 32, "vocab_size": len(WORDS), "eos_token_id": 3}
    other = CLIPModel(CLIPConfig(text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 8}))
    with pytest.raises(ValueError, match=r"does not fit this CLIPModel.*pass that base model"):
        ZeroShotClassifier.from_pretrained(tmp_path, model=other)
