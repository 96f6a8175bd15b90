import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_reprogram.calibration import GammaCalibrator, alg_gamma, best_gamma, fit_gamma
from peft_reprogram.metrics import seen_unseen_metrics


NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
SEEN = [0, 2, 3, 5]


def samples(n: int = 40, classes: int = 6, only=None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes if only is None else only, size=n)
    return 2 * rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels], labels


def test_alg_is_its_formula():
    logits, labels = samples(only=SEEN)
    absent = [c for c in range(6) if c not in SEEN]
    others = []
    for z, y in zip(logits, labels):
        others.append(sum(z[c] for c in SEEN if c != y) / (len(SEEN) - 1))
    expected = sum(others) / len(others) - sum(z[c] for z in logits for c in absent) / (len(logits) * len(absent))
    assert alg_gamma(logits, labels, SEEN) == pytest.approx(expected, rel=1e-12)
    calibrator = fit_gamma(
        "alg", class_names=NAMES, seen_classes=SEEN, logits=torch.tensor(logits), labels=torch.tensor(labels)
    )
    assert (calibrator.gamma, calibrator.method, calibrator.details) == (pytest.approx(expected), "alg", {"n": 40})
    named = fit_gamma(
        "alg", class_names=NAMES, seen_classes=["fox", "ant", "cat", "dog"], logits=logits, labels=labels
    )
    assert named.gamma == calibrator.gamma
    assert named.seen_classes == SEEN


def test_alg_undoes_a_common_drop_of_absent_logits():
    logits, labels = samples(only=SEEN)
    dropped = logits.copy()
    dropped[:, [1, 4]] -= 7.5
    assert alg_gamma(dropped, labels, SEEN) - alg_gamma(logits, labels, SEEN) == pytest.approx(7.5)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0, 1), st.booleans())
def test_the_best_gamma_is_that_of_a_fine_grid(seed, floor, coarse):
    logits, labels = samples(n=15, classes=4, seed=seed)
    labels[:2] = [0, 3]
    if coarse:
        logits = np.round(logits)  # ties
    gamma, accuracy, absent_accuracy = best_gamma(logits, labels, [0, 1], floor)

    def metrics(value):
        found = seen_unseen_metrics(logits, labels, [0, 1], gamma=value)
        return found["acc_y_y"], found["acc_u_y"]

    assert metrics(gamma) == (pytest.approx(accuracy), pytest.approx(absent_accuracy))
    flips = np.unique([z[[0, 1]].max() - z[[2, 3]].max() for z in logits])
    grid = [flips[0] - 1, *((flips[:-1] + flips[1:]) / 2), flips[-1] + 1]
    tried = [metrics(value) for value in grid]
    reachable = [t for t in tried if t[1] >= min(floor, max(u for _, u in tried)) - 1e-9]
    assert accuracy == pytest.approx(max(a for a, _ in reachable))
    assert absent_accuracy >= min(floor, max(u for _, u in tried)) - 1e-9


def test_calibrated_logits():
    calibrator = GammaCalibrator(1.5, NAMES, SEEN)
    logits = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = logits.clone()
    expected[..., [1, 4]] += 1.5
    assert torch.equal(calibrator(logits), expected)
    assert calibrator(logits.half()).dtype == torch.float16
    assert calibrator.absent_classes == [1, 4]


def test_another_temperature_gives_the_same_decisions():
    calibrator = GammaCalibrator(1.5, NAMES, SEEN)
    logits = torch.tensor(samples()[0])
    warm = calibrator.at_temperature(4.0)
    torch.testing.assert_close(warm(logits / 4), calibrator(logits) / 4)
    assert warm.at_temperature(1.0) == calibrator


def test_state_survives_saving_and_nothing_is_half_written(tmp_path, monkeypatch):
    logits, labels = samples(only=SEEN)
    calibrator = fit_gamma("alg", class_names=NAMES, seen_classes=SEEN, logits=logits, labels=labels)
    calibrator.save_pretrained(tmp_path / "adapter")
    assert GammaCalibrator.from_pretrained(tmp_path / "adapter") == calibrator
    assert json.loads((tmp_path / "adapter" / "gamma.json").read_text())["seen_classes"] == SEEN
    other = GammaCalibrator(9.0, NAMES, SEEN)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            other.save_pretrained(tmp_path / "adapter")
    assert GammaCalibrator.from_pretrained(tmp_path / "adapter") == calibrator
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["gamma.json"]
    with pytest.raises(ValueError, match="a gamma needs"):
        GammaCalibrator.from_dict({"gamma": 1.0})


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([0, 6], r"proper subset of the 6 classes; \[6\] are none"),
        (["ant", "gnu"], r"\['gnu'\] are none"),
        ([-1], "are none of them"),
        ([], "is empty"),
        (range(6), "holds all 6 classes, so there is no absent class"),
    ],
)
def test_seen_classes_must_be_some_of_the_classes(seen, message):
    logits, labels = samples()
    with pytest.raises(ValueError, match=message):
        fit_gamma("alg", class_names=NAMES, seen_classes=seen, logits=logits, labels=labels)
    with pytest.raises(ValueError, match=message):
        GammaCalibrator(1.0, NAMES, seen)


def test_other_bad_input_is_refused():
    logits, labels = samples(only=SEEN)
    known = {"class_names": NAMES, "seen_classes": SEEN}
    with pytest.raises(ValueError, match="calibration set is empty"):
        fit_gamma("alg", **known, logits=logits[:0], labels=labels[:0])
    with pytest.raises(ValueError, match=r"samples of absent classes \(\[1"):
        fit_gamma("alg", **known, logits=logits, labels=np.ones(40, int))
    with pytest.raises(ValueError, match="at least 2"):
        fit_gamma("alg", class_names=NAMES, seen_classes=[0], logits=logits, labels=np.zeros(40, int))
    with pytest.raises(ValueError, match="needs `logits`, `labels`"):
        fit_gamma("alg", **known)
    with pytest.raises(ValueError, match="needs `fine_tune`, `pretrained`, `data`"):
        fit_gamma("pcv", **known, labels=labels)
    with pytest.raises(ValueError, match="'alg' or 'pcv'"):
        fit_gamma("guess", **known)
    with pytest.raises(ValueError, match=r"duplicates: \['ant'\]"):
        GammaCalibrator(1.0, ["ant", "ant", "bee"], [0])
    calibrator = GammaCalibrator(1.0, NAMES, SEEN)
    with pytest.raises(ValueError, match="for 6 classes, but the logits are over 5"):
        calibrator(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"lacks \['fox'\] and adds \['gnu'\]"):
        calibrator.check_class_names([*NAMES[:-1], "gnu"])
    with pytest.raises(ValueError, match="the order differs"):
        calibrator.check_class_names(NAMES[::-1])
    with pytest.raises(ValueError, match="`gamma` must be finite"):
        GammaCalibrator(float("nan"), NAMES, SEEN)
