from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

import torch

from .outputs import IncompatibleOutputsError, ModelOutputs
from .registry import register_score
from .score import Score


@register_score("vim")
@dataclass(eq=False)
class ViM(Score):
    """
    Virtual-logit matching ([arXiv 2203.10807](https://arxiv.org/abs/2203.10807)): the energy of the logits minus a
    virtual logit, the norm of a feature's part outside the principal subspace of the in-distribution features.

    The features are centred where the head gives zero logits (or as near as least squares can). A cosine head is
    linear in the image embedding, with weight `logit_scale * class_features`, and is treated as such.

    Args:
        dim (`int`, *optional*):
            Dimension of the principal subspace, below D. Defaults to the paper's 1000 for D > 1500 and 512 for
            D >= 768, and to D / 2 below that.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "features"})
    fit_needs: ClassVar[frozenset[str]] = frozenset({"logits", "features", "class_features"})
    fitted_tensors: ClassVar = {"origin": "features", "residual_space": None, "alpha": None}
    dim: Optional[int] = None

    def __post_init__(self) -> None:
        self._check_option("dim", self.dim is None or (isinstance(self.dim, int) and self.dim >= 1), "an integer >= 1")

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        assert outputs.features is not None
        assert outputs.class_features is not None
        features = outputs.features.double()
        size = features.shape[1]
        dim = self.dim or (1000 if size > 1500 else 512 if size >= 768 else max(1, size // 2))
        self._check_option("dim", dim < size, f"below the feature dimension ({size})")
        origin = torch.zeros_like(features[0])
        if outputs.bias is not None:
            weight = outputs.class_features.double() * (outputs.logit_scale or 1.0)
            origin = -torch.linalg.pinv(weight) @ outputs.bias.double()
        centred = features - origin
        _, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        residual_space = directions[:, : size - dim]
        mean_residual = (centred @ residual_space).norm(dim=-1).mean()
        mean_max_logit = outputs.logits.double().amax(dim=-1).mean()
        if mean_max_logit <= 0:
            raise IncompatibleOutputsError(
                "ViM scales its virtual logit to the mean largest logit, which must be positive but is "
                f"{mean_max_logit.item():.4g} here (a sigmoid head?); use 'knn' or 'mahalanobis' instead."
            )
        if mean_residual <= torch.finfo(features.dtype).eps * size * centred.norm(dim=-1).mean():
            raise ValueError(
                f"all features lie in a subspace of dimension {dim}, so ViM has no residual to measure: use a smaller "
                "`dim` or fit on more samples."
            )
        return {"origin": origin, "residual_space": residual_space, "alpha": mean_max_logit / mean_residual}

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        assert outputs.features is not None
        residual = (outputs.features.double() - self._state["origin"]) @ self._state["residual_space"]
        return outputs.logits.double().logsumexp(dim=-1) - self._state["alpha"] * residual.norm(dim=-1)
