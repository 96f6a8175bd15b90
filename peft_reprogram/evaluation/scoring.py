"""The out-of-distribution scores of an evaluation: which ones, and what each model must give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

import torch
from torch import nn

from ..classifier import ZeroShotClassifier
from ..ood import IncompatibleOutputsError, Score, get_score, list_scores, negative_prompts
from .readers import make_reader


ALL = "all"


def requested_scores(scores: Union[str, Sequence[Union[str, Score]]]) -> dict[str, Score]:
    """
    The scores asked for, by the name to report them under: the score's, with its options where they aren't the default.

    Args:
        scores (`str` or `Sequence[str | Score]`): Names, `"all"`, or [`Score`] objects.

    Returns:
        `dict[str, Score]`

    Raises:
        ValueError: If a name is unknown (the message lists the known ones), or a score is asked for twice.
    """
    listed: Sequence[Union[str, Score]] = [scores] if isinstance(scores, str) else scores
    named: dict[str, Score] = {}
    for score in list_scores() if scores == ALL else listed:
        made = get_score(score) if isinstance(score, str) else score
        label = _label(made)
        if label in named:
            raise ValueError(f"the score {label!r} is asked for twice.")
        named[label] = made
    return named


def check_fit(scores: Mapping[str, Score], fit: object) -> None:
    """
    Checks that there is something to fit the scores on that need it, before any image is passed through a model.

    Args:
        scores (`Mapping[str, Score]`): From [`requested_scores`].
        fit: The training images, `None` where there are none.

    Raises:
        ValueError: If there are none, and a score needs them.
    """
    # The built-in words of `neg_label` are no images.
    unfitted = [label for label, score in scores.items() if not score.is_fitted and score.name != "neg_label"]
    if unfitted and fit is None:
        raise ValueError(
            f"the scores {unfitted} are fitted on in-distribution images: give some of the training set as `fit`."
        )


def scores_for(classifier: nn.Module, scores: Mapping[str, Score], seed: int) -> dict[str, Score]:
    """
    The scores, ready to be fitted for one model: `neg_label` gets the texts of the built-in negative words, unless it has
    words already.

    Args:
        classifier (`torch.nn.Module`): The model, adapters on or off.
        scores (`Mapping[str, Score]`): From [`requested_scores`].
        seed (`int`): Seed of what is drawn.

    Returns:
        `dict[str, Score]`
    """
    ready = dict(scores)
    score = ready.get("neg_label")
    if score is not None and not score.is_fitted and isinstance(classifier, ZeroShotClassifier):
        words = ZeroShotClassifier(
            classifier.model, classifier.tokenizer, negative_prompts(classifier.class_names), template="{}"
        )
        with torch.no_grad():
            features = words.eval().get_class_features().float().cpu()
        ready["neg_label"] = get_score("neg_label", negative_features=features, seed=seed)
    return ready


def wants_patches(classifier: nn.Module, scores: Mapping[str, Score], applicable_only: bool) -> bool:
    """
    Whether patch tokens are to be stored.

    Raises:
        IncompatibleOutputsError: If a score needs them, the model has none, and scores that don't apply aren't skipped.
    """
    if not any("patch_features" in score.needs for score in scores.values()):
        return False
    try:
        make_reader(classifier, patch_features=True)
    except IncompatibleOutputsError:
        if not applicable_only:
            raise
        return False
    return True


def _label(score: Score) -> str:
    try:
        default = get_score(score.name).options
    except ValueError:  # not one of the package's own
        return score.name
    changed = {key: value for key, value in score.options.items() if value != default.get(key)}
    options = ", ".join(f"{key}={value}" for key, value in changed.items())
    return f"{score.name}({options})" if options else score.name
