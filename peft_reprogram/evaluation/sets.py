"""The sets of one evaluation by role, and the passes of a model over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..data import ImageData
from .extraction import Extraction
from .fingerprint import data_fingerprint
from .inputs import LabelMap, as_image_data, corrupted, is_view
from .measurement import LabelledOutputs, Passes
from .readers import class_names_of


if TYPE_CHECKING:
    from .inputs import ImageSet


class EvaluationSets:
    """
    Args:
        classifier (`torch.nn.Module`): The classifier to be measured; its classes are what labels mean.
        id (`ImageSet`): In-distribution images with labels.
        shifts (`Mapping[str, ImageSet]`): Shifted images with labels.
        ood (`Mapping[str, ImageSet]`): Out-of-distribution images.
        fit (`ImageSet`, *optional*): In-distribution images with labels that scores are fitted on.
        calibration (`ImageSet`, *optional*): In-distribution images with labels that a temperature is fitted on.

    Raises:
        ValueError: If a name is taken twice, or a set has no labels, classes that the classifier doesn't have, or labels
            outside them.
    """

    def __init__(
        self,
        classifier: nn.Module,
        id: ImageSet,
        shifts: Mapping[str, ImageSet],
        ood: Mapping[str, ImageSet],
        fit: ImageSet | None,
        calibration: ImageSet | None,
    ) -> None:
        taken = sorted(({"id", "fit", "calibration"} | shifts.keys()) & ood.keys()) + sorted(
            {"id", "fit", "calibration"} & shifts.keys()
        )
        if taken:
            raise ValueError(f"the set names {taken} stand for two sets: give each a name of its own.")
        labelled = {"id": id, **shifts, "fit": fit, "calibration": calibration}
        self.labelled = {name: as_image_data(data, name) for name, data in labelled.items() if data is not None}
        self.ood = {name: as_image_data(data, name) for name, data in ood.items()}
        self.shifts = list(shifts)
        class_names = class_names_of(classifier) or self.labelled["id"].class_names
        if class_names is None:
            raise ValueError(
                "neither the classifier nor the set 'id' names its classes: load the set with `class_names`."
            )
        self.class_names = class_names
        self.label_maps = {name: LabelMap(data, class_names, name) for name, data in self.labelled.items()}
        for name, data in self.labelled.items():
            if not (data.streaming or is_view(data.dataset)):
                self.label_maps[name](data.labels)  # before hours of work, not after
        self._n: dict[str, int] = {}

    def extract(
        self,
        extraction: Extraction,
        classifier: nn.Module,
        corruptions: Sequence[str],
        severities: Sequence[int],
        seed: int,
    ) -> Passes | None:
        """
        Pass over all sets.

        Args:
            extraction ([`Extraction`]): How.
            classifier (`torch.nn.Module`): The classifier, adapters on or off.
            corruptions (`Sequence[str]`): Corruptions of the set `id`.
            severities (`Sequence[int]`): Their severities.
            seed (`int`): Their seed.

        Returns:
            `Passes` or `None`: `None` on all processes but the main one.

        Raises:
            ValueError: If a set is empty, or the number of logits isn't the number of classes.
        """

        def labelled(name: str, data: ImageData, title: str | None = None) -> LabelledOutputs | None:
            outputs = extraction(classifier, data, title or name)
            if outputs is None:
                return None
            if outputs.num_classes != len(self.class_names):
                raise ValueError(
                    f"the classifier gives {outputs.num_classes} logits, but there are {len(self.class_names)} classes "
                    f"({', '.join(self.class_names[:5])}...). Load a classifier whose `config.id2label` names its classes."
                )
            stored = outputs.labels
            assert stored is not None
            labels = self.label_maps[name](stored)
            present = np.unique(labels)
            if name in ("fit", "calibration") and len(present) == 1:
                raise ValueError(
                    f"the set {name!r} ({data.source}) shows the class {self.class_names[present[0]]!r} alone, from which "
                    "nothing about the others can be learned. Many sets are sorted by class: draw from all of it, e.g. with "
                    "`few_shot(data, shots, seed)`, instead of taking the first rows."
                )
            self._n[name] = len(labels)
            return LabelledOutputs(outputs, labels)

        passes = {name: labelled(name, data) for name, data in self.labelled.items()}
        ood = {name: extraction(classifier, data, name) for name, data in self.ood.items()}
        corrupt: dict[str, dict[int, Any]] = {}
        for corruption in corruptions:
            for severity in severities:
                data = corrupted(
                    self.labelled["id"], corruption, severity, seed, extraction.preprocess.source_resolution
                )
                corrupt.setdefault(corruption, {})[severity] = labelled("id", data, f"{corruption} {severity}")
        if not extraction.accelerator.is_main_process:
            return None
        self._n.update({name: len(outputs) for name, outputs in ood.items() if outputs is not None})
        return Passes(
            id=passes["id"],  # type: ignore[arg-type]
            shifts={name: passes[name] for name in self.shifts},  # type: ignore[misc]
            corruptions=corrupt,
            ood=ood,  # type: ignore[arg-type]
            fit=passes.get("fit"),
            calibration=passes.get("calibration"),
        )

    def described(self) -> dict[str, dict[str, Any]]:
        """Set -> role, number of images that count, source, revision and fingerprint; after [`~EvaluationSets.extract`]."""
        roles = {**{name: "shift" if name in self.shifts else name for name in self.labelled}}
        return {
            name: {
                "role": roles.get(name, "ood"),
                "n": self._n[name],
                "source": data.source,
                "revision": data.revision,
                "fingerprint": data_fingerprint(data),
            }
            for name, data in {**self.labelled, **self.ood}.items()
        }
