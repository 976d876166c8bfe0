"""The Clebsch-Gordan product of steerable features with attributes of multiplicity one, such as spherical harmonics.

    t^{l1 l2 lo}_{k u} = sqrt(2 lo + 1) sum_{i j} C^{l1 l2 lo}_{i j k} a^{l2}_j x^{l1}_{i u}

For each row this is a small sparse matrix, the coupling tensors contracted with the attribute, times [components,
channels]. It holds no weight: it is computed once and serves every layer. The matrices of all rows make one sparse
matrix, and multiplying by it is one pass of `embedding_bag`, far faster than many small dense products. The product can
be differentiated any number of times, also by the attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import torch
from e3nn import o3
from torch import Tensor

from equidyn.ops.steerable import Block, harmonic_parity

Irrep = tuple[int, int]


def degrees(source: Irrep, lmax: int, target: Irrep) -> list[int]:
    """Degrees l2 <= lmax of the attributes that take irrep `source` to irrep `target`."""
    (l1, p1), (lo, po) = source, target
    between = range(abs(l1 - lo), min(l1 + lo, lmax) + 1)
    return [l2 for l2 in between if p1 * harmonic_parity(l2) == po]


def paths(source: Sequence[Block], lmax: int, target: Block) -> list[tuple[int, int]]:
    """(number of the source block, l2) of all paths to a target."""
    return [(n, l2) for n, block in enumerate(source) for l2 in degrees(block.irrep, lmax, target.irrep)]


@dataclass(frozen=True)
class Places:
    """Where the nonzero entries of a sparse matrix stand: `row` and `column` [entries], sorted by row, and `offsets`
    [rows], where each row begins."""

    row: Tensor
    column: Tensor
    offsets: Tensor

    @staticmethod
    def build(row: Tensor, column: Tensor, rows: int) -> Places:
        """From entries sorted by row."""
        count = torch.bincount(row, minlength=rows)
        return Places(row, column, count.cumsum(0) - count)


@dataclass(frozen=True)
class Pattern:
    """The places of a matrix and of its transpose, whose entry n is entry order[n] of the matrix."""

    here: Places
    there: Places
    order: Tensor
    inverse: Tensor

    @property
    def transpose(self) -> Pattern:
        """The pattern of the transpose."""
        return Pattern(self.there, self.here, self.inverse, self.order)


@dataclass(frozen=True)
class Coupling:
    """A sparse matrix: the values of its entries, and the same in the order of the transpose."""

    values: Tensor
    transposed: Tensor
    pattern: Pattern

    def times(self, table: Tensor) -> Tensor:
        """The product with [columns, C]: [rows, C]."""
        values, transposed = self.values.to(table.dtype), self.transposed.to(table.dtype)
        return _Multiply.apply(table, values, transposed, self.pattern)


class _Multiply(torch.autograd.Function):
    """The derivative by the values goes through `values` alone; `transposed` is a copy for the backward pass."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, values: Tensor, transposed: Tensor, pattern: Pattern) -> Tensor:
        table = table.contiguous()
        ctx.save_for_backward(table if values.requires_grad else None, values, transposed)
        ctx.pattern = pattern
        here = pattern.here
        bag = torch.ops.aten._embedding_bag_forward_only
        return bag(table, here.column, here.offsets, False, 0, False, values)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, values, transposed = ctx.saved_tensors
        by_table = by_values = None
        if ctx.needs_input_grad[0]:
            by_table = _Multiply.apply(grad, transposed, values, ctx.pattern.transpose)
        if ctx.needs_input_grad[1]:
            by_values = _Dot.apply(grad, table, ctx.pattern)
        return by_table, by_values, None, None


class _Dot(torch.autograd.Function):
    """Row r of g [rows, C] times row c of table [columns, C], for every entry (r, c) of a pattern: [entries]."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, table: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(g, table)
        ctx.pattern = pattern
        here = pattern.here
        dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
        return dot(g.contiguous(), table.contiguous(), here.column, here.offsets, here.row, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (g, table), pattern = ctx.saved_tensors, ctx.pattern
        transposed = grad[pattern.order]
        by_g = _Multiply.apply(table, grad, transposed, pattern)
        return by_g, _Multiply.apply(g, transposed, grad, pattern.transpose), None


@dataclass(frozen=True)
class _Small:
    """The matrix of one row: the coefficients [A, entries] of its nonzero entries, and where they stand.

    Its rows are those of the targets one after the other, its columns those of the sources.
    """

    target: Tensor  # [entries]
    row: Tensor  # within the target
    source: Tensor
    column: Tensor  # within the source
    coefficients: Tensor
    heights: tuple[int, ...]
    widths: tuple[int, ...]


Form = Literal["contract", "mix"]


@cache
def _small(sources: tuple[Irrep, ...], lmax: int, targets: tuple[Irrep, ...], form: Form) -> _Small:
    """Form "contract": rows (k, path) for each target, columns i for each source.

    Form "mix": rows k for each target, columns (path, i) in place of all sources.
    """
    entries: list[tuple[int, int, int, int, Tensor]] = []
    heights, width = [], 0
    for t, target in enumerate(targets):
        lo = target[0]
        found = [(n, l2) for n, source in enumerate(sources) for l2 in degrees(source, lmax, target)]
        heights.append((2 * lo + 1) * (len(found) if form == "contract" else 1))
        for path, (n, l2) in enumerate(found):
            l1 = sources[n][0]
            tensor = torch.zeros((lmax + 1) ** 2, 2 * lo + 1, 2 * l1 + 1, dtype=torch.float64)
            wigner = o3.wigner_3j(l1, l2, lo, dtype=torch.float64) * (2 * lo + 1) ** 0.5
            tensor[l2**2 : (l2 + 1) ** 2] = wigner.permute(1, 2, 0)
            for k, i in (tensor.abs().sum(0) > 1e-9).nonzero().tolist():
                row, source, column = (k * len(found) + path, n, i) if form == "contract" else (k, 0, width + i)
                entries.append((t, row, source, column, tensor[:, k, i]))
            width += 2 * l1 + 1
    entries.sort(key=lambda entry: entry[:4])
    index = torch.tensor([entry[:4] for entry in entries], dtype=torch.long).view(-1, 4)
    empty = torch.zeros((lmax + 1) ** 2, 0, dtype=torch.float64)
    coefficients = torch.stack([entry[4] for entry in entries], dim=1) if entries else empty
    widths = [2 * source[0] + 1 for source in sources] if form == "contract" else [width]
    t, row, s, column = index.T
    return _Small(t, row, s, column, coefficients, tuple(heights), tuple(widths))


@lru_cache(maxsize=64)
def _pattern(
    sources: tuple[Irrep, ...], lmax: int, targets: tuple[Irrep, ...], form: Form, rows: int, device: torch.device
) -> Pattern:
    """All rows: the rows of target 0 of all rows, then of target 1, ...; columns likewise by source."""
    small = _small(sources, lmax, targets, form)
    each = torch.arange(rows)[:, None]
    row, column, place = (torch.empty(rows, len(small.row), dtype=torch.long) for _ in range(3))
    starts = [0, 0, 0]
    for t, height in enumerate(small.heights):
        mine = small.target == t
        row[:, mine] = starts[0] + each * height + small.row[mine]
        count = int(mine.sum())
        place[:, mine] = starts[1] + each * count + torch.arange(count)
        starts[0], starts[1] = starts[0] + rows * height, starts[1] + rows * count
    back = []
    for s, width in enumerate(small.widths):
        mine = (small.source == s).nonzero().flatten()
        column[:, mine] = starts[2] + each * width + small.column[mine]
        back.append(place[:, mine[small.column[mine].argsort(stable=True)]].flatten())
        starts[2] += rows * width
    inverse = _inverse(place.flatten())
    row, column = row.flatten()[inverse], column.flatten()[inverse]
    order = torch.cat(back)
    here = Places.build(row, column, starts[0])
    there = Places.build(column[order], row[order], starts[2])
    to = lambda places: Places(*(getattr(places, n).to(device) for n in ("row", "column", "offsets")))  # noqa: E731
    return Pattern(to(here), to(there), order.to(device), _inverse(order).to(device))


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


class Attributes:
    """The attributes of nodes or edges, and the matrices that couple features with them.

    Args:
        values: [R, (lmax + 1)^2], degree after degree, of the parity of the spherical harmonics.
    """

    def __init__(self, values: Tensor) -> None:
        self.values, self.lmax = values, round(values.shape[1] ** 0.5) - 1
        self._made: dict[object, Coupling] = {}

    def coupling(self, sources: Sequence[Block], targets: Sequence[Block], form: Form = "contract") -> Coupling:
        """The coupling of sources with the attributes to targets.

        The "contract" form multiplies the channels of x: from the rows (e, i) of each source block, one block after the
        other, to the rows (e, k, path) of each target. The "mix" form multiplies channels that were mixed before, for
        one target: from the rows (e, path, i) to the rows (e, k).
        """
        key = tuple(b.irrep for b in sources), self.lmax, tuple(b.irrep for b in targets), form
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    @torch.compiler.disable
    def _make(self, sources: tuple[Irrep, ...], lmax: int, targets: tuple[Irrep, ...], form: Form) -> Coupling:
        small = _small(sources, lmax, targets, form)
        coefficients = small.coefficients.to(self.values)
        by_target = [
            self.values @ coefficients[:, small.target.to(self.values.device) == t] for t in range(len(targets))
        ]
        values = torch.cat([part.flatten() for part in by_target])
        pattern = _pattern(sources, lmax, targets, form, len(self.values), self.values.device)
        return Coupling(values, values[pattern.order], pattern)


def contract(
    blocks: Sequence[Tensor], source: Sequence[Block], target: Sequence[Block], attributes: Attributes
) -> list[Tensor]:
    """All products of features with attributes: per target [R, 2 lo + 1, channels], path after path."""
    rows = len(attributes.values)
    found: list[list[Tensor]] = [[attributes.values.new_empty(rows, block.size, 0)] for block in target]
    for first, last in equal_runs(source):
        group = source[first:last]
        counts = [len(paths(group, attributes.lmax, block)) for block in target]
        mul = group[0].mul
        tables = [part.reshape(-1, mul) for part in blocks[first:last]]
        product = attributes.coupling(group, target).times(torch.cat(tables) if len(tables) > 1 else tables[0])
        parts = product.split([rows * block.size * n for block, n in zip(target, counts, strict=True)])
        for place, part, block, n in zip(found, parts, target, counts, strict=True):
            place.append(part.view(rows, block.size, n * mul))
    return [torch.cat(place, dim=2) if len(place) > 2 else place[-1] for place in found]


def equal_runs(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Runs of neighbouring blocks with equally many channels."""
    starts = [n for n, block in enumerate(blocks) if not n or block.mul != blocks[n - 1].mul]
    ends = [*starts[1:], len(blocks)]
    return [(first, last) for first, last in zip(starts, ends, strict=True) if blocks[first].mul]
