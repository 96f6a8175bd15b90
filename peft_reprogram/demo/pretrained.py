"""The demo's CLIP as it comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import CLIPModel


def demo_model_path() -> Path:
    """
    Folder of the demo's CLIP: config, weights, tokenizer, image processor and model card, for any `from_pretrained`.

    Returns:
        `pathlib.Path`
    """
    return Path(__file__).with_name("model")


def load_demo_model() -> CLIPModel:
    """
    Loads the demo's CLIP, pre-trained on generated pictures, from the package; nothing is downloaded.

    Returns:
        `transformers.CLIPModel`: float32, in evaluation mode.

    Example:
        ```py
        >>> from transformers import AutoTokenizer
        >>> from peft_reprogram.demo import demo_model_path, load_demo_model
        >>> model = load_demo_model()
        >>> tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
        ```
    """
    import torch
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(demo_model_path(), dtype=torch.float32, local_files_only=True)
