"""Sums over neighbours of products of two vectors, as small dense matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from equidyn.ops.edges import Edges


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
