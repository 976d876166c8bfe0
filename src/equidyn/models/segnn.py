"""SEGNN, the steerable E(3) equivariant graph neural network: messages that carry vectors and higher tensors.

Brandstetter, Hesselink, van der Pol, Bekkers, Welling, "Geometric and Physical Quantities Improve E(3) Equivariant
Message Passing", ICLR 2022, arXiv 2110.02905.

Symmetry: E(3), reflections included, and permutations.

Reads `pos [N, 3]`, `x [N, F]`, `edge_index [2, E]`, and where asked for or present `vel [N, 3]`, `edge_attr [E, A]`,
`edge_shift [E, 3]`, `centre [N, 3]`, `batch [N]`; node and edge fields may carry a leading batch axis beside one shared
`edge_index`. Gives `pos`, the moved points in the unit of the input, or with a graph readout `prediction [B, O]` ([B]
for O = 1).

Features are steerable: scalars, vectors and so on, multiplied by attributes, which are spherical harmonics of the
geometry and of the velocity. `SteerableNetwork` is the network on given attributes; `SEGNN` makes them from a sample.

Differences from the original: positions enter relative to the centre of their graph, not to the mean of their own three
coordinates, which broke the symmetry; the network predicts a displacement for every kind of particle; an irrep of the
output that no path reaches is zero, not NaN; isolated nodes and resting particles are fine; inputs are never written
to. The first map of a message acts on nodes, before they are sent along the edges, and the coupling with the attributes
is computed once for all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from e3nn import o3
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry, backbone
from equidyn.core.errors import InputError
from equidyn.ops.coupling import Attributes, contract, degrees
from equidyn.ops.edges import EdgeCache, Edges, in_parts
from equidyn.ops.linear import Linear
from equidyn.ops.steerable import (
    Block,
    Blocks,
    Layout,
    Normalization,
    harmonic_parity,
    join,
    spherical_harmonics,
)
from equidyn.ops.steerable_norm import Graphs, SteerableNorm
from equidyn.ops.steerable_product import Gate, MessageProduct, TensorProduct
from equidyn.ops.vectors import length


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
    sizes = [2 * l + 1 for l in range(lmax + 1)]  # noqa: E741
    if allocation == "balanced":
        copies = [hidden_dim // (len(sizes) * size) for size in sizes]
        copies[0] += hidden_dim - sum(n * size for n, size in zip(copies, sizes, strict=True))
    else:
        irreps = [(l, harmonic_parity(l)) for l in range(lmax + 1)]  # noqa: E741
        number = sum(len(degrees(a, lmax_attr, b)) for a in irreps for b in irreps)
        each = math.isqrt(-(-(hidden_dim**2) // number) - 1) + 1  # the least with each^2 number >= hidden_dim^2
        copies = [each] * (lmax + 1)
    return "+".join(f"{n}x{l}{'eo'[l % 2]}" for l, n in enumerate(copies) if n)  # noqa: E741


class SEGNNLayer(nn.Module):
    """Messages of two gated products, and an update of two more (equations 7 and 8).

    Args:
        features: the space of h.
        scalars: number of invariant inputs of the messages.
        lmax_attr: highest degree of the attributes.
        norm: see `SEGNNOptions`.
    """

    def __init__(self, features: Sequence[Block], scalars: int, lmax_attr: int, norm: str) -> None:
        super().__init__()
        self.gate = gate = Gate(features)
        self.message_1 = MessageProduct(features, scalars, gate.source, lmax_attr)
        self.message_2 = TensorProduct(features, gate.source, lmax_attr)
        self.update_1 = TensorProduct([*features, *features], gate.source, lmax_attr)
        self.update_2 = TensorProduct(features, features, lmax_attr)
        self.message_norm = SteerableNorm(features, "batch") if norm == "batch" else None
        self.norm = _norm(features, norm)

    def _messages(self, h: Blocks, inputs: SteerableInputs, products: Blocks) -> Blocks:
        edge = inputs.edge_attributes
        m = self.gate(self.message_2(self.gate(self.message_1(h, products, inputs.edges, edge)), edge))
        return m if self.message_norm is None else self.message_norm(m, inputs.graphs)

    def forward(self, h: Blocks, inputs: SteerableInputs, products: Blocks) -> Blocks:
        """New h; `products` is what `inputs.products` makes for all layers, or nothing."""
        node = inputs.node_attributes
        whole = self.message_norm is not None and self.training
        m = _sum(partial(self._messages, h), inputs, products, self.gate.source, whole=whole)
        update = self.update_2(self.gate(self.update_1([*h, *m], node)), node)
        h = [old + new for old, new in zip(h, update, strict=True)]
        return h if self.norm is None else self.norm(h, inputs.graphs)


class SEConvLayer(nn.Module):
    """The steerable convolution the paper compares with: messages, linear or not, and a gate on their sum.

    Args:
        features, scalars, lmax_attr, norm: as in `SEGNNLayer`.
        linear: messages of one product; else of two with a gate between.
    """

    def __init__(self, features: Sequence[Block], scalars: int, lmax_attr: int, norm: str, *, linear: bool) -> None:
        super().__init__()
        self.gate = gate = Gate(features)
        self.message_1 = MessageProduct(features, scalars, gate.source, lmax_attr)
        self.message_2 = None if linear else TensorProduct(features, gate.source, lmax_attr)
        self.message_norm = SteerableNorm(gate.source, "batch") if norm == "batch" else None
        self.norm = _norm(features, norm)

    def _messages(self, h: Blocks, inputs: SteerableInputs, products: Blocks) -> Blocks:
        m = self.message_1(h, products, inputs.edges, inputs.edge_attributes)
        if self.message_2 is not None:
            m = self.message_2(self.gate(m), inputs.edge_attributes)
        return m if self.message_norm is None else self.message_norm(m, inputs.graphs)

    def forward(self, h: Blocks, inputs: SteerableInputs, products: Blocks) -> Blocks:
        """New h."""
        whole = self.message_norm is not None and self.training
        m = _sum(partial(self._messages, h), inputs, products, self.gate.source, whole=whole)
        h = [old + new for old, new in zip(h, self.gate(m), strict=True)]
        return h if self.norm is None else self.norm(h, inputs.graphs)


def _sum(
    messages: Callable[[SteerableInputs, Blocks], Blocks],
    inputs: SteerableInputs,
    products: Blocks,
    target: Sequence[Block],
    *,
    whole: bool,
) -> Blocks:
    """The messages that arrive at each node, added up; where edges are many, from one part of them after the other.

    Args:
        messages: of the inputs and the products.
        inputs: of all edges.
        products: of all edges, or none yet.
        target: what products are made for.
        whole: never in parts, as for the statistics of all messages.
    """

    def sums(edges: Edges, index: Tensor | None) -> tuple[Tensor, ...]:
        own = inputs if index is None else inputs.part(edges, index)
        m = messages(own, products or own.products(target))
        return tuple(edges.sum(block.flatten(1)).unflatten(1, block.shape[1:]) for block in m)

    return list(sums(inputs.edges, None) if whole else in_parts(inputs.edges, sums))


def _norm(features: Sequence[Block], kind: str) -> SteerableNorm | None:
    if kind == "none":
        return None
    return SteerableNorm(features, "instance" if kind == "instance" else "batch")


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
    graphs: Graphs | None

    @staticmethod
    def build(
        x: Tensor, scalars: Tensor, edges: Edges, edge_attr: Tensor, node_attr: Tensor, graph: Tensor | None
    ) -> SteerableInputs:
        """From attributes [E, (l + 1)^2] and [R, (l + 1)^2] and the graph [R] of each node."""
        node_attr = torch.cat([torch.ones_like(node_attr[:, :1]), node_attr[:, 1:]], dim=1)
        graphs = None if graph is None else Graphs.build(graph, x.dtype)
        return SteerableInputs(x, scalars, edges, Attributes(edge_attr), Attributes(node_attr), graphs)

    def part(self, edges: Edges, index: Tensor) -> SteerableInputs:
        """The same for some of the edges, [part] of all."""
        attributes = Attributes(self.edge_attributes.values[index])
        return replace(self, scalars=self.scalars[index], edges=edges, edge_attributes=attributes)

    def products(self, target: Sequence[Block]) -> Blocks:
        """The invariant inputs times the attributes: nothing in these products is learned."""
        invariant = [Block(0, 1, self.scalars.shape[1])]
        return contract([self.scalars[:, None]], invariant, target, self.edge_attributes)


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
        self.source, self.hidden, self.target = Layout(source), _hidden(hidden), Layout(target)
        self.lmax_attr, self.scalars, self.readout, self.options = lmax_attr, scalars, readout, options
        features = self.hidden.blocks
        self.embedding = TensorProduct(self.source.blocks, features, lmax_attr)
        sizes = (features, scalars, lmax_attr, options.norm)
        self.layers = nn.ModuleList(
            SEGNNLayer(*sizes) if options.conv == "segnn" else SEConvLayer(*sizes, linear=options.conv == "linear")
            for _ in range(num_layers)
        )
        self.gate = Gate(features)
        self.out_1 = TensorProduct(features, self.gate.source, lmax_attr)
        last = self.target
        if readout == "graph":
            if not all(block.scalar for block in self.target.blocks):
                raise InputError("output of a graph readout", expected="scalars, such as 1x0e", got=target)
            last = Layout(f"{self.hidden.channels * self.target.dim}x0e")
            self.graph_1, self.graph_2 = Linear(last.dim, last.dim), Linear(last.dim, self.target.dim)
        self.out_2 = TensorProduct(features, last.blocks, lmax_attr)

    def prepare(self, inputs: SteerableInputs) -> None:
        """Make the couplings of all layers; what `forward` does then depends on shapes alone."""
        for name, module in self.named_modules():
            if isinstance(module, TensorProduct | MessageProduct):
                if "message" not in name:
                    module.prepare(inputs.node_attributes)
                elif not inputs.edges.many:
                    module.prepare(inputs.edge_attributes)

    def forward(self, inputs: SteerableInputs) -> Tensor:
        """[R, O] in e3nn's layout of the target, or [B, O] for graphs."""
        node = inputs.node_attributes
        h = self.embedding(self.source.from_e3nn(inputs.x), node)
        products = [] if inputs.edges.many else inputs.products(self.gate.source)  # one for all layers
        for layer in self.layers:
            h = layer(h, inputs, products)
        y = self.out_2(self.gate(self.out_1(h, node)), node)
        if self.readout == "node":
            return self.target.to_e3nn(y)
        if inputs.graphs is None:
            raise InputError("no graphs", where="inputs of a graph readout", expected="the graph of each node")
        pooled = inputs.graphs.mean(join(y)) if self.options.pool == "mean" else inputs.graphs.sum(join(y))
        return self.graph_2(F.silu(self.graph_1(pooled)))


def _hidden(irreps: str) -> Layout:
    layout = Layout(irreps)
    names = [ir for mul, ir in layout.irreps.simplify() if mul]
    if not names or names[0] != o3.Irrep("0e") or len(set(names)) < len(names):
        raise InputError("hidden irreps", expected="scalars 0e first, each irrep once", got=irreps)
    return layout


def _geometry(
    r: Tensor, vel: Tensor | None, edges: Edges, lmax: int, options: SEGNNOptions | SEGNNLayerOptions
) -> tuple[Tensor, ...]:
    """Attributes of edges r [E, 3] and of nodes with velocities [R, 3], and what messages see of lengths [E, 1]."""
    edge_attr = spherical_harmonics(lmax, r, options.harmonics)
    node_attr = edges.mean(edge_attr)
    if vel is not None:
        node_attr = node_attr + spherical_harmonics(lmax, vel, options.harmonics)
    return edge_attr, node_attr, length(r) if options.distance == "length" else r.square().sum(-1, keepdim=True)


@dataclass(frozen=True)
class SEGNNLayerOptions:
    """The layer under a temporal operator.

    Attributes:
        lmax: highest degree of the features.
        lmax_attr: highest degree of the attributes.
        allocation, harmonics, distance: see `SEGNNOptions`.
    """

    lmax: int = 1
    lmax_attr: int = 1
    allocation: Literal["weightbalanced", "balanced"] = "weightbalanced"
    harmonics: Normalization = "integral"
    distance: Literal["length", "squared"] = "length"

    def blocks(self, hidden_dim: int) -> tuple[Block, ...]:
        """The features."""
        return Layout(hidden_irreps(hidden_dim, self.lmax, self.lmax_attr, self.allocation)).blocks


@backbone("segnn", features=lambda hidden_dim, options: tuple((b.size, b.mul) for b in options.blocks(hidden_dim)))
class SEGNNBackbone(nn.Module):
    """The layer for temporal operators: it makes the attributes anew from where the points are, takes velocities into
    its vectors, and moves the points by a vector of its features. The contract is that of
    `equidyn.core.catalogue.backbone`.

    Args:
        hidden_dim: H, see `SEGNN`.
        edge_dim: A, number of edge scalars.
        update_features: no matter here, as the points move by the new features.
        options: the irreps and attributes.
    """

    Options = SEGNNLayerOptions

    def __init__(
        self,
        hidden_dim: int,
        edge_dim: int = 0,
        *,
        update_features: bool = True,
        options: SEGNNLayerOptions = SEGNNLayerOptions(),
    ) -> None:
        super().__init__()
        self.options, features = options, options.blocks(hidden_dim)
        self.layer = SEGNNLayer(features, 1 + edge_dim, options.lmax_attr, "none")
        vectors = [block.mul for block in features if block.irrep == (1, -1)]
        self.velocity = nn.Parameter(torch.randn(*vectors) if vectors else torch.empty(0))
        self.head = TensorProduct(features, [Block(1, -1, 1)], options.lmax_attr)
        with torch.no_grad():  # start close to points at rest
            self.head.weights[0].mul_(0.01)
        self.velocity_in, self.velocity_out = Linear(features[0].mul, features[0].mul), Linear(features[0].mul, 1)

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor, edges: Edges, edge_attr: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """New h and x, v as it came, and the new vectors and tensors."""
        options = self.options
        r = -edges.relative(x)
        edge, node, scalars = _geometry(r, v, edges, options.lmax_attr, options)
        if edge_attr is not None and len(edge_attr):
            scalars = torch.cat([scalars, edge_attr.repeat(len(r) // len(edge_attr), 1)], dim=1)
        inputs = SteerableInputs.build(x, scalars, edges, edge, node, None)
        blocks = [h[:, None], *tensors]
        if len(tensors):
            blocks[1] = blocks[1] + v[:, :, None] * self.velocity
        blocks = self.layer(blocks, inputs, [])
        (shift,) = self.head(blocks, inputs.node_attributes)
        x = x + shift[:, :, 0] + self.velocity_out(F.silu(self.velocity_in(h))) * v
        return blocks[0][:, 0], x, v, *blocks[1:]


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
        y = self.network(self.inputs(sample))
        if self.network.readout == "graph":
            return {"prediction": y.squeeze(-1) if y.shape[1] == 1 else y}
        return {"pos": sample.pos + y.view(sample.pos.shape)}

    @torch.compiler.disable  # depends on values; the rest depends on shapes alone
    def inputs(self, sample: Data) -> SteerableInputs:
        """What the network reads of a sample."""
        nodes, copies = sample.pos.shape[-2], sample.pos[..., 0, 0].numel()
        pos, vel = sample.pos.flatten(0, -2), self._vel(sample)
        edges = self._edges(sample.edge_index, nodes, pos.dtype, copies=copies)
        graph = sample.get("batch")
        if graph is None:
            graph = torch.arange(copies, device=pos.device).repeat_interleave(nodes)
        r = edges.from_senders(pos) - edges.from_receivers(pos)
        if sample.get("edge_shift") is not None:
            r = r + sample.edge_shift.flatten(0, -2)
        edge_attr, node_attr, scalars = _geometry(r, vel, edges, self.network.lmax_attr, self.options)
        if self.edge_dim:
            scalars = torch.cat([scalars, self._edge_scalars(sample)], dim=1)
        x = self._node_features(sample, pos, vel, graph)
        made = SteerableInputs.build(x, scalars, edges, edge_attr, node_attr, graph)
        self.network.prepare(made)
        return made

    def _vel(self, sample: Data) -> Tensor | None:
        if not self.velocity:
            return None
        if sample.get("vel") is None:
            raise InputError("no velocities", where="field vel", expected="[N, 3], or a model with velocity=False")
        return sample.vel.flatten(0, -2)

    def _edge_scalars(self, sample: Data) -> Tensor:
        """The first columns of `edge_attr`, [E, A]."""
        given = sample.get("edge_attr")
        if given is None or given.shape[-1] < self.edge_dim:
            got = None if given is None else tuple(given.shape)
            raise InputError(
                "edge features", where="field edge_attr", expected=f"[E, {self.edge_dim}] or wider", got=got
            )
        return given.flatten(0, -2)[:, : self.edge_dim]

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
