"""The score network of ClofNet: the gradient of the log density of molecular conformations blurred by noise.

Du, Zhang, Du, Meng, Chen, Zheng, Shao, Liu, "SE(3) Equivariant Graph Neural Networks with Complete Local Frames",
ICML 2022, arXiv 2110.14811, section 5; trained and sampled as in Shi et al., "Learning Gradient Fields for Molecular
Conformation Generation", ICML 2021, arXiv 2105.03902. The network for particles is `equidyn.models.clofnet`.

Symmetry: rotations, translations and permutations; not reflections, so that it can tell enantiomers apart.

Reads `pos [N, 3]` in Å, `z [N]`, `edge_index [2, E]` and `edge_type [E]` (bonds and pairs a few bonds apart, see
`equidyn.data.bonds.extend_bonds`), `sigma [B]` in Å, the noise level of each graph, and where present `batch [N]`.
Gives `score [N, 3]` in 1/Å and `h [N, H]`.

Differences from the original: positions are counted from the centre of each molecule, without which the score changes
when the molecule is moved (`centre="origin"` does as the original); collinear and coincident atoms have finite
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry
from equidyn.core.errors import InputError, unknown_name
from equidyn.ops.edges import EdgeCache, Edges
from equidyn.ops.frames import Frame, local_frame, safe_length, sine_cosine
from equidyn.ops.graphs import mean_of_graph
from equidyn.ops.linear import Linear, split_linear

Activation = Literal["relu", "silu", "softplus", "gelu", "tanh", "elu", "leaky_relu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
}
_KINDS = 100  # rows of the tables of elements and of edge types


class _Fourier(nn.Module):
    """Sines and cosines of a number at fixed random frequencies."""

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.randn(width))

    def forward(self, a: Tensor) -> Tensor:
        """[E, 2 width] of numbers [E, 1]."""
        angle = 2 * math.pi * a * self.frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class _EdgeFeatures(nn.Module):
    """Features of an edge: its length and type, and where its ends lie in its frame."""

    def __init__(self, hidden_dim: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.length, self.coordinate = _Fourier(hidden_dim), _Fourier(hidden_dim)
        self.from_length, self.types = Linear(2 * hidden_dim, hidden_dim), nn.Embedding(_KINDS, hidden_dim)
        # On the Fourier features of the coordinates along d and along b; along n both ends are at zero.
        self.from_d, self.from_b = split_linear((2 * hidden_dim, 2 * hidden_dim), hidden_dim)
        self.project_angle, *ends = split_linear((2, hidden_dim, hidden_dim), hidden_dim)
        self.project_sender, self.project_receiver = ends
        self.project_out = Linear(hidden_dim, hidden_dim)

    def _embed(self, c: Tensor) -> Tensor:
        return self.from_d(self.coordinate(c[:, :1])) + self.from_b(self.coordinate(c[:, 2:]))

    def forward(self, d: Tensor, frame: Frame, u: Tensor, kind: Tensor) -> Tensor:
        """e [E, H] of differences d = x_j - x_i, frames, centred receivers u = x_i and types."""
        receiver = frame.project(u)
        sender = receiver + frame.project(d)
        a = self.project_angle(sine_cosine(sender, receiver))
        a = a + self.project_sender(self._embed(sender)) + self.project_receiver(self._embed(receiver))
        placed = self.project_out(_ACTIVATIONS[self.activation](a))
        return self.from_length(self.length(safe_length(d))) * self.types(kind) + placed


class _Attention(nn.Module):
    """Attention of each node over its edges, whose features enter keys and values."""

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.skip = (Linear(hidden_dim, hidden_dim) for _ in range(4))
        self.edge = Linear(hidden_dim, hidden_dim, bias=False)

    def forward(self, h: Tensor, e: Tensor, edges: Edges) -> Tensor:
        split = lambda t: t.unflatten(-1, (self.heads, -1))  # noqa: E731
        query, key, value = edges.from_receivers(self.query(h)), *map(edges.from_senders, (self.key(h), self.value(h)))
        from_edge = self.edge(e)
        scale = (h.shape[-1] // self.heads) ** -0.5
        logits = (split(query) * split(key + from_edge)).sum(-1) * scale
        weight = F.dropout(self._softmax(logits, edges, len(h)), self.dropout, self.training)
        return edges.sum((weight[..., None] * split(value + from_edge)).flatten(1)) + self.skip(h)

    @staticmethod
    def _softmax(logits: Tensor, edges: Edges, count: int) -> Tensor:
        """Over the edges of each receiver, [E, heads]."""
        index = edges.receivers.node[:, None].expand_as(logits)
        fixed = logits.detach()
        top = fixed.new_zeros(count, fixed.shape[1]).scatter_reduce(0, index, fixed, "amax", include_self=False)
        positive = (logits - top[edges.receivers.node]).exp()
        return positive / (edges.from_receivers(edges.sum(positive)) + 1e-16)


class _Transformer(nn.Module):
    """g = h + LN(attention), g + LN(two linear maps of g)."""

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(hidden_dim, heads, dropout)
        self.inner, self.out = Linear(hidden_dim, hidden_dim), Linear(hidden_dim, hidden_dim)
        self.norm1, self.norm2 = nn.LayerNorm(hidden_dim), nn.LayerNorm(hidden_dim)
        self.dropout = dropout

    def forward(self, h: Tensor, e: Tensor, edges: Edges) -> Tensor:
        g = h + self.norm1(self.attention(h, e, edges))
        inner = F.dropout(F.silu(self.inner(g)), self.dropout, self.training)
        return g + self.norm2(self.out(inner))


class _Module(nn.Module):
    """Two transformer layers, then weights of the frame vectors (vectorisation)."""

    def __init__(self, hidden_dim: int, heads: int, dropout: float, activation: Activation, short_cut: bool) -> None:
        super().__init__()
        self.activation, self.short_cut = activation, short_cut
        self.layers = nn.ModuleList(_Transformer(hidden_dim, heads, dropout) for _ in range(2))
        self.from_nodes, self.from_edge = split_linear((hidden_dim, hidden_dim), 128)
        self.out = Linear(128, 3)

    def forward(self, h: Tensor, e: Tensor, edges: Edges, frame: Frame) -> tuple[Tensor, Tensor]:
        """New h [N, H], and the vectors [N, 3] of this module."""
        for number, layer in enumerate(self.layers):
            g = layer(h, e, edges)
            g = g if number else _ACTIVATIONS[self.activation](g)
            h = g + h if self.short_cut else g
        both = edges.from_receivers(h) * edges.from_senders(h)
        w = self.out(F.softplus(self.from_nodes(both) + self.from_edge(e)))
        return h, edges.sum(frame.combine(w))


class ClofNetScore(nn.Module):
    """The network.

    Args:
        hidden_dim: H, a multiple of `heads`.
        num_modules: of two transformer layers each.
        heads: of the attention.
        dropout: on attention weights and inside the transformer layers, in training.
        node_activation: after the first layer of each module.
        edge_activation: inside the projection of the frame coordinates.
        short_cut: add the input of each layer to its result.
        centre: origin of the positions: the mean of each molecule, or the origin they come with (the original).

    Raises:
        InputError: a width that the heads do not divide, an unknown activation, or numbers outside the tables.
    """

    def __init__(
        self,
        hidden_dim: int = 288,
        num_modules: int = 2,
        *,
        heads: int = 8,
        dropout: float = 0.1,
        node_activation: Activation = "relu",
        edge_activation: Activation = "relu",
        short_cut: bool = True,
        centre: Literal["graph", "origin"] = "graph",
    ) -> None:
        super().__init__()
        if hidden_dim % heads:
            expected = f"a multiple of {heads} heads"
            raise InputError("width of the network", where="hidden_dim", expected=expected, got=hidden_dim)
        for name in (node_activation, edge_activation):
            if name not in _ACTIVATIONS:
                raise unknown_name("activation", name, _ACTIVATIONS)
        self.centre = centre
        self.elements = nn.Embedding(_KINDS, hidden_dim)
        self.edge_features = _EdgeFeatures(hidden_dim, edge_activation)
        self.blocks = nn.ModuleList(
            _Module(hidden_dim, heads, dropout, node_activation, short_cut) for _ in range(num_modules)
        )
        self._edges = EdgeCache()

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """The score at the positions of the sample (module docstring for shapes)."""
        self._check(sample)
        x, batch = sample.pos, sample.get("batch")
        batch = torch.zeros_like(sample.z) if batch is None else batch
        if self.centre == "graph":
            x = x - mean_of_graph(x, batch)
        edges = self._edges(sample.edge_index, len(x), x.dtype, copies=1)
        u = edges.from_receivers(x)
        d = edges.from_senders(x) - u
        frame = local_frame(d, u, scaled=True)
        e = self.edge_features(d, frame, u, sample.edge_type)
        h, score = self.elements(sample.z), torch.zeros_like(x)
        for block in self.blocks:
            h, vectors = block(h, e, edges, frame)
            score = score + vectors
        return {"score": score / sample.sigma[batch][:, None], "h": h}

    @torch.compiler.disable
    def _check(self, sample: Data) -> None:
        for field in ("z", "edge_type"):
            value = sample.get(field)
            if value is None:
                raise InputError("missing field", where="sample", expected=field)
            if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < _KINDS:
                got = f"{int(value.min())} to {int(value.max())}"
                raise InputError("number", where=f"field {field}", expected=f"0 to {_KINDS - 1}", got=got)


ENTRY = Entry(
    name="clofnet_score",
    title="Score Network with Complete Local Frames",
    model=ClofNetScore,
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
    needs=("pos", "z", "edge_index", "edge_type", "sigma"),
    gives=("score", "h"),
)
