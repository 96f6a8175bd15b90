from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from importlib.resources import files
from typing import ClassVar, Optional

import torch
from torch.nn.functional import logsigmoid, normalize

from .outputs import ModelOutputs
from .registry import register_score
from .score import Score


def negative_prompts(
    class_names: Iterable[str] = (),
    noun_template: str = "a photo of a {}",
    adjective_template: str = "This is a {} photo",
) -> list[str]:
    """
    Prompts of a small built-in list of everyday nouns and adjectives, to be encoded as candidates for [`NegLabel`].

    A few hundred words are a start that needs no download; the paper takes 70,000 from WordNet.

    Args:
        class_names (`Iterable[str]`, *optional*): Words that occur in these are left out.
        noun_template (`str`, *optional*, defaults to `"a photo of a {}"`): With one `{}`.
        adjective_template (`str`, *optional*, defaults to `"This is a {} photo"`): With one `{}`.

    Returns:
        `list[str]`: The prompts, nouns first.
    """
    taken = {word for name in class_names for word in re.findall(r"\w+", name.lower().replace("_", " "))}
    prompts = []
    for kind, template in (("nouns", noun_template), ("adjectives", adjective_template)):
        words = (files(__package__) / "words" / f"{kind}.txt").read_text(encoding="utf-8").split()
        prompts += [template.format(word) for word in words if word not in taken]
    return prompts


def mine_negative_labels(
    candidate_features: torch.Tensor, class_features: torch.Tensor, fraction: float = 0.15, percentile: float = 0.95
) -> torch.Tensor:
    """
    NegMining ([arXiv 2403.20078](https://arxiv.org/abs/2403.20078), algorithm 1): the candidate words that are farthest
    from the in-distribution classes.

    A candidate's nearness is a high percentile of its cosines to all classes, which is more robust than the maximum.
    The paper mines nouns and adjectives apart; call it once for each to do so.

    Args:
        candidate_features (`torch.Tensor`): Text features of the candidates, `(W, D)`.
        class_features (`torch.Tensor`): Text features of the classes, `(C, D)`.
        fraction (`float`, *optional*, defaults to 0.15): Fraction in (0, 1] of the candidates to keep.
        percentile (`float`, *optional*, defaults to 0.95): In [0, 1].

    Returns:
        `torch.Tensor`: Indices of the candidates to keep (at least one), the farthest first.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must be in (0, 1], got {fraction}.")
    if not 0 <= percentile <= 1:
        raise ValueError(f"`percentile` must be in [0, 1], got {percentile}.")
    if candidate_features.ndim != 2 or candidate_features.shape[1] != class_features.shape[-1]:
        raise ValueError(
            f"`candidate_features` must have shape (W, {class_features.shape[-1]}) like the class features, "
            f"got {tuple(candidate_features.shape)}."
        )
    cosines = normalize(candidate_features.double(), dim=-1) @ normalize(class_features.double(), dim=-1).T
    nearness = cosines.quantile(percentile, dim=-1)
    return nearness.argsort(stable=True)[: max(1, int(len(nearness) * fraction))]


@register_score("neg_label")
@dataclass(eq=False)
class NegLabel(Score):
    """
    Negative labels ([arXiv 2403.20078](https://arxiv.org/abs/2403.20078)): the softmax mass that the class texts hold
    against the texts of words that are none of the classes, averaged over groups of such words. For text-image models.

    It is given as log-odds, `log(p / (1 - p))` of the paper's p: the same ranking, without p sticking at 0 or 1.

    With `fraction` = 1 the words are taken as they are and the score is ready; calling `fit` binds it to the model's
    identity. With less, `fit` keeps the words that [`mine_negative_labels`] chooses for the model's classes.

    Args:
        negative_features (`torch.Tensor`):
            Text features of the words, `(W, D)`, encoded by the same model (see [`negative_prompts`]).
        groups (`int`, *optional*):
            Number of groups, at most the number of words. Defaults to one for each full 100 words, as in the paper.
        temperature (`float`, *optional*, defaults to 0.01): The cosines are divided by it.
        fraction (`float`, *optional*, defaults to 1.0): Fraction in (0, 1] of the words to keep (the paper: 0.15).
        percentile (`float`, *optional*, defaults to 0.95): See [`mine_negative_labels`].
        seed (`int`, *optional*, defaults to 0): Of the random assignment of words to groups.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features", "class_features", "logit_scale"})
    fit_needs: ClassVar[frozenset[str]] = frozenset({"class_features", "logit_scale"})
    fitted_tensors: ClassVar = {"negative_features": "features"}
    # Not an option but data: it is saved with the state.
    negative_features: InitVar[Optional[torch.Tensor]] = None
    groups: Optional[int] = None
    temperature: float = 0.01
    fraction: float = 1.0
    percentile: float = 0.95
    seed: int = 0

    def __post_init__(self, negative_features: Optional[torch.Tensor]) -> None:
        self._check_option("temperature", self.temperature > 0, "> 0")
        self._check_option("fraction", 0 < self.fraction <= 1, "in (0, 1]")
        self._check_option("percentile", 0 <= self.percentile <= 1, "in [0, 1]")
        self._check_option(
            "groups", self.groups is None or (isinstance(self.groups, int) and self.groups >= 1), "an integer >= 1"
        )
        self._candidates = negative_features
        if negative_features is None:
            return
        if negative_features.ndim != 2 or len(negative_features) == 0:
            raise ValueError(
                f"`negative_features` must have shape (W, D) with W > 0, got {tuple(negative_features.shape)}."
            )
        if not torch.isfinite(negative_features).all():
            raise ValueError("`negative_features` holds NaN or infinite values.")
        if self.fraction == 1:
            self._state = {"negative_features": self._grouped(negative_features)}

    def _fit(self, outputs: ModelOutputs) -> dict[str, torch.Tensor]:
        assert outputs.class_features is not None
        if self._candidates is None:
            raise ValueError(self._how_to_fit())
        if self.fraction == 1:
            return self._state
        candidates = self._candidates.to(outputs.class_features.device)
        chosen = mine_negative_labels(candidates, outputs.class_features, self.fraction, self.percentile)
        return {"negative_features": self._grouped(candidates[chosen])}

    def _grouped(self, negative_features: torch.Tensor) -> torch.Tensor:
        count = len(negative_features)
        self._check_option("groups", self.groups is None or self.groups <= count, f"at most the {count} words")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return normalize(negative_features.detach().float(), dim=-1)[order.to(negative_features.device)]

    def _score(self, outputs: ModelOutputs) -> torch.Tensor:
        assert outputs.features is not None
        assert outputs.class_features is not None
        negatives = self._state["negative_features"].double()
        images = normalize(outputs.features.double(), dim=-1) / self.temperature
        positive = (images @ normalize(outputs.class_features.double(), dim=-1).T).logsumexp(dim=-1, keepdim=True)
        groups = (images @ negatives.T).tensor_split(self.groups or max(1, len(negatives) // 100), dim=-1)
        log_odds = positive - torch.stack([group.logsumexp(dim=-1) for group in groups], dim=-1)
        return logsigmoid(log_odds).logsumexp(dim=-1) - logsigmoid(-log_odds).logsumexp(dim=-1)

    def _how_to_fit(self) -> str:
        if self._candidates is None:
            return (
                "score 'neg_label' has no negative words: encode some with the model's text tower (for example "
                "negative_prompts(class_names)) and pass them as `negative_features`."
            )
        return super()._how_to_fit()
