"""DDP and FSDP on two CPU processes (gloo) against one process at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).with_name("sharded_training.py")


def run(processes: int, mode: str, method: str, output: Path) -> dict:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), mode, method, str(output)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plain", "residual"])
def test_two_processes_train_like_one(tmp_path, method):
    one = run(1, "ddp", method, tmp_path / "one")
    assert one["losses"][-1] < one["losses"][0]
    for mode in ("ddp", "fsdp1", "fsdp2"):
        two = run(2, mode, method, tmp_path / mode)
        assert two["processes"] == 2
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-5), mode
        assert two["continued"] == pytest.approx(one["losses"][2:], rel=1e-5), mode
        assert two["adapter"].keys() == one["adapter"].keys()
        for name, (shape, norm) in one["adapter"].items():
            assert two["adapter"][name][0] == shape
            assert two["adapter"][name][1] == pytest.approx(norm, rel=1e-5), (mode, name)
        saved = sorted(path.name for path in (tmp_path / mode / "half").iterdir())
        assert saved == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
