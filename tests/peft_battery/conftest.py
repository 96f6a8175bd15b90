from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel

from .tuner_types import TUNERS, adapted
from .zoo import CORE, FURTHER, ZooModel


# Threads cost more than such small models gain from them.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # PEFT 0.20 says so, for every method, whenever it saves an adapter of a model that was never saved itself.
    mark = pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(mark)


@dataclass(frozen=True)
class Case:
    """A tuner type on a model of the zoo."""

    tuner: str
    model: ZooModel

    def __str__(self) -> str:
        return f"{self.tuner}-{self.model.name}"

    def config(self, **fields: Any) -> PeftConfig:
        return TUNERS[self.tuner](self.model, **fields)

    def adapted(self, adapter_name: str = "default", **fields: Any) -> PeftModel:
        return adapted(self.model, self.config(**fields), adapter_name)

    def base_output(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model.predict(self.model.build(), inputs)


def _cases(models: dict[str, ZooModel]) -> list[Case]:
    return [Case(tuner, model) for model in models.values() for tuner in TUNERS]


@pytest.fixture(params=_cases(CORE), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Every tuner type on every core model."""
    return request.param


@pytest.fixture(params=_cases({**CORE, **FURTHER}), ids=str)
def any_case(request: pytest.FixtureRequest) -> Case:
    """Every tuner type on every model."""
    return request.param


@pytest.fixture(params=_cases({name: CORE[name] for name in ("clip", "vit", "resnet")}), ids=str)
def one_of_each_kind(request: pytest.FixtureRequest) -> Case:
    """Every tuner type on a text-image model, a transformer and a convolutional network."""
    return request.param


@pytest.fixture(params=_cases({name: model for name, model in CORE.items() if model.has_text}), ids=str)
def text_case(request: pytest.FixtureRequest) -> Case:
    """Every tuner type on the core models with a text tower."""
    return request.param


@pytest.fixture(params=_cases({name: model for name, model in CORE.items() if model.head}), ids=str)
def head_case(request: pytest.FixtureRequest) -> Case:
    """Every tuner type on the core models with a classification head."""
    return request.param
