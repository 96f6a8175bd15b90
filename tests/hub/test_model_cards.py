"""The cards in `model_cards/` are what the template makes of the adapters and results beside them."""

import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from peft_reprogram.hub import make_card


CARDS = Path(__file__).parents[2] / "model_cards"
ADAPTERS = sorted(path.parent.name for path in CARDS.glob("*/adapter_config.json"))


def test_the_demo_has_a_card():
    assert "demo_residual_reprogrammer" in ADAPTERS


@pytest.mark.parametrize("name", ADAPTERS)
def test_card_is_what_the_template_renders(name, tmp_path):
    """Mended by `python scripts/render_model_cards.py`."""
    committed = CARDS / name
    folder = shutil.copytree(committed, tmp_path / name, ignore=shutil.ignore_patterns("README.md", "pictures"))
    license = ModelCard.load(committed / "README.md").data.license
    make_card(folder, license=license)
    text = (committed / "README.md").read_text("utf-8")
    assert (folder / "README.md").read_text("utf-8") == text
    pictures = {f"pictures/{path.name}" for path in (committed / "pictures").iterdir()}
    assert pictures == set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    assert pictures == {f"pictures/{path.name}" for path in (folder / "pictures").iterdir()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_nothing_tells_whose_machine_it_was(name):
    for path in (CARDS / name).rglob("*"):
        if path.suffix in (".json", ".md"):
            paths = re.findall(r"(?<![\w.:/])/[\w.-]+/[\w./-]+|[A-Z]:\\\\\w", path.read_text("utf-8"))
            assert not paths, f"{path.name} names {paths[:3]}"
