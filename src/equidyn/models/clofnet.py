"""ClofNet, a message network that sees vectors through complete local frames.

Du, Zhang, Du, Meng, Chen, Zheng, Shao, Liu, "SE(3) Equivariant Graph Neural Networks with Complete Local Frames",
ICML 2022, arXiv 2110.14811. The score network of the same paper is `equidyn.models.clofnet_score`.

Symmetry: rotations, translations and permutations; not reflections, as the cross products in the frames tell left from
right. `reflections=True` gives them up for the full E(3).

Reads `pos [N, 3]`, `vel [N, 3]`, `x [N, F]`, `edge_index [2, E]`, and where present `edge_attr [E, A]`, `batch [N]`,
`centre [N, 3]` and, with `centre="neighbours"`, `edge_shift [E, 3]`; node and edge fields may carry a leading
batch axis beside one shared `edge_index`. Gives `pos` (moved points, in the unit of the input) and `h [N, H]`.

Differences from the original: systems may have different sizes and any edges; collinear and coincident points have
finite gradients; the shift is clamped by its length instead of component by component, which breaks rotation
equivariance when it acts; h enters its own update once, not twice; inputs are never written to. Ours: frames around
the mean of a node's neighbours instead of the whole system's (`centre="neighbours"`, the same on a complete graph
until the points move), and a layer that EGNO can use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry, backbone
from equidyn.core.errors import InputError
from equidyn.ops.edges import EdgeCache, Edges, in_parts, rows_of
from equidyn.ops.frames import local_frame, safe_length, sine_cosine
from equidyn.ops.graphs import mean_of_graph
from equidyn.ops.linear import Linear, linear, side_by_side, split_linear
from equidyn.ops.message import MessageWeights, fused_messages

_PI = 3.14159  # the original's, in a factor that the next layers can undo


@dataclass(frozen=True)
class ClofNetOptions:
    """What varies between the published forms.

    Attributes:
        velocity_scalars: the edges also see the velocities projected on their frames (`clof_vel` of the original).
        gaussians: the edges see the squared distance through Gaussians, scaled by the sign of the product of the
            charges (the first of `edge_attr`, which must be 1 or -1), instead of `edge_attr` (`clof_vel_gbf`).
        scaled: vectors of the frame divided by their length plus one (`norm_diff`). Velocities are always projected
            on scaled ones.
        bounded: tanh on the weights of the frame vectors.
        skip: s in h <- LayerNorm(s h + update); the original counts h twice with `recurrent=True`.
        shift_scale: factor of the shift (`coords_weight`).
        clamp: bound of 100 on the shift: its length (equivariant), the components of every summand (the original's),
            or no bound.
        centre: origin of the frames: the mean position of the graph at the start, or in each layer the mean of a node
            and its neighbours, which no far node changes.
        reflections: E(3) instead of SE(3): no weight for the pseudo-vector n, and its product with v squared.
        fused: compute the messages by one hand-differentiated operator; it is faster and can be differentiated once.
            Turn it off to differentiate twice.
    """

    velocity_scalars: bool = True
    gaussians: bool = False
    scaled: bool = True
    bounded: bool = False
    skip: float = 1.0
    shift_scale: float = 1.0
    clamp: Literal["none", "norm", "message_component"] = "norm"
    centre: Literal["graph", "neighbours"] = "graph"
    reflections: bool = False
    fused: bool = True


class _Pairs(NamedTuple):
    """Geometry of the edges (i, j), each [E, 3]: d = x_i - x_j, and u = x_i counted from the centre."""

    d: Tensor
    u: Tensor


def _from_centre(x: Tensor, edges: Edges, options: ClofNetOptions) -> Tensor:
    """Positions [N, 3] counted from the origin of the frames."""
    if options.centre == "graph":  # x comes centred
        return x
    (total,) = in_parts(edges, lambda part, _: (part.sum(part.relative(x)),))
    return total / (1 / edges.inverse_degree + 1)


def _pairs(x: Tensor, u: Tensor, edges: Edges) -> _Pairs:
    return _Pairs(edges.relative(x), edges.from_receivers(u))


class _ChargeGaussians(nn.Module):
    """Gaussians of a_t |d|^2 + b_t, with t the sign of the product of the charges."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.mean, self.width = (nn.Parameter(3 * torch.rand(count)) for _ in range(2))
        self.scale, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))

    def forward(self, square: Tensor, product: Tensor) -> Tensor:
        """[E, count] of squared distances [E, 1] and products of charges [E], each 1 or -1."""
        kind = (product > 0).long()
        s = self.scale[kind][:, None] * square + self.shift[kind][:, None]
        width = self.width.abs() + 1e-5
        return torch.exp(-0.5 * ((s - self.mean) / width).square()) / (math.sqrt(2 * _PI) * width)


EdgeFunction = Callable[[Edges, Tensor | None], Tensor]
"""From some edges, and their numbers among all, to values at them."""


class _EdgeScalars(nn.Module):
    """What an edge knows: its attributes, and positions and velocities projected on its frame (scalarisation)."""

    def __init__(self, edge_dim: int, hidden_dim: int, options: ClofNetOptions) -> None:
        super().__init__()
        self.options, width = options, hidden_dim // 2
        self.gaussians = _ChargeGaussians(width) if options.gaussians else None
        edge_dim = 0 if options.gaussians else edge_dim
        geometry = 2 + (12 if options.velocity_scalars else 6)
        parts = split_linear((*([edge_dim] if edge_dim else []), geometry), width)
        self.from_edge = parts[0] if edge_dim else None
        self.from_geometry, self.out = parts[-1], Linear(width, width)

    def invariants(self, pairs: _Pairs, v: Tensor, edges: Edges) -> Tensor:
        """Angle between the ends, and both ends' positions (and velocities) on the frame [E, 8 or 14]."""
        options = self.options
        frame = local_frame(*pairs, scaled=options.scaled or options.velocity_scalars)
        receiver = frame.project(pairs.u)
        sender = receiver - frame.project(pairs.d)
        numbers = [sine_cosine(receiver, sender), receiver, sender]
        if options.velocity_scalars:
            for end in (edges.from_receivers(v), edges.from_senders(v)):
                along = frame.project(end)
                if options.reflections:
                    along = torch.stack([along[:, 0], along[:, 1].square(), along[:, 2]], dim=-1)
                numbers.append(along)
        return torch.cat(numbers, dim=-1)

    def of(self, x: Tensor, v: Tensor, edges: Edges, edge_attr: Tensor | None) -> EdgeFunction:
        """The scalars of some edges in a state; made at once and for all layers, unless they work in parts."""
        u = _from_centre(x, edges, self.options)
        some: EdgeFunction = lambda part, index: self(_pairs(x, u, part), v, part, rows_of(edge_attr, index))  # noqa: E731
        if edges.many:
            return some
        e = some(edges, None)
        return lambda part, index: e

    def forward(self, pairs: _Pairs, v: Tensor, edges: Edges, edge_attr: Tensor | None) -> Tensor:
        """[E, H / 2]; `edge_attr` belongs to the first of the copies that make up E."""
        a = self.from_geometry(self.invariants(pairs, v, edges))
        if self.from_edge is not None and edge_attr is not None and len(edge_attr):
            shared = self.from_edge(edge_attr)
            a = (a.view(-1, *shared.shape) + shared).view(a.shape)
        e = F.silu(self.out(F.silu(a)))
        if self.gaussians is None or edge_attr is None or not len(edge_attr):
            return e
        product = edge_attr[:, 0].repeat(len(e) // len(edge_attr))
        return e + self.gaussians(pairs.d.square().sum(-1, keepdim=True), product)


class ClofNetLayer(nn.Module):
    """One layer: messages, shift along the frame (vectorisation), update of the features.

    Args:
        hidden_dim: H, width of the node features.
        update_features: compute new node features; a last layer whose features nobody reads can do without.
        options: the published variants.
    """

    def __init__(self, hidden_dim: int, update_features: bool, options: ClofNetOptions) -> None:
        super().__init__()
        self.options, self.update_features = options, update_features
        # The first map on [h_i ++ h_j ++ |d|^2 ++ e_ij]; the two node parts are applied per node.
        parts = split_linear((hidden_dim, hidden_dim, 1, hidden_dim // 2), hidden_dim)
        self.from_receiver, self.from_sender, self.from_distance, self.from_edge = parts
        self.message_inner, self.message_out = Linear(hidden_dim, hidden_dim), Linear(hidden_dim, hidden_dim)
        self.weight_inner = Linear(hidden_dim, hidden_dim)
        self.weight_out = Linear(hidden_dim, 2 if options.reflections else 3, bias=False)
        nn.init.xavier_uniform_(self.weight_out.weight, gain=0.001)
        self.velocity_in, self.velocity_out = Linear(hidden_dim, hidden_dim), Linear(hidden_dim, 1)
        if update_features:
            self.from_self, self.from_messages = split_linear((hidden_dim, hidden_dim), hidden_dim)
            self.node_out, self.norm = Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim)

    def forward(self, h: Tensor, x: Tensor, v: Tensor, scalars: EdgeFunction, edges: Edges) -> tuple[Tensor, Tensor]:
        """New h [N, H] and x [N, 3], of edge scalars [E, H / 2]."""
        u, ends = _from_centre(x, edges, self.options), side_by_side(h, self.from_receiver, self.from_sender)

        def sums(part: Edges, index: Tensor | None) -> tuple[Tensor, Tensor]:
            pairs = _pairs(x, u, part)
            q = torch.cat([pairs.d.square().sum(-1, keepdim=True), scalars(part, index)], dim=-1)
            total, w = self._messages(ends, q, part)
            return total, part.sum(self._along(w, pairs))

        total, shift = in_parts(edges, sums)
        # Not named x: the sums are made again, of the old positions, in the backward pass.
        moved = x + self._bounded(shift, edges) + self.velocity_out(F.silu(self.velocity_in(h))) * v
        if not self.update_features:
            return h, moved
        update = self.node_out(F.silu(self.from_self(h) + self.from_messages(total)))
        return self.norm(self.options.skip * h + update), moved

    def _messages(self, ends: Tensor, q: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Sum of the messages at each node [N, H], and the weights of the frame vectors [E, 3 or 2]."""
        first = torch.cat([self.from_distance.weight, self.from_edge.weight], dim=1)
        inner, second, third = self.message_inner, self.message_out, self.weight_inner
        if self.options.fused:
            maps = (second.weight, second.bias, third.weight, third.bias, self.weight_out.weight)
            weights = MessageWeights(first, *maps, weight1=inner.weight, bias1=inner.bias)
            return fused_messages(ends, q, None, edges, weights)
        receiver, sender = ends.chunk(2, dim=-1)
        a = edges.from_receivers(receiver) + edges.from_senders(sender) + linear(q, first)
        m = F.silu(second(F.silu(inner(F.silu(a)))))
        return edges.sum(m), self.weight_out(F.silu(third(m)))

    def _along(self, w: Tensor, pairs: _Pairs) -> Tensor:
        """w_1 d + w_2 n + w_3 b."""
        options = self.options
        w = w.tanh() if options.bounded else w
        if options.reflections:
            w = torch.stack([w[:, 0], torch.zeros_like(w[:, 0]), w[:, 1]], dim=-1)
        t = local_frame(*pairs, scaled=options.scaled).combine(w)
        return t.clamp(-100, 100) if options.clamp == "message_component" else t

    def _bounded(self, shift: Tensor, edges: Edges) -> Tensor:
        """The shift from its sum over neighbours."""
        shift = self.options.shift_scale * edges.inverse_degree * shift
        return shift * (100 / safe_length(shift).clamp(min=100)) if self.options.clamp == "norm" else shift


@backbone("clofnet", symmetry=lambda options: "E(3)" if options.reflections else "SE(3)")
class ClofNetBackbone(nn.Module):
    """The layer for temporal operators: it sees rows of any graphs, so it takes its frames around the neighbours and
    projects positions and velocities anew each time. The contract is that of `equidyn.core.catalogue.backbone`.

    Args:
        hidden_dim: H.
        edge_dim: A, number of edge scalars.
        update_features: as for `ClofNetLayer`.
        options: the published variants; `centre` is "neighbours" whatever it says.
    """

    Options = ClofNetOptions

    def __init__(
        self,
        hidden_dim: int,
        edge_dim: int = 0,
        *,
        update_features: bool = True,
        options: ClofNetOptions = ClofNetOptions(),
    ) -> None:
        super().__init__()
        self.options = replace(options, centre="neighbours")
        self.scalars = _EdgeScalars(edge_dim, hidden_dim, self.options)
        self.layer = ClofNetLayer(hidden_dim, update_features, self.options)

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor, edges: Edges, edge_attr: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New h and x, and v as it came."""
        return *self.layer(h, x, v, self.scalars.of(x, v, edges, edge_attr), edges), v


class ClofNet(nn.Module):
    """The network: from positions and velocities to the positions after a fixed time.

    Args:
        node_dim: F, scalar features per node.
        edge_dim: A, scalar features per edge.
        hidden_dim: H, even.
        num_layers: L.
        options: the published variants.

    Raises:
        InputError: an odd `hidden_dim`; a field of the sample is missing or has the wrong width.
    """

    def __init__(
        self,
        node_dim: int,
        edge_dim: int = 0,
        hidden_dim: int = 64,
        num_layers: int = 4,
        *,
        options: ClofNetOptions = ClofNetOptions(),
    ) -> None:
        super().__init__()
        if hidden_dim % 2:
            raise InputError("width of the network", where="hidden_dim", expected="an even number", got=hidden_dim)
        if options.gaussians and not edge_dim:
            raise InputError("gaussians read the product of charges", where="edge_dim", expected="at least 1", got=0)
        self.options, self.edge_dim = options, edge_dim
        self.embedding = Linear(node_dim, hidden_dim)
        self.scalars = _EdgeScalars(edge_dim, hidden_dim, options)
        self.layers = nn.ModuleList(ClofNetLayer(hidden_dim, True, options) for _ in range(num_layers))
        self._edges = EdgeCache()

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """Move the points and update the features (module docstring for shapes)."""
        self._check(sample)
        pos = sample.pos
        edges = self._edges(sample.edge_index, pos.shape[-2], pos.dtype, copies=math.prod(pos.shape[:-2]))
        edge_attr = sample.get("edge_attr")
        edge_attr = None if edge_attr is None else edge_attr.flatten(0, -2)
        centre, shift = _centre(sample), sample.get("edge_shift")
        x, v, h = (pos - centre).flatten(0, -2), sample.vel.flatten(0, -2), self.embedding(sample.x.flatten(0, -2))
        edges = edges.placed(x, None if shift is None else shift.flatten(0, -2))
        scalars = self.scalars.of(x, v, edges, edge_attr)
        for layer in self.layers:
            h, x = layer(h, x, v, scalars, edges)
        return {"pos": x.view(pos.shape) + centre, "h": h.view(*pos.shape[:-1], -1)}

    @torch.compiler.disable
    def _check(self, sample: Data) -> None:
        for field, width in (("x", self.embedding.in_features), ("edge_attr", self.edge_dim)):
            value = sample.get(field)
            if width and (value is None or value.shape[-1] != width):
                got = "nothing" if value is None else tuple(value.shape)
                raise InputError("scalar features", where=f"field {field}", expected=f"[..., {width}]", got=got)
        if sample.get("edge_shift") is not None and self.options.centre == "graph":
            expected = "options.centre: neighbours"
            raise InputError("a periodic box has no middle", where="field edge_shift", expected=expected, got="graph")
        if self.options.gaussians and not bool((sample.edge_attr[..., 0].abs() == 1).all()):
            raise InputError("product of charges", where="field edge_attr, column 0", expected="1 or -1")


def _centre(sample: Data) -> Tensor:
    """Reference point of each node's graph, the mean position unless the sample names one: [N, 3] or [B, 1, 3]."""
    pos, batch = sample.pos, sample.get("batch")
    if sample.get("centre") is not None:
        return sample.centre
    if batch is None or pos.dim() == 3:
        return pos.mean(-2, keepdim=True)
    return mean_of_graph(pos, batch)


ENTRY = Entry(
    name="clofnet",
    title="SE(3) Equivariant Graph Neural Network with Complete Local Frames",
    model=ClofNet,
    citation=Citation(
        key="du2022clofnet",
        authors=(
            "Du, Weitao and Zhang, He and Du, Yuanqi and Meng, Qi and Chen, Wei and Zheng, Nanning and Shao, Bin and "
            "Liu, Tie-Yan"
        ),
        title="SE(3) Equivariant Graph Neural Networks with Complete Local Frames",
        venue="International Conference on Machine Learning",
        year=2022,
        arxiv="2110.14811",
    ),
    symmetry="SE(3)",
    needs=("pos", "vel", "x", "edge_index"),
    gives=("pos", "h"),
)
