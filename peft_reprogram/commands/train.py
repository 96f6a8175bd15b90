"""
Trains an adapter for an image classification task.

    peft-reprogram train --model openai/clip-vit-base-patch32 --dataset uoft-cs/cifar10 --shots 16 --output_dir runs/cifar10
    accelerate launch -m peft_reprogram.commands.train --config FILE --model MODEL --dataset DATA --output_dir OUT

A configuration file holds the same names as the flags; flags win over the file. `--help` lists them.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from peft import get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoTokenizer, set_seed

from .. import ReprogrammerConfig, ResidualReprogrammerConfig, ZeroShotClassifier
from ..command_line import parse_config
from ..data import ImageData, ImagePreprocessor, few_shot, load_image_data, train_validation_split
from ..hub import push_to_hub
from ..training import TrainingConfig, TrainingResult, train
from .exit import run


USAGE = "peft-reprogram train --model MODEL --dataset DATA --output_dir DIR [--config FILE] [more flags, see --help]"
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
    """How to treat a run that is there already, and where to publish what came out."""

    resume: bool = field(default=False, metadata={"help": "Continues the run in output_dir, if there is one."})
    overwrite: bool = field(default=False, metadata={"help": "Discards the run in output_dir."})
    push_to_hub: Optional[str] = field(
        default=None, metadata={"help": "Publishes the adapter with its card in this repository, e.g. user/adapter."}
    )
    hub_private: bool = field(default=False, metadata={"help": "Makes that repository private, if it is new."})
    hub_base_model: Optional[str] = field(
        default=None, metadata={"help": "The base model's name on the Hub, if `model` is a folder."}
    )


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
        adapted = get_peft_model(model, adapter, revision=task.model_revision)
        return ZeroShotClassifier(adapted, tokenizer, class_names, task.template)

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
    adapter = make_config.for_classes(class_names, task.template, **common)
    return get_peft_model(model, adapter, revision=task.model_revision)


def main(arguments: list[str]) -> TrainingResult:
    """
    Trains, and publishes if asked, as the command line says.

    Args:
        arguments (`list[str]`): The command line without the program's name.

    Returns:
        [`TrainingResult`]: what the run did.
    """
    task, training_config, run = parse_config((TaskConfig, TrainingConfig, RunConfig), arguments, __doc__, USAGE)
    if run.push_to_hub is not None and run.hub_base_model is None and Path(task.model).is_dir():
        raise ValueError(
            f"others cannot load the base model {task.model}, a folder: give its name on the Hub as `hub_base_model`."
        )
    # Processes without accelerators find each other too, which Accelerate otherwise leaves to a variable.
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    set_seed(training_config.seed)
    # One process of each machine prepares and downloads, the others then find it done.
    with PartialState().local_main_process_first():
        preprocess = ImagePreprocessor.from_pretrained(task.model, task.source_resolution)
        training, validation = load_data(task, training_config.seed)
        assert training.class_names is not None
        classifier = build_classifier(task, training.class_names, preprocess)
    result = train(
        classifier,
        training,
        training_config,
        preprocess,
        validation=validation,
        recipe={**asdict(task), "class_names": training.class_names},
        resume=run.resume,
        overwrite=run.overwrite,
    )
    PartialState().print(_summary(result, training_config.output_dir))
    if run.push_to_hub is not None and PartialState().is_main_process:
        url = push_to_hub(
            training_config.output_dir,
            run.push_to_hub,
            base_model=run.hub_base_model or task.model,
            private=run.hub_private or None,
        )
        print(f"Published: {url}")
    return result


def _has_head(config: Any) -> bool:
    return any(name.endswith("ForImageClassification") for name in config.architectures or [])


def _summary(result: TrainingResult, output_dir: str) -> str:
    validation = "" if result.validation is None else f", validation accuracy {result.validation['accuracy']:.1%}"
    return (
        f"{result.steps} steps in {result.seconds:.0f} s ({result.images_per_second:.0f} images/s), "
        f"{result.trainable_parameters:,} trained parameters{validation}. Written to {output_dir}."
    )


if __name__ == "__main__":
    run(main, sys.argv[1:])
