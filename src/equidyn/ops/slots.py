"""Edges laid out in rows of equal length, so that sums over the neighbours of a node are parts of matrix products.

Receivers are sorted by their number of neighbours and cut into chunks: [n, d] slots, a row for each of n receivers, as
long as the largest of them needs. Neighbours in number are nearly equal within a chunk, so that few slots stay empty,
and a chunk is small enough for what is computed from its edges to stay in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from equidyn.ops.edges import Edges, Ends

# Slots of a chunk; and of one so small that empty slots in it do not matter.
_LARGEST, _SMALL = 1536, 384


class Chunk(NamedTuple):
    """Some receivers and the slots of their edges.

    Attributes:
        slots: which of all slots; receiver after receiver.
        nodes: [n] the receivers.
    """

    slots: slice
    nodes: Tensor


@dataclass(frozen=True)
class Slots:
    """The edges of a graph in chunks.

    Attributes:
        chunks: nodes without an edge are in none.
        count: number P of slots.
        slot: [E] slot of each edge.
        senders: node that each slot reads from; any node where the slot is empty.
    """

    chunks: list[Chunk]
    count: int
    slot: Tensor
    senders: Ends

    @staticmethod
    def build(edges: Edges) -> Slots:
        """Lay the edges out."""
        order, offsets = edges.receivers.order, edges.receivers.offsets
        degree = torch.diff(offsets, append=offsets.new_tensor([len(order)]))
        nodes = torch.argsort(degree, stable=True)
        nodes = nodes[degree[nodes] > 0]
        chunks, first, count = [], torch.zeros_like(degree), 0  # first slot of each receiver
        for part in _cut(degree[nodes]):
            mine = nodes[part]
            length = int(degree[mine[-1]])
            first[mine] = count + length * torch.arange(len(mine), device=mine.device)
            chunks.append(Chunk(slice(count, count + length * len(mine)), mine))
            count += length * len(mine)
        slot = torch.empty_like(order)
        receiver = edges.receivers.node[order]
        slot[order] = first[receiver] + torch.arange(len(order), device=order.device) - offsets[receiver]
        sender = torch.zeros(count, dtype=torch.long, device=order.device)
        sender[slot] = edges.senders.node
        return Slots(chunks, count, slot, Ends.of(sender, len(degree)))

    def spread(self, x: Tensor) -> Tensor:
        """Values [E, C] of edges in their slots [P, C], zero in empty ones."""
        return x.new_zeros(self.count, x.shape[1]).index_copy(0, self.slot, x)


def _cut(degree: Tensor) -> list[slice]:
    """Chunks of rows whose degrees rise."""
    degrees, parts, start = degree.tolist(), [], 0
    while start < len(degrees):
        similar = max(1.2 * degrees[start], degrees[start] + 1)
        stop = start + 1
        while stop < len(degrees):
            slots = degrees[stop] * (stop + 1 - start)
            if slots > _LARGEST or (slots > _SMALL and degrees[stop] > similar):
                break
            stop += 1
        parts.append(slice(start, stop))
        start = stop
    return parts
