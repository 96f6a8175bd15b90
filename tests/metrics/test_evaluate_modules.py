"""The `evaluate` modules: loaded offline from the package, filled in batches and from two processes."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from peft_reprogram.metrics import (
    MODULES,
    calibration_metrics,
    ood_metrics,
    path,
    seen_unseen_metrics,
    shift_metrics,
)


def sample(n=60, classes=4):
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)) + np.eye(classes)[labels]
    is_id = np.arange(n) % 3 != 0
    return logits, labels, logits.max(1).round(1), is_id.astype(int)


LOGITS, LABELS, SCORES, IS_ID = sample()
SHIFTS = np.array(["id", "sketch", "v2"])[np.arange(len(LABELS)) % 3].tolist()
INPUTS = {
    "ood_detection": ({"predictions": SCORES, "references": IS_ID}, {"preset": "ibm", "tpr": 0.9}),
    "shift_accuracy": (
        {"predictions": LOGITS.argmax(1), "references": LABELS, "shifts": SHIFTS},
        {"id_name": "id"},
    ),
    "calibration_error": ({"predictions": LOGITS, "references": LABELS}, {"temperature": 1.5, "bins": 7}),
    "seen_unseen": ({"predictions": LOGITS, "references": LABELS}, {"seen_classes": [0, 2], "gamma": 0.3}),
}
EXPECTED = {
    "ood_detection": lambda: ood_metrics(SCORES[IS_ID == 1], SCORES[IS_ID == 0], "ibm", 0.9),
    "shift_accuracy": lambda: shift_metrics(LOGITS.argmax(1), LABELS, SHIFTS, "id"),
    "calibration_error": lambda: calibration_metrics(LOGITS, LABELS, 1.5, bins=7),
    "seen_unseen": lambda: seen_unseen_metrics(LOGITS, LABELS, [0, 2], 0.3),
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`evaluate.load` of a module of this package, with every cache in a temporary folder."""
    import evaluate  # takes seconds

    folder = tmp_path_factory.mktemp("evaluate")

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            del sys.modules[name]

    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.syspath_prepend(folder / "modules")
        yield lambda name, **options: evaluate.load(path(name), cache_dir=str(folder / "data"), **options)
    forget()


@pytest.mark.parametrize("name", MODULES)
def test_module_computes_what_the_function_does(name, load):
    inputs, options = INPUTS[name]
    assert load(name).compute(**inputs, **options) == EXPECTED[name]()


@pytest.mark.parametrize("name", MODULES)
def test_batches_of_tensors_add_up(name, load):
    inputs, options = INPUTS[name]
    metric = load(name, keep_in_memory=True)
    for part in (slice(0, 25), slice(25, 26), slice(26, None)):
        batch = {key: torch.tensor(value[part]) if key != "shifts" else value[part] for key, value in inputs.items()}
        metric.add_batch(**batch)
    assert metric.compute(**options) == EXPECTED[name]()


def test_modules_combine(load):
    import evaluate

    both = evaluate.combine([load("calibration_error"), load("seen_unseen")])
    both.add_batch(predictions=LOGITS[:30], references=LABELS[:30])
    both.add_batch(predictions=LOGITS[30:], references=LABELS[30:])
    # Each module takes its own options only, so there are none that both know.
    for module, options in zip(both.evaluation_modules, ({}, {"seen_classes": [0, 2]})):
        got = module.compute(**options)
        expected = {
            "calibration_error": calibration_metrics(LOGITS, LABELS),
            "seen_unseen": seen_unseen_metrics(LOGITS, LABELS, [0, 2]),
        }[module.name]
        assert got == expected
    twice = evaluate.combine([load("ood_detection"), load("ood_detection")])
    got = twice.compute(predictions=SCORES, references=IS_ID, preset="mcm")
    assert got["ood_detection_0_auroc"] == got["ood_detection_1_auroc"] == EXPECTED["ood_detection"]()["auroc"]


@pytest.mark.parametrize(
    ("name", "inputs", "options", "message"),
    [
        ("ood_detection", {"predictions": [], "references": []}, {}, "`predictions` is empty"),
        ("ood_detection", {"predictions": [1.0, 2.0], "references": [1]}, {}, "Mismatch in the number of predictions"),
        ("ood_detection", {"predictions": [1.0, np.nan], "references": [1, 0]}, {}, "`predictions` must be finite"),
        ("ood_detection", {"predictions": [1.0, 2.0], "references": [1, 1]}, {}, "`references` are all 1"),
        ("ood_detection", INPUTS["ood_detection"][0], {"preset": "x"}, "Unknown `preset` 'x'; known are 'default'"),
        ("shift_accuracy", {"predictions": [], "references": [], "shifts": []}, {}, "`predictions` is empty"),
        ("calibration_error", {"predictions": [], "references": []}, {}, "`logits` is empty"),
        ("seen_unseen", INPUTS["seen_unseen"][0], {}, "`seen_classes` is missing"),
    ],
)
def test_bad_input_is_refused(name, inputs, options, message, load):
    with pytest.raises(ValueError, match=message):
        load(name, keep_in_memory=True).compute(**inputs, **options)


def test_nothing_added_is_refused(load):
    with pytest.raises(ValueError, match="call `add` or `add_batch` at least once"):
        load("ood_detection").compute()


def test_unknown_module_lists_the_known_ones():
    with pytest.raises(ValueError, match="Unknown metric module 'ood'; known are 'ood_detection', 'shift_accuracy'"):
        path("ood")


@pytest.mark.parametrize("name", MODULES)
def test_folder_is_a_space(name):
    folder = Path(path(name))
    script = (folder / f"{name}.py").read_text()
    card = (folder / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["sdk"] == "gradio"
    assert metadata["sdk_version"].startswith("3.")  # evaluate's widget uses what gradio 4 removed
    assert {"evaluate", "metric"} <= set(metadata["tags"])
    assert (folder / metadata["app_file"]).is_file()
    # What the script imports must be installed on the Space.
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.parse(script).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    lines = (folder / "requirements.txt").read_text().splitlines()
    required = {re.split("[<>]", line)[0].replace("-", "_") for line in lines}
    assert imported - {"datasets"} <= required  # datasets comes with evaluate
    # The card explains each entry of what its own example returns.
    (block,) = [part for part in text.split("```python\n")[1:] if "evaluate.load(path(" in part]
    call = ast.parse(block.split("```")[0]).body[-1].value
    inputs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    functions = {
        "ood_detection": lambda predictions, references, preset: ood_metrics(predictions[:2], predictions[2:], preset),
        "shift_accuracy": lambda predictions, references, **more: shift_metrics(predictions, references, **more),
        "calibration_error": lambda predictions, references, **more: calibration_metrics(
            predictions, references, **more
        ),
        "seen_unseen": lambda predictions, references, **more: seen_unseen_metrics(predictions, references, **more),
    }
    for key in functions[name](**inputs):
        assert f"`{key}`" in text, f"the card does not explain `{key}`"


SCRIPT = """
import json, sys
import evaluate, numpy as np, torch
from accelerate import Accelerator
from peft_reprogram.metrics import ScoreCounts, ood_metrics, path
from accelerate.utils import gather_object

scores, is_id = (torch.tensor(values, dtype=kind) for values, kind in zip(json.load(open(sys.argv[1])), (torch.float64, torch.int64)))
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
loader = accelerator.prepare(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(scores, is_id), batch_size=7))

gathered = evaluate.load(path("ood_detection"), experiment_id="gathered", keep_in_memory=True)
counts = ScoreCounts()
for s, y in loader:
    s, y = accelerator.gather_for_metrics((s, y))
    gathered.add_batch(predictions=s, references=y)
mine = slice(rank, None, 2)
counts = sum(gather_object([ScoreCounts.from_scores(scores[mine][is_id[mine] == 1], scores[mine][is_id[mine] == 0])]), ScoreCounts())
alone = evaluate.load(path("ood_detection"), num_process=2, process_id=rank, experiment_id="alone")
alone.add_batch(predictions=scores[mine], references=is_id[mine])
result = alone.compute(preset="ibm", tpr=0.9)
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    results = [gathered.compute(preset="ibm", tpr=0.9), result, ood_metrics(counts, preset="ibm", tpr=0.9)]
    json.dump(results, open(sys.argv[2], "w"))
else:
    assert result is None
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path):
    """Gathered by Accelerate, gathered by evaluate's own rendezvous, and as merged counts: the same to the last bit."""
    (tmp_path / "run.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "in.json").write_text(json.dumps([SCORES.tolist(), IS_ID.tolist()]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            **{"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / f"modules{rank}")},
        }
        command = [sys.executable, "run.py", "in.json", "out.json"]
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    expected = EXPECTED["ood_detection"]()
    for got in json.loads((tmp_path / "out.json").read_text()):
        assert got == expected


def test_importing_the_metrics_is_light():
    """The functions need numpy alone; the parent package is left out, since PEFT brings torch."""
    package = Path(path("ood_detection")).parents[1]
    code = f"""
        import sys, types
        parent = types.ModuleType("peft_reprogram")
        parent.__path__ = [{str(package)!r}]
        sys.modules["peft_reprogram"] = parent
        import peft_reprogram.metrics
        heavy = {{"torch", "evaluate", "datasets", "sklearn", "scipy", "matplotlib", "pandas", "pyarrow"}}
        print(sorted(heavy & set(sys.modules)))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
