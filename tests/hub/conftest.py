import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peft import get_peft_model
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPModel, ViTConfig, ViTForImageClassification

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig, ZeroShotClassifier
from peft_reprogram.demo.pretraining import build_model, build_tokenizer
from peft_reprogram.evaluation import Results, evaluate_model
from peft_reprogram.hub import load_classifier, push_to_hub


sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_client import developers_cache, talk_to, use_cache  # noqa: F401 (a fixture)
from hub_server import HubServer


CLASSES = ["zero", "one", "two | <b>many</b>"]


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A text-image model with random weights, saved."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_adapter(base, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    processor = AutoImageProcessor.from_pretrained(base)
    tokenizer = build_tokenizer()
    config = ResidualReprogrammerConfig.for_classes(
        CLASSES, tokenizer=tokenizer, image_processor=processor, init_weights=False
    )
    model = get_peft_model(CLIPModel.from_pretrained(base), config)
    ZeroShotClassifier(model, tokenizer, CLASSES).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved_adapter, tmp_path) -> Path:
    """A Residual Reprogrammer of the base model, saved, to be changed by the test."""
    return Path(shutil.copytree(saved_adapter, tmp_path / "adapter"))


def image_set(seed: int, n: int, labelled: bool) -> Dataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    columns = {"image": [Image.fromarray(image) for image in pixels]}
    features = Features({"image": ImageFeature()})
    if labelled:
        columns["label"] = [index % 3 for index in range(n)]
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)})
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="session")
def results(saved_adapter) -> Results:
    """Its evaluation on a few random images, beside the base model."""
    predictor = load_classifier(saved_adapter)
    return evaluate_model(
        predictor.classifier,
        id=image_set(0, 12, labelled=True),
        preprocess=predictor.preprocess,
        shifts={"ink | <i>blots</i>": image_set(1, 9, labelled=True)},
        ood={"noise": image_set(2, 8, labelled=False)},
        scores=["mcm"],
        baseline=True,
        name="adapter",
        progress_bar=False,
    )


@pytest.fixture
def vit_adapter(tmp_path) -> Path:
    """A Reprogrammer of an image classifier with a new head."""
    torch.manual_seed(0)
    base = tmp_path / "vit"
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    ViTForImageClassification(config).save_pretrained(base)
    processor = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    labels = dict(enumerate(CLASSES))
    model = ViTForImageClassification.from_pretrained(base, id2label=labels, ignore_mismatched_sizes=True)
    peft_config = ReprogrammerConfig.for_classes(
        CLASSES, image_processor=processor, init_weights=False, modules_to_save=["classifier"]
    )
    folder = tmp_path / "vit-adapter"
    get_peft_model(model, peft_config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path) -> None:
    """Tests neither see nor use the developer's token."""
    for name in list(os.environ):
        if name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_TOKEN"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path) -> None:
    """Neither a test nor a process that it starts reads or fills the developer's cache."""
    use_cache(monkeypatch, tmp_path / "huggingface")


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    """A Hub on the loopback interface that this process talks to as `alice`."""
    with HubServer({"hf_alice": "alice", "hf_bob": "bob"}) as server:
        talk_to(server, monkeypatch)
        yield server


@pytest.fixture
def published(hub, adapter, base) -> str:
    """The adapter, and its base model, on that Hub."""
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    api.create_repo("alice/base")
    api.upload_folder(repo_id="alice/base", folder_path=base)
    push_to_hub(adapter, "alice/adapter", base_model="alice/base", license="mit")
    hub.requests.clear()
    return "alice/adapter"
