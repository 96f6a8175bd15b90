"""A predictor inside the pipeline of transformers, for code that expects one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import ImageClassificationPipeline, PretrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.modeling_outputs import ImageClassifierOutput


if TYPE_CHECKING:
    from .predictor import Predictor


class _PipelineModel(PreTrainedModel):
    """The classifier in the shape in which pipelines want models: with labels in its configuration."""

    config_class = PretrainedConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PretrainedConfig, predictor: Predictor) -> None:
        super().__init__(config)
        self.classifier = predictor.classifier
        self.calibration = predictor.calibration

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(
            logits=self.calibration.logits(self.classifier(pixel_values=pixel_values).logits.float())
        )


class _PipelineProcessor(BaseImageProcessor):
    """The preprocessing in the shape in which pipelines want image processors."""

    def __init__(self, preprocess: Any) -> None:
        super().__init__()
        self.preprocess_images = preprocess

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        from .images import is_single_image, open_image

        images = [images] if is_single_image(images) else images
        return BatchFeature({"pixel_values": self.preprocess_images([open_image(image) for image in images])})


class _Pipeline(ImageClassificationPipeline):
    def check_model_type(self, supported_models: Any) -> None:
        """Transformers' list of classifiers can't know this one."""


def make_pipeline(predictor: Predictor, **kwargs: Any) -> Any:
    """See [`Predictor.to_pipeline`]."""
    labels = dict(enumerate(predictor.class_names))
    config = PretrainedConfig(
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
        problem_type="single_label_classification",
    )
    return _Pipeline(
        model=_PipelineModel(config, predictor).eval(),
        image_processor=_PipelineProcessor(predictor.preprocess),
        device=predictor.device,
        **kwargs,
    )
