"""Learned Clebsch-Gordan products of steerable features with attributes, of nodes and of pairs of nodes; gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equidyn.ops.activations import activate
from equidyn.ops.coupling import Attributes, contract, degrees, equal_runs, paths
from equidyn.ops.edges import Edges
from equidyn.ops.linear import linear
from equidyn.ops.steerable import Block, Blocks


class TensorProduct(nn.Module):
    """Clebsch-Gordan product of features with attributes, and a learned mixture of its channels (equation 8).

        out_{w k} = sqrt(2 lo + 1) sum_paths sum_{u i j} W_{w u} C_{ijk} x_{u i} a_j  (+ b_w where lo = 0)

    Args:
        source, target: the blocks of the spaces.
        lmax_attr: highest degree of the attributes.
    """

    def __init__(self, source: Sequence[Block], target: Sequence[Block], lmax_attr: int) -> None:
        super().__init__()
        self.source, self.target = tuple(source), tuple(target)
        widths = [sum(source[n].mul for n, _ in paths(source, lmax_attr, block)) for block in target]
        self.weights = nn.ParameterList(
            torch.empty(block.mul, width) for block, width in zip(target, widths, strict=True)
        )
        scalars = sum(block.mul for block in target if block.scalar)
        self.bias = nn.Parameter(torch.empty(scalars)) if scalars else None
        self.initialise(widths)

    def initialise(self, widths: Sequence[int]) -> None:
        """Uniform weights, bounded by one over the root of the number of inputs, which is given for each target."""
        for block, weight, width in zip(self.target, self.weights, widths, strict=True):
            bound = max(width, 1) ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            if block.scalar and self.bias is not None:
                nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Blocks, attributes: Attributes) -> Blocks:
        """Blocks [R, 2 l + 1, mul] of the source to those of the target."""
        return self.mix(contract(x, self.source, self.target, attributes))

    def prepare(self, attributes: Attributes) -> None:
        """Make the couplings that `forward` asks for."""
        for first, last in equal_runs(self.source):
            attributes.coupling(self.source[first:last], self.target)

    def mix(self, products: Blocks) -> Blocks:
        """Mix the channels of what `contract` gives."""
        return [
            linear(product, weight, self.bias if block.scalar else None)
            for product, weight, block in zip(products, self.weights, self.target, strict=True)
        ]


class MessageProduct(nn.Module):
    """The tensor product of [h_i ++ h_j ++ f_ij] with a_ij (the inner half of equation 7).

    Channels are mixed before they are sent along the edges, once per node. A weight holds, for each target and path,
    the part of the receiver and that of the sender.

    Args:
        source: space of h.
        scalars: number of f_ij.
        target: space of the result.
        lmax_attr: highest degree of the attributes.
    """

    def __init__(self, source: Sequence[Block], scalars: int, target: Sequence[Block], lmax_attr: int) -> None:
        super().__init__()
        self.source, self.target = tuple(source), tuple(target)
        self.scalars = TensorProduct([Block(0, 1, scalars)], target, lmax_attr)
        self.sizes = [
            [2 * out.mul for out in target for _ in degrees(block.irrep, lmax_attr, out.irrep)] for block in source
        ]
        self.places = [
            [t for t, out in enumerate(target) for _ in degrees(block.irrep, lmax_attr, out.irrep)] for block in source
        ]
        self.weights = nn.ParameterList(
            torch.empty(sum(sizes), b.mul) for sizes, b in zip(self.sizes, source, strict=True)
        )
        nodes = [2 * sum(source[n].mul for n, _ in paths(source, lmax_attr, out)) for out in target]
        widths = [n + weight.shape[1] for n, weight in zip(nodes, self.scalars.weights, strict=True)]
        self.scalars.initialise(widths)
        for weight, sizes, places in zip(self.weights, self.sizes, self.places, strict=True):
            for part, t in zip(weight.split(sizes), places, strict=True):
                nn.init.uniform_(part, -(widths[t] ** -0.5), widths[t] ** -0.5)

    def prepare(self, attributes: Attributes) -> None:
        """Make the couplings that `forward` asks for."""
        for block in self.target:
            attributes.coupling(self.source, [block], "mix")

    def forward(self, h: Blocks, products: Blocks, edges: Edges, attributes: Attributes) -> Blocks:
        """Blocks [E, 2 lo + 1, mul] of the target; `products` is what `contract` makes of f_ij."""
        mixed: list[list[Tensor]] = [[] for _ in self.target]  # per target, path after path, [N, 2, 2 l1 + 1, mul]
        for x, weight, sizes, places in zip(h, self.weights, self.sizes, self.places, strict=True):
            for t, part in zip(places, linear(x, weight).split(sizes, dim=2), strict=True):
                mixed[t].append(part.unflatten(2, (2, -1)).transpose(1, 2))
        found = self.scalars.mix(products)
        for t, (block, parts) in enumerate(zip(self.target, mixed, strict=True)):
            if parts:
                sent = edges.from_both(torch.cat(parts, dim=2).flatten(2)).view(-1, block.mul)
                coupled = attributes.coupling(self.source, [block], "mix").times(sent)
                found[t] = found[t] + coupled.view(found[t].shape)
        return found


class Gate(nn.Module):
    """Scalars through silu, every other channel times the sigmoid of a scalar of its own.

    Args:
        features: the space of the result.
    """

    def __init__(self, features: Sequence[Block]) -> None:
        super().__init__()
        self.muls = [block.mul for block in features]
        self.source = (Block(0, 1, sum(self.muls)), *features[1:])

    def forward(self, parts: Blocks) -> Blocks:
        """Blocks of `source` (the scalars and the gates, then the rest) to blocks of the features."""
        scalars, *gates = parts[0].split(self.muls, dim=2)
        if not gates:
            return [F.silu(scalars)]
        gated = [part * activate("sigmoid", gate) for part, gate in zip(parts[1:], gates, strict=True)]
        return [activate("silu", scalars), *gated]
