"""
Which block to fine-tune under which shift: blocks, whole network, Auto-RGN and Auto-SNR, side by side.

    python scripts/study_surgical.py --root FOLDER --output_dir runs/study_surgical --config scripts/configs/study_surgical.yaml

A source model is fine-tuned as a whole on source images, then each strategy adapts it to a small target set. Finished cells
are kept in `cells.jsonl` and never run again, so the same command continues an interrupted study. `results.json`, `table.md`
and the figures are written at the end. Paths of models and data sets are relative to `--root`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from peft_reprogram import ZeroShotClassifier
from peft_reprogram.atomic import replacing
from peft_reprogram.bench.store import ResultStore
from peft_reprogram.command_line import parse_config
from peft_reprogram.commands.exit import run
from peft_reprogram.data import ImageData, ImagePreprocessor, load_image_data
from peft_reprogram.evaluation.figures import COLORS
from peft_reprogram.shift import with_corruption
from peft_reprogram.strategies import get_strategy
from peft_reprogram.strategies.linear_head import LinearHeadClassifier
from peft_reprogram.training import TrainingConfig, train


USAGE = "study_surgical.py --root FOLDER --output_dir DIR [--config FILE] [more flags, see --help]"
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("surgical", {"block": "all"}),
    **{block: ("surgical", {"block": block}) for block in ("embedding", "first", "middle", "last", "head")},
    "auto_rgn": ("auto_rgn", {}),
    # About the median of the ratios: with the default of 0.5 hardly a tensor is trained.
    "auto_snr": ("auto_snr", {"threshold": 0.25}),
    "last_to_first": ("gradual_unfreezing", {"order": "last_to_first"}),
    "first_to_last": ("gradual_unfreezing", {"order": "first_to_last"}),
}


@dataclass
class StudyConfig:
    """The study."""

    root: str = field(metadata={"help": "Folder that models and data sets are relative to."})
    output_dir: str = field(metadata={"help": "Where cells, results and figures go."})
    models: list[str] = field(
        default_factory=list, metadata={"help": "Folders of image classifiers or text-image models."}
    )
    source: str = field(default="data/cifar10", metadata={"help": "Source images: splits train and test."})
    shifted: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": 'Sets of another style, split test, as JSON: \'{"style": "data/style"}\'.'},
    )
    corruptions: list[str] = field(default_factory=list, metadata={"help": "Corruptions of the source's test images."})
    severity: int = field(default=5, metadata={"help": "Their severity."})
    flip: bool = field(default=True, metadata={"help": "Whether to study labels y -> C - 1 - y."})
    strategies: list[str] = field(
        default_factory=lambda: ["all", "embedding", "first", "middle", "last", "head", "auto_rgn", "auto_snr"],
        metadata={"help": f"Some of {', '.join(STRATEGIES)}."},
    )
    template: list[str] = field(
        default_factory=lambda: ["a photo of a {}"],
        metadata={"help": "Prompts for the first head of a text-image model."},
    )
    image_size: int = field(default=64, metadata={"help": "Side of the models' input in pixels."})
    source_resolution: int = field(default=32, metadata={"help": "Side that every image is brought to first."})
    source_rows: int = field(default=4000, metadata={"help": "Images of the source's training split."})
    source_epochs: int = field(default=3, metadata={"help": "Epochs on them."})
    source_lr: float = field(default=1e-3, metadata={"help": "Learning rate on them."})
    target_rows: int = field(default=200, metadata={"help": "Target images to adapt to."})
    validation_rows: int = field(default=200, metadata={"help": "Target images that choose the learning rate."})
    test_rows: int = field(default=500, metadata={"help": "Target images to test on, the same for all seeds."})
    epochs: int = field(default=5, metadata={"help": "Epochs on the target images."})
    batch_size: int = field(default=20, metadata={"help": "Images of a batch."})
    lrs: list[float] = field(
        default_factory=lambda: [1e-4, 1e-3, 1e-2],
        metadata={"help": "Learning rates; chosen on validation images with the first seed, for all seeds."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Each draws target images and trains anew."}
    )
    mixed_precision: str = field(default="bf16", metadata={"help": "no, bf16 or fp16."})

    def __post_init__(self) -> None:
        unknown = sorted(set(self.strategies) - set(STRATEGIES))
        if unknown:
            raise ValueError(f"there are no strategies {unknown}; there are {', '.join(STRATEGIES)}.")
        if not self.models:
            raise ValueError("`models` is empty: name at least one folder of a model.")
        if not (self.lrs and self.seeds and self.strategies and self.shifts):
            raise ValueError("`lrs`, `seeds`, `strategies` and the shifts must not be empty.")

    @property
    def shifts(self) -> dict[str, str]:
        """Name of each shift -> its kind: of the input, of features or of the output."""
        return {
            **dict.fromkeys(self.corruptions, "input"),
            **dict.fromkeys(self.shifted, "feature"),
            **({"flip": "output"} if self.flip else {}),
        }

    def recipe(self, shift: Optional[str] = None, strategy: Optional[str] = None) -> str:
        """Hash of what decides the numbers of a source model, or of a cell beside what the cell is called."""
        free = {"root", "output_dir", "models", "shifted", "corruptions", "flip", "strategies", "lrs", "seeds"}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in free}
        values.update(shifted=self.shifted.get(shift or ""), options=STRATEGIES.get(strategy or ""))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Tensors(torch.utils.data.Dataset):
    """
    Images that are prepared once and kept, since each is read many times.

    Args:
        pixel_values (`torch.Tensor`): Of shape `(N, 3, H, W)`.
        labels (`torch.Tensor`): Of shape `(N,)`, int64.
    """

    def __init__(self, pixel_values: torch.Tensor, labels: torch.Tensor):
        self.pixel_values = pixel_values
        self.labels = labels

    @classmethod
    def of(cls, data: ImageData, preprocess: ImagePreprocessor, rows: np.ndarray) -> Tensors:
        """The given rows of a data set whose images are decoded when they are read."""
        pixels, labels = [], []
        for start in range(0, len(rows), 100):
            columns = data.dataset[rows[start : start + 100].tolist()]
            pixels.append(preprocess(columns[data.image_column]))
            labels.extend(columns[data.label_column])
        return cls(torch.cat(pixels), torch.tensor(labels))

    def select(self, rows: Any) -> Tensors:
        """The given rows."""
        return Tensors(self.pixel_values[rows], self.labels[rows])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.pixel_values[index], "labels": int(self.labels[index])}


@dataclass(frozen=True)
class Target:
    """The images of one shift: `test` for all seeds, and a pool that each seed draws its training and validation rows of."""

    pool: Tensors
    test: Tensors

    def draw(self, study: StudyConfig, seed: int) -> tuple[Tensors, Tensors]:
        """Training and validation rows of a seed."""
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(seed))
        train_rows, validation_rows = order[: study.target_rows], order[study.target_rows :][: study.validation_rows]
        return self.pool.select(train_rows), self.pool.select(validation_rows)


class Study:
    """One study in its output directory."""

    def __init__(self, study: StudyConfig):
        self.study = study
        self.root = Path(study.root)
        self.folder = Path(study.output_dir)
        self.store = ResultStore(self.folder / "cells.jsonl")
        self.class_names = load_image_data(self.root / study.source, split="test").class_names or []

    def run(self) -> dict[str, Any]:
        """Runs what is missing, and returns the results."""
        for model in self.study.models:
            self._run_source(model)
            for shift in self.study.shifts:
                self._run_shift(model, shift)
        return self.results()

    def _run_source(self, model: str) -> None:
        """How the source model does where nothing has shifted."""
        key = self._key(model, "source", self.study.seeds[0], "none", None)
        if self.store.get(key) is None:
            classifier = self._source_model(model)
            figures = self._measure(classifier, self._target(model, "source").test)
            self.store.append({"cell": key, **figures, "seconds": 0.0})

    def _run_shift(self, model: str, shift: str) -> None:
        study = self.study
        missing = [key for key in self._keys(model, shift) if self.store.get(key) is None]
        # The learning rate of further seeds is only known when the first seed is done.
        if not missing and all(self.store.get(self._key(model, shift, s, "none", None)) for s in study.seeds):
            return
        target = self._target(model, shift)
        for seed in study.seeds:
            train_set, validation = target.draw(study, seed)
            for strategy, lr in [("none", None), *self._trials(model, shift, seed)]:
                key = self._key(model, shift, seed, strategy, lr)
                if self.store.get(key) is None:
                    started = time.perf_counter()
                    classifier = self._adapt(model, strategy, lr, seed, train_set)
                    seconds = time.perf_counter() - started
                    figures = {f"val_{name}": value for name, value in self._measure(classifier, validation).items()}
                    self.store.append(
                        {
                            "cell": key,
                            **figures,
                            **self._measure(classifier, target.test),
                            "trained": sum(p.numel() for p in classifier.parameters() if p.requires_grad),
                            "seconds": round(seconds, 2),
                        }
                    )

    def _key(self, model: str, shift: str, seed: int, strategy: str, lr: Optional[float]) -> dict[str, Any]:
        # Without its recipe a cell of another configuration would be taken for one of this.
        recipe = self.study.recipe(shift, strategy)
        return {"model": model, "shift": shift, "seed": seed, "strategy": strategy, "lr": lr, "recipe": recipe}

    def _keys(self, model: str, shift: str) -> Iterator[dict[str, Any]]:
        """The cells that are known to be needed now."""
        for seed in self.study.seeds:
            for strategy, lr in self._trials(model, shift, seed):
                yield self._key(model, shift, seed, strategy, lr)

    def _trials(self, model: str, shift: str, seed: int) -> Iterator[tuple[str, float]]:
        """All learning rates with the first seed, the chosen one with the others; lazily, as the choice is made on the way."""
        for strategy in self.study.strategies:
            if seed == self.study.seeds[0]:
                yield from ((strategy, lr) for lr in self.study.lrs)
            else:
                lr = self.chosen_lr(model, shift, strategy)
                if lr is not None:
                    yield strategy, lr

    def chosen_lr(self, model: str, shift: str, strategy: str) -> Optional[float]:
        """The learning rate with the best validation accuracy (of equals, the lower loss); `None` before all are tried."""
        rows = [self.store.get(self._key(model, shift, self.study.seeds[0], strategy, lr)) for lr in self.study.lrs]
        if any(row is None for row in rows):
            return None
        best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))  # type: ignore[index]
        return best["cell"]["lr"]  # type: ignore[index]

    # --- models --------------------------------------------------------------------------------------------------

    def _adapt(self, model: str, name: str, lr: Optional[float], seed: int, data: Tensors) -> nn.Module:
        torch.manual_seed(seed)
        classifier = self._source_model(model)
        if name == "none":
            return classifier.requires_grad_(False)
        kind, options = STRATEGIES[name]
        strategy: Any = get_strategy(kind, **options, lr=lr)
        classifier = strategy.prepare(classifier)
        scratch = self.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        config = strategy.training_config(self._training(scratch, self.study.epochs, seed))
        train(
            classifier,
            data,
            config,
            parameter_groups=strategy.parameter_groups(classifier, config),
            on_epoch_start=strategy.on_epoch_start(classifier, config),
        )
        shutil.rmtree(scratch)
        return classifier

    def _source_model(self, model: str) -> nn.Module:
        """The model after its fine-tuning on source images, which happens once."""
        study, folder = self.study, self.folder / "source" / f"{Path(model).name}-{self.study.recipe()}"
        classifier = self._pretrained(model)
        if not (folder / "results.json").is_file():
            data = load_decoded(self.root / study.source, "train", self.class_names)
            rows = np.random.default_rng(0).permutation(len(data))[: study.source_rows]
            source = Tensors.of(data, self._preprocess(model), rows)
            config = self._training(folder, study.source_epochs, 0, lr=study.source_lr, freeze_batch_norm=False)
            train(classifier.requires_grad_(True), source, config, resume=True)
        _load_weights(classifier, folder)
        return classifier.eval()

    def _pretrained(self, model: str) -> nn.Module:
        from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoTokenizer

        path, names = self.root / model, self.class_names
        if not any(name.endswith("ForImageClassification") for name in AutoConfig.from_pretrained(path).architectures):
            zero_shot = ZeroShotClassifier(
                AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path), names, self.study.template
            )
            return LinearHeadClassifier(zero_shot)
        torch.manual_seed(0)  # of the new head
        classifier = AutoModelForImageClassification.from_pretrained(
            path,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            ignore_mismatched_sizes=True,
        )
        for module in classifier.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # the paper adapts in evaluation mode
        return classifier

    def _training(self, folder: Path, epochs: int, seed: int, **options: Any) -> TrainingConfig:
        return TrainingConfig(
            str(folder),
            epochs=epochs,
            batch_size=self.study.batch_size,
            seed=seed,
            mixed_precision=self.study.mixed_precision,  # type: ignore[arg-type]
            checkpoint_steps=1_000_000,
            logging_steps=1_000_000,
            progress_bar=False,
            **options,
        )

    @torch.no_grad()
    def _measure(self, classifier: nn.Module, data: Tensors) -> dict[str, float]:
        dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.study.mixed_precision]
        device = next(classifier.parameters()).device
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            batches = [
                classifier(pixel_values=pixels.to(device)).logits.float() for pixels in data.pixel_values.split(32)
            ]
        logits = torch.cat(batches).cpu()
        hits = (logits.argmax(dim=-1) == data.labels).double()
        recalls = [hits[data.labels == label].mean().item() for label in data.labels.unique()]
        return {
            "accuracy": hits.mean().item(),
            "balanced_accuracy": float(np.mean(recalls)),
            "loss": nn.functional.cross_entropy(logits.double(), data.labels).item(),
        }

    # --- data ----------------------------------------------------------------------------------------------------

    def _preprocess(self, model: str) -> ImagePreprocessor:
        from transformers import AutoImageProcessor

        side = self.study.image_size
        processor = AutoImageProcessor.from_pretrained(
            self.root / model, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        return ImagePreprocessor(processor, self.study.source_resolution)

    def _target(self, model: str, shift: str) -> Target:
        study = self.study
        folder = study.shifted.get(shift, study.source)
        data = load_decoded(self.root / folder, "test", self.class_names)
        if shift in study.corruptions:
            corrupted = with_corruption(data.dataset, shift, study.severity, image_column=data.image_column)
            data = dataclasses.replace(data, dataset=corrupted)
        order = np.random.default_rng(0).permutation(len(data))
        pool_size = max(2 * study.target_rows, study.target_rows + study.validation_rows) + study.validation_rows
        if len(data) < study.target_rows + study.validation_rows + study.test_rows:
            raise ValueError(f"{folder} has {len(data)} images, too few for the rows asked for. Lower `test_rows`.")
        test_rows, pool_rows = order[: study.test_rows], order[study.test_rows :][:pool_size]
        preprocess = self._preprocess(model)
        test, pool = Tensors.of(data, preprocess, test_rows), Tensors.of(data, preprocess, pool_rows)
        if shift == "flip":
            test.labels, pool.labels = (len(self.class_names) - 1 - part.labels for part in (test, pool))
        return Target(pool, test)

    # --- results -------------------------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """Accuracies of each model, shift and strategy over seeds, at the learning rate that validation chose."""
        study, table = self.study, []
        for model in study.models:
            for shift, kind in study.shifts.items():
                for strategy in ["none", *study.strategies]:
                    lr = None if strategy == "none" else self.chosen_lr(model, shift, strategy)
                    rows = [self.store.get(self._key(model, shift, seed, strategy, lr)) for seed in study.seeds]
                    if any(row is None for row in rows):
                        raise ValueError(f"the cells of {model}, {shift}, {strategy} are not all there.")
                    table.append(
                        {
                            "model": Path(model).name,
                            "shift": shift,
                            "kind": kind,
                            "strategy": strategy,
                            "lr": lr,
                            "trained": rows[0]["trained"],  # type: ignore[index]
                            **{
                                name: [row[name] for row in rows]  # type: ignore[index]
                                for name in ("accuracy", "balanced_accuracy")
                            },
                        }
                    )
        config = {
            name: value for name, value in dataclasses.asdict(study).items() if name not in ("root", "output_dir")
        }
        recipes = {study.recipe(shift, strategy) for shift in study.shifts for strategy in study.strategies}
        trainings = [row for row in self.store if row["cell"]["recipe"] in recipes]
        source = {
            Path(model).name: self.store.get(self._key(model, "source", study.seeds[0], "none", None))["accuracy"]  # type: ignore[index]
            for model in study.models
        }
        return {
            "config": config,
            "source_accuracy": source,
            "trainings": len(trainings),
            "training_seconds": round(sum(row["seconds"] for row in trainings)),
            "table": table,
        }


def load_decoded(path: Path, split: str, class_names: Optional[list[str]]) -> ImageData:
    """A data set whose rows give images, not their bytes."""
    from datasets import Image

    data = load_image_data(path, split=split, class_names=class_names)
    return dataclasses.replace(data, dataset=data.dataset.cast_column(data.image_column, Image()))


def _load_weights(classifier: nn.Module, folder: Path) -> None:
    if isinstance(classifier, LinearHeadClassifier):
        classifier.requires_grad_(True).load_trained(folder)
    else:
        from safetensors.torch import load_file

        classifier.load_state_dict(load_file(folder / "model.safetensors"))


# --- table and figures -----------------------------------------------------------------------------------------------


def select(results: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The rows of the table with these values."""
    return [row for row in results["table"] if all(row[name] == value for name, value in wanted.items())]


def average_ranks(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """
    Mean rank of each strategy over the shifts, by mean accuracy; equal ones share theirs.

    Args:
        results (`dict`): What [`Study.results`] gives.

    Returns:
        `dict`: Model -> strategy -> mean rank; 1 is best.
    """
    from scipy.stats import rankdata

    ranks: dict[str, dict[str, float]] = {}
    for model in unique(results, "model"):
        strategies = [name for name in unique(results, "strategy") if name != "none"]
        per_shift = []
        for shift in unique(results, "shift"):
            rows = {row["strategy"]: row for row in select(results, model=model, shift=shift)}
            per_shift.append(rankdata([-np.mean(rows[name]["accuracy"]) for name in strategies]))
        ranks[model] = dict(zip(strategies, np.mean(per_shift, axis=0).tolist()))
    return ranks


def unique(results: dict[str, Any], name: str) -> list[str]:
    """The different values of a column, in the order in which they occur."""
    return list(dict.fromkeys(row[name] for row in results["table"]))


def to_markdown(results: dict[str, Any]) -> str:
    """One table a model: accuracy in percent, mean and sample standard deviation over seeds, the best of a shift in bold."""
    ranks, parts = average_ranks(results), []
    shifts = unique(results, "shift")
    for model in unique(results, "model"):
        kinds = {row["shift"]: row["kind"] for row in results["table"]}
        header = ["strategy", "trained numbers", *(f"{shift} ({kinds[shift]})" for shift in shifts), "mean rank"]
        source = 100 * results["source_accuracy"][model]
        lines = [
            f"**{model}** ({source:.1f} on unshifted source images)",
            "",
            _row(header),
            _row(["---"] + ["---:"] * (len(header) - 1)),
        ]
        tuned = [row for row in select(results, model=model) if row["strategy"] != "none"]
        best = {shift: max(np.mean(row["accuracy"]) for row in tuned if row["shift"] == shift) for shift in shifts}
        for strategy in unique(results, "strategy"):
            cells = []
            for shift in shifts:
                (row,) = select(results, model=model, shift=shift, strategy=strategy)
                text = mean_and_deviation(row["accuracy"])
                wins = strategy != "none" and np.mean(row["accuracy"]) == best[shift]
                cells.append(f"**{text}**" if wins else text)
            rank = "" if strategy == "none" else f"{ranks[model][strategy]:.1f}"
            lines.append(_row([strategy.replace("_", " "), f"{row['trained']:,}", *cells, rank]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def mean_and_deviation(fractions: list[float]) -> str:
    """Percentages: the mean, and the sample standard deviation where there are several."""
    mean = f"{100 * np.mean(fractions):.1f}"
    return mean if len(fractions) < 2 else f"{mean} ± {100 * np.std(fractions, ddof=1):.1f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def accuracy_figure(results: dict[str, Any]) -> Any:
    """Accuracy of every strategy, a panel for each model and shift; a dot a seed, a dashed line for the source model."""
    from matplotlib.figure import Figure

    models, shifts = unique(results, "model"), unique(results, "shift")
    strategies = [name for name in unique(results, "strategy") if name != "none"]
    figure = Figure(figsize=(2.3 * len(shifts) + 1, 2.6 * len(models) + 0.6), layout="constrained")
    panels = figure.subplots(len(models), len(shifts), squeeze=False, sharey="col")
    for i, model in enumerate(models):
        for j, shift in enumerate(shifts):
            axes = panels[i][j]
            rows = {row["strategy"]: row for row in select(results, model=model, shift=shift)}
            for position, name in enumerate(strategies):
                values = 100 * np.array(rows[name]["accuracy"])
                is_block = STRATEGIES[name][0] == "surgical" and name != "all"
                axes.bar(position, values.mean(), color=COLORS[0] if is_block else COLORS[4], alpha=0.75, width=0.75)
                axes.scatter([position] * len(values), values, color="black", s=7, zorder=3)
            axes.axhline(100 * np.mean(rows["none"]["accuracy"]), color="0.3", linestyle="--", linewidth=1)
            axes.set_xticks(range(len(strategies)))
            labels = [name.replace("_", " ") for name in strategies] if i == len(models) - 1 else []
            axes.set_xticklabels(labels or [""] * len(strategies), rotation=60, ha="right", rotation_mode="anchor")
            if i == 0:
                axes.set_title(f"{shift.replace('_', ' ')}\n({rows['none']['kind']} shift)", fontsize="medium")
            axes.grid(axis="y", alpha=0.3)
        panels[i][0].set_ylabel(f"{model}\ntarget accuracy (%)")
    return figure


def main(arguments: list[str]) -> dict[str, Any]:
    """
    Runs the study, or what is missing of it, and writes table and figures.

    Args:
        arguments (`list[str]`): The command line without the program's name.

    Returns:
        `dict`: What `results.json` holds.
    """
    (study,) = parse_config((StudyConfig,), arguments, __doc__, USAGE)
    results = Study(study).run()
    folder = Path(study.output_dir)
    with replacing(folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    with replacing(folder / "table.md") as path:
        path.write_text(to_markdown(results), "utf-8")
    figure = accuracy_figure(results)
    for kind in ("png", "svg"):
        with replacing(folder / f"accuracy.{kind}") as path:
            figure.savefig(path, format=kind, dpi=120)
    print(to_markdown(results))
    return results


if __name__ == "__main__":
    run(main, sys.argv[1:])
