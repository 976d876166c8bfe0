"""Implicit steerable kernels: convolutions whose kernel is an equivariant network of the relative position.

Zhdanov, Hoffmann, Cesa, "Implicit Convolutional Kernels for Steerable CNNs", NeurIPS 2023, arXiv 2212.06096.

Symmetry: translations, permutations of the nodes and a group G of rotations and reflections of the plane or of space:
SO(2), O(2), SO(3), O(3), cyclic, dihedral and polyhedral groups, or one given by generators (`ops.representations`).

Reads `pos [N, n]`, `x [N, F]`, `edge_index [2, E]`, and where asked for `vel [N, n]`, `edge_attr [E, A]`; reads `batch [N]`
and `edge_shift [E, n]` where present. Node and edge fields may carry a leading batch axis beside one shared `edge_index`.
Gives `pos` (moved points, in the unit of the input), `h [N, out]` or `prediction [B, out]` (`[B]` for one number).
`GridConv` is the same kernel on images and volumes.

Differences from the original: the nonlinearity squares the sampled function, which a small quadrature does exactly, so
that the layer is equivariant to rounding and not only at the symmetries of the sampling grid; edges do not see each
other in the kernel (no batch statistics); the kernel is never stored per edge where nodes have about equally many
neighbours; constants are float64 until used; attributes of grids may differ per image. The original's activation, norm
and embedding are options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry
from equidyn.core.errors import InputError
from equidyn.ops.edges import EdgeCache, Edges
from equidyn.ops.linear import Linear, linear
from equidyn.ops.representations import (
    Constant,
    Group,
    Irrep,
    band,
    get_group,
    intertwiners,
    invariants,
    sample_matrices,
    size,
    solid_harmonics,
    vector_order,
)


class Field(NamedTuple):
    """Several copies of one representation; a feature [..., copies * d] holds one copy after the other."""

    copies: int
    irreps: tuple[Irrep, ...]


@dataclass(frozen=True)
class KernelOptions:
    """The network that makes kernels, and what the layers around it share.

    Attributes:
        layers: linear maps of the network.
        channels: hidden copies of the functions on the sphere.
        harmonics: highest harmonic polynomial of the relative position that the network reads; 1 for the position alone.
        width: initial σ of the envelope exp(-|r|² / 2 σ²), in units of `scale`.
        scale: lengths are divided by it.
        activation: "square" (ours, exactly equivariant), or "elu" of the sampled function as in the original.
        norm: "field" scales each feature by its own size (ours), "batch" is the original's, or "none".
        reduce: sum or mean over neighbours.
        embedding: "silu" (ours), or "square" as in the original.
        readout_dim: invariants that the "graph" readout pools.
    """

    layers: int = 3
    channels: int = 8
    harmonics: int = 2
    width: float = 1.0
    scale: float = 1.0
    activation: Literal["square", "elu"] = "square"
    norm: Literal["field", "batch", "none"] = "field"
    reduce: Literal["sum", "mean"] = "sum"
    embedding: Literal["silu", "square"] = "silu"
    readout_dim: int = 32


class EquivariantLinear(nn.Module):
    """A linear map that commutes with G: learned combinations of a basis of such maps, bias on invariant entries.

    Args:
        copies: output fields.
        bases: (input fields n, basis [K, d_out, d_in]) for each part of the input, in order.
        invariant: [d_out, T] invariant vectors of one output field, or None for no bias.
    """

    def __init__(self, copies: int, bases: Sequence[tuple[int, Tensor]], invariant: Tensor | None) -> None:
        super().__init__()
        self.bases = [Constant(basis) for _, basis in bases]
        self.invariant = None if invariant is None else Constant(invariant)
        # How many terms add up in each entry of an output field.
        terms = sum(n * (basis.abs() > 1e-9).any(-1).sum(0) for n, basis in bases)
        self.weights = nn.ParameterList()
        for n, basis in bases:
            used = (basis.abs() > 1e-9).any(-1)
            most = torch.where(used, terms, 1).amax(1) if len(basis) else terms[:0]
            self.weights.append(nn.Parameter(torch.randn(copies, n, len(basis)) * most.to(torch.float32).rsqrt()))
        count = 0 if invariant is None else invariant.shape[1]
        self.bias = nn.Parameter(torch.zeros(copies, count)) if count else None

    def matrix(self) -> Tensor:
        """[copies * d_out, sum of n * d_in]."""
        parts = []
        for weight, constant in zip(self.weights, self.bases, strict=True):
            block = torch.tensordot(weight, constant(weight), dims=1)  # [copies, n, d_out, d_in]
            parts.append(block.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def offset(self) -> Tensor | None:
        """[copies * d_out], or None."""
        if self.bias is None or self.invariant is None:
            return None
        return (self.bias @ self.invariant(self.bias).T).flatten()

    def forward(self, h: Tensor) -> Tensor:
        return linear(h, self.matrix(), self.offset())


class Activation(nn.Module):
    """Pointwise nonlinearity of the function that a field stands for, sampled at points: A⁺ f(A h).

    ELU spreads over all frequencies, which no grid catches: it is equivariant at the symmetries of the points alone. The
    square of a function has at most twice its frequency, so that a quadrature projects it exactly; gating by the mean
    of the function, z σ(z₀), keeps it from growing.

    Args:
        samples: A [P, d].
        back: A⁺ [d, P].
        kind: "square", or a pointwise "elu" or "relu".
    """

    def __init__(self, samples: Tensor, back: Tensor, kind: Literal["square", "elu", "relu"]) -> None:
        super().__init__()
        self.samples, self.back, self.kind = Constant(samples), Constant(back), kind
        self.size = samples.shape[1]

    def forward(self, h: Tensor) -> Tensor:
        fields = h.unflatten(-1, (-1, self.size))
        values = linear(fields, self.samples(h))
        if self.kind != "square":
            values = F.elu(values) if self.kind == "elu" else values.relu()
            return linear(values, self.back(h)).flatten(-2)
        norm = (1 + fields.square().mean(-1, keepdim=True)).rsqrt()
        z = fields + linear(values.square(), self.back(h)) * norm
        return (z * z[..., :1].sigmoid()).flatten(-2)  # the scalar comes first


class FieldNorm(nn.Module):
    """Scale a feature by the size of all its fields together, which no rotation changes."""

    def __init__(self, copies: int, invariant: Tensor) -> None:
        super().__init__()
        self.copies, self.invariant = copies, Constant(invariant)
        self.weight = nn.Parameter(torch.ones(copies, 1))
        self.bias = nn.Parameter(torch.zeros(copies, invariant.shape[1]))

    def forward(self, h: Tensor) -> Tensor:
        h = h * (h.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        return (h.unflatten(-1, (self.copies, -1)) * self.weight + self.bias @ self.invariant(h).T).flatten(-2)


class FieldBatchNorm(nn.Module):
    """The original's norm: statistics over all points of a batch, one variance per field; no gradient through them."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, copies: int, invariant: Tensor) -> None:
        super().__init__()
        self.copies, self.invariant = copies, Constant(invariant)
        self.weight = nn.Parameter(torch.ones(copies, 1))
        self.bias = nn.Parameter(torch.zeros(copies, invariant.shape[1]))
        self.register_buffer("running_mean", torch.zeros(copies, len(invariant)))
        self.register_buffer("running_var", torch.ones(copies, 1))

    def forward(self, h: Tensor) -> Tensor:
        fields, invariant = h.unflatten(-1, (self.copies, -1)), self.invariant(h)
        mean, var = self.running_mean, self.running_var
        if self.training and len(fields) > 1:
            rows = fields.detach().flatten(0, -3)
            mean = rows.mean(0) @ invariant @ invariant.T
            var = rows.var(0).mean(-1, keepdim=True)
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(var, 0.1)
        scaled = (fields - mean) * (self.weight * (var + 1e-5).rsqrt())
        return (scaled + self.bias @ invariant.T).flatten(-2)


def make_activation(irreps: Sequence[Irrep], dimension: int, kind: Literal["square", "elu"]) -> Activation:
    """The nonlinearity of `band(order)`; three times the order is exact for the square, more is better for ELU."""
    order = max(f for _, f in irreps)
    return Activation(*sample_matrices(order, dimension, (3 if kind == "square" else 8) * order), kind)


def make_norm(kind: str, copies: int, invariant: Tensor) -> nn.Module:
    """A norm by name."""
    norms = {"field": FieldNorm, "batch": FieldBatchNorm}
    return norms[kind](copies, invariant) if kind in norms else nn.Identity()


class Kernel(nn.Module):
    """The implicit kernel K(r, a) = exp(-|r|² / 2 σ²) MLP(r, a), [c_out d_out, c_in d_in].

    Equivariant maps into ρ_out ⊗ ρ_in make it obey K(g r, g a) = ρ_out(g) K(r, a) ρ_in(g)⁻¹.

    Args:
        body: all of the network but its last map.
        last: into c_out c_in copies of ρ_out ⊗ ρ_in.
        shape: (c_out, c_in, d_out, d_in).
        harmonics: highest order of the harmonic polynomials that the network reads.
        width: σ.
    """

    def __init__(
        self, body: nn.Sequential, last: EquivariantLinear, shape: tuple[int, ...], harmonics: int, width: float
    ) -> None:
        super().__init__()
        self.body, self.last, self.shape, self.harmonics = body, last, shape, harmonics
        self.width = nn.Parameter(torch.tensor(float(width)))

    def features(self, r: Tensor, attributes: Tensor | None = None) -> Tensor:
        """The input of the last map and a constant for its bias, times the envelope: [P, Q + 1].

        Args:
            r: [P, n] relative positions; vectors in `attributes` are in the order of `vector_order`.
            attributes: [P, A] or None.
        """
        h = solid_harmonics(r, range(1, self.harmonics + 1))
        h = self.body(h if attributes is None else torch.cat([h, attributes], dim=-1))
        envelope = (r.square().sum(-1, keepdim=True) / (-2 * self.width.square())).exp()
        return torch.cat([h * envelope, envelope], dim=-1)

    def tensor(self) -> Tensor:
        """The last map as [c_out d_out, Q + 1, c_in d_in]: the kernel is its contraction with the features."""
        offset = self.last.offset()
        matrix = self.last.matrix()
        offset = torch.zeros_like(matrix[:, 0]) if offset is None else offset
        full = torch.cat([matrix, offset[:, None]], dim=1).view(*self.shape, -1)  # [c_out, c_in, d_out, d_in, Q + 1]
        return full.permute(0, 2, 4, 1, 3).flatten(3, 4).flatten(0, 1)

    def forward(self, r: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Kernels [P, c_out d_out, c_in d_in]."""
        return torch.einsum("pq,oqi->poi", self.features(r, attributes), self.tensor())


def make_kernel(
    group: Group,
    source: Field,
    target: Field,
    attributes: Sequence[Field] = (),
    options: KernelOptions = KernelOptions(),
) -> Kernel:
    """The kernel network from one field to another.

    Args:
        group: G.
        source: input field of the convolution.
        target: output field.
        attributes: what kernels depend on beside the relative position.
        options: sizes and variants.
    """
    if min(options.layers, options.channels, options.harmonics) < 1 or options.width <= 0 or options.scale <= 0:
        raise InputError("kernel network", where="options", expected="positive sizes and lengths", got=options)
    n = group.dimension
    orders = [max(f for _, f in field.irreps) for field in (source, target)]
    hidden = Field(options.channels, band(1 + sum(orders), n))
    invariant = invariants(group, hidden.irreps)
    given = [*(Field(1, (band(f, n)[f],)) for f in range(1, options.harmonics + 1)), *attributes]
    body: list[nn.Module] = []
    for _ in range(options.layers - 1):
        bases = [(field.copies, intertwiners(group, field.irreps, hidden.irreps)) for field in given]
        body.append(EquivariantLinear(hidden.copies, bases, invariant))
        body.append(make_activation(hidden.irreps, n, options.activation))
        body.append(make_norm(options.norm, hidden.copies, invariant))
        given = [hidden]
    pair = target.irreps, source.irreps
    bases = [(field.copies, intertwiners(group, field.irreps, *pair)) for field in given]
    trivial = intertwiners(group, [(0, 0)], *pair)[..., 0].T
    last = EquivariantLinear(target.copies * source.copies, bases, trivial)
    shape = (target.copies, source.copies, size(target.irreps, n), size(source.irreps, n))
    with torch.no_grad():
        for weight in last.weights:
            weight.mul_(1 / math.sqrt(shape[1] * shape[3]))
    return Kernel(nn.Sequential(*body), last, shape, options.harmonics, options.width)


class _Bias(nn.Module):
    """A constant on the invariant entries of the output."""

    def __init__(self, copies: int, invariant: Tensor) -> None:
        super().__init__()
        self.invariant = Constant(invariant)
        self.weight = nn.Parameter(torch.zeros(copies, invariant.shape[1]))

    def forward(self) -> Tensor:
        return (self.weight @ self.invariant(self.weight).T).flatten()


def neighbour_slots(edges: Edges, targets: int) -> Tensor | None:
    """Edges of each target, side by side: [targets, D], the number of edges where a target has fewer than D.

    None where D is so much larger than the mean that the empty places would cost more than they save.
    """
    count, order = len(edges.receivers.node), edges.receivers.order
    degree = torch.diff(edges.receivers.offsets, append=edges.receivers.offsets.new_tensor([count]))[:targets]
    most = int(degree.max()) if targets else 0
    if most * targets > 4 * count + 64:
        return None
    place = torch.arange(most, device=order.device)
    slots = (edges.receivers.offsets[:targets, None] + place).clamp(max=max(count - 1, 0))
    return torch.where(place < degree[:, None], order[slots] if count else slots, count)


class PointConv(nn.Module):
    """y_i = Σ_j K(r_ij, a_ij) x_j + b.

    The kernel is linear in the features φ of its network, so that Σ_j K x_j = T · Σ_j φ_ij x_jᵀ: the sum over
    neighbours is one product of small matrices per node, and the large map T acts once per node instead of per edge.

    Args:
        kernel: from the input to the output field.
        invariant: [d_out, T] invariant vectors of one output field.
        reduce: sum or mean over neighbours.
    """

    def __init__(self, kernel: Kernel, invariant: Tensor, reduce: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        self.kernel, self.bias, self.reduce = kernel, _Bias(kernel.shape[0], invariant), reduce

    def forward(
        self, x: Tensor, r: Tensor, edges: Edges, attributes: Tensor | None = None, targets: int | None = None
    ) -> Tensor:
        """Convolve.

        Args:
            x: [N, c_in d_in].
            r: [E, n] relative position of each edge.
            edges: senders number the rows of x, receivers the targets.
            attributes: [E, A] or None.
            targets: number of targets M, if not N (down-sampling).

        Returns:
            [M, c_out d_out].
        """
        targets = len(x) if targets is None else targets
        features, sent = self.kernel.features(r, attributes), edges.from_senders(x)
        slots = neighbour_slots(edges, targets)
        if slots is None:
            kernels = torch.einsum("pq,oqi->poi", features, self.kernel.tensor())
            total = edges.sum((kernels @ sent[..., None]).squeeze(-1))[:targets]
        else:
            features, sent = (torch.cat([t, t.new_zeros(1, t.shape[1])])[slots] for t in (features, sent))
            outer = (features.mT @ sent).flatten(1)  # [M, (Q + 1) c_in d_in]
            total = linear(outer, self.kernel.tensor().flatten(1))
        if self.reduce == "mean":
            total = total * edges.inverse_degree[:targets]
        return total + self.bias()


class GridConv(nn.Module):
    """The kernel on a regular grid: images [B, C, H, W] or volumes [B, C, D, H, W], C = c_in d_in.

    The first coordinate of the kernel runs along the first spatial axis; the kernel reaches to ±1.

    Args:
        kernel: from the input to the output field.
        invariant: [d_out, T] invariant vectors of one output field.
        kernel_size: samples of the kernel along each axis, odd.
        stride: as in torch.nn.Conv2d, and so are the others.
        padding: as in torch.nn.Conv2d.
        dilation: as in torch.nn.Conv2d.
    """

    def __init__(
        self,
        kernel: Kernel,
        invariant: Tensor,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.kernel, self.bias, self.kernel_size = kernel, _Bias(kernel.shape[0], invariant), kernel_size
        self.window = {"stride": stride, "padding": padding, "dilation": dilation}

    def filters(self, like: Tensor, attributes: Tensor | None = None) -> Tensor:
        """The sampled kernels [1 or B, k^n, C_out, C_in]."""
        n, half = like.dim() - 2, self.kernel_size // 2
        axis = (torch.arange(self.kernel_size, dtype=like.dtype, device=like.device) - half) / max(half, 1)
        grid = torch.stack(torch.meshgrid(*[axis] * n, indexing="ij"), dim=-1).view(-1, n)
        if attributes is None:
            return self.kernel(grid)[None]
        count = len(attributes)
        kernels = self.kernel(grid.repeat(count, 1), attributes.repeat_interleave(len(grid), 0))
        return kernels.unflatten(0, (count, -1))

    def forward(self, x: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Convolve x with attributes [1 or B, A]: one set for all, or one per image."""
        filters = self.filters(x, attributes)
        return self.convolve(x, filters)

    def convolve(self, x: Tensor, filters: Tensor) -> Tensor:
        """Cross-correlate x with filters [1 or B, k^n, C_out, C_in]."""
        n, groups = x.dim() - 2, len(filters)
        weight = filters.movedim(1, -1).flatten(0, 1).unflatten(-1, [self.kernel_size] * n)
        conv = F.conv2d if n == 2 else F.conv3d
        folded = x.reshape(-1, groups * x.shape[1], *x.shape[2:]) if groups > 1 else x
        y = conv(folded, weight, groups=groups, **self.window)
        return y.reshape(len(x), -1, *y.shape[2:]) + self.bias().view(-1, *[1] * n)


class Block(nn.Module):
    """Two convolutions and what they were given."""

    def __init__(self, convs: Sequence[nn.Module], norms: Sequence[nn.Module], activation: Activation) -> None:
        super().__init__()
        self.convs, self.norms, self.activation = nn.ModuleList(convs), nn.ModuleList(norms), activation

    def forward(self, h: Tensor, *graph: object) -> Tensor:
        y = self.activation(self.norms[0](self.convs[0](h, *graph)))
        return self.activation(self.norms[1](self.convs[1](y, *graph)) + h)


class ImplicitSteerableKernels(nn.Module):
    """The network: embedding, residual blocks of two convolutions, a readout.

    Args:
        node_dim: F, scalar features per node.
        edge_dim: A, scalars per edge that kernels depend on.
        channels: fields of each feature.
        num_blocks: residual blocks.
        group: G by name (see `equidyn.ops.representations.get_group`), or a group of your own.
        dimension: n of the space, 2 or 3.
        order: highest frequency of a field; 1 for scalars and vectors.
        velocity: read `vel`.
        readout: "position" moves the points by one vector per node, "node" gives `out_dim` invariant numbers per node,
            "graph" per graph.
        out_dim: width of the "node" and "graph" readouts.
        options: the kernel network and variants.

    Raises:
        InputError: an unknown group, sizes out of range, a sample that does not fit.
    """

    def __init__(
        self,
        node_dim: int,
        edge_dim: int = 0,
        channels: int = 8,
        num_blocks: int = 4,
        *,
        group: str | Group = "O(3)",
        dimension: int = 3,
        order: int = 1,
        velocity: bool = False,
        readout: Literal["position", "node", "graph"] = "graph",
        out_dim: int = 1,
        options: KernelOptions = KernelOptions(),
    ) -> None:
        super().__init__()
        self.group = get_group(group, dimension) if isinstance(group, str) else group
        self.dimension, self.velocity, self.readout, self.options = self.group.dimension, velocity, readout, options
        self.edge_dim = edge_dim
        scalar, vector, field = ((0, 0),), (band(1, self.dimension)[1],), Field(channels, band(order, self.dimension))
        invariant = invariants(self.group, field.irreps)
        attributes = [Field(edge_dim, scalar)] if edge_dim else []

        def conv(target: Field) -> PointConv:
            kernel = make_kernel(self.group, field, target, attributes, options)
            return PointConv(kernel, invariants(self.group, target.irreps), options.reduce)

        self.embedding = Linear(node_dim, channels)
        given = [(channels, intertwiners(self.group, scalar, field.irreps))]
        if velocity:
            given.append((1, intertwiners(self.group, vector, field.irreps)))
        self.lift = EquivariantLinear(channels, given, invariant)
        self.activation = make_activation(field.irreps, self.dimension, options.activation)
        self.blocks = nn.ModuleList(
            Block(
                [conv(field), conv(field)],
                [make_norm(options.norm, channels, invariant) for _ in range(2)],
                make_activation(field.irreps, self.dimension, options.activation),
            )
            for _ in range(num_blocks)
        )
        if readout == "graph":
            width = options.readout_dim
            norm = nn.BatchNorm1d if options.norm == "batch" else nn.LayerNorm
            self.to_invariant = conv(Field(width, scalar))
            self.decoder = nn.Sequential(
                norm(width), nn.ELU(), Linear(width, width), norm(width), nn.ELU(), Linear(width, out_dim)
            )
        else:
            out = Field(1, vector) if readout == "position" else Field(out_dim, scalar)
            bases = [(channels, intertwiners(self.group, field.irreps, out.irreps))]
            self.node_out = EquivariantLinear(out.copies, bases, invariants(self.group, out.irreps))
        self.register_buffer("_order", torch.tensor(vector_order(self.dimension)), persistent=False)
        self._edges = EdgeCache()

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """Move the points or predict numbers (module docstring for shapes)."""
        self._check(sample)
        pos, x = sample.pos.flatten(0, -2), sample.x.flatten(0, -2)
        copies = sample.pos[..., 0, 0].numel()
        edges = self._edges(sample.edge_index, sample.pos.shape[-2], pos.dtype, copies)
        r = edges.from_receivers(pos) - edges.from_senders(pos)
        if sample.get("edge_shift") is not None:
            r = r - sample.edge_shift.repeat(copies, 1)
        attributes = sample.edge_attr.flatten(0, -2) if self.edge_dim else None
        if attributes is not None and len(attributes) != len(r):
            attributes = attributes.repeat(copies, 1)
        h = self.embed(x, sample.vel.flatten(0, -2) if self.velocity else None)
        graph = (r / self.options.scale, edges, attributes)
        for block in self.blocks:
            h = block(h, *graph)
        if self.readout == "graph":
            return {"prediction": self._per_graph(self.to_invariant(h, *graph), sample)}
        out = self.node_out(h).view(*sample.pos.shape[:-1], -1)
        if self.readout == "node":
            return {"h": out}
        back = self._order.argsort()
        return {"pos": sample.pos + self.options.scale * out[..., back]}

    def embed(self, x: Tensor, vel: Tensor | None = None) -> Tensor:
        """Features [R, C d] of scalars [R, F] and velocities [R, n]."""
        s = self.embedding(x)
        s = s.square() if self.options.embedding == "square" else F.silu(s)
        return self.activation(self.lift(s if vel is None else torch.cat([s, vel[..., self._order]], dim=-1)))

    def _check(self, sample: Data) -> None:
        wanted = [("pos", self.dimension), ("x", self.embedding.in_features)]
        wanted += [("vel", self.dimension)] * self.velocity + [("edge_attr", self.edge_dim)] * (self.edge_dim > 0)
        for name, width in wanted:
            value = sample.get(name)
            if value is None or value.shape[-1] != width:
                got = "none" if value is None else list(value.shape)
                raise InputError("sample", where=f"field {name}", expected=f"[..., {width}]", got=got)

    def _per_graph(self, h: Tensor, sample: Data) -> Tensor:
        if sample.pos.dim() == 3:
            mean = h.view(*sample.pos.shape[:2], -1).mean(1)
        elif sample.get("batch") is None:
            mean = h.mean(0, keepdim=True)
        else:
            count = torch.bincount(sample.batch).clamp(min=1).to(h)[:, None]
            mean = h.new_zeros(len(count), h.shape[1]).index_add(0, sample.batch, h) / count
        return self.decoder(mean).squeeze(-1)


ENTRY = Entry(
    name="implicit_steerable_kernels",
    title="Implicit steerable kernels",
    model=ImplicitSteerableKernels,
    citation=Citation(
        key="zhdanov2023implicit",
        authors="Zhdanov, Maksim and Hoffmann, Nico and Cesa, Gabriele",
        title="Implicit Convolutional Kernels for Steerable CNNs",
        venue="Advances in Neural Information Processing Systems",
        year=2023,
        arxiv="2212.06096",
    ),
    symmetry="E(3)",
    needs=("pos", "x", "edge_index"),
    gives=("pos", "h", "prediction"),
)
