"""The genuine Hub client in tests: where it looks for the Hub, and where it keeps what it downloads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Downloads of this process, and of those that it starts, go to `folder`."""
    from huggingface_hub import constants

    for name, path in {"HF_HOME": folder, "HF_HUB_CACHE": folder / "hub"}.items():
        monkeypatch.setenv(name, str(path))
        monkeypatch.setattr(constants, name, str(path))


def talk_to(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client in this process talks to `server`, as `alice`."""
    from huggingface_hub import constants, file_download

    for name, value in {"ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    # Made from the address when the client was imported, and kept under either name in its releases.
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")


@pytest.fixture(autouse=True, scope="session")
def developers_cache() -> Iterator[None]:
    """Fails if a test left something in the developer's cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)  # before any test changes it
    before = _repositories(folder)
    yield
    gained = _repositories(folder) - before
    assert not gained, f"tests left {sorted(gained)} in {folder}: a test talks to a Hub without `use_cache`"


def _repositories(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()
