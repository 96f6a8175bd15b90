import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from peft import PeftModel, get_peft_model
from PIL import Image as PIL
from transformers import CLIPImageProcessorPil, CLIPModel

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig, ZeroShotClassifier, set_residual_alpha
from peft_reprogram.data import ImagePreprocessor, few_shot, load_image_data
from peft_reprogram.demo.pretraining import build_model, build_tokenizer
from peft_reprogram.evaluation import Results, evaluate_model
from peft_reprogram.hub import load_classifier


SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
CLASSES = ["zero", "one", "two"]


@pytest.fixture(scope="module")
def script():
    from peft_reprogram.commands import evaluate

    return evaluate


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "rp16"
    torch.manual_seed(1)
    preprocess, tokenizer = ImagePreprocessor.from_pretrained(base, source_resolution=24), build_tokenizer()
    config = ReprogrammerConfig.for_classes(
        CLASSES, tokenizer=tokenizer, image_processor=preprocess.image_processor, init_weights=False
    )
    model = get_peft_model(CLIPModel.from_pretrained(base), config)
    ZeroShotClassifier(model, tokenizer, CLASSES).save_pretrained(folder)
    preprocess.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sets in folders: `id` with two splits, a shift with other order, and two without labels."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def save(name, n, names=CLASSES, high=256):
        rows = {"image": [PIL.fromarray(rng.integers(0, high, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]}
        features = {"image": Image()}
        if names:
            rows["label"], features["label"] = [i % len(names) for i in range(n)], ClassLabel(names=names)
        (folder / name).parent.mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=Features(features)).to_parquet(folder / f"{name}.parquet")

    save("id/train", 30)
    save("id/test", 21)
    save("sketch/test", 10, ["two", "zero"])
    save("far/test", 8, None, high=60)
    save("near/test", 9, None, high=200)
    return folder


def run(script, *arguments):
    return script.main([str(argument) for argument in arguments])


def test_zero_shot_and_reprogrammer_and_residual_in_one_table(script, base, adapter, data, tmp_path, capsys):
    results = run(
        script, "--adapter", adapter, "--model", base, "--dataset", data / "id", "--shift", f"sketch={data}/sketch",
        "--ood", f"far={data}/far:test", f"near={data}/near", "--residual_alpha", 0.4, 1, "--scores", "msp", "kl_matching",
        "--fit", f"{data}/id:train", "--fit_shots", 20 // 2, "--calibration", f"{data}/id:train[:50%]",
        "--corruptions", "fog", "--severities", 3, "--cache_dir", tmp_path / "cache", "--output", tmp_path / "out/results.json",
        "--markdown", tmp_path / "out/results.md", "--html", tmp_path / "out/results.html", "--figures", tmp_path / "figures",
    )  # fmt: skip
    assert list(results.models) == ["zero_shot", "rp16", "rp16, alpha 0.4", "rp16, alpha 1"]
    printed = capsys.readouterr().out
    assert (tmp_path / "out/results.md").read_text("utf-8") == results.to_markdown() == printed.removesuffix("\n")
    assert Results.load(tmp_path / "out/results.json") == results
    assert len(list((tmp_path / "figures").glob("*.png"))) == 17
    assert results.conventions["source_resolution"] == 24  # what the adapter was saved with

    # Each row is what its model gives by itself.
    sets = {
        "id": load_image_data(data / "id", split="test"),
        "shifts": {"sketch": load_image_data(data / "sketch", split="test", class_names=CLASSES)},
        "ood": {"far": load_image_data(data / "far", split="test", labelled=False)},
        "preprocess": ImagePreprocessor.from_pretrained(adapter),
        "progress_bar": False,
    }
    rp = ZeroShotClassifier.from_pretrained(adapter, model=CLIPModel.from_pretrained(base))
    config = ResidualReprogrammerConfig.from_reprogrammer(rp.model.peft_config["default"], residual_alpha=0.4)
    mixed = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), str(adapter), config=config)
    bare = CLIPModel.from_pretrained(base)
    for name, model in (("zero_shot", bare), ("rp16", rp.model), ("rp16, alpha 0.4", mixed)):
        alone = evaluate_model(ZeroShotClassifier(model, build_tokenizer(), CLASSES).eval(), **sets)
        (expected,) = alone.models.values()
        found = results.models[name]
        assert found.identity == expected.identity
        assert found.id == expected.id
        assert found.shifts == expected.shifts
        assert found.ood["msp"]["far"] == expected.ood["msp"]["far"]
    # All weight on the zero-shot branch is the zero-shot model.
    assert results.models["rp16, alpha 1"].id == results.models["zero_shot"].id


def test_a_residual_adapter_is_swept_too(script, base, adapter, data, tmp_path):
    rp = ZeroShotClassifier.from_pretrained(adapter, model=CLIPModel.from_pretrained(base))
    config = ResidualReprogrammerConfig.from_reprogrammer(rp.model.peft_config["default"])
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), str(adapter), config=config)
    set_residual_alpha(model, 0.2)
    ZeroShotClassifier(model, build_tokenizer(), CLASSES).save_pretrained(tmp_path / "rrp")
    ImagePreprocessor.from_pretrained(adapter).save_pretrained(tmp_path / "rrp")
    results = run(
        script, "--adapter", tmp_path / "rrp", "--model", base, "--dataset", data / "id", "--residual_alpha", 0.2, 0.6,
        "--zero_shot", "false",
    )  # fmt: skip
    assert list(results.models) == ["rrp", "rrp, alpha 0.2", "rrp, alpha 0.6"]
    identities = [measures.identity for measures in results.models.values()]
    assert identities[0] == identities[1] != identities[2]


def test_the_threshold_is_stored_where_predictions_find_it(script, base, adapter, data):
    run(
        script, "--adapter", adapter, "--model", base, "--dataset", data / "id", "--scores", "kl_matching", "--fit", f"{data}/id",
        "--calibration", f"{data}/id:train", "--calibration_shots", 9, "--fit_threshold", 0.9, "--residual_alpha", 0.5,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*threshold")  # that it is another model's
        predictor = load_classifier(adapter, model=base)
    assert (predictor.threshold.tpr, predictor.threshold.n, predictor.threshold.score) == (0.9, 27, "kl_matching")
    drawn = few_shot(load_image_data(data / "id", split="train"), 9, 0)
    images = Dataset.from_parquet(str(data / "id/train.parquet"))[drawn.rows]["image"]
    kept = [not prediction.is_ood for prediction in predictor.predict(images)]
    assert np.mean(kept) == pytest.approx(predictor.threshold.achieved_tpr)


def test_a_file_holds_what_flags_hold_and_flags_win(script, base, data, tmp_path):
    file = tmp_path / "evaluation.yaml"
    file.write_text("scores: [energy, msp]\nmax_images: 7\nseed: 3\nsource_resolution: 16\nfull_spectrum: true\n")
    arguments = [
        "--config", file, "--model", base, "--dataset", data / "id", "--shift", f"sketch={data}/sketch",
        "--ood", f"far={data}/far", "--max_images", 5,
    ]  # fmt: skip
    results = run(script, *arguments)
    assert list(results.models) == ["zero_shot"]
    assert {name: entry["n"] for name, entry in results.sets.items()} == {"id": 5, "sketch": 5, "far": 5}
    assert list(results.models["zero_shot"].ood) == ["energy", "msp"]
    assert results.models["zero_shot"].ood_full_spectrum["energy"]["far"]["n_id"] == 10
    assert results.conventions["source_resolution"] == 16
    assert run(script, *arguments).models["zero_shot"].id == results.models["zero_shot"].id


def test_streams(script, base, data):
    arguments = ["--model", base, "--dataset", data / "id", "--ood", f"far={data}/far"]
    whole, streamed = run(script, *arguments), run(script, *arguments, "--streaming", "true")
    assert streamed.models["zero_shot"].id == whole.models["zero_shot"].id
    assert streamed.models["zero_shot"].ood == whole.models["zero_shot"].ood


BAD = {
    "nothing": (["--dataset", "x"], "nothing to measure: give `adapter`, or `model`"),
    "threshold": (["--dataset", "x", "--adapter", "y", "--fit_threshold", "0.95"], "`fit_threshold` needs .* `calibration`"),
    "stream": (["--dataset", "x", "--model", "y", "--streaming", "true", "--max_images", "3"], "a stream can't be drawn from"),
    "set": (["--dataset", "{data}/id", "--model", "{base}", "--ood", "{data}/far"], "`name=path` or `name=path:split`"),
    "path": (["--dataset", "{data}/id", "--model", "{base}", "--ood", "far={data}/away"], "there is no '.*away'"),
    "split": (["--dataset", "{data}/id:dev", "--model", "{base}"], r"split 'dev'"),
    "score": (["--dataset", "{data}/id", "--model", "{base}", "--scores", "mps"], "unknown score 'mps'; known scores: .*msp"),
    "classes": (["--dataset", "{data}/id", "--model", "{base}", "--shift", "near={data}/near"], "no label column"),
    "alpha": (
        ["--dataset", "{data}/id", "--model", "{base}", "--adapter", "{adapter}", "--residual_alpha", "2"],
        "must be in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_how_to_mend_it(script, base, adapter, data, case):
    arguments, message = BAD[case]
    arguments = [argument.format(base=base, adapter=adapter, data=data) for argument in arguments]
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        script.main(arguments)


def test_a_set_names_its_revision_and_split(script, tmp_path):
    for source, expected in {
        "user/set": ("user/set", None, "test"),
        "user/set:train": ("user/set", None, "train"),
        "user/set@4f1c2d0": ("user/set", "4f1c2d0", "test"),
        "user/set@refs/pr/1:train[:50%]": ("user/set", "refs/pr/1", "train[:50%]"),
        "hf://datasets/user/set@main/a.parquet": ("hf://datasets/user/set@main/a.parquet", None, "test"),
    }.items():
        assert script.parse_source(source, "test") == expected
    (tmp_path / "a@b").mkdir()
    assert script.parse_source(f"{tmp_path}/a@b:train", "test") == (f"{tmp_path}/a@b", None, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [("scors: [msp]", "unknown keys"), ("- msp", "must hold lines"), ("a: [", "is no YAML"), (None, "no")],
)
def test_a_bad_file_is_named(script, tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"bad\.yaml.*{message}|{message}.*bad\.yaml"):
        script.main(["--config", str(file)])


def test_mistakes_are_answered_in_one_line(base):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), "--model", str(base), "--dataset", "/nowhere/at/all"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith("error: there is no '/nowhere/at/all'")
    assert "Traceback" not in ended.stderr


def test_a_mistyped_model_is_answered_without_traceback(data):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), "--model", "nobody/no-such-model", "--dataset", f"{data}/id"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 1
    assert "error: " in ended.stderr
    assert "nobody/no-such-model" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_flag_is_named_on_one_screen(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--model", "x"])
    message = capsys.readouterr().err
    assert "required: --dataset" in message
    assert len(message.splitlines()) < 5


def test_unknown_flags_are_answered_with_the_known_ones(script):
    with pytest.raises(ValueError, match=r"unknown arguments --score msp; the known flags are --dataset, --adapter"):
        script.main(["--model", "x", "--dataset", "y", "--score", "msp"])


@pytest.mark.shared
@pytest.mark.slow
def test_the_real_model_is_as_good_as_its_card_says(script, shared):
    results = run(
        script, "--config", SCRIPT.parent / "configs/evaluate_cifar10.yaml", "--model", shared / "models/lit-mobilenetv2",
        "--dataset", shared / "data/cifar10", "--fit", shared / "data/cifar10", "--fit_shots", 20, "--max_images", 600,
        "--shift", f"natural={shared}/data/cifar10-natural-shift", "--ood", f"near={shared}/data/ood-near-tiny-imagenet",
    )  # fmt: skip
    measures = results.models["zero_shot"]
    # Standard errors of 600 images: 2 points of accuracy, 1.5 of AUROC.
    assert measures.id["accuracy"] == pytest.approx(0.451, abs=0.06)
    assert measures.shifts["natural"]["accuracy"] == pytest.approx(0.673, abs=0.06)
    for score, auroc in {"mcm": 0.747, "msp": 0.652, "max_logit": 0.788, "energy": 0.797}.items():
        assert measures.ood[score]["near"]["auroc"] == pytest.approx(auroc, abs=0.05)
