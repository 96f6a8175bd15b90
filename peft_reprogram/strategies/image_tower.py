"""What the strategies that train a linear head, and the image tower or a part of it, have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..training import TrainingConfig
from ..tuners.reprogrammer.architectures import find_architecture
from .linear_head import LinearHeadClassifier
from .strategy import Strategy, Task


@dataclass(frozen=True)
class ImageTowerStrategy(Strategy):
    """
    Trains a [`LinearHeadClassifier`] with AdamW and cross-entropy.

    A subclass says in [`~ImageTowerStrategy.prepare`] what is trained beside the head.

    Args:
        lr (`float`): Learning rate.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0

    def build(self, task: Task) -> nn.Module:
        return self.prepare(LinearHeadClassifier(task.zero_shot()))

    def prepare(self, classifier: LinearHeadClassifier) -> nn.Module:
        """
        Makes trainable, or adds, what is trained beside the head.

        Args:
            classifier ([`LinearHeadClassifier`]): The tower frozen, the head trainable and as the class prompts say.

        Returns:
            `torch.nn.Module`: The classifier to train.
        """
        return classifier

    def training_config(self, config: TrainingConfig) -> TrainingConfig:
        return replace(
            config,
            objective="class",
            objective_options={},
            optimizer="adamw",
            lr=self.lr,
            weight_decay=self.weight_decay,
        )


def image_tower(classifier: LinearHeadClassifier) -> nn.Module:
    """The image tower of a classifier whose model is not wrapped yet, without the projection to the joint space."""
    return classifier.model.get_submodule(image_tower_path(classifier))


def image_tower_path(classifier: LinearHeadClassifier) -> str:
    """Where it is in `classifier.model`."""
    architecture = find_architecture(classifier.model)
    assert architecture is not None  # the classifier could not have been made
    return architecture.vision.path


def dense_modules(classifier: LinearHeadClassifier) -> list[str]:
    """
    The modules of an image tower that mix channels, for adapters of weight matrices.

    Args:
        classifier ([`LinearHeadClassifier`]): Its model is not wrapped yet.

    Returns:
        `list[str]`: Module paths in `classifier.model`: the linear layers, or, in a tower without such, the ungrouped
        convolutions. Depthwise convolutions have no matrix to take a low-rank change.
    """
    tower, path = image_tower(classifier), image_tower_path(classifier)
    linear = [name for name, module in tower.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [name for name, m in tower.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    return [f"{path}.{name}" for name in linear or convolutions]


def wrap(classifier: LinearHeadClassifier, config: PeftConfig) -> LinearHeadClassifier:
    """
    Puts an adapter into the image side of a classifier.

    Args:
        classifier ([`LinearHeadClassifier`]): Its model is not wrapped yet.
        config (`peft.PeftConfig`): The adapter.

    Returns:
        [`LinearHeadClassifier`]: The same; the adapter and the head are trained.
    """
    classifier.model = get_peft_model(classifier.model, config)
    for module in classifier.model.modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else None
        if isinstance(base, nn.Conv2d):
            # MobileNet's padding asks a convolution for its geometry, which PEFT's layers don't pass on.
            for name in ("kernel_size", "stride", "dilation"):
                setattr(module, name, getattr(base, name))
    return classifier


def norm_modules(classifier: LinearHeadClassifier) -> list[str]:
    """The normalisation layers of an image tower that have weights, as module paths in `classifier.model`."""
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    return [
        f"{image_tower_path(classifier)}.{name}"
        for name, module in image_tower(classifier).named_modules()
        if isinstance(module, kinds) and module.weight is not None
    ]
