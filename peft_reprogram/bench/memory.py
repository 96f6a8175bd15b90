"""Peak memory of a piece of work, in this process and on its device."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch


@dataclass
class PeakMemory:
    """
    Args:
        bytes (`int`, *optional*): How much memory the work took at its peak beyond what was taken before; `None` where the
            system doesn't tell (without a GPU, anything but Linux).
    """

    bytes: Optional[int] = None


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """
    Measures what happens inside the `with`: on the GPU where there is one, otherwise the process's resident memory.

    Yields:
        [`PeakMemory`]: Filled at the end.
    """
    peak = PeakMemory()
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated() - before
        return
    _return_freed_memory()
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # sets the high-water mark to what is resident now
    except OSError:
        yield peak
        return
    resident = _status("VmRSS")
    yield peak
    peak.bytes = max(_status("VmHWM") - resident, 0)


def _return_freed_memory() -> None:
    # What earlier work freed stays resident, and this work would take it unseen.
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
        if trim is not None:
            trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")
