"""The residual of arXiv 2403.10800 at any alpha, from the features of two passes that were made anyway."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from ..ood import ModelOutputs
from ..tuners.reprogrammer import ReprogrammerConfig, ResidualReprogrammerConfig
from ..tuners.reprogrammer.config import check_residual_alpha
from .fingerprint import acting_adapters, combined_fingerprint, inner_model
from .measurement import LabelledOutputs, Passes
from .stored_outputs import StoredOutputs


class ResidualOutputs(StoredOutputs):
    """
    What a Residual Reprogrammer with this alpha would have left behind for the images of two passes.

    Args:
        adapted ([`StoredOutputs`]): The Reprogrammer's.
        zero_shot ([`StoredOutputs`]): Of the same images in the same order, without it.
        alpha (`float`): Weight in [0, 1] of the zero-shot branch.

    Raises:
        ValueError: If the outputs aren't those of a text-image model with and without a Reprogrammer.
    """

    def __init__(self, adapted: StoredOutputs, zero_shot: StoredOutputs, alpha: float) -> None:
        super().__init__(adapted.folder)
        if self._head["logit_scale"] is None:
            raise ValueError(
                "a residual is mixed from stored features in the joint space of a text-image model, which an image classifier "
                "has not: measure a `ResidualReprogrammerConfig` adapter instead."
            )
        if len(adapted) != len(zero_shot):
            raise ValueError(
                f"the passes are of {len(adapted)} and {len(zero_shot)} images: they must be of the same."
            )
        self.zero_shot = zero_shot
        self.alpha = alpha
        self.identity = combined_fingerprint("residual", adapted.identity, zero_shot.identity, alpha)

    def load(self, start: int = 0, stop: int | None = None, without: frozenset[str] = frozenset()) -> ModelOutputs:
        needed = frozenset({"features"})
        adapted = super().load(start, stop, (without | {"patch_features"}) - needed)
        plain = self.zero_shot.load(start, stop, frozenset({"labels", "patch_features"}))
        features = self._mixed(adapted.features, plain.features)
        class_features = self._mixed(adapted.class_features, plain.class_features)
        assert adapted.logit_scale is not None
        logits = adapted.logit_scale * features @ class_features.T
        return replace(
            adapted,
            logits=logits if adapted.bias is None else logits + adapted.bias,
            features=None if "features" in without else features,
            class_features=class_features,
            identity=self.identity,
        )

    def _mixed(self, adapted: torch.Tensor | None, zero_shot: torch.Tensor | None) -> torch.Tensor:
        assert adapted is not None
        assert zero_shot is not None
        return (1 - self.alpha) * adapted + self.alpha * zero_shot


def residual_passes(adapted: Passes, zero_shot: Passes, alpha: float) -> Passes:
    """
    The passes of the Residual Reprogrammer with this alpha.

    Args:
        adapted ([`Passes`]): Of the Reprogrammer.
        zero_shot ([`Passes`]): Over the same sets, without it.
        alpha (`float`): Weight in [0, 1] of the zero-shot branch.

    Returns:
        [`Passes`]
    """

    def mixed(own: LabelledOutputs, plain: LabelledOutputs) -> LabelledOutputs:
        return LabelledOutputs(ResidualOutputs(own.outputs, plain.outputs, alpha), own.labels)

    def maybe(own: LabelledOutputs | None, plain: LabelledOutputs | None) -> LabelledOutputs | None:
        return None if own is None or plain is None else mixed(own, plain)

    return Passes(
        id=mixed(adapted.id, zero_shot.id),
        shifts={name: mixed(own, zero_shot.shifts[name]) for name, own in adapted.shifts.items()},
        corruptions={
            name: {severity: mixed(own, zero_shot.corruptions[name][severity]) for severity, own in severities.items()}
            for name, severities in adapted.corruptions.items()
        },
        ood={name: ResidualOutputs(own, zero_shot.ood[name], alpha) for name, own in adapted.ood.items()},
        fit=maybe(adapted.fit, zero_shot.fit),
        calibration=maybe(adapted.calibration, zero_shot.calibration),
    )


def check_residual(classifier: Any, alphas: Iterable[float], scores: Iterable[str]) -> None:
    """
    Checks that residuals of a classifier can be mixed from its features, before anything is passed through it.

    Args:
        classifier (`torch.nn.Module`): The classifier.
        alphas (`Iterable[float]`): The weights of the zero-shot branch.
        scores (`Iterable[str]`): The OOD scores asked for.

    Raises:
        ValueError: If it is no text-image classifier whose only active adapter is a Reprogrammer without a residual of its
            own, an alpha is outside [0, 1], or a score looks at more than the features of the images and classes.
    """
    for alpha in alphas:
        check_residual_alpha(alpha)
    model = inner_model(classifier)
    configs = [model.peft_config[name] for name in acting_adapters(model)]
    plain = [isinstance(c, ReprogrammerConfig) and not isinstance(c, ResidualReprogrammerConfig) for c in configs]
    if not hasattr(classifier, "get_class_features") or plain != [True]:
        raise ValueError(
            "`residual_alphas` are mixed from the features of a text-image classifier with and without its Reprogrammer; its "
            f"active adapters are {[type(config).__name__ for config in configs]}. Load a residual adapter as "
            "`ReprogrammerConfig`, or leave `residual_alphas` out and use `set_residual_alpha`."
        )
    unsupported = sorted({"neg_label", "gl_mcm"} & set(scores))
    if unsupported:
        raise ValueError(
            f"the scores {unsupported} look at more than the features of images and classes, from which `residual_alphas` are "
            "mixed: leave one of the two out."
        )
