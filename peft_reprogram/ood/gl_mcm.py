from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from .msp import log_max_softmax
from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


@register_score("gl_mcm")
@dataclass(eq=False)
class GLMCM(Score):
    """
    Global-local maximum concept matching ([arXiv 2304.04521](https://arxiv.org/abs/2304.04521)): MCM of the image plus
    the largest MCM of its patches, as the logarithm of the sum. For text-image models with patch tokens.

    Args:
        temperature (`float`, *optional*, defaults to 1.0): The cosines are divided by it.
        local_weight (`float`, *optional*, defaults to 1.0): Weight > 0 of the patches' term.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "logit_scale", "class_features", "patch_features"})
    temperature: float = 1.0
    local_weight: float = 1.0

    def __post_init__(self) -> None:
        self._check_option("temperature", self.temperature > 0, "> 0")
        self._check_option("local_weight", self.local_weight > 0, "> 0 (for the image alone use 'mcm')")

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        assert outputs.patch_features is not None
        assert outputs.class_features is not None
        patches = normalize(outputs.patch_features, dim=-1) @ normalize(outputs.class_features, dim=-1).T
        image_score = log_max_softmax(outputs.cosines() / self.temperature)
        patch_score = log_max_softmax(patches / self.temperature).amax(dim=-1)
        return torch.logaddexp(image_score, patch_score + math.log(self.local_weight))
