"""Training losses of a text-image classifier. All of them compute in float32, whatever the model computes in."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F


class Objective(Protocol):
    """
    What a classifier minimises.

    Args:
        logits (`torch.Tensor`):
            Class logits, `(B, C)`.
        labels (`torch.Tensor`):
            Class indices, `(B,)` int64.
        image_features (`torch.Tensor`, *optional*):
            Image embeddings, `(B, D)`, on the unit sphere unless they are a residual mix.
        class_features (`torch.Tensor`, *optional*):
            Class embeddings, `(C, D)`.
        logit_scale (`torch.Tensor`, *optional*):
            The scale that turns cosines into logits, a scalar (100 for OpenAI CLIP).
        reference_logits (`torch.Tensor`, *optional*):
            The logits of the unadapted model for the same images, `(B, C)`. Only computed for an objective whose `requires`
            names them.
        reference_class_features (`torch.Tensor`, *optional*):
            The class embeddings of the unadapted model, `(C, D)`. Only given to an objective whose `requires` names them.

    Returns:
        `torch.Tensor`: the loss, a float32 scalar.
    """

    requires: ClassVar[frozenset[str]]

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        *,
        image_features: torch.Tensor | None = None,
        class_features: torch.Tensor | None = None,
        logit_scale: torch.Tensor | float | None = None,
        reference_logits: torch.Tensor | None = None,
        reference_class_features: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class ClassCrossEntropy:
    """
    Softmax cross-entropy over the prompts of all classes.

    Args:
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target spread evenly over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    requires: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must lie in [0, 1), got {self.label_smoothing}.")

    def __call__(self, logits, labels, **_: Any) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class ClassFocal:
    """
    Focal loss over the prompts of all classes, `alpha (1 - p)^gamma (-log p)` with `p` the probability of the true class
    (arXiv 1708.02002).

    Args:
        gamma (`float`, *optional*, defaults to 2.0):
            How strongly samples that are right already are played down, at least 0; 0 gives cross-entropy.
        alpha (`float`, *optional*, defaults to 1.0):
            Weight of the loss, positive.
    """

    gamma: float = 2.0
    alpha: float = 1.0

    requires: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        _check_focal(self.gamma, self.alpha)

    def __call__(self, logits, labels, **_: Any) -> torch.Tensor:
        return _focal(F.cross_entropy(logits.float(), labels, reduction="none"), self.gamma, self.alpha)


@dataclass(frozen=True)
class Contrastive:
    """
    Symmetric contrastive loss between the images of a batch and the prompts of their classes, in which all pairs of one
    class are positives (arXiv 2204.03610).

    The batch is that of one device: neither other processes nor gradient accumulation enlarge it.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"image_features", "class_features", "logit_scale"})

    def __call__(
        self, logits, labels, *, image_features=None, class_features=None, logit_scale=None, **_: Any
    ) -> torch.Tensor:
        pair_logits = _pair_logits(self, labels, image_features, class_features, logit_scale)
        positive = (labels[:, None] == labels[None, :]).float()
        target = positive / positive.sum(dim=1, keepdim=True)
        return (F.cross_entropy(pair_logits, target) + F.cross_entropy(pair_logits.T, target)) / 2


@dataclass(frozen=True)
class ContrastivePaper:
    """
    Symmetric focal contrastive loss in which every image has its own prompt as the only positive (the released training of
    arXiv 2403.10800).

    Two images of one class are each other's negatives: with few classes prefer [`Contrastive`] or [`ClassCrossEntropy`].

    Args:
        gamma (`float`, *optional*, defaults to 4.0):
            How strongly pairs that are right already are played down, at least 0.
        alpha (`float`, *optional*, defaults to 0.8):
            Weight of the loss, positive.
    """

    gamma: float = 4.0
    alpha: float = 0.8

    requires: ClassVar[frozenset[str]] = frozenset({"image_features", "class_features", "logit_scale"})

    def __post_init__(self):
        _check_focal(self.gamma, self.alpha)

    def __call__(
        self, logits, labels, *, image_features=None, class_features=None, logit_scale=None, **_: Any
    ) -> torch.Tensor:
        pair_logits = _pair_logits(self, labels, image_features, class_features, logit_scale)
        diagonal = torch.arange(len(labels), device=labels.device)
        both = torch.cat([pair_logits, pair_logits.T])
        return _focal(F.cross_entropy(both, diagonal.repeat(2), reduction="none"), self.gamma, self.alpha)


@dataclass(frozen=True)
class Distillation:
    """
    Cross-entropy over the prompts of all classes, plus the divergence from the predictions of the unadapted model:
    `CE + weight T^2 KL(softmax(z_ref / T) || softmax(z / T))` (arXiv 1503.02531).

    Args:
        weight (`float`, *optional*, defaults to 1.0):
            Weight of the divergence, at least 0.
        temperature (`float`, *optional*, defaults to 1.0):
            `T`, positive; higher attends to the classes that are not first.
    """

    weight: float = 1.0
    temperature: float = 1.0

    requires: ClassVar[frozenset[str]] = frozenset({"reference_logits"})

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"`weight` must be at least 0, got {self.weight}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")

    def __call__(self, logits, labels, *, reference_logits=None, **_: Any) -> torch.Tensor:
        _check_given(self, reference_logits=reference_logits)
        logits, reference_logits = logits.float(), reference_logits.detach().float()
        divergence = F.kl_div(
            F.log_softmax(logits / self.temperature, dim=-1),
            F.log_softmax(reference_logits / self.temperature, dim=-1),
            log_target=True,
            reduction="batchmean",
        )
        return F.cross_entropy(logits, labels) + self.weight * self.temperature**2 * divergence


@dataclass(frozen=True)
class Anchored:
    """
    Cross-entropy over the prompts of all classes, plus the mean distance of the class embeddings from those of the unadapted
    model: `CE + weight * mean_c (1 - cos(f_c, f_c^ZS))` (the regulariser of KgCoOp, arXiv 2303.13283, on the unit sphere).

    What the class texts meant before is kept where the training images do not speak against it. That is what the detection
    of out-of-distribution images lives by.

    Args:
        weight (`float`, *optional*, defaults to 3.0):
            Weight of the distance, at least 0; 0 gives cross-entropy.
    """

    weight: float = 3.0

    requires: ClassVar[frozenset[str]] = frozenset({"class_features", "reference_class_features"})

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"`weight` must be at least 0, got {self.weight}.")

    def __call__(
        self, logits, labels, *, class_features=None, reference_class_features=None, **_: Any
    ) -> torch.Tensor:
        _check_given(self, class_features=class_features, reference_class_features=reference_class_features)
        reference = reference_class_features.detach().float()
        distance = 1 - F.cosine_similarity(class_features.float(), reference, dim=-1)
        return F.cross_entropy(logits.float(), labels) + self.weight * distance.mean()


OBJECTIVES: dict[str, type] = {
    "anchored": Anchored,
    "class": ClassCrossEntropy,
    "focal": ClassFocal,
    "contrastive": Contrastive,
    "contrastive_paper": ContrastivePaper,
    "distillation": Distillation,
}


def get_objective(name: str, **options: Any) -> Objective:
    """
    An objective by name.

    Args:
        name (`str`):
            `"anchored"` ([`Anchored`]), `"class"` ([`ClassCrossEntropy`]), `"focal"` ([`ClassFocal`]), `"contrastive"` ([`Contrastive`]),
            `"contrastive_paper"` ([`ContrastivePaper`]) or `"distillation"` ([`Distillation`]).
        options:
            The arguments of that class.

    Returns:
        [`Objective`]: the loss.

    Raises:
        ValueError: if there is no such objective or option, or an option is out of range.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"there is no objective '{name}'. Choose one of {', '.join(OBJECTIVES)}.")
    known = [field.name for field in fields(OBJECTIVES[name])]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"the objective '{name}' has no option {unknown}. Its options are {known}.")
    return OBJECTIVES[name](**options)


def _focal(cross_entropy: torch.Tensor, gamma: float, alpha: float) -> torch.Tensor:
    # 1 - exp(-ce) by expm1: exact where p is near 1, and never negative, which a fractional gamma would turn into nan.
    return (alpha * (-torch.expm1(-cross_entropy)) ** gamma * cross_entropy).mean()


def _pair_logits(objective: Objective, labels, image_features, class_features, logit_scale) -> torch.Tensor:
    """Scaled similarity of every image of the batch to the prompt of every image's class, `(B, B)`."""
    _check_given(objective, image_features=image_features, class_features=class_features, logit_scale=logit_scale)
    logit_scale = torch.as_tensor(logit_scale, device=image_features.device).float()
    # Autocast would take the product back to half precision.
    with torch.autocast(device_type=image_features.device.type, enabled=False):
        return logit_scale * image_features.float() @ class_features[labels].float().T


def _check_given(objective: Objective, **inputs: Any) -> None:
    missing = [name for name, value in inputs.items() if value is None]
    if missing:
        raise ValueError(
            f"{type(objective).__name__} needs {', '.join(missing)}, which the classifier did not give. Train a "
            "`ZeroShotClassifier`, or use the objective 'class', 'focal' or, for a classifier of fixed classes, its own loss."
        )


def _check_focal(gamma: float, alpha: float) -> None:
    if gamma < 0:
        raise ValueError(f"`gamma` must be at least 0, got {gamma}.")
    if alpha <= 0:
        raise ValueError(f"`alpha` must be positive, got {alpha}.")
