from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..blocks import describe_blocks
from .block_scores import BlockScores, Score, score_candidates


def defrosting(model: nn.Module, score: Score, *, always: Sequence[str] = ("head",), step: int = 1) -> BlockScores:
    """
    Sweep over the frozen depth: train everything above the first 0, 1, 2 ... parts (the embedding, then the layers). The
    best depth depends on how much target data there is and how it differs (arXiv 2303.01429). Costs a training for each
    depth.

    Args:
        model (`torch.nn.Module`): The model, for the names of its blocks.
        score (`Callable`): `(blocks) -> float` as for [`cross_validated`].
        always (`Sequence[str]`, *optional*, defaults to `("head",)`): Blocks that are trained at every depth.
        step (`int`, *optional*, defaults to 1): Parts between two depths; the first and the last depth are always tried.

    Returns:
        [`BlockScores`]: Candidates are called `"0 frozen"`, `"1 frozen"` ...

    Raises:
        ValueError: If the model's blocks are unknown, or an argument is out of range.
    """
    if step < 1:
        raise ValueError(f"`step` must be at least 1, got {step}.")
    names = describe_blocks(model).names
    parts = [name for name in names if name.startswith(("embedding", "block:"))]
    always = [name for name in always if name in names] if tuple(always) == ("head",) else list(always)
    depths = sorted({*range(0, len(parts) + 1, step), len(parts) if always else len(parts) - 1})
    candidates = {f"{depth} frozen": (*parts[depth:], *always) for depth in depths}
    candidates = {label: blocks for label, blocks in candidates.items() if blocks}
    return score_candidates("frozen depth", candidates, score, False)
