"""Fine-tuning with two contrastive losses beside cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from .image_tower import ImageTowerStrategy
from .linear_head import LinearHeadClassifier
from .registry import register
from .strategy import Task


class BiTuningClassifier(LinearHeadClassifier):
    """
    A [`LinearHeadClassifier`], all of it trained, whose training loss is cross-entropy plus two contrastive terms (arXiv
    2011.06182).

    Keys are embeddings, and projections of embeddings, by a slowly following copy of the weights; the last ones of each
    class are kept in queues. One term draws the row of the true class in the head towards the image's embedding and the
    class's queue and away from the queues of the others; the other term does the same for the image's projection. The
    queues start with random directions. The paper's keys see another augmentation of the image, here they see the same
    pixels.

    Args:
        *args: As of [`LinearHeadClassifier`].
        queue_size (`int`): Keys kept of each class, K in the paper.
        temperature (`float`): Cosines are divided by it, T in the paper.
        momentum (`float`): Share of itself that the copy keeps at each step, m in the paper; in [0, 1].
        projection_dim (`int`): Width of the projections.
        contrastive_weight (`float`): Factor of the two terms, at least 0.
        **kwargs: As of [`LinearHeadClassifier`].

    Raises:
        ValueError: If an argument is out of range.
    """

    queue_features: torch.Tensor
    queue_projections: torch.Tensor
    queue_positions: torch.Tensor

    def __init__(
        self,
        *args: Any,
        queue_size: int,
        temperature: float,
        momentum: float,
        projection_dim: int,
        contrastive_weight: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if queue_size < 1 or projection_dim < 1:
            raise ValueError(
                f"`queue_size` and `projection_dim` must be at least 1, got {queue_size} and {projection_dim}."
            )
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        if not 0 <= momentum <= 1:
            raise ValueError(f"`momentum` must be in [0, 1], got {momentum}.")
        if contrastive_weight < 0:
            raise ValueError(f"`contrastive_weight` must be at least 0, got {contrastive_weight}.")
        self.temperature = temperature
        self.momentum = momentum
        self.contrastive_weight = contrastive_weight
        self.model.requires_grad_(True)
        width = self.head.in_features
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection_dim))
        # Buffers, since the copy is no part of what is trained or saved, but is part of a checkpoint.
        for index, (_, parameter) in enumerate(self._followed()):
            self.register_buffer(f"momentum_{index}", parameter.detach().clone())
        for name, size in (("features", width), ("projections", projection_dim)):
            directions = F.normalize(torch.randn(self.num_labels, queue_size, size), dim=-1)
            self.register_buffer(f"queue_{name}", directions)
        self.register_buffer("queue_positions", torch.zeros(self.num_labels, dtype=torch.int64))
        self.to(self.head.weight.device)

    def forward(self, pixel_values: torch.Tensor, labels: Optional[torch.Tensor] = None) -> ImageClassifierOutput:
        features = self.get_image_features(pixel_values)
        logits = self.head(features)
        if labels is None:
            return ImageClassifierOutput(logits=logits)
        loss = self.loss(logits, labels)
        if self.training:
            projections = F.normalize(self.projector(features).float(), dim=-1)
            keys, projected_keys = self._keys(pixel_values)
            loss = loss + self.contrastive_weight * self.contrastive_loss(
                features.float(), projections, projected_keys, labels
            )
            self._enqueue(keys, projected_keys, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def contrastive_loss(
        self, features: torch.Tensor, projections: torch.Tensor, projected_keys: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """
        The two contrastive terms, with the queues as they are.

        Args:
            features (`torch.Tensor`): Embeddings of unit length, shape `(B, D)`.
            projections (`torch.Tensor`): Their projections, of unit length, shape `(B, P)`.
            projected_keys (`torch.Tensor`): Those of the slow copy, shape `(B, P)`.
            labels (`torch.Tensor`): Class indices, shape `(B,)`.

        Returns:
            `torch.Tensor`: Their sum, a scalar.
        """
        rows = F.normalize(self.head.weight.float(), dim=-1)[labels]
        return self._term(rows, features, self.queue_features, labels) + self._term(
            projections, projected_keys, self.queue_projections, labels
        )

    def _term(
        self, anchors: torch.Tensor, own: torch.Tensor, queue: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        # A copy: the backward pass needs the queue as it is now.
        keys = queue.clone()
        with torch.autocast(anchors.device.type, enabled=False):
            own_cosines = (anchors * own).sum(dim=-1, keepdim=True)
            cosines = torch.cat([own_cosines, anchors @ keys.flatten(0, 1).t()], dim=1)
            log_shares = F.log_softmax(cosines / self.temperature, dim=1)
        queued = log_shares[:, 1:].view(len(labels), *queue.shape[:2])
        positives = torch.cat(
            [log_shares[:, :1], queued[torch.arange(len(labels), device=labels.device), labels]], dim=1
        )
        return -positives.mean()

    @torch.no_grad()
    def _keys(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copy = {}
        for index, (name, parameter) in enumerate(self._followed()):
            slow = self.get_buffer(f"momentum_{index}")
            slow.lerp_(parameter.detach(), 1 - self.momentum)
            copy[f"classifier.{name}"] = slow
        keys, projections = torch.func.functional_call(_Encoder(self), copy, (pixel_values,))
        return keys.float(), F.normalize(projections.float(), dim=-1)

    @torch.no_grad()
    def _enqueue(self, keys: torch.Tensor, projected_keys: torch.Tensor, labels: torch.Tensor) -> None:
        same = labels[:, None] == labels[None, :]
        rank = same.tril(-1).sum(dim=1)  # how many of its class come before it in the batch
        queue_size = self.queue_features.shape[1]
        # Of more images of a class than its queue holds, the last ones stay.
        kept = rank >= same.sum(dim=1) - queue_size
        places = (self.queue_positions[labels] + rank) % queue_size
        self.queue_features[labels[kept], places[kept]] = keys[kept]
        self.queue_projections[labels[kept], places[kept]] = projected_keys[kept]
        counts = torch.bincount(labels, minlength=self.num_labels)
        self.queue_positions.copy_((self.queue_positions + counts) % queue_size)

    def _followed(self) -> list[tuple[str, nn.Parameter]]:
        """What the slow copy follows: all but the head."""
        return [(name, parameter) for name, parameter in self.named_parameters() if not name.startswith("head.")]


class _Encoder(nn.Module):
    """From pixels to embeddings and their projections, as a module, so that it can be called with other weights."""

    def __init__(self, classifier: BiTuningClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.classifier.get_image_features(pixel_values)
        return features, self.classifier.projector(features)


@register
@dataclass(frozen=True)
class BiTuning(ImageTowerStrategy):
    """
    Bi-tuning (arXiv 2011.06182): full fine-tuning with cross-entropy and two contrastive terms, see [`BiTuningClassifier`].
    Costs a second forward pass a step, and memory for a copy of the image side.

    Args:
        lr (`float`, *optional*, defaults to 1e-4): Learning rate of AdamW.
        weight_decay (`float`, *optional*, defaults to 0.0): Decoupled weight decay.
        queue_size (`int`, *optional*, defaults to 40): Keys kept of each class.
        temperature (`float`, *optional*, defaults to 0.07): Of the contrastive terms.
        momentum (`float`, *optional*, defaults to 0.999): Of the slow copy.
        projection_dim (`int`, *optional*, defaults to 128): Width of the projections.
        contrastive_weight (`float`, *optional*, defaults to 1.0): Factor of the contrastive terms.
    """

    name: ClassVar[str] = "bi_tuning"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"lr": 1e-4}, {"lr": 3e-4}, {"lr": 3e-5})

    lr: float = 1e-4
    queue_size: int = 40
    temperature: float = 0.07
    momentum: float = 0.999
    projection_dim: int = 128
    contrastive_weight: float = 1.0

    def build(self, task: Task) -> nn.Module:
        return BiTuningClassifier(
            task.zero_shot(),
            queue_size=self.queue_size,
            temperature=self.temperature,
            momentum=self.momentum,
            projection_dim=self.projection_dim,
            contrastive_weight=self.contrastive_weight,
        )
