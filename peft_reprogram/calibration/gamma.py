from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import numpy as np
import torch

from ..atomic import replacing
from .pseudo_cross_validation import FineTune, Predict, pseudo_cross_validation
from .temperature import as_array


GAMMA_FILE = "gamma.json"


@dataclass(frozen=True)
class GammaCalibrator:
    """
    Adds one number to the logits of all classes that a classifier was not fine-tuned on (arXiv 2409.16223): fine-tuning on
    some classes keeps the features of the others, but lowers their logits.

    Args:
        gamma (`float`): What is added, in units of the logits divided by `temperature`.
        class_names (`list[str]`): All classes Y, in the order of the logits.
        seen_classes (`list[int]`): Indices of the classes S that were fine-tuned on; neither none nor all.
        method (`str`, *optional*, defaults to `"given"`): How gamma was found.
        temperature (`float`, *optional*, defaults to 1.0): What the logits were divided by when it was.
        details (`dict`, *optional*): What the method reports, in JSON types.

    Raises:
        ValueError: If the classes don't fit each other, or gamma isn't finite.
    """

    gamma: float
    class_names: list[str]
    seen_classes: list[int]
    method: str = "given"
    temperature: float = 1.0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", list(self.class_names))
        object.__setattr__(self, "seen_classes", resolve_seen_classes(self.seen_classes, self.class_names))
        if not math.isfinite(self.gamma):
            raise ValueError(f"`gamma` must be finite, got {self.gamma}.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"`temperature` must be positive and finite, got {self.temperature}.")

    @property
    def absent_classes(self) -> list[int]:
        """Indices of the classes that were not fine-tuned on."""
        seen = set(self.seen_classes)
        return [index for index in range(len(self.class_names)) if index not in seen]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """
        Calibrated logits.

        Args:
            logits (`torch.Tensor`): Shape `(..., C)`, over all classes.

        Returns:
            `torch.Tensor`: Same shape and dtype.

        Raises:
            ValueError: If there are more or fewer classes than gamma was fitted for.
        """
        if logits.shape[-1] != len(self.class_names):
            raise ValueError(
                f"gamma was fitted for {len(self.class_names)} classes, but the logits are over {logits.shape[-1]}. Fit it "
                "on this classifier's own classes."
            )
        offset = torch.zeros(logits.shape[-1], dtype=logits.dtype, device=logits.device)
        offset[self.absent_classes] = self.gamma
        return logits + offset

    def check_class_names(self, class_names: Sequence[str]) -> None:
        """
        Refuse a class list that gamma was not fitted for.

        Args:
            class_names (`Sequence[str]`): The classifier's classes, in the order of its logits.
        """
        if list(class_names) != self.class_names:
            missing = sorted(set(self.class_names) - set(class_names))
            added = sorted(set(class_names) - set(self.class_names))
            what = f"it lacks {missing[:5]} and adds {added[:5]}" if missing or added else "the order differs"
            raise ValueError(
                f"gamma was fitted for another class list ({what}). Fit it on this classifier's own classes."
            )

    def at_temperature(self, temperature: float) -> GammaCalibrator:
        """
        The same decisions on logits that are divided by another temperature.

        Args:
            temperature (`float`): Positive.
        """
        return replace(self, gamma=self.gamma * self.temperature / temperature, temperature=temperature)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GammaCalibrator:
        """The inverse of `to_dict`."""
        known = {f.name for f in fields(cls)}
        required = {"gamma", "class_names", "seen_classes"}
        if not required <= data.keys() <= known:
            raise ValueError(
                f"a gamma needs {sorted(required)} and may have {sorted(known - required)}, got {sorted(data)}."
            )
        return cls(**data)

    def save_pretrained(self, save_directory: Union[str, os.PathLike]) -> None:
        """Write it as JSON beside an adapter; the file appears whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with replacing(Path(save_directory) / GAMMA_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, path: Union[str, os.PathLike]) -> GammaCalibrator:
        """Read what `save_pretrained` wrote."""
        return cls.from_dict(json.loads((Path(path) / GAMMA_FILE).read_text(encoding="utf-8")))


def fit_gamma(
    method: Literal["alg", "pcv"],
    *,
    class_names: Sequence[str],
    seen_classes: Sequence[Union[int, str]],
    logits: Any = None,
    labels: Any = None,
    fine_tune: Optional[FineTune] = None,
    pretrained: Optional[Predict] = None,
    data: Any = None,
    num_splits: int = 3,
    seed: int = 0,
    state_dir: Optional[Union[str, os.PathLike]] = None,
) -> GammaCalibrator:
    """
    Find gamma without a single sample of the absent classes (arXiv 2409.16223).

    `"alg"`, the average logit gap, takes it from the logits of the training samples, see [`alg_gamma`]. `"pcv"`, pseudo
    cross-validation, fine-tunes `num_splits` times on a random half of the seen classes, takes the other half as absent, and
    averages the values that serve them best, see [`best_gamma`]. It costs so many trainings, and each finished one is kept
    in `state_dir`.

    Args:
        method (`"alg"` or `"pcv"`): How.
        class_names (`Sequence[str]`): All classes Y, in the order of the logits.
        seen_classes (`Sequence[int]` or `Sequence[str]`): Indices or names of the classes S that the classifier is (to be)
            fine-tuned on; neither none nor all.
        logits (array-like, *optional*): For `"alg"`: the fine-tuned classifier's logits of its training samples, `(N, C)`.
        labels (array-like of `int`, *optional*): Classes of the samples, `(N,)`, all of them seen.
        fine_tune (`Callable`, *optional*): For `"pcv"`: `(seen_classes, seed) -> predict` fine-tunes the pre-trained
            classifier on samples of these classes (indices into `class_names`); `predict(data)` gives logits `(N, C)`.
            [`SplitTraining`] does it with [`~training.train`].
        pretrained (`Callable`, *optional*): For `"pcv"`: `predict` of the classifier before fine-tuning.
        data (*optional*): For `"pcv"`: held-out samples of the seen classes, passed on to `predict`; `labels` are theirs.
        num_splits (`int`, *optional*, defaults to 3): For `"pcv"`: how many trainings.
        seed (`int`, *optional*, defaults to 0): For `"pcv"`: seed of the splits and trainings.
        state_dir (`str` or `os.PathLike`, *optional*): For `"pcv"`: where each split's result is kept, so that an
            interrupted run goes on after the last finished split.

    Returns:
        [`GammaCalibrator`]

    Raises:
        ValueError: If S is not a proper subset of Y, the calibration set is empty or has samples of absent classes, or
            something that the method needs is missing.
    """
    seen = resolve_seen_classes(seen_classes, class_names)
    details: dict[str, Any]
    if method == "alg":
        _require(method, logits=logits, labels=labels)
        gamma, details = alg_gamma(logits, labels, seen), {"n": len(as_array(labels))}
    elif method == "pcv":
        _require(method, fine_tune=fine_tune, pretrained=pretrained, data=data, labels=labels)
        splits = pseudo_cross_validation(
            fine_tune=fine_tune,  # type: ignore[arg-type]
            pretrained=pretrained,  # type: ignore[arg-type]
            data=data,
            labels=as_array(labels),
            seen_classes=seen,
            class_names=list(class_names),
            num_splits=num_splits,
            seed=seed,
            state_dir=None if state_dir is None else Path(state_dir),
        )
        gamma = float(np.mean([split.gamma for split in splits]))
        details = {"n": len(as_array(labels)), "seed": seed, "splits": [asdict(split) for split in splits]}
    else:
        raise ValueError(f"`method` must be 'alg' or 'pcv', got {method!r}.")
    return GammaCalibrator(gamma, list(class_names), seen, method=method, details=details)


def alg_gamma(logits: Any, labels: Any, seen_classes: Sequence[int]) -> float:
    """
    The average logit gap (ALG, arXiv 2409.16223): over training samples, the mean logit of the seen classes other than the
    true one, less the mean logit of the absent classes.

    Args:
        logits (array-like): Of training samples, shape `(N, C)`, finite.
        labels (array-like of `int`): Their classes, shape `(N,)`, all of them seen.
        seen_classes (`Sequence[int]`): Indices of the seen classes: two or more, and not all.

    Returns:
        `float`: gamma.

    Raises:
        ValueError: If shapes or classes don't fit, or there are no samples.
    """
    from ..metrics.functional.arrays import as_logits

    if not len(as_array(logits)):
        raise ValueError("The calibration set is empty: ALG needs the logits of training samples.")
    z, true = as_logits(as_array(logits), as_array(labels))
    seen = np.zeros(z.shape[1], bool)
    seen[list(seen_classes)] = True
    if not seen[true].all():
        raise ValueError(
            f"`labels` has samples of absent classes ({sorted(set(true[~seen[true]].tolist()))[:5]}): ALG takes training "
            "samples, which are all of seen classes."
        )
    if seen.sum() < 2:
        raise ValueError(
            "ALG compares with the seen classes other than the true one: there must be at least 2 of them."
        )
    if seen.all():
        raise ValueError("All classes are seen, so there is no gap to measure: `seen_classes` must leave some out.")
    others = (z[:, seen].sum(axis=1) - z[np.arange(len(z)), true]) / (seen.sum() - 1)
    return float(np.mean(others) - np.mean(z[:, ~seen]))


def resolve_seen_classes(seen_classes: Sequence[Union[int, str]], class_names: Sequence[str]) -> list[int]:
    """
    Indices of the seen classes, ascending.

    Args:
        seen_classes (`Sequence[int]` or `Sequence[str]`): Indices into `class_names`, or names.
        class_names (`Sequence[str]`): All classes, without duplicates.

    Raises:
        ValueError: If they are not some, but not all, of the classes.
    """
    names = list(class_names)
    if len(set(names)) != len(names):
        duplicates = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"`class_names` has duplicates: {duplicates[:5]}.")
    unknown = [
        item
        for item in seen_classes
        if (item not in names if isinstance(item, str) else not 0 <= int(item) < len(names))
    ]
    if unknown:
        raise ValueError(
            f"`seen_classes` must be a proper subset of the {len(names)} classes; {unknown[:5]} are none of them."
        )
    seen = sorted({names.index(item) if isinstance(item, str) else int(item) for item in seen_classes})
    if not seen:
        raise ValueError(
            "`seen_classes` is empty: gamma sets the classes that were fine-tuned on apart from the others."
        )
    if len(seen) == len(names):
        raise ValueError(
            f"`seen_classes` holds all {len(names)} classes, so there is no absent class to calibrate. It must be a proper "
            "subset."
        )
    return seen


def _require(method: str, **inputs: Any) -> None:
    missing = [name for name, value in inputs.items() if value is None]
    if missing:
        raise ValueError(f"The method '{method}' needs {', '.join(f'`{name}`' for name in missing)}.")
