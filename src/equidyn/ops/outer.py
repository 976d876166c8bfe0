"""Sums over neighbours of products of two vectors, as small dense matrix products, and the sparse maps around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equidyn.ops.edges import Edges
from equidyn.ops.linear import linear
from equidyn.ops.representations import Constant

Places = tuple[int, ...]


class Slots(NamedTuple):
    """The edges of a graph laid out in rows of equal length, each row the edges of one target.

    Attributes:
        edge: [R, D] number of an edge, or the number of edges E where a row is not full.
        target: [R] target of each row, or None where row and target are the same.
        targets: number M of targets.
        ready: the edges lie in that order already, row after row, and every row is full.
    """

    edge: Tensor
    target: Tensor | None
    targets: int
    ready: bool


@torch.compiler.disable  # the layout depends on the edges; all else on shapes
def neighbour_slots(edges: Edges, targets: int) -> Slots:
    """Lay the edges out.

    Rows are as long as the largest number of neighbours, unless few targets have many more than the mean: then these
    take several rows, and at most about twice as many places as edges are laid out.

    Args:
        edges: of the graph.
        targets: the receivers are numbered below this.
    """
    order, offsets = edges.receivers.order, edges.receivers.offsets
    count = len(order)
    degree = torch.diff(offsets, append=offsets.new_tensor([count]))[:targets]
    most = int(degree.max()) if targets else 0
    mean = -(-count // max(targets, 1))
    length = most if most <= 2 * mean + 2 else mean
    rows = torch.ones_like(degree) if length == most else (degree + length - 1) // length
    target = torch.repeat_interleave(torch.arange(targets, device=order.device), rows)
    part = torch.arange(len(target), device=order.device) - (rows.cumsum(0) - rows)[target]
    place = part[:, None] * length + torch.arange(length, device=order.device)
    full = place < degree[target, None]
    edge = torch.cat([order, order.new_tensor([count])])[torch.where(full, offsets[target, None] + place, count)]
    ready = torch.equal(edge.flatten(), torch.arange(count, device=order.device))
    return Slots(edge, None if length == most else target, targets, ready)


def sum_of_outer(a: Tensor, b: Tensor, slots: Slots) -> Tensor:
    """Σ_e Σ_k a_ek b_ekᵀ over the edges e of each target.

    Args:
        a: [E, K, P].
        b: [E, K, Q].
        slots: of the edges.

    Returns:
        [M, P, Q].
    """
    if slots.ready:
        a, b = (t.unflatten(0, slots.edge.shape) for t in (a, b))
    else:
        a, b = (torch.cat([t, t.new_zeros(1, *t.shape[1:])])[slots.edge] for t in (a, b))
    rows = a.flatten(1, 2).mT @ b.flatten(1, 2)
    if slots.target is None:
        return rows
    return rows.new_zeros(slots.targets, *rows.shape[1:]).index_add(0, slots.target, rows)


def take(x: Tensor, places: Places) -> Tensor:
    """Entries of x [N, d, ...] along d, as a view where they lie side by side."""
    first, stop = places[0], places[-1] + 1
    return x[:, first:stop] if len(places) == stop - first else x[:, list(places)]


class _Set(NamedTuple):
    """Maps that read the same columns, in groups of rows a and the maps k that fill them; `pairs` counts (a, k)."""

    columns: Places
    groups: list[tuple[Places, list[int]]]
    pairs: int


class SparseMaps:
    """Equivariant maps of fields into matrices, applied without the entries that are always zero.

    A map of the basis takes one irrep m to one irrep a of the rows and one irrep b of the columns, so that nine in ten
    entries (a, b, m) are zero.

    Args:
        basis: [K, rows columns, d].
        rows: how many rows the matrices have.
    """

    def __init__(self, basis: Tensor, rows: int) -> None:
        self.width, parts = basis.shape[2], basis.unflatten(1, (rows, -1))
        found: dict[Places, dict[Places, list[int]]] = {}
        for k, there in enumerate((parts.abs() > 1e-12).any(3)):
            own, columns = (tuple(there.any(axis).nonzero().flatten().tolist()) for axis in (1, 0))
            if own:
                found.setdefault(columns, {}).setdefault(own, []).append(k)
        self.sets = [
            _Set(columns, list(groups.items()), sum(len(a) * len(k) for a, k in groups.items()))
            for columns, groups in found.items()
        ]
        self.order = [k for group in self.sets for _, own in group.groups for k in own]
        constants = [basis.new_zeros(0, self.width)]  # of each set [b (a, k), d]
        for columns, groups, _ in self.sets:
            maps = [parts[k][:, list(a)][:, :, list(columns)].movedim(0, 1).flatten(0, 1) for a, k in groups]
            constants.append(torch.cat(maps).transpose(0, 1).flatten(0, 1))
        self.constant = Constant(torch.cat(constants))

    def expand(self, phi: Tensor) -> list[tuple[Places, Tensor]]:
        """Features φ [E, n d] contracted with all maps: for each set of columns b, [E, b, (a, k) n]."""
        constant, count = self.constant(phi), phi.shape[1] // self.width
        psi = linear(phi.reshape(-1, self.width), constant).view(len(phi), count, len(constant))
        parts = psi.split([len(columns) * pairs for columns, _, pairs in self.sets], dim=2)
        return [
            (columns, part.unflatten(2, (len(columns), pairs)).permute(0, 2, 3, 1).flatten(2))
            for (columns, _, pairs), part in zip(self.sets, parts, strict=True)
        ]

    def mix(self, z: Sequence[Tensor], weight: Tensor) -> list[tuple[Places, Tensor]]:
        """Rows a and their values [M, a, c_out], of z [M, (a, k) n, c_in] by set and weights [c_out, c_in, n, K]."""
        ordered, found, first = weight.permute(3, 2, 1, 0)[self.order], [], 0
        for (_, groups, _), whole in zip(self.sets, z, strict=True):
            parts = whole.split([len(a) * len(k) * ordered.shape[1] for a, k in groups], dim=1)
            for (a, k), part in zip(groups, parts, strict=True):
                own = ordered[first : first + len(k)].flatten(0, 2)  # [k n c_in, c_out]
                found.append((a, linear(part.reshape(len(whole), len(a), len(own)), own.t())))
                first += len(k)
        return found
