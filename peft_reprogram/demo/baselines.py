"""The two usual ways to adapt a text-image model, to compare with: a linear probe and full fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from ..classifier import ZeroShotClassifier


class LinearHeadClassifier(nn.Module):
    """
    The image tower with a linear head on its normalised embeddings, which starts as the zero-shot classifier.

    Args:
        zero_shot ([`ZeroShotClassifier`]): Gives the tower, and the embeddings of the class prompts as the first head.
        train_tower (`bool`): Whether the image tower is trained too (full fine-tuning) or the head alone (linear probe).
    """

    def __init__(self, zero_shot: ZeroShotClassifier, train_tower: bool) -> None:
        super().__init__()
        self.class_names = list(zero_shot.class_names)
        self.config: Any = zero_shot.config
        with torch.no_grad():
            rows = zero_shot.logit_scale * zero_shot.get_class_features()
        self.head = nn.Linear(rows.shape[1], rows.shape[0])
        self.head.weight.data.copy_(rows)
        nn.init.zeros_(self.head.bias)
        self.tower = zero_shot.model.vision_model
        self.projection = zero_shot.model.visual_projection
        for part in (self.tower, self.projection):
            part.requires_grad_(train_tower)

    def forward(self, pixel_values: torch.Tensor, labels: Optional[torch.Tensor] = None) -> ImageClassifierOutput:
        """Logits `(B, C)` of images `(B, 3, height, width)`, and the cross-entropy if labels are given."""
        features = self.projection(self.tower(pixel_values=pixel_values).pooler_output)
        logits = self.head(F.normalize(features, dim=-1))
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)

    def save_pretrained(self, save_directory: Union[str, Path]) -> None:
        """Writes the trained weights as safetensors."""
        from safetensors.torch import save_file

        tensors = {name: p.detach().contiguous() for name, p in self.named_parameters() if p.requires_grad}
        save_file(tensors, Path(save_directory) / "model.safetensors")
