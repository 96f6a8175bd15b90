"""The outcome of an evaluation: numbers that know how they were made."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..atomic import replacing


SELECTIONS = ("last", "val", "test")


@dataclass
class ModelMeasures:
    """
    What was measured of one model. All rates are fractions of [0, 1].

    Args:
        identity (`str`): Fingerprint of base model, adapter and classes.
        id (`dict`): Of the in-distribution set: `accuracy`, `balanced_accuracy`, `class_accuracy` (name -> accuracy) and
            `n`.
        calibration (`dict`): `ece`, `ece_equal_mass`, `nll`, `brier`, `confidence`, `bins` on the in-distribution set;
            and where a temperature was fitted the same numbers after scaling under `scaled`, with `temperature`, or under
            `not_scaled` why no finite one is best.
        shifts (`dict`): Shift -> what `id` holds.
        shift_summary (`dict`): `mean`, `worst`, `worst_shift`, `relative_robustness` (shift -> fraction),
            `mean_relative_robustness`; empty without shifts.
        corruptions (`dict`): Corruption -> severity (as text) -> accuracy.
        corruption_summary (`dict`): `none` (the unnormalised mean corruption error, of the common corruptions where any of them
            was measured) and, on ImageNet with all 15 at five severities, `alexnet` (the normalised one); see
            [`~peft_reprogram.metrics.mean_corruption_error`].
        ood (`dict`): Score -> set -> the entries of [`~peft_reprogram.metrics.ood_metrics`].
        ood_full_spectrum (`dict`): The same with shifted images counted as in-distribution.
        skipped_scores (`dict`): Score -> why it does not apply to this model.
        curves (`dict`): What the pictures need: `reliability`, and for each score histograms and ROC curves.
        seconds (`float`): Time for all passes and metrics.
    """

    identity: str
    id: dict[str, Any]
    calibration: dict[str, Any]
    shifts: dict[str, dict[str, Any]] = field(default_factory=dict)
    shift_summary: dict[str, Any] = field(default_factory=dict)
    corruptions: dict[str, dict[str, float]] = field(default_factory=dict)
    corruption_summary: dict[str, Any] = field(default_factory=dict)
    ood: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    ood_full_spectrum: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    skipped_scores: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Results:
    """
    One or more models, measured on the same sets under the same conventions.

    Args:
        models (`dict[str, ModelMeasures]`): The models by name.
        conventions (`dict`): `preset` with its description, `tpr`, `positive`, bins of the calibration error.
        sets (`dict`): Set -> `role` (`id`, `shift`, `ood`, `fit`, `calibration`), `n`, `source`, `revision`,
            `fingerprint`.
        selection (`str`): How the adapter's weights were chosen: `"last"`, `"val"` (best on validation data) or `"test"`
            (best on the data measured here: an optimistic number).
        seed (`int`): Seed of everything random in the evaluation.
        versions (`dict[str, str]`): Of Python and packages.
        command (`str`): The command line that made it.
    """

    models: dict[str, ModelMeasures]
    conventions: dict[str, Any]
    sets: dict[str, dict[str, Any]]
    selection: str
    seed: int
    versions: dict[str, str]
    command: str

    def __post_init__(self) -> None:
        check_selection(self.selection)

    def merged(self, other: Results) -> Results:
        """
        These results with the models of others beside them.

        Args:
            other ([`Results`]): Measured on the same sets under the same conventions; its model names are new.

        Returns:
            [`Results`]

        Raises:
            ValueError: If the numbers can't be compared; the message says in what they differ.
        """
        for name in ("conventions", "sets", "selection", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"the results differ in `{name}`, so their models can't stand in one table: {getattr(self, name)} and "
                    f"{getattr(other, name)}."
                )
        taken = sorted(self.models.keys() & other.models.keys())
        if taken:
            raise ValueError(f"both results have models named {taken}: give them different names.")
        return replace(self, models={**self.models, **other.models})

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Results:
        """
        The inverse of `to_dict`.

        Raises:
            ValueError: If fields are missing or not known.
        """
        models = {name: _checked(ModelMeasures, measures) for name, measures in content.get("models", {}).items()}
        return _checked(cls, {**content, "models": models})

    def save(self, path: str | Path) -> None:
        """Write it as JSON; the file appears whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        # One line a curve rather than one a point. Text values hold no raw line breaks, so none of them can match.
        text = re.sub(r"\[\n\s+([-+.\deE,\s]+?)\n\s*\]", lambda match: f"[{' '.join(match.group(1).split())}]", text)
        with replacing(Path(path)) as temporary:
            temporary.write_text(text + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text("utf-8")))

    def to_markdown(self) -> str:
        """The tables in Markdown, names escaped."""
        from .tables import markdown

        return markdown(self)

    def to_html(self) -> str:
        """The tables as an HTML fragment, names escaped."""
        from .tables import html

        return html(self)

    def to_eval_results(self, model: str, id_name: str, scores: Sequence[str] | None = None) -> list[Any]:
        """
        One model's numbers for the `model-index` of a model card.

        Args:
            model (`str`): Name of the model here.
            id_name (`str`): What the in-distribution set is called, e.g. `"CIFAR-10"`.
            scores (`Sequence[str]`, *optional*): The scores to list; all by default.

        Returns:
            `list[huggingface_hub.EvalResult]`: For `ModelCardData(eval_results=...)`. Values are fractions; the convention
            is in `metric_args`.

        Raises:
            ValueError: If there is no such model or score.
        """
        from .model_index import eval_results

        return eval_results(self, model, id_name, scores)

    def measures(self, model: str | None = None) -> ModelMeasures:
        """
        The measures of one model.

        Args:
            model (`str`, *optional*): Its name; may be left out if there is only one.

        Raises:
            ValueError: If there is no such model, or several and none is named.
        """
        if model is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if model not in self.models:
            raise ValueError(f"name one of the models {', '.join(map(repr, self.models))}, got {model!r}.")
        return self.models[model]


def check_selection(selection: str) -> None:
    """Raises a `ValueError` for an unknown way of choosing weights."""
    if selection not in SELECTIONS:
        raise ValueError(f"`selection` must be one of {', '.join(map(repr, SELECTIONS))}, got {selection!r}.")


def _checked(cls: Any, content: dict[str, Any]) -> Any:
    known = [item.name for item in fields(cls)]
    unknown = sorted(set(content) - set(known))
    try:
        if unknown:
            raise TypeError(f"unknown {unknown}, known are {known}")
        return cls(**content)
    except TypeError as error:
        raise ValueError(f"these are no saved {cls.__name__}: {error}.") from error
