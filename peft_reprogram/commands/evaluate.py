"""
Measures adapters, and their base model zero-shot, on in-distribution, shifted, corrupted and out-of-distribution images.

    peft-reprogram evaluate --adapter runs/cifar10 --model openai/clip-vit-base-patch32 --dataset uoft-cs/cifar10 \\
        --ood dtd=tanganke/dtd --residual_alpha 0.4 --scores msp mcm energy --output results.json
    accelerate launch -m peft_reprogram.commands.evaluate --config FILE --model MODEL --dataset DATA

A set is written `name=path` or `name=path:split`; the path is a Hub id, with the revision after an @ if need be, a folder or a
parquet file. A configuration file holds the same names as the flags; flags win over the file. `--help` lists them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
from accelerate import Accelerator
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from .. import ReprogrammerConfig, ResidualReprogrammerConfig, ZeroShotClassifier, set_residual_alpha
from ..atomic import replacing
from ..command_line import parse_config
from ..data import ImageData, ImagePreprocessor, few_shot, load_image_data
from ..evaluation import Results, evaluate_model, fit_threshold
from ..hub import Predictor, load_classifier
from ..shift import list_corruptions
from ..tuners.reprogrammer.config import check_residual_alpha
from .exit import run


USAGE = "peft-reprogram evaluate --dataset DATA (--adapter ADAPTER ... | --model MODEL) [--config FILE] [more flags, see --help]"
ALL = "all"


@dataclass
class EvaluationConfig:
    """What to measure, and on what."""

    dataset: str = field(metadata={"help": "In-distribution images with labels: path[@revision][:split]."})
    adapter: list[str] = field(
        default_factory=list, metadata={"help": "Folders or Hub ids of adapters; none measures the model zero-shot."}
    )
    model: Optional[str] = field(
        default=None, metadata={"help": "The base model, where an adapter doesn't name it or there is no adapter."}
    )
    template: list[str] = field(
        default_factory=lambda: ["a photo of a {}"],
        metadata={"help": "Prompts with {} for the class, for a model without adapter."},
    )
    zero_shot: bool = field(default=True, metadata={"help": "Also measures the base model of the first adapter."})
    residual_alpha: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Also measures each Reprogrammer as a residual one with these weights of the zero-shot branch."
        },
    )
    shift: list[str] = field(
        default_factory=list, metadata={"help": "Shifted sets with labels: name=path[@revision][:split]."}
    )
    ood: list[str] = field(
        default_factory=list, metadata={"help": "Out-of-distribution sets: name=path[@revision][:split]."}
    )
    corruptions: list[str] = field(
        default_factory=list, metadata={"help": "Corruptions of the data set: names, or one of all, common, extra."}
    )
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5], metadata={"help": "Of the corruptions."})
    scores: list[str] = field(
        default_factory=lambda: ["msp"],
        metadata={"help": "Out-of-distribution scores, or all that apply to the model."},
    )
    fit: Optional[str] = field(
        default=None, metadata={"help": "Training images for scores that are fitted: path[:split], split train."}
    )
    fit_shots: Optional[int] = field(default=None, metadata={"help": "How many of each class; all by default."})
    calibration: Optional[str] = field(
        default=None,
        metadata={"help": "Held-out in-distribution images for temperature and threshold: path[:split], split train."},
    )
    calibration_shots: Optional[int] = field(
        default=None, metadata={"help": "How many of each class; all by default."}
    )
    fit_threshold: Optional[float] = field(
        default=None,
        metadata={
            "help": "Fits the threshold of the first score at this true positive rate and stores it with each adapter."
        },
    )
    preset: str = field(default="default", metadata={"help": "Convention: default, ibm, openood or mcm."})
    tpr: float = field(default=0.95, metadata={"help": "True positive rate at which false positives are counted."})
    full_spectrum: bool = field(default=False, metadata={"help": "Also counts shifted images as in-distribution."})
    selection: str = field(default="last", metadata={"help": "How the adapter was chosen: last, val or test."})
    source_resolution: Optional[int] = field(
        default=None,
        metadata={"help": "Brings every image to this side first; by default what the adapter was saved with."},
    )
    max_images: Optional[int] = field(
        default=None, metadata={"help": "Images of each set, drawn at random; all by default."}
    )
    streaming: bool = field(default=False, metadata={"help": "Reads sets as streams instead of preparing them first."})
    batch_size: int = field(default=64, metadata={"help": "Images a process and batch."})
    num_workers: int = field(default=0, metadata={"help": "Processes that prepare images, a process."})
    mixed_precision: Optional[str] = field(default=None, metadata={"help": "no, bf16 or fp16."})
    seed: int = field(default=0, metadata={"help": "Seed of draws and corruptions."})
    cache_dir: Optional[str] = field(default=None, metadata={"help": "Keeps the outputs of each pass there."})
    output: Optional[str] = field(default=None, metadata={"help": "JSON file for the results."})
    markdown: Optional[str] = field(default=None, metadata={"help": "File for the tables in Markdown."})
    html: Optional[str] = field(default=None, metadata={"help": "File for the tables in HTML."})
    figures: Optional[str] = field(default=None, metadata={"help": "Folder for the figures."})

    def __post_init__(self) -> None:
        if not self.adapter and self.model is None:
            raise ValueError("there is nothing to measure: give `adapter`, or `model` for its zero-shot accuracy.")
        if self.fit_threshold is not None and (self.calibration is None or not self.adapter):
            raise ValueError(
                "`fit_threshold` needs `adapter`, with which it is stored, and `calibration`: in-distribution images that "
                "neither were trained on nor are reported on."
            )
        for alpha in self.residual_alpha:
            check_residual_alpha(alpha)
        if self.streaming and (self.max_images or self.fit_shots or self.calibration_shots):
            raise ValueError("a stream can't be drawn from: leave out `streaming`, or the numbers of images.")


def main(arguments: Sequence[str]) -> Results:
    """
    Measures as the command line says.

    Args:
        arguments (`Sequence[str]`): The command line without the program's name.

    Returns:
        [`Results`]: With every model that was measured.
    """
    (config,) = parse_config((EvaluationConfig,), arguments, __doc__, USAGE)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    results: Results | None = None
    for name, predictor, folder in _models(config):
        shared = _shared_arguments(config, predictor, accelerator)
        measured = evaluate_model(
            predictor.classifier,
            **shared,
            **_sets(config, predictor.class_names),
            corruptions=_corruptions(config.corruptions),
            severities=config.severities,
            scores=ALL if config.scores == [ALL] else config.scores,
            preset=config.preset,
            tpr=config.tpr,
            full_spectrum=config.full_spectrum,
            baseline=results is None and config.zero_shot and bool(config.adapter),
            name=name,
            selection=config.selection,
        )
        results = measured if results is None else results.merged(measured)
        if folder is not None and config.fit_threshold is not None:
            threshold, score = fit_threshold(
                predictor.classifier, **shared, score=config.scores[0], tpr=config.fit_threshold
            )
            if accelerator.is_main_process:
                calibrated = Predictor(
                    predictor.classifier, shared["preprocess"], predictor.class_names, score, threshold
                )
                calibrated.save_calibration(folder)
    assert results is not None
    if accelerator.is_main_process:
        _write(config, results)
    return results


def _models(config: EvaluationConfig) -> Iterator[tuple[str, Predictor, Optional[Path]]]:
    """
    Name, model and, for an adapter as it was saved, its folder. They come one after the other, because the next is made
    from the last.
    """
    if not config.adapter:
        assert config.model is not None
        try:
            model, tokenizer = AutoModel.from_pretrained(config.model), AutoTokenizer.from_pretrained(config.model)
        except OSError as error:  # whose message doesn't name the model without a connection
            raise FileNotFoundError(f"the model {config.model!r} cannot be loaded: {error}") from error
        names = _load(config, config.dataset, "test").class_names
        assert names is not None
        classifier = ZeroShotClassifier(model, tokenizer, names, config.template)
        yield "zero_shot", Predictor(classifier, ImagePreprocessor.from_pretrained(config.model), names), None
    for path in config.adapter:
        predictor = load_classifier(path, model=config.model)
        yield Path(path).name, predictor, Path(path) if Path(path).is_dir() else None
        for alpha in config.residual_alpha:
            _make_residual(predictor, path, alpha)
            yield f"{Path(path).name}, alpha {alpha:g}", predictor, None


def _make_residual(predictor: Predictor, path: str, alpha: float) -> None:
    classifier: Any = predictor.classifier
    model = classifier.model if isinstance(classifier, ZeroShotClassifier) else classifier
    config = model.peft_config[model.active_adapter]
    if not isinstance(config, ReprogrammerConfig):
        raise ValueError(f"`residual_alpha` is for Reprogrammers; the adapter {path} is a {type(config).__name__}.")
    if not isinstance(config, ResidualReprogrammerConfig):
        residual = ResidualReprogrammerConfig.from_reprogrammer(config)
        model = PeftModel.from_pretrained(model.unload(), path, config=residual)
        if isinstance(classifier, ZeroShotClassifier):
            classifier.model = model
        else:
            predictor.classifier = model
    set_residual_alpha(model, alpha)


def _shared_arguments(config: EvaluationConfig, predictor: Predictor, accelerator: Accelerator) -> dict[str, Any]:
    """What [`evaluate_model`] and [`fit_threshold`] both take."""
    preprocess, names = predictor.preprocess, predictor.class_names
    if config.source_resolution is not None:
        preprocess = ImagePreprocessor(preprocess.image_processor, config.source_resolution)

    def drawn(source: Optional[str], shots: Optional[int]) -> Optional[ImageData]:
        data = None if source is None else _load(config, source, "train", names)
        return data if data is None or shots is None else few_shot(data, shots, config.seed)

    return {
        "preprocess": preprocess,
        "fit": drawn(config.fit, config.fit_shots),
        "calibration": drawn(config.calibration, config.calibration_shots),
        "batch_size": config.batch_size,
        "num_workers": config.num_workers,
        "accelerator": accelerator,
        "cache_dir": config.cache_dir,
        "seed": config.seed,
    }


def _sets(config: EvaluationConfig, names: list[str]) -> dict[str, Any]:
    return {
        "id": _load(config, config.dataset, "test", names, draw=True),
        "shifts": {name: _load(config, path, "test", names, draw=True) for name, path in _named(config.shift)},
        "ood": {name: _load(config, path, "test", labelled=False, draw=True) for name, path in _named(config.ood)},
    }


def _named(sets: Sequence[str]) -> Iterator[tuple[str, str]]:
    for item in sets:
        name, separator, path = item.partition("=")
        if not (separator and name and path):
            raise ValueError(f"a set is written `name=path` or `name=path:split`, got '{item}'.")
        yield name, path


def _load(
    config: EvaluationConfig,
    source: str,
    split: str,
    class_names: Optional[list[str]] = None,
    labelled: bool = True,
    draw: bool = False,
) -> ImageData:
    path, revision, split = parse_source(source, split)
    data = load_image_data(
        path, split=split, class_names=class_names, labelled=labelled, revision=revision, streaming=config.streaming
    )
    if not draw or config.max_images is None or config.max_images >= len(data):
        return data
    rows = np.random.default_rng(config.seed).choice(len(data), config.max_images, replace=False)
    return data.select(np.sort(rows))


def parse_source(source: str, split: str) -> tuple[str, Optional[str], str]:
    """
    Takes apart how a set is written.

    Args:
        source (`str`): `path[@revision][:split]`.
        split (`str`): The split, if it names none.

    Returns:
        `tuple[str, str | None, str]`: Path, revision and split.
    """
    # A split follows the last colon and holds no slash: `data:test[:50%]`, but not `hf://datasets/...`.
    match = re.fullmatch(r"(.+?):(\w[^/\\]*)", source)
    path, split = match.groups() if match else (source, split)
    if "://" in path or Path(path).exists():
        return path, None, split
    path, _, revision = path.partition("@")
    return path, revision or None, split


def _corruptions(names: list[str]) -> list[str]:
    kinds = ("all", "common", "extra")
    return [corruption for name in names for corruption in (list_corruptions(name) if name in kinds else [name])]


def _write(config: EvaluationConfig, results: Results) -> None:
    if config.output is not None:
        results.save(config.output)
    for path, text in ((config.markdown, results.to_markdown()), (config.html, results.to_html())):
        if path is not None:
            with replacing(Path(path)) as temporary:
                temporary.write_text(text, "utf-8")
    if config.figures is not None:
        from ..evaluation.figures import save_figures

        save_figures(results, config.figures)
    print(results.to_markdown())


if __name__ == "__main__":
    run(main, sys.argv[1:])
