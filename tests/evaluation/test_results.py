import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from peft_reprogram.evaluation import ModelMeasures, Results
from peft_reprogram.evaluation.curves import score_curves
from peft_reprogram.evaluation.figures import (
    corruption_heat_map,
    reliability_diagram,
    roc_curves,
    save_figures,
    score_histograms,
    shift_bars,
)
from peft_reprogram.metrics import ood_metrics, reliability_bins, summarize_shifts

from .conftest import CLASSES


HOSTILE = "a|b_c_ <script>alert(1)</script> *x*"


def make_measures(accuracy: float) -> ModelMeasures:
    rng = np.random.default_rng(int(100 * accuracy))
    inside, outside = rng.normal(1, 1, 200), {"far": rng.normal(-1, 1, 90), HOSTILE: rng.normal(0, 1, 110)}
    rates = {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.01, "n": 200}
    confidence = rng.uniform(0.3, 1, 200)
    bins = reliability_bins(confidence, rng.random(200) < accuracy)
    shifts = {"sketch": {**rates, "accuracy": accuracy / 2, "class_accuracy": {}}}
    scores = {"msp": 1.0, "energy": 3.0}
    return ModelMeasures(
        identity="00ff",
        id={**rates, "class_accuracy": dict.fromkeys(CLASSES, accuracy)},
        calibration={
            **dict.fromkeys(("ece", "ece_equal_mass", "nll", "brier", "confidence"), 0.25), "temperature": 1.0, "bins": 15,
        },
        shifts=shifts,
        shift_summary=summarize_shifts({"sketch": accuracy / 2}, accuracy),
        corruptions={"fog": {"1": accuracy, "5": accuracy / 4}, "snow": {"1": 0.1, "5": 0.05}},
        corruption_summary={"none": {"mce": 0.6}},
        ood={name: {key: ood_metrics(f * inside, values) for key, values in outside.items()} for name, f in scores.items()},
        curves={
            "reliability": {name: values.tolist() for name, values in bins.items()},
            "scores": {name: score_curves(f * inside, outside) for name, f in scores.items()},
        },
    )  # fmt: skip


def make_results(**models) -> Results:
    return Results(
        models=models or {"zero_shot": make_measures(0.45), HOSTILE: make_measures(0.6)},
        conventions={"preset": "default", "preset_description": "ID positive", "positive": "id", "tpr": 0.95, "calibration_bins": 15},
        sets={
            "id": {"role": "id", "n": 200, "source": "x", "fingerprint": "1"},
            "sketch": {"role": "shift", "n": 200, "source": "y", "revision": "4f1c2d0", "fingerprint": "2"},
            "far": {"role": "ood", "n": 90, "source": "z", "fingerprint": "3"},
        },
        selection="val",
        seed=3,
        versions={"torch": "2"},
        command="evaluate.py",
    )  # fmt: skip


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.rows = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.tags[-1] in ("td", "th") and data.strip():
            self.rows[-1].append(data)


def test_html_shows_names_as_they_are_and_runs_none_of_them():
    parser = Cells()
    text = make_results().to_html()
    parser.feed(text)
    assert "script" not in parser.tags
    assert [HOSTILE, "60.0", "59.0", "30.0", "30.0", "50.0", "60.0"] in parser.rows
    assert ["two | <b>many</b>", "45.0", "60.0"] in parser.rows
    metrics = make_results().models["zero_shot"].ood["energy"]["far"]
    expected = f"{100 * metrics['auroc']:.1f} / {100 * metrics['fpr']:.1f} / {100 * metrics['fpr_ood_positive']:.1f}"
    assert any(row[:3] == ["energy", "zero_shot", expected] for row in parser.rows)


def test_markdown_tables_have_as_many_cells_as_columns():
    text = make_results().to_markdown()
    assert "<script>" not in text
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
        assert len(widths) == 1, block
    assert "zero_shot" in text
    assert r"a\|b_c\_ &lt;script&gt;" in text
    assert "Weights selected by: val" in text
    assert "Convention default: ID positive." in text


def test_names_and_versions_from_a_file_are_no_markup():
    link = "![t](http://evil.example/t.png)\n\n# Heading"
    results = make_results()
    results.sets = {link: next(iter(results.sets.values())), **results.sets}
    results.versions = {"torch<script>": "1"}
    text = results.to_markdown()
    assert "# Heading" not in [line.strip() for line in text.splitlines()]
    assert "![" not in text
    assert "<script>" not in text


def test_results_survive_a_file_and_keep_curves_on_one_line(tmp_path):
    results = make_results()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    lines = (tmp_path / "results.json").read_text("utf-8").splitlines()
    assert any(line.count(",") > 90 for line in lines)
    assert list(tmp_path.iterdir()) == [tmp_path / "results.json"]


def test_merging_wants_the_same_sets_and_conventions():
    first, second = make_results(a=make_measures(0.4)), make_results(b=make_measures(0.5))
    assert list(first.merged(second).models) == ["a", "b"]
    with pytest.raises(ValueError, match=r"both results have models named \['a'\]"):
        first.merged(first)
    second.sets["id"]["n"] = 7
    with pytest.raises(ValueError, match="differ in `sets`"):
        first.merged(second)


@pytest.mark.parametrize("change", ["missing", "unknown", "selection"])
def test_what_are_no_results_is_refused(change):
    content = make_results().to_dict()
    if change == "missing":
        del content["seed"]
    elif change == "unknown":
        content["models"]["zero_shot"]["accuracy"] = 1
    else:
        content["selection"] = "best"
    message = {"missing": "seed", "unknown": "unknown .*'accuracy'", "selection": "'last', 'val', 'test'"}[change]
    with pytest.raises(ValueError, match=message):
        Results.from_dict(content)


def test_a_model_card_takes_the_numbers_with_their_convention():
    entries = make_results().to_eval_results("zero_shot", "CIFAR-10 (JPEG)", scores=["energy"])
    card = ModelCard(f"---\n{ModelCardData(model_name='adapter', eval_results=entries).to_yaml()}\n---\n")
    (index,) = yaml.safe_load(card.data.to_yaml())["model-index"]
    found = {
        (result["dataset"]["name"], metric["type"]): metric
        for result in index["results"]
        for metric in result["metrics"]
    }
    assert found["CIFAR-10 (JPEG)", "accuracy"]["value"] == 0.45
    auroc = found["far", "auroc"]
    assert auroc["value"] == pytest.approx(make_results().models["zero_shot"].ood["energy"]["far"]["auroc"], abs=1e-6)
    assert auroc["args"]["preset"] == "default"
    assert auroc["args"]["positive"] == "id"
    assert found["far", "fpr_ood_positive"]["name"] == "FPR at TPR 95%, OOD positive (energy)"
    assert found["sketch", "accuracy"]["args"] == {"role": "shift", "n": 200, "selection": "val"}
    revisions = {result["dataset"]["name"]: result["dataset"].get("revision") for result in index["results"]}
    assert {name for name, revision in revisions.items() if revision} == {"sketch"}
    assert revisions["sketch"] == "4f1c2d0"
    with pytest.raises(ValueError, match=r"'knn'.* there are msp, energy"):
        make_results().to_eval_results("zero_shot", "x", scores=["knn"])


def test_figures_show_the_numbers():
    results = make_results()
    measures = results.models["zero_shot"]
    best = max(measures.ood, key=lambda name: np.mean([entry["auroc"] for entry in measures.ood[name].values()]))
    roc = roc_curves(results, model="zero_shot").axes[0]
    assert roc.get_title() == f"{best}, zero_shot"
    np.testing.assert_array_equal(roc.lines[0].get_ydata()[1:], measures.curves["scores"][best]["ood"]["far"]["tpr"])
    assert len(score_histograms(results, "msp", "zero_shot").axes) == 2
    bars = reliability_diagram(results, "zero_shot").axes[0].containers[0]
    np.testing.assert_allclose([bar.get_height() for bar in bars], measures.curves["reliability"]["accuracy"])
    heights = [bar.get_height() for bar in shift_bars(results).axes[0].containers[1]]
    np.testing.assert_allclose(heights, [60, 30])
    image = corruption_heat_map(results, "zero_shot").axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[45, 11.25], [10, 5]])


def test_figures_are_written_whole_and_named_safely(tmp_path):
    paths = save_figures(make_results(), tmp_path / "figures", dpi=50)
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())
    assert len(paths) == 9
    assert all(re.fullmatch(r"[\w.-]+\.png", path.name) and path.read_bytes()[1:4] == b"PNG" for path in paths)


def test_figures_of_what_was_not_measured_say_so():
    results = make_results()
    with pytest.raises(ValueError, match="name one of the models 'zero_shot'"):
        reliability_diagram(results)
    with pytest.raises(ValueError, match="'knn' was not measured; there are msp, energy"):
        roc_curves(results, "knn", "zero_shot")
    bare = make_results(a=ModelMeasures("0", {"accuracy": 1.0}, {}))
    with pytest.raises(ValueError, match="evaluate with `corruptions`"):
        corruption_heat_map(bare)
    with pytest.raises(ValueError, match="evaluate with `ood`"):
        score_histograms(bare)
