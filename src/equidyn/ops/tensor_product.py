"""The tensor product of features with the edges' spherical harmonics, summed at the receivers.

    A_i^(l3, k)[m3, c] = sum_j w_ij^k[c]  sum_{m1 m2} C[m1, m2, m3] h_j^(l1)[m1, c] Y_ij^(l2)[m2],    k = (l1, l2, l3)

The coefficients C and the harmonics do not know the channels c. They are contracted first, once per edge, for all
layers together, to small matrices K_ij[m3, m1] (`Couplings`); what is left per channel is a product of a matrix with
at most 2 l + 1 rows and columns. No array of the size edges x channels x m1 x m2 is ever built.

Features are rows of blocks, one per irrep (l, p) with its number of channels, components before channels:
[N, sum of (2 l + 1) channels].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equidyn.ops.so3 import wigner_3j


class Irrep(NamedTuple):
    """A block of features: degree l, parity (1 even, -1 odd under inversion), and how many channels it has."""

    degree: int
    parity: int
    channels: int

    @property
    def width(self) -> int:
        """Numbers per node."""
        return (2 * self.degree + 1) * self.channels


class Group(NamedTuple):
    """All ways from one degree to another with one parity of the harmonics: l_in x l_edge -> l_out."""

    l_in: int
    l_edges: tuple[int, ...]
    l_out: int


def split_irreps(h: Tensor, irreps: Sequence[Irrep]) -> list[Tensor]:
    """The blocks [N, 2 l + 1, channels] of features [N, width]."""
    parts = h.split([irrep.width for irrep in irreps], dim=1)
    return [part.unflatten(1, (-1, irrep.channels)) for part, irrep in zip(parts, irreps, strict=True)]


def couplings_between(source: Irrep, target: Irrep, l_max: int) -> Group:
    """How harmonics up to l_max (of parity (-1)^l) carry one block to another; `l_edges` may be empty."""
    a, b = source.degree, target.degree
    degrees = range(abs(a - b), min(a + b, l_max) + 1)
    return Group(a, tuple(d for d in degrees if source.parity * (-1) ** d == target.parity), b)


class Couplings(nn.Module):
    """The matrices K of several groups, from the harmonics of each edge.

    Args:
        groups: what is needed; each distinct one is computed once.
        l_max: degree of the harmonics.
    """

    matrix: Tensor

    def __init__(self, groups: Iterable[Group], l_max: int) -> None:
        super().__init__()
        self.groups = tuple(dict.fromkeys(groups))
        columns = [self._columns(group, l_max) for group in self.groups]
        self.sizes = [part.shape[1] for part in columns]
        self.register_buffer("matrix", torch.cat(columns, dim=1), persistent=False)

    @staticmethod
    def _columns(group: Group, l_max: int) -> Tensor:
        """[(l_max + 1)^2, K], where K runs over l_edge, m3, m1."""
        blocks = []
        for degree in group.l_edges:
            rows = torch.zeros((l_max + 1) ** 2, (2 * group.l_out + 1) * (2 * group.l_in + 1), dtype=torch.float64)
            coupling = math.sqrt(2 * group.l_out + 1) * wigner_3j(group.l_in, degree, group.l_out)
            rows[degree**2 : (degree + 1) ** 2] = coupling.permute(1, 2, 0).flatten(1)
            blocks.append(rows)
        return torch.cat(blocks, dim=1)

    def forward(self, harmonics: Tensor) -> dict[Group, Tensor]:
        """From [E, (l_max + 1)^2]: for each group [E, len(l_edges) (2 l_out + 1), 2 l_in + 1]."""
        parts = (harmonics @ self.matrix.to(harmonics.dtype)).split(self.sizes, dim=1)
        return {g: part.unflatten(1, (-1, 2 * g.l_in + 1)) for g, part in zip(self.groups, parts, strict=True)}
