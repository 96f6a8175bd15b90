from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch

from .outputs import ModelOutputs
from .score import Score


@dataclass(eq=False)
class PytorchOODScore(Score):
    """
    A detector of the pytorch-ood package as a [`Score`]; made by [`from_pytorch_ood`].

    Args:
        detector (`object`): The detector.
        input (`str`): `"features"` or `"logits"`.
    """

    detector: Any
    input: str

    def __post_init__(self) -> None:
        self._fitted = False
        self.name = f"pytorch_ood/{type(self.detector).__name__}"  # type: ignore[misc]
        self.needs = frozenset({self.input})  # type: ignore[misc]
        self.fit_needs = frozenset({self.input, "labels"}) if self.requires_fit else frozenset()  # type: ignore[misc]

    @property
    def options(self) -> dict[str, Any]:
        return {"detector": repr(self.detector), "input": self.input}

    @property
    def requires_fit(self) -> bool:
        return bool(getattr(self.detector, "requires_fit", False))

    @property
    def is_fitted(self) -> bool:
        return self._fitted or not self.requires_fit

    def state_dict(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError(self._no_portable_state())

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        raise NotImplementedError(self._no_portable_state())

    def _no_portable_state(self) -> str:
        return (
            f"{self.name} keeps its state inside the pytorch-ood detector, which has no portable form: fit it again "
            "from cached outputs, or use one of this package's own scores."
        )

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        getattr(self.detector, f"fit_{self.input}")(getattr(outputs, self.input), outputs.labels)
        self._fitted = True
        return {}

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        # pytorch-ood's convention is the opposite: larger means more out-of-distribution.
        outlier_scores = getattr(self.detector, f"predict_{self.input}")(getattr(outputs, self.input))
        scores = -torch.as_tensor(outlier_scores, device=outputs.logits.device)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))


def from_pytorch_ood(detector: Any, input: Optional[str] = None) -> Score:
    """
    Use a detector with pytorch-ood's interface (0.4 or later) as a [`Score`].

    The detector works on cached outputs, so it needs no model or encoder (pass `None` to its constructor). Its sign is
    flipped to this package's convention. It can't be saved; fit it again from cached outputs instead.

    Args:
        detector (`object`):
            With `predict_features(z)` or `predict_logits(logits)` and, where its `requires_fit` is true,
            `fit_features(z, y)` or `fit_logits(logits, y)`.
        input (`str`, *optional*):
            `"features"` or `"logits"`. Defaults to the one that the detector has a `predict_` method for.

    Returns:
        [`Score`]: With the name `"pytorch_ood/<class>"`.

    Raises:
        ValueError: the detector has no such interface.
    """
    inputs = ("features", "logits")
    if input is not None and input not in inputs:
        raise ValueError(f"`input` must be 'features' or 'logits', got {input!r}.")
    offered = [kind for kind in inputs if callable(getattr(detector, f"predict_{kind}", None))]
    if not offered or (input is not None and input not in offered):
        raise ValueError(
            f"{type(detector).__name__} has no {' or '.join(f'predict_{kind}' for kind in inputs if input in (None, kind))}"
            f" method{f', only predict_{offered[0]}' if offered else ''}: detectors that need the network itself (inputs, "
            "gradients, feature maps) can't work from cached outputs."
        )
    return PytorchOODScore(detector, input or offered[0])
