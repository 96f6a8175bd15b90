from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Optional, Union

import torch

from ..atomic import replacing
from .outputs import IncompatibleOutputsError
from .score import Score


@dataclass(frozen=True)
class Threshold:
    """
    The score below which an image is called out-of-distribution. Use [`Threshold.fit`] to make one.

    Args:
        value (`float`): Scores below it are out-of-distribution; **a score equal to it is in-distribution**.
        tpr (`float`): The fraction of in-distribution scores that had to stay on the in-distribution side.
        achieved_tpr (`float`): The fraction that did, at least `tpr`; more where scores are tied at `value`.
        n (`int`): Number of in-distribution scores it was fitted on.
        score (`str`, *optional*): Name of the score.
        options (`dict`, *optional*): The score's options.
        identity (`str`, *optional*): Identity of the model that gave the scores.
    """

    value: float
    tpr: float
    achieved_tpr: float
    n: int
    score: Optional[str] = None
    options: dict[str, Any] = field(default_factory=dict)
    identity: Optional[str] = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"`value` must be finite, got {self.value}.")

    @classmethod
    def fit(
        cls,
        id_scores: torch.Tensor,
        tpr: float = 0.95,
        *,
        score: Optional[Score] = None,
        identity: Optional[str] = None,
    ) -> Threshold:
        """
        The largest threshold that keeps at least a fraction `tpr` of the in-distribution scores.

        It is always one of the scores, and samples tied with it stay in-distribution: the first point of the ROC curve
        (in-distribution positive) with a true positive rate of at least `tpr`.

        Args:
            id_scores (`torch.Tensor`): In-distribution scores of shape `(N,)`, not those the score was fitted on.
            tpr (`float`, *optional*, defaults to 0.95): In (0, 1].
            score ([`Score`], *optional*): The score they come from; its name and options are recorded.
            identity (`str`, *optional*): Identity of the model; defaults to the one that `score` was fitted on.

        Returns:
            [`Threshold`]

        Raises:
            ValueError: no scores, NaN or infinite ones, or `tpr` out of range.
        """
        values = _checked(id_scores, "id_scores")
        if not 0 < tpr <= 1:
            raise ValueError(f"`tpr` must be in (0, 1], got {tpr}.")
        n = len(values)
        if n == 0:
            raise ValueError("`id_scores` is empty: a threshold needs in-distribution scores.")
        # Not ceil(tpr * n): the product may be rounded past a whole number (0.07 * 100 > 7).
        kept = math.floor(tpr * n)
        if kept / n < tpr:
            kept += 1
        value = values.sort(descending=True).values[kept - 1].item()
        return cls(
            value=value,
            tpr=tpr,
            achieved_tpr=(values >= value).sum().item() / n,
            n=n,
            score=None if score is None else score.name,
            options={} if score is None else score.options,
            identity=identity if score is None or identity is not None else score.identity,
        )

    def is_ood(self, scores: torch.Tensor, identity: Optional[str] = None) -> torch.Tensor:
        """
        Whether each sample is out-of-distribution.

        Args:
            scores (`torch.Tensor`): Shape `(N,)`, from the same score as the threshold's.
            identity (`str`, *optional*): Identity of the model that gave them; refused where it isn't the threshold's.

        Returns:
            `torch.Tensor`: Booleans of shape `(N,)`.
        """
        if identity is not None and self.identity is not None and identity != self.identity:
            raise IncompatibleOutputsError(
                f"the threshold was fitted on model {self.identity!r} but the scores come from {identity!r}; "
                "fit a threshold on that model's own scores."
            )
        return _checked(scores, "scores") < self.value

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Threshold:
        """The inverse of `to_dict`."""
        known = {f.name for f in fields(cls)}
        required = {"value", "tpr", "achieved_tpr", "n"}
        if not required <= data.keys() <= known:
            raise ValueError(
                f"a threshold needs {sorted(required)} and may have {sorted(known - required)}, got {sorted(data)}."
            )
        return cls(**data)

    def save(self, path: Union[str, Path]) -> None:
        """Write it as JSON; the file appears whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        with replacing(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Union[str, Path]) -> Threshold:
        """Read what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def _checked(scores: torch.Tensor, name: str) -> torch.Tensor:
    values = torch.as_tensor(scores).double()
    if values.ndim != 1:
        raise ValueError(f"`{name}` must have shape (N,), got {tuple(values.shape)}.")
    if not torch.isfinite(values).all():
        raise ValueError(f"`{name}` holds NaN or infinite values.")
    return values
