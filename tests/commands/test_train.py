import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from peft import PeftModel
from PIL import Image as PIL
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from peft_reprogram import ZeroShotClassifier
from peft_reprogram.command_line import parse_config


sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_client import developers_cache, talk_to, use_cache  # noqa: F401 (a fixture)
from hub_server import HubServer


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train.py"
CLASSES = ["red", "green", "blue"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def script():
    from peft_reprogram.commands import train

    return train


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "photo", "of", *CLASSES]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]",
        model_max_length=12,
    ).save_pretrained(folder)  # fmt: skip
    CLIPImageProcessorPil(size=32, crop_size=32).save_pretrained(folder)
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """48 images of three colours, sorted by class."""

    def png(label, i):
        buffer = io.BytesIO()
        colour = [15 * (i % 7)] * 3
        colour[label] = 200 + i
        PIL.new("RGB", (24, 24), tuple(colour)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    labels = sorted(i % 3 for i in range(48))
    columns = {"image": [png(label, i) for i, label in enumerate(labels)], "label": labels}
    path = tmp_path_factory.mktemp("data") / "colours.parquet"
    Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=CLASSES)})).to_parquet(
        path
    )
    return str(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def flags(clip, colours, output_dir, *more):
    common = ["--epochs", "2", "--batch_size", "6", "--lr", "0.05", "--no_progress_bar", "--logging_steps", "1"]
    return ["--model", clip, "--dataset", colours, "--output_dir", str(output_dir), *common, *map(str, more)]


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def losses(folder):
    return [entry["loss"] for entry in results(folder)["history"] if "loss" in entry]


@pytest.mark.parametrize("method", ["reprogrammer", "residual_reprogrammer"])
def test_flags_alone_train_an_adapter_that_loads(script, clip, colours, tmp_path, method):
    out = tmp_path / "out"
    more = ("--method", method, "--shots", 6, "--validation_fraction", 0.25, "--template", "a photo of a {}", "a {}")
    result = script.main(flags(clip, colours, out, *more))
    assert result.steps == 6
    written = results(out)
    assert written["recipe"]["method"] == method
    assert written["recipe"]["class_names"] == CLASSES
    assert written["recipe"]["shots"] == 6
    classifier = ZeroShotClassifier.from_pretrained(out)
    assert (classifier.class_names, classifier.templates) == (CLASSES, ["a photo of a {}", "a {}"])
    assert classifier.model.peft_config["default"].peft_type == method.upper()
    assert isinstance(PeftModel.from_pretrained(AutoModel.from_pretrained(clip), out), PeftModel)


def test_a_file_and_flags_give_the_same_run_and_flags_win(script, clip, colours, tmp_path):
    file = tmp_path / "config.yaml"
    content = {
        "model": clip, "dataset": colours, "epochs": 7, "batch_size": 6, "lr": "5e-2", "shots": 6, "resume": False,
        "template": ["a photo of a {}"], "method_options": {"frame_inner": 20}, "progress_bar": False, "max_steps": None,
        "logging_steps": 1, "objective": "focal", "objective_options": {"gamma": 1.0}, "trackers": [],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    script.main(["--config", str(file), "--output_dir", str(tmp_path / "a"), "--epochs", "2"])
    more = ("--shots", 6, "--method-options", '{"frame_inner": 20}', "--objective", "focal")
    script.main(flags(clip, colours, tmp_path / "b", *more, "--objective_options", '{"gamma": 1.0}'))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert results(tmp_path / "a")["config"]["epochs"] == 2
    assert results(tmp_path / "a")["trainable_parameters"] >= 3 * (32**2 - 20**2)


def test_the_seed_draws_the_shots_and_the_validation_rows(script, clip, colours, tmp_path):
    def rows(seed):
        task = script.TaskConfig(clip, colours, shots=4, validation_fraction=0.25, validation_shots=2)
        training, validation = script.load_data(task, seed)
        assert not set(training.rows) & set(validation.rows)
        return training.rows.tolist(), validation.rows.tolist()

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert [len(part) for part in rows(0)] == [12, 6]


def test_a_classifier_gets_a_new_head_for_new_classes(script, colours, tmp_path):
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**TOWER, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    script.main(flags(str(tmp_path / "vit"), colours, tmp_path / "out", "--epochs", 15))
    assert losses(tmp_path / "out")[-1] < 0.5 * losses(tmp_path / "out")[0]
    base = ViTForImageClassification.from_pretrained(tmp_path / "vit", num_labels=3, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    assert any("modules_to_save" in name for name, _ in model.named_parameters())


def test_shipped_configurations_hold_known_keys(script, clip, colours, tmp_path):
    for file in (SCRIPT.parent / "configs").glob("train_*.yaml"):
        more = ["--model", clip, "--dataset", colours, "--output_dir", str(tmp_path / "out")]
        kinds = (script.TaskConfig, script.TrainingConfig, script.RunConfig)
        task, training, _ = parse_config(kinds, ["--config", str(file), *more])
        assert (task.model, training.output_dir) == (clip, str(tmp_path / "out"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        use_cache(monkeypatch, tmp_path / "huggingface")
        talk_to(server, monkeypatch)
        yield server


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_a_trained_adapter_is_published_with_the_revision_of_its_base(script, clip, colours, tmp_path, hub, capsys):
    hub_flags = ("--push_to_hub", "alice/colours", "--hub_private", "--hub_base_model", "alice/not-here")
    script.main(flags(clip, colours, tmp_path / "out", "--epochs", 1, "--model_revision", "v1", *hub_flags))
    files = hub.files("alice/colours")
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("alice/not-here", "v1")
    assert files["adapter_model.safetensors"] == (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert b"base_model: alice/not-here" in files["README.md"]
    assert hub.repositories["model", "alice/colours"].private
    assert "Published: http" in capsys.readouterr().out


def test_a_base_model_that_others_lack_is_refused_before_training(script, clip, colours, tmp_path):
    with pytest.raises(ValueError, match="give its name on the Hub as `hub_base_model`"):
        script.main(flags(clip, colours, tmp_path / "out", "--push_to_hub", "alice/colours"))
    assert not (tmp_path / "out").exists()


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rate: 1", r"unknown keys \['learning_rate'\]; the known ones are model, dataset"),
        ("- model", "must hold lines of `name: value`, not a list"),
        ("a: [", "is no YAML"),
        ("method: lora9", "no method 'lora9'. Choose one of reprogrammer"),
        ("epochs: 0", "`epochs` must be a number of at least 1"),
        ("{validation_split: test, validation_fraction: 0.1}", "exclude each other"),
        ("method_options: {frame_size: 3}", r"no option \['frame_size'\]. Its options are"),
        ("objective_options: {gamma: 3}", r"no option \['gamma'\]"),
        ("shots: 17", "fewer images of 'red'"),
        ("class_names: [red, green]", "has the classes 'blue'"),
        ("template: a photo", "must contain `{}`"),
        ("validation_split: test", "one file without splits"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(script, clip, colours, tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        script.main(["--config", str(file), *flags(clip, colours, tmp_path / "out")[:6]])
    assert not (tmp_path / "out").exists()


def test_unknown_flags_are_answered_with_the_known_ones(script, clip, colours, tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown arguments --learning_rate 1; the known flags are --model, --dataset"
    ):
        script.main(flags(clip, colours, tmp_path / "out", "--learning_rate", "1"))


def test_a_missing_flag_is_named_on_one_screen(script, clip, capsys):
    with pytest.raises(SystemExit):
        script.main(["--model", clip])
    message = capsys.readouterr().err
    assert "required: --dataset, --output_dir" in message
    assert len(message.splitlines()) < 5


@pytest.mark.parametrize("value", ["[1, 2]", "{gamma: 2"])
def test_options_that_are_no_json_object_are_shown(script, clip, colours, tmp_path, capsys, value):
    with pytest.raises(SystemExit):
        script.main(flags(clip, colours, tmp_path / "out", "--objective_options", value))
    message = capsys.readouterr().err
    assert "objective-options: must be a JSON object such as" in message
    assert value in message


def test_a_mistyped_model_is_answered_without_traceback(colours, tmp_path):
    command = [sys.executable, str(SCRIPT), *flags("nobody/no-such-model", colours, tmp_path / "out")]
    done = subprocess.run(
        command, env={**environment(tmp_path), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "nobody/no-such-model" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_data_set_is_named(script, clip, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no '.*nowhere'"):
        script.main(flags(clip, str(tmp_path / "nowhere"), tmp_path / "out"))


def test_a_missing_file_is_named(script, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*nowhere.yaml"):
        script.main(["--config", str(tmp_path / "nowhere.yaml")])


# --- as a program --------------------------------------------------------------------------------------------------

# `accelerate launch` starts several CPU processes only through MPI; torchrun does without.
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def environment(tmp_path):
    return {
        **os.environ,
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_with_a_batch_as_large(clip, colours, tmp_path):
    def launch(name, processes, batch_size):
        command = [*LAUNCH, str(processes), str(SCRIPT)]
        more = ("--batch_size", batch_size, "--validation_fraction", 0.25, "--checkpoint_steps", 2)
        done = subprocess.run(
            [*command, *flags(clip, colours, tmp_path / name, *more)],
            env=environment(tmp_path), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return results(tmp_path / name)

    one, two = launch("one", 1, 12), launch("two", 2, 6)
    assert (one["processes"], two["processes"]) == (1, 2)
    for key in ("loss", "val_accuracy", "val_loss"):
        values = [[entry[key] for entry in run["history"] if key in entry] for run in (one, two)]
        assert len(values[0]) >= 3
        assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_from_which_the_same_command_continues(clip, colours, tmp_path):
    def command(name, *more):
        return [sys.executable, str(SCRIPT), *flags(clip, colours, tmp_path / name, "--epochs", 60, *more)]

    subprocess.run(command("whole"), env=environment(tmp_path), check=True, capture_output=True)
    run = subprocess.Popen(command("cut"), env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "cut" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert "the same command with `resume` continues from it" in run.communicate(timeout=60)[0]
    assert run.returncode == 130
    assert not (tmp_path / "cut" / "results.json").exists()
    subprocess.run(command("cut", "--resume"), env=environment(tmp_path), check=True, capture_output=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_mistake_is_answered_in_one_line(clip, colours, tmp_path):
    command = [sys.executable, str(SCRIPT), *flags(clip, colours, tmp_path / "out", "--shots", 17)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: 17 shots were asked for")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the package's wheel was installed into, without the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "peft_reprogram", folder / "source" / "peft_reprogram", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    without = ["--no-deps", "--no-index", "--quiet"]
    subprocess.run(
        [*pip, "wheel", *without, "--no-build-isolation", "-w", folder, folder / "source"], check=True, timeout=300
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *without, "--target", folder / "site", wheel], check=True, timeout=300)
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_trains_without_a_checkout(installed, clip, colours, tmp_path):
    def python(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True,
            env={**environment(tmp_path), "PYTHONPATH": str(installed)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(python("-c", "print(__import__('peft_reprogram').__file__)").strip()).is_relative_to(installed)
    for name in ("train", "evaluate"):
        assert f"peft-reprogram {name} " in python("-m", "peft_reprogram.cli", name, "--help")
    assert "Written to by-cli." in python("-m", "peft_reprogram.cli", "train", *flags(clip, colours, "by-cli"))
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "-m", "peft_reprogram.commands.train")
    python(*launcher, *flags(clip, colours, "by-accelerate"))
    assert losses(tmp_path / "by-cli") == losses(tmp_path / "by-accelerate")
    assert results(tmp_path / "by-cli")["command"].startswith("python -m peft_reprogram.cli train --model ")
    assert results(tmp_path / "by-accelerate")["command"].startswith(
        "python -m peft_reprogram.commands.train --model "
    )
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "by-cli")
    assert classifier.class_names == CLASSES
