"""The embedded default: a tiny CLIP and image sets that need no download."""

from .data import CLASS_NAMES, DemoData, load_demo_data
from .pretrained import demo_model_path, load_demo_model


__all__ = ["CLASS_NAMES", "DemoData", "demo_model_path", "load_demo_data", "load_demo_model"]
