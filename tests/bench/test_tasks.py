import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PIL

from peft_reprogram.bench import TaskConfig
from peft_reprogram.bench.tasks import draw, load_task, resolve


NAMES = ["ant", "bee", "cat", "dog"]


def write_set(folder, n, split, names=NAMES, start=0):
    """Images whose brightness tells their row."""
    pictures = [PIL.new("RGB", (8, 8), (start + i, 0, 0)) for i in range(n)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    labels = [i % len(names) for i in range(n)]
    dataset = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    folder.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(folder / f"{split}-00000.parquet")


def brightness(data):
    rows = data.dataset.cast_column("image", Image())
    return [row["image"].getpixel((0, 0))[0] for row in rows]


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path / "data" / "insects", 40, "train")
    write_set(tmp_path / "data" / "insects", 20, "test", start=100)
    write_set(tmp_path / "data" / "drawn", 8, "test", names=["bee", "ant"], start=150)
    return tmp_path


def test_other_classes_become_out_of_distribution(root):
    task = load_task(TaskConfig(dataset="data/insects", shots={2: {}}, id_classes=2, ood={"o": "data/drawn"}), root)
    names = task.training.class_names
    assert len(names) == 2
    kept = [NAMES.index(name) for name in names]
    assert sorted(brightness(task.test)) == [100 + i for i in range(20) if i % 4 in kept]
    assert sorted(brightness(task.ood["other_classes"])) == [100 + i for i in range(20) if i % 4 not in kept]
    assert [names[label] for label in task.training.labels] == [NAMES[i % 4] for i in range(40) if i % 4 in kept]
    with pytest.raises(ValueError, match="must leave some of the 4 classes out"):
        load_task(TaskConfig(dataset="data/insects", shots={2: {}}, id_classes=4), root)


def test_test_images_are_drawn_once_for_all(root):
    config = TaskConfig(
        dataset="data/insects",
        shots={2: {}},
        test_images=7,
        ood_images=3,
        corruption_images=2,
        ood={"drawn": "data/drawn"},
    )
    first, second = load_task(config, root), load_task(config, root)
    assert [len(first.test), len(first.corruptible), len(first.ood["drawn"])] == [7, 2, 3]
    assert brightness(first.test) == brightness(second.test)
    assert set(brightness(first.corruptible)) < set(brightness(first.test))


def test_shifts_are_matched_by_name(root):
    config = TaskConfig(dataset="data/insects", shots={2: {}}, shifts={"drawn": "data/drawn"})
    shift = load_task(config, root).shifts["drawn"]
    assert shift.labels.tolist() == [1, 0] * 4


def test_training_and_validation_never_overlap(root):
    data = load_task(TaskConfig(dataset="data/insects", shots={2: {}}), root).training
    training, validation = draw(data, 3, 2, seed=1)
    assert np.bincount(training.labels).tolist() == [3] * 4
    assert np.bincount(validation.labels).tolist() == [2] * 4
    assert not set(brightness(training)) & set(brightness(validation))
    assert brightness(draw(data, 3, 2, seed=1)[0]) == brightness(training)
    assert brightness(draw(data, 3, 2, seed=2)[0]) != brightness(training)
    # More shots hold the fewer.
    assert set(brightness(draw(data, 2, 2, seed=1)[0])) < set(brightness(training))
    whole, held_out = draw(data, None, 2, seed=1)
    assert (len(whole), len(held_out)) == (36, 4)


def test_what_is_not_under_the_root_is_a_hub_id(root):
    assert resolve("data/insects", root) == str(root / "data/insects")
    assert resolve("user/insects", root) == "user/insects"


def test_the_demo_brings_its_own_sets(tmp_path):
    task = load_task(TaskConfig(dataset="demo", shots={16: {}}, test_images=20, ood_images=10), tmp_path)
    assert len(task.test) == 20
    assert {name: len(data) for name, data in task.ood.items()} == {"letters": 10, "photos": 10}
    assert len(task.shifts) == 5
