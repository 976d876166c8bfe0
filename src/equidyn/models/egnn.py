"""EGNN, the E(n) equivariant graph neural network.

Satorras, Hoogeboom, Welling, "E(n) Equivariant Graph Neural Networks", ICML 2021, arXiv 2102.09844.

Symmetry: E(n), any dimension n, and permutations. Positions enter through squared distances and relative vectors only.

Reads `pos [N, 3]`, `x [N, F]`, `edge_index [2, E]`, and where present `vel [N, 3]`, `edge_attr [E, A]`,
`edge_shift [E, 3]` (images in a periodic box), `batch [N]`; node and edge fields may carry a leading
batch axis beside one shared `edge_index`. Gives `pos` (moved points, in the unit of the input), `h` (node features)
and, with a graph readout, `prediction [B]`.

Differences from the original: clamping acts on the norm of the summed shift, not on its components, which would break
rotation equivariance (the original's clamps are options); coincident points have finite gradients; inputs are never
written to; molecules are ragged graphs instead of padded slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry, backbone
from equidyn.core.errors import InputError
from equidyn.ops.edges import EdgeCache, Edges, in_parts, rows_of
from equidyn.ops.linear import Linear, side_by_side, split_linear
from equidyn.ops.message import MessageWeights, fused_messages
from equidyn.ops.vectors import length

Clamp = Literal["none", "norm", "component", "message_component"]


@dataclass(frozen=True)
class EGNNOptions:
    """What varies between the published forms of the layer.

    Attributes:
        residual: add the node update to h instead of replacing h.
        attention: weight each message by a learned gate (equation 8 with e_ij).
        normalize: relative vectors as they are, divided by their length, or by their length plus one.
        bounded: tanh on the coordinate weights.
        reduce: shifts are the mean or the sum over neighbours.
        clamp: bound of 100 on the shift: its norm (equivariant), its components, the components of every summand,
            or no bound. The component forms are the originals'.
        shift_bias: bias on the coordinate weight; with it the weight starts at the default scale instead of near zero.
        distance: squared distances q as input of the messages; or q, 1 / sqrt(q + 0.01) and 1 / (q + 0.01), for forces
            that grow towards contact (ours); or the constant 1 (`norm` of the EGNO code).
        relative_velocity: let the messages also see r_ij . v_ij and |v_ij|^2, and shift along v_ij beside r_ij: two
            bodies that attract each other move by combinations of these two vectors (ours).
        activation: "silu", or "tanh" with inner layers four times as wide (`flat` of the EGNO code).
        node_input: give the node update the input features x again (`node_attr` of the QM9 code).
        move: update the positions (the QM9 form does not).
        cutoff: distance in the input state at which messages fade smoothly to zero, that of the neighbour list, so that
            nothing jumps when a pair enters or leaves it; 0 for messages as they are (ours).
        fused: compute the messages by one hand-differentiated operator where the other options allow; it is faster and
            can be differentiated once. Turn it off to differentiate twice.
    """

    residual: bool = True
    attention: bool = False
    normalize: Literal["none", "unit", "plus_one"] = "none"
    bounded: bool = False
    reduce: Literal["mean", "sum"] = "mean"
    clamp: Clamp = "norm"
    shift_bias: bool = False
    distance: Literal["squared", "inverse", "one"] = "squared"
    relative_velocity: bool = False
    activation: Literal["silu", "tanh"] = "silu"
    node_input: int = 0
    move: bool = True
    cutoff: float = 0.0
    fused: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff < float("inf"):
            raise InputError("cutoff", where="option cutoff", expected="a distance, or 0 for none", got=self.cutoff)


def _activation(name: str) -> nn.Module:
    return nn.SiLU() if name == "silu" else nn.Tanh()


class _ShiftNet(nn.Module):
    """The coordinate weight phi_x: one number per message and relative vector (equation 4)."""

    def __init__(self, hidden_dim: int, inner: int, options: EGNNOptions) -> None:
        super().__init__()
        self.inner = Linear(hidden_dim, inner)
        self.act = _activation(options.activation)
        self.out = Linear(inner, 2 if options.relative_velocity else 1, bias=options.shift_bias)
        if not options.shift_bias:
            nn.init.xavier_uniform_(self.out.weight, gain=0.001)

    def forward(self, m: Tensor) -> Tensor:
        return self.out(self.act(self.inner(m)))


@backbone("egnn")
class EGNNLayer(nn.Module):
    """One layer: messages, shifts of the positions, update of the features (equations 3 to 7 of the paper).

    Args:
        hidden_dim: H, width of the node features.
        edge_dim: A, number of edge scalars.
        velocity: add phi_v(h_i) v_i to the shift (equation 7).
        update_features: compute new node features; a last layer whose features nobody reads can do without.
        options: the published variants.
    """

    Options = EGNNOptions

    def __init__(
        self,
        hidden_dim: int,
        edge_dim: int = 0,
        *,
        velocity: bool = True,
        update_features: bool = True,
        options: EGNNOptions = EGNNOptions(),
    ) -> None:
        super().__init__()
        self.options = options
        inner = 4 * hidden_dim if options.activation == "tanh" else hidden_dim
        self.act = _activation(options.activation)
        # phi_e on [h_i ++ h_j ++ |r_ij|^2 ++ a_ij]; the two node parts are applied per node.
        invariants = (3 if options.distance == "inverse" else 1) + (2 if options.relative_velocity else 0)
        parts = split_linear((hidden_dim, hidden_dim, invariants, *([edge_dim] if edge_dim else [])), inner)
        self.from_receiver, self.from_sender, self.from_distance = parts[:3]
        self.from_edge = parts[3] if edge_dim else None
        self.message_out = Linear(inner, hidden_dim)
        self.gate = Linear(hidden_dim, 1) if options.attention else None
        # phi_x and phi_v.
        self.shift = _ShiftNet(hidden_dim, inner, options) if options.move else None
        if velocity and options.move:
            self.velocity_in, self.velocity_out = Linear(hidden_dim, inner), Linear(inner, 1)
        # phi_h on [h_i ++ sum m_ij (++ x_i)].
        if update_features:
            widths = (hidden_dim, hidden_dim, *([options.node_input] if options.node_input else []))
            parts = split_linear(widths, inner)
            self.from_self, self.from_messages = parts[:2]
            self.from_input = parts[2] if options.node_input else None
            self.node_out = Linear(inner, hidden_dim)
        self.velocity, self.update_features = velocity and options.move, update_features
        self.fused = options.fused and options.move and not options.attention and options.activation == "silu"

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor | None, edges: Edges, edge_attr: Tensor | None, x0: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Apply the layer.

        Args:
            h: [R, H] node features.
            x: [R, n] positions.
            v: [R, n] velocities, or None.
            edges: of the R nodes.
            edge_attr: [E, A]; the edges may be several copies of these E.
            x0: [R, F] input features, for `node_input`.

        Returns:
            New h and x, and v as it came.
        """
        ends = side_by_side(h, self.from_receiver, self.from_sender)
        total, *shift = in_parts(edges, lambda part, index: self._sums(ends, x, v, rows_of(edge_attr, index), part))
        moved = x + self._bounded(shift[0], edges) if shift else x
        if self.velocity and v is not None:
            moved = moved + self.velocity_out(self.act(self.velocity_in(h))) * v
        if not self.update_features:
            return h, moved, v
        a = self.from_self(h) + self.from_messages(total)
        if self.from_input is not None:
            a = a + self.from_input(x0)
        update = self.node_out(self.act(a))
        return (h + update if self.options.residual else update), moved, v

    def _sums(
        self, ends: Tensor, x: Tensor, v: Tensor | None, edge_attr: Tensor | None, edges: Edges
    ) -> tuple[Tensor, ...]:
        """What arrives at each node: the messages, and the vectors along which they move it."""
        r = edges.relative(x)
        w = None
        if self.options.relative_velocity and v is not None:
            w = edges.from_receivers(v) - edges.from_senders(v)
        q = self._invariants(r, w)
        # One row per edge of a single copy of the graph; a lone particle has none.
        shared = (
            self.from_edge(edge_attr)
            if self.from_edge is not None and edge_attr is not None and len(edge_attr)
            else None
        )
        g: Tensor | None
        if self.fused:
            total, g = fused_messages(ends, q, shared, edges, self._weights())
        else:
            total, g = self._messages(ends, q, shared, edges)
        return (total,) if g is None else (total, edges.sum(edges.weighted(self._along(r, w, g))))

    def _invariants(self, r: Tensor, w: Tensor | None) -> Tensor:
        """What the messages see of relative positions r and velocities w [E, n]: [E, D]."""
        q = r.square().sum(-1, keepdim=True)
        seen = [q]
        if self.options.distance == "inverse":
            near = 1 / (q + 0.01)
            seen = [q, near.sqrt(), near]
        elif self.options.distance == "one":
            seen = [(q / q.clamp(min=1e-12)).detach()]
        if w is not None:
            seen += [(r * w).sum(-1, keepdim=True), w.square().sum(-1, keepdim=True)]
        return torch.cat(seen, dim=-1)

    def _messages(self, ends: Tensor, q: Tensor, shared: Tensor | None, edges: Edges) -> tuple[Tensor, Tensor | None]:
        """Sum of the messages m_ij at each node (equation 3) and their coordinate weights phi_x(m_ij)."""
        receiver, sender = ends.chunk(2, dim=-1)
        a = edges.from_receivers(receiver) + edges.from_senders(sender) + self.from_distance(q)
        if shared is not None:
            a = (a.view(-1, *shared.shape) + shared).view(a.shape)
        m = self.act(self.message_out(self.act(a)))
        if self.gate is not None:
            m = m * self.gate(m).sigmoid()
        return edges.sum(edges.weighted(m)), None if self.shift is None else self.shift(m)

    def _weights(self) -> MessageWeights:
        assert self.shift is not None
        second, third, fourth = self.message_out, self.shift.inner, self.shift.out
        distance = self.from_distance.weight
        return MessageWeights(
            distance, second.weight, second.bias, third.weight, third.bias, fourth.weight, fourth.bias
        )

    def _along(self, r: Tensor, w: Tensor | None, g: Tensor) -> Tensor:
        """r_ij phi_x(m_ij) (equation 4), and w_ij beside r_ij where it is given."""
        if self.options.normalize == "unit":
            r = r / (length(r).detach() + 1e-8)
        elif self.options.normalize == "plus_one":
            r = r / (length(r) + 1)
        g = g.tanh() if self.options.bounded else g
        t = r * g[:, :1] if w is None else r * g[:, :1] + w * g[:, 1:]
        return t.clamp(-100, 100) if self.options.clamp == "message_component" else t

    def _bounded(self, f: Tensor, edges: Edges) -> Tensor:
        """The shift from its sum over neighbours."""
        if self.options.reduce == "mean":
            f = f * edges.inverse_degree
        if self.options.clamp == "component":
            f = f.clamp(-100, 100)
        elif self.options.clamp == "norm":
            f = f * (100 / length(f).clamp(min=100))
        return f


class EGNN(nn.Module):
    """The network: embedding, layers, and optionally a readout.

    Args:
        node_dim: F, scalar features per node.
        edge_dim: A, scalar features per edge.
        hidden_dim: H.
        num_layers: L.
        velocity: read `vel` and let it move the points.
        readout: "none" returns the last features, "node" maps them linearly to `out_dim`, "graph" gives one number
            per graph through the QM9 decoder.
        out_dim: width of the "node" readout.
        layer: the published variants of the layer.

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
        velocity: bool = True,
        readout: Literal["none", "node", "graph"] = "none",
        out_dim: int = 1,
        layer: EGNNOptions = EGNNOptions(),
    ) -> None:
        super().__init__()
        self.embedding = Linear(node_dim, hidden_dim)
        self.layers = nn.ModuleList(
            EGNNLayer(hidden_dim, edge_dim, velocity=velocity, options=layer) for _ in range(num_layers)
        )
        self.readout, self.cutoff = readout, layer.cutoff
        if readout == "node":
            self.node_out = Linear(hidden_dim, out_dim)
        elif readout == "graph":
            mlp = lambda out: nn.Sequential(Linear(hidden_dim, hidden_dim), nn.SiLU(), Linear(hidden_dim, out))  # noqa: E731
            self.node_decoder, self.graph_decoder = mlp(hidden_dim), mlp(1)
        self._edges = EdgeCache()

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """Move the points and update the features (module docstring for shapes)."""
        pos, features = sample.pos, sample.x
        if features.shape[-1] != self.embedding.in_features:
            raise InputError("node features", where="x", expected=self.embedding.in_features, got=features.shape[-1])
        edges = self._edges(sample.edge_index, pos.shape[-2], pos.dtype, copies=pos[..., 0, 0].numel())
        names = ("vel", "edge_attr", "edge_shift")
        vel, edge_attr, shift = (None if t is None else t.flatten(0, -2) for t in map(sample.get, names))
        x, x0, v = pos.flatten(0, -2), features.flatten(0, -2), vel
        edges = edges.placed(x, shift, self.cutoff)
        h = self.embedding(x0)
        for layer in self.layers:
            h, x, v = layer(h, x, v, edges, edge_attr, x0)
        if self.readout == "graph":
            return {"prediction": self._per_graph(h, sample)}
        if self.readout == "node":
            h = self.node_out(h)
        return {"pos": x.view(pos.shape), "h": h.view(*pos.shape[:-1], -1)}

    def _per_graph(self, h: Tensor, sample: Data) -> Tensor:
        h = self.node_decoder(h)
        if sample.pos.dim() == 3:
            graphs = h.view(*sample.pos.shape[:2], -1).sum(1)
        else:
            batch = sample.batch if sample.get("batch") is not None else h.new_zeros(len(h), dtype=torch.long)
            graphs = h.new_zeros(int(batch[-1]) + 1, h.shape[1]).index_add(0, batch, h)
        return self.graph_decoder(graphs).squeeze(-1)


ENTRY = Entry(
    name="egnn",
    title="E(n) Equivariant Graph Neural Network",
    model=EGNN,
    citation=Citation(
        key="satorras2021egnn",
        authors="Satorras, Victor Garcia and Hoogeboom, Emiel and Welling, Max",
        title="E(n) Equivariant Graph Neural Networks",
        venue="International Conference on Machine Learning",
        year=2021,
        arxiv="2102.09844",
    ),
    symmetry="E(n)",
    needs=("pos", "x", "edge_index"),
    gives=("pos", "h", "prediction"),
)
