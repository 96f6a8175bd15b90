import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PIL
from transformers import CLIPImageProcessorPil

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig, ZeroShotClassifier
from peft_reprogram.data import ImagePreprocessor
from peft_reprogram.demo.pretraining import build_model, build_tokenizer


CLASSES = ["zero", "one", "two | <b>many</b>"]


def make_images(n: int, seed: int, names=CLASSES, noise: int = 256) -> Dataset:
    """Noise of changing brightness, stored losslessly; the classes take turns."""
    rng = np.random.default_rng(seed)
    pictures = [
        PIL.fromarray((rng.integers(0, noise, (32, 32, 3)) + (i * 7) % 50).clip(0, 255).astype(np.uint8))
        for i in range(n)
    ]
    if names is None:
        return Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))
    features = Features({"image": Image(), "label": ClassLabel(names=names), "row": Value("int64")})
    labels = [i % len(names) for i in range(n)]
    return Dataset.from_dict({"image": pictures, "label": labels, "row": list(range(n))}, features=features)


def make_classifier(method: str | None = None) -> ZeroShotClassifier:
    """A tiny text-image model with random weights, bare or with a random adapter; always the same."""
    from peft import get_peft_model

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    if method is not None:
        kind = {"reprogrammer": ReprogrammerConfig, "residual": ResidualReprogrammerConfig}[method]
        config = kind.for_classes(
            CLASSES, tokenizer=tokenizer, image_processor=make_preprocess().image_processor, init_weights=False
        )
        model = get_peft_model(model, config)
    return ZeroShotClassifier(model, tokenizer, CLASSES).eval()


def make_preprocess(source_resolution: int | None = None) -> ImagePreprocessor:
    processor = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return ImagePreprocessor(processor, source_resolution)


@pytest.fixture
def preprocess():
    return make_preprocess()


@pytest.fixture
def classifier():
    return make_classifier()


@pytest.fixture
def adapted():
    return make_classifier("reprogrammer")


@pytest.fixture
def id_images():
    return make_images(23, seed=0)


@pytest.fixture
def shifted_images():
    """Other order of the classes, one of them missing."""
    return make_images(9, seed=1, names=["two | <b>many</b>", "zero"], noise=100)


@pytest.fixture
def ood_images():
    return make_images(11, seed=2, names=None, noise=30)
