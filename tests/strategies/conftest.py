"""A tiny text-image model, saved, and a task for it."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PIL
from transformers import CLIPImageProcessorPil

from peft_reprogram.data import ImageData, ImagePreprocessor
from peft_reprogram.demo.pretraining import build_model, build_tokenizer
from peft_reprogram.strategies import Task
from peft_reprogram.training import TrainingConfig


CLASSES = ["zero", "one", "two"]


def make_data(count: int, seed: int = 0) -> ImageData:
    """Noise of changing brightness; the classes take turns."""
    rng = np.random.default_rng(seed)
    pictures = [
        PIL.fromarray((rng.integers(0, 128, (32, 32, 3)) + 60 * (i % len(CLASSES))).astype(np.uint8))
        for i in range(count)
    ]
    labels = [i % len(CLASSES) for i in range(count)]
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    return ImageData(
        Dataset.from_dict({"image": pictures, "label": labels}, features=features), CLASSES, "image", "label"
    )


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A text-image model with random weights, in a folder."""
    folder = tmp_path_factory.mktemp("model") / "base"
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def preprocess():
    processor = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return ImagePreprocessor(processor)


@pytest.fixture
def task(base, preprocess, tmp_path):
    """Four steps on a dozen images."""
    config = TrainingConfig(str(tmp_path / "run"), epochs=2, batch_size=6, warmup_steps=0, progress_bar=False)
    return Task(str(base), ["a photo of a {}"], preprocess, make_data(12), config)


@pytest.fixture(scope="session")
def pixel_values(preprocess):
    return preprocess(make_data(6, seed=1).dataset["image"])
