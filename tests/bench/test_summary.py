import math
import random
import statistics

import pytest

from peft_reprogram.bench.summary import (
    EFFECTIVE_ROBUSTNESS,
    ID_ACCURACY,
    MEAN_SHIFT,
    Statistic,
    summarize,
    within_noise,
)

from .bench_rows import point, row


def entries(rows, **options):
    (bed,) = summarize(rows, **options)
    return bed, {entry.label: entry for entry in bed.entries}


def test_mean_and_deviation_over_seeds():
    values = [0.5, 0.6, 0.8]
    _, by_label = entries([row("lora", seed, point(value)) for seed, value in enumerate(values)])
    found = by_label["lora"].statistics[ID_ACCURACY]
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.std == pytest.approx(statistics.stdev(values))
    assert found.n == 3
    _, alone = entries([row("lora", 0, point(0.5))])
    assert alone["lora"].statistics[ID_ACCURACY] == Statistic(0.5, None, 1)


def test_corruptions_count_as_one_shift():
    shifted = point(0.9, shifts={"natural": 0.6, "style": 0.5}, corruptions={"fog": 0.1, "snow": 0.3, "frost": 0.5})
    _, by_label = entries([row("lora", 0, shifted)])
    lora = by_label["lora"]
    assert lora.get(("corruption",)) == pytest.approx(0.3)
    assert lora.get(MEAN_SHIFT) == pytest.approx((0.6 + 0.5 + 0.3) / 3)
    assert lora.get(("shift", "balanced_accuracy")) == pytest.approx((0.3 + 0.25) / 2)
    _, only = entries([row("lora", 0, point(0.9, corruptions={"fog": 0.1, "snow": 0.3}))])
    assert only["lora"].get(MEAN_SHIFT) == pytest.approx(0.2)


def test_a_mean_over_fewer_sets_is_not_given():
    rows = [
        row("lora", 0, point(0.9, shifts={"a": 0.6, "b": 0.2}, ood={"energy": {"x": 0.9}})),
        row("lora", 1, point(0.9, shifts={"a": 0.8}, ood={"energy": {"x": 0.9, "y": 0.5}})),
    ]
    _, by_label = entries(rows)
    lora = by_label["lora"]
    assert lora.statistics[MEAN_SHIFT] == Statistic(pytest.approx(0.4), None, 1)
    assert lora.statistics["shift", "a", "accuracy"].n == 2
    assert lora.statistics["ood", "energy", "auroc"] == Statistic(pytest.approx(0.7), None, 1)


def test_a_curve_gives_its_unmixed_paper_and_chosen_point():
    def curve(seed, chosen):
        return row(
            "reprogrammer",
            seed,
            *(
                point(0.5 + alpha / 10, alpha=alpha or None, paper=alpha == 0.4, chosen=alpha == chosen)
                for alpha in (0, 0.2, 0.4, 0.8)
            ),
        )

    bed, by_label = entries([curve(0, 0.2), curve(1, 0.8)])
    assert list(by_label) == [
        "reprogrammer",
        "reprogrammer + residual 0.4 (paper)",
        "reprogrammer + residual (chosen)",
    ]
    chosen = by_label["reprogrammer + residual (chosen)"]
    assert chosen.alphas == (0.2, 0.8)
    assert chosen.get(ID_ACCURACY) == pytest.approx(0.55)
    assert by_label["reprogrammer + residual 0.4 (paper)"].get(ID_ACCURACY) == pytest.approx(0.54)
    assert [(p.alphas, p.get(ID_ACCURACY)) for p in bed.curves["reprogrammer"]] == [
        ((alpha,), pytest.approx(0.5 + alpha / 10)) for alpha in (0, 0.2, 0.4, 0.8)
    ]


def test_an_unmixed_paper_point_is_listed_once():
    points = [point(0.5, chosen=False), point(0.6, alpha=0.5, paper=False)]
    _, by_label = entries([row("wise_ft", 0, *points)])
    assert list(by_label) == ["wise_ft (paper)", "wise_ft + pre-trained (chosen)"]


def test_front_on_three_axes_needs_all_three():
    def measured(id_accuracy, shift, auroc):
        return point(id_accuracy, shifts={"a": shift}, ood={"energy": {"x": auroc}})

    rows = [
        row("best_id", 0, measured(0.9, 0.3, 0.5)),
        row("best_ood", 0, measured(0.6, 0.3, 0.9)),
        row("dominated", 0, measured(0.8, 0.2, 0.5)),
        row("twin_a", 0, measured(0.7, 0.6, 0.6)),
        row("twin_b", 0, measured(0.7, 0.6, 0.6)),
        row("unmeasured", 0, point(0.99, shifts={"a": 0.9})),
    ]
    bed, _ = entries(rows)
    assert [entry.label for entry in bed.front] == ["best_id", "best_ood", "twin_a", "twin_b"]


def test_effective_robustness_is_the_height_over_the_line():
    def logit(p):
        return math.log(p / (1 - p))

    def on_line(z):
        return point(1 / (1 + math.exp(-z)), shifts={"a": 1 / (1 + math.exp(-(0.5 * z - 0.2)))})

    rows = [row(name, 0, on_line(z)) for name, z in (("zero_shot", 0.0), ("lora", 1.0), ("full", 2.0))]
    mixed = [point(0.7, paper=False, chosen=False, shifts={"a": 0.6}), point(0.8, alpha=0.5, shifts={"a": 0.75})]
    bed, by_label = entries([*rows, row("wise_ft", 0, *mixed)])
    assert [entry.label for entry in bed.references] == ["zero_shot", "full", "lora"]
    assert (bed.baseline.slope, bed.baseline.intercept) == (pytest.approx(0.5), pytest.approx(-0.2))
    assert by_label["lora"].get(EFFECTIVE_ROBUSTNESS) == pytest.approx(0, abs=1e-9)
    expected = 0.75 - 1 / (1 + math.exp(-(0.5 * logit(0.8) - 0.2)))
    assert by_label["wise_ft + pre-trained 0.5 (paper)"].get(EFFECTIVE_ROBUSTNESS) == pytest.approx(expected)
    # Two models are no line.
    bed, by_label = entries([*rows[:2], row("wise_ft", 0, *mixed)])
    assert bed.baseline is None
    assert EFFECTIVE_ROBUSTNESS not in by_label["lora"].statistics


def test_noise_is_the_standard_error_of_the_difference():
    one = Statistic(0.50, 0.02, 4)
    assert within_noise(one, Statistic(0.50 + 0.99 * math.hypot(0.01, 0.03), 0.06, 4))
    assert not within_noise(one, Statistic(0.50 + 1.01 * math.hypot(0.01, 0.03), 0.06, 4))
    assert not within_noise(one, Statistic(0.5, None, 1))


def test_the_order_of_rows_does_not_matter():
    rows = [
        row(name, seed, point(0.5 + 0.1 * seed), task=task, shots=shots)
        for name in ("lora", "zero_shot", "full")
        for seed in (0, 1, 2)
        for task in ("a", "b")
        for shots in (16, 4, None)
    ]
    expected = summarize(rows)
    assert [(bed.task, bed.shots) for bed in expected] == [(t, s) for t in "ab" for s in (4, 16, None)]
    assert [entry.label for entry in expected[0].entries] == ["zero_shot", "full", "lora"]
    random.Random(0).shuffle(rows)
    assert summarize(rows) == expected


def test_bad_rows_are_refused():
    with pytest.raises(ValueError, match="empty"):
        summarize([])
    with pytest.raises(ValueError, match="two rows of the cell"):
        summarize([row("lora", 0, point(0.5)), row("lora", 0, point(0.6))])
    with pytest.raises(ValueError, match="'energy' was not measured; there are msp"):
        summarize([row("lora", 0, point(0.5, ood={"msp": {"x": 0.5}}))])
    with pytest.raises(ValueError, match="ID accuracy"):
        summarize([row("lora", 0)])
