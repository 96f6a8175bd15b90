from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..atomic import replacing
from .outputs import IncompatibleOutputsError, ModelOutputs
from .registry import get_score


class NotFittedError(RuntimeError):
    """A score that must be fitted on in-distribution outputs was used before that."""


@dataclass(eq=False)
class Score(ABC):
    """
    An out-of-distribution score: confidence-like, **larger means more in-distribution**.

    Subclasses are dataclasses whose fields are the options (JSON types); they implement `_score` and, where something
    is learned from in-distribution data, `_fit`, which returns the learned tensors.

    Attributes:
        name (`str`): The name in [`list_scores`].
        needs (`frozenset[str]`): Fields of [`ModelOutputs`] that `score` reads.
        fit_needs (`frozenset[str]`): Fields that `fit` reads; empty where there is nothing to fit.
        fitted_tensors (`Mapping[str, str | None]`):
            The tensors that `fit` learns, each with the field of [`ModelOutputs`] whose last dimension it shares.
        identity (`str`, *optional*): Identity of the model that the score was fitted on.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    fit_needs: ClassVar[frozenset[str]] = frozenset()
    fitted_tensors: ClassVar[Mapping[str, Optional[str]]] = {}

    identity: Optional[str] = field(default=None, init=False)
    _state: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """The options it was made with: `get_score(score.name, **score.options)` makes another one."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @property
    def requires_fit(self) -> bool:
        """Whether `score` needs a `fit` before it."""
        return bool(self.fitted_tensors)

    @property
    def is_fitted(self) -> bool:
        """Whether `score` can be called now."""
        return self._state.keys() == self.fitted_tensors.keys()

    @torch.no_grad()
    def fit(self, outputs: ModelOutputs) -> Score:
        """
        Learn from in-distribution outputs (cached once, usually of the training images).

        Args:
            outputs ([`ModelOutputs`]): With the fields in `fit_needs`. A score without `fit_needs` ignores them.

        Returns:
            [`Score`]: Itself, bound to `outputs.identity`.

        Raises:
            IncompatibleOutputsError: a needed field is missing.
            ValueError: there are no samples, or too few for the options.
        """
        if not self.requires_fit:
            return self
        outputs.require(self.fit_needs, f"fitting score {self.name!r}")
        if len(outputs) == 0:
            raise ValueError(f"fitting score {self.name!r} needs at least one sample, got none.")
        # Contiguous as after loading: a matrix product in another memory layout differs in the last bit.
        self._state = {name: tensor.contiguous() for name, tensor in self._fit(outputs).items()}
        self.identity = outputs.identity
        return self

    @torch.no_grad()
    def score(self, outputs: ModelOutputs) -> torch.Tensor:
        """
        Score each sample.

        Args:
            outputs ([`ModelOutputs`]): With the fields in `needs`, from the model that the score was fitted on.

        Returns:
            `torch.Tensor`: Shape `(N,)`, float32 or wider, finite; larger means more in-distribution.

        Raises:
            NotFittedError: the score needs fitting first.
            IncompatibleOutputsError: a needed field is missing, or the outputs come from another model or adapter.
        """
        if not self.is_fitted:
            raise NotFittedError(self._how_to_fit())
        outputs.require(self.needs, f"score {self.name!r}")
        self._check_same_model(outputs)
        self._state = {name: tensor.to(outputs.logits.device) for name, tensor in self._state.items()}
        scores = self._score(outputs)
        if not torch.isfinite(scores).all():
            raise ValueError(
                f"score {self.name!r} overflowed; check the magnitude of {', '.join(sorted(self.needs))}."
            )
        return scores

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The learned tensors, and the identity they belong to as UTF-8 bytes."""
        if not self.is_fitted:
            raise NotFittedError(self._how_to_fit())
        state = {name: tensor.clone() for name, tensor in self._state.items()}
        if self.identity is not None:
            state["identity"] = torch.tensor(list(self.identity.encode()), dtype=torch.uint8)
        return state

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """
        Take over what another score with the same options has learned.

        Args:
            state_dict (`Mapping[str, torch.Tensor]`): From `state_dict()`.

        Raises:
            ValueError: tensors are missing or not this score's.
        """
        state = dict(state_dict)
        identity = state.pop("identity", None)
        if state.keys() != self.fitted_tensors.keys():
            raise ValueError(
                f"the state of score {self.name!r} consists of {sorted(self.fitted_tensors)}, got {sorted(state)}."
            )
        self._state = {name: tensor.clone() for name, tensor in state.items()}
        self.identity = None if identity is None else bytes(identity.tolist()).decode()

    def save(self, path: Union[str, Path]) -> None:
        """
        Write name, options, learned tensors and identity to one safetensors file; the file appears whole or not at all.

        Args:
            path (`str` or `Path`): The file, e.g. `"adapter/knn.safetensors"`.
        """
        metadata = {"name": self.name, "options": json.dumps(self.options), "identity": self.identity or ""}
        state = self.state_dict()
        with replacing(Path(path)) as temporary:
            save_file(state, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Union[str, Path]) -> Score:
        """
        Read a score that `save` wrote.

        Args:
            path (`str` or `Path`): The file.

        Returns:
            [`Score`]: Of the class that was saved.

        Raises:
            ValueError: the file isn't a saved score, or holds a score of another class than the one asked.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        if not {"name", "options"} <= metadata.keys():
            raise ValueError(f"{path} is not a saved score: its metadata has no `name` and `options`.")
        score = get_score(metadata["name"], **json.loads(metadata["options"]))
        if not isinstance(score, cls):
            raise ValueError(f"{path} holds a {type(score).__name__}, not a {cls.__name__}; use Score.load.")
        score.load_state_dict(state)
        return score

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    @abstractmethod
    def _score(self, outputs: ModelOutputs) -> torch.Tensor: ...

    def _how_to_fit(self) -> str:
        needed = ", ".join(f"`{name}`" for name in sorted(self.fit_needs))
        return f"score {self.name!r} is not fitted: call fit(outputs) first, with in-distribution outputs that have {needed}."

    def _check_option(self, option: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(
                f"option `{option}` of score {self.name!r} must be {expected}, got {getattr(self, option)!r}."
            )

    def _check_same_model(self, outputs: ModelOutputs) -> None:
        # An anonymous fit can't be checked; a known one is never used on anonymous outputs, or it would protect nothing.
        if self.identity is not None and outputs.identity != self.identity:
            raise IncompatibleOutputsError(
                f"score {self.name!r} was fitted on model {self.identity!r} but the outputs come from "
                f"{outputs.identity!r}; fit a score on that model's own outputs."
            )
        for name, field_name in self.fitted_tensors.items():
            if field_name is None:
                continue
            fitted, given = self._state[name].shape[-1], getattr(outputs, field_name).shape[-1]
            if fitted != given:
                raise IncompatibleOutputsError(
                    f"score {self.name!r} was fitted on `{field_name}` of size {fitted}, got size {given}."
                )
