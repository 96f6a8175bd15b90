import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
import yaml

from peft_reprogram.bench import BenchConfig, BenchRunner, TaskConfig, read_rows, write_report
from peft_reprogram.bench.memory import peak_memory
from peft_reprogram.bench.runner import _mark
from peft_reprogram.commands import benchmark
from peft_reprogram.strategies import get_strategy


STRATEGIES = ["zero_shot", "linear_probe", "wise_ft", "reprogrammer"]
CONFIG = """
models: {demo: demo}
tasks:
  digits:
    dataset: demo
    shots: {2: {epochs: 1}}
    validation_shots: 2
    test_images: 20
    ood_images: 10
    corruption_images: 5
    corruptions: [fog]
strategies: [zero_shot, linear_probe, reprogrammer_text, reprogrammer]
seeds: [0, 1]
trials: 2
training: {batch_size: 10}
"""


def make_config(**changes):
    task = TaskConfig(
        dataset="demo",
        shots={2: {"epochs": 1}},
        validation_shots=2,
        test_images=20,
        ood_images=10,
        corruption_images=5,
        corruptions=["fog", "contrast"],
        severities=[1, 5],
    )
    fields = {
        "models": {"demo": "demo"},
        "tasks": {"digits": task},
        "strategies": {name: {} for name in STRATEGIES},
        "seeds": [0, 1],
        "trials": 2,
        "training": {"batch_size": 10},
    }
    return BenchConfig(**{**fields, **changes})


def numbers(rows):
    """What does not depend on how fast the machine is or how it was called."""
    keep = ("cell", "options", "points", "recipe")
    table = [
        {
            **{name: row[name] for name in keep},
            "trials": [{k: v for k, v in trial.items() if k != "seconds"} for trial in row["trials"]],
            "size": [row["cost"][name] for name in ("trained_parameters", "adapter_bytes")],
        }
        for row in rows
    ]
    return sorted(table, key=lambda row: str(row["cell"]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    BenchRunner(make_config(), folder).run()
    return folder, read_rows([folder / "results.jsonl"])


def test_every_cell_has_its_row(finished):
    folder, rows = finished
    assert [(row["cell"]["strategy"], row["cell"]["seed"]) for row in rows] == [
        (name, seed) for name in STRATEGIES for seed in (0, 1)
    ]
    # Trainings and passes are gone when all is finished.
    assert sorted(path.name for path in folder.iterdir()) == ["results.jsonl", "trials.jsonl"]
    for row in rows:
        assert row["selection"] == "val"
        for point in row["points"]:
            assert point["id"]["n"] == 20
            assert set(point["shifts"]) == {"inverted", "rotated", "noisy", "thick_stroke", "coloured_background"}
            assert set(point["corruptions"]) == {"fog", "contrast"}
            assert set(point["ood"]) == {"energy", "msp", "max_logit"}
            assert point["ood"]["energy"]["letters"]["n_ood"] == 10


def test_curves_and_costs(finished):
    rows = {(row["cell"]["strategy"], row["cell"]["seed"]): row for row in finished[1]}
    alphas = {name: [point["alpha"] for point in rows[name, 1]["points"]] for name in STRATEGIES}
    assert alphas == {
        "zero_shot": [None],
        "linear_probe": [None],
        "wise_ft": [0, 0.25, 0.5, 0.75],
        "reprogrammer": [0, 0.2, 0.4, 0.6, 0.8],
    }
    assert rows["zero_shot", 0]["cost"] == {
        "trained_parameters": 0,
        "adapter_bytes": 0,
        "training_seconds": 0.0,
        "peak_memory_bytes": 0,
    }
    probe, whole = rows["linear_probe", 0]["cost"], rows["wise_ft", 0]["cost"]
    assert 0 < probe["trained_parameters"] < whole["trained_parameters"]
    assert probe["adapter_bytes"] >= 4 * probe["trained_parameters"]
    assert whole["training_seconds"] > 0


def test_hyper_parameters_are_chosen_by_validation_at_the_first_seed(finished):
    for row in finished[1]:
        trials = row["trials"]
        assert len(trials) == (1 if row["cell"]["strategy"] == "zero_shot" else 2)
        best = max(trials, key=lambda trial: trial["validation_accuracy"])
        assert row["options"].items() >= best["options"].items()
        if row["cell"]["seed"] == 0:
            # The first point is the trained model, which is the best trial itself.
            assert row["points"][0]["validation_accuracy"] == best["validation_accuracy"]


def test_a_finished_cell_is_never_run_again(finished, tmp_path, monkeypatch):
    folder, rows = finished
    monkeypatch.setattr(BenchRunner, "_run_cell", lambda *_: pytest.fail("ran again"))
    BenchRunner(make_config(), folder).run()
    assert read_rows([folder / "results.jsonl"]) == rows


def test_another_configuration_does_not_enter_the_same_store(finished):
    with pytest.raises(ValueError, match="of another configuration"):
        BenchRunner(make_config(scores=["msp"]), finished[0]).run()


def test_an_interrupted_bench_goes_on_to_the_same_table(finished, tmp_path, monkeypatch):
    whole, done = BenchRunner._run_cell, []

    def interrupted(self, group, cell):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(cell)
        return whole(self, group, cell)

    with monkeypatch.context() as patch:
        patch.setattr(BenchRunner, "_run_cell", interrupted)
        with pytest.raises(KeyboardInterrupt):
            BenchRunner(make_config(), tmp_path).run()
    assert len(read_rows([tmp_path / "results.jsonl"])) == 3
    BenchRunner(make_config(), tmp_path).run()
    assert numbers(read_rows([tmp_path / "results.jsonl"])) == numbers(finished[1])


def test_what_another_configuration_left_half_done_is_not_continued(tmp_path, monkeypatch):
    def config(side):
        task = TaskConfig("demo", {2: {"epochs": 1}}, validation_shots=2, test_images=20, ood_images=10,
                          source_resolution=side)  # fmt: skip
        return make_config(tasks={"digits": task}, strategies={"full": {}}, seeds=[0], trials=1)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BenchRunner, "_evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            BenchRunner(config(None), tmp_path / "continued").run()
    assert list((tmp_path / "continued" / "work").glob("**/results.json"))
    for folder in ("continued", "fresh"):
        BenchRunner(config(4), tmp_path / folder).run()
    continued, fresh = (read_rows([tmp_path / folder / "results.jsonl"]) for folder in ("continued", "fresh"))
    assert numbers(continued) == numbers(fresh)


def test_a_trial_that_diverges_is_not_chosen_and_stops_no_other(tmp_path, monkeypatch, capsys):
    grids = {"full": ({"lr": 1e30}, {"lr": 1e-4}), "lora": ({"lr": 1e30}, {"lr": 1e25})}
    for name, grid in grids.items():
        monkeypatch.setattr(type(get_strategy(name)), "grid", grid)
    # Long enough for infinity to show in a loss.
    training = {"batch_size": 10, "max_steps": 4}
    config = make_config(strategies={"lora": {}, "full": {}}, seeds=[0], training=training)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"1 of 2 cells diverged:\n.*lora.*every trial diverged"):
            BenchRunner(config, tmp_path).run()
    (row,) = read_rows([tmp_path / "results.jsonl"])
    assert [trial["validation_accuracy"] is None for trial in row["trials"]] == [True, False]
    assert row["options"]["lr"] == 1e-4
    assert capsys.readouterr().out.count("tried lora {'lr': 1e+30}: diverged") == 1
    write_report([row], tmp_path / "report.html")


def test_tasks_may_differ_in_precision(tmp_path):
    tasks = {
        name: TaskConfig("demo", {1: {"max_steps": 1, "mixed_precision": precision}}, validation_shots=1,
                         test_images=5, ood_images=5)
        for name, precision in (("rounded", "bf16"), ("exact", "no"))
    }  # fmt: skip
    strategies = {"zero_shot": {}, "linear_probe": {}}
    BenchRunner(make_config(tasks=tasks, strategies=strategies, seeds=[0], trials=1), tmp_path).run()
    assert len(read_rows([tmp_path / "results.jsonl"])) == 4


def test_shards_make_the_same_table(finished, tmp_path):
    for index in range(2):
        BenchRunner(make_config(), tmp_path, shard=(index, 2)).run()
    stores = sorted(tmp_path.glob("results*.jsonl"))
    assert [store.name for store in stores] == ["results.0-of-2.jsonl", "results.1-of-2.jsonl"]
    assert numbers(read_rows(stores)) == numbers(finished[1])


def test_what_shards_have_finished_is_in_the_report_of_a_run_that_finds_it(finished, tmp_path):
    # Nobody has written `results.jsonl`, since nothing was left to run.
    lines = (finished[0] / "results.jsonl").read_text().splitlines(keepends=True)
    for index in range(2):
        (tmp_path / f"results.{index}-of-2.jsonl").write_text("".join(lines[index::2]))
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(asdict(make_config())))
    benchmark.main(["--config", str(tmp_path / "bench.yaml"), "--output_dir", str(tmp_path)])
    assert not (tmp_path / "results.jsonl").exists()
    report = (tmp_path / "report.md").read_text()
    assert all(f"| {name} " in report for name in STRATEGIES)
    assert "2 seeds (0, 1)." in report


def test_the_point_chosen_is_the_largest_share_within_one_standard_error():
    def points(*accuracies):
        return [{"alpha": i / 10, "validation_accuracy": value} for i, value in enumerate(accuracies)]

    n = 100
    enough = 0.8 - math.sqrt(0.8 * 0.2 / n)
    rows = points(0.8, enough + 1e-6, enough - 1e-6)
    _mark(rows, 0.2, n)
    assert [row["chosen"] for row in rows] == [False, True, False]
    assert [row["paper"] for row in rows] == [False, False, True]
    alone = [{"alpha": None, "validation_accuracy": 0.5}]
    _mark(alone, None, n)
    assert alone[0]["paper"]
    assert alone[0]["chosen"]


def test_peak_memory_is_that_of_the_work():
    with peak_memory() as peak:
        torch.zeros(100 * 2**20, dtype=torch.uint8) + 1
    with peak_memory() as idle:
        pass
    if peak.bytes is None:
        pytest.skip("this system does not tell")
    assert 180 * 2**20 < peak.bytes < 300 * 2**20
    assert idle.bytes < 50 * 2**20


def test_memory_that_earlier_work_freed_is_counted_again():
    def work():
        # Too small to be mapped one by one; the last one, which stays, keeps the heap from shrinking.
        blocks = [torch.zeros(100_000, dtype=torch.uint8) for _ in range(1000)]
        return torch.zeros(1000), len(blocks)

    kept = work()
    with peak_memory() as peak:
        kept = kept, work()
    if peak.bytes is None:
        pytest.skip("this system does not tell")
    assert peak.bytes > 80 * 2**20


@pytest.mark.slow
def test_a_killed_bench_goes_on_to_the_same_table(tmp_path):
    (tmp_path / "bench.yaml").write_text(CONFIG)

    def start(folder):
        command = [sys.executable, "-m", "peft_reprogram.cli", "benchmark", "--config", str(tmp_path / "bench.yaml")]
        return subprocess.Popen([*command, "--output_dir", str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait() == 0
    process = start(tmp_path / "killed")
    store = tmp_path / "killed" / "results.jsonl"
    while not store.is_file() or len(read_rows([store])) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(read_rows([store])) < 8
    assert start(tmp_path / "killed").wait() == 0
    assert numbers(read_rows([store])) == numbers(read_rows([tmp_path / "whole" / "results.jsonl"]))
    assert (tmp_path / "killed" / "report.html").is_file()
