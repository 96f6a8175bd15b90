from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Optional, Union

import torch


_PER_SAMPLE = ("logits", "features", "patch_features", "labels")
_PER_CLASS = ("class_features", "bias")


class IncompatibleOutputsError(ValueError):
    """The outputs of a model lack what a score needs, or come from another model than the score was fitted on."""


@dataclass(frozen=True, eq=False)
class ModelOutputs:
    """
    What one forward pass leaves behind for N images: everything that an out-of-distribution score may look at.

    Floating point tensors in less than float32 are upcast on construction, so that no score ever takes a softmax in
    half precision. All tensors must be finite and on one device.

    The kind of head is told by `logit_scale`: a number means a cosine head (a text-image model), `None` means a plain
    linear layer. Either way `logits = (logit_scale or 1) * features @ class_features.T + bias`.

    Args:
        logits (`torch.Tensor`):
            Class logits of shape `(N, C)`, exactly as the model gives them.
        features (`torch.Tensor`, *optional*):
            What the head sees, of shape `(N, D)`: the image embedding of a text-image model, the penultimate layer of
            a plain classifier.
        class_features (`torch.Tensor`, *optional*):
            The head's weight, of shape `(C, D)`: the text embeddings of the classes, or the last layer's `weight`.
        logit_scale (`float` or scalar `torch.Tensor`, *optional*):
            Factor on the cosines of a text-image model (already exponentiated, > 0); `None` for a linear head.
        bias (`torch.Tensor`, *optional*):
            The head's bias of shape `(C,)`; a scalar tensor (SigLIP's `logit_bias`) counts for every class.
        patch_features (`torch.Tensor`, *optional*):
            Patch tokens projected into the joint space, of shape `(N, P, D)`.
        labels (`torch.Tensor`, *optional*):
            Integer class indices of shape `(N,)`.
        identity (`str`, *optional*):
            Fingerprint of the base model and its adapter. A score fitted on one identity refuses any other.

    Raises:
        ValueError: a tensor has the wrong shape or dtype, or holds NaN or infinite values.
    """

    logits: torch.Tensor
    features: Optional[torch.Tensor] = None
    class_features: Optional[torch.Tensor] = None
    logit_scale: Optional[float] = None
    bias: Optional[torch.Tensor] = None
    patch_features: Optional[torch.Tensor] = None
    labels: Optional[torch.Tensor] = None
    identity: Optional[str] = None

    def __post_init__(self) -> None:
        for name in (*_PER_SAMPLE, *_PER_CLASS):
            tensor = getattr(self, name)
            if tensor is None and name != "logits":
                continue
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"`{name}` must be a torch.Tensor, got {type(tensor).__name__}.")
            if name == "labels":
                if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
                    raise ValueError(f"`labels` must hold integer class indices, got dtype {tensor.dtype}.")
                continue
            if not tensor.is_floating_point():
                raise ValueError(f"`{name}` must be a floating point tensor, got dtype {tensor.dtype}.")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"`{name}` holds NaN or infinite values; look for an overflow in the forward pass.")
            self._set(name, tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)))
        if self.logit_scale is not None:
            scale = self.logit_scale
            scale = scale.detach().item() if isinstance(scale, torch.Tensor) else float(scale)
            if not 0 < scale < float("inf"):
                raise ValueError(f"`logit_scale` must be a finite number > 0 (or None: linear head), got {scale}.")
            self._set("logit_scale", scale)
        if self.logits.ndim != 2 or self.logits.shape[1] == 0:
            raise ValueError(f"`logits` must have shape (N, C) with C > 0, got {tuple(self.logits.shape)}.")
        if self.bias is not None and self.bias.ndim == 0:
            self._set("bias", self.bias.expand(self.logits.shape[1]))
        self._check_shapes()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_shapes(self) -> None:
        sizes = {"N": self.logits.shape[0], "C": self.logits.shape[1]}
        if self.features is not None and self.features.ndim == 2:
            sizes["D"] = self.features.shape[1]
        expected_axes = {
            "features": "ND",
            "class_features": "CD",
            "bias": "C",
            "patch_features": "NPD",
            "labels": "N",
        }
        for name, axes in expected_axes.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            wanted = (
                "(" + ", ".join(str(sizes.get(axis, axis)) for axis in axes) + ("," if len(axes) == 1 else "") + ")"
            )
            fits = tensor.ndim == len(axes) and all(
                sizes.setdefault(axis, size) == size for axis, size in zip(axes, tensor.shape)
            )
            if not fits:
                raise ValueError(
                    f"`{name}` must have shape {wanted} to go with logits of shape {tuple(self.logits.shape)}, "
                    f"got {tuple(tensor.shape)}."
                )

    def __len__(self) -> int:
        return self.logits.shape[0]

    def __getitem__(self, index: Union[slice, torch.Tensor]) -> ModelOutputs:
        """The same model's outputs for some of the samples (a slice, a boolean mask or an index tensor)."""
        chosen = {name: getattr(self, name)[index] for name in _PER_SAMPLE if getattr(self, name) is not None}
        return replace(self, **chosen)

    def require(self, names: frozenset[str], purpose: str) -> None:
        """
        Raise unless all the named fields are there.

        Args:
            names (`frozenset[str]`): Names of fields of this class.
            purpose (`str`): Who asks, for the message, e.g. `"score 'knn'"`.

        Raises:
            IncompatibleOutputsError: names every field that is missing.
        """
        missing = sorted(name for name in names if getattr(self, name) is None)
        if missing:
            present = [field.name for field in fields(self) if getattr(self, field.name) is not None]
            hint = " (`logit_scale` is None for a linear head: this is for text-image models)"
            raise IncompatibleOutputsError(
                f"{purpose} needs {', '.join(f'`{name}`' for name in missing)} in ModelOutputs, which has only "
                f"{', '.join(present)}{hint if 'logit_scale' in missing else ''}."
            )

    def cosines(self) -> torch.Tensor:
        """Similarities of images and class texts, `(N, C)`: the logits without their scale and bias."""
        self.require(frozenset({"logit_scale"}), "a cosine")
        assert self.logit_scale is not None
        unbiased = self.logits if self.bias is None else self.logits - self.bias
        return unbiased / self.logit_scale

    def head(self, features: torch.Tensor) -> torch.Tensor:
        """
        The logits that the model's head gives to changed features, in float64.

        Args:
            features (`torch.Tensor`): Shape `(N, D)`.

        Returns:
            `torch.Tensor`: Shape `(N, C)`.
        """
        self.require(frozenset({"class_features"}), "recomputing logits")
        assert self.class_features is not None
        logits = features.double() @ self.class_features.double().T * (self.logit_scale or 1.0)
        return logits if self.bias is None else logits + self.bias
