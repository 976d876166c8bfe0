"""SEGNN, the steerable E(3) equivariant graph neural network: messages that carry vectors and higher tensors.

Brandstetter, Hesselink, van der Pol, Bekkers, Welling, "Geometric and Physical Quantities Improve E(3) Equivariant Message
Passing", ICLR 2022, arXiv 2110.02905.

Symmetry: E(3), reflections included, and permutations.

Reads `pos [N, 3]`, `x [N, F]`, `edge_index [2, E]`, and where asked for or present `vel [N, 3]`, `edge_attr [E, A]`,
`edge_shift [E, 3]`, `centre [N, 3]`, `batch [N]`; node and edge fields may carry a leading batch axis beside one shared
`edge_index`. Gives `pos`, the moved points in the unit of the input, or with a graph readout `prediction [B, O]` ([B]
for O = 1).

Features are steerable: scalars, vectors and so on, mixed by Clebsch-Gordan products with attributes, which are spherical
harmonics of the geometry (and of the velocity). `SteerableNetwork` is the network on given attributes; `SEGNN` makes
them from a sample.

Differences from the original: positions enter relative to the centre of their graph, not to the mean of their own three
coordinates, which broke the symmetry; the network predicts a displacement for every kind of particle; an irrep of the
output that no path reaches is zero, not NaN; isolated nodes and resting particles are fine; inputs are never written to.
The first map of a message acts on nodes, before they are sent along the edges, and the coupling with the attributes is
computed once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from e3nn import o3
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry
from equidyn.core.errors import InputError
from equidyn.ops.edges import EdgeCache, Edges
from equidyn.ops.linear import Linear, linear
from equidyn.ops.steerable import (
    Attributes,
    Block,
    Layout,
    Normalization,
    group_paths,
    harmonic_parity,
    length,
    paths,
    spherical_harmonics,
)

# Second moments of silu and sigmoid at a normal variable, as the original estimated them.
SILU_SCALE, SIGMOID_SCALE = 1.6791767923989418, 1.8467055342154763


@dataclass(frozen=True)
class SEGNNOptions:
    """What varies between the published forms.

    Attributes:
        conv: "segnn" messages and updates are both gated networks; "linear" and "nonlinear" are the SE(3) convolutions
            the paper compares with: linear or gated messages, and a gate in place of the update.
        allocation: how channels are shared between degrees; "weightbalanced" gives each the same number, such that a
            product has about as many weights as a `hidden_dim` squared matrix; "balanced" gives each about the same
            number of components, `hidden_dim` in all.
        norm: of the features after each layer; "instance" per graph, "batch" over the batch, and over the messages.
        pool: of the graph readout.
        harmonics: normalisation of the spherical harmonics; the paper has "integral" for particles and "component" for
            molecules.
        distance: what the messages see of an edge's length, "length" for particles and "squared" for molecules.
    """

    conv: Literal["segnn", "linear", "nonlinear"] = "segnn"
    allocation: Literal["weightbalanced", "balanced"] = "weightbalanced"
    norm: Literal["none", "instance", "batch"] = "none"
    pool: Literal["mean", "sum"] = "mean"
    harmonics: Normalization = "integral"
    distance: Literal["length", "squared"] = "length"


def hidden_irreps(hidden_dim: int, lmax: int, lmax_attr: int, allocation: str) -> str:
    """The hidden features, in the notation of e3nn (appendix C of the paper)."""
    degrees = range(lmax + 1)
    if allocation == "balanced":
        copies = [hidden_dim // (len(degrees) * (2 * l + 1)) for l in degrees]
        copies[0] += hidden_dim - sum(n * (2 * l + 1) for n, l in zip(copies, degrees, strict=True))
    else:
        natural = [(l, harmonic_parity(l)) for l in degrees]
        number = sum(len(paths(a, lmax_attr, b)) for a in natural for b in natural)
        each = 1
        while each**2 * number < hidden_dim**2:
            each += 1
        copies = [each] * len(degrees)
    return "+".join(f"{n}x{l}{'eo'[l % 2]}" for n, l in zip(copies, degrees, strict=True) if n)


class TensorProduct(nn.Module):
    """Clebsch-Gordan product of features with attributes, and a learned mixture of its channels (equation 8).

        out_{w k} = sqrt(2 lo + 1) sum_paths sum_{u i j} W_{w u} C_{ijk} x_{u i} a_j  (+ b_w where lo = 0)

    Args:
        source, target: feature spaces.
        lmax_attr: highest degree of the attributes.
        bias: add b.
    """

    def __init__(self, source: Layout, target: Layout, lmax_attr: int, *, bias: bool = True) -> None:
        super().__init__()
        self.source, self.target, self.lmax_attr = source, target, lmax_attr
        widths = [
            sum(len(group_paths(group, lmax_attr, block)) * group[0].mul for group in source.groups)
            for block in target.blocks
        ]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(block.mul, width)) for block, width in zip(target.blocks, widths, strict=True)
        )
        scalars = target.block(0, 1)
        self.bias = nn.Parameter(torch.empty(scalars.mul)) if bias and scalars is not None else None
        initialise([self])

    def forward(self, x: Tensor, attributes: Attributes) -> list[Tensor]:
        """Rows of features [R, D] to one tensor [R, 2 lo + 1, mul] per block of the target."""
        return self.mix(contract(x, self.source, self.target, attributes))

    def mix(self, products: list[Tensor]) -> list[Tensor]:
        """The channels of what `contract` gives."""
        return [
            linear(product, weight, self.bias if block.irrep == (0, 1) else None)
            for product, weight, block in zip(products, self.weights, self.target.blocks, strict=True)
        ]


def initialise(products: Sequence[TensorProduct]) -> None:
    """Uniform weights, bounded by one over the root of the number of inputs; several products that are added count as one."""
    for number, block in enumerate(products[0].target.blocks):
        bound = max(sum(product.weights[number].shape[1] for product in products), 1) ** -0.5
        for product in products:
            nn.init.uniform_(product.weights[number], -bound, bound)
            if block.irrep == (0, 1) and product.bias is not None:
                nn.init.uniform_(product.bias, -bound, bound)


def contract(x: Tensor, source: Layout, target: Layout, attributes: Attributes) -> list[Tensor]:
    """All Clebsch-Gordan products of x [R, D] with the attributes: per block of the target, [R, 2 lo + 1, paths x mul]."""
    return [
        torch.cat([x.new_empty(len(x), block.size, 0), *_contract_to(block, x, source, attributes)], dim=2)
        if len(source.groups) != 1
        else _contract_to(block, x, source, attributes)[0]
        for block in target.blocks
    ]


def _contract_to(block: Block, x: Tensor, source: Layout, attributes: Attributes) -> list[Tensor]:
    parts = []
    for group in source.groups:
        size = sum(member.size for member in group)
        rows = x.narrow(1, group[0].start, size * group[0].mul).unflatten(1, (size, group[0].mul))
        parts.append(torch.bmm(attributes.coupling(group, block), rows).view(len(x), block.size, -1))
    return parts


class MessageProduct(nn.Module):
    """The tensor product of [h_i ++ h_j ++ f_ij] with a_ij, its channels mixed at the nodes (first half of equation 7).

    Args:
        source: space of h.
        scalars: number of f_ij.
        target: space of the result.
        lmax_attr: highest degree of the attributes.
    """

    def __init__(self, source: Layout, scalars: int, target: Layout, lmax_attr: int) -> None:
        super().__init__()
        self.source, self.target, self.lmax_attr = source, target, lmax_attr
        self.receivers = TensorProduct(source, target, lmax_attr)
        self.senders = TensorProduct(source, target, lmax_attr, bias=False)
        self.scalars = TensorProduct(Layout(f"{scalars}x0e"), target, lmax_attr, bias=False)
        initialise([self.receivers, self.senders, self.scalars])

    def forward(self, h: Tensor, products: list[Tensor], edges: Edges, attributes: Attributes) -> list[Tensor]:
        """Blocks [E, 2 lo + 1, mul] of the target; `products` is f_ij contracted with the attributes."""
        receiver, sender = self._mix_nodes(h).chunk(2, dim=1)
        sent = edges.from_receivers(receiver) + edges.from_senders(sender)
        shapes = [(sum(r for r, _ in self._rows(block)), block.mul) for block in self.target.blocks]
        by_target = sent.split([rows * mul for rows, mul in shapes], dim=1)
        found = []
        for number, block in enumerate(self.target.blocks):
            bias = self.receivers.bias if block.irrep == (0, 1) else None
            invariant = linear(products[number], self.scalars.weights[number], bias)
            matrix = attributes.coupling(self.source.blocks, block, "mix")
            found.append(torch.baddbmm(invariant, matrix, by_target[number].unflatten(1, shapes[number])))
        return found

    def _rows(self, target: Block) -> list[tuple[int, int]]:
        """For each block of the source the rows (i, l2) that it sends towards a target, and the number of l2."""
        counts = [len(paths(block.irrep, self.lmax_attr, target.irrep)) for block in self.source.blocks]
        return [(block.size * count, count) for block, count in zip(self.source.blocks, counts, strict=True)]

    def _mix_nodes(self, h: Tensor) -> Tensor:
        """[N, 2 Y]: what each node sends as a receiver and as a sender, ordered by target, block, i, l2, channel."""
        pieces: list[list[Tensor]] = [[] for _ in range(2 * len(self.target.blocks))]
        starts = [0] * len(self.target.blocks)
        for number, block in enumerate(self.source.blocks):
            weights = []
            for product in (self.receivers, self.senders):
                for t, target in enumerate(self.target.blocks):
                    count = self._rows(target)[number][1]
                    part = product.weights[t].narrow(1, starts[t], count * block.mul)
                    weights.append(part.unflatten(1, (count, block.mul)).transpose(0, 1).flatten(0, 1))
            for t, target in enumerate(self.target.blocks):
                starts[t] += self._rows(target)[number][1] * block.mul
            mixed = linear(block.view(h), torch.cat(weights))
            for piece, part in zip(pieces, mixed.split([len(w) for w in weights], dim=2), strict=True):
                piece.append(part.flatten(1))
        return torch.cat([part for piece in pieces for part in piece], dim=1)


class Gate(nn.Module):
    """Scalars through silu, every other channel times the sigmoid of a scalar of its own.

    Args:
        features: the space of the result.
    """

    def __init__(self, features: Layout) -> None:
        super().__init__()
        self.muls = [block.mul for block in features.blocks]
        rest = "".join(f"+{b.mul}x{b.l}{'e' if b.p == 1 else 'o'}" for b in features.blocks[1:])
        self.source = Layout(f"{sum(self.muls)}x0e{rest}")

    def forward(self, parts: list[Tensor]) -> Tensor:
        """Blocks of `source` (the scalars, then the gates, then the rest) to rows of features [R, D]."""
        scalars, *gates = parts[0].split(self.muls, dim=2)
        if not gates:
            return F.silu(scalars).flatten(1)
        gated = [part * (SIGMOID_SCALE * gate.sigmoid()) for part, gate in zip(parts[1:], gates, strict=True)]
        return join([SILU_SCALE * F.silu(scalars), *gated])


def join(parts: list[Tensor]) -> Tensor:
    """Blocks [R, 2 l + 1, mul] as rows of features [R, D]."""
    return torch.cat([part.flatten(1) for part in parts], dim=1)


@dataclass(frozen=True)
class Graphs:
    """Which graph each row belongs to: `index [R]`, and `inverse_size [B, 1]`, one over the number of rows of each."""

    index: Tensor
    inverse_size: Tensor

    @staticmethod
    def build(index: Tensor, dtype: torch.dtype) -> Graphs:
        """From the graph of each row."""
        return Graphs(index, torch.bincount(index).clamp(min=1).to(dtype).reciprocal()[:, None])

    def sum(self, rows: Tensor) -> Tensor:
        """[R, C] to [B, C]."""
        return rows.new_zeros(len(self.inverse_size), rows.shape[1]).index_add(0, self.index, rows)

    def mean(self, rows: Tensor) -> Tensor:
        """[R, C] to [B, C]."""
        return self.sum(rows) * self.inverse_size


class Norm(nn.Module):
    """Bring every channel to unit second moment over its components and rows, scalars also to zero mean.

    Args:
        features: the space.
        kind: "instance", the rows of one graph; "batch", all rows, and in evaluation the running averages.
    """

    def __init__(self, features: Layout, kind: Literal["instance", "batch"]) -> None:
        super().__init__()
        self.features, self.kind = features, kind
        channels = sum(block.mul for block in features.blocks)
        invariant = features.block(0, 1)
        scalars = 0 if invariant is None else invariant.mul
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(scalars))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(scalars))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, rows: Tensor, graphs: Graphs) -> Tensor:
        """[R, D] to [R, D]."""
        found, start = [], 0
        for block in self.features.blocks:
            part, channels = block.view(rows), slice(start, start + block.mul)
            scalar = block.irrep == (0, 1)
            if scalar:
                part = part - self._average("running_mean", slice(None), part[:, 0], graphs)[:, None]
            square = self._average("running_var", channels, part.square().mean(1), graphs)
            part = part * (self.weight[channels] * (square + 1e-5).rsqrt())[:, None]
            found.append(part + self.bias if scalar else part)
            start += block.mul
        return join(found)

    def _average(self, name: str, channels: slice, rows: Tensor, graphs: Graphs) -> Tensor:
        """The mean of rows [R, mul] over what is normalised together: [R or 1, mul]."""
        if self.kind == "instance":
            return graphs.mean(rows)[graphs.index]
        running = getattr(self, name)[channels]
        if not self.training:
            return running[None]
        mean = rows.mean(0, keepdim=True)
        running.lerp_(mean.detach()[0], 0.1)
        return mean


class SEGNNLayer(nn.Module):
    """Messages of two gated products, and an update of two more (equations 7 and 8).

    Args:
        features: the space of h.
        scalars: number of invariant inputs of the messages.
        lmax_attr: highest degree of the attributes.
        norm: see `SEGNNOptions`.
    """

    def __init__(self, features: Layout, scalars: int, lmax_attr: int, norm: str) -> None:
        super().__init__()
        self.gate = gate = Gate(features)
        both = Layout("+".join(f"{2 * b.mul}x{b.l}{'e' if b.p == 1 else 'o'}" for b in features.blocks))
        self.features = features
        self.message_1 = MessageProduct(features, scalars, gate.source, lmax_attr)
        self.message_2 = TensorProduct(features, gate.source, lmax_attr)
        self.update_1 = TensorProduct(both, gate.source, lmax_attr)
        self.update_2 = TensorProduct(features, features, lmax_attr)
        self.message_norm = Norm(features, "batch") if norm == "batch" else None
        self.norm = _norm(features, norm)

    def forward(self, h: Tensor, inputs: SteerableInputs, products: list[Tensor]) -> Tensor:
        """New h [R, D]; `products` is what `contract` makes of the invariant inputs."""
        edge, node = inputs.edge_attributes, inputs.node_attributes
        m = self.gate(self.message_1(h, products, inputs.edges, edge))
        m = self.gate(self.message_2(m, edge))
        if self.message_norm is not None:
            m = self.message_norm(m, inputs.graphs)
        total = inputs.edges.sum(m)
        blocks = self.features.blocks
        u = join([torch.cat([block.view(h), block.view(total)], dim=2) for block in blocks])
        h = h + join(self.update_2(self.gate(self.update_1(u, node)), node))
        return h if self.norm is None else self.norm(h, inputs.graphs)


class SEConvLayer(nn.Module):
    """The steerable convolution the paper compares with: messages, linear or not, and a gate on their sum.

    Args:
        features, scalars, lmax_attr, norm: as in `SEGNNLayer`.
        linear: messages of one product; else of two with a gate between.
    """

    def __init__(self, features: Layout, scalars: int, lmax_attr: int, norm: str, *, linear: bool) -> None:
        super().__init__()
        self.gate = gate = Gate(features)
        self.message_1 = MessageProduct(features, scalars, gate.source, lmax_attr)
        self.message_2 = None if linear else TensorProduct(features, gate.source, lmax_attr)
        self.message_norm = Norm(gate.source, "batch") if norm == "batch" else None
        self.norm = _norm(features, norm)

    def forward(self, h: Tensor, inputs: SteerableInputs, products: list[Tensor]) -> Tensor:
        """New h [R, D]."""
        parts = self.message_1(h, products, inputs.edges, inputs.edge_attributes)
        if self.message_2 is not None:
            parts = self.message_2(self.gate(parts), inputs.edge_attributes)
        m = join(parts)
        if self.message_norm is not None:
            m = self.message_norm(m, inputs.graphs)
        total = inputs.edges.sum(m)
        h = h + self.gate([block.view(total) for block in self.gate.source.blocks])
        return h if self.norm is None else self.norm(h, inputs.graphs)


def _norm(features: Layout, kind: str) -> Norm | None:
    return Norm(features, kind) if kind in ("instance", "batch") else None


@dataclass(frozen=True)
class SteerableInputs:
    """What `SteerableNetwork` reads.

    Attributes:
        x: [R, D] node features, in e3nn's layout of the network's input irreps.
        scalars: [E, M] invariant inputs of the messages.
        edges: of the R nodes.
        edge_attributes, node_attributes: of the edges and nodes; the degree 0 of the nodes' is taken to be 1.
        graphs: which graph each node belongs to.
    """

    x: Tensor
    scalars: Tensor
    edges: Edges
    edge_attributes: Attributes
    node_attributes: Attributes
    graphs: Graphs

    @staticmethod
    def build(
        x: Tensor, scalars: Tensor, edges: Edges, edge_attr: Tensor, node_attr: Tensor, graph: Tensor
    ) -> SteerableInputs:
        """From attributes [E, (l + 1)^2] and [R, (l + 1)^2] and the graph [R] of each node."""
        node_attr = torch.cat([torch.ones_like(node_attr[:, :1]), node_attr[:, 1:]], dim=1)
        graphs = Graphs.build(graph, x.dtype)
        return SteerableInputs(x, scalars, edges, Attributes(edge_attr), Attributes(node_attr), graphs)


class SteerableNetwork(nn.Module):
    """Embedding, layers and readout on given attributes.

    Args:
        source, hidden, target: irreps of the node features, hidden features and outputs, in the notation of e3nn.
        lmax_attr: highest degree of the attributes.
        scalars: M, invariant inputs of the messages.
        num_layers: K.
        readout: one output per "node" or per "graph"; the latter is for scalars.
        options: the published variants.

    Raises:
        InputError: irreps that cannot be gated or pooled.
    """

    def __init__(
        self,
        source: str,
        hidden: str,
        target: str,
        *,
        lmax_attr: int,
        scalars: int,
        num_layers: int,
        readout: Literal["node", "graph"] = "node",
        options: SEGNNOptions = SEGNNOptions(),
    ) -> None:
        super().__init__()
        self.source, self.target, self.lmax_attr = Layout(source), Layout(target), lmax_attr
        self.hidden = features = _hidden(hidden)
        self.scalars, self.readout, self.options = Layout(f"{scalars}x0e"), readout, options
        self.embedding = TensorProduct(self.source, features, lmax_attr)
        sizes = (features, scalars, lmax_attr, options.norm)
        self.layers = nn.ModuleList(
            SEGNNLayer(*sizes) if options.conv == "segnn" else SEConvLayer(*sizes, linear=options.conv == "linear")
            for _ in range(num_layers)
        )
        self.gate = Gate(features)
        self.out_1 = TensorProduct(features, self.gate.source, lmax_attr)
        if readout == "graph":
            if any(block.irrep != (0, 1) for block in self.target.blocks):
                raise InputError("output of a graph readout", expected="scalars, such as 1x0e", got=target)
            pooled = sum(block.mul for block in features.blocks) * self.target.dim
            self.pooled = Layout(f"{pooled}x0e")
            self.graph_1, self.graph_2 = Linear(pooled, pooled), Linear(pooled, self.target.dim)
        self.out_2 = TensorProduct(features, self.pooled if readout == "graph" else self.target, lmax_attr)

    def forward(self, inputs: SteerableInputs) -> Tensor:
        """[R, O] in e3nn's layout of the target, or [B, O] for graphs."""
        node = inputs.node_attributes
        h = join(self.embedding(self.source.from_e3nn(inputs.x), node))
        # Nothing in these products is learned: one for all layers.
        products = contract(inputs.scalars, self.scalars, self.gate.source, inputs.edge_attributes)
        for layer in self.layers:
            h = layer(h, inputs, products)
        y = join(self.out_2(self.gate(self.out_1(h, node)), node))
        if self.readout == "node":
            return self.target.to_e3nn(y)
        pooled = inputs.graphs.mean(y) if self.options.pool == "mean" else inputs.graphs.sum(y)
        return self.graph_2(F.silu(self.graph_1(pooled)))


def _hidden(irreps: str) -> Layout:
    layout = Layout(irreps)
    names = [ir for mul, ir in layout.irreps.simplify() if mul]
    if not names or names[0] != o3.Irrep("0e") or len(set(names)) < len(names):
        raise InputError("hidden irreps", expected="scalars 0e first, each irrep once", got=irreps)
    return layout


class SEGNN(nn.Module):
    """The network on particles or molecules: attributes and inputs made from a sample (section 4 of the paper).

    An edge's attribute is the spherical harmonics of pos[j] - pos[i], a node's the mean over its edges plus the
    harmonics of its velocity. Messages also see the length of the edge and `edge_attr`.

    Args:
        node_dim: F, scalar features per node.
        edge_dim: A, how many columns of `edge_attr` the messages see, from the first on; others are not read.
        hidden_dim: width of a scalar network of about as many weights; see `SEGNNOptions.allocation`.
        num_layers: K.
        lmax: highest degree of the hidden features.
        lmax_attr: highest degree of the attributes.
        velocity: read `vel`, as attribute and as input.
        readout: "node" moves the points, which are inputs relative to the centre of their graph; "graph" gives numbers
            per graph.
        out_dim: O of the graph readout.
        options: the published variants.

    Raises:
        InputError: a field of the sample is missing or has the wrong width.
    """

    def __init__(
        self,
        node_dim: int,
        edge_dim: int = 0,
        hidden_dim: int = 64,
        num_layers: int = 4,
        *,
        lmax: int = 1,
        lmax_attr: int = 1,
        velocity: bool = True,
        readout: Literal["node", "graph"] = "node",
        out_dim: int = 1,
        options: SEGNNOptions = SEGNNOptions(),
    ) -> None:
        super().__init__()
        self.node_dim, self.edge_dim, self.velocity, self.options = node_dim, edge_dim, velocity, options
        self.vectors = velocity + (readout == "node")
        self.network = SteerableNetwork(
            f"{self.vectors}x1o+{node_dim}x0e",
            hidden_irreps(hidden_dim, lmax, lmax_attr, options.allocation),
            "1x1o" if readout == "node" else f"{out_dim}x0e",
            lmax_attr=lmax_attr,
            scalars=1 + edge_dim,
            num_layers=num_layers,
            readout=readout,
            options=options,
        )
        self._edges = EdgeCache()

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """Move the points, or predict per graph (module docstring for shapes)."""
        y = self.network(self._inputs(sample))
        if self.network.readout == "graph":
            return {"prediction": y.squeeze(-1) if y.shape[1] == 1 else y}
        return {"pos": sample.pos + y.view(sample.pos.shape)}

    @torch.compiler.disable  # depends on values; the rest depends on shapes alone
    def _inputs(self, sample: Data) -> SteerableInputs:
        nodes, copies = sample.pos.shape[-2], sample.pos[..., 0, 0].numel()
        pos, vel = sample.pos.flatten(0, -2), self._vel(sample)
        edges = self._edges(sample.edge_index, nodes, pos.dtype, copies=copies)
        graph = sample.get("batch")
        if graph is None:
            graph = torch.arange(copies, device=pos.device).repeat_interleave(nodes)
        r = edges.from_senders(pos) - edges.from_receivers(pos)
        if sample.get("edge_shift") is not None:
            r = r + sample.edge_shift.flatten(0, -2)
        harmonics = self.network.lmax_attr, self.options.harmonics
        edge_attr = spherical_harmonics(harmonics[0], r, harmonics[1])
        node_attr = edges.mean(edge_attr)
        if vel is not None:
            node_attr = node_attr + spherical_harmonics(harmonics[0], vel, harmonics[1])
        scalars = self._edge_scalars(sample, r)
        x = self._node_features(sample, pos, vel, graph)
        return SteerableInputs.build(x, scalars, edges, edge_attr, node_attr, graph)

    def _vel(self, sample: Data) -> Tensor | None:
        if not self.velocity:
            return None
        if sample.get("vel") is None:
            raise InputError("no velocities", where="field vel", expected="[N, 3], or a model with velocity=False")
        return sample.vel.flatten(0, -2)

    def _edge_scalars(self, sample: Data, r: Tensor) -> Tensor:
        """[E, 1 + A]: the length of the edge, and the first columns of `edge_attr`."""
        q = length(r) if self.options.distance == "length" else r.square().sum(-1, keepdim=True)
        if not self.edge_dim:
            return q
        given = sample.get("edge_attr")
        if given is None or given.shape[-1] < self.edge_dim:
            got = None if given is None else tuple(given.shape)
            raise InputError("edge features", where="field edge_attr", expected=f"[E, {self.edge_dim}] or wider", got=got)
        return torch.cat([q, given.flatten(0, -2)[:, : self.edge_dim]], dim=1)

    def _node_features(self, sample: Data, pos: Tensor, vel: Tensor | None, graph: Tensor) -> Tensor:
        """[R, 3 (vectors) + F] in e3nn's layout: position from the centre, velocity, scalars."""
        x = sample.get("x")
        if x is None or x.shape[-1] != self.node_dim:
            got = None if x is None else tuple(x.shape)
            raise InputError("node features", where="field x", expected=f"[N, {self.node_dim}]", got=got)
        parts = [x.flatten(0, -2)]
        if vel is not None:
            parts.insert(0, vel)
        if self.network.readout == "node":
            centre = sample.get("centre")
            mean = Graphs.build(graph, pos.dtype).mean(pos)[graph] if centre is None else centre.flatten(0, -2)
            parts.insert(0, pos - mean)
        return torch.cat(parts, dim=1)


ENTRY = Entry(
    name="segnn",
    title="Steerable E(3) Equivariant Graph Neural Network",
    model=SEGNN,
    citation=Citation(
        key="brandstetter2022segnn",
        authors=(
            "Brandstetter, Johannes and Hesselink, Rob and van der Pol, Elise and Bekkers, Erik J. and Welling, Max"
        ),
        title="Geometric and Physical Quantities Improve E(3) Equivariant Message Passing",
        venue="International Conference on Learning Representations",
        year=2022,
        arxiv="2110.02905",
    ),
    symmetry="E(3)",
    needs=("pos", "vel", "x", "edge_index"),
    gives=("pos", "prediction"),
)
