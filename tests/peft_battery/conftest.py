from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .tuner_types import TUNERS, Case
from .zoo import CORE, FURTHER, ZooModel


# Threads cost more than such small models gain from them.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # PEFT 0.20 says so, for every method, whenever it saves an adapter of a model that was never saved itself.
    mark = pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(mark)


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
