"""The steerable convolution: features of the neighbours times spherical harmonics, weighted, summed at the receivers.

    A_i^(k)[m3, c] = sum_j w_ij^(k)[c]  sum_{m1 m2} C[m1, m2, m3] h_j^(l1)[m1, c] Y_ij^(l2)[m2],    k = (l1, l2, l3)

(Thomas et al. 2018, arXiv 1802.08219.) The weights w come from a network of the distance. The harmonics are coupled
first, to small matrices between components of l1 and l3 that channels share. What is left is a sum over the edges of a
receiver and the components of l1: one matrix product per receiver and path, so that messages are never written per
edge. Large graphs go in chunks of a thousand edges or two (`equidyn.ops.slots`), the network included, and a chunk is
computed again when it is differentiated: what is kept in memory is what went in. Then it can be differentiated twice,
as training on forces does; small graphs are plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from equidyn.ops.constant import Constant
from equidyn.ops.edges import Edges, send
from equidyn.ops.slots import Chunk, Slots
from equidyn.ops.so3 import wigner_3j
from equidyn.ops.tracing import traced

# Up to so many weights (edges times channels of all paths) training keeps what it computed, as long as memory is there:
# to compute it again takes half as long again.
_KEPT = 2_500_000


def _trains(radial: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(weight.requires_grad for weight in radial.parameters())


class Path(NamedTuple):
    """One way l1 x l2 -> l3: the block of the input that l1 is, l2, l3, and the block of the output it goes to."""

    source: int
    l_edge: int
    l_out: int
    target: int


@dataclass(frozen=True)
class Neighbourhood:
    """What the convolutions of all layers read of the edges.

    Attributes:
        edges: of the nodes.
        slots: their layout; None while traced, as it depends on the edges and all else on shapes alone.
        harmonics: [P, (l_max + 1)^2] in slots, or [E, ...] without.
    """

    edges: Edges
    slots: Slots | None
    harmonics: Tensor

    @staticmethod
    def build(edges: Edges, harmonics: Tensor) -> Neighbourhood:
        """From harmonics [E, (l_max + 1)^2]."""
        if traced() or not len(harmonics):
            return Neighbourhood(edges, None, harmonics)
        return Neighbourhood(edges, edges.slots, edges.slots.spread(harmonics))

    def of_edges(self) -> Tensor:
        """The harmonics [E, (l_max + 1)^2] of the edges."""
        return self.harmonics if self.slots is None else self.harmonics[self.slots.slot]

    def spread(self, x: Tensor) -> Tensor:
        """Values [E, C] of edges as `SteerableConvolution` takes them."""
        return x if self.slots is None else self.slots.spread(x)


class SteerableConvolution(nn.Module):
    """The convolution, without weights of its own.

    Args:
        blocks: degree and channels of each block of the input.
        paths: in the order of the weights, `weight_size` of them, for each path one per channel of its block.
    """

    def __init__(self, blocks: Sequence[tuple[int, int]], paths: Sequence[Path]) -> None:
        super().__init__()
        self.blocks, self.paths = tuple(blocks), tuple(paths)
        self.weight_sizes = [blocks[path.source][1] for path in paths]
        self.weight_size = sum(self.weight_sizes)
        self.couplings = {}
        for source, l2, l3, _ in paths:
            l1 = blocks[source][0]
            coupling = sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3).transpose(0, 1)
            self.couplings[l1, l2, l3] = Constant(coupling.flatten(1))
        targets = max((path.target for path in paths), default=-1) + 1
        to = [[n for n, path in enumerate(paths) if path.target == target] for target in range(targets)]
        self.ways = to  # numbers of the paths to each target
        self.out_channels = [sum(self.weight_sizes[n] for n in numbers) for numbers in to]
        self.out_shapes = [
            (2 * paths[numbers[0]].l_out + 1 if numbers else 1, width)
            for numbers, width in zip(to, self.out_channels, strict=True)
        ]

    def forward(self, x: Sequence[Tensor], features: Tensor, radial: nn.Module, near: Neighbourhood) -> list[Tensor]:
        """Convolve.

        Args:
            x: blocks [N, 2 l + 1, C].
            features: what the weights are functions of, [P, F], spread by `near`.
            radial: the function, [.., F] to [.., weight_size].
            near: the edges.

        Returns:
            Blocks of the output [N, 2 l3 + 1, all channels of the paths to it], path after path.
        """
        h = torch.cat([block.flatten(1) for block in x], dim=1)
        sent = near.edges.from_senders(h) if near.slots is None else send(h, near.slots.senders)
        if near.slots is None:
            summed = near.edges.sum(self.messages(sent, near.harmonics, radial(features), sent.shape[0]))
        elif len(near.slots.chunks) == 1 or (near.slots.count * self.weight_size <= _KEPT and _trains(radial)):
            chunks = near.slots.chunks
            sizes = [chunk.slots.stop - chunk.slots.start for chunk in chunks]
            parts = zip(*(t.split(sizes) for t in (sent, near.harmonics, radial(features))), strict=True)
            sums = [self.messages(x, y, w, len(part.nodes)) for (x, y, w), part in zip(parts, chunks, strict=True)]
            nodes, rows = torch.cat([chunk.nodes for chunk in chunks]), torch.cat(sums)
            summed = rows.new_zeros(len(h), rows.shape[1]).index_copy(0, nodes, rows)
        else:
            names, weights = zip(*radial.named_parameters(), strict=True)
            call = _Call(self, radial, names, near.slots.chunks, len(h))
            summed = _Convolve.apply(call, sent, near.harmonics, features, *weights)
        parts = summed.split([rows * width for rows, width in self.out_shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.out_shapes, strict=True)]

    def messages(self, sent: Tensor, harmonics: Tensor, weights: Tensor, rows: int) -> Tensor:
        """Sums of the messages in each of `rows` rows of equally many slots: [rows, width of the output]."""
        widths = [(2 * degree + 1) * channels for degree, channels in self.blocks]
        parts = sent.split(widths, dim=1)
        blocks = [part.unflatten(1, (2 * b[0] + 1, b[1])) for part, b in zip(parts, self.blocks, strict=True)]
        y = harmonics.split([2 * degree + 1 for degree in range(round(sqrt(harmonics.shape[1])))], dim=1)
        per_row = sent.shape[0] // max(rows, 1)
        matrices: dict[tuple[int, int, int], Tensor] = {}
        found = []
        for path, weight in zip(self.paths, weights.split(self.weight_sizes, dim=1), strict=True):
            key = (self.blocks[path.source][0], path.l_edge, path.l_out)
            inner = per_row * (2 * key[0] + 1)  # summed over: slots of a row and components of l1
            if key not in matrices:  # [rows, components of l3, inner]
                matrix = y[path.l_edge] if key[0] == 0 else y[path.l_edge] @ self.couplings[key].like(weight)
                matrices[key] = matrix.reshape(rows, inner, 2 * path.l_out + 1).mT
            values = (blocks[path.source] * weight.unsqueeze(1)).reshape(rows, inner, weight.shape[1])
            found.append(torch.bmm(matrices[key], values))
        out = [torch.cat([found[n] for n in numbers], dim=2).flatten(1) for numbers in self.ways if numbers]
        return torch.cat(out, dim=1)


@dataclass(frozen=True)
class _Call:
    """One call of a convolution: everything that is no tensor to be differentiated by."""

    convolution: SteerableConvolution
    radial: nn.Module
    names: Sequence[str]
    chunks: Sequence[Chunk]
    num_nodes: int

    def summed(self, chunk: Chunk, sent: Tensor, harmonics: Tensor, features: Tensor, *weights: Tensor) -> Tensor:
        """Sums of one chunk."""
        found = functional_call(self.radial, dict(zip(self.names, weights, strict=True)), (features,))
        return self.convolution.messages(sent, harmonics, found, len(chunk.nodes))

    def pieces(self, inputs: Sequence[Tensor], wanted: Sequence[bool]) -> Iterator[tuple[Chunk, list[Tensor]]]:
        """The inputs of each chunk, free of what came before; the first three are laid out in slots."""
        for chunk in self.chunks:
            parts = [x[chunk.slots] if n < 3 else x for n, x in enumerate(inputs)]
            yield chunk, [x.detach().requires_grad_(want) for x, want in zip(parts, wanted, strict=True)]


def _empty(x: Tensor, number: int) -> Tensor:
    """A place for the gradients by an input; those in slots are written once, others added up."""
    return torch.empty_like(x) if number < 3 else torch.zeros_like(x)


def _add(totals: Sequence[Tensor | None], parts: Sequence[Tensor | None], chunk: Chunk) -> None:
    """Put the gradients of a chunk in their places."""
    for n, (total, part) in enumerate(zip(totals, parts, strict=True)):
        if total is None:
            continue
        if n < 3:
            total[chunk.slots] = 0.0 if part is None else part
        elif part is not None:
            total += part


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *inputs: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*inputs)
        width = sum(rows * channels for rows, channels in call.convolution.out_shapes)
        out = inputs[0].new_zeros(call.num_nodes, width)
        for chunk, parts in call.pieces(inputs, [False] * len(inputs)):
            out.index_copy_(0, chunk.nodes, call.summed(chunk, *parts))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Slope.apply(ctx.call, ctx.needs_input_grad[1:], grad, *ctx.saved_tensors)


class _Slope(torch.autograd.Function):
    """The gradients of the convolution by its inputs, as a function of them and of the gradient by its output."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, wanted: Sequence[bool], grad: Tensor, *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.call, ctx.wanted = call, wanted
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, *inputs)
        totals = [_empty(x, n) if want else None for n, (x, want) in enumerate(zip(inputs, wanted, strict=True))]
        for chunk, parts in call.pieces(inputs, wanted):
            _add(totals, _slopes(call, chunk, parts, wanted, grad[chunk.nodes], again=False), chunk)
        return tuple(totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        call, wanted = ctx.call, ctx.wanted
        grad, *inputs = ctx.saved_tensors
        by_grad = torch.zeros_like(grad)
        totals = [_empty(x, n) if want else None for n, (x, want) in enumerate(zip(inputs, wanted, strict=True))]
        for chunk, parts in call.pieces(inputs, wanted):
            given = grad[chunk.nodes].requires_grad_()
            slopes = _slopes(call, chunk, parts, wanted, given, again=True)
            outer = [None if g is None else g[chunk.slots] if n < 3 else g for n, g in enumerate(by_slopes)]
            pairs = [(s, g) for s, g in zip(slopes, outer, strict=True) if s is not None and g is not None]
            free = [given, *(x for x, want in zip(parts, wanted, strict=True) if want)]
            found = iter(torch.autograd.grad([s for s, _ in pairs], free, [g for _, g in pairs], allow_unused=True))
            by_grad[chunk.nodes] = next(found)
            _add(totals, [next(found) if want else None for want in wanted], chunk)
        return None, None, by_grad, *totals


def _slopes(
    call: _Call, chunk: Chunk, parts: Sequence[Tensor], wanted: Sequence[bool], grad: Tensor, *, again: bool
) -> list[Tensor | None]:
    """Gradients of one chunk by the inputs that are wanted; `again` if they are to be differentiated."""
    with torch.enable_grad():
        out = call.summed(chunk, *parts)
        free = [x for x, want in zip(parts, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(out, free, grad, create_graph=again))
    return [next(found) if want else None for want in wanted]
