"""What the bench asks of a way to fine-tune, and what it gives it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Optional

import torch
from torch import nn

from ..classifier import ZeroShotClassifier
from ..data import ImageData, ImagePreprocessor
from ..training import EpochHook, TrainingConfig, TrainingResult, train
from .embedded import EmbeddedImages, takes_embeddings


@dataclass(frozen=True)
class Task:
    """
    A pre-trained model and what to adapt it to.

    Args:
        model (`str`): Hub id or folder of a text-image model.
        template (`list[str]`): Prompt templates with one `{}` each.
        preprocess ([`ImagePreprocessor`]): Turns images into `pixel_values`.
        training ([`ImageData`]): Labelled images to learn from; its class names are the classes.
        config ([`TrainingConfig`]): The budget (epochs, batch size, precision), the seed and where to write. A strategy sets
            what is its own: objective, optimiser, learning rates.
        revision (`str`, *optional*): Revision of the model on the Hub.
        channels_last (`bool`, *optional*, defaults to `False`): Lays the weights of convolutions out by pixel, with which a
            convolutional tower is faster, on the CPU about twice.
    """

    model: str
    template: list[str]
    preprocess: ImagePreprocessor
    training: ImageData
    config: TrainingConfig
    revision: Optional[str] = None
    channels_last: bool = False

    @property
    def class_names(self) -> list[str]:
        """The classes in label order."""
        assert self.training.class_names is not None
        return self.training.class_names

    def load_tokenizer(self) -> Any:
        """The model's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model, revision=self.revision)

    def load_model(self) -> nn.Module:
        """The pre-trained model, a fresh copy every time."""
        from transformers import AutoModel

        model = AutoModel.from_pretrained(self.model, revision=self.revision)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def zero_shot(self) -> ZeroShotClassifier:
        """The pre-trained model as a classifier of the task's classes, in evaluation mode, nothing of it trained."""
        classifier = ZeroShotClassifier(self.load_model(), self.load_tokenizer(), self.class_names, self.template)
        return classifier.requires_grad_(False).eval()


@dataclass(frozen=True)
class Strategy(ABC):
    """
    One way to fine-tune. Its fields are its hyper-parameters.

    A subclass says what is trained ([`~Strategy.build`]), and where that is not all, how ([`~Strategy.training_config`],
    [`~Strategy.parameter_groups`], [`~Strategy.on_epoch_start`]) and what is made of the result ([`~Strategy.points`]).
    """

    name: ClassVar[str]
    # What the bench tries, choosing by validation accuracy: as many entries for every strategy that trains. The usual value
    # comes first and a bolder one second, so that two trials serve few steps of training as well as many.
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    # Shares of the zero-shot features to report beside none, where the strategy trains a reprogrammer.
    residual_alphas: ClassVar[tuple[float, ...]] = ()
    # The point of a curve (see `points`, `residual_alphas`) that the paper recommends; None where there is one point.
    paper_alpha: ClassVar[Optional[float]] = None

    # Whether image embeddings stay as they are in training. They are then computed once, which changes nothing but the time.
    frozen_images: ClassVar[bool] = False

    @abstractmethod
    def build(self, task: Task) -> nn.Module:
        """
        The classifier to train.

        Args:
            task ([`Task`]): The model and the data.

        Returns:
            `torch.nn.Module`: Maps `pixel_values` and `labels` to an output with `loss` and `logits`, knows `class_names`, has
            `save_pretrained`. What requires gradients is trained; if nothing does, the classifier is taken as it is.
        """

    def training_config(self, config: TrainingConfig) -> TrainingConfig:
        """The task's configuration with what this strategy sets itself."""
        return config

    def parameter_groups(self, classifier: nn.Module, config: TrainingConfig) -> Optional[list[dict[str, Any]]]:
        """Parameter groups for the optimiser; `None` takes those of [`~training.default_parameter_groups`]."""
        return None

    def on_epoch_start(self, classifier: nn.Module, config: TrainingConfig) -> Optional[EpochHook]:
        """What to do before each epoch, see [`~training.train`]; `None` for nothing."""
        return None

    def fit(self, task: Task) -> tuple[nn.Module, Optional[TrainingResult]]:
        """
        Builds and trains.

        Args:
            task ([`Task`]): The model and the data. A run that was interrupted in `task.config.output_dir` is continued.

        Returns:
            `tuple`: The trained classifier, and what its training did (`None` if nothing was trained).
        """
        torch.manual_seed(task.config.seed)  # of what `build` draws
        classifier = self.build(task)
        if not any(parameter.requires_grad for parameter in classifier.parameters()):
            return classifier.eval(), None
        result = self.train(classifier, task)
        return classifier.eval(), result

    def train(self, classifier: nn.Module, task: Task) -> TrainingResult:
        """
        Trains what was built, and saves it in `task.config.output_dir`.

        Args:
            classifier (`torch.nn.Module`): What [`~Strategy.build`] gave; trained in place.
            task ([`Task`]): The model and the data. A run that was interrupted is continued.

        Returns:
            [`TrainingResult`]: its seconds include those of embedding images in advance.
        """
        config = self.training_config(task.config)
        data: ImageData | EmbeddedImages = task.training
        started = time.perf_counter()
        with ExitStack() as stack:
            if self.frozen_images and not task.training.streaming:
                data = EmbeddedImages(classifier, task.training, task.preprocess, config.eval_batch_size)
                stack.enter_context(takes_embeddings(classifier))
            embedding_seconds = time.perf_counter() - started
            result = train(
                classifier,
                data,
                config,
                task.preprocess,
                parameter_groups=self.parameter_groups(classifier, config),
                on_epoch_start=self.on_epoch_start(classifier, config),
                recipe={"strategy": self.name, **asdict(self), "model": task.model, "template": task.template},
                resume=True,
                # Where no run has begun, other files are none of its business.
                overwrite=not (Path(config.output_dir) / "run.json").exists(),
            )
        return replace(result, seconds=round(result.seconds + embedding_seconds, 3))

    def points(self, classifier: nn.Module, task: Task) -> Iterator[tuple[Optional[float], nn.Module]]:
        """
        What the trained classifier is measured as.

        Args:
            classifier (`torch.nn.Module`): What [`~Strategy.fit`] gave; it may be changed between two points.
            task ([`Task`]): What it was trained on.

        Yields:
            `tuple`: `alpha`, the share of the pre-trained model, and the classifier there. One point with `alpha` `None` by
            default.
        """
        yield None, classifier

    def with_options(self, **options: Any) -> Strategy:
        """This strategy with other hyper-parameters."""
        unknown = sorted(options.keys() - asdict(self).keys())
        if unknown:
            raise ValueError(
                f"the strategy {self.name!r} has no option {unknown}; its options are {', '.join(asdict(self)) or 'none'}."
            )
        return replace(self, **options)
