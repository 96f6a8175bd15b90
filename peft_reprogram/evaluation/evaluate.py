"""The entry points: a classifier, the sets to measure it on, and one pass over each of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from torch import nn

from ..data import ImagePreprocessor
from ..metrics import PRESETS
from ..ood import Score, Threshold
from ..provenance import command, versions
from ..shift import list_corruptions
from ..shift.corruptions import SEVERITIES, check_corruption
from .extraction import Extraction
from .fingerprint import acting_adapters, inner_model
from .measurement import CALIBRATION_BINS, Passes, fitted, measure, score_outputs
from .residual import check_residual, residual_passes
from .results import ModelMeasures, Results, check_selection
from .scoring import ALL, check_fit, requested_scores, scores_for, wants_patches
from .sets import EvaluationSets


if TYPE_CHECKING:
    from accelerate import Accelerator

    from .inputs import ImageSet


def evaluate_model(
    classifier: nn.Module,
    *,
    id: ImageSet,
    preprocess: ImagePreprocessor,
    shifts: Optional[Mapping[str, ImageSet]] = None,
    ood: Optional[Mapping[str, ImageSet]] = None,
    corruptions: Union[str, Sequence[str]] = (),
    severities: Sequence[int] = SEVERITIES,
    scores: Union[str, Sequence[Union[str, Score]]] = ("msp",),
    fit: Optional[ImageSet] = None,
    calibration: Optional[ImageSet] = None,
    preset: str = "default",
    tpr: float = 0.95,
    full_spectrum: bool = False,
    baseline: bool = False,
    residual_alphas: Sequence[float] = (),
    name: Optional[str] = None,
    selection: str = "last",
    batch_size: int = 64,
    num_workers: int = 0,
    accelerator: Optional[Accelerator] = None,
    cache_dir: Union[str, Path, None] = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> Results:
    """
    Measure a classifier: accuracy, calibration, accuracy under shift and corruption, out-of-distribution detection.

    Each set passes through the model once; logits and features go to disk, and every metric and score is computed from
    there. Under `accelerate launch` the images are divided among the processes; the numbers are the same to the last
    digit, and every process returns them.

    Args:
        classifier (`torch.nn.Module`): A [`ZeroShotClassifier`] or a transformers `...ForImageClassification`, wrapped by
            PEFT or not.
        id ([`ImageData`], `datasets.Dataset` or `datasets.IterableDataset`): In-distribution images with labels.
        preprocess ([`ImagePreprocessor`]): Turns images into `pixel_values`.
        shifts (`Mapping[str, ImageSet]`, *optional*): Shifted sets with labels. Classes are matched with the classifier's
            by name.
        ood (`Mapping[str, ImageSet]`, *optional*): Out-of-distribution sets; labels are ignored.
        corruptions (`str` or `Sequence[str]`, *optional*): Corruptions of the `id` set to measure on: names, or a kind for
            [`~peft_reprogram.shift.list_corruptions`] such as `"common"` or `"all"`.
        severities (`Sequence[int]`, *optional*, defaults to all five): Of the corruptions, 1 to 5.
        scores (`str` or `Sequence[str | Score]`, *optional*, defaults to `("msp",)`): Out-of-distribution scores: names,
            or [`Score`] objects for other options. `"all"` takes those that apply to the model and notes why others don't.
        fit ([`ImageData`] or data set, *optional*): Training images with labels, for scores that are fitted.
        calibration ([`ImageData`] or data set, *optional*): Held-out in-distribution images with labels, on which a
            temperature is fitted; calibration is then reported before and after.
        preset (`str`, *optional*, defaults to `"default"`): Convention of the detection metrics, see
            [`~peft_reprogram.metrics.ood_metrics`].
        tpr (`float`, *optional*, defaults to 0.95): True positive rate at which the FPR is taken, in (0, 1].
        full_spectrum (`bool`, *optional*, defaults to `False`): Also count shifted images as in-distribution in detection.
        baseline (`bool`, *optional*, defaults to `False`): Also measure the same model without its adapters.
        residual_alphas (`Sequence[float]`, *optional*): Also measure the Reprogrammer of a text-image model as a residual one
            with these weights in [0, 1] of the zero-shot branch, as `"<name>, alpha <weight>"`. They are mixed from the
            features of two passes, so any number of them costs no more than one.
        name (`str`, *optional*): What to call the model; defaults to the type of its adapter.
        selection (`str`, *optional*, defaults to `"last"`): How its weights were chosen: `last`, `val` or `test`.
        batch_size (`int`, *optional*, defaults to 64): Images a process and batch.
        num_workers (`int`, *optional*, defaults to 0): Processes a process that prepare images.
        accelerator (`accelerate.Accelerator`, *optional*): Device, precision and processes.
        cache_dir (`str` or `Path`, *optional*): Keeps the outputs of each pass for the next evaluation. By default they lie
            in a temporary folder as long as this one runs.
        seed (`int`, *optional*, defaults to 0): Seed of the corruptions and of scores that draw at random.
        progress_bar (`bool`, *optional*, defaults to `True`): Whether the main process shows progress.

    Returns:
        [`Results`]

    Raises:
        ValueError: If a score, corruption, severity or preset is unknown (the message lists the known ones), a set is empty,
            carries no labels or labels outside its classes, its classes don't match the classifier's by name, a score does not
            apply to the model, or `residual_alphas` are asked for of something else than a Reprogrammer.
        TypeError: If a set is no set of images.

    Example:
        ```py
        >>> results = evaluate_model(classifier, id=test, shifts={"sketch": sketch}, ood={"svhn": svhn},
        ...                          preprocess=preprocess, scores=["msp", "energy"], baseline=True)
        >>> print(results.to_markdown())
        ```
    """
    corruption_names = list_corruptions(corruptions) if isinstance(corruptions, str) else list(corruptions)
    for corruption in corruption_names:
        for severity in severities:
            check_corruption(corruption, severity, seed)
    if preset not in PRESETS:
        raise ValueError(f"Unknown `preset` {preset!r}; known are {', '.join(map(repr, PRESETS))}.")
    if not 0 < tpr <= 1:
        raise ValueError(f"`tpr` must be a fraction above 0 and at most 1, got {tpr:g}. Divide a percentage by 100.")
    if full_spectrum and not (shifts and ood):
        raise ValueError(
            "`full_spectrum` sets shifted images against out-of-distribution ones: give `shifts` and `ood`."
        )
    check_selection(selection)
    requested = requested_scores(scores)
    applicable_only = scores == ALL
    if ood and not applicable_only:
        check_fit(requested, fit)
    if residual_alphas:
        check_residual(classifier, residual_alphas, requested)
    peft_model = _peft_model(classifier) if baseline or residual_alphas else None
    sets = EvaluationSets(classifier, id, shifts or {}, ood or {}, fit, calibration)

    with _cache(cache_dir) as folder:
        extraction = Extraction(
            preprocess,
            folder,
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
            patch_features=bool(ood) and wants_patches(classifier, requested, applicable_only),
            progress_bar=progress_bar,
        )

        def extract() -> Passes | None:
            return sets.extract(extraction, classifier, corruption_names, severities, seed)

        def measured(passes: Passes | None, started: float) -> ModelMeasures | None:
            if passes is None:
                return None
            measures = measure(
                passes,
                sets.class_names,
                scores_for(classifier, requested, seed) if ood else {},
                preset=preset,
                tpr=tpr,
                full_spectrum=full_spectrum,
                skip_scores=applicable_only,
            )
            measures.seconds = round(time.perf_counter() - started, 3)
            return measures

        models: dict[str, Any] = {}
        name = name or _default_name(classifier)
        zero_shot = None
        if peft_model is not None:
            started = time.perf_counter()
            with peft_model.disable_adapter():
                zero_shot = extract()
                if baseline:
                    models[_default_name(classifier)] = measured(zero_shot, started)
        started = time.perf_counter()
        adapted = extract()
        models[name] = measured(adapted, started)
        for alpha in residual_alphas:
            mixed = None if adapted is None or zero_shot is None else residual_passes(adapted, zero_shot, alpha)
            models[f"{name}, alpha {alpha:g}"] = measured(mixed, time.perf_counter())
        described = sets.described() if extraction.accelerator.is_main_process else None
        models, described = _from_main_process(extraction.accelerator, (models, described))
    return Results(
        models=models,
        conventions={
            "preset": preset,
            "preset_description": PRESETS[preset].description,
            "positive": PRESETS[preset].positive,
            "tpr": tpr,
            "scores": "larger = more in-distribution",
            "full_spectrum": full_spectrum,
            "calibration_bins": CALIBRATION_BINS,
            "severities": list(severities) if corruption_names else [],
            "source_resolution": preprocess.source_resolution,
        },
        sets=described,
        selection=selection,
        seed=seed,
        versions=versions(),
        command=command(),
    )


def fit_threshold(
    classifier: nn.Module,
    *,
    calibration: ImageSet,
    preprocess: ImagePreprocessor,
    score: Union[str, Score] = "msp",
    tpr: float = 0.95,
    fit: Optional[ImageSet] = None,
    batch_size: int = 64,
    num_workers: int = 0,
    accelerator: Optional[Accelerator] = None,
    cache_dir: Union[str, Path, None] = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> tuple[Threshold, Score]:
    """
    Find the score below which an image is called out-of-distribution.

    Args:
        classifier (`torch.nn.Module`): As for [`evaluate_model`].
        calibration ([`ImageData`] or data set): Held-out in-distribution images with labels: neither those that the adapter
            or the score learned from, nor those that are reported on.
        preprocess ([`ImagePreprocessor`]): Turns images into `pixel_values`.
        score (`str` or [`Score`], *optional*, defaults to `"msp"`): The score.
        tpr (`float`, *optional*, defaults to 0.95): Fraction of in-distribution images to let pass, in (0, 1].
        fit ([`ImageData`] or data set, *optional*): Training images with labels, for a score that is fitted.
        batch_size, num_workers, accelerator, cache_dir, seed, progress_bar: As for [`evaluate_model`].

    Returns:
        `tuple[Threshold, Score]`: The threshold, and the score, fitted, bound to this model.

    Raises:
        ValueError: As for [`evaluate_model`].
    """
    requested = requested_scores([score])
    check_fit(requested, fit)
    sets = EvaluationSets(classifier, calibration, {}, {}, fit, None)
    with _cache(cache_dir) as folder:
        extraction = Extraction(
            preprocess,
            folder,
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
            patch_features=wants_patches(classifier, requested, applicable_only=False),
            progress_bar=progress_bar,
        )
        passes = sets.extract(extraction, classifier, (), (), seed)
        outcome = None
        if passes is not None:
            (made,) = scores_for(classifier, requested, seed).values()
            ready = fitted(made, passes.fit)
            scores = torch.from_numpy(score_outputs(ready, passes.id.outputs))
            outcome = (Threshold.fit(scores, tpr, score=ready, identity=passes.id.outputs.identity), ready)
        return _from_main_process(extraction.accelerator, outcome)


@contextmanager
def _cache(cache_dir: Union[str, Path, None]) -> Iterator[Path]:
    if cache_dir is not None:
        yield Path(cache_dir)
        return
    with tempfile.TemporaryDirectory(prefix="peft-reprogram-") as folder:
        yield Path(folder)


def _from_main_process(accelerator: Any, value: Any) -> Any:
    """What the main process has, on all of them."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def _peft_model(classifier: Any) -> Any:
    model = inner_model(classifier)
    if hasattr(model, "disable_adapter"):
        return model
    raise ValueError(
        f"`baseline` measures the model without its adapters, but {type(classifier).__name__} has none. Leave it out: the "
        "model is its own baseline."
    )


def _default_name(classifier: Any) -> str:
    model = inner_model(classifier)
    acting = acting_adapters(model)
    if not acting:
        return "base" if model is classifier else "zero_shot"
    if not hasattr(model, "peft_config"):
        return type(classifier).__name__  # with adapters in a part of it
    adapters = [model.peft_config[name] for name in acting]
    return "+".join(str(getattr(config.peft_type, "value", config.peft_type)).lower() for config in adapters)
