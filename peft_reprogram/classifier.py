from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from .tuners.reprogrammer.layer import ReprogrammerLayer
from .tuners.reprogrammer.prompts import check_class_names, check_templates, class_prompts, tokenize_prompts
from .tuners.reprogrammer.residual import mixes_features


CLASSIFIER_FILE = "zero_shot_classifier.json"


class ZeroShotClassifier(nn.Module):
    """
    A text-image model as an image classifier: the class prompts, encoded by its text tower, are the head.

    It has the interface of transformers' `...ForImageClassification`, so it works with `Trainer`, with
    [`peft_reprogram.training.train`] and with pipelines. In training the text is encoded once a forward pass, for the
    class prompts rather than for each sample; in evaluation it is encoded once and kept until a weight, the set of active
    adapters or the residual changes.

    Args:
        model (`torch.nn.Module`): A text-image model such as `CLIPModel`, or a `PeftModel` around one.
        tokenizer: Its transformers tokenizer.
        class_names (`Sequence[str]`): Names of the C classes in label order.
        template (`str` or `Sequence[str]`, *optional*, defaults to `"a photo of a {}"`): Prompt template, or several whose
            embeddings are averaged.
        objective (`Callable`, *optional*): Training loss as in [`peft_reprogram.objectives`]; softmax cross-entropy over
            the class prompts by default.

    Raises:
        ValueError: If class names are missing, empty or duplicated, or a template has not exactly one `{}`.
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
        self._cached_class_features: Optional[torch.Tensor] = None
        self._cache_key: Optional[tuple] = None

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
        key = self._state_key()
        if self._cached_class_features is None or self._cache_key != key or torch.is_grad_enabled():
            features = self._encode_classes()
            if features.requires_grad:
                return features  # belongs to one backward pass
            self._cached_class_features, self._cache_key = features, key
        return self._cached_class_features

    def forward(
        self, pixel_values: torch.Tensor, labels: Optional[torch.Tensor] = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """
        Classify images.

        Args:
            pixel_values (`torch.Tensor`): Preprocessed images, shape `(B, 3, height, width)`.
            labels (`torch.Tensor`, *optional*): Class indices in [0, C), shape `(B,)`.

        Returns:
            `ImageClassifierOutput`: `logits` of shape `(B, C)` in float32, and `loss` if labels were given.
        """
        image_features = self.get_image_features(pixel_values).float()
        class_features = self.get_class_features().float()
        logits = self.logit_scale.float() * image_features @ class_features.t()
        if self.logit_bias is not None:
            logits = logits + self.logit_bias.float()
        loss = None
        if labels is not None:
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
                )
        return ImageClassifierOutput(loss=loss, logits=logits)

    def train(self, mode: bool = True) -> ZeroShotClassifier:
        """Set training mode and forget the cached class embeddings."""
        self._cached_class_features = None
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
        if not hasattr(self.model, "disable_adapter"):
            return self(pixel_values).logits
        with self.model.disable_adapter():
            image_features = self.get_image_features(pixel_values).float()
            logits = self.logit_scale.float() * image_features @ self._encode_classes().float().t()
        return logits if self.logit_bias is None else logits + self.logit_bias.float()

    def save_pretrained(self, save_directory: Union[str, os.PathLike]) -> None:
        """
        Save the adapter (or the whole model, if it is no `PeftModel`), the tokenizer, the class names and templates.

        Everything is written to a temporary folder beside the target and then moved there, so that an interrupted save
        leaves no half-written adapter.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write to; created if needed.
        """
        target = Path(save_directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self.model.save_pretrained(staging)
            self.tokenizer.save_pretrained(staging)
            content = {"class_names": self.class_names, "templates": self.templates}
            (staging / CLASSIFIER_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
            target.mkdir(exist_ok=True)
            for path in sorted(staging.iterdir()):
                if path.is_dir():
                    shutil.copytree(path, target / path.name, dirs_exist_ok=True)
                else:
                    os.replace(path, target / path.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    @classmethod
    def from_pretrained(
        cls, path: Union[str, os.PathLike], model: Optional[nn.Module] = None, **kwargs: Any
    ) -> ZeroShotClassifier:
        """
        Load what [`~ZeroShotClassifier.save_pretrained`] wrote.

        Args:
            path (`str` or `os.PathLike`): Folder, or Hub repository, of the adapter.
            model (`torch.nn.Module`, *optional*): The base model; loaded by the name that the adapter holds if not given.
            **kwargs: Passed on to the loading of the base model.

        Returns:
            [`ZeroShotClassifier`]: In evaluation mode.

        Raises:
            OSError: If files are missing.
        """
        from peft import PeftConfig, PeftModel
        from transformers import AutoModel, AutoTokenizer

        content = json.loads(_find_file(path, CLASSIFIER_FILE).read_text("utf-8"))
        is_adapter = _has_file(path, "adapter_config.json")
        if model is None:
            source = PeftConfig.from_pretrained(str(path)).base_model_name_or_path if is_adapter else str(path)
            if not source:
                raise ValueError(
                    f"The adapter in {path} does not name its base model (it was made on a model that was never saved). "
                    "Pass the base model: `ZeroShotClassifier.from_pretrained(path, model=...)`."
                )
            model = AutoModel.from_pretrained(source, **kwargs)
        if is_adapter:
            model = PeftModel.from_pretrained(model, str(path))
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        return cls(model, tokenizer, content["class_names"], content["templates"]).eval()

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

    def _state_key(self) -> tuple:
        """Changes whenever something that the class embeddings depend on does."""
        weights = tuple((id(p), p.data_ptr(), p._version) for p in self.model.parameters())
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
        return weights, layers, tuple(self.templates), tuple(self.class_names)


def _embedding(output: Any) -> torch.Tensor:
    # A tensor in transformers 4, an output object in transformers 5.
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _has_file(path: Union[str, os.PathLike], name: str) -> bool:
    if Path(path).is_dir():
        return (Path(path) / name).is_file()
    from huggingface_hub import file_exists

    return file_exists(str(path), name)


def _find_file(path: Union[str, os.PathLike], name: str) -> Path:
    if Path(path).is_dir():
        file = Path(path) / name
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} has no {name}, so it was not saved by `ZeroShotClassifier.save_pretrained`. Load the adapter "
                "with `PeftModel.from_pretrained` and give it to `ZeroShotClassifier` together with the class names."
            )
        return file
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(path), name))
