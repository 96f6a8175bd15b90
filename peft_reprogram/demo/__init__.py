"""The embedded default: a tiny CLIP and image sets that need no download."""

from .data import CLASS_NAMES, DemoData, load_demo_data


__all__ = ["CLASS_NAMES", "DemoData", "load_demo_data"]
