from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

from peft.config import PeftConfig
from peft.utils import PeftType

from .prompts import check_class_names, check_templates, prompt_rows


@dataclass
class ReprogrammerConfig(PeftConfig):
    """
    This is the configuration class to store the configuration of a [`ReprogrammerModel`].

    A Reprogrammer adapts a frozen vision or text-image model by what goes into it: a trainable frame of pixels around
    the image, and the rows of the text tower's token and position embeddings that the class prompts use. The method is
    described in https://huggingface.co/papers/2403.10800 (arXiv 2403.10800).

    Args:
        target_modules (`Optional[Union[List[str], str]]`):
            Names (or a regex) of the modules to wrap: an `nn.Embedding` gets trained rows, any other module is taken to
            consume `pixel_values` as its first argument and gets the frame. If not specified, the modules are found by
            the model's architecture.
        exclude_modules (`Optional[Union[List[str], str]]`):
            Names (or a regex) of modules to leave alone although `target_modules` matches them.
        modules_to_save (`Optional[List[str]]`):
            Modules to train whole and to save with the adapter, such as a freshly initialised classification head.
        reprogram_image (`bool`):
            Whether to train the pixel frame.
        reprogram_text (`bool`):
            Whether to train the text rows where the model has a text tower.
        image_size (`Optional[Union[int, Tuple[int, int]]]`):
            Side, or (height, width), in pixels of the images that the model is fed with. Inferred from the image
            processor or the model if not given.
        frame_inner (`Optional[Union[int, Tuple[int, int]]]`):
            Side, or (height, width), in pixels of the centred rectangle that the frame leaves untouched. The default is
            the paper's frame, 16 pixels of 224, in proportion to `image_size` (192 for 224).
        up_resolution (`Optional[Union[int, Tuple[int, int]]]`):
            Side, or (height, width), in pixels to which the image is resized before it is placed on the black canvas of
            `image_size`. Defaults to `image_size`, i.e. the frame overlays the image's border.
        frame_dropout (`float`):
            Probability in [0, 1) with which an entry of the frame is dropped in training.
        image_mean (`Optional[List[float]]`):
            Per-channel mean, in [0, 1], by which the image processor normalises. Inferred if not given.
        image_std (`Optional[List[float]]`):
            Per-channel standard deviation by which the image processor normalises. Inferred if not given.
        class_names (`Optional[List[str]]`):
            The class names of the task. Stored with the adapter.
        template (`Union[str, List[str]]`):
            One prompt template, or several whose embeddings are averaged; each with one `{}` for the class name.
        token_indices (`Optional[List[int]]`):
            Rows of the token embedding to train. If not given, the tokens of the class prompts, start and end tokens
            included; the tokenizer is then loaded from the base model's folder or Hub repository. Use
            [`ReprogrammerConfig.for_classes`] to pass a tokenizer.
        position_indices (`Optional[List[int]]`):
            Rows of the position embedding to train. If not given, the positions that the class prompts fill. An empty
            list leaves the positions alone.
        init_weights (`Union[bool, Literal["normal"]]`):
            `True` starts from the base model: zero frame, zero row changes. `"normal"` is the paper's N(0, 1) frame with
            zero row changes; about half of its entries start clamped and without gradient. `False` draws everything at
            random, which serves only to test and debug.
    """

    target_modules: Optional[Union[list[str], str]] = field(
        default=None,
        metadata={
            "help": (
                "Names or regex of the modules to wrap. An nn.Embedding gets trained rows, any other module the pixel "
                "frame. If not specified, they are found by the model's architecture."
            )
        },
    )
    exclude_modules: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Names or regex of modules to leave alone although they are targeted."}
    )
    modules_to_save: Optional[list[str]] = field(
        default=None,
        metadata={"help": "Modules to train whole and save with the adapter, such as a classification head."},
    )
    reprogram_image: bool = field(default=True, metadata={"help": "Whether to train the pixel frame."})
    reprogram_text: bool = field(
        default=True, metadata={"help": "Whether to train the text rows where the model has a text tower."}
    )
    image_size: Optional[Union[int, tuple[int, int]]] = field(
        default=None, metadata={"help": "Side, or (height, width), in pixels of the model's input."}
    )
    frame_inner: Optional[Union[int, tuple[int, int]]] = field(
        default=None, metadata={"help": "Side, or (height, width), in pixels of the centre without frame."}
    )
    up_resolution: Optional[Union[int, tuple[int, int]]] = field(
        default=None, metadata={"help": "Side, or (height, width), in pixels of the image on the canvas."}
    )
    frame_dropout: float = field(default=0.0, metadata={"help": "Dropout probability of the frame's entries."})
    image_mean: Optional[list[float]] = field(
        default=None, metadata={"help": "Per-channel mean of the image processor's normalisation."}
    )
    image_std: Optional[list[float]] = field(
        default=None, metadata={"help": "Per-channel standard deviation of the image processor's normalisation."}
    )
    class_names: Optional[list[str]] = field(default=None, metadata={"help": "The class names of the task."})
    template: Union[str, list[str]] = field(
        default="a photo of a {}", metadata={"help": "Prompt template(s), each with one {} for the class name."}
    )
    token_indices: Optional[list[int]] = field(
        default=None, metadata={"help": "Rows of the token embedding to train; inferred from the class prompts."}
    )
    position_indices: Optional[list[int]] = field(
        default=None, metadata={"help": "Rows of the position embedding to train; inferred from the class prompts."}
    )
    init_weights: Union[bool, Literal["normal"]] = field(
        default=True,
        metadata={"help": "True: the identity. 'normal': the paper's N(0, 1) frame. False: random, for tests only."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["REPROGRAMMER"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if not (self.reprogram_image or self.reprogram_text):
            raise ValueError("`reprogram_image` and `reprogram_text` are both False, which leaves nothing to train.")
        for name in ("image_size", "frame_inner", "up_resolution"):
            setattr(self, name, _as_size(name, getattr(self, name)))
        if not 0 <= self.frame_dropout < 1:
            raise ValueError(f"`frame_dropout` must be in [0, 1), got {self.frame_dropout}.")
        for name in ("image_mean", "image_std"):
            setattr(self, name, _as_channels(name, getattr(self, name)))
        if self.class_names is not None:
            self.class_names = check_class_names(self.class_names)
        check_templates(self.template)
        for name in ("token_indices", "position_indices"):
            setattr(self, name, _as_indices(name, getattr(self, name)))
        if self.init_weights not in (True, False, "normal"):
            raise ValueError(f"`init_weights` must be True, False or 'normal', got {self.init_weights!r}.")

    @classmethod
    def for_classes(
        cls,
        class_names: Sequence[str],
        template: Union[str, Sequence[str]] = "a photo of a {}",
        *,
        tokenizer: Any = None,
        image_processor: Any = None,
        preset: Literal["default", "paper"] = "default",
        **fields: Any,
    ):
        """
        A configuration for a classification task, resolved by the task's own tokenizer and image processor.

        Args:
            class_names (`Sequence[str]`): Names of the classes, in label order.
            template (`str` or `Sequence[str]`, *optional*, defaults to `"a photo of a {}"`): Prompt template(s).
            tokenizer (*optional*): A transformers tokenizer; gives `token_indices` and `position_indices`.
            image_processor (*optional*): A transformers image processor (or a processor that has one); gives `image_mean`,
                `image_std` and `image_size`.
            preset (`"default"` or `"paper"`, *optional*, defaults to `"default"`): `"paper"` takes the form of arXiv 2403.10800
                where ours differs: the frame starts as N(0, 1) noise, not as zero. Its training is in
                `scripts/configs/train_paper.yaml`.
            **fields: Further fields of the configuration; they win over what is inferred.

        Returns:
            The configuration.

        Raises:
            ValueError: If class names are missing, empty or duplicated, a template has not exactly one `{}`, or the preset is
                unknown.
        """
        if preset not in ("default", "paper"):
            raise ValueError(f"`preset` must be 'default' or 'paper', got {preset!r}.")
        if preset == "paper":
            fields.setdefault("init_weights", "normal")
        template = template if isinstance(template, str) else list(template)
        if tokenizer is not None:
            tokens, length = prompt_rows(tokenizer, check_class_names(class_names), check_templates(template))
            fields.setdefault("token_indices", tokens)
            fields.setdefault("position_indices", list(range(length)))
        if image_processor is not None:
            for name, value in image_processor_fields(image_processor).items():
                fields.setdefault(name, value)
        return cls(class_names=list(class_names), template=template, **fields)


@dataclass
class ResidualReprogrammerConfig(ReprogrammerConfig):
    """
    This is the configuration class to store the configuration of a [`ResidualReprogrammerModel`].

    A Residual Reprogrammer is a Reprogrammer (arXiv 2403.10800) that mixes in the features of the untouched model. It
    takes all arguments of [`ReprogrammerConfig`]; weights of one can be loaded as the other.

    Args:
        residual_alpha (`float`):
            Weight in [0, 1] of the zero-shot branch: `f = (1 - alpha) * f_reprogrammed + alpha * f_zero_shot`. Can be changed
            after training with [`set_residual_alpha`].
        residual_renormalize (`bool`):
            Whether a text-image model normalises the mix again before the logits. `False` is the paper's form.
        residual_in_training (`bool`):
            Whether to mix while training too. `False` is the paper's form, in which training costs nothing extra.
    """

    residual_alpha: float = field(
        default=0.4, metadata={"help": "Weight in [0, 1] of the zero-shot branch in the features."}
    )
    residual_renormalize: bool = field(
        default=False, metadata={"help": "Whether a text-image model normalises the mixed features again."}
    )
    residual_in_training: bool = field(default=False, metadata={"help": "Whether to mix while training too."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["RESIDUAL_REPROGRAMMER"]
        check_residual_alpha(self.residual_alpha)

    @classmethod
    def from_reprogrammer(cls, config: ReprogrammerConfig, **fields: Any) -> ResidualReprogrammerConfig:
        """
        The residual form of a trained Reprogrammer.

        Pass it as `config` to `PeftModel.from_pretrained(base_model, "path/to/reprogrammer", config=...)`.

        Args:
            config ([`ReprogrammerConfig`]): The configuration of the Reprogrammer.
            **fields: `residual_alpha` and other fields to set.
        """
        values = {name: value for name, value in vars(config).items() if name != "peft_type"}
        return cls(**{**values, **fields})


def check_residual_alpha(alpha: float) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise ValueError(
            f"`residual_alpha` is the weight of the zero-shot branch and must be in [0, 1], got {alpha!r}."
        )


def image_processor_fields(processor: Any) -> dict[str, Any]:
    """The configuration fields that an image processor determines."""
    processor = getattr(processor, "image_processor", processor)
    fields: dict[str, Any] = {}
    if getattr(processor, "do_normalize", True) and getattr(processor, "image_mean", None) is not None:
        fields["image_mean"] = list(processor.image_mean)
        fields["image_std"] = list(processor.image_std)
    elif getattr(processor, "do_normalize", None) is False:
        fields["image_mean"], fields["image_std"] = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else getattr(processor, "size", None)
    if size is not None and "height" in size and "width" in size:
        fields["image_size"] = (size["height"], size["width"])
    return fields


def _as_size(name: str, value: Any) -> Optional[tuple[int, int]]:
    if value is None:
        return None
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or not all(type(side) is int and side >= 0 for side in pair):
        raise ValueError(f"`{name}` must be a side or (height, width) in whole pixels, got {value!r}.")
    return pair


def _as_channels(name: str, value: Any) -> Optional[list[float]]:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(isinstance(v, (int, float)) for v in value):
        raise ValueError(f"`{name}` must be three numbers, one for each of the channels R, G and B, got {value!r}.")
    channels = [float(v) for v in value]
    if name == "image_std" and not all(v > 0 for v in channels):
        raise ValueError(f"`image_std` must be positive, got {value!r}.")
    return channels


def _as_indices(name: str, value: Any) -> Optional[list[int]]:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(type(v) is int and v >= 0 for v in value):
        raise ValueError(f"`{name}` must be a list of row numbers (whole, not negative), got {value!r}.")
    return sorted(set(value))
