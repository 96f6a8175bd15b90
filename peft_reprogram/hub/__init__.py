"""Adapters on the Hugging Face Hub: loaded without trusting them, used in one line, published in one commit."""

from .card import make_card
from .checks import AdapterContents, check_adapter
from .load import load_classifier
from .predictor import Prediction, Predictor
from .push import PushError, push_to_hub
from .spaces import push_metrics
from .weights import UnsafeAdapterError


__all__ = [
    "AdapterContents",
    "Prediction",
    "Predictor",
    "PushError",
    "UnsafeAdapterError",
    "check_adapter",
    "load_classifier",
    "make_card",
    "push_metrics",
    "push_to_hub",
]
