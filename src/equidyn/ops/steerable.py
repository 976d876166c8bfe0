"""Steerable features: how they lie in memory, and their Clebsch-Gordan product with attributes.

A feature space is a sum of irreducible representations (l, p) of O(3), each with a multiplicity. Here every irrep is one
block [2 l + 1, mul], channels last, so that mixing channels is one matrix product and blocks of equal multiplicity join
to [S, mul]; e3nn has [mul, 2 l + 1], and `Layout.order` is the way between the two.

Attributes (spherical harmonics of a direction, say) have multiplicity one. Their product with a feature is then a small
matrix per row, the coupling tensors contracted with the attribute. It depends on no weight: it is computed once and
serves every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from typing import Literal

import torch
from e3nn import o3
from torch import Tensor

from equidyn.core.errors import InputError


@dataclass(frozen=True)
class Block:
    """All channels of one irrep.

    Attributes:
        l, p: degree and parity (1 or -1).
        mul: number of channels.
        start: first column in a row of features.
    """

    l: int  # noqa: E741
    p: int
    mul: int
    start: int

    @property
    def size(self) -> int:
        """Components 2 l + 1."""
        return 2 * self.l + 1

    @property
    def irrep(self) -> tuple[int, int]:
        """(l, p)."""
        return self.l, self.p

    def view(self, rows: Tensor) -> Tensor:
        """This block of rows of features [R, D], as [R, 2 l + 1, mul]."""
        return rows.narrow(1, self.start, self.size * self.mul).unflatten(1, (self.size, self.mul))


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
        blocks, start = [], 0
        for (l, p), mul in channels.items():
            blocks.append(Block(l, p, mul, start))
            start += (2 * l + 1) * mul
        self.blocks, self.dim = tuple(blocks), start

    def block(self, l: int, p: int) -> Block | None:  # noqa: E741
        """The block of an irrep, if there is one."""
        return next((block for block in self.blocks if block.irrep == (l, p)), None)

    @cached_property
    def groups(self) -> tuple[tuple[Block, ...], ...]:
        """Neighbouring blocks of equal multiplicity."""
        return tuple(tuple(blocks) for _, blocks in groupby(self.blocks, lambda block: block.mul))

    @cached_property
    def order(self) -> Tensor:
        """[D]: column of e3nn's layout that stands in each of our columns."""
        seen = dict.fromkeys((block.irrep for block in self.blocks), 0)
        order, column = torch.empty(self.dim, dtype=torch.long), 0
        for mul, ir in self.irreps:
            if mul:
                block = self.block(ir.l, ir.p)
                assert block is not None
                channel, m = torch.meshgrid(torch.arange(mul), torch.arange(ir.dim), indexing="ij")
                ours = block.start + m * block.mul + seen[block.irrep] + channel
                order[ours.flatten()] = column + torch.arange(mul * ir.dim)
                seen[block.irrep] += mul
                column += mul * ir.dim
        return order

    def from_e3nn(self, rows: Tensor) -> Tensor:
        """Rows [R, D] of e3nn's layout in ours."""
        return rows[:, self.order.to(rows.device)]

    def to_e3nn(self, rows: Tensor) -> Tensor:
        """Rows [R, D] of our layout in e3nn's."""
        return rows[:, self.order.argsort().to(rows.device)]


def harmonic_parity(l: int) -> int:  # noqa: E741
    """Parity of the spherical harmonics of degree l."""
    return -1 if l % 2 else 1


def paths(source: tuple[int, int], lmax: int, target: tuple[int, int]) -> list[int]:
    """Degrees l2 <= lmax of the attributes that take irrep `source` to irrep `target`."""
    (l1, p1), (lo, po) = source, target
    between = range(abs(l1 - lo), min(l1 + lo, lmax) + 1)
    return [l2 for l2 in between if p1 * harmonic_parity(l2) == po]


def group_paths(group: tuple[Block, ...], lmax: int, target: Block) -> list[tuple[int, int]]:
    """(number of the block in its group, l2) of all paths from a group to a target, in the order of the weights."""
    return [(n, l2) for n, block in enumerate(group) for l2 in paths(block.irrep, lmax, target.irrep)]


Form = Literal["contract", "mix"]


@cache
def _coupling(irreps: tuple[tuple[int, int], ...], lmax: int, target: tuple[int, int], form: Form) -> Tensor:
    """sqrt(2 lo + 1) C^{l1 l2 lo}_{ijk} with the attribute's component j first, float64.

    Form "contract": [A, k P, S], P paths (l1, l2) and S components (l1, i); zero where the l1 differ.
    Form "mix": [A, k, S'], S' triples (l1, i, l2).
    """
    lo = target[0]
    starts = [sum(2 * l + 1 for l, _ in irreps[:n]) for n in range(len(irreps))]
    found = [(n, l2) for n, ir in enumerate(irreps) for l2 in paths(ir, lmax, target)]
    dense = torch.zeros((lmax + 1) ** 2, 2 * lo + 1, len(found), sum(2 * l + 1 for l, _ in irreps), dtype=torch.float64)
    for path, (n, l2) in enumerate(found):
        l1 = irreps[n][0]
        tensor = o3.wigner_3j(l1, l2, lo, dtype=torch.float64).permute(1, 2, 0) * (2 * lo + 1) ** 0.5
        dense[l2**2 : (l2 + 1) ** 2, :, path, starts[n] : starts[n] + 2 * l1 + 1] = tensor
    if form == "contract":
        return dense.flatten(1, 2)
    columns = [
        dense[:, :, [p for p, (m, _) in enumerate(found) if m == n], starts[n] + i]
        for n, (l1, _) in enumerate(irreps)
        for i in range(2 * l1 + 1)
    ]
    return torch.cat(columns, dim=2)


class Attributes:
    """The attributes of nodes or edges, and their coupling matrices.

    Args:
        values: [R, (lmax + 1)^2], degree after degree, of the parity of the spherical harmonics.
    """

    def __init__(self, values: Tensor) -> None:
        self.values, self.lmax = values, round(values.shape[1] ** 0.5) - 1
        self._made: dict[object, Tensor] = {}

    def coupling(self, group: tuple[Block, ...], target: Block, form: Form = "contract") -> Tensor:
        """The matrices of one group and target: [R, k P, S], or [R, k, S'] in the form "mix"; see `_coupling`."""
        irreps = tuple(block.irrep for block in group)
        key = irreps, target.irrep, form
        if key not in self._made:
            self._made[key] = self._make(irreps, target.irrep, form)
        return self._made[key]

    @torch.compiler.disable
    def _make(self, irreps: tuple[tuple[int, int], ...], target: tuple[int, int], form: Form) -> Tensor:
        tensor = _coupling(irreps, self.lmax, target, form).to(self.values)
        return (self.values @ tensor.flatten(1)).unflatten(1, tensor.shape[1:])


Normalization = Literal["component", "integral"]


def length(r: Tensor) -> Tensor:
    """|r| [R, 1] with a zero gradient instead of NaN at r = 0."""
    q = r.square().sum(-1, keepdim=True)
    safe = torch.where(q > 0, q, 1.0)
    return torch.where(q > 0, safe.sqrt(), 0.0)


def spherical_harmonics(lmax: int, r: Tensor, normalization: Normalization) -> Tensor:
    """Real spherical harmonics of directions, up to degree lmax: [R, (lmax + 1)^2].

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
