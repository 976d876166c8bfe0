"""Convolution of spherical features with weighted spherical harmonics, summed at the receivers.

Each path (l1, l2, l3) couples features l1 of the sender with harmonics l2 of an edge to l3, by a weight per edge and
channel (Thomas et al. 2018, arXiv 1802.08219). The harmonics come first, coupled to a small matrix between components
of l1 and l3 that channels share. What is left is a sum over the edges of a receiver and the components of l1, one
matrix product per receiver: messages are never written per edge. Edges are kept in tiles of few edges of one receiver,
so that products have equal sizes whatever the numbers of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from e3nn.o3 import wigner_3j
from torch import Tensor, nn

from equidyn.ops.constant import Constant
from equidyn.ops.edges import Ends, collect, send

TILE = 8
"""Edges per tile."""


def _ends(node: Tensor, num_nodes: int) -> Ends:
    count = torch.bincount(node, minlength=num_nodes)
    return Ends(node, torch.argsort(node, stable=True), count.cumsum(0) - count)


@dataclass(frozen=True)
class Tiles:
    """The edges of a graph in tiles of `TILE` slots, each tile of one receiver; some slots stay empty.

    Attributes:
        edge: [P] edge in each slot; any edge where the slot is empty.
        used: [P] whether the slot holds an edge.
        senders: node that each slot reads from.
        receiver: [P] node that each slot belongs to.
        nodes: node that each tile belongs to.
    """

    edge: Tensor
    used: Tensor
    senders: Ends
    receiver: Tensor
    nodes: Ends

    @staticmethod
    def build(sender: Tensor, receiver: Tensor, num_nodes: int) -> Tiles:
        """Sort edges [E] by receiver into tiles."""
        edge = torch.argsort(receiver, stable=True)
        degree = torch.bincount(receiver, minlength=num_nodes)
        tiles = (degree + TILE - 1) // TILE
        node = torch.repeat_interleave(torch.arange(num_nodes, device=edge.device), tiles)
        # Slot of each sorted edge: its place in the order, plus the empty slots of all receivers before its own.
        empty = TILE * (tiles.cumsum(0) - tiles) - (degree.cumsum(0) - degree)
        slot = torch.arange(len(edge), device=edge.device) + empty[receiver[edge]]
        slot_edge = edge.new_zeros(TILE * len(node))
        used = torch.zeros_like(slot_edge, dtype=torch.bool)
        slot_edge[slot], used[slot] = edge, True
        slot_receiver = node.repeat_interleave(TILE)
        slot_sender = torch.where(used, sender[slot_edge], slot_receiver) if len(edge) else slot_edge
        return Tiles(slot_edge, used, _ends(slot_sender, num_nodes), slot_receiver, _ends(node, num_nodes))

    def sum(self, values: Tensor) -> Tensor:
        """Sum per receiver of values [P, C] of slots: [N, C]. Empty slots must hold zeros."""
        return collect(values.unflatten(0, (-1, TILE)).sum(1), self.nodes)


def natural_paths(l_in: int, l_edge: int, l_out: int) -> list[tuple[int, int, int]]:
    """All (l1, l2, l3) that keep the natural parity (-1)^l, sorted by l3, in the order of e3nn."""
    paths = [
        (l1, l2, l3)
        for l1 in range(l_in + 1)
        for l2 in range(l_edge + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, l_out) + 1)
        if (l1 + l2 + l3) % 2 == 0
    ]
    return sorted(paths, key=lambda path: path[2])


class TensorConvolution(nn.Module):
    """The convolution, without weights of its own.

    Args:
        channels: of the input, per l.
        l_edge: highest l of the harmonics.
        l_out: highest l of the output.
    """

    def __init__(self, channels: list[int], l_edge: int, l_out: int) -> None:
        super().__init__()
        self.channels = channels
        self.paths = [path for path in natural_paths(len(channels) - 1, l_edge, l_out) if channels[path[0]]]
        self.couplings = [
            Constant(sqrt(2 * l3 + 1) * wigner_3j(l2, l1, l3, dtype=torch.float64).flatten(1))
            for l1, l2, l3 in self.paths
        ]
        self.weight_sizes = [channels[l1] for l1, _, _ in self.paths]
        self.out_channels = [sum(channels[l1] for l1, _, k in self.paths if k == l3) for l3 in range(l_out + 1)]

    def forward(self, x: list[Tensor], harmonics: list[Tensor], weights: Tensor, tiles: Tiles) -> list[Tensor]:
        """Convolve.

        Args:
            x: over l1 of [N, 2 l1 + 1, C].
            harmonics: over l2 of [P, 2 l2 + 1], zero in empty slots.
            weights: [P, sum of `weight_sizes`].
            tiles: the edges.

        Returns:
            Over l3 of [N, 2 l3 + 1, all paths to l3].
        """
        sent = [send(h.flatten(1), tiles.senders).unflatten(1, h.shape[1:]) for h in x]
        messages: list[list[Tensor]] = [[] for _ in self.out_channels]
        for path, coupling, weight in zip(
            self.paths, self.couplings, weights.split(self.weight_sizes, dim=1), strict=True
        ):
            l1, l2, l3 = path
            # Between the components of l1 and l3: [tiles, TILE * (2 l1 + 1), 2 l3 + 1].
            matrix = harmonics[l2] if l1 == 0 else harmonics[l2] @ coupling.like(weight)
            matrix = matrix.view(-1, TILE * (2 * l1 + 1), 2 * l3 + 1)
            values = (sent[l1] * weight.unsqueeze(1)).reshape(-1, matrix.shape[1], weight.shape[1])
            messages[l3].append(torch.bmm(matrix.transpose(1, 2), values))
        per_tile = [torch.cat(parts, dim=2) for parts in messages]
        summed = collect(torch.cat([m.flatten(1) for m in per_tile], dim=1), tiles.nodes)
        sizes = [m.shape[1] * m.shape[2] for m in per_tile]
        return [s.unflatten(1, m.shape[1:]) for s, m in zip(summed.split(sizes, 1), per_tile, strict=True)]
