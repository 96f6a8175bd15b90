"""Two processes measure what one does, to the last digit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from .conftest import make_classifier, make_images, make_preprocess


def measured(cache_dir) -> dict:
    from peft_reprogram.evaluation import evaluate_model

    results = evaluate_model(
        make_classifier("reprogrammer"),
        id=make_images(23, seed=0),  # neither batches nor processes divide it
        shifts={"stream": make_images(19, seed=1).to_iterable_dataset(num_shards=3), "tiny": make_images(2, seed=4)},
        ood={"ood": make_images(11, seed=2, names=None), "stream of ood": make_images(8, seed=5, names=None).to_iterable_dataset()},
        corruptions=["gaussian_noise"],
        severities=[3],
        scores=["msp", "energy", "knn", "neg_label"],
        fit=make_images(51, seed=3),
        calibration=make_images(12, seed=6),
        preprocess=make_preprocess(),
        baseline=True,
        full_spectrum=True,
        batch_size=4,
        progress_bar=False,
        cache_dir=cache_dir,
    )  # fmt: skip
    content = results.to_dict()
    for model in content["models"].values():
        del model["seconds"]
    del content["command"]
    return content


def test_two_processes_measure_what_one_does(tmp_path):
    expected = json.loads(json.dumps(measured(None)))
    # `accelerate launch --cpu` starts several processes through MPI alone; with several devices it calls this.
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "tests.evaluation.test_processes", str(tmp_path)),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as launched:
        try:
            output, _ = launched.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(launched.pid, signal.SIGKILL)
            raise
    assert launched.returncode == 0, output
    for process in range(2):
        for turn in ("filling the cache", "from the cache"):
            assert json.loads((tmp_path / f"{turn} {process}.json").read_text()) == expected


if __name__ == "__main__":
    from accelerate import PartialState

    folder = Path(sys.argv[1])
    for turn in ("filling the cache", "from the cache"):
        outcome = measured(folder / "cache")
        state = PartialState()
        assert state.num_processes == 2
        (folder / f"{turn} {state.process_index}.json").write_text(json.dumps(outcome))
    state.destroy_process_group()
