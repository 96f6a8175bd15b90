"""Rows as the bench writes them."""

from __future__ import annotations

from typing import Any


def point(id_accuracy: float, *, alpha=None, paper=True, chosen=True, shifts=None, corruptions=None, ood=None, **more):
    return {
        "alpha": alpha,
        "paper": paper,
        "chosen": chosen,
        "validation_accuracy": more.pop("validation_accuracy", id_accuracy),
        "id": {"accuracy": id_accuracy, "balanced_accuracy": id_accuracy, "ece": more.pop("ece", 0.1), "n": 100},
        "shifts": {name: {"accuracy": value, "balanced_accuracy": value / 2, "n": 50} for name, value in (shifts or {}).items()},
        "corruptions": corruptions or {},
        "ood": {
            score: {name: {"auroc": value, "fpr": 1 - value, "aupr_in": value, "n_ood": 50} for name, value in sets.items()}
            for score, sets in (ood or {}).items()
        },
    }  # fmt: skip


def row(strategy: str, seed: int, *points: dict[str, Any], **more: Any) -> dict[str, Any]:
    trained = more.pop("trained_parameters", 1000)
    return {
        "cell": {
            "model": more.pop("model", "clip"),
            "task": more.pop("task", "digits"),
            "shots": more.pop("shots", 16),
            "strategy": strategy,
            "seed": seed,
        },
        "options": more.pop("options", {}),
        "trials": more.pop("trials", []),
        "points": list(points),
        "cost": {
            "trained_parameters": trained,
            "adapter_bytes": 4 * trained,
            "training_seconds": 1.5,
            "peak_memory_bytes": 10**6,
        },
        "selection": "val",
        "command": "benchmark --config bench.yaml",
        "versions": {"torch": "2"},
        **more,
    }
