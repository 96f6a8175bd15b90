"""Parameterised hypercomplex multiplication with factorised weights (arXiv 2106.04647)."""

from __future__ import annotations

import torch
from torch import nn


class HypercomplexFactors(nn.Module):
    """
    What a projection has besides the rule: the weight is `sum_i kron(rule[i], left[i] @ right[i])`.

    Args:
        in_features (`int`): Width of the input, a multiple of `dim`.
        out_features (`int`): Width of the output, a multiple of `dim`.
        dim (`int`): The number n of products.
        rank (`int`): Inner dimension of the factors.
    """

    def __init__(self, in_features: int, out_features: int, dim: int, rank: int) -> None:
        super().__init__()
        # With a rule of standard deviation n ** -0.5 this gives the weight the scale of a linear layer's.
        self.left = nn.Parameter(torch.randn(dim, out_features // dim, rank) * rank**-0.5)
        self.right = nn.Parameter(torch.randn(dim, rank, in_features // dim) * (3 * in_features) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def weight(self, rule: torch.Tensor) -> torch.Tensor:
        """
        The weight of the projection.

        Args:
            rule (`torch.Tensor`): Shape `(n, n, n)`, product by row by column.

        Returns:
            `torch.Tensor`: Shape `(out_features, in_features)`.
        """
        blocks = torch.einsum("iab,icd->acbd", rule, self.left @ self.right)
        return blocks.flatten(2).flatten(0, 1)


def new_rule(dim: int) -> torch.Tensor:
    """A rule to start from, shape `(dim, dim, dim)`."""
    return torch.randn(dim, dim, dim) * dim**-0.5
