import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

from peft_reprogram.calibration import Calibration, GammaCalibrator, Temperature
from peft_reprogram.hub import load_classifier, make_card
from peft_reprogram.hub.card import escape


CLASSES = ["zero", "one", "two | <b>many</b>"]
TRAINING = {
    "steps": 40,
    "seconds": 12.3,
    "images_per_second": 104.1,
    "trainable_parameters": 5432,
    "selection": "val",
    "selected_epoch": 3,
    "validation": {"accuracy": 0.875, "loss": 0.4},
    "history": [],
    "seed": 0,
    "config": {"output_dir": "/home/somebody/runs", "epochs": 4, "lr": 0.0005, "optimizer": "adamw", "batch_size": 32},
    "recipe": {
        "model": "/home/somebody/models/base",
        "method": "residual_reprogrammer",
        "dataset": "alice/digits|of <many>",
        "train_split": "train",
        "shots": 16,
        "class_names": CLASSES,
    },
    "processes": 1,
    "mixed_precision": "no",
    "device": "cpu",
    "command": "scripts/train.py",
    "versions": {},
}


@pytest.fixture
def evaluated(adapter, results, pictures) -> Path:
    """An adapter with all that training, evaluation and calibration leave beside it."""
    (adapter / "results.json").write_text(json.dumps(TRAINING))
    results.save(adapter / "evaluation.json")
    predictor = load_classifier(adapter)
    predictor.calibrate(pictures)
    predictor.save_calibration(adapter)
    return adapter


NUMBER = r"-?[\d.,]+(e-?\d+)?"
WHOLE_CARD = rf"""---
library_name: peft
license: mit
metrics:
- accuracy
pipeline_tag: image-classification
tags:
- peft-reprogram
- robustness
- out-of-distribution-detection
- adapter
- residual-reprogrammer
model-index:
- name: alice/adapter
  results:
(  .*\n)+---

# adapter

A Residual Reprogrammer of a model that its author keeps that sorts images into 3 classes and says when .* none of them\.

!\[The trained frame .*\]\(pictures/frame\.png\)

\*The trained frame .*\*

## How to use it

```python
import peft_reprogram.hub

predictor = peft_reprogram\.hub\.load_classifier\("alice/adapter"\)
(.*\n){{2}}```

.*`predict` takes .*

With PEFT alone.*

```python
import peft_reprogram
(.*\n)+model = PeftModel\.from_pretrained\(base, "alice/adapter"\)
```

If PEFT does not know the type `RESIDUAL_REPROGRAMMER`, the line `import peft_reprogram` is missing.*

## Classes

zero, one, two \\\| &lt;b&gt;many&lt;/b&gt;\.

The text tower reads each name within `a photo of a \{{\}}`\.

## Results

Measured by `peft-reprogram evaluate` on weights selected by `last`; this adapter is the row adapter\.

#### Accuracy \(%\)
(.*\n)+?\n#### Out-of-distribution detection \(%\)
(.*\n)+?\n#### Calibration on the in-distribution set
(.*\n)+?
!\[reliability\]\(pictures/reliability_adapter\.png\)

!\[roc\]\(pictures/roc_adapter\.png\)

!\[histograms\]\(pictures/histograms_adapter\.png\)

!\[shifts\]\(pictures/shifts\.png\)

### What the out-of-distribution numbers mean

The score says .* Here it is `mcm`\.

`is_ood` is true below {NUMBER}, chosen so that at least 95\.0% of 5 held-out in-distribution images stay above it\. .*

AUROC is the chance .* FPR at TPR 95 % is .* convention is written beside the numbers\.

## Training

\| \| \|
\| --- \| --- \|
\| method \| residual\\_reprogrammer \|
\| images of each class \| 16 \|
(\| [^|]+ \| [^|]+ \|\n)+\| trained numbers \| 5,432 \|
\| validation accuracy \| 87\.5% \(epoch 3\) \|

## Data

- training: digits\\\|of &lt;many&gt;, split train
- id: id, 12 images \(fingerprint `[0-9a-f]+`\)
- shift: ink \\\| &lt;i&gt;blots&lt;/i&gt;, 9 images \(fingerprint `[0-9a-f]+`\)
- ood: noise, 8 images \(fingerprint `[0-9a-f]+`\)

## Limits

(- .*\n){{4}}
## Time and energy

Training took 40 steps in 12 s on 1 process\(es\), device `cpu`\. .*

## Licence

mit\. The base model has a licence of its own\.

## Citation

```bibtex
@inproceedings\{{geng2024reprogramming,
(.*\n)+@misc\{{peft,
(.*\n)+```
?"""


def test_whole_card(evaluated):
    make_card(evaluated, repo_id="alice/adapter", license="mit")
    text = (evaluated / "README.md").read_text()
    # Section by section first, which shows where it differs.
    for section, pattern in zip(re.split(r"\n(?=#{1,3} )", text), re.split(r"\n(?=#{1,3} )", WHOLE_CARD)):
        assert re.fullmatch(pattern, section), f"{pattern}\n--- does not match ---\n{section}"
    assert re.fullmatch(WHOLE_CARD, text)
    assert "/home/somebody" not in text
    assert str(evaluated.parent) not in text


def test_metadata_are_those_of_results_and_configuration(evaluated, results):
    config = json.loads((evaluated / "adapter_config.json").read_text())
    (evaluated / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "alice/not-here"}))
    make_card(evaluated, repo_id="alice/adapter", license="apache-2.0")
    data = ModelCard.load(evaluated / "README.md").data
    assert (data.base_model, data.library_name, data.license) == ("alice/not-here", "peft", "apache-2.0")
    measures = results.measures("adapter")
    found = {(entry.metric_type, entry.dataset_name): entry.metric_value for entry in data.eval_results}
    assert found["auroc", "noise"] == pytest.approx(measures.ood["mcm"]["noise"]["auroc"], abs=1e-6)
    assert found["accuracy", "ink | <i>blots</i>"] == pytest.approx(
        measures.shifts["ink | <i>blots</i>"]["accuracy"], abs=1e-6
    )
    auroc = next(entry for entry in data.eval_results if entry.metric_type == "auroc")
    assert auroc.metric_args["preset"] == "default"
    assert auroc.metric_args["positive"] == measures.ood["mcm"]["noise"]["positive"]


def test_revisions_of_the_data_are_stated(evaluated, results):
    sets = {
        name: {**entry, "revision": "4f1c2d0" if name == "noise" else None} for name, entry in results.sets.items()
    }
    card = make_card(evaluated, results=replace(results, sets=sets))
    revisions = {(entry.dataset_name, entry.dataset_revision) for entry in card.data.eval_results}
    assert revisions == {("digits|of <many>", None), ("ink | <i>blots</i>", None), ("noise", "4f1c2d0")}
    assert "- ood: noise, 8 images, revision 4f1c2d0 (fingerprint `" in card.text


def test_pictures_show_the_frame_and_the_results(evaluated):
    card = make_card(evaluated)
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text)
    assert len(linked) == 5
    for path in linked:
        with PILImage.open(evaluated / path) as picture:
            assert picture.format == "PNG"
    pixels = np.asarray(PILImage.open(evaluated / "pictures" / "frame.png"))
    assert pixels.shape == (256, 256, 3)
    inner = pixels[16:-16, 16:-16]  # 2 of 32 pixels are the frame, drawn eight times as large
    assert (inner == 128).all()
    assert pixels[:16].std() > 20


def test_text_of_strangers_is_shown_and_not_interpreted(evaluated, results):
    markdown_it = pytest.importorskip("markdown_it")
    hostile = ["<script>alert(1)</script>", "[click](http://x)", "`code` | *bold* ![p](q)"]
    content = json.loads((evaluated / "zero_shot_classifier.json").read_text())
    (evaluated / "zero_shot_classifier.json").write_text(json.dumps({**content, "class_names": hostile}))
    (evaluated / "ood_threshold.json").unlink()  # bound to the classes of before, as the evaluation is
    measures = replace(results.measures("adapter"), identity=load_classifier(evaluated).identity)
    card = make_card(evaluated, repo_id="alice/adapter", results=replace(results, models={"adapter": measures}))
    rendered = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    for tag in ("<script", "<b>", "<i>blots", "<strong", 'href="http://x"', "<em>bold"):
        assert tag not in rendered
    text = re.sub(r"<[^>]+>", "", rendered)
    for name in ("&lt;script&gt;alert(1)&lt;/script&gt;", "[click](http://x)", "`code` | *bold* ![p](q)", "ink | "):
        assert name in text
    for row in re.findall(r"<tr>(.*?)</tr>", rendered, flags=re.S):
        assert row.count("<t") > 1


def test_escape():
    assert escape("a|b") == r"a\|b"
    assert escape("<b>\n# x") == r"&lt;b&gt; \# x"
    assert escape("{{ 7 * 7 }}") == r"\{\{ 7 \* 7 \}\}"


def test_card_without_anything_to_say(vit_adapter):
    card = make_card(vit_adapter)
    for sentence in (
        "No evaluation was published",
        "How it was trained was not recorded",
        "Which images it was trained on was not recorded",
        "No threshold comes with this adapter",
        "Not stated by its author",
        "AutoModelForImageClassification",
    ):
        assert sentence in card.text
    assert card.data.eval_results is None
    assert "license" not in card.data.to_dict()


def test_results_of_another_model_are_refused(evaluated, results, tmp_path):
    with pytest.raises(ValueError, match="name one of the models"):
        make_card(evaluated, model="nobody")
    shutil.move(evaluated / "evaluation.json", tmp_path / "elsewhere.json")
    card = make_card(evaluated, results=tmp_path / "elsewhere.json", model="adapter")
    assert card.data.eval_results


def test_an_evaluation_of_an_earlier_adapter_is_left_out(evaluated, results):
    weights = load_file(evaluated / "adapter_model.safetensors")
    (evaluated / "ood_threshold.json").unlink()  # bound to the earlier adapter as well
    save_file({name: tensor + 0.5 for name, tensor in weights.items()}, evaluated / "adapter_model.safetensors")
    with pytest.warns(
        UserWarning, match="the evaluation of 'adapter' is not one of the adapter in .*Evaluate it anew"
    ):
        card = make_card(evaluated)
    assert "No evaluation was published" in card.text
    assert card.data.eval_results is None
    auroc = results.measures("adapter").ood["mcm"]["noise"]["auroc"]
    assert f"{100 * auroc:.1f}" not in card.text.split("## Training")[0].split("## Results")[1]


def test_a_threshold_of_an_earlier_adapter_is_left_out(evaluated):
    assert "`is_ood` is true below" in make_card(evaluated).text
    weights = load_file(evaluated / "adapter_model.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in weights.items()}, evaluated / "adapter_model.safetensors")
    (evaluated / "evaluation.json").unlink()
    with pytest.warns(UserWarning, match=r"ood_threshold\.json in .* was fitted on another model than this adapter"):
        card = make_card(evaluated, overwrite=True)
    assert "`is_ood` is true below" not in card.text
    assert "No threshold comes with this adapter" in card.text
    assert "and says when an image belongs to none of them" not in card.text


def test_a_calibration_is_stated_in_its_order(evaluated, pictures):
    gamma = GammaCalibrator(0.75, CLASSES, [0, 1], temperature=2.0)
    Calibration(Temperature(2.0, 4321), gamma).save_pretrained(evaluated)
    section = make_card(evaluated).text.split("## Calibration\n")[1].split("\n## ")[0]
    assert (
        "1. The logits are divided by the temperature 2, which was fitted on 4,321 images.\n2. 0.75 is added"
        in section
    )
    assert "not fine-tuned on: two \\| &lt;b&gt;many&lt;/b&gt; (arXiv 2409.16223)." in section
    assert "The numbers below were measured without it." in section
    # By the threshold of the uncalibrated outputs.
    assert "`is_ood` is true below" in make_card(evaluated, overwrite=True).text


def test_an_evaluation_finds_its_adapter_under_any_name(evaluated, results):
    first, own = results.models.values()
    renamed = replace(results, models={"run 7": own, "last": first})
    card = make_card(evaluated, results=renamed)
    assert "this adapter is the row run 7" in card.text


def test_without_the_base_model_the_threshold_tells_whose_the_evaluation_is(evaluated):
    for name, key, value in (
        ("adapter_config.json", "base_model_name_or_path", "alice/not-here"),
        ("ood_threshold.json", "identity", "0" * 32),
    ):
        content = json.loads((evaluated / name).read_text())
        assert key in content
        (evaluated / name).write_text(json.dumps({**content, key: value}))
    with pytest.warns(UserWarning, match="their fingerprints differ"):
        assert make_card(evaluated).data.eval_results is None
    (evaluated / "ood_threshold.json").unlink()
    assert make_card(evaluated, overwrite=True).data.eval_results
