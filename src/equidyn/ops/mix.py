"""Linear maps of the channels of steerable features: one matrix per block, for all components."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equidyn.ops.linear import linear
from equidyn.ops.species import Kinds


class Mix(nn.Module):
    """The map for blocks [N, 2 l + 1, C]; weights [in, out] are standard normal, divided by the root of their fan-in.

    Args:
        inputs, outputs: channels of each block; where the input has fewer blocks, the rest of the output, of l one
            higher each, is zero.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        fans = [*inputs, *[0] * (len(outputs) - len(inputs))]
        self.weights = nn.ParameterList(torch.randn(i, o) for i, o in zip(fans, outputs, strict=False))

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Map the blocks."""
        x = _with_missing(x, len(self.weights))
        return [
            linear(h, (w * w.shape[0] ** -0.5).t()) if len(w) else h.new_zeros(*h.shape[:2], w.shape[1])
            for h, w in zip(x, self.weights, strict=False)
        ]


class SpeciesMix(nn.Module):
    """As `Mix`, with matrices of the atom's species: weights [S, in, out], divided by the root of S times the fan-in.

    Args:
        inputs, outputs: channels of each block, as for `Mix`.
        num_species: S.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], num_species: int) -> None:
        super().__init__()
        fans = [*inputs, *[0] * (len(outputs) - len(inputs))]
        self.weights = nn.ParameterList(torch.randn(num_species, i, o) for i, o in zip(fans, outputs, strict=False))

    def forward(self, x: Sequence[Tensor], kinds: Kinds) -> list[Tensor]:
        """Map blocks whose rows are sorted by species."""
        scaled = [(w * max(w.shape[0] * w.shape[1], 1) ** -0.5)[kinds.present] for w in self.weights]
        return [kinds.times(h, w) for h, w in zip(_with_missing(x, len(scaled)), scaled, strict=False)]


def _with_missing(x: Sequence[Tensor], blocks: int) -> list[Tensor]:
    """Blocks of l = 0, 1, ..., with those that are missing as blocks without channels."""
    return [*x, *(x[0].new_zeros(x[0].shape[0], 2 * degree + 1, 0) for degree in range(len(x), blocks))]
