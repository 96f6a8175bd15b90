"""Where a number comes from: versions and command, to be stored beside it."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import version


_PACKAGES = ("peft-reprogram", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}}


def command() -> str:
    """The command line of this process, quoted for a shell."""
    return shlex.join(sys.argv)
