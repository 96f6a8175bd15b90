"""
Trains an adapter for an image classification task.

    accelerate launch scripts/train.py --model openai/clip-vit-base-patch32 --dataset uoft-cs/cifar10 --shots 16 --output_dir runs/cifar10
    accelerate launch scripts/train.py --config scripts/configs/train_cifar10.yaml --model MODEL --dataset DATA --output_dir OUT

A configuration file holds the same names as the flags; flags win over the file. `--help` lists them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from peft import get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    HfArgumentParser,
    set_seed,
)

from peft_reprogram import ReprogrammerConfig, ResidualReprogrammerConfig, ZeroShotClassifier
from peft_reprogram.data import ImageData, ImagePreprocessor, few_shot, load_image_data, train_validation_split
from peft_reprogram.training import TrainingConfig, TrainingResult, train


METHODS = {"reprogrammer": ReprogrammerConfig, "residual_reprogrammer": ResidualReprogrammerConfig}


@dataclass
class TaskConfig:
    """What to train and on what."""

    model: str = field(metadata={"help": "Hub id or folder of a text-image model or an image classifier."})
    dataset: str = field(metadata={"help": "Hub id, folder or parquet file of the images."})
    method: str = field(default="reprogrammer", metadata={"help": f"One of {', '.join(METHODS)}."})
    method_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Fields of the method's PEFT configuration, as JSON: '{\"frame_inner\": 192}'."},
    )
    template: list[str] = field(
        default_factory=lambda: ["a photo of a {}"], metadata={"help": "One or several prompts with {} for the class."}
    )
    model_revision: Optional[str] = field(default=None, metadata={"help": "Revision of a model on the Hub."})
    dataset_name: Optional[str] = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: Optional[str] = field(default=None, metadata={"help": "Revision of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    validation_split: Optional[str] = field(default=None, metadata={"help": "The split to validate on."})
    validation_fraction: Optional[float] = field(
        default=None, metadata={"help": "Share of the training split to set aside for validation instead."}
    )
    shots: Optional[int] = field(default=None, metadata={"help": "Training images of each class; all by default."})
    validation_shots: Optional[int] = field(
        default=None, metadata={"help": "Validation images of each class; all by default."}
    )
    image_column: Optional[str] = field(default=None, metadata={"help": "Column of images, if it is not found."})
    label_column: Optional[str] = field(default=None, metadata={"help": "Column of labels, if it is not found."})
    class_names: Optional[list[str]] = field(
        default=None, metadata={"help": "The classes in label order, if the data do not name them or differ."}
    )
    class_map: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": 'New names of classes of the data, as JSON; null leaves one out: \'{"car": "automobile"}\'.'
        },
    )
    source_resolution: Optional[int] = field(
        default=None, metadata={"help": "Brings every image to this side first, e.g. 32 for CIFAR-10."}
    )
    skip_unreadable: bool = field(default=False, metadata={"help": "Leaves out images that cannot be decoded."})
    streaming: bool = field(default=False, metadata={"help": "Reads training rows as a stream; needs max_steps."})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"there is no method '{self.method}'. Choose one of {', '.join(METHODS)}.")
        if self.validation_split is not None and self.validation_fraction is not None:
            raise ValueError("`validation_split` and `validation_fraction` exclude each other: give one.")
        if self.validation_split is not None and Path(self.dataset).is_file():
            raise ValueError(
                f"{self.dataset} is one file without splits, so `validation_split` would be the training rows. Give "
                "`validation_fraction`, or the folder of all files as `dataset`."
            )


@dataclass
class RunConfig:
    """How to treat a run that is there already."""

    resume: bool = field(default=False, metadata={"help": "Continues the run in output_dir, if there is one."})
    overwrite: bool = field(default=False, metadata={"help": "Discards the run in output_dir."})


def parse_arguments(arguments: list[str]) -> tuple[TaskConfig, TrainingConfig, RunConfig]:
    """
    Reads flags and the configuration file that they may name.

    Args:
        arguments (`list[str]`): The command line without the program's name.

    Returns:
        `tuple[TaskConfig, TrainingConfig, RunConfig]`: the configuration.

    Raises:
        ValueError: if a value is out of range or a key of the file is unknown.
    """
    kinds = (TaskConfig, TrainingConfig, RunConfig)
    # The usage of all flags would push the mistake that it precedes off the screen.
    usage = "train.py --model MODEL --dataset DATA --output_dir DIR [--config FILE] [more flags, see --help]"
    parser = HfArgumentParser(kinds, usage=usage, add_help=False)  # type: ignore[arg-type]
    parser.register("type", dict[str, Any], _json_object)
    parser.add_argument("--config", default=None, help="A YAML file with the names of these flags as keys.")
    parser.add_argument("-h", "--help", action="help", help="Shows this and exits.")
    # The file becomes flags before the given ones: it is checked as they are, and the later of two wins.
    file_parser = HfArgumentParser((), add_help=False, allow_abbrev=False)
    file_parser.add_argument("--config", default=None)
    file = file_parser.parse_known_args(arguments)[0].config
    known = [item.name for kind in kinds for item in dataclasses.fields(kind)]
    flags = [] if file is None else _file_flags(Path(file), known)
    task, training, run, _, unknown = parser.parse_args_into_dataclasses(
        [*flags, *arguments], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(f"unknown arguments {' '.join(unknown)}. The known flags are --{', --'.join(known)}.")
    return task, training, run


def load_data(task: TaskConfig, seed: int) -> tuple[ImageData, ImageData | None]:
    """
    The rows to train on and those to validate on.

    Args:
        task ([`TaskConfig`]): Where they are and how many to take.
        seed (`int`): Seed of what is drawn.

    Returns:
        `tuple[ImageData, ImageData | None]`: training and validation rows, which never overlap.
    """

    def load(split: str, class_names: list[str] | None, streaming: bool) -> ImageData:
        return load_image_data(
            task.dataset,
            split=split,
            name=task.dataset_name,
            image_column=task.image_column,
            label_column=task.label_column,
            class_names=class_names,
            class_map=task.class_map,
            skip_unreadable=task.skip_unreadable,
            revision=task.dataset_revision,
            streaming=streaming,
        )

    training = load(task.train_split, task.class_names, task.streaming)
    validation = None
    if task.validation_split is not None:
        validation = load(task.validation_split, training.class_names, False)
    elif task.validation_fraction is not None:
        training, validation = train_validation_split(training, task.validation_fraction, seed)
    if task.shots is not None:
        training = few_shot(training, task.shots, seed)
    if validation is not None and task.validation_shots is not None:
        validation = few_shot(validation, task.validation_shots, seed)
    return training, validation


def build_classifier(task: TaskConfig, class_names: list[str], preprocess: ImagePreprocessor) -> torch.nn.Module:
    """
    The pre-trained model with a fresh adapter, as a classifier of the task's classes.

    Args:
        task ([`TaskConfig`]): The model and the method.
        class_names (`list[str]`): The classes in label order.
        preprocess ([`ImagePreprocessor`]): Knows the model's normalisation and input size.

    Returns:
        `torch.nn.Module`: a [`ZeroShotClassifier`] around a text-image model; an image classifier as it is, with a new head
        trained beside the adapter unless it knows these very classes.
    """
    make_config: Any = METHODS[task.method]
    known = [item.name for item in dataclasses.fields(make_config)]
    unknown = [option for option in task.method_options if option not in known]
    if unknown:
        raise ValueError(f"the method '{task.method}' has no option {unknown}. Its options are {', '.join(known)}.")
    common = {"image_processor": preprocess.image_processor, **task.method_options}
    config = AutoConfig.from_pretrained(task.model, revision=task.model_revision)

    if hasattr(config, "text_config") and not _has_head(config):
        model = AutoModel.from_pretrained(task.model, revision=task.model_revision)
        tokenizer = AutoTokenizer.from_pretrained(task.model, revision=task.model_revision)
        adapter = make_config.for_classes(class_names, task.template, tokenizer=tokenizer, **common)
        return ZeroShotClassifier(get_peft_model(model, adapter), tokenizer, class_names, task.template)

    labels = dict(enumerate(class_names))
    if not (_has_head(config) and config.id2label == labels):
        model = AutoModelForImageClassification.from_pretrained(
            task.model,
            revision=task.model_revision,
            id2label=labels,
            label2id={name: index for index, name in labels.items()},
            ignore_mismatched_sizes=True,
        )
        heads = [name for name, _ in model.named_children() if name.endswith("classifier")]
        common = {"modules_to_save": heads, **common}
    else:
        model = AutoModelForImageClassification.from_pretrained(task.model, revision=task.model_revision)
    return get_peft_model(model, make_config.for_classes(class_names, task.template, **common))


def main(arguments: list[str]) -> TrainingResult:
    """
    Trains as the command line says.

    Args:
        arguments (`list[str]`): The command line without the program's name.

    Returns:
        [`TrainingResult`]: what the run did.
    """
    task, training_config, run = parse_arguments(arguments)
    # Processes without accelerators find each other too, which Accelerate otherwise leaves to a variable.
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    set_seed(training_config.seed)
    # One process of each machine prepares and downloads, the others then find it done.
    with PartialState().local_main_process_first():
        preprocess = ImagePreprocessor.from_pretrained(task.model, task.source_resolution)
        training, validation = load_data(task, training_config.seed)
        assert training.class_names is not None
        classifier = build_classifier(task, training.class_names, preprocess)
    return train(
        classifier,
        training,
        training_config,
        preprocess,
        validation=validation,
        recipe={**asdict(task), "class_names": training.class_names},
        resume=run.resume,
        overwrite=run.overwrite,
    )


def _file_flags(path: Path, known: list[str]) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}.")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold `name: value` lines, not a {type(content).__name__}.")
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ValueError(f"{path} has unknown keys {unknown}. The known ones are {', '.join(known)}.")
    flags = []
    for key, value in content.items():
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{key}", *map(str, values)]
    return flags


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {text}.")
    return value


def _has_head(config: Any) -> bool:
    return any(name.endswith("ForImageClassification") for name in config.architectures or [])


def _summary(result: TrainingResult, output_dir: str) -> str:
    validation = "" if result.validation is None else f", validation accuracy {result.validation['accuracy']:.1%}"
    return (
        f"{result.steps} steps in {result.seconds:.0f} s ({result.images_per_second:.0f} images/s), "
        f"{result.trainable_parameters:,} trained parameters{validation}. Written to {output_dir}."
    )


if __name__ == "__main__":
    try:
        outcome = main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except (FileExistsError, FileNotFoundError, FloatingPointError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}" if PartialState().is_main_process else 1)
    finally:
        PartialState().destroy_process_group()
    PartialState().print(_summary(outcome, parse_arguments(sys.argv[1:])[1].output_dir))
