"""EGNO, the equivariant graph neural operator: from one state to a whole future trajectory in one pass.

Xu, Han, Lou, Kossaifi, Ramanathan, Azizzadenesheli, Leskovec, Ermon, Anandkumar, "Equivariant Graph Neural Operator for
Modeling 3D Dynamics", ICML 2024, arXiv 2401.11037.

Symmetry: rotations, translations and permutations of the nodes, and reflections where the backbone keeps them
(`EGNO.symmetry` says so).

Reads `pos [N, 3]`, `vel [N, 3]`, `x [N, F]`, `edge_index [2, E]`, and where present `edge_attr [E, A]`,
`edge_shift [E, 3]` (images in a periodic box), `batch [N]` and `times [1, P]` (in the unit in which `vel`
counts time), and if told to `gravity [1, 3]`; node and edge fields may carry a leading batch axis beside one shared
`edge_index`. Gives `trajectory [N, P, 3]` and `trajectory_vel [N, P, 3]` at those times, in the units of `pos` and
`vel`, and on request the scalar features `h [N, P, C]`.

The network alternates two operators on functions of time: a temporal convolution of each node's own trajectory, and a
spatial layer (any backbone) that lets the nodes interact, separately at each time. Both are equivariant, so their
composition is. Features that turn with the points, vectors and higher tensors that some backbones carry, go through the
temporal convolution as positions and velocities do: it mixes their channels and times, never their components.

Differences from the original: time points are physical times and any of them inside the window can be asked for (the
convolution integrates over the anchor times alone, so an answer does not depend on what else is asked); the graph is
not copied in memory per time point beyond its indices; float64 works; a prediction does not depend on the rest of the
batch. Ours, and off by default: `lift="ballistic"` starts from x + v t instead of from x at every time,
`basis="cosine"` does not take the trajectory for a periodic one, and `gravity=True` lets the nodes see and move along a
direction of the world that turns with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch_geometric.data import Data

from equidyn.core.catalogue import BACKBONES, Citation, Entry
from equidyn.core.errors import InputError, unknown_name
from equidyn.ops.edges import EdgeCache, Edges
from equidyn.ops.graphs import mean_of_graph
from equidyn.ops.linear import Linear, linear
from equidyn.ops.temporal import Basis, TemporalConv, leaky_relu
from equidyn.ops.time import sinusoidal_embedding

PAPER_LAYER = {"residual": False, "shift_bias": True}
"""Options of the EGNN backbone as the EGNO paper uses it; other backbones have their own defaults."""


class _Rows:
    """A sample with its graphs and nodes flattened to R rows, and the way back."""

    def __init__(self, sample: Data) -> None:
        pos = sample.pos
        self.shape = pos.shape[:-1]  # [N], or [B, N] where the graphs share one topology
        self.copies = self.shape[0] if pos.dim() == 3 else 1
        self.pos, self.vel, self.x = (t.flatten(0, -2) for t in (pos, sample.vel, sample.x))
        edge_attr = sample.get("edge_attr")
        self.edge_attr = None if edge_attr is None else edge_attr.flatten(0, -2)
        shift = sample.get("edge_shift")
        self.shift = None if shift is None else shift.flatten(0, -2)
        self.edge_index, self.num_nodes = sample.edge_index, pos.shape[-2]
        self.graph = sample.get("batch")
        self.centre = self._centre(sample)

    def of_graphs(self, value: Tensor) -> Tensor:
        """Values per graph [B or 1, Q] as values per row [Q, R]."""
        if self.graph is not None and len(value) > 1:
            return value[self.graph].T
        rows = value.repeat_interleave(self.num_nodes, 0) if len(value) > 1 else value
        return rows.T.expand(-1, len(self.pos))

    def _centre(self, sample: Data) -> Tensor:
        """What positions are counted from [R, 3]; a periodic box has no middle, there each node counts from itself."""
        if sample.get("centre") is not None:
            return sample.centre.flatten(0, -2)
        return self._mean_position() if self.shift is None else self.pos

    def _mean_position(self) -> Tensor:
        """Mean position of each row's graph [R, 3]."""
        if self.graph is None:
            mean = self.pos.view(self.copies, self.num_nodes, -1).mean(1)
            return mean.repeat_interleave(self.num_nodes, 0)
        return mean_of_graph(self.pos, self.graph)

    def gravity(self, sample: Data) -> Tensor:
        """Direction of gravity for each row [R, 3]."""
        gravity = sample.get("gravity")
        if gravity is None:
            raise InputError("no gravity", where="field gravity", expected="[1, 3]", got="none")
        return self.of_graphs(gravity.view(-1, 3).to(self.pos)).T

    def unflatten(self, value: Tensor) -> Tensor:
        """[P, R, C] to [N, P, C] or [B, N, P, C]."""
        return value.unflatten(1, self.shape).movedim(0, -2)


class _Gravity(nn.Module):
    """Nodes see how far they lie along gravity g from the centre and how fast they fall, and move along it (ours).

    h <- h + W [(x - c) . g, v . g],    x <- x + phi_g(h) g
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.see = Linear(2, hidden_dim, bias=False)
        self.inner, self.out = Linear(hidden_dim, hidden_dim), Linear(hidden_dim, 1, bias=False)
        nn.init.xavier_uniform_(self.out.weight, gain=0.001)

    def forward(self, h: Tensor, x: Tensor, v: Tensor, centre: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        along = torch.stack([((x - centre) * g).sum(-1), (v * g).sum(-1)], dim=-1)
        h = h + self.see(along)
        return h, x + self.out(silu(self.inner(h))) * g


class EGNO(nn.Module):
    """The operator.

    Args:
        node_dim: F, scalar features per node.
        edge_dim: A, scalar features per edge.
        hidden_dim: H, from which the backbone makes the widths of its features; of C = H scalars unless it has others.
        num_layers: L.
        times: the P equidistant anchor times of the temporal convolution, predicted when a sample names no times; the
            last one closes the window.
        num_modes: M of the temporal convolutions; 0 leaves them out (EGNN-S: time slices do not see each other).
        backbone: name of the spatial layer, see `equidyn.core.catalogue.BACKBONES`.
        options: options of the backbone; None for the paper's (EGNN) or the backbone's own defaults.
        basis: of the temporal convolutions.
        lift: trajectory that the first layer starts from, "constant" x or "ballistic" x + v t.
        time_dim: width of the time embedding, at least 4.
        gravity: read `gravity`.
        features: also return `h`; without, the last layer computes none.

    Raises:
        InputError: times that are not equidistant, an unknown backbone, a sample that does not fit.
    """

    def __init__(
        self,
        node_dim: int,
        edge_dim: int = 0,
        hidden_dim: int = 64,
        num_layers: int = 4,
        *,
        times: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
        num_modes: int = 2,
        backbone: str = "egnn",
        options: dict[str, Any] | None = None,
        basis: Basis = "fourier",
        lift: Literal["constant", "ballistic"] = "constant",
        time_dim: int = 32,
        gravity: bool = False,
        features: bool = False,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise unknown_name("backbone", backbone, BACKBONES)
        if time_dim < 4:
            raise InputError("width of the time embedding", where="time_dim", expected="4 or more", got=time_dim)
        self.times = _equidistant(times)
        self.spacing = self.times[-1] - self.times[-2] if len(times) > 1 else self.times[0]
        self.lift, self.time_dim, self.features = lift, time_dim, features
        kind = BACKBONES[backbone]
        paper = PAPER_LAYER if backbone == "egnn" else {}
        layer_options = kind.layer.Options(**(paper if options is None else options))
        self.symmetry = kind.symmetry(layer_options)
        (_, scalars), *self.tensors = kind.features(hidden_dim, layer_options)
        convolve = range(num_layers if num_modes else 0)
        conv = partial(TemporalConv, num_points=len(times), num_modes=num_modes, basis=basis)
        self.embedding = Linear(node_dim + time_dim, scalars)
        self.time_convs = nn.ModuleList(conv(scalars, scale=scalars**-2) for _ in convolve)
        self.tensor_convs = nn.ModuleList(
            nn.ModuleList(conv(channels, scale=channels**-2) for _, channels in self.tensors) for _ in convolve
        )
        # Positions and velocities are two channels of vectors, mixed over time as the scalars are (equation 8).
        self.motion_convs = nn.ModuleList(conv(2) for _ in convolve)
        self.gravity = nn.ModuleList(_Gravity(scalars) for _ in range(num_layers if gravity else 0))
        self.layers = nn.ModuleList(
            kind.layer(hidden_dim, edge_dim, update_features=features or number < num_layers - 1, options=layer_options)
            for number in range(num_layers)
        )
        self.cutoff = getattr(layer_options, "cutoff", 0.0)
        self._edges = EdgeCache()

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """Predict the trajectory of a sample (module docstring for fields and shapes).

        Raises:
            InputError: `x` of another width, or times outside the window.
        """
        rows, edges, times = self._prepare(sample)
        g = rows.gravity(sample) if len(self.gravity) else None
        x, v, h = self._evolve(rows, edges, times, g)
        out = {"trajectory": rows.unflatten(x), "trajectory_vel": rows.unflatten(v)}
        return out | {"h": rows.unflatten(h)} if self.features else out

    @torch.compiler.disable  # depends on values; the rest depends on shapes alone
    def _prepare(self, sample: Data) -> tuple[_Rows, Edges, Tensor | None]:
        """Rows, edges of all time slices, and the times asked for."""
        width = self.embedding.in_features - self.time_dim
        if sample.x.shape[-1] != width:
            raise InputError("node features", where="field x", expected=f"[N, {width}]", got=tuple(sample.x.shape))
        rows = _Rows(sample)
        times = self._requested(sample.get("times"))
        slices = len(self.times) + (0 if times is None else times.shape[1])
        edges = self._edges(rows.edge_index, rows.num_nodes, rows.pos.dtype, slices * rows.copies)
        return rows, edges.placed(rows.pos, rows.shift, self.cutoff), times

    def _requested(self, times: Tensor | None) -> Tensor | None:
        """The times a sample asks for [B or 1, Q], or None where they are the model's own."""
        own = torch.tensor([self.times], dtype=torch.float64)
        if times is None:
            return None
        times = times.double().view(-1, times.shape[-1])
        if times.shape[1] == own.shape[1] and torch.allclose(times.cpu(), own, rtol=1e-6, atol=0.0):
            return None
        low, high = float(times.min()), float(times.max())
        if low < 0 or high > self.times[-1] * (1 + 1e-6):
            expected = f"between 0 and {self.times[-1]:g}"
            raise InputError(
                "time outside the window", where="field times", expected=expected, got=f"{low:g} to {high:g}"
            )
        return times

    def _embed(self, x: Tensor, points: Tensor) -> Tensor:
        """Lift [R, F] features to functions of time [P, R, H]; points [P, R or 1] are real-valued time indices."""
        time = sinusoidal_embedding(points, self.time_dim).to(x.dtype)
        weight, bias = self.embedding.weight, self.embedding.bias
        features = linear(x, weight[:, : x.shape[-1]])
        return features + linear(time, weight[:, x.shape[-1] :], bias)

    def _layer(self, number: int, state: Sequence[Tensor], edges: Edges, rows: _Rows) -> list[Tensor]:
        """One spatial layer on (h, x, v, *tensors) at all times at once; the time slices do not see each other."""
        h, x, v, *tensors = (t.flatten(0, 1) for t in state)
        out = self.layers[number](h, x, v, edges, rows.edge_attr, *tensors)
        return [t.unflatten(0, state[0].shape[:2]) for t in out]

    def _evolve(
        self, rows: _Rows, edges: Edges, times: Tensor | None, g: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x, v and scalars h at the model's times, or at the requested ones, [P, R, C] each (equations 5 to 8)."""
        own = len(self.times)
        points = torch.arange(own, dtype=torch.float64, device=rows.pos.device)[:, None]
        asked = None
        if times is not None:  # further slices beside the anchors, which read from the anchors and never write to them
            asked = rows.of_graphs((times - self.times[0]) / self.spacing)
            points = torch.cat([points.expand(-1, asked.shape[1]), asked])
            asked = asked.to(rows.pos.dtype)
        h = self._embed(rows.x, points)
        x, v = (t.expand(len(points), -1, -1) for t in (rows.pos, rows.vel))
        if self.lift == "ballistic":
            x = x + v * (self.times[0] + points * self.spacing).to(x.dtype)[..., None]
        tensors = [x.new_zeros(*x.shape[:2], *shape) for shape in self.tensors]
        centre = rows.centre
        for number in range(len(self.layers)):
            if len(self.time_convs):
                h = h + leaky_relu(self.time_convs[number](h[:own], asked))
                convs = cast(nn.ModuleList, self.tensor_convs[number])
                tensors = [t + conv(t[:own], asked) for t, conv in zip(tensors, convs, strict=True)]
                z = torch.stack([x - centre, v], dim=1).movedim(1, -1)  # channels last, apart in memory
                z = z + self.motion_convs[number](z[:own], asked)
                x, v = z[..., 0] + centre, z[..., 1]
            if g is not None:
                h, x = self.gravity[number](h, x, v, centre, g)
            h, x, v, *tensors = self._layer(number, (h, x, v, *tensors), edges, rows)
        keep = slice(None) if times is None else slice(own, None)
        return x[keep], v[keep], h[keep]


def _equidistant(times: Sequence[float]) -> tuple[float, ...]:
    steps = [b - a for a, b in pairwise(times)]
    if not times or times[0] <= 0 or (steps and not all(abs(s - steps[0]) < 1e-6 * times[-1] and s > 0 for s in steps)):
        raise InputError("anchor times", where="times", expected="positive, rising, equidistant", got=list(times))
    return tuple(times)


ENTRY = Entry(
    name="egno",
    title="Equivariant Graph Neural Operator",
    model=EGNO,
    citation=Citation(
        key="xu2024egno",
        authors=(
            "Xu, Minkai and Han, Jiaqi and Lou, Aaron and Kossaifi, Jean and Ramanathan, Arvind and "
            "Azizzadenesheli, Kamyar and Leskovec, Jure and Ermon, Stefano and Anandkumar, Anima"
        ),
        title="Equivariant Graph Neural Operator for Modeling 3D Dynamics",
        venue="International Conference on Machine Learning",
        year=2024,
        arxiv="2401.11037",
    ),
    symmetry="E(3), or that of its backbone",
    needs=("pos", "vel", "x", "edge_index"),
    gives=("trajectory", "trajectory_vel", "h"),
)
