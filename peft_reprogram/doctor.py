"""What in this environment is broken or missing, and how to mend it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """
    One line of the diagnosis.

    Args:
        status (`"ok"`, `"note"` or `"broken"`): A note limits what can be done; what is broken stops work.
        what (`str`): What was looked at.
        text (`str`): What was found, and how to mend it.
    """

    status: Literal["ok", "note", "broken"]
    what: str
    text: str


def diagnose() -> Iterator[Finding]:
    """
    Look at everything that this package depends on.

    Returns:
        `Iterator[Finding]`: One finding after the other; no check stops the next.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": check_packages,
        "torchvision": check_torchvision,
        "device": check_device,
        "tuners": check_tuners,
        "Hub": check_hub,
        "extras": check_extras,
    }
    for what, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # whatever is broken must not hide what else is
            yield Finding("broken", what, f"the check itself failed: {type(error).__name__}: {error}")


def check_packages(distribution: str = "peft-reprogram") -> Iterator[Finding]:
    """Whether every required package is there in a version that is supported."""
    from packaging.requirements import Requirement

    for text in requires(distribution) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        mend = f"pip install '{requirement}'"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding("broken", requirement.name, f"is not installed: {mend}")
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding("ok", requirement.name, found)
        else:
            yield Finding("broken", requirement.name, f"{found} is not {requirement.specifier}: {mend}")


def check_torchvision(name: str = "torchvision") -> Iterator[Finding]:
    """Whether torchvision, which is not needed, is either absent or one that fits torch."""
    try:
        found = version(name)
    except PackageNotFoundError:
        yield Finding("ok", name, "is not installed, and is not needed")
        return
    try:
        importlib.import_module(name)
    except Exception as error:  # a mismatched build fails in many ways
        yield Finding(
            "broken",
            name,
            f"{found} does not fit torch {version('torch')} ({error}); transformers then fails to import. "
            "pip uninstall torchvision, or install the build for this torch",
        )
    else:
        yield Finding("ok", name, found)


def check_device() -> Iterator[Finding]:
    """Where models will run."""
    import torch

    if torch.cuda.is_available():
        yield Finding(
            "ok", "device", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        )
    elif torch.backends.mps.is_available():
        yield Finding("ok", "device", "Apple GPU (mps)")
    else:
        built = (
            "torch was built without CUDA"
            if torch.version.cuda is None
            else f"torch is built for CUDA {torch.version.cuda}"
        )
        yield Finding(
            "note",
            "device",
            f"no GPU ({built}), {os.cpu_count()} CPU cores: training a frame on a few hundred images is fine, more is slow",
        )


def check_tuners() -> Iterator[Finding]:
    """Whether PEFT knows the types of this package."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import peft_reprogram  # noqa: F401 (registers them)

    ours = sorted(
        str(member.value)
        for member, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if config.__module__.startswith("peft_reprogram.")
    )
    if ours:
        yield Finding("ok", "tuners", f"PEFT {version('peft')} knows {', '.join(ours)}")
    else:
        yield Finding(
            "broken", "tuners", f"PEFT {version('peft')} does not know the types of this package: reinstall both"
        )


def check_hub() -> Iterator[Finding]:
    """Whether adapters can be downloaded and published; nothing is sent."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield Finding("note", "Hub", "HF_HUB_OFFLINE is set: only what is in the cache can be loaded")
    if get_token() is None:
        yield Finding("note", "Hub", "no access token: enough to download; to publish, hf auth login")
    else:
        yield Finding("ok", "Hub", f"an access token for {constants.ENDPOINT} is there")
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if os.access(existing, os.W_OK):
        yield Finding("ok", "cache", str(cache))
    else:
        yield Finding("broken", "cache", f"{cache} cannot be written: set HF_HOME to a folder of yours")


def check_extras() -> Iterator[Finding]:
    """What is not needed by all: pictures, the demo, the app, trackers."""
    purposes = {
        "matplotlib": ("plots", "figures and the pictures of model cards"),
        "sklearn": ("demo", "the demo"),
        "gradio": ("app", "the app"),
        "tensorboard": ("tracking", "reports of a training run to TensorBoard"),
    }
    for module, (extra, purpose) in purposes.items():
        if importlib.util.find_spec(module) is None:
            yield Finding("note", module, f"is not installed; for {purpose}: pip install 'peft-reprogram[{extra}]'")
        else:
            yield Finding("ok", module, f"for {purpose}")
