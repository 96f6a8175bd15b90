"""
Renders the cards in model_cards/ anew, with their pictures, from the adapters and results that lie beside them.

    python scripts/render_model_cards.py
    python -m peft_reprogram.demo && python scripts/render_model_cards.py --demo demo_output

`--demo` first takes over adapter and results of a run of the demo.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from peft_reprogram.hub import make_card


CARDS = Path(__file__).resolve().parents[1] / "model_cards"
DEMO = CARDS / "demo_residual_reprogrammer"
# Where the demo leaves what the card is made of.
DEMO_FILES = {
    "adapter_config.json": "residual_reprogrammer/adapter_config.json",
    "adapter_model.safetensors": "residual_reprogrammer/adapter_model.safetensors",
    "preprocessor_config.json": "residual_reprogrammer/preprocessor_config.json",
    "zero_shot_classifier.json": "residual_reprogrammer/zero_shot_classifier.json",
    "results.json": "reprogrammer/results.json",  # the residual one is not trained any further
    "evaluation.json": "results.json",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="Output folder of the demo to take over.")
    demo = parser.parse_args().demo
    if demo is not None:
        take_over(demo)
    for config in sorted(CARDS.glob("*/adapter_config.json")):
        make_card(config.parent, license="apache-2.0")
        print(config.parent / "README.md")


def take_over(demo: Path) -> None:
    """Copies adapter and results of a run of the demo."""
    DEMO.mkdir(exist_ok=True)
    for name, source in DEMO_FILES.items():
        shutil.copyfile(demo / source, DEMO / name)
    # The embedded model is where the package is installed, which is somewhere else for everybody.
    config = json.loads((DEMO / "adapter_config.json").read_text("utf-8"))
    text = json.dumps({**config, "base_model_name_or_path": None}, indent=2, sort_keys=True)
    (DEMO / "adapter_config.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
