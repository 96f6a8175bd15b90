"""Runs the cells of a bench that are not in its store yet."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from ..data import ImageData, ImagePreprocessor
from ..demo.pretrained import demo_model_path
from ..evaluation import ModelMeasures, evaluate_model
from ..provenance import command, versions
from ..strategies import Strategy, Task
from ..training import TrainingConfig
from .cells import Cell, Group, groups, recipe
from .config import ALL_SHOTS, BenchConfig
from .memory import peak_memory
from .store import ResultStore
from .tasks import DEMO, TaskData, draw, load_task, resolve


class BenchRunner:
    """
    Fills a results store.

    A cell that is in the store is not run again; a training that was interrupted goes on from its last checkpoint. So a
    bench that was killed and started again gives the table that it would have given.

    Args:
        config ([`BenchConfig`]): What to compare.
        output_dir (`str` or `Path`): Holds `results.jsonl` (of a shard: `results.<i>-of-<n>.jsonl`) and, while the bench is
            not finished, its trainings and passes in `work/`.
        root (`str` or `Path`, *optional*, defaults to the working directory): Folder that the paths in `config` are relative
            to.
        shard (`tuple[int, int]`, *optional*, defaults to `(0, 1)`): The part of the cells to run here, `(i, n)`, and the number
            of parts.
        keep_adapters (`bool`, *optional*, defaults to `False`): Keeps what each cell saved, in `work/`.
    """

    def __init__(
        self,
        config: BenchConfig,
        output_dir: str | Path,
        root: str | Path = ".",
        shard: tuple[int, int] = (0, 1),
        keep_adapters: bool = False,
    ) -> None:
        self.config = config
        self.root = Path(root)
        self.output_dir = Path(output_dir)
        self.shard = shard
        self.keep_adapters = keep_adapters
        suffix = "" if shard[1] == 1 else f".{shard[0]}-of-{shard[1]}"
        self.work = self.output_dir / f"work{suffix}"
        # The main process's disk counts: others may be on other machines.
        self.store = _from_main_process(self._open("results", suffix, "cell"))
        self.trials = _from_main_process(self._open("trials", suffix, "trial"))
        self._tasks: dict[str, TaskData] = {}
        self._passes = self.work / "passes"

    def _open(self, name: str, suffix: str, key: str) -> ResultStore:
        # What another shard has finished is not run again here, however the cells were shared out at the time.
        path = self.output_dir / f"{name}{suffix}.jsonl"
        return ResultStore(path, key, sorted(set(self.output_dir.glob(f"{name}*.jsonl")) - {path}))

    def run(self) -> None:
        """
        Runs what is missing.

        Raises:
            ValueError: If the store holds cells of another configuration.
            FloatingPointError: If the training of a cell diverged; all others are finished first.
        """
        cells = [(group, cell) for group in groups(self.config, self.shard) for cell in group.cells()]
        for group, cell in cells:
            self._check_recipe(cell, recipe(self.config, group))
        diverged = []
        for number, (group, cell) in enumerate(cells, start=1):
            if self.store.get(asdict(cell)) is None:
                started = time.perf_counter()
                try:
                    row = self._run_cell(group, cell)
                except FloatingPointError as error:
                    diverged.append(f"{_describe(cell)}: {error}")
                    self._say(f"{number}/{len(cells)} {diverged[-1]}")
                    continue
                self.store.append(row, PartialState().is_main_process)
                if PartialState().is_main_process:
                    self._clear(self._folder(group, cell))
                accuracy, seconds = row["points"][0]["id"]["accuracy"], time.perf_counter() - started
                self._say(f"{number}/{len(cells)} {_describe(cell)}: ID accuracy {accuracy:.1%}, {seconds:.0f} s")
        if diverged:
            raise FloatingPointError("\n".join([f"{len(diverged)} of {len(cells)} cells diverged:", *diverged]))
        if PartialState().is_main_process:
            shutil.rmtree(self._passes, ignore_errors=True)
            if not self.keep_adapters:
                shutil.rmtree(self.work, ignore_errors=True)

    def _run_cell(self, group: Group, cell: Cell) -> dict[str, Any]:
        options, trials = self._choose(group)
        strategy = self.config.strategy(cell.strategy).with_options(**options)
        task, validation = self._task(group, cell, options)
        classifier, cost = self._fit(strategy, task, cell)
        trial = self.trials.get(_trial_key(group, cell, options, self.config))
        cost = cost if trial is None else trial["cost"]
        points = []
        for alpha, point in strategy.points(classifier, task):
            points += self._measure(strategy, alpha, point, task, validation, cell)
        _mark(points, strategy.paper_alpha, len(validation))
        return {
            "cell": asdict(cell),
            "recipe": recipe(self.config, group),
            "options": asdict(strategy),
            "trials": trials,
            "points": points,
            "cost": cost,
            "selection": "val",
            "command": command(),
            "versions": versions(),
        }

    # --- training --------------------------------------------------------------------------------------------------

    def _choose(self, group: Group) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """
        The trial with the best validation accuracy at the first seed (of equals the first), and all of them. One that
        diverges is a trial as well, whose accuracy is not known.
        """
        cell, tried = group.cells()[0], []
        for options in self.config.grid(group.strategy):
            key = _trial_key(group, cell, options, self.config)
            row = self.trials.get(key)
            if row is None:
                row = {"trial": key, "options": options, **self._try(group, cell, options)}
                self.trials.append(row, PartialState().is_main_process)
                accuracy = row["validation_accuracy"]
                outcome = "diverged" if accuracy is None else f"validation accuracy {accuracy:.1%}"
                self._say(f"  tried {group.strategy} {options}: {outcome}")
            seconds = row["cost"]["training_seconds"]
            tried.append({"options": options, "validation_accuracy": row["validation_accuracy"], "seconds": seconds})
        finished = [trial for trial in tried if trial["validation_accuracy"] is not None]
        if not finished:
            raise FloatingPointError("every trial diverged. Fix lower learning rates under `strategies`.")
        best = max(finished, key=lambda trial: trial["validation_accuracy"])
        return best["options"], tried

    def _try(self, group: Group, cell: Cell, options: dict[str, Any]) -> dict[str, Any]:
        """Validation accuracy of what a strategy trains, before anything is mixed in, and the cost."""
        started = time.perf_counter()
        strategy = self.config.strategy(group.strategy).with_options(**options)
        task, validation = self._task(group, cell, options)
        try:
            classifier, cost = self._fit(strategy, task, cell)
        except FloatingPointError:
            return {"validation_accuracy": None, "cost": {"training_seconds": time.perf_counter() - started}}
        _, point = next(strategy.points(classifier, task))
        return {"validation_accuracy": self._evaluate(point, task, id=validation)[0].id["accuracy"], "cost": cost}

    def _task(self, group: Group, cell: Cell, options: dict[str, Any]) -> tuple[Task, ImageData]:
        config, data = self.config.tasks[cell.task], self._data(cell.task)
        training, validation = draw(data.training, cell.shots, config.validation_shots, cell.seed)
        model = self.config.models[cell.model]
        path = str(demo_model_path()) if model == DEMO else resolve(model, self.root)
        shots: Any = cell.shots or ALL_SHOTS
        training_config = TrainingConfig(
            **{**self.config.training, **(config.shots[shots] or {})},
            output_dir=str(self._folder(group, cell) / _trial_folder(options)),
            seed=cell.seed,
            progress_bar=False,
        )
        preprocess = ImagePreprocessor.from_pretrained(path, config.source_resolution)
        task = Task(
            path, config.template, preprocess, training, training_config, channels_last=self.config.channels_last
        )
        return task, validation

    def _fit(self, strategy: Strategy, task: Task, cell: Cell) -> tuple[nn.Module, dict[str, Any]]:
        folder = Path(task.config.output_dir)
        # A training that was finished before only loads its weights, which says nothing about its memory.
        finished = (folder / "results.json").is_file()
        set_seed(cell.seed)
        with peak_memory() as peak:
            classifier, result = strategy.fit(task)
        cost = {
            "trained_parameters": 0 if result is None else result.trainable_parameters,
            "adapter_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            "training_seconds": 0.0 if result is None else result.seconds,
            "peak_memory_bytes": 0 if result is None else None if finished else peak.bytes,
        }
        return classifier, cost

    def _folder(self, group: Group, cell: Cell) -> Path:
        # What another configuration left half done must not be continued with this one.
        return self.work / f"{cell.folder()}-{recipe(self.config, group)}"

    def _clear(self, folder: Path) -> None:
        if not self.keep_adapters:
            shutil.rmtree(folder, ignore_errors=True)
        for checkpoints in folder.glob("**/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)

    # --- measuring -------------------------------------------------------------------------------------------------

    def _measure(
        self,
        strategy: Strategy,
        alpha: Optional[float],
        classifier: nn.Module,
        task: Task,
        validation: ImageData,
        cell: Cell,
    ) -> list[dict[str, Any]]:
        """The points that a classifier gives: itself, and its residuals."""
        config, data = self.config.tasks[cell.task], self._data(cell.task)
        residuals = strategy.residual_alphas
        alphas = [0.0 if residuals else alpha, *residuals]
        held_out = self._evaluate(classifier, task, residuals, id=validation)
        measured = self._evaluate(
            classifier, task, residuals, id=data.test, shifts=data.shifts, ood=data.ood, scores=self.config.scores
        )
        corrupted = None
        if config.corruptions:
            corrupted = self._evaluate(
                classifier,
                task,
                residuals,
                id=data.corruptible,
                corruptions=config.corruption_names(),
                severities=config.severities,
            )
        return [
            {
                "alpha": value,
                "validation_accuracy": held_out[i].id["accuracy"],
                **_figures(measured[i]),
                "corruptions": {} if corrupted is None else _mean_over_severities(corrupted[i]),
            }
            for i, value in enumerate(alphas)
        ]

    def _evaluate(
        self, classifier: nn.Module, task: Task, residuals: tuple[float, ...] = (), **sets: Any
    ) -> list[ModelMeasures]:
        # Tasks may differ in precision, which Accelerate refuses within a process.
        AcceleratorState._reset_state()
        results = evaluate_model(
            classifier,
            **sets,
            preprocess=task.preprocess,
            residual_alphas=residuals,
            name="classifier",
            accelerator=Accelerator(mixed_precision=task.config.mixed_precision),
            batch_size=task.config.eval_batch_size,
            num_workers=task.config.num_workers,
            cache_dir=self._passes,
            progress_bar=False,
        )
        return list(results.models.values())

    def _data(self, name: str) -> TaskData:
        if name not in self._tasks:
            self._tasks = {name: load_task(self.config.tasks[name], self.root)}
        return self._tasks[name]

    # --- the rest --------------------------------------------------------------------------------------------------

    def _check_recipe(self, cell: Cell, wanted: str) -> None:
        row = self.store.get(asdict(cell))
        if row is not None and row["recipe"] != wanted:
            raise ValueError(
                f"{self.store.path} holds the cell {asdict(cell)} of another configuration, which must not stand in one table "
                "with this one's. Choose another output folder, or remove that row to have the cell run again."
            )

    def _say(self, text: str) -> None:
        PartialState().print(text, flush=True)


def _trial_folder(options: dict[str, Any]) -> str:
    return ("-".join(f"{name}={value}" for name, value in options.items()) or "trained").replace("/", "_")


def _trial_key(group: Group, cell: Cell, options: dict[str, Any], config: BenchConfig) -> dict[str, Any]:
    return {**asdict(cell), "options": options, "recipe": recipe(config, group)}


def _figures(measures: ModelMeasures) -> dict[str, Any]:
    names = ("accuracy", "balanced_accuracy", "n")
    return {
        "id": {**{name: measures.id[name] for name in names}, "ece": measures.calibration["ece"]},
        "shifts": {shift: {name: values[name] for name in names} for shift, values in measures.shifts.items()},
        "ood": {
            score: {
                name: {key: values[key] for key in ("auroc", "fpr", "aupr_in", "n_ood")}
                for name, values in sets.items()
            }
            for score, sets in measures.ood.items()
        },
    }


def _mean_over_severities(measures: ModelMeasures) -> dict[str, float]:
    return {name: sum(values.values()) / len(values) for name, values in measures.corruptions.items()}


def _mark(points: list[dict[str, Any]], paper_alpha: Optional[float], n: int) -> None:
    """
    Says which point the paper recommends, and which validation does: the largest share of the pre-trained model whose
    validation accuracy is within one standard error of the best.
    """
    best = max(point["validation_accuracy"] for point in points)
    enough = best - math.sqrt(best * (1 - best) / n)
    within = [point for point in points if point["validation_accuracy"] >= enough]
    chosen = max(within, key=lambda point: point["alpha"] or 0.0)
    for point in points:
        point["paper"] = len(points) == 1 or point["alpha"] == paper_alpha
        point["chosen"] = point is chosen


def _describe(cell: Cell) -> str:
    return f"{cell.model}, {cell.task}, {cell.shots or ALL_SHOTS} shots, {cell.strategy}, seed {cell.seed}"


def _from_main_process(store: ResultStore) -> ResultStore:
    if PartialState().num_processes == 1:
        return store
    return broadcast_object_list([store])[0]
