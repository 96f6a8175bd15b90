"""A page to try an adapter in the browser; needs the extra `app`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import torch

from .hub import Prediction, Predictor, layout, load_classifier
from .hub.card import adapter_name, escape
from .hub.download import fetch


if TYPE_CHECKING:
    import gradio
    from matplotlib.figure import Figure
    from PIL.Image import Image

ID_COLOR, OOD_COLOR, THRESHOLD_COLOR = "#2a78b5", "#d1662c", "#444444"


def build_app(
    path_or_repo: Union[str, Path],
    *,
    model: Union[str, Path, None] = None,
    revision: Optional[str] = None,
) -> gradio.Blocks:
    """
    A page on which one drops an image and sees its class, whether it is in distribution, where its score lies among those
    of the evaluation, and the image as the model gets it.

    Args:
        path_or_repo (`str` or `Path`): The adapter, as for [`~peft_reprogram.hub.load_classifier`].
        model (`str` or `Path`, *optional*): The base model, where the adapter names none that is here.
        revision (`str`, *optional*): Branch, tag or commit of its repository.

    Returns:
        `gradio.Blocks`: Start it with `.launch()`.

    Raises:
        ImportError: If gradio or matplotlib is not installed.
    """
    try:
        import gradio as gr
        import matplotlib  # noqa: F401 (of which the histogram is made)
    except ImportError as error:
        raise ImportError(f"the app needs {error.name}: pip install 'peft-reprogram[app]'.") from error

    folder = fetch(path_or_repo, revision=revision)
    predictor = load_classifier(folder, model=model)
    # An evaluation scores the model's own outputs, which are not comparable with calibrated ones.
    calibrated = predictor.calibration.threshold is not None
    curves = None if calibrated else _load_curves(folder, predictor.score.name)

    def classify(image: Optional[Image]) -> tuple[Any, str, Any, Any]:
        if image is None:
            return None, "", None, None
        prediction = predictor.predict(image)
        assert isinstance(prediction, Prediction)
        return (
            prediction.probabilities,
            verdict(prediction, predictor),
            draw_score(prediction, predictor, curves),
            reprogrammed_image(predictor, image),
        )

    # Nothing about who tries what is sent anywhere.
    with gr.Blocks(title="peft-reprogram", analytics_enabled=False) as page:
        gr.Markdown(f"# {escape(Path(str(path_or_repo)).name)}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="pil", label="Image", height=320)
                seen = gr.Image(label="What the model sees", height=260, interactive=False)
            with gr.Column():
                decision = gr.Markdown(elem_id="verdict")
                label = gr.Label(label="Class", num_top_classes=5)
                histogram = gr.Plot(show_label=False)
        image.change(classify, image, [label, decision, histogram, seen])
    return page


def verdict(prediction: Prediction, predictor: Predictor) -> str:
    """
    What to tell about an image, in Markdown.

    Args:
        prediction ([`Prediction`]): Of the image.
        predictor ([`Predictor`]): Who made it.

    Returns:
        `str`: Label, and whether it can be relied on.
    """
    named = f"**{escape(prediction.label)}** with {prediction.probability:.1%}"
    if prediction.is_ood is None or predictor.threshold is None:
        return f"### {named}\n\nScore {prediction.score:.4g}. There is no threshold, so whether it fits is not judged."
    compared = f"score {prediction.score:.4g}, threshold {predictor.threshold.value:.4g}"
    if prediction.is_ood:
        return f"### Out of distribution\n\nThis looks like none of the classes ({compared}). The nearest is {named}."
    return f"### In distribution\n\n{named} ({compared})."


def draw_score(prediction: Prediction, predictor: Predictor, curves: Optional[dict[str, Any]]) -> Figure:
    """
    Where the score lies among those of the evaluation.

    Args:
        prediction ([`Prediction`]): Of the image.
        predictor ([`Predictor`]): Who made it.
        curves (`dict`, *optional*): Histograms of the score, as in `ModelMeasures.curves["scores"]`.

    Returns:
        `matplotlib.figure.Figure`
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 2.8), layout="constrained")
    axes = figure.subplots()
    if curves is not None:
        low, high = curves["range"]
        edges = np.linspace(low, high, len(curves["id"]) + 1)
        ood = np.sum([entry["counts"] for entry in curves["ood"].values()], axis=0)
        for counts, color, name in (
            (curves["id"], ID_COLOR, "in distribution"),
            (ood, OOD_COLOR, "out of distribution"),
        ):
            share = np.asarray(counts) / max(1, np.sum(counts))
            axes.stairs(share, edges, fill=True, color=color, alpha=0.4, label=name)
    if predictor.threshold is not None:
        axes.axvline(
            predictor.threshold.value, color=THRESHOLD_COLOR, linestyle="--", linewidth=1.2, label="threshold"
        )
    axes.axvline(prediction.score, color="black", linewidth=2.5, label="this image")
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_title("Out-of-distribution score", fontsize="medium", loc="left")
    axes.set_xlabel(f"{predictor.score.name}: larger is more in-distribution")
    axes.legend(fontsize="small", frameon=False)
    return figure


def reprogrammed_image(predictor: Predictor, image: Image) -> Optional[Image]:
    """
    The image as it enters the model: preprocessed, with the trained frame around it.

    Args:
        predictor ([`Predictor`]): Of a Reprogrammer; other adapters change no pixels.
        image (`PIL.Image.Image`): The image.

    Returns:
        `PIL.Image.Image`: `None` for an adapter without a frame.
    """
    from PIL import Image as PILImage

    from .tuners.reprogrammer.config import image_processor_fields
    from .tuners.reprogrammer.layer import PixelReprogrammer

    layer = next((m for m in predictor.classifier.modules() if isinstance(m, PixelReprogrammer)), None)
    fields = image_processor_fields(predictor.preprocess.image_processor)
    if layer is None or "image_mean" not in fields:
        return None
    with torch.no_grad():
        pixels = layer.reprogram(predictor.preprocess([image]).to(predictor.device))[0].cpu()
    mean, std = (torch.tensor(fields[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    values = ((pixels * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = PILImage.fromarray(values)
    factor = max(1, 256 // min(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), PILImage.Resampling.NEAREST)


def _load_curves(folder: Path, score: str) -> Optional[dict[str, Any]]:
    from .evaluation import Results

    path = folder / layout.EVALUATION_RESULTS
    if not path.is_file():
        return None
    results = Results.load(path)
    curves = results.measures(adapter_name(folder, results)).curves.get("scores", {}).get(score)
    return curves if curves and curves["ood"] else None
