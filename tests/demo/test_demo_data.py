import hashlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from peft_reprogram.demo import CLASS_NAMES, load_demo_data


def pixels(dataset) -> np.ndarray:
    return np.stack([np.asarray(image) for image in dataset["image"]])


def fingerprint(data) -> str:
    digest = hashlib.sha256()
    for dataset in (data.train, data.validation, data.test, *data.shifts.values(), *data.ood.values()):
        digest.update(pixels(dataset).tobytes())
        digest.update(np.array(dataset["label"]).tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def data():
    return load_demo_data(seed=0)


def all_sets(data):
    return {"train": data.train, "validation": data.validation, "test": data.test, **data.shifts, **data.ood}


def test_images_and_labels_of_every_set(data):
    assert {name: len(dataset) for name, dataset in all_sets(data).items()} == {
        "train": 1077,
        "validation": 270,
        **dict.fromkeys(
            (
                "test",
                "inverted",
                "rotated",
                "noisy",
                "thick_stroke",
                "coloured_background",
                "letters",
                "photos",
            ),
            450,
        ),
    }
    for dataset in all_sets(data).values():
        assert pixels(dataset).shape == (len(dataset), 32, 32, 3)
        assert all(image.mode == "RGB" for image in dataset["image"][:5])
        assert set(dataset["label"]) == set(range(dataset.features["label"].num_classes))
    for name in ("train", "validation", "test", *data.shifts):
        assert tuple(all_sets(data)[name].features["label"].names) == CLASS_NAMES == data.class_names
    assert data.ood["photos"].features["label"].names == ["china", "flower"]


def test_the_splits_are_the_scans_each_once(data):
    originals = load_digits().images
    inner = np.concatenate([pixels(split)[:, 4:-4, 4:-4, 0] for split in (data.train, data.validation, data.test)])
    assert len(np.unique(inner.reshape(len(inner), -1), axis=0)) == len(originals) == len(inner)
    # The mean brightness survives the enlargement, so that sorting by it pairs pictures with scans.
    brightness = np.sort(inner.mean(axis=(1, 2)) / 255)
    np.testing.assert_allclose(brightness, np.sort(originals.mean(axis=(1, 2)) / 16), atol=0.03)


def test_the_splits_are_stratified(data):
    everything = np.bincount(load_digits().target)
    for split in (data.train, data.validation, data.test):
        share = len(split) / everything.sum()
        assert np.abs(np.bincount(split["label"]) - share * everything).max() <= 1


def test_the_margin_is_empty(data):
    frame = pixels(data.test)
    frame[:, 4:-4, 4:-4] = 0
    assert frame.max() == 0


def test_shifts_are_of_the_test_images_in_order(data):
    for shifted in data.shifts.values():
        assert shifted["label"] == data.test["label"]
    test = pixels(data.test)
    np.testing.assert_array_equal(pixels(data.shifts["inverted"]), 255 - test)
    noise = pixels(data.shifts["noisy"]).astype(float) - test
    grey = (test > 120) & (test < 135)  # far from where noise is clipped
    assert noise[grey].std() == pytest.approx(0.25 * 255, rel=0.15)
    thick = pixels(data.shifts["thick_stroke"])
    assert (thick >= test).all()
    assert thick.mean() > 1.2 * test.mean()
    coloured = pixels(data.shifts["coloured_background"])
    corners = coloured[:, 0, 0]
    np.testing.assert_array_equal(coloured[:, 0, -1], corners)
    assert (corners.std(axis=1) > 0).mean() > 0.95
    assert np.abs(coloured.max(axis=(1, 2)).astype(int) - 255).max() < 40
    rotated = pixels(data.shifts["rotated"])
    assert (np.abs(rotated.astype(int) - test).mean(axis=(1, 2, 3)) > 5).mean() > 0.95


def test_letters_differ_from_digits_in_meaning_only(data):
    letters, digits = pixels(data.ood["letters"]), pixels(data.test)
    assert letters[:, :4].max() == 0
    np.testing.assert_array_equal(letters[..., 0], letters[..., 1])
    assert letters.mean() == pytest.approx(digits.mean(), rel=0.25)
    assert letters.max() == digits.max()


def test_the_seed_decides(data):
    assert fingerprint(load_demo_data(seed=0)) == fingerprint(data)
    other = load_demo_data(seed=1)
    for name, dataset in all_sets(data).items():
        assert not np.array_equal(pixels(dataset), pixels(all_sets(other)[name]))


def test_missing_scikit_learn_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"peft-reprogram\[demo\]"):
        load_demo_data()


def test_importing_the_demo_imports_none_of_its_heavy_parts():
    probe = (
        "import sys, peft_reprogram; before = set(sys.modules); import peft_reprogram.demo;"
        "new = set(sys.modules) - before; heavy = {'sklearn', 'matplotlib', 'datasets', 'evaluate', 'scipy'};"
        "assert not heavy & new, heavy & new"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)
