"""Steerable features: sums of irreducible representations (l, p) of O(3), each with a number of channels.

A feature of R rows is a list of blocks [R, 2 l + 1, mul], one per irrep, channels last, so that mixing channels is one
matrix product. e3nn has all irreps in one row [R, D] and each as [mul, 2 l + 1]; `Layout` is the way between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from e3nn import o3
from torch import Tensor

from equidyn.core.errors import InputError

Blocks = list[Tensor]


@dataclass(frozen=True)
class Block:
    """All channels of one irrep.

    Attributes:
        l, p: degree and parity (1 or -1).
        mul: number of channels.
    """

    l: int  # noqa: E741
    p: int
    mul: int

    @property
    def size(self) -> int:
        """Components 2 l + 1."""
        return 2 * self.l + 1

    @property
    def irrep(self) -> tuple[int, int]:
        """(l, p)."""
        return self.l, self.p

    @property
    def scalar(self) -> bool:
        """Whether it is invariant, under reflections too."""
        return self.irrep == (0, 1)


class Layout:
    """A feature space: its blocks in the order in which the irreps first appear.

    Args:
        irreps: in the notation of e3nn, such as "2x1o+1x0e"; repeated irreps are joined.

    Raises:
        InputError: not in that notation.
    """

    def __init__(self, irreps: str | o3.Irreps) -> None:
        try:
            self.irreps = o3.Irreps(irreps)
        except ValueError:
            raise InputError("irreps", expected="a sum such as 2x1o+1x0e", got=irreps) from None
        channels: dict[tuple[int, int], int] = {}
        for mul, ir in self.irreps:
            if mul:
                channels[ir.l, ir.p] = channels.get((ir.l, ir.p), 0) + mul
        self.blocks = tuple(Block(*irrep, mul) for irrep, mul in channels.items())
        self.dim = self.irreps.dim

    @property
    def channels(self) -> int:
        """Number of channels of all blocks."""
        return sum(block.mul for block in self.blocks)

    @cached_property
    def order(self) -> Tensor:
        """[D]: the column of e3nn's layout that stands in each column of the blocks side by side."""
        column = 0
        parts: dict[tuple[int, int], list[Tensor]] = {block.irrep: [] for block in self.blocks}
        for mul, ir in self.irreps:
            if mul:
                parts[ir.l, ir.p].append((column + torch.arange(mul * ir.dim)).view(mul, ir.dim).T)
                column += mul * ir.dim
        flat = [torch.cat(part, dim=1).flatten() for part in parts.values()]
        return torch.cat(flat) if flat else torch.empty(0, dtype=torch.long)

    def from_e3nn(self, rows: Tensor) -> Blocks:
        """Rows [R, D] of e3nn's layout as blocks."""
        return self.split(rows[:, self.order.to(rows.device)])

    def to_e3nn(self, blocks: Blocks) -> Tensor:
        """Blocks as rows [R, D] of e3nn's layout."""
        return join(blocks)[:, self.order.argsort().to(blocks[0].device)]

    def split(self, rows: Tensor) -> Blocks:
        """The inverse of `join`."""
        return split(rows, self.blocks)


def join(blocks: Blocks) -> Tensor:
    """Blocks side by side: rows [R, D]."""
    return torch.cat([block.flatten(1) for block in blocks], dim=1)


def split(rows: Tensor, blocks: Sequence[Block]) -> Blocks:
    """The inverse of `join`."""
    parts = rows.split([block.size * block.mul for block in blocks], dim=1)
    return [part.unflatten(1, (block.size, block.mul)) for part, block in zip(parts, blocks, strict=True)]


def harmonic_parity(l: int) -> int:  # noqa: E741
    """Parity of the spherical harmonics of degree l."""
    return -1 if l % 2 else 1


Normalization = Literal["component", "integral"]


def spherical_harmonics(lmax: int, r: Tensor, normalization: Normalization) -> Tensor:
    """Real spherical harmonics of directions, degree after degree up to lmax: [R, (lmax + 1)^2].

    The convention is e3nn's (polar axis y). A zero vector has no direction: its degrees above 0 are zero, and its
    gradient is finite.

    Args:
        lmax: highest degree.
        r: [R, 3].
        normalization: "component", |Y_l|^2 = 2 l + 1, or "integral", that over 4 pi.
    """
    q = r.square().sum(-1, keepdim=True)
    unit = r / torch.where(q > 0, q, 1.0).sqrt()
    return o3.spherical_harmonics(list(range(lmax + 1)), unit, normalize=False, normalization=normalization)
