from __future__ import annotations

import html
import json
import re
import warnings
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from . import layout
from .calibration import Fitted, read_fitted
from .checks import AdapterContents, check_adapter, read_settings
from .ownership import adapter_identity, name_in
from .weights import read_weights


if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from ..calibration import Calibration
    from ..evaluation import Results

MOST_CLASSES = 50
KINDS = {
    "REPROGRAMMER": "A Reprogrammer",
    "RESIDUAL_REPROGRAMMER": "A Residual Reprogrammer",
    "SURGICAL": "A surgical adapter",
}
TRAINED = {
    "REPROGRAMMER": "a frame of pixels and some text embeddings",
    "RESIDUAL_REPROGRAMMER": "a frame of pixels and some text embeddings",
    "SURGICAL": "one block of layers",
}
REPROGRAMMER_CITATION = """\
@inproceedings{geng2024reprogramming,
  title={Model Reprogramming Outperforms Fine-tuning on Out-of-distribution Data in Text-Image Encoders},
  author={Geng, Andrew and Chen, Pin-Yu},
  booktitle={IEEE Conference on Secure and Trustworthy Machine Learning (SaTML)},
  year={2024},
  note={arXiv:2403.10800}
}"""
SURGICAL_CITATION = """\
@inproceedings{lee2023surgical,
  title={Surgical Fine-Tuning Improves Adaptation to Distribution Shifts},
  author={Lee, Yoonho and Chen, Annie S. and Tajwar, Fahim and Kumar, Ananya and Yao, Huaxiu and Liang, Percy and Finn, Chelsea},
  booktitle={International Conference on Learning Representations},
  year={2023},
  note={arXiv:2210.11466}
}"""
PEFT_CITATION = """\
@misc{peft,
  title={{PEFT}: State-of-the-art Parameter-Efficient Fine-Tuning methods},
  author={Mangrulkar, Sourab and Gugger, Sylvain and Debut, Lysandre and Belkada, Younes and Paul, Sayak and Bossan, Benjamin},
  howpublished={\\url{https://github.com/huggingface/peft}},
  year={2022}
}"""
CITATIONS = {
    "REPROGRAMMER": REPROGRAMMER_CITATION,
    "RESIDUAL_REPROGRAMMER": REPROGRAMMER_CITATION,
    "SURGICAL": SURGICAL_CITATION,
}
# What of a training run is worth a line in the card.
RECIPE = {
    "method": "method",
    "shots": "images of each class",
    "epochs": "epochs",
    "max_steps": "steps at most",
    "batch_size": "batch size",
    "gradient_accumulation_steps": "batches a step",
    "objective": "objective",
    "optimizer": "optimiser",
    "lr": "learning rate",
    "frame_lr": "learning rate of the frame",
    "text_lr": "learning rate of the text rows",
    "weight_decay": "weight decay",
    "lr_scheduler": "schedule",
    "warmup_ratio": "warm-up (share of the steps)",
    "mixed_precision": "precision",
    "selection": "weights selected by",
    "seed": "seed",
}


def make_card(
    folder: Union[str, Path],
    *,
    repo_id: Optional[str] = None,
    license: Optional[str] = None,
    results: Union[Results, str, Path, None] = None,
    model: Optional[str] = None,
    overwrite: bool = False,
) -> ModelCard:
    """
    Write the model card of an adapter, with pictures, into its folder.

    Everything in it is taken from the adapter: its configuration, the results of training and evaluation that lie beside
    it, its threshold. Names of classes and data are escaped, never interpreted. An evaluation of another model, such as an
    earlier adapter in the same folder, is left out with a warning, and so is a threshold or calibration. They are told
    by the fingerprint of the model, for which the adapter is loaded; where its base model is not on this machine, by the one
    that the threshold is bound to, if any.

    Args:
        folder (`str` or `Path`): The adapter, or the image classifier.
        repo_id (`str`, *optional*): Where it will be published, for the title and the example.
        license (`str`, *optional*): Its licence as the Hub writes it, such as `"apache-2.0"`.
        results ([`Results`], `str` or `Path`, *optional*): The evaluation, or its file; `evaluation.json` in the folder by
            default.
        model (`str`, *optional*): Name of the adapter in the results. By default the one with its fingerprint; the folder's
            name or else the last, where that can't be told.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace a card that is there already, with what
            somebody may have added to it.

    Returns:
        `huggingface_hub.ModelCard`: As written to `README.md`.

    Raises:
        FileExistsError: If there is a card, unless it is PEFT's empty form or `overwrite` is given.
        FileNotFoundError: If there are no such results.
        ValueError: If the adapter is broken, the folder holds neither an adapter nor a classifier, or the results have no
            such model.
    """
    contents = check_adapter(folder)
    if contents.peft_config is None and contents.class_names is None:
        raise ValueError(
            f"{folder} holds neither an adapter nor a classifier that names its classes: nothing to describe."
        )
    if has_written_card(contents.folder) and not overwrite:
        raise FileExistsError(
            f"{contents.folder / layout.CARD} is there already, and may have been completed by hand. Move it away, or replace "
            "it with `overwrite=True` (`--overwrite`)."
        )
    return write_card(contents, adapter_identity(contents), repo_id, license, results, model)


def write_card(
    contents: AdapterContents,
    identity: Optional[str],
    repo_id: Optional[str] = None,
    license: Optional[str] = None,
    results: Union[Results, str, Path, None] = None,
    model: Optional[str] = None,
) -> ModelCard:
    """
    [`make_card`] where the adapter's fingerprint is known already.

    Args:
        contents ([`AdapterContents`]): The adapter.
        identity (`str`, *optional*): Its fingerprint, if it can be told.
        repo_id, license, results, model: As for [`make_card`].
    """
    from huggingface_hub import ModelCard

    evaluation, name = _own_results(contents, identity, _load_results(contents, results), model)
    training = (
        read_settings(contents.folder / layout.TRAINING_RESULTS) if contents.has(layout.TRAINING_RESULTS) else {}
    )
    title = repo_id or contents.folder.resolve().name
    card = ModelCard.from_template(
        _card_data(contents, training, evaluation, name, title, license),
        template_str=files(__package__).joinpath("card_template.md").read_text("utf-8"),
        **_text(contents, _own_fitted(contents, identity), training, evaluation, name, title, license),
    )
    card.save(contents.folder / layout.CARD)
    return card


def has_written_card(folder: Path) -> bool:
    """Whether a folder has a card, other than PEFT's form of which nobody has filled in anything."""
    from huggingface_hub import ModelCard

    card, gap = folder / layout.CARD, "[More Information Needed]"
    form = Path(ModelCard.default_template_path).read_text("utf-8")
    return card.is_file() and card.read_text("utf-8").count(gap) < form.count(gap)


def escape(text: Any) -> str:
    """Text of strangers as Markdown shows it literally: no markup, no HTML, no table cells, one line."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~<>-])", r"\\\1", plain)


def _load_results(contents: AdapterContents, results: Union[Results, str, Path, None]) -> Optional[Results]:
    from ..evaluation import Results

    if isinstance(results, Results):
        return results
    if results is None and not contents.has(layout.EVALUATION_RESULTS):
        return None
    if results is not None and not Path(results).is_file():
        raise FileNotFoundError(f"there are no evaluation results {results}.")
    return Results.load(results or contents.folder / layout.EVALUATION_RESULTS)


def _own_results(
    contents: AdapterContents, identity: Optional[str], results: Optional[Results], model: Optional[str]
) -> tuple[Optional[Results], str]:
    """The evaluation and the adapter's name in it, unless it is one of other models."""
    if results is None:
        return None, ""
    own = None if identity is None else name_in(results, identity)
    name = model or own or adapter_name(contents.folder, results)
    if identity is None or results.measures(name).identity == identity:
        return results, name
    warnings.warn(
        f"the evaluation of {name!r} is not one of the adapter in {contents.folder} (their fingerprints differ: another "
        "adapter, base model or version), so the card leaves it out. Evaluate it anew: `peft-reprogram evaluate --adapter "
        f"{contents.folder} --dataset DATA --output {contents.folder / layout.EVALUATION_RESULTS}`.",
        UserWarning,
        stacklevel=4,
    )
    return None, ""


def _own_fitted(contents: AdapterContents, identity: Optional[str]) -> Fitted:
    """Threshold and calibration, unless they are another adapter's."""
    fitted = read_fitted(contents)
    foreign = [file for file, owner in fitted.identities.items() if identity not in (None, owner)]
    if not foreign:
        return fitted
    warnings.warn(
        f"{' and '.join(foreign)} in {contents.folder} was fitted on another model than this adapter (their fingerprints "
        "differ), so the card leaves out threshold and calibration. Fit them anew, with `predictor.calibrate(images)` for "
        "instance.",
        UserWarning,
        stacklevel=4,
    )
    return Fitted(None, None, None)


def adapter_name(folder: Path, results: Results) -> str:
    """
    What an evaluation calls the adapter that it lies beside.

    Args:
        folder (`Path`): The adapter.
        results ([`Results`]): The evaluation.

    Returns:
        `str`: The folder's name if it is among the models, otherwise the last of them: a baseline comes first.
    """
    own = folder.resolve().name
    return own if own in results.models else list(results.models)[-1]


def _card_data(
    contents: AdapterContents,
    training: Mapping[str, Any],
    results: Optional[Results],
    name: str,
    title: str,
    license: Optional[str],
) -> Any:
    from huggingface_hub import ModelCardData

    recipe = training.get("recipe") or {}
    dataset = _hub_name(recipe.get("dataset"))
    kind = _peft_type(contents)
    tags = ["peft-reprogram", "robustness", "out-of-distribution-detection", "adapter", kind.lower().replace("_", "-")]
    return ModelCardData(
        base_model=_hub_name(contents.base_model),
        library_name="peft",
        license=license,
        pipeline_tag="image-classification",
        tags=tags,
        datasets=None if dataset is None else [dataset],
        metrics=["accuracy"] if results else None,
        model_name=title,
        eval_results=results.to_eval_results(name, _id_name(recipe, results)) if results else None,
    )


def _text(
    contents: AdapterContents,
    fitted: Fitted,
    training: Mapping[str, Any],
    results: Optional[Results],
    name: str,
    title: str,
    license: Optional[str],
) -> dict[str, Any]:
    kind = _peft_type(contents)
    recipe = training.get("recipe") or {}
    base = _hub_name(contents.base_model)
    threshold = fitted.threshold or (fitted.calibration and fitted.calibration.threshold)
    score = threshold.score if threshold else None
    return {
        "title": escape(title.rpartition("/")[2]),
        "kind": KINDS.get(kind, f"A {escape(kind)} adapter") if contents.peft_config else "A classifier",
        "base": f"[{escape(base)}](https://huggingface.co/{base})"
        if base
        else "a model that its author keeps"
        if contents.base_model
        else "an unnamed base model",
        "num_classes": "its" if contents.class_names is None else len(contents.class_names),
        "frame_picture": _draw_frame(contents),
        "usage": _usage(title),
        "usage_notes": "`predict` takes paths, addresses, PIL images, arrays or a column of a `datasets.Dataset`; pass "
        '`revision="..."` with a commit to get the same adapter for ever.',
        "peft_usage": _peft_usage(contents, title, base),
        "peft_type": kind,
        "classes": _classes(contents),
        "templates": " and ".join(f"`{text.replace('`', chr(39))}`" for text in (contents.templates or [])[:10])
        if contents.is_zero_shot
        else "",
        # A level lower than in a report; and no tag of theirs survives, wherever a name went.
        "results": re.sub("^### ", "#### ", results.to_markdown(), flags=re.M).replace("<", "&lt;") if results else "",
        "selection": results.selection if results else "",
        "model_name": escape(name),
        "pictures": _draw_results(contents, results, name),
        "score_note": f"Here it is `{re.sub(r'[^a-z0-9_]', '', str(score))}`."
        if score
        else "By default it is "
        + ("`mcm`, the largest softmax of the cosines." if contents.is_zero_shot else "`msp`, the largest softmax."),
        "threshold": threshold
        and {"value": f"{threshold.value:.4g}", "tpr": f"{threshold.tpr:.1%}", "n": f"{threshold.n:,}"},
        "calibration": _calibration(fitted.calibration),
        "recipe": _recipe(training, recipe),
        "data": _data(recipe, results),
        "trained": TRAINED.get(kind, f"{training['trainable_parameters']:,} numbers" if training else "few weights"),
        "cost": _cost(training),
        "license": f"{escape(license)}. The base model has a licence of its own."
        if license
        else "Not stated by its author.",
        "citation": "\n\n".join([CITATIONS[kind], PEFT_CITATION] if kind in CITATIONS else [PEFT_CITATION]),
    }


def _usage(title: str) -> str:
    return f"""\
import peft_reprogram.hub

predictor = peft_reprogram.hub.load_classifier({json.dumps(title)})
for prediction in predictor.predict(["photo.jpg", "another.png"]):
    print(prediction.label, f"{{prediction.probability:.1%}}", prediction.score, prediction.is_ood)"""


def _peft_usage(contents: AdapterContents, title: str, base: Optional[str]) -> str:
    auto_class = "AutoModel" if contents.is_zero_shot else "AutoModelForImageClassification"
    labels = (
        ""
        if contents.is_zero_shot
        else f", num_labels={len(contents.class_names or [])}, ignore_mismatched_sizes=True"
    )
    if contents.peft_config is None:
        return f"""\
import peft_reprogram
from transformers import {auto_class}

model = {auto_class}.from_pretrained({json.dumps(title)})"""
    return f"""\
import peft_reprogram
from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained({json.dumps(base or "the base model")}{labels})
model = PeftModel.from_pretrained(base, {json.dumps(title)})"""


def _classes(contents: AdapterContents) -> str:
    names = contents.class_names
    if names is None:
        return "The names of the classes were not recorded: pass `class_names=[...]` to `load_classifier`."
    more = f" and {len(names) - MOST_CLASSES:,} more" if len(names) > MOST_CLASSES else ""
    return ", ".join(escape(name) for name in names[:MOST_CLASSES]) + more + "."


def _calibration(calibration: Optional[Calibration]) -> list[str]:
    """What acts on the logits, in its order."""
    if calibration is None:
        return []
    steps = []
    if calibration.temperature is not None:
        value, n = calibration.temperature.value, calibration.temperature.n
        steps.append(f"The logits are divided by the temperature {value:.4g}, which was fitted on {n:,} images.")
    if calibration.gamma is not None:
        absent = [calibration.gamma.class_names[index] for index in calibration.gamma.absent_classes]
        more = f" and {len(absent) - MOST_CLASSES:,} more" if len(absent) > MOST_CLASSES else ""
        steps.append(
            f"{calibration.gamma.gamma:.4g} is added to the logits of the classes that it was not fine-tuned on: "
            f"{', '.join(map(escape, absent[:MOST_CLASSES]))}{more} (arXiv 2409.16223)."
        )
    if calibration.threshold is not None:
        steps.append("The out-of-distribution score of the result is compared to the threshold below.")
    return steps


def _recipe(training: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    values = {**training, **(training.get("config") or {}), **recipe}
    rows = [(title, escape(values[key])) for key, title in RECIPE.items() if values.get(key) is not None]
    if training:
        rows.append(("trained numbers", f"{training['trainable_parameters']:,}"))
        validation = training.get("validation")
        if validation:
            rows.append(("validation accuracy", f"{validation['accuracy']:.1%} (epoch {training['selected_epoch']})"))
    return rows


def _data(recipe: Mapping[str, Any], results: Optional[Results]) -> str:
    lines = []
    dataset = recipe.get("dataset")
    if dataset:
        shown = (
            f"[{escape(dataset)}](https://huggingface.co/datasets/{dataset})"
            if _hub_name(dataset)
            else escape(Path(str(dataset)).name)
        )
        revision = f", revision {escape(recipe['dataset_revision'])}" if recipe.get("dataset_revision") else ""
        lines.append(f"- training: {shown}, split {escape(recipe.get('train_split', 'train'))}{revision}")
    if results is not None:
        lines += [
            f"- {escape(entry['role'])}: {escape(name)}, {entry['n']:,} images{_revision(entry)} (fingerprint "
            f"`{re.sub('[^0-9a-f]', '', str(entry['fingerprint'] or '')) or 'none'}`)"
            for name, entry in results.sets.items()
        ]
    return "\n".join(lines) or "Which images it was trained on was not recorded."


def _revision(entry: Mapping[str, Any]) -> str:
    return f", revision {escape(entry['revision'])}" if entry.get("revision") else ""


def _cost(training: Mapping[str, Any]) -> str:
    if not training:
        return "Not recorded."
    return (
        f"Training took {training['steps']:,} steps in {training['seconds']:,.0f} s on {training['processes']} process(es), "
        f"device `{re.sub(r'[^a-z0-9:]', '', str(training['device']))}`. Its energy was not measured."
    )


def _id_name(recipe: Mapping[str, Any], results: Results) -> str:
    dataset = str(recipe.get("dataset") or "").rstrip("/").rpartition("/")[2]
    return dataset or results.sets["id"]["source"].split(" (")[0].rpartition("/")[2] or "in-distribution"


def _peft_type(contents: AdapterContents) -> str:
    return contents.peft_config["peft_type"] if contents.peft_config else "MODEL"


def _hub_name(name: Any) -> Optional[str]:
    """The name if it is one on the Hub; folders of the author's machine are nobody's business."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not isinstance(name, str):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name


def _draw_frame(contents: AdapterContents) -> Optional[str]:
    """The frame as it adds to a grey image, in `pictures/frame.png`."""
    import torch
    from PIL import Image

    from ..tuners.reprogrammer.functional import FrameGeometry, unpack_frame

    key = next((name for name in contents.tensors if name.endswith("reprogrammer_frame")), None)
    if key is None or contents.peft_config is None:
        return None
    config = contents.peft_config
    geometry = FrameGeometry(*(tuple(config[name]) for name in ("image_size", "frame_inner", "up_resolution")))
    change = torch.tanh(unpack_frame(read_weights(contents.weights)[key].float(), geometry))
    pixels = (0.5 + 0.5 * change).mul(255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    factor = max(1, 256 // min(picture.size))
    path = contents.folder / layout.PICTURES / "frame.png"
    path.parent.mkdir(exist_ok=True)
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(path)
    return f"{layout.PICTURES}/{path.name}"


def _draw_results(contents: AdapterContents, results: Optional[Results], name: str) -> list[dict[str, str]]:
    from importlib.util import find_spec

    if results is None or find_spec("matplotlib") is None:
        return []
    from dataclasses import replace

    from ..evaluation.figures import save_figures

    own = replace(results, models={"adapter": results.measures(name)})
    return [
        {"title": path.stem.replace("_adapter", "").replace("_", " "), "path": f"{layout.PICTURES}/{path.name}"}
        for path in save_figures(own, contents.folder / layout.PICTURES)
    ]
