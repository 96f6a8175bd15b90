import io
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from peft import get_peft_model
from PIL import Image as PIL
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from peft_reprogram import ReprogrammerConfig, ZeroShotClassifier
from peft_reprogram.data import ImagePreprocessor, load_image_data
from peft_reprogram.training import TrainingConfig, default_parameter_groups, train


CLASSES = ["red", "green", "blue"]
WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "photo", "of", *CLASSES]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QUIET = {"progress_bar": False, "logging_steps": 1}


class Colours(torch.utils.data.Dataset):
    """Noisy images of three colours; an interruption can be asked for when the n-th one is read."""

    def __init__(self, length=20, seed=0, interrupt_at=None):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(length) % len(CLASSES)
        self.pixels = 0.5 * torch.randn(length, 3, 32, 32, generator=generator)
        for pixels, label in zip(self.pixels, self.labels):
            pixels[label] += 1
        self.interrupt_at = interrupt_at
        self.reads = 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == self.interrupt_at:
            raise KeyboardInterrupt
        return {"pixel_values": self.pixels[index], "labels": int(self.labels[index])}


def make_tokenizer():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]",
        model_max_length=12,
    )  # fmt: skip


def make_clip():
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3}
    return CLIPModel(
        CLIPConfig(
            text_config={**text, "projection_dim": 8},
            vision_config={**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 8},
            projection_dim=8,
        )
    )


def make_reprogrammer(**fields):
    tokenizer, processor = make_tokenizer(), CLIPImageProcessorPil(size=32, crop_size=32)
    config = ReprogrammerConfig.for_classes(CLASSES, tokenizer=tokenizer, image_processor=processor, **fields)
    model = get_peft_model(make_clip(), config)
    return ZeroShotClassifier(model, tokenizer, CLASSES)


def make_vit(**fields):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**TOWER, image_size=32, patch_size=8, num_labels=3, **fields))


def make_resnet():
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))


def trained(classifier):
    return {name: p.detach().clone() for name, p in classifier.named_parameters() if p.requires_grad}


def losses(result):
    return [entry["loss"] for entry in result.history if "loss" in entry]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def close(left, right, **tolerance):
    return left.keys() == right.keys() and all(torch.allclose(left[name], right[name], **tolerance) for name in left)


# --- learning ------------------------------------------------------------------------------------------------------


def test_the_adapter_learns_and_the_base_model_stays(tmp_path):
    classifier = make_reprogrammer()
    frozen = {name: p.detach().clone() for name, p in classifier.named_parameters() if not p.requires_grad}
    config = TrainingConfig(str(tmp_path), epochs=15, batch_size=10, lr=0.05, **QUIET)
    result = train(classifier, Colours(), config, validation=Colours(30, seed=1))
    assert result.validation["accuracy"] > 0.9
    assert result.history[0]["val_accuracy"] < 0.7
    assert losses(result)[-1] < 0.5 * losses(result)[0]
    assert result.steps == 30
    assert result.trainable_parameters == sum(p.numel() for p in classifier.parameters() if p.requires_grad)
    assert equal(frozen, {name: p for name, p in classifier.named_parameters() if not p.requires_grad})
    assert not classifier.training


@pytest.mark.parametrize("objective", ["focal", "contrastive", "contrastive_paper", "distillation"])
def test_every_objective_learns(tmp_path, objective):
    config = TrainingConfig(str(tmp_path), epochs=6, batch_size=10, lr=0.05, objective=objective, **QUIET)
    result = train(make_reprogrammer(), Colours(), config)
    assert losses(result)[-1] < losses(result)[0]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_first_steps_equal_those_of_a_plain_loop(tmp_path, optimizer):
    data = Colours(8)
    config = TrainingConfig(
        str(tmp_path), max_steps=3, batch_size=8, optimizer=optimizer, lr=0.01, weight_decay=0.1, warmup_ratio=0.0,
        lr_scheduler="constant", max_grad_norm=0.5, **QUIET,
    )  # fmt: skip
    classifier = make_vit()
    result = train(classifier, data, config)

    oracle = make_vit().train()
    make = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    }
    stepper, expected = make[optimizer](oracle.parameters()), []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(oracle(data.pixels).logits, data.labels)
        expected.append(loss.item())
        loss.backward()
        norm = math.sqrt(sum((p.grad**2).sum().item() for p in oracle.parameters()))
        for p in oracle.parameters():
            p.grad *= min(1.0, 0.5 / norm)
        stepper.step()
        stepper.zero_grad()
    assert losses(result) == pytest.approx(expected, rel=1e-4)
    assert close(trained(classifier), trained(oracle), atol=1e-4 if optimizer == "sgd" else 2e-3)


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path):
    options = {"epochs": 2, "optimizer": "sgd", "lr": 0.1, **QUIET}
    whole, parts = make_vit(), make_vit()
    train(whole, Colours(16), TrainingConfig(str(tmp_path / "a"), batch_size=8, **options))
    result = train(
        parts, Colours(16), TrainingConfig(str(tmp_path / "b"), batch_size=2, gradient_accumulation_steps=4, **options)
    )
    assert result.steps == 4
    assert close(trained(whole), trained(parts), atol=1e-6)


def test_learning_rates_of_frame_and_text_follow_warm_up_and_cosine(tmp_path):
    config = TrainingConfig(
        str(tmp_path), epochs=5, batch_size=10, frame_lr=0.4, text_lr=0.2, warmup_steps=4, **QUIET
    )  # fmt: skip
    history = train(make_reprogrammer(), Colours(), config).history
    for entry in history:
        done = entry["step"]  # the rate that the next step takes
        share = done / 4 if done < 4 else 0.5 * (1 + math.cos(math.pi * (done - 4) / (10 - 4)))
        assert entry["lr_frame"] == pytest.approx(0.4 * share, abs=1e-12)
        assert entry["lr_text"] == pytest.approx(0.2 * share, abs=1e-12)


def test_parameter_groups_have_their_own_rates_and_decays():
    classifier = make_reprogrammer(modules_to_save=["visual_projection"])
    config = TrainingConfig("out", lr=1.0, frame_lr=2.0, text_weight_decay=0.3, weight_decay=0.1)
    groups = {group["name"]: group for group in default_parameter_groups(classifier, config)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "frame": (2.0, 0.1),
        "text": (1.0, 0.3),
        "other": (1.0, 0.1),
    }
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in classifier.parameters() if p.requires_grad)
    assert sum(p.numel() for p in groups["frame"]["params"]) == 3 * (32**2 - 28**2)


def test_given_parameter_groups_are_used(tmp_path):
    classifier = make_vit()
    before = trained(classifier)
    groups = [{"params": list(classifier.classifier.parameters()), "lr": 0.1}]
    config = TrainingConfig(str(tmp_path), epochs=1, **QUIET)
    train(classifier, Colours(), config, parameter_groups=groups)
    changed = {name.split(".")[0] for name, p in trained(classifier).items() if not torch.equal(p, before[name])}
    assert changed == {"classifier"}


@pytest.mark.parametrize("freeze", [True, False])
def test_batch_norm_statistics_stay_if_asked(tmp_path, freeze):
    classifier = make_resnet()
    before = {name: b.clone() for name, b in classifier.named_buffers() if "running" in name}
    train(classifier, Colours(), TrainingConfig(str(tmp_path), epochs=1, freeze_batch_norm=freeze, **QUIET))
    after = {name: b for name, b in classifier.named_buffers() if "running" in name}
    assert equal(before, after) == freeze


def test_bf16_trains_float32_parameters(tmp_path):
    classifier = make_reprogrammer()
    before = trained(classifier)
    config = TrainingConfig(str(tmp_path), max_steps=2, batch_size=10, mixed_precision="bf16", **QUIET)
    result = train(classifier, Colours(), config)
    assert all(p.dtype == torch.float32 for p in trained(classifier).values())
    assert not close(before, trained(classifier), atol=1e-6)
    assert all(math.isfinite(loss) for loss in losses(result))
    assert json.loads((tmp_path / "results.json").read_text())["mixed_precision"] == "bf16"


def test_mixed_precision_ends_with_the_training(tmp_path):
    classifier = make_vit()
    pixel_values = torch.stack([Colours()[i]["pixel_values"] for i in range(6)])
    train(classifier, Colours(), TrainingConfig(str(tmp_path), epochs=1, mixed_precision="bf16", **QUIET))
    with torch.no_grad():
        logits = classifier(pixel_values=pixel_values).logits
        fresh = make_vit()
        fresh.load_state_dict(classifier.state_dict())
        assert torch.equal(logits, fresh.eval()(pixel_values=pixel_values).logits)
    assert not torch.equal(logits, logits.bfloat16().float())


def test_one_seed_one_result_another_seed_another(tmp_path):
    def run(name, seed):
        classifier = make_reprogrammer(frame_dropout=0.3)
        config = TrainingConfig(str(tmp_path / name), epochs=2, batch_size=4, lr=0.01, seed=seed, **QUIET)
        return losses(train(classifier, Colours(), config)), trained(classifier)

    first, again, other = run("a", 0), run("b", 0), run("c", 1)
    assert first[0] == again[0]
    assert equal(first[1], again[1])
    assert first[0] != other[0]


# --- selection -----------------------------------------------------------------------------------------------------


def test_the_best_epoch_on_validation_rows_is_kept(tmp_path):
    classifier, validation = make_vit(), Colours(30, seed=1)
    # The rate is far too high, so that later epochs are worse than earlier ones.
    config = TrainingConfig(str(tmp_path), epochs=6, batch_size=5, lr=0.5, selection="val", **QUIET)
    result = train(classifier, Colours(), config, validation=validation)
    figures = {e["epoch"]: e["val_accuracy"] for e in result.history if "val_accuracy" in e}
    assert result.selected_epoch == max(figures, key=lambda epoch: (figures[epoch], -epoch)) < 6
    assert set(figures) == set(range(7))
    with torch.no_grad():
        hits = classifier(pixel_values=validation.pixels).logits.argmax(-1) == validation.labels
    assert hits.double().mean().item() == result.validation["accuracy"] == figures[result.selected_epoch]
    saved = ViTForImageClassification.from_pretrained(tmp_path)
    assert equal(trained(classifier), trained(saved))


def test_selection_by_validation_needs_validation_rows(tmp_path):
    with pytest.raises(ValueError, match="give validation data"):
        train(make_vit(), Colours(), TrainingConfig(str(tmp_path / "a"), selection="val"))
    assert not (tmp_path / "a").exists()


# --- interruption --------------------------------------------------------------------------------------------------

RUNS = {
    # 20 images in batches of 4: 5 steps an epoch, 15 in all.
    "adapter": (
        make_reprogrammer,
        {"frame_dropout": 0.3},
        {"batch_size": 4, "selection": "val", "checkpoint_steps": 2},
    ),
    "whole model": (make_vit, {"hidden_dropout_prob": 0.2}, {"batch_size": 4, "checkpoint_steps": 3}),
    "an epoch": (make_vit, {"hidden_dropout_prob": 0.2}, {"batch_size": 4, "logging_steps": 4}),
    "accumulated": (
        make_vit,
        {"hidden_dropout_prob": 0.2},
        {"batch_size": 3, "gradient_accumulation_steps": 2, "checkpoint_steps": 2},
    ),
    "batch norm": (make_resnet, {}, {"batch_size": 4, "freeze_batch_norm": False, "checkpoint_steps": 2}),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("interrupt_at", [33, 51])
def test_a_continued_run_gives_the_same_result_bit_for_bit(tmp_path, run, interrupt_at, capsys):
    make, fields, options = RUNS[run]
    config = {"epochs": 3, "lr": 0.01, **QUIET, **options}

    uninterrupted = make(**fields)
    expected = train(
        uninterrupted, Colours(), TrainingConfig(str(tmp_path / "a"), **config), validation=Colours(9, seed=1)
    )

    out = TrainingConfig(str(tmp_path / "b"), **config)
    with pytest.raises(KeyboardInterrupt):
        train(make(**fields), Colours(interrupt_at=interrupt_at), out, validation=Colours(9, seed=1))
    assert "is whole: the same command with `resume` continues" in capsys.readouterr().out
    assert not (tmp_path / "b" / "results.json").exists()
    torch.manual_seed(99)  # another process has another state
    continued = make(**fields)
    result = train(continued, Colours(), out, validation=Colours(9, seed=1), resume=True)

    assert result.history == expected.history
    assert (result.steps, result.selected_epoch) == (expected.steps, expected.selected_epoch)
    assert equal(trained(continued), trained(uninterrupted))
    assert equal(dict(continued.named_buffers()), dict(uninterrupted.named_buffers()))


def test_an_interrupted_checkpoint_leaves_the_one_before_whole(tmp_path, monkeypatch):
    expected = train(make_vit(), Colours(), TrainingConfig(str(tmp_path / "a"), epochs=2, batch_size=4, **QUIET))

    from accelerate import Accelerator

    save_state, calls = Accelerator.save_state, []

    def interrupted(self, *args, **kwargs):
        save_state(self, *args, **kwargs)
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    config = TrainingConfig(str(tmp_path / "b"), epochs=2, batch_size=4, checkpoint_steps=2, **QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(make_vit(), Colours(), config)
    assert [path.name for path in (tmp_path / "b" / "checkpoints").glob("step-*")] == ["step-4"]
    result = train(make_vit(), Colours(), config, resume=True)
    assert losses(result) == losses(expected)
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["step-10"]


def test_an_interrupted_save_leaves_no_half_adapter(tmp_path, monkeypatch):
    classifier = make_reprogrammer()
    config = TrainingConfig(str(tmp_path / "out"), epochs=1, batch_size=10, **QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(ImagePreprocessor, "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(classifier, Colours(), config, ImagePreprocessor(CLIPImageProcessorPil()))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoints", "run.json"]
    train(make_reprogrammer(), Colours(), config, ImagePreprocessor(CLIPImageProcessorPil()), resume=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_an_early_interruption_says_that_there_is_no_checkpoint(tmp_path, capsys):
    config = TrainingConfig(str(tmp_path / "out"), epochs=1, batch_size=4, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        train(make_vit(), Colours(interrupt_at=5), config)
    assert "before the first checkpoint: `resume` starts again" in capsys.readouterr().out
    assert train(make_vit(), Colours(), config, resume=True).steps == 5


def test_only_the_latest_checkpoints_stay_and_hold_no_frozen_weight(tmp_path):
    classifier = make_reprogrammer()
    config = TrainingConfig(str(tmp_path), epochs=1, batch_size=4, checkpoint_steps=1, keep_checkpoints=2, **QUIET)
    train(classifier, Colours(), config)
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == ["step-4", "step-5"]
    stored = load_file(tmp_path / "checkpoints" / "step-5" / "trained.safetensors")
    assert {name for name in stored if name in dict(classifier.named_parameters())} == set(trained(classifier))
    assert not list((tmp_path / "checkpoints" / "step-5").glob("model*"))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    config = TrainingConfig(str(tmp_path), epochs=1, batch_size=4, **QUIET)
    first, again = make_vit(), make_vit()
    expected = train(first, Colours(), config)
    result = train(again, Colours(), config, resume=True)
    assert result.history == expected.history
    assert equal(trained(first), trained(again))


# --- the output directory ------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    train(make_vit(), Colours(), TrainingConfig(str(tmp_path), epochs=1, **QUIET), recipe={"shots": 16})
    return tmp_path


def test_a_run_is_not_written_over_by_itself(finished):
    with pytest.raises(FileExistsError, match="`resume` continues it, `overwrite` starts it again"):
        train(make_vit(), Colours(), TrainingConfig(str(finished), epochs=1, **QUIET), recipe={"shots": 16})


@pytest.mark.parametrize("resume", [True, False])
def test_another_run_is_neither_continued_nor_written_over(finished, resume):
    before = (finished / "results.json").read_bytes()
    config = TrainingConfig(str(finished), epochs=2, **QUIET)
    with pytest.raises(FileExistsError, match=r"another run.*epochs: 1 there, 2 now.*recipe: .*16.* there, .*1.* now"):
        train(make_vit(), Colours(), config, recipe={"shots": 1}, resume=resume)
    assert (finished / "results.json").read_bytes() == before


def test_a_run_can_be_discarded(finished):
    config = TrainingConfig(str(finished), epochs=2, batch_size=10, **QUIET)
    assert train(make_vit(), Colours(), config, overwrite=True).steps == 4
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["step-4"]


def test_a_discarded_run_leaves_nothing_that_passes_for_the_new_one(finished):
    stale = ["README.md", "evaluation.json", "ood_threshold.json", "ood_score.safetensors", "calibration.json",
             "calibration_score.safetensors", "gamma.json", "adapter_model.safetensors", "adapter_config.json",
             "pictures/frame.png", "pictures/roc_adapter.png"]  # fmt: skip
    own = ["notes.md", "evaluation-of-me.json", "pictures/holiday.png", "thesis/README.md"]
    for name in stale + own:
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).write_text("old")
    train(make_vit(), Colours(), TrainingConfig(str(finished), epochs=2, **QUIET), overwrite=True)
    assert [name for name in stale if (finished / name).exists()] == []
    assert [(finished / name).read_text() for name in own] == ["old"] * len(own)
    assert (finished / "model.safetensors").is_file()


def test_files_that_no_run_left_are_kept(tmp_path):
    (tmp_path / "README.md").write_text("years of work")
    (tmp_path / "pictures").mkdir()
    train(make_vit(), Colours(), TrainingConfig(str(tmp_path), epochs=1, **QUIET), overwrite=True)
    assert (tmp_path / "README.md").read_text() == "years of work"
    assert (tmp_path / "pictures").is_dir()


@pytest.mark.parametrize(("rows", "images"), [(5, 10), (20, 32)])
def test_speed_counts_the_images_that_were_seen(tmp_path, rows, images):
    # 5 rows make one small batch, 20 rows two of 8; the last four are dropped.
    result = train(make_vit(), Colours(rows), TrainingConfig(str(tmp_path), epochs=2, batch_size=8, **QUIET))
    assert result.images_per_second * result.seconds == pytest.approx(
        images, rel=0.2
    )  # seconds are rounded to milliseconds


def test_what_does_not_change_the_result_may_change(finished):
    config = TrainingConfig(str(finished), epochs=1, progress_bar=False, logging_steps=1, keep_checkpoints=5)
    train(make_vit(), Colours(), config, recipe={"shots": 16}, resume=True)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds files but no run"):
        train(make_vit(), Colours(), TrainingConfig(str(tmp_path), **QUIET), resume=True)
    train(make_vit(), Colours(), TrainingConfig(str(tmp_path), epochs=1, **QUIET), overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(FileExistsError, match="is a file"):
        train(make_vit(), Colours(), TrainingConfig(str(tmp_path / "thesis.tex"), **QUIET))


def test_the_output_is_complete_and_loads_to_the_same_logits(tmp_path):
    classifier, data = make_reprogrammer(), Colours()
    preprocess = ImagePreprocessor(CLIPImageProcessorPil(size=32, crop_size=32), source_resolution=16)
    config = TrainingConfig(str(tmp_path), epochs=2, batch_size=10, lr=0.05, seed=3, **QUIET)
    result = train(classifier, data, config, preprocess, recipe={"method": "reprogrammer"})
    loaded = ZeroShotClassifier.from_pretrained(tmp_path, model=make_clip())
    with torch.no_grad():
        assert torch.equal(loaded(data.pixels).logits, classifier(data.pixels).logits)
    assert loaded.class_names == CLASSES
    assert ImagePreprocessor.from_pretrained(tmp_path).source_resolution == 16
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["history"] == result.history
    assert written["recipe"] == {"method": "reprogrammer"}
    assert (written["seed"], written["selection"], written["config"]["lr"]) == (3, "last", 0.05)
    assert written["versions"]["torch"] == torch.__version__
    assert written["seconds"] > 0


# --- images from files ---------------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path):
    def png(label, i):
        buffer = io.BytesIO()
        colour = [20 * (i % 5)] * 3
        colour[label] = 255
        PIL.new("RGB", (24, 24), tuple(colour)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    columns = {"image": [png(i % 3, i) for i in range(30)], "label": [i % 3 for i in range(30)]}
    path = tmp_path / "data.parquet"
    Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=CLASSES)})).to_parquet(
        path
    )
    return path


@pytest.fixture
def preprocess():
    return ImagePreprocessor(CLIPImageProcessorPil(size=32, crop_size=32))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_read_the_same_with_and_without_workers(tmp_path, parquet, preprocess, workers):
    data = load_image_data(parquet, split="train")
    options = {"epochs": 2, "batch_size": 8, "lr": 0.05, "seed": 1, **QUIET}
    reference = train(make_reprogrammer(), data, TrainingConfig(str(tmp_path / "a"), **options), preprocess)
    config = TrainingConfig(str(tmp_path / "b"), num_workers=workers, **options)
    result = train(make_reprogrammer(), data, config, preprocess, validation=data)
    assert losses(result) == losses(reference)
    assert result.steps == 6


def test_a_stream_trains_past_its_end_and_continues_to_the_same_result(tmp_path, parquet, preprocess, monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)

    def run(name, **options):
        classifier = make_reprogrammer()
        data = load_image_data(parquet, split="train", streaming=True)
        config = TrainingConfig(str(tmp_path / name), max_steps=9, batch_size=8, lr=0.05, checkpoint_steps=2, **QUIET)
        return losses(train(classifier, data, config, preprocess, **options)), trained(classifier)

    expected = run("a")
    assert len(expected[0]) == 9
    assert expected[0][-1] < expected[0][0]

    calls, prepare = [], ImagePreprocessor.__call__

    def interrupt(self, images):
        calls.append(images)
        if len(calls) == 45:
            raise KeyboardInterrupt
        return prepare(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(ImagePreprocessor, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("b")
    result = run("b", resume=True)
    assert result[0] == expected[0]
    assert equal(result[1], expected[1])


def test_a_stream_needs_a_number_of_steps(tmp_path, parquet, preprocess):
    data = load_image_data(parquet, split="train", streaming=True)
    with pytest.raises(ValueError, match="give `max_steps`"):
        train(make_reprogrammer(), data, TrainingConfig(str(tmp_path)), preprocess)


def test_unprepared_images_need_a_preprocessor_and_labels(tmp_path, parquet, preprocess):
    with pytest.raises(ValueError, match="`preprocess` is required"):
        train(make_reprogrammer(), load_image_data(parquet, split="train"), TrainingConfig(str(tmp_path)))
    unlabelled = load_image_data(parquet, split="train", labelled=False)
    with pytest.raises(ValueError, match="without labels"):
        train(make_reprogrammer(), unlabelled, TrainingConfig(str(tmp_path)), preprocess)


# --- what is done before each epoch --------------------------------------------------------------------------------


def one_group_each(classifier, rate):
    return [{"params": [p], "lr": rate} for p in classifier.parameters() if p.requires_grad]


def test_base_rates_set_before_an_epoch_hold_from_its_first_step(tmp_path):
    calls = []

    def halve(epoch, optimizer, scheduler, batches):
        calls.append((epoch, optimizer.param_groups[0]["lr"]))
        scheduler.base_lrs = [0.01 * 0.5**epoch] * len(scheduler.base_lrs)

    classifier = make_vit()
    config = TrainingConfig(str(tmp_path), epochs=3, batch_size=10, lr_scheduler="linear", warmup_steps=0, **QUIET)
    result = train(
        classifier, Colours(), config, parameter_groups=one_group_each(classifier, 1.0), on_epoch_start=halve
    )
    assert [epoch for epoch, _ in calls] == [0, 1, 2]
    # Recorded after each of the 6 steps: the base rate of its epoch, times what is left of the linear decline.
    rates = [entry["lr_0"] for entry in result.history]
    expected = [0.01 * 0.5 ** (step // 2) * (6 - step - 1) / 6 for step in range(6)]
    assert rates == pytest.approx(expected)
    # A tensor whose base rate is 0 from the first step on never moves.
    frozen = make_vit()
    before = trained(frozen)

    def freeze(epoch, optimizer, scheduler, batches):
        scheduler.base_lrs = [0.0] * len(scheduler.base_lrs)

    config = TrainingConfig(str(tmp_path / "frozen"), epochs=1, batch_size=10, warmup_steps=0, **QUIET)
    train(frozen, Colours(), config, parameter_groups=one_group_each(frozen, 1.0), on_epoch_start=freeze)
    assert equal(trained(frozen), before)


def test_batches_looked_at_before_an_epoch_leave_the_run_as_it_is(tmp_path):
    seen = []

    def look(epoch, optimizer, scheduler, batches):
        twice = [[batch["labels"].tolist() for batch in batches] for _ in range(2)]
        assert twice[0] == twice[1]
        seen.append(twice[0])

    config = {"epochs": 2, "batch_size": 6, "lr": 0.01, **QUIET}
    expected = train(make_vit(hidden_dropout_prob=0.2), Colours(), TrainingConfig(str(tmp_path / "a"), **config))
    result = train(
        make_vit(hidden_dropout_prob=0.2),
        Colours(),
        TrainingConfig(str(tmp_path / "b"), **config),
        on_epoch_start=look,
    )
    assert result.history == expected.history
    assert [len(epoch) for epoch in seen] == [3, 3]
    assert all(len(labels) == 6 for epoch in seen for labels in epoch)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("interrupt_at", [33, 60, 71])
def test_a_run_with_rates_of_its_gradients_continues_to_the_same_result(tmp_path, interrupt_at):
    # 20 images to look at before each epoch and 20 to train on, in batches of 4.
    def run(name, **options):
        classifier = make_vit(hidden_dropout_prob=0.2)

        def measure(epoch, optimizer, scheduler, batches):
            first, second, *_ = batches
            parameters = [group["params"][0] for group in optimizer.param_groups]
            loss = classifier(**first).loss + classifier(**second).loss
            norms = [gradient.norm().item() for gradient in torch.autograd.grad(loss, parameters)]
            scheduler.base_lrs = [0.01 * norm / max(norms) for norm in norms]
            if epoch == 2:
                optimizer.state.clear()

        result = train(
            classifier,
            options.pop("data", Colours()),
            TrainingConfig(str(tmp_path / name), epochs=3, batch_size=4, checkpoint_steps=2, **QUIET),
            parameter_groups=one_group_each(classifier, 0.01),
            on_epoch_start=measure,
            **options,
        )
        return result.history, trained(classifier)

    expected = run("a")
    with pytest.raises(KeyboardInterrupt):
        run("b", data=Colours(interrupt_at=interrupt_at))
    torch.manual_seed(99)
    history, weights = run("b", resume=True)
    assert history == expected[0]
    assert equal(weights, expected[1])


def test_a_stream_has_no_epochs_to_act_before(tmp_path, parquet, preprocess):
    data = load_image_data(parquet, split="train", streaming=True)
    config = TrainingConfig(str(tmp_path), max_steps=2)
    with pytest.raises(ValueError, match="a stream has no epochs"):
        train(make_vit(), data, config, preprocess, on_epoch_start=lambda *_: None)


# --- what does not fit ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    data = Colours()
    data.pixels[3] = math.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan after step .* Lower the learning rates"):
        train(make_vit(), data, TrainingConfig(str(tmp_path), epochs=1, **QUIET))


def test_a_model_without_trainable_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        train(make_vit().requires_grad_(False), Colours(), TrainingConfig(str(tmp_path)))


def test_an_objective_for_a_model_with_its_own_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has a loss of its own"):
        train(make_vit(), Colours(), TrainingConfig(str(tmp_path), objective="focal"))


def test_no_images_are_refused(tmp_path):
    nothing = torch.utils.data.Subset(Colours(), [])
    with pytest.raises(ValueError, match="no images to train or validate on"):
        train(make_vit(), nothing, TrainingConfig(str(tmp_path)))
    with pytest.raises(ValueError, match="no images to train or validate on"):
        train(make_vit(), Colours(), TrainingConfig(str(tmp_path)), validation=nothing)


def test_unknown_trackers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trackers \['scrapbook'\] are not installed"):
        train(make_vit(), Colours(), TrainingConfig(str(tmp_path), trackers=["scrapbook"]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own imports
def test_tensorboard_holds_losses_and_validation(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainingConfig(str(tmp_path), epochs=2, batch_size=10, trackers=["tensorboard"], **QUIET)
    result = train(make_vit(), Colours(), config, validation=Colours(9, seed=1))
    events = EventAccumulator(str(next(Path(tmp_path, "logs").rglob("events*")).parent))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(result))
    assert len(events.Scalars("val_accuracy")) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a number of at least 1"),
        ({"batch_size": 0}, "`batch_size` must be a number of at least 1"),
        ({"lr": "fast"}, "`lr` must be a number of at least 0, got .fast."),
        ({"lr": -1.0}, "`lr` must be a number of at least 0"),
        ({"warmup_ratio": 1.5}, "between 0 and 1"),
        ({"optimizer": "lion"}, "`optimizer` must be one of"),
        ({"selection": "test"}, "`selection` must be one of"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of"),
        ({"adam_betas": [0.9]}, "`adam_betas` must be two numbers"),
    ],
)
def test_options_out_of_range_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig("out", **option)
