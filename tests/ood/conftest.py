from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from peft_reprogram.ood import ModelOutputs


@dataclass
class Problem:
    """Outputs of one model on training, in-distribution and clearly out-of-distribution samples."""

    train: ModelOutputs
    inside: ModelOutputs
    outside: ModelOutputs
    negative_features: torch.Tensor


CLASSES, SIZE, PATCHES, IDENTITY = 6, 32, 4, "base@1234+adapter@abcd"


def linear_problem() -> Problem:
    """A linear head after a ReLU: each class has its own features; the outside lights up some that no class uses."""
    rng = np.random.default_rng(0)
    weight = np.kron(np.eye(CLASSES), np.ones(4))
    weight = np.pad(weight, ((0, 0), (0, SIZE - weight.shape[1])))
    bias = rng.normal(0, 0.05, CLASSES)

    def outputs(features: np.ndarray, labels: np.ndarray | None) -> ModelOutputs:
        features = np.maximum(features, 0)
        return ModelOutputs(
            logits=torch.tensor(features @ weight.T + bias, dtype=torch.float32),
            features=torch.tensor(features, dtype=torch.float32),
            class_features=torch.tensor(weight, dtype=torch.float32),
            bias=torch.tensor(bias, dtype=torch.float32),
            labels=None if labels is None else torch.tensor(labels),
            identity=IDENTITY,
        )

    def inside(n: int) -> ModelOutputs:
        labels = np.arange(n) % CLASSES
        return outputs(2.5 * weight[labels] + rng.normal(0, 0.3, (n, SIZE)), labels)

    return Problem(
        train=inside(240),
        inside=inside(60),
        outside=outputs(
            5 * np.eye(SIZE)[-1 - np.arange(60) % 4] + 5 * np.eye(SIZE)[-5] + rng.normal(0, 0.3, (60, SIZE)), None
        ),
        negative_features=torch.empty(0),
    )


def cosine_problem() -> Problem:
    """A text-image model: class texts are orthogonal, the outside lies near words that are none of the classes."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    classes, words = axes[:CLASSES], axes[CLASSES : CLASSES + 12]
    scale = 20.0

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def outputs(centres: np.ndarray, labels: np.ndarray | None) -> ModelOutputs:
        n = len(centres)
        features = unit(centres + rng.normal(0, 0.08, (n, SIZE)))
        patches = unit(rng.normal(0, 0.3, (n, PATCHES, SIZE)) + centres[:, None] * (np.arange(PATCHES) == 2)[:, None])
        return ModelOutputs(
            logits=torch.tensor(scale * features @ classes.T, dtype=torch.float32),
            features=torch.tensor(features, dtype=torch.float32),
            class_features=torch.tensor(classes, dtype=torch.float32),
            logit_scale=scale,
            patch_features=torch.tensor(patches, dtype=torch.float32),
            labels=None if labels is None else torch.tensor(labels),
            identity=IDENTITY,
        )

    def inside(n: int) -> ModelOutputs:
        labels = np.arange(n) % CLASSES
        return outputs(classes[labels], labels)

    return Problem(
        train=inside(240),
        inside=inside(60),
        outside=outputs(words[np.arange(60) % len(words)], None),
        negative_features=torch.tensor(words, dtype=torch.float32),
    )


@pytest.fixture(scope="session")
def linear() -> Problem:
    return linear_problem()


@pytest.fixture(scope="session")
def cosine() -> Problem:
    return cosine_problem()
