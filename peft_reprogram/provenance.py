"""Where a number comes from: versions and command, to be stored beside it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version


_PACKAGES = ("peft-reprogram", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}}


def command() -> str:
    """The command line of this process, quoted for a shell; where its program is installed is left out."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:
        program = ["python", "-m", module.name.removesuffix(".__main__")]
    else:
        program = [os.path.basename(sys.argv[0]) if os.path.isabs(sys.argv[0]) else sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])
