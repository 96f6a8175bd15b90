"""Adapters on the Hugging Face Hub: loaded without trusting them, used in one line, published in one commit."""

from .checks import AdapterContents, check_adapter
from .load import load_classifier
from .predictor import Prediction, Predictor
from .weights import UnsafeAdapterError


__all__ = [
    "AdapterContents",
    "Prediction",
    "Predictor",
    "UnsafeAdapterError",
    "check_adapter",
    "load_classifier",
]
