import re

import pytest

from peft_reprogram.shift import get_shift, imagenet_wnids, list_shifts
from peft_reprogram.shift.registry import CIFAR10_CLASSES, DATASETS


def test_lists():
    assert set(list_shifts()) == set(DATASETS)
    assert list_shifts("shift", "cifar10") == ["cifar10.1", "cifar10-c", "stl10"]
    assert list_shifts("shift", "imagenet") == [
        "imagenet-v2",
        "imagenet-a",
        "imagenet-r",
        "imagenet-sketch",
        "imagenet-c",
    ]
    assert {"isun", "lsun-r", "dtd", "places365", "svhn"} <= set(list_shifts("ood", "cifar10"))
    assert {"inaturalist", "sun", "places", "dtd"} <= set(list_shifts("ood", id_dataset="imagenet"))


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_entries_are_complete(name):
    entry = get_shift(name)
    assert entry.name == name
    assert entry.role in ("shift", "ood")
    assert entry.id_datasets
    assert entry.license
    assert "http" in entry.source
    if entry.hub_id is None:
        assert entry.split is None
    else:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub_id)
        assert entry.split is not None
    assert entry.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", entry.arxiv)


@pytest.mark.parametrize("name", list_shifts("shift"))
def test_shifts_map_to_their_classes(name):
    entry = get_shift(name)
    if "cifar10" in entry.id_datasets:
        labels = entry.label_map(CIFAR10_CLASSES)
        known = entry.class_names
    else:
        labels = entry.label_map([f"class {i}" for i in range(1000)])
        known = imagenet_wnids(entry.wnids)
        assert [imagenet_wnids()[label] for label in labels] == list(known)
    assert len(labels) == len(known)
    assert len(set(labels.tolist())) == len(labels)


def test_stl10_in_another_order_and_partly():
    entry = get_shift("stl10")
    assert entry.label_map(CIFAR10_CLASSES[::-1], ["truck", "Car", "cat"]).tolist() == [0, 8, 6]


def test_errors():
    with pytest.raises(ValueError, match=r"'cifar-11'.*cifar10\.1.*ninco"):
        get_shift("cifar-11")
    with pytest.raises(ValueError, match=r"role 'near'.*ood, shift"):
        list_shifts("near")
    with pytest.raises(ValueError, match=r"id_dataset 'mnist'.*cifar10, imagenet"):
        list_shifts(id_dataset="mnist")
    with pytest.raises(ValueError, match="no in-distribution label"):
        get_shift("isun").label_map(CIFAR10_CLASSES)
    with pytest.raises(ValueError, match=r"all 1,000 .* got 10"):
        get_shift("imagenet-r").label_map(CIFAR10_CLASSES)
    with pytest.raises(ValueError, match="no in-distribution class of the same name"):
        get_shift("cifar10.1").label_map(["cat", "dog"])
