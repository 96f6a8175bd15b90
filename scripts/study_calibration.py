"""
What fine-tuning on half of the classes does to the other half, and what one number mends of it.

    python scripts/study_calibration.py --root FOLDER --output_dir runs/study_calibration --config scripts/configs/study_calibration.yaml

Each strategy fine-tunes on some of a data set's classes and is tested on all, before and after calibration with gamma by ALG,
PCV and an oracle that knows the test images. Finished cells are kept in `cells.jsonl` and never run again, finished splits of
PCV neither, so the same command continues an interrupted study. `results.json`, `table.md` and the figure are written at the
end. Paths of model and data set are relative to `--root`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peft_reprogram import ZeroShotClassifier
from peft_reprogram.atomic import replacing
from peft_reprogram.bench.store import ResultStore
from peft_reprogram.calibration import SplitTraining, best_gamma, fit_gamma
from peft_reprogram.command_line import parse_config
from peft_reprogram.commands.exit import run
from peft_reprogram.data import ImageData, ImagePreprocessor, collate, load_image_data, prepare
from peft_reprogram.evaluation.figures import COLORS
from peft_reprogram.metrics import ncm_accuracy, seen_unseen_curve, seen_unseen_metrics
from peft_reprogram.strategies import get_strategy
from peft_reprogram.strategies.linear_head import LinearHeadClassifier
from peft_reprogram.training import TrainingConfig, train


USAGE = "study_calibration.py --root FOLDER --output_dir DIR [--config FILE] [more flags, see --help]"
PRETRAINED = "zero_shot"
METHODS = {"none": "not calibrated", "alg": "ALG", "pcv": "PCV", "oracle": "oracle"}
CURVE_POINTS = 200


@dataclass
class StudyConfig:
    """The study."""

    root: str = field(metadata={"help": "Folder that the model and the data set are relative to."})
    output_dir: str = field(metadata={"help": "Where cells, results and the figure go."})
    model: str = field(default="models/lit-mobilenetv2", metadata={"help": "Folder of a text-image model."})
    dataset: str = field(default="data/caltech101", metadata={"help": "Images with splits train and test."})
    strategies: dict[str, Any] = field(
        default_factory=lambda: {"full": {}, "linear_probe": {}, "lora": {}},
        metadata={
            "help": 'Strategies of a linear head and their hyper-parameters, as JSON: \'{"full": {"lr": 1e-4}}\'.'
        },
    )
    template: list[str] = field(
        default_factory=lambda: ["a photo of a {}"], metadata={"help": "Prompts, which make the head of all classes."}
    )
    shots: int = field(default=8, metadata={"help": "Training images of each class."})
    held_out_shots: int = field(
        default=4, metadata={"help": "Further ones of each seen class, which PCV validates on."}
    )
    test_shots: int = field(default=8, metadata={"help": "Test images of each class, or as many as there are."})
    epochs: int = field(default=5, metadata={"help": "Epochs."})
    batch_size: int = field(default=20, metadata={"help": "Images of a batch."})
    num_splits: int = field(default=3, metadata={"help": "Splits of PCV."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Each draws classes and images and trains anew."}
    )
    mixed_precision: str = field(default="bf16", metadata={"help": "no, bf16 or fp16."})

    def __post_init__(self) -> None:
        if not (self.strategies and self.seeds):
            raise ValueError("`strategies` and `seeds` must not be empty.")
        for name, options in self.strategies.items():
            if not hasattr(get_strategy(name, **(options or {})), "prepare"):
                raise ValueError(
                    f"the strategy {name!r} trains no linear head; take full, linear_probe, lora or another."
                )

    def recipe(self, strategy: str) -> str:
        """Hash of what decides the numbers of a strategy's cells, beside the seed."""
        free = {"root", "output_dir", "strategies", "seeds"}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in free}
        values["strategy"] = self.strategies.get(strategy)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Draw:
    """
    What a seed draws.

    Args:
        seen (`list[int]`): Indices of the classes that are fine-tuned on.
        reference ([`ImageData`]): Training images of all classes, for the class means of NCM.
        training ([`ImageData`]): Those of the seen classes.
        held_out ([`ImageData`]): Further images of the seen classes.
        test ([`ImageData`]): Test images of all classes.
    """

    seen: list[int]
    reference: ImageData
    training: ImageData
    held_out: ImageData
    test: ImageData


@dataclass(frozen=True)
class Outputs:
    """Logits `(N, C)`, features `(N, D)` and labels `(N,)` of some images."""

    logits: np.ndarray
    features: np.ndarray
    labels: np.ndarray


class Study:
    """One study in its output directory."""

    def __init__(self, study: StudyConfig):
        self.study = study
        self.folder = Path(study.output_dir)
        self.store = ResultStore(self.folder / "cells.jsonl")
        self.preprocess = ImagePreprocessor.from_pretrained(Path(study.root) / study.model)
        data = Path(study.root) / study.dataset
        self.training = load_image_data(data, split="train")
        self.test = load_image_data(data, split="test", class_names=self.training.class_names)
        assert self.training.class_names is not None
        self.class_names = self.training.class_names

    def run(self) -> dict[str, Any]:
        """Runs what is missing, and returns the results."""
        for seed in self.study.seeds:
            for strategy in (PRETRAINED, *self.study.strategies):
                if self.store.get(self._key(strategy, seed)) is None:
                    self.store.append({"cell": self._key(strategy, seed), **self._measure(strategy, seed)})
                    shutil.rmtree(self._scratch(strategy, seed), ignore_errors=True)
        return self.results()

    def _key(self, strategy: str, seed: int) -> dict[str, Any]:
        return {"strategy": strategy, "seed": seed, "recipe": self.study.recipe(strategy)}

    def _scratch(self, strategy: str, seed: int) -> Path:
        return self.folder / "scratch" / f"{strategy}-{seed}-{self.study.recipe(strategy)}"

    def _measure(self, strategy: str, seed: int) -> dict[str, Any]:
        draw = self._draw(seed)
        scratch = self._scratch(strategy, seed)
        classifier = self._classifier(strategy, seed)
        if strategy != PRETRAINED:
            config = self._training(strategy, scratch / "all", seed)
            recipe = {"seen_classes": draw.seen}
            train(classifier, draw.training, config, self.preprocess, recipe=recipe, resume=True)
        test, reference = self._outputs(classifier, draw.test), self._outputs(classifier, draw.reference)
        gammas = {"none": 0.0}
        if strategy != PRETRAINED:
            gammas.update(self._fit_gammas(strategy, seed, draw, test, reference))
        absent = [np.isin(outputs.labels, draw.seen, invert=True) for outputs in (reference, test)]
        return {
            "seen": draw.seen,
            "metrics": {
                method: seen_unseen_metrics(test.logits, test.labels, draw.seen, gamma)
                for method, gamma in gammas.items()
            },
            "ncm": ncm_accuracy(reference.features, reference.labels, test.features, test.labels),
            "ncm_u_u": ncm_accuracy(
                reference.features[absent[0]],
                reference.labels[absent[0]],
                test.features[absent[1]],
                test.labels[absent[1]],
            ),
            "curve": _thinned_curve(test, draw.seen),
        }

    def _fit_gammas(self, strategy: str, seed: int, draw: Draw, test: Outputs, reference: Outputs) -> dict[str, float]:
        common: dict[str, Any] = {"class_names": self.class_names, "seen_classes": draw.seen}
        trained_on = np.isin(reference.labels, draw.seen)
        alg = fit_gamma("alg", logits=reference.logits[trained_on], labels=reference.labels[trained_on], **common)
        scratch = self._scratch(strategy, seed)

        def fine_tune(seen_classes: list[int], seed: int) -> Any:
            classifier = self._classifier(strategy, seed)
            training = SplitTraining(
                lambda: classifier,
                draw.training,
                self._training(strategy, scratch / "pcv", seed),
                self.preprocess,
            )
            training(seen_classes, seed)
            # Not the split's own `predict`, whose logits are rounded to bfloat16 with the rest of the forward pass.
            return lambda data: self._outputs(classifier, data).logits

        pcv = fit_gamma(
            "pcv",
            fine_tune=fine_tune,
            pretrained=lambda data: self._outputs(self._classifier(PRETRAINED, seed), data).logits,
            data=draw.held_out,
            labels=draw.held_out.labels,
            num_splits=self.study.num_splits,
            seed=seed,
            state_dir=scratch / "splits",
            **common,
        )
        return {"alg": alg.gamma, "pcv": pcv.gamma, "oracle": best_gamma(test.logits, test.labels, draw.seen)[0]}

    def _draw(self, seed: int) -> Draw:
        study, generator = self.study, np.random.default_rng(seed)
        seen = np.sort(generator.permutation(len(self.class_names))[: (len(self.class_names) + 1) // 2])
        rows = _shuffled_rows(self.training, seed)
        reference = np.concatenate([own[: study.shots] for own in rows])
        training = np.concatenate([rows[label][: study.shots] for label in seen])
        held_out = np.concatenate([rows[label][study.shots :][: study.held_out_shots] for label in seen])
        # The same test images for all seeds, so that seeds differ in what is learnt.
        test = np.concatenate([own[: study.test_shots] for own in _shuffled_rows(self.test, 0)])
        return Draw(
            seen.tolist(),
            self.training.select(reference),
            self.training.select(training),
            self.training.select(held_out),
            self.test.select(test),
        )

    def _classifier(self, strategy: str, seed: int) -> Any:
        from transformers import AutoModel, AutoTokenizer

        path = Path(self.study.root) / self.study.model
        model, tokenizer = AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        torch.manual_seed(seed)
        classifier = LinearHeadClassifier(ZeroShotClassifier(model, tokenizer, self.class_names, self.study.template))
        if strategy == PRETRAINED:
            return classifier
        prepared: Any = get_strategy(strategy, **(self.study.strategies[strategy] or {}))
        return prepared.prepare(classifier)

    def _training(self, strategy: str, folder: Path, seed: int) -> TrainingConfig:
        config = TrainingConfig(
            str(folder),
            epochs=self.study.epochs,
            batch_size=self.study.batch_size,
            seed=seed,
            mixed_precision=self.study.mixed_precision,  # type: ignore[arg-type]
            logging_steps=1_000_000,
            progress_bar=False,
        )
        return get_strategy(strategy, **(self.study.strategies[strategy] or {})).training_config(config)

    @torch.no_grad()
    def _outputs(self, classifier: Any, data: ImageData) -> Outputs:
        dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.study.mixed_precision]
        device = next(classifier.eval().parameters()).device
        loader = torch.utils.data.DataLoader(prepare(data, self.preprocess), batch_size=32, collate_fn=collate)
        features, labels = [], []
        for batch in loader:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                features.append(classifier.get_image_features(batch["pixel_values"].to(device)).float())
            labels.append(batch["labels"])
        stacked = torch.cat(features)
        logits = nn.functional.linear(stacked, classifier.head.weight, classifier.head.bias)
        return Outputs(logits.cpu().numpy(), stacked.cpu().numpy(), torch.cat(labels).numpy())

    def results(self) -> dict[str, Any]:
        """The figures of each strategy, a list over seeds each."""
        rows = {
            strategy: [self.store.get(self._key(strategy, seed)) for seed in self.study.seeds]
            for strategy in (PRETRAINED, *self.study.strategies)
        }
        table: dict[str, Any] = {}
        for strategy, cells in rows.items():
            metrics: dict[str, Any] = {}
            for method in cells[0]["metrics"]:  # type: ignore[index]
                each = [cell["metrics"][method] for cell in cells]  # type: ignore[index]
                metrics[method] = {name: [values[name] for values in each] for name in each[0]}
            table[strategy] = {
                "metrics": metrics,
                **{name: [cell[name] for cell in cells] for name in ("ncm", "ncm_u_u", "curve")},  # type: ignore[index]
            }
        config = dataclasses.asdict(self.study)
        return {
            "config": {name: value for name, value in config.items() if name not in ("root", "output_dir")},
            "classes": len(self.class_names),
            "table": table,
        }


def _shuffled_rows(data: ImageData, seed: int) -> list[np.ndarray]:
    """Row numbers of each class, in an order of the seed."""
    labels, generator = data.labels, np.random.default_rng(seed)
    assert data.class_names is not None
    return [generator.permutation(np.flatnonzero(labels == label)) for label in range(len(data.class_names))]


def _thinned_curve(outputs: Outputs, seen: list[int]) -> list[list[float]]:
    """The seen-unseen curve at so many points as a figure shows."""
    curve = seen_unseen_curve(outputs.logits, outputs.labels, seen)
    kept = np.unique(np.linspace(0, len(curve.acc_s_y) - 1, CURVE_POINTS).round().astype(int))
    return [curve.acc_s_y[kept].tolist(), curve.acc_u_y[kept].tolist()]


# --- table and figure ------------------------------------------------------------------------------------------------


def to_markdown(results: dict[str, Any]) -> str:
    """Accuracies in percent, mean and sample standard deviation over seeds."""
    lines = [
        _row(["strategy", "gamma by", "gamma", "Acc_Y/Y", "Acc_S/Y", "Acc_U/Y"]),
        _row(["---", "---", "---:", "---:", "---:", "---:"]),
    ]
    for strategy, row in results["table"].items():
        for method, values in row["metrics"].items():
            gamma = f"{np.mean(values['gamma']):.2f}" if method != "none" else ""
            accuracies = [_percent(values[name]) for name in ("acc_y_y", "acc_s_y", "acc_u_y")]
            label = METHODS[method] if strategy != PRETRAINED else ""
            lines.append(_row([_label(strategy), label, gamma, *accuracies]))
    lines += [
        "",
        _row(["strategy", "AUSUC", "Acc_S/S", "Acc_U/U", "NCM of all classes", "NCM of absent classes"]),
        _row(["---", "---:", "---:", "---:", "---:", "---:"]),
    ]
    for strategy, row in results["table"].items():
        values = row["metrics"]["none"]
        ausuc = _number(values["ausuc"])
        figures = [
            _percent(values["acc_s_s"]),
            _percent(values["acc_u_u"]),
            _percent(row["ncm"]),
            _percent(row["ncm_u_u"]),
        ]
        lines.append(_row([_label(strategy), ausuc, *figures]))
    return "\n".join(lines) + "\n"


def curve_figure(results: dict[str, Any]) -> Any:
    """Seen-unseen curves, a panel for each strategy, a line a seed; where each gamma lies, and the pre-trained model."""
    from matplotlib.figure import Figure

    table = results["table"]
    strategies = [name for name in table if name != PRETRAINED]
    figure = Figure(figsize=(3.3 * len(strategies) + 0.6, 3.9), layout="constrained")
    panels = figure.subplots(1, len(strategies), squeeze=False, sharex=True, sharey=True)[0]
    markers = {"none": ("o", COLORS[1]), "alg": ("s", COLORS[0]), "pcv": ("^", COLORS[2]), "oracle": ("*", COLORS[6])}
    for axes, strategy in zip(panels, strategies):
        for seed, (acc_s, acc_u) in enumerate(table[PRETRAINED]["curve"]):
            label = "pre-trained" if seed == 0 else None
            axes.plot(*_in_percent(acc_s, acc_u), color="0.6", linewidth=0.8, linestyle="--", label=label)
        for seed, (acc_s, acc_u) in enumerate(table[strategy]["curve"]):
            label = "fine-tuned" if seed == 0 else None
            axes.plot(*_in_percent(acc_s, acc_u), color=COLORS[4], linewidth=1.0, label=label)
        for method, (marker, color) in markers.items():
            values = table[strategy]["metrics"][method]
            x, y = _in_percent(values["acc_s_y"], values["acc_u_y"])
            axes.scatter(x, y, marker=marker, color=color, s=30, zorder=3, label=METHODS[method])
        axes.set_title(_label(strategy))
        axes.set_xlabel("Acc_S/Y (%)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("Acc_U/Y (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize="small")
    return figure


def _label(strategy: str) -> str:
    return "pre-trained" if strategy == PRETRAINED else strategy.replace("_", " ")


def _in_percent(*values: list[float]) -> list[np.ndarray]:
    return [100 * np.array(one) for one in values]


def _percent(fractions: list[float]) -> str:
    return _number([100 * value for value in fractions], 1)


def _number(values: list[float], digits: int = 3) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> dict[str, Any]:
    """
    Runs the study, or what is missing of it, and writes table and figure.

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
    figure = curve_figure(results)
    for kind in ("png", "svg"):
        with replacing(folder / f"curves.{kind}") as path:
            figure.savefig(path, format=kind, dpi=120)
    print(to_markdown(results))
    return results


if __name__ == "__main__":
    run(main, sys.argv[1:])
