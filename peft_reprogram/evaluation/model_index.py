"""Results in the form in which the Hub lists them beside a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from .results import Results


_OOD_METRICS = {
    "auroc": "AUROC",
    "fpr": "FPR at TPR {tpr:.0%}",
    "fpr_ood_positive": "FPR at TPR {tpr:.0%}, OOD positive",
    "aupr_in": "AUPR (ID positive)",
    "aupr_out": "AUPR (OOD positive)",
    "detection_error": "Detection error",
}


def eval_results(results: Results, model: str, id_name: str, scores: Sequence[str] | None = None) -> list[EvalResult]:
    """See [`Results.to_eval_results`]."""
    measures = results.measures(model)
    scores = list(measures.ood) if scores is None else scores
    unknown = [score for score in scores if score not in measures.ood]
    if unknown:
        raise ValueError(f"the scores {unknown} were not measured; there are {', '.join(measures.ood)}.")
    revisions = {name: entry.get("revision") for name, entry in results.sets.items()}
    ece = measures.calibration["ece"]
    entries = [
        *_accuracies(id_name, measures.id, "id", results, revisions["id"]),
        _entry(id_name, "expected_calibration_error", ece, "Expected calibration error", revision=revisions["id"]),
    ]
    for name, shift in measures.shifts.items():
        entries += _accuracies(name, shift, "shift", results, revisions.get(name))
    return [*entries, *_ood_entries(measures.ood, scores, revisions)]


def _accuracies(
    name: str, measures: dict[str, Any], role: str, results: Results, revision: str | None
) -> Iterator[EvalResult]:
    arguments = {"role": role, "n": measures["n"], "selection": results.selection}
    yield _entry(name, "accuracy", measures["accuracy"], "Accuracy", arguments, revision)
    yield _entry(name, "balanced_accuracy", measures["balanced_accuracy"], "Balanced accuracy", arguments, revision)


def _ood_entries(
    ood: dict[str, dict[str, dict[str, Any]]], scores: Sequence[str], revisions: dict[str, str | None]
) -> Iterator[EvalResult]:
    convention = ("preset", "tpr", "positive", "n_id", "n_ood", "tied_fraction")
    for score in scores:
        for name, metrics in ood[score].items():
            arguments = {"role": "ood", "score": score, **{key: metrics[key] for key in convention}}
            for metric, title in _OOD_METRICS.items():
                if metrics[metric] is not None:
                    title = f"{title.format(tpr=metrics['tpr'])} ({score})"
                    yield _entry(name, metric, metrics[metric], title, arguments, revisions.get(name))


def _entry(
    name: str,
    metric: str,
    value: float,
    title: str,
    arguments: dict[str, Any] | None = None,
    revision: str | None = None,
) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="image-classification",
        task_name="Image classification",
        dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        dataset_name=name,
        dataset_revision=revision,
        metric_type=metric,
        metric_name=title,
        metric_value=round(value, 6),
        metric_args=arguments,
    )
