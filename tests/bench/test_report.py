import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_reprogram.bench.columns import Column, cells, count, percent, seconds, signed_percent, size
from peft_reprogram.bench.label_placement import place_labels
from peft_reprogram.bench.markdown import to_markdown
from peft_reprogram.bench.report import render_report, write_report
from peft_reprogram.bench.statements import fairness_statement, front_statement, searches
from peft_reprogram.bench.summary import ID_ACCURACY, summarize

from .bench_rows import point, row


VOID = {"meta", "wbr", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements close in order, and collects what a browser would see."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.ids, self.references, self.text = [], set(), [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                self.references.append(value)
            assert not name.startswith("on"), (tag, name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def study():
    rows = []
    for shots in (4, 16):
        for seed in range(3):
            noise = 0.01 * (seed - 1)

            def measured(id_accuracy, noise=noise, **more):
                value = id_accuracy + noise
                ood = {"energy": {"far": value, "rest": value - 0.1}, "msp": {"far": value - 0.1, "rest": value - 0.2}}
                shifts = {"natural": value - 0.1, "sketch": value - 0.3}
                return point(value, shifts=shifts, corruptions={"fog": value / 2, "snow": value / 3}, ood=ood, **more)

            here = {"shots": shots, "study": {"roles": {"near": ["rest"]}}}
            trials = [{"options": {"lr": lr}, "validation_accuracy": 0.6 - lr, "seconds": 2.0} for lr in (0.01, 0.1)]
            tried = {"trials": trials, "options": {"lr": 0.01}, **here}
            rows.append(row("zero_shot", seed, measured(0.55, noise=0), trained_parameters=0, **here))
            rows.append(row("full", seed, measured(0.70), trained_parameters=5_000_000, **tried))
            rows.append(row("lora", seed, measured(0.699), trained_parameters=20_000, **tried))
            if seed < 2:
                rows.append(row("coop", seed, measured(0.60), trained_parameters=800, **tried))
            curve = [
                measured(0.6 + alpha * (1 - alpha), alpha=alpha or None, paper=alpha == 0.4, chosen=alpha == 0.2)
                for alpha in (0, 0.2, 0.4, 0.8)
            ]
            rows.append(row("reprogrammer", seed, *curve, trained_parameters=1200, **tried))
    return rows


def test_the_report_needs_nothing_else(tmp_path):
    write_report(study(), tmp_path / "deep" / "report.html")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]
    page = (tmp_path / "deep" / "report.html").read_text("utf-8")
    found = Page(page)
    assert not found.tags & {"script", "link", "img", "iframe"}
    assert all(reference.startswith("#") for reference in found.references)
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(found.ids) == len(set(found.ids))
    assert {reference[1:] for reference in found.references} <= set(found.ids)
    assert page.count("<svg") == 4
    assert not re.search("#00a00[0-9]|#00b00[0-9]", page), "a stand-in for a colour of the page was left"


def test_the_report_is_the_same_for_the_same_rows():
    rows = study()
    assert render_report(rows) == render_report(rows[::-1])


def test_nothing_is_written_if_the_rows_are_bad(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        write_report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_marks_and_seeds_in_cells():
    bed = summarize(study())[0]
    found = dict(zip((e.label for e in bed.entries), cells(bed, Column("ID accuracy", ID_ACCURACY, percent, 1))))
    assert found["reprogrammer + residual 0.4 (paper)"].mark == "best"
    assert found["full"].text == "70.0"
    assert found["full"].spread == "1.0"
    assert found["full"].mark == ""
    assert (found["coop"].seeds, found["full"].seeds) == (2, None)
    two = [row(name, seed, point(mean + 0.01 * seed)) for name, mean in (("a", 0.5), ("b", 0.503)) for seed in (0, 1)]
    (bed,) = summarize(two)
    assert [cell.mark for cell in cells(bed, Column("ID accuracy", ID_ACCURACY, percent, 1))] == ["noise", "best"]
    assert [cell.mark for cell in cells(bed, Column("error", ID_ACCURACY, percent, -1))] == ["best", "noise"]
    (bed,) = summarize([entry for entry in two if entry["cell"]["seed"] == 0])
    assert [cell.mark for cell in cells(bed, Column("ID accuracy", ID_ACCURACY, percent, 1))] == ["", "best"]


def test_sentence_on_the_front():
    def measured(id_accuracy, shift):
        return point(id_accuracy, shifts={"a": shift})

    rows = [
        row("zero_shot", 0, measured(0.5, 0.5), trained_parameters=0),
        row("lora", 0, measured(0.6, 0.4), trained_parameters=20_000),
        row("full", 0, measured(0.7, 0.3), trained_parameters=5_000_000),
        row("worse", 0, measured(0.4, 0.3), trained_parameters=10),
    ]
    (bed,) = summarize(rows)
    assert front_statement(bed) == (
        "Pareto front of ID accuracy and mean shift accuracy: zero_shot, full and lora. Fewest trained parameters on it: "
        "zero_shot (0). Among those of them that train anything: lora (20 k)."
    )


def test_sentence_on_the_budget():
    def tried(name, accuracies, chosen):
        trials = [{"options": {"lr": i}, "validation_accuracy": a, "seconds": 1.0} for i, a in enumerate(accuracies)]
        return row(name, 0, point(0.5), trials=trials, options={"lr": chosen, "weight_decay": 0.1})

    nothing = [{"options": {}, "validation_accuracy": 0.4, "seconds": 0.0}]
    zero_shot = row("zero_shot", 0, point(0.4), trials=nothing)
    (bed,) = summarize([zero_shot, tried("a", [0.1, 0.3], 1), tried("b", [0.3, 0.2], 0)])
    assert fairness_statement(bed) == (
        "The same budget for every strategy that has hyper-parameters: 2 trials each. Nothing was tried for zero_shot. "
        "Each choice is the trial of the highest validation accuracy."
    )
    assert [[chosen for *_, chosen in search.trials] for search in searches(bed)] == [[False, True], [True, False]]
    (bed,) = summarize([tried("a", [0.1, 0.3], 0), tried("b", [0.3], 0)])
    assert fairness_statement(bed) == (
        "The budgets differ: 1 trial for b; 2 trials for a. The choice is not the trial of the highest validation accuracy "
        "for a."
    )


def test_markdown_tables_are_whole():
    text = to_markdown(study())
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
        assert len(table.splitlines()) == 2 + 7
    assert "**84.0 ± 1.0**" in text
    assert "(n=2)" in text
    assert "score energy" in text


def test_numbers_as_people_write_them():
    assert [count(value) for value in (0, 12, 999, 999.6, 1000, 25_600, 999_900, 5_300_000, 2e9)] == [
        "0", "12", "999", "1 k", "1 k", "25.6 k", "1 M", "5.3 M", "2 G",
    ]  # fmt: skip
    assert [size(800), size(21_200_000)] == ["800 B", "21.2 MB"]
    assert [seconds(0.04), seconds(9.96), seconds(123.4)] == ["0.0", "10", "123"]
    assert [signed_percent(value) for value in (0.0124, -0.0124, 0.0001, -0.0001)] == ["+1.2", "−1.2", "0.0", "0.0"]


def test_labels_keep_clear_of_each_other():
    points = np.random.default_rng(0).uniform(60, 240, (30, 2))
    points[10:20] = points[0] + np.random.default_rng(1).uniform(-6, 6, (10, 2))
    sizes = np.tile([11.0, 8.0], (30, 1))
    centres = place_labels(points, sizes, points, (0, 300, 0, 300), np.full(30, 3.0))
    gaps = np.abs(centres[:, None] - centres[None])
    overlapping = (gaps[..., 0] < 11 - 1e-9) & (gaps[..., 1] < 8 - 1e-9)
    assert overlapping.sum() == 30, "each label overlaps itself alone"
    assert np.all(centres >= [5.5, 4])
    assert np.all(centres <= [294.5, 296])


def test_names_are_escaped():
    evil = '"><script>alert(1)</script>'
    measured = point(0.5, shifts={evil: 0.4}, corruptions={evil: 0.3}, ood={evil: {evil: 0.6}})
    trials = [{"options": {evil: evil}, "validation_accuracy": 0.5, "seconds": 1.0}]
    more = {"model": evil, "task": evil, "trials": trials, "options": {evil: evil}}
    more |= {"selection": evil, "command": evil, "versions": {evil: evil}}
    page = render_report([row(evil, 0, measured, point(0.6, alpha=0.5), **more)], evil)
    assert "script" not in Page(page).tags
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10
    assert "<script" not in to_markdown([row(evil, 0, measured, **more)], evil)


NAMES = st.one_of(
    st.sampled_from(["<b>", "zero_shot", "$x_1$", "a|b", "</style>", '"><script>alert(1)</script>', "{{ 7 * 7 }}", "&amp;"]),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=8),
)  # fmt: skip
RATES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@st.composite
def stores(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    sets = draw(st.lists(NAMES, max_size=2, unique=True))
    scores = draw(st.lists(st.one_of(st.just("energy"), NAMES), max_size=2, unique=True))
    rows = []
    for shots in draw(st.lists(st.one_of(st.none(), st.integers(1, 64)), min_size=1, max_size=2, unique=True)):
        for name in names:
            alphas = draw(st.sampled_from([[None], [0.5], [None, 0.4, 0.8], [0.0, 1.0]]))
            for seed in draw(st.sets(st.integers(0, 3), min_size=1, max_size=2)):
                chosen = draw(st.sampled_from(alphas))
                points = [
                    point(
                        draw(RATES),
                        alpha=alpha,
                        paper=len(alphas) == 1 or alpha == 0.4,
                        chosen=alpha == chosen,
                        shifts={s: draw(RATES) for s in sets if draw(st.booleans())},
                        corruptions=draw(st.dictionaries(NAMES, RATES, max_size=2)),
                        ood={score: {s: draw(RATES) for s in sets} for score in scores if draw(st.booleans())},
                    )
                    for alpha in alphas
                ]
                options = draw(st.dictionaries(NAMES, st.one_of(st.integers(), NAMES), max_size=2))
                accuracy = draw(st.one_of(st.none(), RATES))
                trials = [{"options": options, "validation_accuracy": accuracy, "seconds": 1.0}]
                more = {"options": options, "trials": trials if draw(st.booleans()) else []}
                parameters = draw(st.integers(0, 10**10))
                rows.append(row(name, seed, *points, shots=shots, trained_parameters=parameters, task="<i>", **more))
    return rows


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(stores())
def test_any_rows_make_a_report(rows):
    scores = sorted({score for entry in rows for p in entry["points"] for score in p["ood"]})
    score = "energy" if "energy" in scores or not scores else scores[0]
    found = Page(render_report(rows, score))
    assert not found.tags & {"script", "iframe"}
    text = "".join(found.text)
    assert all(entry["cell"]["strategy"] in text for entry in rows)
    assert "<i>" in text
    markdown = to_markdown(rows, score)
    assert not re.search("<(script|b|i|/style)>", markdown)
    for table in (block for block in markdown.split("\n\n") if block.startswith("| strategy")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
