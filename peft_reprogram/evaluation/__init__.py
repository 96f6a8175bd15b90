"""Measuring a classifier: one pass over each set, then every metric from what it left behind."""

from .evaluate import evaluate_model, fit_threshold
from .extraction import Extraction
from .fingerprint import model_fingerprint
from .results import ModelMeasures, Results
from .stored_outputs import StoredOutputs


__all__ = [
    "Extraction",
    "ModelMeasures",
    "Results",
    "StoredOutputs",
    "evaluate_model",
    "fit_threshold",
    "model_fingerprint",
]
