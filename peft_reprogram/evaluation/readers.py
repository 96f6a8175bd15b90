"""What a classifier leaves behind for each image, whatever kind of classifier it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from ..ood import IncompatibleOutputsError
from ..tuners.reprogrammer.architectures import find_architecture


class OutputReader(Protocol):
    """Reads the fields of [`ModelOutputs`] off a classifier."""

    def read(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The fields of each image: `logits`, and `features` and `patch_features` where there are such."""

    def head(self) -> dict[str, torch.Tensor]:
        """The fields of the head: `class_features`, `logit_scale`, `bias`, those that there are. Call it after `read`."""


def make_reader(classifier: nn.Module, patch_features: bool = False) -> OutputReader:
    """
    The reader for a classifier.

    Args:
        classifier (`torch.nn.Module`): A [`ZeroShotClassifier`] or an image classifier whose output has `logits`.
        patch_features (`bool`, *optional*, defaults to `False`): Whether to read patch tokens too.

    Returns:
        [`OutputReader`]

    Raises:
        IncompatibleOutputsError: the model has no patch tokens in the joint space.
    """
    if hasattr(classifier, "get_class_features"):
        return _TextImageReader(classifier, patch_features)
    if patch_features:
        raise IncompatibleOutputsError(
            f"{type(classifier).__name__} is no text-image model, so its patches have no place among class texts: leave "
            "out the score 'gl_mcm'."
        )
    return _LinearHeadReader(classifier)


def class_names_of(classifier: Any) -> list[str] | None:
    """The classes of a classifier in the order of its logits; `None` where it doesn't name them."""
    names = getattr(classifier, "class_names", None)
    if names is not None:
        return list(names)
    id2label = classifier.config.id2label
    if all(name == f"LABEL_{index}" for index, name in id2label.items()):
        return None
    return [id2label[index] for index in range(len(id2label))]


class _TextImageReader:
    def __init__(self, classifier: Any, patch_features: bool) -> None:
        self.classifier = classifier
        self.patches = _PatchTokens(classifier.model) if patch_features else None

    def read(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.patches is None:
            return self._read(pixel_values)
        with self.patches.recorded():
            fields = self._read(pixel_values)
        return {**fields, "patch_features": self.patches.project()}

    def _read(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.classifier.get_image_features(pixel_values).float()
        head = self.head()
        # Rounded to bfloat16, logits of different images tie: the towers may be autocast, the logits may not.
        with torch.autocast(features.device.type, enabled=False):
            logits = head["logit_scale"] * features @ head["class_features"].t()
        return {"logits": logits + head["bias"] if "bias" in head else logits, "features": features}

    def head(self) -> dict[str, torch.Tensor]:
        classifier = self.classifier
        fields = {
            "class_features": classifier.get_class_features().float(),
            "logit_scale": classifier.logit_scale.float(),
        }
        bias = classifier.logit_bias
        return fields if bias is None else {**fields, "bias": bias.float()}


class _PatchTokens:
    """The last patch tokens of a vision tower, mapped as its pooled output is."""

    def __init__(self, model: nn.Module) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        architecture = find_architecture(base)
        if architecture is None or architecture.vision.projection is None:
            raise self._unsupported(base)
        self.tower = base.get_submodule(architecture.vision.path)
        self.projection = base.get_submodule(architecture.vision.projection)
        # CLIP's towers normalise the class token after the last layer, plain convolutional ones pool by the mean; what
        # either does to its pooled output can be done to each patch.
        inner = getattr(self.tower, "vision_model", self.tower)
        self.norm = getattr(inner, "post_layernorm", None)
        is_plain_convolution = not hasattr(inner.config, "num_attention_heads") and not hasattr(inner, "layernorm")
        if hasattr(inner, "head") or (self.norm is None and not is_plain_convolution):
            raise self._unsupported(base)
        self._tokens: torch.Tensor | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._tokens = output[0]

        # First in line, before a residual's hook replaces the pooled output.
        handle = self.tower.register_forward_hook(record, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def project(self) -> torch.Tensor:
        tokens = self._tokens
        assert tokens is not None
        self._tokens = None
        patches = tokens.flatten(2).transpose(1, 2) if self.norm is None else self.norm(tokens[:, 1:])
        return self.projection(patches).float()

    @staticmethod
    def _unsupported(model: nn.Module) -> IncompatibleOutputsError:
        return IncompatibleOutputsError(
            f"the patch tokens of {type(model).__name__} have no place in the joint space (it pools them by other means "
            "than CLIP's class token or the mean of a feature map): leave out the score 'gl_mcm'."
        )


class _LinearHeadReader:
    def __init__(self, classifier: nn.Module) -> None:
        self.classifier = classifier
        self._head: nn.Linear | None = None
        self._searched = False

    def read(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self._searched:
            # One image tells the head as well as a batch.
            self._head, self._searched = self._find_head(pixel_values[:1]), True
        if self._head is None:
            return {"logits": self.classifier(pixel_values=pixel_values).logits.float()}
        seen: list[torch.Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.classifier(pixel_values=pixel_values)
        finally:
            handle.remove()
        features = seen[-1].float()
        # Whatever their type is now, they may have been rounded to bfloat16 on the way.
        with torch.autocast(features.device.type, enabled=False):
            logits = nn.functional.linear(features, *self._weight_and_bias())
        return {"logits": logits, "features": features}

    def head(self) -> dict[str, torch.Tensor]:
        if self._head is None:
            return {}
        weight, bias = self._weight_and_bias()
        return {"class_features": weight} if bias is None else {"class_features": weight, "bias": bias}

    def _weight_and_bias(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert self._head is not None
        bias = self._head.bias
        return self._head.weight.detach().float(), None if bias is None else bias.detach().float()

    def _find_head(self, pixel_values: torch.Tensor) -> nn.Linear | None:
        """The linear layer whose output is the logits. By what it does, not by name: models call it differently."""
        called: list[tuple[nn.Linear, torch.Tensor]] = []
        handles = [
            module.register_forward_hook(lambda module, args, output: called.append((module, output)))
            for module in self.classifier.modules()
            if isinstance(module, nn.Linear)
        ]
        try:
            logits = self.classifier(pixel_values=pixel_values).logits
        finally:
            for handle in handles:
                handle.remove()
        heads = [module for module, output in called if output.shape == logits.shape and torch.equal(output, logits)]
        return heads[-1] if heads else None
