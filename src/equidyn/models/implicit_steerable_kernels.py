"""Implicit steerable kernels: convolutions whose kernel is an equivariant network of the relative position.

Zhdanov, Hoffmann, Cesa, "Implicit Convolutional Kernels for Steerable CNNs", NeurIPS 2023, arXiv 2212.06096.

Symmetry: translations, permutations of the nodes and a group G of rotations and reflections of the plane or of space:
SO(2), O(2), SO(3), O(3), cyclic, dihedral and polyhedral groups, or one given by generators (`ops.representations`).

Reads `pos [N, n]`, `x [N, F]`, `edge_index [2, E]`, where asked for `vel [N, n]` and `edge_attr [E, A]`, where present
`batch [N]` and `edge_shift [E, n]`; node and edge fields may carry a leading batch axis beside one shared `edge_index`.
Gives `pos` (moved points, in the unit of the input), `h [N, out]` or `prediction [B, out]` (`[B]` for one number).
`GridConv` is the same kernel on images and volumes.

Differences from the original: the nonlinearity squares the sampled function, which a small quadrature does exactly, so
that layers are equivariant to rounding and not only at the symmetries of the sampling grid; edges do not see each other
through batch statistics; the kernel is never stored per edge; positions are scaled by an argument; constants are
float64 until used; attributes of grids may differ per image; any closed group. The original's activation, norm and
embedding are options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry, backbone
from equidyn.core.errors import InputError
from equidyn.ops.edges import EdgeCache, Edges, in_parts, rows_of
from equidyn.ops.fields import (
    Activation,
    EquivariantLinear,
    Field,
    FieldBatchNorm,
    FieldBias,
    equivariant_linear,
    make_activation,
    make_norm,
)
from equidyn.ops.linear import Linear
from equidyn.ops.outer import Places, Slots, SparseMaps, neighbour_slots, sum_of_outer, take
from equidyn.ops.representations import (
    Group,
    band,
    get_group,
    intertwiners,
    invariants,
    size,
    solid_harmonics,
    vector_order,
)


@dataclass(frozen=True)
class KernelOptions:
    """The network that makes kernels, and what the layers around it share.

    Attributes:
        layers: linear maps of the network.
        channels: hidden copies of the functions on the sphere.
        harmonics: highest harmonic polynomial of the relative position that the network reads; 1 for the position.
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
        self.paths = [SparseMaps(basis.value, shape[2]) for basis in last.bases]
        if last.bias is not None and last.invariant is not None:
            self.paths.append(SparseMaps(last.invariant.value.T[..., None], shape[2]))
        self.width = nn.Parameter(torch.tensor(float(width)))

    def features(self, r: Tensor, attributes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The input of the last map [P, Q] and a constant for its bias [P, 1], both times the envelope.

        Args:
            r: [P, n] relative positions; vectors in `attributes` are in the order of `vector_order`.
            attributes: [P, A] or None.
        """
        h = solid_harmonics(r, range(1, self.harmonics + 1))
        h = self.body(h if attributes is None else torch.cat([h, attributes], dim=-1))
        envelope = (r.square().sum(-1, keepdim=True) / (-2 * self.width.square())).exp()
        return h * envelope, envelope

    def tensor(self) -> Tensor:
        """The last map as [c_out d_out, Q + 1, c_in d_in]: the kernel is its contraction with the features."""
        offset = self.last.offset()
        matrix = self.last.matrix()
        offset = torch.zeros_like(matrix[:, 0]) if offset is None else offset
        full = torch.cat([matrix, offset[:, None]], dim=1).view(*self.shape, -1)  # [c_out, c_in, d_out, d_in, Q + 1]
        return full.permute(0, 2, 4, 1, 3).flatten(3, 4).flatten(0, 1)

    def contract(self, x: Tensor, r: Tensor, edges: Edges, attributes: Tensor | None, slots: Slots) -> Tensor:
        """Σ_j K(r_ij, a_ij) x_j of x [N, c_in d_in], without the kernels: [M, c_out d_out].

        The kernel is linear in the features φ of its network, y_a = Σ_k W_k Σ_j Σ_bm B_kabm φ_ijm x_jb: the sum over
        neighbours is one product of small matrices per node, and the weights W act once per node, not per edge.
        """
        c_out, c_in, d_out, d_in = self.shape
        phi, envelope = self.features(r, attributes)
        weights = [weight.unflatten(0, (c_out, c_in)) for weight in self.last.weights]
        parts = phi.split([w.shape[2] * path.width for w, path in zip(weights, self.paths, strict=False)], dim=1)
        if self.last.bias is not None:
            weights.append(self.last.bias.view(c_out, c_in, 1, -1))
        x, sent = x.unflatten(1, (c_in, d_in)).mT, {}
        rows: dict[Places, Tensor] = {}
        for paths, weight, part in zip(self.paths, weights, [*parts, envelope], strict=False):
            z = []
            for columns, psi in paths.expand(part):
                if columns not in sent:
                    sent[columns] = edges.from_senders(take(x, columns).flatten(1)).unflatten(1, (-1, c_in))
                z.append(sum_of_outer(psi, sent[columns], slots))
            for own, value in paths.mix(z, weight):
                rows[own] = rows[own] + value if own in rows else value
        y = x.new_zeros(slots.targets, d_out, c_out)
        for own, value in rows.items():
            y = y.index_add(1, torch.tensor(own, device=x.device), value)
        return y.mT.flatten(1)

    def forward(self, r: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Kernels [P, c_out d_out, c_in d_in]."""
        return torch.einsum("pq,oqi->poi", torch.cat(self.features(r, attributes), dim=-1), self.tensor())


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
    hidden = Field(options.channels, band(max(sum(orders), 1), n))
    given = [*(Field(1, (band(f, n)[f],)) for f in range(1, options.harmonics + 1)), *attributes]
    body: list[nn.Module] = []
    for _ in range(options.layers - 1):
        body.append(equivariant_linear(group, given, hidden))
        body.append(make_activation(hidden.irreps, n, options.activation))
        body.append(make_norm(options.norm, hidden.copies, invariants(group, hidden.irreps)))
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


class PointConv(nn.Module):
    """y_i = Σ_j K(r_ij, a_ij) x_j + b.

    Args:
        kernel: from the input to the output field.
        invariant: [d_out, T] invariant vectors of one output field.
        reduce: sum or mean over neighbours.
    """

    def __init__(self, kernel: Kernel, invariant: Tensor, reduce: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        self.kernel, self.bias, self.reduce = kernel, FieldBias(kernel.shape[0], invariant), reduce

    def forward(
        self, x: Tensor, r: Tensor, edges: Edges, attributes: Tensor | None = None, slots: Slots | None = None
    ) -> Tensor:
        """Convolve.

        Args:
            x: [N, c_in d_in].
            r: [E, n] relative position of each edge.
            edges: senders number the rows of x, receivers the M targets.
            attributes: [E, A] or None.
            slots: of the edges; needed if the targets are fewer than the senders (down-sampling).

        Returns:
            [M, c_out d_out].
        """
        targets = len(x) if slots is None else slots.targets

        def sums(part: Edges, index: Tensor | None) -> tuple[Tensor]:
            own = neighbour_slots(part, targets) if slots is None or index is not None else slots
            near = r if index is None else r[index]
            return (self.kernel.contract(x, near, part, rows_of(attributes, index), own),)

        whole = self.training and any(isinstance(stage, FieldBatchNorm) for stage in self.kernel.body)
        (y,) = sums(edges, None) if whole else in_parts(edges, sums)
        if self.reduce == "mean":
            y = y * edges.inverse_degree[: len(y)]
        return y + self.bias()


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
        self.kernel, self.bias, self.kernel_size = kernel, FieldBias(kernel.shape[0], invariant), kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation

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
        return self.convolve(x, self.filters(x, attributes))

    def convolve(self, x: Tensor, filters: Tensor) -> Tensor:
        """Cross-correlate x with filters [1 or B, k^n, C_out, C_in]."""
        n, groups = x.dim() - 2, len(filters)
        weight = filters.movedim(1, -1).flatten(0, 1).unflatten(-1, [self.kernel_size] * n)
        conv = F.conv2d if n == 2 else F.conv3d
        folded = x.reshape(-1, groups * x.shape[1], *x.shape[2:]) if groups > 1 else x
        y = conv(folded, weight, None, self.stride, self.padding, self.dilation, groups)
        return y.reshape(len(x), -1, *y.shape[2:]) + self.bias().view(-1, *[1] * n)


class Block(nn.Module):
    """Two convolutions and what they were given."""

    def __init__(self, convs: Sequence[nn.Module], norms: Sequence[nn.Module], activation: Activation) -> None:
        super().__init__()
        self.convs, self.norms, self.activation = nn.ModuleList(convs), nn.ModuleList(norms), activation

    def forward(self, h: Tensor, *graph: object) -> Tensor:
        """Features [R, C d] to the same; `graph` is what the convolutions take beside them."""
        y = self.activation(self.norms[0](self.convs[0](h, *graph)))
        return self.activation(self.norms[1](self.convs[1](y, *graph)) + h)


@dataclass(frozen=True)
class KernelLayerOptions(KernelOptions):
    """The layer under a temporal operator.

    Attributes:
        group: with reflections or without.
        order: highest frequency of a field.
    """

    group: Literal["O(3)", "SO(3)"] = "O(3)"
    order: int = 1

    def __post_init__(self) -> None:
        if self.norm == "batch" or self.order < 1 or self.group not in ("O(3)", "SO(3)"):
            expected = "norm field or none, order 1 or more, group O(3) or SO(3)"
            raise InputError("kernels under a temporal operator", where="options", expected=expected, got=self)

    def field(self, hidden_dim: int) -> Field:
        """The features: about `hidden_dim` components."""
        irreps = band(self.order, 3)
        return Field(max(1, hidden_dim // size(irreps, 3)), irreps)


def _blocks(hidden_dim: int, options: KernelLayerOptions) -> tuple[tuple[int, int], ...]:
    field = options.field(hidden_dim)
    return tuple((2 * order + 1, field.copies) for _, order in field.irreps)


@backbone("implicit_steerable_kernels", features=_blocks, symmetry=lambda options: options.group.replace("O", "E"))
class KernelBackbone(nn.Module):
    """The layer for temporal operators: it takes velocities into its vectors, convolves by where the points are, and
    moves them by a vector of its features. The contract is that of `equidyn.core.catalogue.backbone`.

    Args:
        hidden_dim: components of a node's features, the same number of copies of each irrep.
        edge_dim: A, number of edge scalars.
        update_features: no matter here, as the points move by the new features.
        options: the kernel network and the fields.
    """

    Options = KernelLayerOptions
    _order: Tensor

    def __init__(
        self,
        hidden_dim: int,
        edge_dim: int = 0,
        *,
        update_features: bool = True,
        options: KernelLayerOptions = KernelLayerOptions(),
    ) -> None:
        super().__init__()
        self.options, field, group = options, options.field(hidden_dim), get_group(options.group, 3)
        moving, invariant = Field(1, (band(1, 3)[1],)), invariants(group, field.irreps)
        attributes = [Field(edge_dim, ((0, 0),))] if edge_dim else []
        self.copies = field.copies
        self.lift = equivariant_linear(group, [field, moving], field)
        self.conv = PointConv(make_kernel(group, field, field, attributes, options), invariant, options.reduce)
        self.norm = make_norm(options.norm, field.copies, invariant)
        self.activation = make_activation(field.irreps, 3, options.activation)
        self.out = equivariant_linear(group, [field, moving], moving)
        with torch.no_grad():  # start close to points at rest
            for weight in self.out.weights:
                weight.mul_(0.01)
        self.register_buffer("_order", torch.tensor(vector_order(3)), persistent=False)

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor, edges: Edges, edge_attr: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """New h and x, v as it came, and the new vectors and tensors."""
        r = edges.relative(x) / self.options.scale
        if edge_attr is not None:
            edge_attr = edge_attr.repeat(len(r) // max(len(edge_attr), 1), 1)
        f = torch.cat([h[:, None], *tensors], dim=1)  # [R, components, copies]
        f, moving = f.mT.flatten(1), v[:, self._order]
        f = self.activation(self.lift(torch.cat([f, moving], dim=1)))
        f = self.activation(self.norm(self.conv(f, r, edges, edge_attr)) + f)
        x = x + self.out(torch.cat([f, moving], dim=1))[:, self._order.argsort()]
        scalars, *rest = f.unflatten(1, (self.copies, -1)).mT.split([1, *(t.shape[1] for t in tensors)], dim=1)
        return scalars[:, 0], x, v, *rest


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

    _order: Tensor

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
        scalar, vector = ((0, 0),), (band(1, self.dimension)[1],)
        field = Field(channels, band(order, self.dimension))
        moving = [Field(1, vector)] if velocity else []
        self.embedding = Linear(node_dim, channels)
        self.lift = equivariant_linear(self.group, [Field(channels, scalar), *moving], field)
        self.activation = make_activation(field.irreps, self.dimension, options.activation)
        self.blocks = nn.ModuleList(self._block(field) for _ in range(num_blocks))
        if readout == "graph":
            width = options.readout_dim
            norm = nn.BatchNorm1d if options.norm == "batch" else nn.LayerNorm
            self.to_invariant = self._conv(field, Field(width, scalar))
            self.decoder = nn.Sequential(
                norm(width), nn.ELU(), Linear(width, width), norm(width), nn.ELU(), Linear(width, out_dim)
            )
        else:
            out = Field(1, vector) if readout == "position" else Field(out_dim, scalar)
            self.node_out = equivariant_linear(self.group, [field, *moving], out)
            if readout == "position":  # start close to points at rest
                with torch.no_grad():
                    for weight in self.node_out.weights:
                        weight.mul_(0.01)
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
        vel = sample.vel.flatten(0, -2)[..., self._order] if self.velocity else None
        h = self.embed(x, vel)
        slots = None if edges.many else neighbour_slots(edges, len(pos))
        graph = (r / self.options.scale, edges, attributes, slots)
        for block in self.blocks:
            h = block(h, *graph)
        if self.readout == "graph":
            return {"prediction": self._per_graph(self.to_invariant(h, *graph), sample)}
        out = self.node_out(h if vel is None else torch.cat([h, vel], dim=-1)).view(*sample.pos.shape[:-1], -1)
        if self.readout == "node":
            return {"h": out}
        return {"pos": sample.pos + out[..., self._order.argsort()]}

    def embed(self, x: Tensor, vel: Tensor | None = None) -> Tensor:
        """Features [R, C d] of scalars [R, F] and velocities [R, n], these in the order of a vector irrep."""
        s = self.embedding(x)
        s = s.square() if self.options.embedding == "square" else F.silu(s)
        return self.activation(self.lift(s if vel is None else torch.cat([s, vel], dim=-1)))

    def _conv(self, source: Field, target: Field) -> PointConv:
        attributes = [Field(self.edge_dim, ((0, 0),))] if self.edge_dim else []
        kernel = make_kernel(self.group, source, target, attributes, self.options)
        return PointConv(kernel, invariants(self.group, target.irreps), self.options.reduce)

    def _block(self, field: Field) -> Block:
        invariant = invariants(self.group, field.irreps)
        return Block(
            [self._conv(field, field) for _ in range(2)],
            [make_norm(self.options.norm, field.copies, invariant) for _ in range(2)],
            make_activation(field.irreps, self.dimension, self.options.activation),
        )

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
