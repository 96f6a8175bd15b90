from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from .atomic import filling
from .tuners.reprogrammer.layer import ReprogrammerLayer
from .tuners.reprogrammer.prompts import check_class_names, check_templates, class_prompts, tokenize_prompts
from .tuners.reprogrammer.residual import mixes_features


CLASSIFIER_FILE = "zero_shot_classifier.json"


class ZeroShotClassifier(nn.Module):
    """
    A text-image model as an image classifier: the class prompts, encoded by its text tower, are the head.

    It has the interface of transformers' `...ForImageClassification`, so it works with `Trainer` (save with
    [`~ZeroShotClassifier.save_pretrained`] afterwards, which stores the adapter alone) and with
    [`peft_reprogram.training.train`]; [`peft_reprogram.hub.Predictor.to_pipeline`] makes a pipeline of it. In training the
    text is encoded once a forward pass, for the class prompts rather than for each sample; in evaluation it is encoded once
    and kept until a weight, the set of active adapters or the residual changes. (A weight that is written through `.data`
    escapes notice; call `train(False)` after that.)

    Args:
        model (`torch.nn.Module`): A text-image model such as `CLIPModel`, or a `PeftModel` around one.
        tokenizer: Its transformers tokenizer.
        class_names (`Sequence[str]`): Names of the C classes in label order.
        template (`str` or `Sequence[str]`, *optional*, defaults to `"a photo of a {}"`): Prompt template, or several whose
            embeddings are averaged.
        objective (`Callable`, *optional*): Training loss as in [`peft_reprogram.objectives`]; softmax cross-entropy over
            the class prompts by default.

    Raises:
        ValueError: If class names are missing, empty or duplicated, the tokenizer can't tell two of them apart, or a template
            has not exactly one `{}`.
        TypeError: If the model has no image and text features.

    Example:

        ```py
        >>> classifier = ZeroShotClassifier(model, processor.tokenizer, ["cat", "dog"])
        >>> classifier(pixel_values=processor(images=image, return_tensors="pt").pixel_values).logits
        ```
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        class_names: Sequence[str],
        template: Union[str, Sequence[str]] = "a photo of a {}",
        objective: Optional[Callable[..., torch.Tensor]] = None,
    ) -> None:
        super().__init__()
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise TypeError(
                f"A ZeroShotClassifier needs a model with image and text features such as CLIPModel, got "
                f"{type(model).__name__}. A model with a classification head is a classifier as it is."
            )
        self.class_names = check_class_names(class_names)
        self.templates = check_templates(template)
        self.tokenizer = tokenizer
        self.objective = objective
        self.model = model
        self._text_inputs = tokenize_prompts(tokenizer, class_prompts(self.class_names, self.templates))
        self._check_classes_differ()
        self._cached_class_features: Optional[torch.Tensor] = None
        self._cache_key: Optional[tuple] = None
        self._zero_shot_class_features: Optional[torch.Tensor] = None

    @property
    def num_labels(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def config(self) -> Any:
        """The base model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of the cosines in the logits, a scalar tensor."""
        if hasattr(self.model, "logit_scale"):
            return self.model.logit_scale.exp().squeeze()
        return 1 / self.model.temperature  # ALIGN

    @property
    def logit_bias(self) -> Optional[torch.Tensor]:
        """Summand of the logits (SigLIP), a scalar tensor or `None`."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.squeeze()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Image embeddings as they enter the logits.

        Args:
            pixel_values (`torch.Tensor`): Preprocessed images, shape `(B, 3, height, width)`.

        Returns:
            `torch.Tensor`: Shape `(B, D)`, of unit length; the mix of a residual is shorter.
        """
        return self._normalize(_embedding(self.model.get_image_features(pixel_values=pixel_values)))

    def get_class_features(self) -> torch.Tensor:
        """
        Class embeddings as they enter the logits, averaged over the templates.

        Returns:
            `torch.Tensor`: Shape `(C, D)`, of unit length; the mix of a residual is shorter.
        """
        if self.training or torch.compiler.is_compiling():
            return self._encode_classes()
        parameters = list(self.model.parameters())
        belongs_to_a_backward_pass = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        # Inference tensors don't count their changes.
        if belongs_to_a_backward_pass or any(p.is_inference() for p in parameters):
            return self._encode_classes()
        key = self._state_key(parameters)
        if self._cached_class_features is None or self._cache_key != key:
            self._cached_class_features, self._cache_key = self._encode_classes(), key
        return self._cached_class_features

    def forward(self, pixel_values: torch.Tensor, labels: Optional[torch.Tensor] = None) -> ImageClassifierOutput:
        """
        Classify images.

        Args:
            pixel_values (`torch.Tensor`): Preprocessed images, shape `(B, 3, height, width)`.
            labels (`torch.Tensor`, *optional*): Class indices in [0, C), shape `(B,)`.

        Returns:
            `ImageClassifierOutput`: `logits` of shape `(B, C)` in float32, and `loss` if labels were given.

        Raises:
            ValueError: If a label is outside [0, C).
        """
        # Called without further keywords on purpose: accepting them would tell `Trainer` that the loss is already scaled.
        image_features = self.get_image_features(pixel_values).float()
        class_features = self.get_class_features().float()
        logits = self._logits(image_features, class_features)
        loss = None
        if labels is not None:
            self._check_labels(labels)
            if self.objective is None:
                loss = F.cross_entropy(logits, labels)
            else:
                loss = self.objective(
                    logits,
                    labels,
                    image_features=image_features,
                    class_features=class_features,
                    logit_scale=self.logit_scale.float(),
                    reference_logits=self._reference_logits(pixel_values),
                    **self._reference_class_features(),
                )
        return ImageClassifierOutput(loss=loss, logits=logits)

    def train(self, mode: bool = True) -> ZeroShotClassifier:
        """Set training mode and forget the cached class embeddings."""
        self._cached_class_features = self._zero_shot_class_features = None
        return super().train(mode)

    @torch.no_grad()
    def zero_shot_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Logits of the base model without its adapters.

        Args:
            pixel_values (`torch.Tensor`): Preprocessed images, shape `(B, 3, height, width)`.

        Returns:
            `torch.Tensor`: Shape `(B, C)`, float32.
        """
        with _adapters_disabled(self.model):
            image_features = self.get_image_features(pixel_values).float()
        return self._logits(image_features, self.zero_shot_class_features())

    @torch.no_grad()
    def zero_shot_class_features(self) -> torch.Tensor:
        """
        Class embeddings of the base model without its adapters.

        Returns:
            `torch.Tensor`: Shape `(C, D)`, float32, of unit length.
        """
        classes = self._zero_shot_class_features
        if classes is None or classes.device != self.device:
            with _adapters_disabled(self.model):
                classes = self._encode_classes().float()
            # The base is frozen as long as something else is trained, so its text needs encoding only once.
            if self.training and _has_adapters(self.model):
                self._zero_shot_class_features = classes
        return classes

    def save_pretrained(self, save_directory: Union[str, os.PathLike]) -> None:
        """
        Save the adapter (or the whole model, if it is no `PeftModel`), the tokenizer, the class names and templates.

        Everything is written to a temporary folder first and then moved, so that an interrupted save leaves no half-written
        adapter.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write to; created if needed.
        """
        with filling(Path(save_directory)) as staging:
            self._save_model(staging)
            self.tokenizer.save_pretrained(staging)
            content = {"class_names": self.class_names, "templates": self.templates}
            (staging / CLASSIFIER_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def from_pretrained(
        cls,
        path: Union[str, os.PathLike],
        model: Optional[nn.Module] = None,
        revision: Optional[str] = None,
        **kwargs: Any,
    ) -> ZeroShotClassifier:
        """
        Load what [`~ZeroShotClassifier.save_pretrained`] wrote.

        Args:
            path (`str` or `os.PathLike`): Folder, or Hub repository, of the adapter.
            model (`torch.nn.Module`, *optional*): The base model; loaded by the name and revision that the adapter holds if
                not given.
            revision (`str`, *optional*): Revision of the adapter on the Hub.
            **kwargs: Passed on to the loading of the base model.

        Returns:
            [`ZeroShotClassifier`]: In evaluation mode.

        Raises:
            OSError: If files are missing.
            ValueError: If the base model is unknown, or the adapter does not fit it.
        """
        from transformers import AutoModel, AutoTokenizer

        content = json.loads(_find_file(path, CLASSIFIER_FILE, revision).read_text("utf-8"))
        config = PeftConfig.from_pretrained(str(path), revision=revision) if _is_adapter(path, revision) else None
        if model is None:
            source, base_revision = str(path), revision
            if config is not None:
                source, base_revision = config.base_model_name_or_path, config.revision
            if not source:
                raise ValueError(
                    f"The adapter in {path} does not name its base model (it was made on a model that was never saved). "
                    "Pass the base model: `ZeroShotClassifier.from_pretrained(path, model=...)`."
                )
            model = AutoModel.from_pretrained(source, revision=base_revision, **kwargs)
        if config is not None:
            try:
                model = PeftModel.from_pretrained(model, str(path), revision=revision)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"The adapter in {path} does not fit this {type(model).__name__}; it was made for "
                    f"{config.base_model_name_or_path or 'another base model'}. Leave `model` out, or pass that base model."
                ) from error
        tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision)
        return cls(model, tokenizer, content["class_names"], content["templates"]).eval()

    def _logits(self, image_features: torch.Tensor, class_features: torch.Tensor) -> torch.Tensor:
        # Rounded to half precision, the logits of different images tie.
        with torch.autocast(image_features.device.type, enabled=False):
            logits = self.logit_scale.float() * image_features.float() @ class_features.float().t()
            return logits if self.logit_bias is None else logits + self.logit_bias.float()

    def _check_labels(self, labels: torch.Tensor) -> None:
        # On an accelerator the check would make the host wait for it; there the loss itself fails.
        if labels.device.type == "cpu" and labels.numel() and not 0 <= labels.min() <= labels.max() < self.num_labels:
            raise ValueError(
                f"`labels` must be class indices in [0, {self.num_labels}), one for each of the {self.num_labels} class "
                f"names; got values from {labels.min()} to {labels.max()}. Map the labels of the data set to the class names."
            )

    def _check_classes_differ(self) -> None:
        ids = self._text_inputs["input_ids"].view(self.num_labels, -1).tolist()
        first: dict[tuple, str] = {}
        for name, row in zip(self.class_names, ids):
            other = first.setdefault(tuple(row), name)
            if other != name:
                raise ValueError(
                    f"The tokenizer makes the same tokens of the classes {other!r} and {name!r}, so they can't be told apart. "
                    "They differ only in case or spaces, in words that it does not know, or beyond the length at which prompts are cut "
                    f"({self._text_inputs['input_ids'].shape[1]} tokens). Rename one of them or shorten the template."
                )

    def _save_model(self, folder: Path) -> None:
        """The model, or its active adapter at the top of the folder whatever it is called."""
        configs = getattr(self.model, "peft_config", None)
        if not (configs and hasattr(self.model, "active_adapters")):
            self.model.save_pretrained(folder)
            return
        active = self.model.active_adapters
        active = active() if callable(active) else active
        if len(active) != 1:
            raise ValueError(
                f"A classifier is saved with one adapter, and {active or 'none'} are active of {list(configs)}. Choose one "
                "with `model.set_adapter(name)`."
            )
        self.model.save_pretrained(
            folder, **({"selected_adapters": active} if hasattr(self.model, "base_model") else {})
        )
        named = folder / active[0]
        if named.is_dir() and not (folder / "adapter_config.json").exists():
            for file in named.iterdir():
                os.replace(file, folder / file.name)
            named.rmdir()

    def _encode_classes(self) -> torch.Tensor:
        device = self.device
        inputs = {name: value.to(device) for name, value in self._text_inputs.items()}
        features = self._normalize(_embedding(self.model.get_text_features(**inputs)))
        if len(self.templates) == 1:
            return features
        mean = features.view(self.num_labels, len(self.templates), -1).mean(dim=1)
        # The mean over templates is shorter than its parts; its length says nothing about the class.
        return F.normalize(mean, dim=-1) if not mixes_features(self.model) else mean

    def _normalize(self, features: torch.Tensor) -> torch.Tensor:
        return features if mixes_features(self.model) else F.normalize(features, dim=-1)

    def _reference_logits(self, pixel_values: torch.Tensor) -> Optional[torch.Tensor]:
        needed = "reference_logits" in getattr(self.objective, "requires", ())
        return self.zero_shot_logits(pixel_values) if needed else None

    def _reference_class_features(self) -> dict[str, torch.Tensor]:
        # Given to those alone that ask for them: other objectives may not know the argument.
        needed = "reference_class_features" in getattr(self.objective, "requires", ())
        return {"reference_class_features": self.zero_shot_class_features()} if needed else {}

    def _state_key(self, parameters: Sequence[torch.Tensor]) -> tuple:
        """Changes whenever something that the class embeddings depend on does."""
        weights = tuple((id(p), p.data_ptr(), p._version) for p in parameters)
        device = parameters[0].device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        modes = (autocast, torch.is_inference_mode_enabled())
        layers = tuple(
            (
                tuple(m.active_adapters),
                m.disable_adapters,
                tuple(m.merged_adapters),
                tuple(m.reprogrammer_alpha.items()) if isinstance(m, ReprogrammerLayer) else (),
            )
            for m in self.model.modules()
            if hasattr(m, "active_adapters") and hasattr(m, "merged_adapters")
        )
        return weights, layers, modes


def _embedding(output: Any) -> torch.Tensor:
    # A tensor in transformers 4, an output object in transformers 5.
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _has_adapters(model: nn.Module) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@contextmanager
def _adapters_disabled(model: nn.Module) -> Iterator[None]:
    # Not `PeftModel.disable_adapter`: a model with an injected adapter has none, and what is trainable shall stay so.
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, kinds) and not m._disable_adapters]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _is_adapter(path: Union[str, os.PathLike], revision: Optional[str]) -> bool:
    if Path(path).is_dir():
        return (Path(path) / "adapter_config.json").is_file()
    from huggingface_hub import file_exists

    return file_exists(str(path), "adapter_config.json", revision=revision)


def _find_file(path: Union[str, os.PathLike], name: str, revision: Optional[str]) -> Path:
    if Path(path).is_dir():
        file = Path(path) / name
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} has no {name}, so it was not saved by `ZeroShotClassifier.save_pretrained`. Load the adapter "
                "with `PeftModel.from_pretrained` and give it to `ZeroShotClassifier` together with the class names."
            )
        return file
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(path), name, revision=revision))
