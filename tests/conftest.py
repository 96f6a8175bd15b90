from pathlib import Path

import pytest
from hypothesis import settings


# A slow machine is not a wrong answer.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real models and image sets that may lie beside the checkout."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not (path / "data").is_dir():
        pytest.skip("the real models and image sets are not beside this checkout")
    return path
