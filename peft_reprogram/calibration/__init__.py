"""What is fitted after training and stored with the adapter: temperature, gamma, OOD threshold, applied in this order."""

from .classifier import CalibratedClassifier
from .gamma import GammaCalibrator, alg_gamma, fit_gamma
from .pipeline import Calibration, Prediction
from .pseudo_cross_validation import FineTune, PseudoSplit, best_gamma
from .split_training import SplitTraining
from .temperature import Temperature


__all__ = [
    "CalibratedClassifier",
    "Calibration",
    "FineTune",
    "GammaCalibrator",
    "Prediction",
    "PseudoSplit",
    "SplitTraining",
    "Temperature",
    "alg_gamma",
    "best_gamma",
    "fit_gamma",
]
