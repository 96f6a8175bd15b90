"""
Renders the cards in model_cards/ anew, with their pictures, from the adapters and results that lie beside them.

    python scripts/render_model_cards.py
    python -m peft_reprogram.demo && python scripts/render_model_cards.py --demo demo_output
    python scripts/render_model_cards.py --adapter runs/caltech101_text_rows

`--demo` first takes over adapter and results of a run of the demo, `--adapter` those of a folder, under its name.
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
# What a card is made of; tokenizers are as large as their vocabulary, and the base model has them.
FILES = {name: name for name in DEMO_FILES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="Output folder of the demo to take over.")
    parser.add_argument("--adapter", type=Path, help="Folder of an adapter, with its evaluation.json, to take over.")
    options = parser.parse_args()
    if options.demo is not None:
        take_over(options.demo, DEMO, DEMO_FILES)
    if options.adapter is not None:
        take_over(options.adapter, CARDS / options.adapter.resolve().name, FILES)
    for config in sorted(CARDS.glob("*/adapter_config.json")):
        make_card(config.parent, license="apache-2.0", overwrite=True)
        print(config.parent / "README.md")


def take_over(source: Path, folder: Path, names: dict[str, str]) -> None:
    """Copies an adapter and its results."""
    folder.mkdir(exist_ok=True)
    for name, origin in names.items():
        shutil.copyfile(source / origin, folder / name)
    # Its base model lies in a folder, which is somewhere else for everybody.
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    text = json.dumps({**config, "base_model_name_or_path": None}, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", "utf-8")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    results.get("recipe", {}).pop("model", None)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
