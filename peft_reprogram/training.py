"""The training loop: any strategy, any classifier, on whatever Accelerate runs on, resumable to the same result."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import torch
from torch import nn

from .atomic import PARTIAL, filling, replacing
from .data import ImageData, ImagePreprocessor, collate, prepare
from .provenance import command, versions


# How the tuners name their two kinds of parameters, which want learning rates of their own.
FRAME_PARAMETERS = "reprogrammer_frame"
TEXT_PARAMETERS = "reprogrammer_rows"
# The stream is shuffled within this many rows.
SHUFFLE_BUFFER = 1_000

# What may change between an interrupted run and its continuation without changing its result.
FREE_TO_CHANGE = {"output_dir", "checkpoint_steps", "keep_checkpoints", "num_workers", "trackers", "progress_bar"}

# What `train` calls before each epoch: epoch, optimiser, learning-rate scheduler, mini-batches to look at.
EpochHook = Callable[[int, torch.optim.Optimizer, Any, Iterable[dict[str, torch.Tensor]]], None]


@dataclass
class TrainingConfig:
    """
    How to train. Every field is a flag of `peft-reprogram train` and a key of its configuration file.

    Args:
        output_dir (`str`):
            Where checkpoints, the adapter and `results.json` go.
        epochs (`int`, *optional*, defaults to 20):
            Passes over the training rows.
        max_steps (`int`, *optional*):
            Optimiser steps, instead of `epochs`; required for a stream.
        batch_size (`int`, *optional*, defaults to 32):
            Training images a process and micro-batch. What remains at the end of an epoch and fills no batch of all processes
            is dropped; the next epoch is shuffled anew. Fewer rows than one batch, or a stream's, are all used.
        eval_batch_size (`int`, *optional*, defaults to 64):
            Validation images a process and batch.
        gradient_accumulation_steps (`int`, *optional*, defaults to 1):
            Micro-batches an optimiser step.
        objective (`str`, *optional*, defaults to `"class"`):
            The loss of a `ZeroShotClassifier`, a name for [`~objectives.get_objective`].
        objective_options (`dict`, *optional*):
            The options of the objective.
        optimizer (`"adamw"`, `"adam"` or `"sgd"`, *optional*, defaults to `"adamw"`):
            The optimiser. Weight decay is decoupled in AdamW and a penalty on the gradient in the others.
        lr (`float`, *optional*, defaults to 5e-4):
            Learning rate of everything that has none of its own.
        frame_lr (`float`, *optional*):
            Learning rate of the pixel frame, `lr` if not given.
        text_lr (`float`, *optional*):
            Learning rate of the text rows, `lr` if not given.
        weight_decay (`float`, *optional*, defaults to 0.0):
            Weight decay of everything that has none of its own.
        frame_weight_decay (`float`, *optional*):
            Weight decay of the pixel frame, `weight_decay` if not given.
        text_weight_decay (`float`, *optional*):
            Weight decay of the text rows (towards the pre-trained rows), `weight_decay` if not given.
        adam_betas (`list[float]`, *optional*, defaults to [0.9, 0.999]):
            Decay rates of the moments of AdamW and Adam.
        adam_epsilon (`float`, *optional*, defaults to 1e-8):
            Added to the denominator of AdamW and Adam.
        momentum (`float`, *optional*, defaults to 0.9):
            Momentum of SGD.
        lr_scheduler (`str`, *optional*, defaults to `"cosine"`):
            A scheduler name of `transformers.get_scheduler` (`"cosine"`, `"linear"`, `"constant_with_warmup"`...), applied
            every optimiser step.
        warmup_ratio (`float`, *optional*, defaults to 0.1):
            Share of the steps over which learning rates rise from 0.
        warmup_steps (`int`, *optional*):
            The number of these steps, instead of `warmup_ratio`.
        max_grad_norm (`float`, *optional*, defaults to 1.0):
            Longer gradients are shortened to this norm; 0 leaves them.
        mixed_precision (`"no"`, `"bf16"` or `"fp16"`, *optional*):
            Precision of the forward pass. If not given, what `accelerate launch` was told.
        freeze_batch_norm (`bool`, *optional*, defaults to `True`):
            Keeps the running statistics of batch normalisation as they are.
        selection (`"last"` or `"val"`, *optional*, defaults to `"last"`):
            Which weights are kept: those after the last step, or those with the best validation accuracy of all epochs, the
            start included. Test data are never asked.
        seed (`int`, *optional*, defaults to 0):
            Seed of everything random in training.
        logging_steps (`int`, *optional*, defaults to 10):
            Optimiser steps between two records of the loss.
        checkpoint_steps (`int`, *optional*):
            Optimiser steps between two checkpoints. If not given, one after every epoch.
        keep_checkpoints (`int`, *optional*, defaults to 1):
            How many of the latest checkpoints stay.
        trackers (`list[str]`, *optional*):
            Experiment trackers of Accelerate to report to (`tensorboard`, `wandb`...).
        num_workers (`int`, *optional*, defaults to 0):
            Processes a training process starts to prepare images.
        progress_bar (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
    """

    output_dir: str = field(metadata={"help": "Where checkpoints, the adapter and results.json go."})
    epochs: int = field(default=20, metadata={"help": "Passes over the training rows."})
    max_steps: Optional[int] = field(default=None, metadata={"help": "Optimiser steps, instead of epochs."})
    batch_size: int = field(default=32, metadata={"help": "Training images a process and micro-batch."})
    eval_batch_size: int = field(default=64, metadata={"help": "Validation images a process and batch."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-batches an optimiser step."})
    objective: str = field(
        default="class", metadata={"help": "class, anchored, focal, contrastive, contrastive_paper or distillation."}
    )
    objective_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the objective, as JSON: '{\"gamma\": 2}'."}
    )
    optimizer: Literal["adamw", "adam", "sgd"] = field(default="adamw", metadata={"help": "The optimiser."})
    lr: float = field(default=5e-4, metadata={"help": "Learning rate of everything that has none of its own."})
    frame_lr: Optional[float] = field(default=None, metadata={"help": "Learning rate of the pixel frame."})
    text_lr: Optional[float] = field(default=None, metadata={"help": "Learning rate of the text rows."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of everything that has none of its own."})
    frame_weight_decay: Optional[float] = field(default=None, metadata={"help": "Weight decay of the pixel frame."})
    text_weight_decay: Optional[float] = field(default=None, metadata={"help": "Weight decay of the text rows."})
    adam_betas: list[float] = field(
        default_factory=lambda: [0.9, 0.999], metadata={"help": "The two betas of AdamW and Adam."}
    )
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Epsilon of AdamW and Adam."})
    momentum: float = field(default=0.9, metadata={"help": "Momentum of SGD."})
    lr_scheduler: str = field(default="cosine", metadata={"help": "A scheduler name of transformers.get_scheduler."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Share of the steps with a rising learning rate."})
    warmup_steps: Optional[int] = field(default=None, metadata={"help": "Their number, instead of warmup_ratio."})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Longer gradients are shortened to it; 0 leaves them."}
    )
    mixed_precision: Optional[Literal["no", "bf16", "fp16"]] = field(
        default=None, metadata={"help": "Precision of the forward pass; by default what `accelerate launch` was told."}
    )
    freeze_batch_norm: bool = field(default=True, metadata={"help": "Keeps running statistics as they are."})
    selection: Literal["last", "val"] = field(
        default="last", metadata={"help": "Keep the last weights, or those with the best validation accuracy."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything random."})
    logging_steps: int = field(default=10, metadata={"help": "Optimiser steps between two records of the loss."})
    checkpoint_steps: Optional[int] = field(
        default=None, metadata={"help": "Optimiser steps between two checkpoints; by default one an epoch."}
    )
    keep_checkpoints: int = field(default=1, metadata={"help": "How many of the latest checkpoints stay."})
    trackers: list[str] = field(
        default_factory=list, metadata={"help": "Experiment trackers of Accelerate, e.g. tensorboard."}
    )
    num_workers: int = field(default=0, metadata={"help": "Processes that prepare images, a training process."})
    progress_bar: bool = field(default=True, metadata={"help": "Shows a progress bar."})

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "max_steps", "batch_size", "eval_batch_size", "gradient_accumulation_steps",
                        "logging_steps", "checkpoint_steps", "keep_checkpoints")  # fmt: skip
        not_negative = ("lr", "frame_lr", "text_lr", "weight_decay", "frame_weight_decay", "text_weight_decay",
                        "warmup_steps", "max_grad_norm", "num_workers")  # fmt: skip
        for name in (*at_least_one, *not_negative):
            value, least = getattr(self, name), 1 if name in at_least_one else 0
            if value is not None and not (isinstance(value, (int, float)) and value >= least):
                raise ValueError(f"`{name}` must be a number of at least {least}, got {value!r}.")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"`warmup_ratio` is a share of the steps, between 0 and 1, got {self.warmup_ratio}.")
        choices = {
            "optimizer": ("adamw", "adam", "sgd"),
            "selection": ("last", "val"),
            "mixed_precision": (None, "no", "bf16", "fp16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"`adam_betas` must be two numbers in [0, 1), got {self.adam_betas}.")


@dataclass
class TrainingResult:
    """
    What a run did; `results.json` holds the same.

    Args:
        steps (`int`):
            Optimiser steps taken.
        seconds (`float`):
            Time in the loop, validation included, interrupted parts of the run too.
        images_per_second (`float`):
            Training images that went through the model, by that time without validation.
        trainable_parameters (`int`):
            Numbers that were trained.
        selection (`str`):
            How the weights were chosen: `"last"` or `"val"`.
        selected_epoch (`int`):
            The epoch whose weights were kept; 0 is the start.
        validation (`dict`, *optional*):
            `accuracy` (a fraction) and `loss` of the weights kept, on the validation rows.
        history (`list[dict]`):
            Training losses and validation figures in the order in which they arose.
    """

    steps: int
    seconds: float
    images_per_second: float
    trainable_parameters: int
    selection: str
    selected_epoch: int
    validation: dict[str, float] | None
    history: list[dict[str, Any]]


def train(
    classifier: nn.Module,
    data: ImageData | torch.utils.data.Dataset,
    config: TrainingConfig,
    preprocess: ImagePreprocessor | None = None,
    *,
    validation: ImageData | torch.utils.data.Dataset | None = None,
    recipe: Mapping[str, Any] | None = None,
    parameter_groups: list[dict[str, Any]] | None = None,
    on_epoch_start: EpochHook | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """
    Trains the parameters of a classifier that require gradients, and saves it.

    The classifier, its processor and `results.json` end in `config.output_dir`, all of them or none. A run that was
    interrupted continues from its last checkpoint with `resume=True` and gives the result that it would have given.

    Args:
        classifier (`nn.Module`):
            Maps `pixel_values` and `labels` to an output with `loss` and `logits`; has `save_pretrained`.
        data ([`ImageData`] or `torch.utils.data.Dataset`):
            What to train on. A data set yields `{"pixel_values": (3, H, W) float32, "labels": int}`.
        config ([`TrainingConfig`]):
            How to train.
        preprocess ([`ImagePreprocessor`], *optional*):
            Turns images into `pixel_values`; required for [`ImageData`].
        validation ([`ImageData`] or `torch.utils.data.Dataset`, *optional*):
            What to measure after every epoch.
        recipe (`Mapping[str, Any]`, *optional*):
            What else determines the run (model, data set, shots...), in JSON types. It is written to `results.json`, and a
            run of another recipe is not continued.
        parameter_groups (`list[dict]`, *optional*):
            The optimiser's parameter groups, instead of one each for frame, text and the rest.
        on_epoch_start (`Callable`, *optional*):
            `(epoch, optimizer, scheduler, batches) -> None`, called in every process before the first step of each epoch
            (counted from 0). It may change `scheduler.base_lrs`, which hold from that step on and are multiplied by what
            the scheduler makes of them, and `optimizer.state`; both are part of a checkpoint, so that a run that goes on
            amid an epoch does not call it again. `batches` gives mini-batches of training images on the model's device,
            anew each time it is iterated, the same in every process; reading them changes nothing of the run. The model
            is in training mode. Not for a stream.
        resume (`bool`, *optional*, defaults to `False`):
            Continues the run in `output_dir` where there is one.
        overwrite (`bool`, *optional*, defaults to `False`):
            Discards the run in `output_dir` and what was made from it: evaluation, calibration, card and pictures. Other
            files stay.

    Returns:
        [`TrainingResult`]: what the run did. `classifier` holds the weights that were kept.

    Raises:
        FileExistsError: if `output_dir` holds another run, or this one and neither `resume` nor `overwrite` is given.
        FloatingPointError: if the loss is no longer a number.
        ValueError: if arguments do not fit each other.
    """
    return _Run(
        classifier, data, config, preprocess, validation, recipe or {}, parameter_groups, on_epoch_start
    ).execute(resume, overwrite)


def default_parameter_groups(classifier: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """
    The trainable parameters by kind, each with its learning rate and weight decay.

    Args:
        classifier (`nn.Module`):
            The model.
        config ([`TrainingConfig`]):
            The learning rates and weight decays.

    Returns:
        `list[dict]`: parameter groups `"frame"`, `"text"` and `"other"`, those that are not empty.
    """

    def first(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    kinds = {
        "frame": (FRAME_PARAMETERS, config.frame_lr, config.frame_weight_decay),
        "text": (TEXT_PARAMETERS, config.text_lr, config.text_weight_decay),
        "other": ("", None, None),
    }
    groups: dict[str, dict[str, Any]] = {
        kind: {
            "name": kind,
            "params": [],
            "lr": first(lr, config.lr),
            "weight_decay": first(weight_decay, config.weight_decay),
        }
        for kind, (_, lr, weight_decay) in kinds.items()
    }
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            kind = next(kind for kind, (part, _, _) in kinds.items() if part in name)
            groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


@dataclass
class _Progress:
    """Where a run stands; with weights, optimiser and random states all that a continuation needs."""

    epoch: int = 0
    batch: int = 0  # micro-batches of this epoch that are done
    step: int = 0
    images: int = 0  # that one process has trained on
    seconds: float = 0.0
    validation_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


class _Run:
    def __init__(self, classifier, data, config, preprocess, validation, recipe, parameter_groups, on_epoch_start):
        from accelerate import Accelerator, DataLoaderConfiguration
        from accelerate.state import AcceleratorState
        from accelerate.utils import ProjectConfiguration, set_seed

        self.config: TrainingConfig = config
        self.classifier = classifier
        self.preprocess = preprocess
        self.progress = _Progress()
        self.best_weights: dict[str, torch.Tensor] = {}
        if config.selection == "val" and validation is None:
            raise ValueError(
                "`selection='val'` chooses by validation accuracy: give validation data, or select 'last'."
            )
        streaming = isinstance(data, ImageData) and data.streaming
        if streaming and config.max_steps is None:
            raise ValueError("a stream has no length to make epochs of: give `max_steps`.")
        if streaming and on_epoch_start is not None:
            raise ValueError("a stream has no epochs, so `on_epoch_start` would not be called: load the data whole.")
        self.data = data
        self.on_epoch_start: EpochHook | None = on_epoch_start
        _set_objective(classifier, config)
        _check_trackers(config.trackers)

        set_seed(config.seed)
        # A process that trains twice may do so in two precisions, which Accelerate otherwise refuses.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / "logs")
            ),
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
            step_scheduler_with_optimizer=False,
        )
        self.loader = self._stream_loader(data) if streaming else self._training_loader(data)
        self.validation_loader = None if validation is None else self._validation_loader(validation)

        steps_per_epoch = 0 if streaming else math.ceil(len(self.loader) / config.gradient_accumulation_steps)
        self.total_steps: int = config.max_steps or config.epochs * steps_per_epoch
        self.trainable = {name: p for name, p in classifier.named_parameters() if p.requires_grad}
        if not self.trainable:
            raise ValueError("no parameter of the classifier requires a gradient: there is nothing to train.")
        groups = parameter_groups or default_parameter_groups(classifier, config)
        # One in, one out: wrapping may replace parameters (mixed precision does not, sharding does).
        self.model, self.optimizer = self.accelerator.prepare(classifier, _make_optimizer(groups, config))
        self.scheduler = self._make_scheduler()
        self.recipe = dict(recipe)
        self.directory = _RunDirectory(Path(config.output_dir), self._identity(data, validation))
        self.accelerator.register_save_state_pre_hook(self._write_state)
        self.accelerator.register_load_state_pre_hook(self._read_state)

    # --- set-up --------------------------------------------------------------------------------------------------

    def _prepared(self, data: ImageData | torch.utils.data.Dataset) -> Any:
        if not (isinstance(data, ImageData) and data.streaming) and len(data) == 0:  # type: ignore[arg-type]
            raise ValueError("there are no images to train or validate on: check the split and `class_map`.")
        if not isinstance(data, ImageData):
            return data
        if self.preprocess is None:
            raise ValueError("`preprocess` is required for `ImageData`: pass an `ImagePreprocessor`.")
        if data.label_column is None:
            raise ValueError(f"{data.source} was loaded without labels: load it with `labelled=True`.")
        return prepare(data, self.preprocess)

    def _loader(self, dataset: Any, **options: Any) -> torch.utils.data.DataLoader:
        # With a generator of its own a loader draws nothing from the global one, whose state a continuation restores.
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.utils.data.DataLoader(
            dataset, collate_fn=collate, num_workers=self.config.num_workers, generator=generator, **options
        )

    def _training_loader(self, data: ImageData | torch.utils.data.Dataset) -> Any:
        dataset = self._prepared(data)
        # Equal batches keep the mean loss of several processes the loss of one process with a batch as large.
        drop_last = len(dataset) >= self.config.batch_size * self.accelerator.num_processes
        loader = self._loader(dataset, batch_size=self.config.batch_size, shuffle=True, drop_last=drop_last)
        return self.accelerator.prepare_data_loader(loader)

    def _validation_loader(self, data: ImageData | torch.utils.data.Dataset) -> Any:
        if isinstance(data, ImageData) and data.streaming:
            raise ValueError("validation data must have a length: load them with `streaming=False`.")
        return self.accelerator.prepare_data_loader(
            self._loader(self._prepared(data), batch_size=self.config.eval_batch_size)
        )

    def _stream_loader(self, data: ImageData) -> Any:
        from accelerate.data_loader import prepare_data_loader
        from datasets.distributed import split_dataset_by_node

        # Repeated without end: shards of unequal length would leave one process waiting for another. Repeated first: the
        # other way round every pass has the same order.
        stream = data.dataset.repeat(None).shuffle(seed=self.config.seed, buffer_size=SHUFFLE_BUFFER)
        stream = split_dataset_by_node(stream, self.accelerator.process_index, self.accelerator.num_processes)
        rows = ImageData(stream, data.class_names, data.image_column, data.label_column, data.source)
        loader = self._loader(self._prepared(rows), batch_size=self.config.batch_size)
        return prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
        )

    def _make_scheduler(self) -> Any:
        from transformers import get_scheduler

        warmup = self.config.warmup_steps
        if warmup is None:
            warmup = round(self.config.warmup_ratio * self.total_steps)
        # The bare optimiser: Accelerate's wrapper of a scheduler would step once for every process.
        return get_scheduler(self.config.lr_scheduler, self.optimizer.optimizer, warmup, self.total_steps)

    def _identity(self, data: Any, validation: Any) -> dict[str, Any]:
        def describe(rows: Any) -> dict[str, Any] | None:
            if rows is None:
                return None
            count = None if isinstance(rows, ImageData) and rows.streaming else len(rows)
            return {"rows": count, "class_names": getattr(rows, "class_names", None)}

        config = {name: value for name, value in asdict(self.config).items() if name not in FREE_TO_CHANGE}
        shapes = {name: list(parameter.shape) for name, parameter in self.trainable.items()}
        return _to_json(
            {
                **config,
                "recipe": self.recipe,
                "training_data": describe(data),
                "validation_data": describe(validation),
                "trainable_shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
                "processes": self.accelerator.num_processes,
            }
        )

    # --- the loop ------------------------------------------------------------------------------------------------

    def execute(self, resume: bool, overwrite: bool) -> TrainingResult:
        accelerator = self.accelerator
        checkpoint = self.directory.check(resume, overwrite)
        accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        if accelerator.is_main_process:
            self.directory.open(overwrite)
        accelerator.wait_for_everyone()
        if self.config.trackers:
            accelerator.init_trackers("training", config=_flat(asdict(self.config)))
        if checkpoint is not None:
            accelerator.load_state(str(checkpoint))
        try:
            self._fit()
        except KeyboardInterrupt:
            accelerator.print(self.directory.how_to_resume(self.progress.step))
            raise
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
        if self.config.selection == "val":
            _copy_into(self.trainable, self.best_weights)
        self.classifier.eval()
        # Accelerate would leave it in mixed precision, its logits rounded.
        accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        result = self._result()
        if accelerator.is_main_process:
            self._publish(result)
        accelerator.wait_for_everyone()
        return result

    def _fit(self) -> None:
        from tqdm.auto import tqdm

        progress, accelerator = self.progress, self.accelerator
        started = time.perf_counter() - progress.seconds
        if progress.step == 0 and self.validation_loader is not None:
            self._validate()
        bar = tqdm(
            total=self.total_steps,
            initial=progress.step,
            desc="training",
            unit="step",
            disable=not (self.config.progress_bar and accelerator.is_main_process),
        )
        running, batches = torch.zeros((), device=accelerator.device), 0
        with bar:
            while progress.step < self.total_steps:
                self._set_train_mode()
                if self.on_epoch_start is not None and progress.batch == 0:
                    self._start_epoch(self.on_epoch_start)
                self.loader.set_epoch(progress.epoch)
                # The rest of the epoch, where a continuation begins amid one.
                batches_left = (
                    accelerator.skip_first_batches(self.loader, progress.batch) if progress.batch else self.loader
                )
                for batch in batches_left:
                    with accelerator.accumulate(self.model):
                        loss = self.model(**batch).loss
                        accelerator.backward(loss)
                        if accelerator.sync_gradients and self.config.max_grad_norm > 0:
                            accelerator.clip_grad_norm_(self.trainable.values(), self.config.max_grad_norm)
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                    running += loss.detach().float()
                    batches += 1
                    progress.batch += 1
                    progress.images += len(batch["labels"])
                    if not accelerator.sync_gradients:
                        continue
                    if not accelerator.optimizer_step_was_skipped:
                        self.scheduler.step()
                    progress.step += 1
                    bar.update()
                    saves = self.config.checkpoint_steps and progress.step % self.config.checkpoint_steps == 0
                    done = progress.step == self.total_steps
                    # The record is emptied before a checkpoint, which then need not hold it.
                    if progress.step % self.config.logging_steps == 0 or saves or done:
                        bar.set_postfix(loss=f"{self._record_loss(running / batches):.4f}")
                        running.zero_()
                        batches = 0
                    progress.seconds = time.perf_counter() - started
                    if saves and not done:
                        self._checkpoint()
                    if done:
                        break
                saves = self.config.checkpoint_steps is None or progress.step == self.total_steps
                if saves and batches:
                    self._record_loss(running / batches)
                    running.zero_()
                    batches = 0
                progress.epoch += 1
                progress.batch = 0
                if self.validation_loader is not None:
                    self._validate()
                progress.seconds = time.perf_counter() - started
                if saves:
                    self._checkpoint()

    def _start_epoch(self, hook: EpochHook) -> None:
        scheduler = self.scheduler
        hook(self.progress.epoch, self.optimizer.optimizer, scheduler, _EpochBatches(self))
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            # The scheduler itself would apply new base rates only after the next step.
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates

    def _set_train_mode(self) -> None:
        self.model.train()
        if self.config.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _record_loss(self, mean: torch.Tensor) -> float:
        # The only place where the loop waits for the device.
        loss = self.accelerator.reduce(mean, "mean").item()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} after step {self.progress.step}. Lower the learning rates (`frame_lr`, `text_lr`, "
                "`lr`), lengthen the warm-up, or train with `mixed_precision='bf16'` or 'no' instead of 'fp16'."
            )
        rates = {group.get("name", str(i)): group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self._record({"loss": loss, **{f"lr_{name}": rate for name, rate in rates.items()}})
        return loss

    def _record(self, values: dict[str, float]) -> None:
        self.progress.history.append({"step": self.progress.step, "epoch": self.progress.epoch, **values})
        self.accelerator.log(values, step=self.progress.step)

    @torch.no_grad()
    def _validate(self) -> None:
        assert self.validation_loader is not None
        started = time.perf_counter()
        self.model.eval()
        correct, losses = [], []
        for batch in self.validation_loader:
            logits = self.model(pixel_values=batch["pixel_values"]).logits.float()
            loss = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
            hit = logits.argmax(dim=-1) == batch["labels"]
            hit, loss = self.accelerator.gather_for_metrics((hit, loss))
            correct.append(hit)
            losses.append(loss)
        figures = {
            "accuracy": torch.cat(correct).double().mean().item(),
            "loss": torch.cat(losses).double().mean().item(),
        }
        self._record({f"val_{name}": value for name, value in figures.items()})
        progress = self.progress
        progress.validation_seconds += time.perf_counter() - started
        rank = (figures["accuracy"], -figures["loss"])
        if progress.best is None or rank > (progress.best["accuracy"], -progress.best["loss"]):
            progress.best = {"epoch": progress.epoch, **figures}
            if self.config.selection == "val":
                self.best_weights = {name: p.detach().cpu().clone() for name, p in self.trainable.items()}

    # --- checkpoints and results ---------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        final = self.directory.checkpoint(self.progress.step)
        partial = final.with_name(f".{final.name}")
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            self.directory.prune(self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        """What training changes: the trained parameters, and buffers that may follow them."""
        persistent = self.classifier.state_dict(keep_vars=True)
        buffers = {name: b for name, b in self.classifier.named_buffers() if name in persistent}
        return {**self.trainable, **buffers}

    def _write_state(self, models: list[nn.Module], weights: list[dict], output_dir: str) -> None:
        """Puts the trained tensors alone into the checkpoint, not the frozen model."""
        from safetensors.torch import save_file

        weights.clear()
        if not self.accelerator.is_main_process:
            return
        folder = Path(output_dir)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._state_tensors().items()}
        save_file(tensors, folder / "trained.safetensors")
        if self.best_weights:
            save_file(self.best_weights, folder / "best.safetensors")
        _write_json(folder / "progress.json", {**asdict(self.progress), "scheduler": self.scheduler.state_dict()})

    def _read_state(self, models: list[nn.Module], input_dir: str) -> None:
        from safetensors.torch import load_file

        models.clear()
        folder = Path(input_dir)
        _copy_into(self._state_tensors(), load_file(folder / "trained.safetensors"))
        if (folder / "best.safetensors").exists():
            self.best_weights = load_file(folder / "best.safetensors")
        state = json.loads((folder / "progress.json").read_text())
        self.scheduler.load_state_dict(state.pop("scheduler"))
        self.progress = _Progress(**state)

    def _result(self) -> TrainingResult:
        progress, config = self.progress, self.config
        images = progress.images * self.accelerator.num_processes
        last = next((entry for entry in reversed(progress.history) if "val_accuracy" in entry), None)
        figures = None if last is None else {"accuracy": last["val_accuracy"], "loss": last["val_loss"]}
        epoch = progress.epoch
        if config.selection == "val":
            assert progress.best is not None
            epoch, figures = progress.best["epoch"], {name: progress.best[name] for name in ("accuracy", "loss")}
        return TrainingResult(
            steps=progress.step,
            seconds=round(progress.seconds, 3),
            images_per_second=round(images / max(progress.seconds - progress.validation_seconds, 1e-9), 2),
            trainable_parameters=sum(parameter.numel() for parameter in self.trainable.values()),
            selection=config.selection,
            selected_epoch=epoch,
            validation=figures,
            history=progress.history,
        )

    def _publish(self, result: TrainingResult) -> None:
        with filling(self.directory.path, last="results.json") as folder:
            self.classifier.save_pretrained(folder)
            if self.preprocess is not None:
                self.preprocess.save_pretrained(folder)
            _write_json(
                folder / "results.json",
                {
                    **asdict(result),
                    "seed": self.config.seed,
                    "config": asdict(self.config),
                    "recipe": self.recipe,
                    "processes": self.accelerator.num_processes,
                    "mixed_precision": self.accelerator.mixed_precision,
                    "device": self.accelerator.device.type,
                    "command": command(),
                    "versions": versions(),
                },
            )


class _EpochBatches:
    """Mini-batches to look at before an epoch. Not those of the run's loader, whose position and shares they would shift."""

    def __init__(self, run: _Run):
        self.run = run
        self.seed = run.config.seed + run.progress.epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        run = self.run
        dataset = run._prepared(run.data)
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=min(run.config.batch_size, len(dataset)),
            shuffle=True,
            drop_last=True,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(self.seed),
        )
        for batch in loader:
            yield {name: tensor.to(run.accelerator.device) for name, tensor in batch.items()}


class _RunDirectory:
    """An output directory that belongs to one run."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        self.identity = identity
        self.checkpoints = path / "checkpoints"

    def check(self, resume: bool, overwrite: bool) -> Path | None:
        """The checkpoint to continue from, or an error if the directory is not this run's to use."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"`output_dir` {self.path} is a file. Choose another.")
        if overwrite or not self.path.exists() or not any(self.path.iterdir()):
            return None
        if not (self.path / "run.json").is_file():
            raise FileExistsError(
                f"`output_dir` {self.path} holds files but no run. Choose an empty directory, or `overwrite` to use it "
                "anyway."
            )
        found = json.loads((self.path / "run.json").read_text())
        differing = [key for key in {**found, **self.identity} if found.get(key) != self.identity.get(key)]
        if differing:
            changes = "; ".join(
                f"{key}: {_short(found.get(key))} there, {_short(self.identity.get(key))} now" for key in differing
            )
            raise FileExistsError(
                f"`output_dir` {self.path} holds another run, which differs in {changes}. Choose another directory, or "
                "`overwrite` to discard that run."
            )
        if not resume:
            raise FileExistsError(
                f"`output_dir` {self.path} holds this run already. `resume` continues it, `overwrite` starts it again."
            )
        return self.latest()

    def open(self, overwrite: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._discard()
        for partial in (*self.checkpoints.glob(".step-*"), *self.path.glob(f"{PARTIAL}*")):
            shutil.rmtree(partial)
        _write_json(self.path / "run.json", self.identity)
        self.checkpoints.mkdir(exist_ok=True)

    def _discard(self) -> None:
        """Removes a run and all that was made from it, such as its evaluation, which would pass for the new one's."""
        from .hub import layout

        if not (self.path / "run.json").is_file():
            return  # whatever is here, no run left it
        for folder in (self.checkpoints, self.path / "logs"):
            shutil.rmtree(folder, ignore_errors=True)
        for pattern in layout.WRITTEN:
            for path in self.path.glob(pattern):
                path.unlink()
        pictures = self.path / layout.PICTURES
        if pictures.is_dir() and not any(pictures.iterdir()):
            pictures.rmdir()

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def _whole(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def latest(self) -> Path | None:
        whole = self._whole()
        return whole[-1] if whole else None

    def prune(self, keep: int) -> None:
        for old in self._whole()[:-keep]:
            shutil.rmtree(old)

    def how_to_resume(self, step: int) -> str:
        latest = self.latest()
        if latest is None:
            return f"\nInterrupted at step {step}, before the first checkpoint: `resume` starts again."
        return f"\nInterrupted at step {step}. {latest} is whole: the same command with `resume` continues from it."


def _set_objective(classifier: nn.Module, config: TrainingConfig) -> None:
    from .objectives import get_objective

    objective = get_objective(config.objective, **config.objective_options)
    if hasattr(classifier, "objective"):
        classifier.objective = objective  # type: ignore[assignment]
    elif config.objective != "class" or config.objective_options:
        raise ValueError(
            f"{type(classifier).__name__} has a loss of its own and takes no objective: leave `objective` at 'class', or "
            "train a `ZeroShotClassifier`."
        )


def _check_trackers(trackers: Iterable[str]) -> None:
    from accelerate.tracking import get_available_trackers

    available = [str(tracker) for tracker in get_available_trackers()]
    missing = [tracker for tracker in trackers if tracker not in available]
    if missing:
        raise ValueError(
            f"the trackers {missing} are not installed or not known to Accelerate; there are {available}. Install the "
            "package of the tracker (`pip install tensorboard`), or leave it out of `trackers`."
        )


def _make_optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=(config.adam_betas[0], config.adam_betas[1]), eps=config.adam_epsilon)


@torch.no_grad()
def _copy_into(tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values that every tracker takes."""
    return {key: value if isinstance(value, (int, float, str)) else json.dumps(value) for key, value in config.items()}


def _to_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")
