"""The edges of a graph: send node features along them, sum messages at their ends.

The two operations are each other's derivative: sending copies rows of nodes to edges, summing adds rows of edges up at
nodes. The sum runs on one fast kernel (`embedding_bag`: gather and segmented sum in one pass), for complete graphs and
ragged ones alike; both can be differentiated any number of times.

What a network makes for every edge takes memory for every edge, N^2 on a complete graph. Above `EDGES_AT_ONCE` edges
`in_parts` makes it for some edges at a time; for gradients it is made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from equidyn.core.errors import InputError
from equidyn.ops.cutoff import polynomial_envelope
from equidyn.ops.tracing import exporting
from equidyn.ops.vectors import length

EDGES_AT_ONCE = 1 << 18
"""More edges than these (512 nodes, each joined to all) are worked on in parts of at most as many."""

_ENVELOPE = 6  # exponent of the smooth cutoff, the usual one

if TYPE_CHECKING:
    from equidyn.ops.slots import Slots


class Ends(NamedTuple):
    """One end of every edge (all receivers, or all senders).

    Attributes:
        node: [E] node at that end of each edge.
        order: [E] edges sorted by that node.
        offsets: [N] where each node's edges begin in `order`.
    """

    node: Tensor
    order: Tensor
    offsets: Tensor

    @staticmethod
    def of(node: Tensor, num_nodes: int) -> Ends:
        """From the node [E] at that end of each edge."""
        count = _count(node, num_nodes)
        return Ends(node, torch.argsort(node, stable=True), count.cumsum(0) - count)


def _count(node: Tensor, num_nodes: int) -> Tensor:
    if exporting():  # the size of a `bincount` depends on values
        return node.new_zeros(num_nodes).scatter_add(0, node, torch.ones_like(node))
    return torch.bincount(node, minlength=num_nodes)


def _gather(h: Tensor, node: Tensor) -> Tensor:
    return h.index_select(0, node)


# Opaque to the compiler, which would compute what made h for every edge instead of every node.
_library = torch.library.Library("equidyn", "FRAGMENT")
_library.define("gather(Tensor h, Tensor node) -> Tensor")
_library.impl("gather", _gather, "CompositeExplicitAutograd")


@torch.library.register_fake("equidyn::gather")
def _(h: Tensor, node: Tensor) -> Tensor:
    return h.new_empty(node.shape[0], h.shape[1])


def _sent(h: Tensor, node: Tensor) -> Tensor:
    return (torch.ops.equidyn.gather if torch.compiler.is_compiling() else _gather)(h, node)


def _collected(m: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    return torch.ops.aten._embedding_bag_forward_only(m.contiguous(), order, offsets)[0]


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, node: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(node, order, offsets)
        return _sent(h, node)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return collect(grad, Ends(*ctx.saved_tensors)), None, None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, node: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(node, order, offsets)
        return _collected(m, order, offsets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return send(grad, Ends(*ctx.saved_tensors)), None, None, None


class _SendBoth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, edges: Edges) -> Tensor:
        ctx.edges = edges
        pairs = edges.pairs
        begin = torch.arange(0, len(pairs), 2, device=pairs.device)
        return torch.ops.aten._embedding_bag_forward_only(h.reshape(2 * len(h), -1), pairs, begin)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.stack([collect(grad, ctx.edges.receivers), collect(grad, ctx.edges.senders)], dim=1), None


def send(h: Tensor, ends: Ends) -> Tensor:
    """The row of h [N, C] that belongs to one end of each edge: [E, C]."""
    return _Send.apply(h, *ends) if torch.is_grad_enabled() else _sent(h, ends.node)


def collect(m: Tensor, ends: Ends) -> Tensor:
    """The sum at each node of the rows of m [E, C] whose edges have that end there: [N, C]."""
    return _Collect.apply(m, *ends) if torch.is_grad_enabled() else _collected(m, ends.order, ends.offsets)


@dataclass(frozen=True)
class Edges:
    """The edges of a batch, with what is needed to send and sum along them.

    Attributes:
        receivers: the targets i.
        senders: the sources j.
        inverse_degree: [N, 1] one over the number of edges that end in each node (at least one).
        pairs: [2 E] for each edge the rows 2 i and 2 j + 1, where receiver and sender parts of the nodes alternate.
        shift: [E', n] image offsets of the first E' edges, of which the others are copies; None without images.
        weight: [E', 1] factor of the messages, zero at the cutoff; None for 1.
    """

    receivers: Ends
    senders: Ends
    inverse_degree: Tensor
    pairs: Tensor
    shift: Tensor | None = None
    weight: Tensor | None = None

    @staticmethod
    def build(edge_index: Tensor, num_nodes: int, dtype: torch.dtype, copies: int = 1) -> Edges:
        """Prepare the edges of `copies` copies of one graph, numbered one after the other.

        Args:
            edge_index: [2, E]; row 0 the senders, row 1 the receivers.
            num_nodes: N, nodes of one copy.
            dtype: of the features that will be summed.
            copies: how many graphs share this topology (batch entries, time points).
        """
        shift = num_nodes * torch.arange(copies, device=edge_index.device)
        send, receive = (edge_index[:, None, :] + shift[:, None]).flatten(1)
        total = num_nodes * copies
        degree = _count(receive, total).clamp(min=1)
        pairs = torch.stack([2 * receive, 2 * send + 1], dim=1).flatten()
        return Edges(Ends.of(receive, total), Ends.of(send, total), degree.to(dtype).reciprocal()[:, None], pairs)

    @cached_property
    def slots(self) -> Slots:
        """The edges in rows of equal length, for sums that are matrix products."""
        from equidyn.ops.slots import Slots  # which stands on this file

        return Slots.build(self)

    @property
    def many(self) -> bool:
        """Whether they are worked on in parts."""
        return len(self.receivers.node) > EDGES_AT_ONCE

    @cached_property
    def parts(self) -> list[tuple[Edges, Tensor]]:
        """At most `EDGES_AT_ONCE` edges of the same nodes at a time, and which of the edges [part] they are."""
        nodes, found = len(self.inverse_degree), []
        for index in self.receivers.order.split(EDGES_AT_ONCE):
            receive, send = self.receivers.node[index], self.senders.node[index]
            pairs = torch.stack([2 * receive, 2 * send + 1], dim=1).flatten()
            shift, weight = (None if t is None else t[index % len(t)] for t in (self.shift, self.weight))
            edges = Edges(Ends.of(receive, nodes), Ends.of(send, nodes), self.inverse_degree, pairs, shift, weight)
            found.append((edges, index))
        return found

    def placed(self, pos: Tensor, shift: Tensor | None, cutoff: float = 0.0) -> Edges:
        """The same edges with their image offsets, and weights that fall smoothly to zero at a cutoff.

        Args:
            pos: [R, n] positions of the first R nodes, by which the edges were chosen; the others are copies.
            shift: [E', n] image offsets, r_ij = pos[j] + shift - pos[i]; or None.
            cutoff: distance that chose the edges; 0 for no weights.

        Raises:
            InputError: offsets that do not match the edges.
        """
        total, nodes = len(self.receivers.node), len(self.inverse_degree)
        if shift is not None and ((not len(shift) and total) or (len(shift) and total % len(shift))):
            raise InputError("image offsets", where="field edge_shift", expected="one per edge", got=tuple(shift.shape))
        edges = self if shift is None or not len(shift) else replace(self, shift=shift)
        if not cutoff:
            return edges
        first = total * len(pos) // nodes
        receive, send = self.receivers.node[:first], self.senders.node[:first]
        r = _minus(pos.index_select(0, receive) - pos.index_select(0, send), edges.shift)
        weight = polynomial_envelope(length(r) / cutoff, _ENVELOPE)
        degree = weight.new_zeros(len(pos), 1).index_add(0, receive, weight)
        inverse = degree.clamp(min=1).reciprocal().repeat(nodes // max(len(pos), 1), 1)
        return replace(edges, weight=weight, inverse_degree=inverse)

    def relative(self, x: Tensor) -> Tensor:
        """x_i - x_j for every edge, x_j in its image: [N, n] to [E, n]."""
        return _minus(self.from_receivers(x) - self.from_senders(x), self.shift)

    def weighted(self, m: Tensor) -> Tensor:
        """m [E, C] times the weight of each edge."""
        if self.weight is None or not len(self.weight):
            return m
        return (m.view(-1, *self.weight.shape[:1], m.shape[1]) * self.weight).view(m.shape)

    def from_receivers(self, h: Tensor) -> Tensor:
        """h_i for every edge (i, j): [N, C] to [E, C]."""
        return send(h, self.receivers)

    def from_senders(self, h: Tensor) -> Tensor:
        """h_j for every edge (i, j): [N, C] to [E, C]."""
        return send(h, self.senders)

    def from_both(self, h: Tensor) -> Tensor:
        """h_i0 + h_j1 for every edge (i, j), in one pass: [N, 2, C] to [E, C]."""
        return _SendBoth.apply(h, self)

    def sum(self, m: Tensor) -> Tensor:
        """Sum of the messages that arrive at each node: [E, C] to [N, C]."""
        return collect(m, self.receivers)

    def mean(self, m: Tensor) -> Tensor:
        """Mean of the messages that arrive at each node, zero where none does: [E, C] to [N, C]."""
        return self.sum(m) * self.inverse_degree


def in_parts(edges: Edges, work: Callable[[Edges, Tensor | None], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Sums over edges, made of all of them at once or, where they are many, of one part after the other.

    Args:
        edges: all edges.
        work: from some edges and their numbers among all of them (None: these are all) to sums at the nodes.
    """
    if not edges.many:
        return work(edges, None)
    total: tuple[Tensor, ...] = ()
    for part, index in edges.parts:
        if torch.is_grad_enabled():
            sums = checkpoint(work, part, index, use_reentrant=False, preserve_rng_state=False)
        else:
            sums = work(part, index)
        total = tuple(a + b for a, b in zip(total, sums, strict=True)) if total else sums
    return total


@overload
def rows_of(values: Tensor, index: Tensor | None) -> Tensor: ...
@overload
def rows_of(values: Tensor | None, index: Tensor | None) -> Tensor | None: ...
def rows_of(values: Tensor | None, index: Tensor | None) -> Tensor | None:
    """The rows [part, C] of numbered edges (None: of all), from values [E, C] of the first of several copies."""
    return values if values is None or index is None else values[index % len(values)]


def _minus(r: Tensor, shift: Tensor | None) -> Tensor:
    return r if shift is None else (r.view(-1, *shift.shape) - shift).view(r.shape)


class EdgeCache:
    """Builds `Edges` and keeps the last ones, as batches of one topology ask for the same edges again and again."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, tuple, Edges] | None = None

    @torch.compiler.disable
    def __call__(self, edge_index: Tensor, num_nodes: int, dtype: torch.dtype, copies: int) -> Edges:
        """The edges of `Edges.build` for the same arguments."""
        if exporting():
            return Edges.build(edge_index, num_nodes, dtype, copies)
        rest = (num_nodes, dtype, copies, edge_index.device)
        if self._last is None or self._last[1] != rest or not torch.equal(self._last[0], edge_index):
            edges = Edges.build(edge_index, num_nodes, dtype, copies)
            self._last = (edge_index.clone(), rest, edges)
        return self._last[2]
