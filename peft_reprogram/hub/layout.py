"""Which files make an adapter repository: nothing else is downloaded, read or published."""

from __future__ import annotations

from ..calibration.gamma import GAMMA_FILE as GAMMA
from ..calibration.pipeline import CALIBRATION_FILE as CALIBRATION
from ..calibration.pipeline import SCORE_FILE as CALIBRATION_SCORE
from ..classifier import CLASSIFIER_FILE


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
THRESHOLD = "ood_threshold.json"
SCORE = "ood_score.safetensors"
TRAINING_RESULTS = "results.json"
EVALUATION_RESULTS = "evaluation.json"
CARD = "README.md"
PICTURES = "pictures"

_MIB = 2**20
_SETTINGS = 8 * _MIB  # a hundred thousand class names fit
_VOCABULARY = 128 * _MIB  # the largest published tokenizers have about 35

# What is read from a repository, each with the largest size in bytes that is accepted.
READ = {
    ADAPTER_CONFIG: _SETTINGS,
    ADAPTER_WEIGHTS: 16 * 1024 * _MIB,
    MODEL_CONFIG: _SETTINGS,
    MODEL_WEIGHTS: 16 * 1024 * _MIB,
    CLASSIFIER_FILE: _SETTINGS,
    PREPROCESSOR: _SETTINGS,
    PROCESSOR: _SETTINGS,
    THRESHOLD: _SETTINGS,
    SCORE: 1024 * _MIB,
    CALIBRATION: _SETTINGS,
    CALIBRATION_SCORE: 1024 * _MIB,
    GAMMA: _SETTINGS,
    TRAINING_RESULTS: 64 * _MIB,
    EVALUATION_RESULTS: 64 * _MIB,
    "tokenizer.json": _VOCABULARY,
    "tokenizer_config.json": _SETTINGS,
    "special_tokens_map.json": _SETTINGS,
    "added_tokens.json": _SETTINGS,
    "vocab.json": _VOCABULARY,
    "vocab.txt": _VOCABULARY,
    "merges.txt": _VOCABULARY,
}
# What is published too, for people to look at.
SHOWN = (CARD,)
# All that the package and transformers write into an adapter's folder, as patterns. What is not here is somebody's own.
WRITTEN = (
    *READ,
    *SHOWN,
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "chat_template.jinja",
    f"{PICTURES}/frame.png",
    f"{PICTURES}/shifts.png",
    f"{PICTURES}/*_adapter.png",
)

# Weights in a format that runs code when it is opened.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
