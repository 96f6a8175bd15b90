"""The two studies in miniature: one command, and a killed one goes on to the same table."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PIL
from transformers import CLIPImageProcessorPil, ResNetConfig, ResNetForImageClassification

from peft_reprogram.demo.pretraining import build_model, build_tokenizer


SCRIPTS = Path(__file__).parents[2] / "scripts"
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven"]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where the argument parser looks the types of its fields up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def surgical():
    yield load_script("study_surgical")
    del sys.modules["study_surgical"]


@pytest.fixture(scope="module")
def calibration():
    yield load_script("study_calibration")
    del sys.modules["study_calibration"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two tiny models and two sets of noise whose brightness tells the class."""
    folder = tmp_path_factory.mktemp("root")
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(folder / "models/text-image")
    tokenizer.save_pretrained(folder / "models/text-image")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1], layer_type="basic", num_labels=9)
    ResNetForImageClassification(config).save_pretrained(folder / "models/resnet")
    for name in ("text-image", "resnet"):
        processor.save_pretrained(folder / "models" / name)

    def save(path, count, seed):
        rng = np.random.default_rng(seed)
        labels = [i % len(CLASSES) for i in range(count)]
        images = [PIL.fromarray((rng.integers(0, 90, (16, 16, 3)) + 22 * label).astype(np.uint8)) for label in labels]
        features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)

    save(folder / "data/source/train-0.parquet", 64, 0)
    save(folder / "data/source/test-0.parquet", 64, 1)
    save(folder / "data/style/test-0.parquet", 40, 2)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def interrupt_at(monkeypatch, owner, name, call):
    """Interrupts at so many calls of a method."""
    original, calls = getattr(owner, name), []

    def method(self, *arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, method)


def flags_of(options):
    flags = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return flags


def surgical_flags(root, out, **options):
    common = {
        "models": ["models/resnet", "models/text-image"], "source": "data/source", "corruptions": ["contrast"],
        "shifted": {"style": "data/style"}, "strategies": ["first", "auto_rgn"], "image_size": 32,
        "source_resolution": 16, "source_rows": 24, "source_epochs": 1, "target_rows": 12, "validation_rows": 8,
        "test_rows": 16, "epochs": 1, "batch_size": 6, "lrs": [0.001, 0.01], "seeds": [0, 1], "mixed_precision": "no",
    }  # fmt: skip
    return flags_of({"root": root, "output_dir": out, **common, **options})


def test_surgical_study_goes_on_to_the_same_table(surgical, root, tmp_path, monkeypatch):
    whole = surgical.main(surgical_flags(root, tmp_path / "whole"))
    # 2 models x 3 shifts: 2 strategies x (2 rates, then 1), and the source model with each seed.
    assert len(whole["table"]) == 2 * 3 * (2 + 1)
    lines = (tmp_path / "whole" / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 2 * (1 + 3 * (2 * 3 + 2))
    kinds = {row["shift"]: row["kind"] for row in whole["table"]}
    assert kinds == {"contrast": "input", "style": "feature", "flip": "output"}

    killed = surgical_flags(root, tmp_path / "killed")
    with monkeypatch.context() as patch:
        interrupt_at(patch, surgical.Study, "_measure", 30)
        with pytest.raises(KeyboardInterrupt):
            surgical.main(killed)
    done = len((tmp_path / "killed" / "cells.jsonl").read_text().splitlines())
    assert 0 < done < len(lines)
    trainings = []
    with monkeypatch.context() as patch:
        train = surgical.train
        patch.setattr(surgical, "train", lambda *args, **options: trainings.append(1) or train(*args, **options))
        surgical.main(killed)
    sources = 1  # the first model's was there
    without_training = sum(json.loads(line)["cell"]["strategy"] == "none" for line in lines[done:])
    assert len(trainings) == len(lines) - done - without_training + sources
    table = (tmp_path / "whole" / "table.md").read_text()
    assert (tmp_path / "killed" / "table.md").read_text() == table
    for name in ("accuracy.png", "accuracy.svg"):
        assert (tmp_path / "killed" / name).stat().st_size > 5_000
    # A finished study is only reported again, and further seeds are added to it.
    with monkeypatch.context() as patch:
        patch.setattr(surgical, "train", None)
        surgical.main(killed)


def test_surgical_results_are_those_of_the_cells(surgical, root, tmp_path):
    one = {"models": ["models/resnet"], "shifted": {}, "strategies": ["first", "head"]}
    results = surgical.main(surgical_flags(root, tmp_path / "out", **one))
    cells = [json.loads(line) for line in (tmp_path / "out" / "cells.jsonl").read_text().splitlines()]
    for row in results["table"]:
        own = [c for c in cells if (c["cell"]["shift"], c["cell"]["strategy"]) == (row["shift"], row["strategy"])]
        if row["strategy"] != "none":
            tried = [c for c in own if c["cell"]["seed"] == 0]
            best = max(tried, key=lambda c: (c["val_accuracy"], -c["val_loss"]))
            assert row["lr"] == best["cell"]["lr"]
            own = [c for c in own if c["cell"]["lr"] == row["lr"]]
        assert row["accuracy"] == [c["accuracy"] for c in sorted(own, key=lambda c: c["cell"]["seed"])]


def test_targets_are_disjoint_and_flip_turns_labels_alone(surgical, root, tmp_path):
    (config,) = surgical.parse_config((surgical.StudyConfig,), surgical_flags(root, tmp_path))
    study = surgical.Study(config)
    plain, flip = study._target("models/resnet", "source").test, study._target("models/resnet", "flip").test
    assert torch.equal(plain.pixel_values, flip.pixel_values)
    assert torch.equal(plain.labels, 7 - flip.labels)
    train_set, validation = study._target("models/resnet", "source").draw(config, 5)
    images = torch.cat([plain.pixel_values, train_set.pixel_values, validation.pixel_values]).flatten(1)
    assert len(images.unique(dim=0)) == len(images) == 16 + 12 + 8


def test_average_rank_by_hand(surgical):
    def row(shift, strategy, accuracy):
        return {"model": "m", "shift": shift, "kind": "input", "strategy": strategy, "accuracy": [accuracy]}

    table = [row("a", "none", 0.9), row("a", "x", 0.3), row("a", "y", 0.5), row("a", "z", 0.5)]
    table += [row("b", "none", 0.9), row("b", "x", 0.3), row("b", "y", 0.2), row("b", "z", 0.1)]
    assert surgical.average_ranks({"table": table}) == {"m": {"x": 2.0, "y": 1.75, "z": 2.25}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": ["middel"]}, r"no strategies \['middel'\]; there are all, embedding"),
        ({"test_rows": 100}, "too few for the rows asked for"),
    ],
)
def test_surgical_mistakes(surgical, root, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        surgical.main(surgical_flags(root, tmp_path / "out", models=["models/resnet"], **options))


def calibration_flags(root, out, **options):
    common = {
        "model": "models/text-image", "dataset": "data/source", "strategies": {"full": {"lr": 1e-3}, "linear_probe": {}},
        "shots": 4, "held_out_shots": 3, "test_shots": 6, "epochs": 1, "batch_size": 4, "num_splits": 2, "seeds": [0, 1],
        "mixed_precision": "no",
    }  # fmt: skip
    return flags_of({"root": root, "output_dir": out, **common, **options})


def test_calibration_study_goes_on_to_the_same_table(calibration, root, tmp_path, monkeypatch):
    whole = calibration.main(calibration_flags(root, tmp_path / "whole"))
    assert list(whole["table"]) == ["zero_shot", "full", "linear_probe"]
    assert all(
        list(row["metrics"]) == list(calibration.METHODS)
        for name, row in whole["table"].items()
        if name != "zero_shot"
    )
    killed = calibration_flags(root, tmp_path / "killed")
    with monkeypatch.context() as patch:
        interrupt_at(patch, calibration.Study, "_outputs", 7)  # between the first cell's splits
        with pytest.raises(KeyboardInterrupt):
            calibration.main(killed)
    assert len((tmp_path / "killed" / "cells.jsonl").read_text().splitlines()) == 1
    assert len(list((tmp_path / "killed" / "scratch").rglob("split-*.json"))) == 1
    again = calibration.main(killed)
    assert again == whole
    assert (tmp_path / "killed" / "table.md").read_text() == (tmp_path / "whole" / "table.md").read_text()
    assert (tmp_path / "killed" / "curves.png").stat().st_size > 5_000
    assert not list((tmp_path / "killed" / "scratch").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(calibration, "train", None)
        assert calibration.main(killed) == whole


def test_calibration_figures_hold_together(calibration, root, tmp_path):
    results = calibration.main(calibration_flags(root, tmp_path / "out", seeds=[0]))
    for name, row in results["table"].items():
        for method, values in row["metrics"].items():
            assert values["ausuc"] == row["metrics"]["none"]["ausuc"]
            assert values["n_seen"] == values["n_unseen"] == [24]
            assert values["acc_y_y"][0] == pytest.approx((values["acc_s_y"][0] + values["acc_u_y"][0]) / 2)
            if name != "zero_shot":
                assert values["acc_y_y"] <= row["metrics"]["oracle"]["acc_y_y"], method
        acc_s, acc_u = row["curve"][0]
        assert acc_s[0] == pytest.approx(row["metrics"]["none"]["acc_s_s"][0])
        assert acc_u[-1] == pytest.approx(row["metrics"]["none"]["acc_u_u"][0])
    # A head alone leaves the features as they are.
    assert results["table"]["linear_probe"]["ncm"] == results["table"]["zero_shot"]["ncm"]


def test_calibration_refuses_a_strategy_without_a_linear_head(calibration, root, tmp_path):
    with pytest.raises(ValueError, match="'zero_shot' trains no linear head"):
        calibration.main(calibration_flags(root, tmp_path / "out", strategies={"zero_shot": {}}))
