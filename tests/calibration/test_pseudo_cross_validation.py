import json

import numpy as np
import pytest

from peft_reprogram.calibration import best_gamma, fit_gamma


NAMES = [f"class {i}" for i in range(8)]
SEEN = [0, 1, 3, 4, 6, 7]
DROP = 3.0


class Setting:
    """Held-out samples, and a fine-tuning that lowers the logits of whatever it has not seen."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.labels = np.repeat(SEEN, 20)
        self.data = rng.normal(size=(len(self.labels), 8)) + 2 * np.eye(8)[self.labels]
        self.trained: list[tuple[list[int], int]] = []

    def pretrained(self, data):
        return data

    def fine_tune(self, seen_classes, seed):
        self.trained.append((seen_classes, seed))
        seen = np.isin(np.arange(8), seen_classes)
        return lambda data: data * np.where(seen, 1.3, 1.0) - DROP * ~seen

    def fit(self, **options):
        return fit_gamma(
            "pcv",
            class_names=NAMES,
            seen_classes=SEEN,
            fine_tune=self.fine_tune,
            pretrained=self.pretrained,
            data=self.data,
            labels=self.labels,
            **options,
        )


def test_gamma_is_the_mean_of_what_serves_the_splits_best():
    setting = Setting()
    calibrator = setting.fit(seed=5)
    assert [seed for _, seed in setting.trained] == [5, 6, 7]
    columns = np.array(SEEN)
    gammas = []
    for (half, _), split in zip(setting.trained, calibrator.details["splits"]):
        assert len(half) == 3
        assert set(half) < set(SEEN)
        assert split["pseudo_seen"] == half
        absent = ~np.isin(setting.labels, half)
        base = columns[setting.data[:, columns].argmax(axis=1)]
        floor = np.mean(base[absent] == setting.labels[absent])
        logits = setting.fine_tune(half, 0)(setting.data)[:, columns]
        gamma, accuracy, absent_accuracy = best_gamma(
            logits, np.searchsorted(columns, setting.labels), np.searchsorted(columns, half), floor
        )
        assert split["gamma"] == gamma
        assert (split["floor"], split["accuracy"], split["reached"]) == (floor, accuracy, absent_accuracy >= floor)
        gammas.append(gamma)
    assert calibrator.gamma == pytest.approx(np.mean(gammas))
    assert calibrator.method == "pcv"
    assert len({tuple(half) for half, _ in setting.trained}) > 1
    # It undoes the drop, to within what the rest of the change moves.
    assert calibrator.gamma == pytest.approx(DROP, abs=1.0)


def test_an_odd_number_of_classes_trains_the_larger_half_and_the_seed_decides():
    halves = []
    for seed in (0, 0, 1):
        setting = Setting()
        rows = setting.labels != 7
        setting.labels, setting.data = setting.labels[rows], setting.data[rows]
        fit_gamma(
            "pcv", class_names=NAMES, seen_classes=SEEN[:-1], fine_tune=setting.fine_tune,
            pretrained=setting.pretrained, data=setting.data, labels=setting.labels, seed=seed,
        )  # fmt: skip
        halves.append([half for half, _ in setting.trained])
    assert all(len(half) == 3 for half in halves[0])
    assert halves[0] == halves[1] != halves[2]


def test_an_interrupted_run_goes_on_after_the_last_finished_split(tmp_path):
    expected = Setting().fit().gamma
    setting = Setting()
    whole = setting.fine_tune

    def interrupted(seen_classes, seed):
        if seed == 1:
            raise KeyboardInterrupt
        return whole(seen_classes, seed)

    setting.fine_tune = interrupted
    with pytest.raises(KeyboardInterrupt):
        setting.fit(state_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["split-0.json"]
    setting.fine_tune = whole
    setting.trained.clear()
    assert setting.fit(state_dir=tmp_path).gamma == expected
    assert [seed for _, seed in setting.trained] == [1, 2]
    setting.trained.clear()
    assert setting.fit(state_dir=tmp_path).gamma == expected
    assert setting.trained == []
    assert json.loads((tmp_path / "split-2.json").read_text())["reached"] in (True, False)
    with pytest.raises(ValueError, match=r"split-0.json belongs to another run"):
        setting.fit(state_dir=tmp_path, seed=3)


def test_a_floor_out_of_reach_is_reported():
    setting = Setting()
    whole = setting.fine_tune

    def forgetting(seen_classes, seed):
        seen = np.isin(np.arange(8), seen_classes)
        predict = whole(seen_classes, seed)
        # Absent classes become one another.
        return lambda data: np.where(seen, predict(data), np.roll(predict(data), 1, axis=1))

    setting.fine_tune = forgetting
    splits = setting.fit().details["splits"]
    assert not all(split["reached"] for split in splits)
    assert all(split["absent_accuracy"] < split["floor"] for split in splits if not split["reached"])


def test_bad_input_is_refused_before_anything_is_trained():
    for change, message in (
        ({"labels": np.array([])}, "calibration set is empty"),
        ({"labels": np.full(120, 2)}, r"samples of absent classes \(\[2\]\)"),
        ({"labels": np.full(120, 0)}, r"no sample of the seen classes \[1, 3"),
        ({"seen_classes": [0, 1, 3]}, "at least 4"),
        ({"num_splits": 0}, "`num_splits`"),
    ):
        setting = Setting()
        arguments = {
            "class_names": NAMES, "seen_classes": SEEN, "fine_tune": setting.fine_tune,
            "pretrained": setting.pretrained, "data": setting.data, "labels": setting.labels,
        }  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fit_gamma("pcv", **{**arguments, **change})
        assert setting.trained == []
    setting = Setting()
    setting.pretrained = lambda data: data[:, :5]
    with pytest.raises(ValueError, match=r"logits of shape \(120, 8\).*got \(120, 5\)"):
        setting.fit()
    assert setting.trained == []
