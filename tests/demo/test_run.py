"""The demo's main job, in its short form, as a user runs it."""

import json
import re
import subprocess
import sys

import pytest
import torch

from peft_reprogram import ZeroShotClassifier
from peft_reprogram.data import ImagePreprocessor
from peft_reprogram.demo import load_demo_data, load_demo_model


MODELS = ["zero-shot", "linear probe", "full fine-tuning", "Reprogrammer", "Residual Reprogrammer"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "peft_reprogram.demo", "--short", "--output_dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_prints_what_the_results_hold(finished):
    folder, printed = finished
    results = json.loads((folder / "results.json").read_text())
    for name in MODELS:
        row = next(line for line in printed.splitlines() if line.strip().startswith(name + " "))
        model = results["models"][name]
        accuracies = [shift["accuracy"] for shift in model["shifts"].values()]
        expected = [model["id"]["accuracy"], sum(accuracies) / 5, min(accuracies)]
        expected += [model["ood"]["energy"][name]["auroc"] for name in ("letters", "photos")]
        assert [float(number) for number in re.findall(r"\d+\.\d", row)] == [round(100 * v, 1) for v in expected]


def test_results_name_models_sets_and_convention(finished):
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    assert list(results["models"]) == MODELS
    roles = [entry["role"] for entry in results["sets"].values()]
    assert sorted(roles) == ["id"] + ["ood"] * 2 + ["shift"] * 5
    assert results["conventions"]["preset"] == "default"
    assert results["selection"] == "last"
    accuracy = {name: measures["id"]["accuracy"] for name, measures in results["models"].items()}
    # Training is for something, even a tenth of it.
    assert accuracy["Reprogrammer"] > accuracy["zero-shot"]


def test_report_is_one_file_with_its_pictures(finished):
    folder, _ = finished
    page = (folder / "report.html").read_text("utf-8")
    assert page.count('src="data:image/png;base64,') == 3 + len(MODELS)
    assert "http://" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_trained_adapter_loads_by_itself(finished):
    folder, _ = finished
    loaded = ZeroShotClassifier.from_pretrained(folder / "residual_reprogrammer", model=load_demo_model())
    preprocess = ImagePreprocessor.from_pretrained(folder / "residual_reprogrammer")
    data = load_demo_data()
    with torch.no_grad():
        predicted = loaded(preprocess(data.test[:100]["image"])).logits.argmax(dim=-1)
    assert (predicted == torch.tensor(data.test[:100]["label"])).float().mean() > 0.4
