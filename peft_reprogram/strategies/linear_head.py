"""An image tower with a linear head, in the joint space of a text-image model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from ..atomic import filling
from ..classifier import ZeroShotClassifier
from ..tuners.frozen_base.batch_norm import freeze_batch_norm
from ..tuners.reprogrammer.architectures import find_architecture


WEIGHTS_FILE = "model.safetensors"
CLASSIFIER_FILE = "linear_head_classifier.json"


class LinearHeadClassifier(nn.Module):
    """
    The image side of a text-image model with a linear head on its normalised embeddings.

    `model` holds the image tower and its projection, frozen until somebody thaws or wraps them
    (`classifier.model = get_peft_model(classifier.model, config)`); `head` is trained. The text side is dropped.

    Args:
        zero_shot ([`ZeroShotClassifier`]): The pre-trained model and the classes. Its model is taken over and loses its text
            side, so this classifier can't be used afterwards.
        init (`"text"` or `"random"`, *optional*, defaults to `"text"`): How the head starts: as the embeddings of the class
            prompts times the logit scale, which gives the zero-shot logits, or at random.
        objective (`Callable`, *optional*): Training loss of logits and labels as in [`peft_reprogram.objectives`];
            cross-entropy by default.
        seed (`int`, *optional*, defaults to 0): Seed of a random head.

    Raises:
        ValueError: If `init` is neither, or the model's image tower is not known.
    """

    model: Any

    def __init__(
        self,
        zero_shot: ZeroShotClassifier,
        init: Literal["text", "random"] = "text",
        objective: Optional[Callable[..., torch.Tensor]] = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if init not in ("text", "random"):
            raise ValueError(f"`init` must be 'text' or 'random', got {init!r}.")
        self.class_names = list(zero_shot.class_names)
        self.objective = objective
        self.head = _text_head(zero_shot) if init == "text" else _random_head(zero_shot, seed)
        self.model = _drop_text_side(zero_shot.model).requires_grad_(False)
        self._counts_at_start = _batch_counts(self.model)

    @property
    def num_labels(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def config(self) -> Any:
        """The pre-trained model's configuration."""
        return self.model.config

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        What the head sees.

        Args:
            pixel_values (`torch.Tensor`): Preprocessed images, shape `(B, 3, height, width)`.

        Returns:
            `torch.Tensor`: Image embeddings of unit length, shape `(B, D)`.
        """
        output = self.model.get_image_features(pixel_values=pixel_values)
        # A tensor in transformers 4, an output object in transformers 5.
        return F.normalize(output if isinstance(output, torch.Tensor) else output.pooler_output, dim=-1)

    def forward(self, pixel_values: torch.Tensor, labels: Optional[torch.Tensor] = None) -> ImageClassifierOutput:
        """
        Classify images.

        Args:
            pixel_values (`torch.Tensor`): Preprocessed images, shape `(B, 3, height, width)`.
            labels (`torch.Tensor`, *optional*): Class indices in [0, C), shape `(B,)`.

        Returns:
            `ImageClassifierOutput`: `logits` of shape `(B, C)`, and `loss` if labels were given.
        """
        logits = self.head(self.get_image_features(pixel_values))
        return ImageClassifierOutput(loss=None if labels is None else self.loss(logits, labels), logits=logits)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The training loss, a scalar."""
        logits = logits.float()
        return F.cross_entropy(logits, labels) if self.objective is None else self.objective(logits, labels)

    def train(self, mode: bool = True) -> LinearHeadClassifier:
        """Set training mode, of what is trained: a frozen tower drops nothing out, a frozen batch norm keeps its statistics."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.model.eval()
        freeze_batch_norm(self.model)
        return self

    def save_pretrained(self, save_directory: Union[str, os.PathLike]) -> None:
        """
        Save what is trained, and the class names; with running statistics of batch normalisation where they have moved.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write to; created if needed.
        """
        content = {"base_model": getattr(self.config, "_name_or_path", None), "class_names": self.class_names}
        moved = _batch_counts(self.model) != self._counts_at_start
        save_trained(self, save_directory, CLASSIFIER_FILE, content, _statistics(self) if moved else {})

    def load_trained(self, directory: Union[str, os.PathLike]) -> LinearHeadClassifier:
        """
        Load what [`~LinearHeadClassifier.save_pretrained`] wrote into a classifier that was built like the saved one.

        Args:
            directory (`str` or `os.PathLike`): The folder.

        Returns:
            [`LinearHeadClassifier`]: This classifier.

        Raises:
            ValueError: If the file holds other classes or other tensors than are trained here.
        """
        content = json.loads((Path(directory) / CLASSIFIER_FILE).read_text("utf-8"))
        if content["class_names"] != self.class_names:
            raise ValueError(
                f"{directory} holds a classifier of the classes {content['class_names']}, this one has "
                f"{self.class_names}. Build the classifier for those classes."
            )
        load_trained(self, directory)
        return self


def trained_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that require gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def save_trained(
    module: nn.Module,
    save_directory: Union[str, os.PathLike],
    content_file: str,
    content: dict[str, Any],
    buffers: Optional[dict[str, torch.Tensor]] = None,
) -> None:
    """
    Writes the trained tensors of a module as safetensors beside a JSON file, which appears when all is there.

    Args:
        module (`torch.nn.Module`): What is trained in part.
        save_directory (`str` or `os.PathLike`): Folder to write to; created if needed.
        content_file (`str`): Name of the JSON file.
        content (`dict`): What it shall hold.
        buffers (`dict`, *optional*): Buffers of the module that training has changed too, by name.
    """
    from safetensors.torch import save_file

    changed = {**trained_tensors(module), **(buffers or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in changed.items()}
    with filling(Path(save_directory), last=content_file) as folder:
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / content_file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_trained(module: nn.Module, directory: Union[str, os.PathLike]) -> None:
    """
    Loads what [`save_trained`] wrote into a module of which the same is trained.

    Args:
        module (`torch.nn.Module`): The module.
        directory (`str` or `os.PathLike`): The folder.

    Raises:
        ValueError: If the file holds other tensors than are trained in the module.
    """
    from safetensors.torch import load_file

    tensors, parameters = load_file(Path(directory) / WEIGHTS_FILE), trained_tensors(module)
    parameters.update({name: buffer for name, buffer in _statistics(module).items() if name in tensors})
    differing = sorted(
        name
        for name in tensors.keys() | parameters.keys()
        if name not in tensors or name not in parameters or tensors[name].shape != parameters[name].shape
    )
    if differing:
        raise ValueError(
            f"{directory} holds {len(tensors)} trained tensors and {len(parameters)} are trained here; {len(differing)} "
            f"differ in name or shape, {differing[0]!r} first. Build the classifier by the strategy that was saved."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """Running statistics that can move, by name: those of layers of which a parameter is trained."""
    return {
        f"{path}.{name}": buffer
        for path, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and trained_tensors(layer)
        for name, buffer in layer.named_buffers(recurse=False)
    }


def _batch_counts(module: nn.Module) -> frozenset[int]:
    """How many batches the layers have seen in training mode; a set, as tuners may wrap or copy layers."""
    return frozenset(
        int(layer.num_batches_tracked)
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.num_batches_tracked is not None
    )


@torch.no_grad()
def _text_head(zero_shot: ZeroShotClassifier) -> nn.Linear:
    mode = zero_shot.training
    rows = zero_shot.eval().logit_scale * zero_shot.get_class_features()
    bias = zero_shot.logit_bias
    zero_shot.train(mode)
    head = nn.utils.skip_init(nn.Linear, rows.shape[1], rows.shape[0], device=rows.device, dtype=rows.dtype)
    head.weight.copy_(rows)
    head.bias.copy_(torch.zeros_like(head.bias) if bias is None else bias.expand_as(head.bias))
    return head


@torch.no_grad()
def _random_head(zero_shot: ZeroShotClassifier, seed: int) -> nn.Linear:
    features = zero_shot.get_class_features()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(features.shape[1], zero_shot.num_labels)
    return head.to(features)


def _drop_text_side(model: nn.Module) -> nn.Module:
    architecture = find_architecture(model)
    if architecture is None:
        raise ValueError(
            f"the image tower of a {type(model).__name__} is not known. A `LinearHeadClassifier` takes a plain model of "
            "`peft_reprogram.tuners.reprogrammer.architectures.TEXT_IMAGE_MODELS`; adapters come afterwards."
        )
    kept = {architecture.vision.path, architecture.vision.projection}
    for name in [name for name, _ in model.named_children() if name not in kept]:
        delattr(model, name)
    for name in [name for name, _ in model.named_parameters(recurse=False)]:
        delattr(model, name)
    return model
