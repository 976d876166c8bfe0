"""MACE, an interatomic potential with messages of many-body order.

Batatia, Kovacs, Simm, Ortner, Csanyi, "MACE: Higher Order Equivariant Message Passing Neural Networks for Fast and
Accurate Force Fields", NeurIPS 2022, arXiv 2206.07697.

Symmetry: E(3) and permutations of like atoms; additive over atoms, so that size only costs time.

Reads `pos [N, 3]` (Å), `z [N]`, `edge_index [2, E]`, and where present `edge_shift [E, 3]` (Å), `batch [N]` and
`head [B]` (which level of theory each graph asks for). Gives `energy [B]` and `node_energy [N]` in eV, always in
float64: the sum of atomic energies would lose the digits that matter. Forces and stress are its derivatives.

Differences from the original: dependent coupling trees of the symmetric contraction have no weights of their own, the
function is the same; element-dependent maps are products with the matrix of the element, not with a one-hot vector;
coincident atoms have finite energies and forces; the cell is neither needed nor changed; the Chebyshev basis sees the
distance mapped to [-1, 1], not in Å (`chebyshev_raw` is the original's).

Features are lists over l of tensors [N, 2 l + 1, C], channels last; m runs from -l to l in the real basis of e3nn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import pi, sqrt
from typing import Literal, NamedTuple

import torch
from ase.data import covalent_radii
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry
from equidyn.core.errors import InputError
from equidyn.ops.constant import Constant
from equidyn.ops.derivatives import graph_of_nodes
from equidyn.ops.so3 import spherical_harmonics
from equidyn.ops.symmetric_contraction import Blocks, SymmetricContraction
from equidyn.ops.tensor_convolution import TensorConvolution, Tiles

Features = list[Tensor]
Block = Literal["plain", "residual", "density", "density_residual", "nonlinear"]

# Activations with unit second moment for normal input; the factors are the original's, from random samples.
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "silu": (torch.nn.functional.silu, 1.6791767923989418),
    "tanh": (torch.tanh, 1.5937334472592695),
    "sigmoid": (torch.sigmoid, 1.8467055342154763),
    "abs": (torch.abs, 1.001110600838467),
    "none": (lambda x: x, 1.0),
}


@dataclass(frozen=True)
class EnergyReference:
    """What the network's output is measured from, one value for all heads or one per head (levels of theory).

    Attributes:
        atoms: energies of the isolated atoms (eV), in the order of the elements, or such a row per head; zero if empty.
        scale: eV per unit of the network's output.
        shift: eV added per atom.
    """

    atoms: Sequence[float] | Sequence[Sequence[float]] = ()
    scale: float | Sequence[float] = 1.0
    shift: float | Sequence[float] = 0.0


@dataclass(frozen=True)
class MACEOptions:
    """What varies between the published models.

    Attributes:
        first_block: interaction of the first layer. "plain" has no skip connection, so that an isolated atom has
            exactly its reference energy; "residual" has one; the "density" forms divide by a learned local density
            instead of the mean number of neighbours; "nonlinear" is the gated form of MACE-OMOL and MACE-MH.
        block: interaction of the other layers.
        radial: basis of the distance.
        num_radial: size of that basis.
        transform: of the distance, by covalent radii, before the basis sees it.
        cutoff_power: p of the polynomial envelope.
        late_cutoff: the envelope multiplies the radial weights instead of the radial basis.
        radial_hidden: hidden widths of the radial network.
        edge_channels: "nonlinear" only: channels per l that travel along edges; None for those of the nodes.
        edge_channels_first: whether `edge_channels` also holds for the first layer.
        agnostic_product: one set of contraction weights for all elements.
        readout_hidden: hidden width of the last readout, per head.
        readout_mid: a second hidden layer, and biases, in the last readout.
        last_readout_only: earlier layers have no readout.
        activation: of the last readout.
        repulsion: add the Ziegler-Biersack-Littmark repulsion of bare nuclei.
    """

    first_block: Block = "residual"
    block: Block = "residual"
    radial: Literal["bessel", "gaussian", "chebyshev", "chebyshev_raw"] = "bessel"
    num_radial: int = 8
    transform: Literal["none", "agnesi", "soft"] = "none"
    cutoff_power: int = 5
    late_cutoff: bool = False
    radial_hidden: Sequence[int] = (64, 64, 64)
    edge_channels: Sequence[int] | None = None
    edge_channels_first: bool = False
    agnostic_product: bool = False
    readout_hidden: int = 16
    readout_mid: bool = False
    last_readout_only: bool = False
    activation: Literal["silu", "tanh", "sigmoid", "abs", "none"] = "silu"
    repulsion: bool = False


@dataclass(frozen=True)
class Graph:
    """A batch with its atoms sorted by element.

    Attributes:
        order: [N] atoms of the sample, sorted by element.
        row: [N] row of each atom.
        blocks: rows of each element.
        species: [N] element of each row.
        tiles: the edges, between rows.
        ends: element of receiver and sender of each slot of the tiles.
    """

    order: Tensor
    row: Tensor
    blocks: Blocks
    species: Tensor
    tiles: Tiles
    ends: tuple[Tensor, Tensor]

    @staticmethod
    def build(species: Tensor, edge_index: Tensor, num_species: int) -> Graph:
        """Sort a batch; `species` [N] is the element of each atom of the sample."""
        order = torch.argsort(species, stable=True)
        row = torch.empty_like(order)
        row[order] = torch.arange(len(order), device=order.device)
        counts = torch.bincount(species, minlength=num_species).tolist()
        stops = list(accumulate(counts))
        blocks = [(s, stop - count, stop) for s, (count, stop) in enumerate(zip(counts, stops, strict=True)) if count]
        tiles = Tiles.build(row[edge_index[0]], row[edge_index[1]], len(order))
        species = species[order]
        return Graph(order, row, blocks, species, tiles, (species[tiles.receiver], species[tiles.senders.node]))

    def by_species(self, x: Tensor, weight: Tensor) -> Tensor:
        """Rows times the matrix of their element: [N, M, C] and [S, C, C'] to [N, M, C']."""
        return torch.cat([x[start:stop] @ weight[s] for s, start, stop in self.blocks])


class Sizes(NamedTuple):
    """Sizes that all layers share: C, highest l of the harmonics, S, mean number of neighbours."""

    channels: int
    sh_l: int
    species: int
    neighbours: float


class EdgeFeatures(NamedTuple):
    """What the layers know of the edges.

    Attributes:
        radial: [P, B] radial basis.
        harmonics: spherical harmonics, zero in empty slots.
        window: [P, 1] the envelope if it is applied late, else whether the slot holds an edge.
    """

    radial: Tensor
    harmonics: Features
    window: Tensor


# Geometry of an edge -------------------------------------------------------------------------------------------------


def envelope(x: Tensor, p: int) -> Tensor:
    """Polynomial that falls from 1 to 0 over x = 0 to 1 with three vanishing orders at 1, and is 0 beyond."""
    inside = x < 1
    x = torch.where(inside, x, 1.0)  # exactly zero beyond, derivatives included
    u = 1 - x**p * ((p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x * x)
    return torch.where(inside, u, 0.0)


def length(vector: Tensor) -> Tensor:
    """Length [E, 1] of vectors [E, 3]; smooth enough at zero to be differentiated."""
    return vector.square().sum(-1, keepdim=True).clamp(min=1e-16).sqrt()


class RadialBasis(nn.Module):
    """Functions of the distance: an optional transform by covalent radii, then the basis."""

    def __init__(self, cutoff: float, options: MACEOptions, elements: Sequence[int]) -> None:
        super().__init__()
        self.cutoff, self.kind, self.transform, self.size = (
            cutoff,
            options.radial,
            options.transform,
            options.num_radial,
        )
        self.radii = Constant(torch.tensor([covalent_radii[z] for z in elements]))

    def forward(self, r: Tensor, species_i: Tensor, species_j: Tensor) -> Tensor:
        """Distances [E, 1] to [E, B]."""
        return self._basis(self._transformed(r, species_i, species_j))

    def _transformed(self, r: Tensor, species_i: Tensor, species_j: Tensor) -> Tensor:
        if self.transform == "none":
            return r
        radii = self.radii.like(r)
        bond = (radii[species_i] + radii[species_j])[:, None]
        if self.transform == "agnesi":
            q = r / (0.5 * bond)
            return 1 / (1 + 1.0805 * q**4.5791 / (1 + q ** (4.5791 - 0.9183)))
        low, high = 0.75 * bond, 4 / 3 * bond
        return low + (r - low) * 0.5 * (1 + torch.tanh(4 / (high - low) * (r - 0.5 * (low + high))))

    def _basis(self, r: Tensor) -> Tensor:
        n = torch.arange(1, self.size + 1, dtype=r.dtype, device=r.device)
        if self.kind == "bessel":  # sinc is finite at r = 0
            return sqrt(2 / self.cutoff) * pi / self.cutoff * n * torch.sinc(r / self.cutoff * n)
        if self.kind == "gaussian":
            spacing = self.cutoff / (self.size - 1)
            return torch.exp(-0.5 * (r / spacing - (n - 1)).square())
        x = r if self.kind == "chebyshev_raw" else 2 * r / self.cutoff - 1
        polynomials = [torch.ones_like(x), x]
        while len(polynomials) <= self.size:
            polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
        return torch.cat(polynomials[1:], dim=-1)


class Repulsion(nn.Module):
    """Ziegler-Biersack-Littmark repulsion of two nuclei, eV, switched off at the sum of their covalent radii."""

    def __init__(self, elements: Sequence[int], cutoff_power: int) -> None:
        super().__init__()
        self.z = Constant(torch.tensor(list(elements)))
        self.radii = Constant(torch.tensor([covalent_radii[z] for z in elements]))
        self.cutoff_power = cutoff_power

    def forward(self, r: Tensor, species_i: Tensor, species_j: Tensor) -> Tensor:
        """Half the energy of each pair [E, 1]."""
        (zi, zj), radii = (self.z.like(r)[s][:, None] for s in (species_i, species_j)), self.radii.like(r)
        x = r / (0.4543 * 0.529) * (zi**0.3 + zj**0.3)
        screen = 0.1818 * torch.exp(-3.2 * x) + 0.5099 * torch.exp(-0.9423 * x)
        screen = screen + 0.2802 * torch.exp(-0.4028 * x) + 0.02817 * torch.exp(-0.2016 * x)
        bond = (radii[species_i] + radii[species_j])[:, None]
        return 0.5 * 14.3996 * zi * zj / r * screen * envelope(r / bond, self.cutoff_power)


# Layers --------------------------------------------------------------------------------------------------------------


class Mix(nn.Module):
    """Linear map of the channels of each l; weights are standard normal, divided by the root of their fan-in in use."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        fans = [*inputs, *[0] * (len(outputs) - len(inputs))]
        self.weights = nn.ParameterList(torch.randn(i, o) for i, o in zip(fans, outputs, strict=False))

    def forward(self, x: Features) -> Features:
        """Map; an l that the input does not have is zero."""
        x = [*x, *(_zeros(x[0], ell) for ell in range(len(x), len(self.weights)))]
        return [h @ (w / sqrt(max(len(w), 1))) for h, w in zip(x, self.weights, strict=False)]


class SpeciesMix(nn.Module):
    """Linear map of the channels of each l by a matrix of the atom's element."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], num_species: int) -> None:
        super().__init__()
        fans = [*inputs, *[0] * (len(outputs) - len(inputs))]
        self.weights = nn.ParameterList(torch.randn(num_species, i, o) for i, o in zip(fans, outputs, strict=False))

    def forward(self, x: Features, graph: Graph) -> Features:
        """Map; an l that the input does not have is zero."""
        x = [*x, *(_zeros(x[0], ell) for ell in range(len(x), len(self.weights)))]
        scales = [1 / sqrt(max(w.shape[0] * w.shape[1], 1)) for w in self.weights]
        return [graph.by_species(h, w * s) for h, w, s in zip(x, self.weights, scales, strict=False)]


def _zeros(like: Tensor, ell: int) -> Tensor:
    return like.new_zeros(like.shape[0], 2 * ell + 1, 0)


class RadialNet(nn.Module):
    """Bias-free network of a radial basis; its activations keep unit second moment."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(i, o) for i, o in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """[P, B] to [P, W]."""
        for number, weight in enumerate(self.weights):
            x = activate("silu", x) if number else x
            x = x @ (weight / sqrt(len(weight)))
        return x


class PairNet(nn.Module):
    """Network of a radial basis and of both elements, with layer norms (MACE-OMOL, MACE-MH).

    The first layer is split: the elements enter through one row per element, added along the edges.
    """

    def __init__(self, sizes: Sequence[int], embedding: int) -> None:
        super().__init__()
        self.sizes = [sizes[0], embedding, embedding]
        self.first, self.rest = nn.Linear(sum(self.sizes), sizes[1]), nn.Sequential()
        for i, o in pairwise(sizes[1:]):
            self.rest.extend([nn.LayerNorm(i), nn.SiLU(), nn.Linear(i, o)])

    def forward(self, x: Tensor, source: Tensor, target: Tensor, graph: Graph) -> Tensor:
        """[P, B] and embeddings of the elements [S, C] to [P, W]."""
        receiver, sender = graph.ends
        from_x, from_source, from_target = self.first.weight.split(self.sizes, dim=1)
        from_elements = (source @ from_source.T)[sender] + (target @ from_target.T + self.first.bias)[receiver]
        return self.rest(x @ from_x.T + from_elements)


class Interaction(nn.Module):
    """Messages: what the neighbours' features look like from each atom (equation 8), as spherical components A."""

    def __init__(self, l_in: int, l_skip: int, block: Block, sizes: Sizes, options: MACEOptions) -> None:
        super().__init__()
        c, lmax = sizes.channels, sizes.sh_l
        self.neighbours, self.residual = sizes.neighbours, block.endswith("residual")
        self.up = Mix([c] * (l_in + 1), [c] * (l_in + 1))
        self.convolution = TensorConvolution([c] * (l_in + 1), lmax, lmax)
        widths = [options.num_radial, *options.radial_hidden, sum(self.convolution.weight_sizes)]
        self.radial = RadialNet(widths)
        self.density = RadialNet([options.num_radial, 1]) if block.startswith("density") else None
        self.mix = Mix(self.convolution.out_channels, [c] * (lmax + 1))
        if self.residual:
            self.skip = SpeciesMix([c] * (l_in + 1), [c] * (l_skip + 1), sizes.species)
        else:
            self.skip = SpeciesMix([c] * (lmax + 1), [c] * (lmax + 1), sizes.species)

    def forward(self, h: Features, edges: EdgeFeatures, graph: Graph) -> tuple[Features, Features | None]:
        """Features to A, and to what bypasses the product."""
        a = self.mix(self.convolution(self.up(h), edges.harmonics, self.radial(edges.radial), graph.tiles))
        if self.density is None:
            a = [part / self.neighbours for part in a]
        else:
            rho = graph.tiles.sum(torch.tanh(self.density(edges.radial).square()) * edges.window)
            a = [part / (rho + 1).unsqueeze(1) for part in a]
        return (a, self.skip(h, graph)) if self.residual else (self.skip(a, graph), None)


class NonlinearInteraction(nn.Module):
    """Messages with weights that know both elements, normalised by a density, and a gate (MACE-OMOL, MACE-MH)."""

    def __init__(self, l_in: int, l_skip: int, first: bool, sizes: Sizes, options: MACEOptions) -> None:
        super().__init__()
        c, lmax = sizes.channels, sizes.sh_l
        own = options.edge_channels is None or (first and not options.edge_channels_first)
        edge = [c] * (l_in + 1) if own else list(options.edge_channels or ())
        edge = edge if not first else edge[:1]
        self.up = Mix([c] * (l_in + 1), edge)
        self.source = nn.Parameter(torch.empty(sizes.species, c).uniform_(-1e-3, 1e-3))
        self.target = nn.Parameter(torch.empty(sizes.species, c).uniform_(-1e-3, 1e-3))
        self.convolution = TensorConvolution(edge, lmax, lmax)
        self.radial = PairNet([options.num_radial, *options.radial_hidden, sum(self.convolution.weight_sizes)], c)
        self.density = PairNet([options.num_radial, 64, 1], c)
        self.alpha, self.beta = nn.Parameter(torch.tensor(20.0)), nn.Parameter(torch.tensor(0.0))
        gated = [c * (lmax + 1), *[c] * lmax]
        self.mix, self.bypass = Mix(self.convolution.out_channels, gated), Mix(edge, gated)
        self.out = Mix([c] * (lmax + 1), [c] * (lmax + 1))
        self.skip = Mix([c] * (l_in + 1), [c] * (l_skip + 1))

    def forward(self, h: Features, edges: EdgeFeatures, graph: Graph) -> tuple[Features, Features | None]:
        """Features to A, and to what bypasses the product."""
        x, scale = self.up(h), 1 / sqrt(len(self.source))
        pair = (edges.radial, self.source * scale, self.target * scale, graph)
        rho = graph.tiles.sum(torch.tanh(self.density(*pair).square()) * edges.window).unsqueeze(1)
        m = self.mix(self.convolution(x, edges.harmonics, self.radial(*pair), graph.tiles))
        m = [a / (rho * self.beta + self.alpha) + b for a, b in zip(m, self.bypass(x), strict=True)]
        scalars, *gates = m[0].chunk(len(m), dim=2)
        gated = [part * activate("sigmoid", gate) for part, gate in zip(m[1:], gates, strict=True)]
        return self.out([activate("silu", scalars), *gated]), self.skip(h)


class Layer(nn.Module):
    """One round: messages A, their symmetric products B (equation 11), the new features (equation 12)."""

    def __init__(self, l_in: int, l_out: int, degree: int, first: bool, sizes: Sizes, options: MACEOptions) -> None:
        super().__init__()
        c, block = sizes.channels, options.first_block if first else options.block
        self.interaction = (
            NonlinearInteraction(l_in, l_out, first, sizes, options)
            if block == "nonlinear"
            else Interaction(l_in, l_out, block, sizes, options)
        )
        self.agnostic = options.agnostic_product
        self.product = SymmetricContraction(sizes.sh_l, l_out, degree, c, 1 if self.agnostic else sizes.species)
        self.update = Mix([c] * (l_out + 1), [c] * (l_out + 1))

    def forward(self, h: Features, edges: EdgeFeatures, graph: Graph) -> Features:
        """Features to features."""
        a, skip = self.interaction(h, edges, graph)
        blocks = [(0, 0, graph.order.shape[0])] if self.agnostic else graph.blocks
        b = self.product(torch.cat(a, dim=1), blocks)
        out = self.update(list(b.split([2 * ell + 1 for ell in range(len(self.update.weights))], dim=1)))
        return out if skip is None else [x + y for x, y in zip(out, skip, strict=True)]


class LinearReadout(nn.Module):
    """Energies of all heads, linear in the scalars."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.out = Mix([channels], [heads])

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """[N, 1, C] to [N, 1, heads]."""
        return self.out([h])[0]


class MLPReadout(nn.Module):
    """Energies of all heads by a small network, whose hidden channels serve one head each."""

    def __init__(self, channels: int, heads: int, options: MACEOptions) -> None:
        super().__init__()
        self.activation, width, biased = options.activation, heads * options.readout_hidden, options.readout_mid
        self.inner, self.out = Mix([channels], [width]), Mix([width], [heads])
        self.mid = Mix([width], [width]) if biased else None
        self.biases = nn.ParameterList(torch.zeros(size) for size in ([width, heads] if biased else []))

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """[N, 1, C] and each atom's head, one-hot [N, 1, heads], to [N, 1, heads]."""
        mask = mask.repeat_interleave(self.out.weights[0].shape[0] // mask.shape[2], dim=2)
        h = activate(self.activation, self.inner([h])[0]) * mask
        if self.mid is None:
            return self.out([h])[0]
        h = activate(self.activation, self.mid([h])[0] + self.biases[0]) * mask
        return self.out([h])[0] + self.biases[1]


def activate(name: str, x: Tensor) -> Tensor:
    """An activation with unit second moment for normal input."""
    function, factor = _ACTIVATIONS[name]
    return function(x) * factor


# Model ---------------------------------------------------------------------------------------------------------------


class MACE(nn.Module):
    """The potential.

    Args:
        elements: atomic numbers that it knows.
        channels: C.
        hidden_l: L, highest l of the features between layers, 0 to 2.
        num_layers: T; the model sees T * cutoff far.
        cutoff: r_max in Å; edges beyond have no effect.
        sh_l: highest l of the harmonics and of A.
        correlation: factors in a product, 1 to 4, per layer if a sequence; messages have one body more.
        neighbours: mean number of neighbours in the training data, by which sums over neighbours are divided.
        reference: atomic energies, scale and shift.
        options: what varies between the published models.

    Raises:
        InputError: arguments that do not fit each other; atoms of another element.
    """

    def __init__(
        self,
        elements: Sequence[int],
        channels: int = 128,
        hidden_l: int = 1,
        num_layers: int = 2,
        *,
        cutoff: float = 5.0,
        sh_l: int = 3,
        correlation: int | Sequence[int] = 3,
        neighbours: float = 1.0,
        reference: EnergyReference = EnergyReference(),
        options: MACEOptions = MACEOptions(),
    ) -> None:
        super().__init__()
        elements = _elements(elements)
        degrees = [correlation] * num_layers if isinstance(correlation, int) else list(correlation)
        if num_layers < 1 or len(degrees) != num_layers:
            raise InputError("correlation", expected=f"one number, or one for each of {num_layers} layers", got=degrees)
        self.reference, self.cutoff, self.elements = _Reference(reference, len(elements)), cutoff, tuple(elements)
        self.late, self.cutoff_power = options.late_cutoff, options.cutoff_power
        sizes = Sizes(channels, sh_l, len(elements), neighbours)
        self.species = Constant(torch.tensor([elements.index(z) if z in elements else -1 for z in range(119)]))
        self.embedding = nn.Parameter(torch.randn(len(elements), channels))
        self.sh_l = sh_l
        self.radial = RadialBasis(cutoff, options, elements)
        self.repulsion = Repulsion(elements, options.cutoff_power) if options.repulsion else None
        self.layers, self.readouts = nn.ModuleList(), nn.ModuleList()
        for number, degree in enumerate(degrees):
            last = number == num_layers - 1
            l_in, l_out = hidden_l if number else 0, 0 if last else hidden_l
            self.layers.append(Layer(l_in, l_out, degree, number == 0, sizes, options))
            if last and number:
                self.readouts.append(MLPReadout(channels, self.reference.heads, options))
            elif last or not options.last_readout_only:
                self.readouts.append(LinearReadout(channels, self.reference.heads))

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """Energies of a batch (module docstring for fields and shapes)."""
        graph, head = self._prepare(sample)
        edges, energy = self._edges(sample, graph)
        mask = one_hot(head, self.reference.heads).to(energy)[:, None]
        h = [(self.embedding / sqrt(len(self.embedding)))[graph.species].unsqueeze(1)]
        silent = len(self.layers) - len(self.readouts)
        for number, layer in enumerate(self.layers):
            h = layer(h, edges, graph)
            if number >= silent:
                energy = energy + (self.readouts[number - silent](h[0], mask) * mask).sum(2)
        node_energy = self.reference(energy[:, 0], head, graph.species)[graph.row]
        return {"energy": _per_graph(node_energy, sample), "node_energy": node_energy}

    @torch.compiler.disable  # depends on values; the rest depends on shapes alone
    def _prepare(self, sample: Data) -> tuple[Graph, Tensor]:
        """The sorted batch, and the head that each row asks for."""
        z = sample.z.clamp(0, 118)
        species = self.species.like(sample.pos)[z].long()
        if bool((species < 0).any()):
            missing = sorted(set(sample.z[species < 0].tolist()))
            known = torch.nonzero(self.species.like(sample.pos) >= 0).flatten().tolist()
            raise InputError("elements", where="field z", expected=f"among {known}", got=missing)
        graph = Graph.build(species, sample.edge_index, len(self.embedding))
        head, heads = sample.get("head"), self.reference.heads
        if head is None:
            return graph, torch.zeros_like(species)
        if bool(((head < 0) | (head >= heads)).any()):
            raise InputError("head", where="field head", expected=f"0 to {heads - 1}", got=head.tolist())
        batch = sample.get("batch")
        return graph, head[batch[graph.order]] if batch is not None else head.expand(len(species))

    def _edges(self, sample: Data, graph: Graph) -> tuple[EdgeFeatures, Tensor]:
        """Features of the edges, and the energy of each row [N, 1] that comes from repulsion."""
        tiles, used = graph.tiles, graph.tiles.used[:, None]
        sender, receiver = sample.edge_index[:, tiles.edge]
        vector = sample.pos[receiver] - sample.pos[sender]
        if sample.get("edge_shift") is not None:
            vector = vector - sample.edge_shift[tiles.edge]
        vector = vector.to(self.embedding.dtype)  # positions may have more digits than the weights
        far = vector.new_tensor([0.0, 0.0, 2 * self.cutoff])
        r = length(vector := torch.where(used, vector, far))
        cut, radial = envelope(r / self.cutoff, self.cutoff_power), self.radial(r, *graph.ends)
        window = cut if self.late else used.to(r)
        sizes = [2 * degree + 1 for degree in range(self.sh_l + 1)]
        harmonics = list((spherical_harmonics(vector / r, self.sh_l) * window).split(sizes, dim=1))
        energy = r.new_zeros(graph.order.shape[0], 1)
        if self.repulsion is not None:
            energy = tiles.sum(self.repulsion(r, *graph.ends) * used)
        return EdgeFeatures(radial if self.late else radial * cut, harmonics, window), energy


class _Reference:
    """`EnergyReference` as tables [heads, S], in float64."""

    def __init__(self, given: EnergyReference, num_species: int) -> None:
        atoms, scale, shift = (torch.tensor(v, dtype=torch.float64) for v in (given.atoms, given.scale, given.shift))
        atoms = torch.zeros(num_species, dtype=torch.float64) if not atoms.numel() else atoms
        self.heads = max([len(v) for v, dim in ((atoms, 2), (scale, 1), (shift, 1)) if v.dim() == dim], default=1)
        try:
            self.atoms = Constant(atoms.expand(self.heads, num_species))
            self.scale, self.shift = Constant(scale.expand(self.heads)), Constant(shift.expand(self.heads))
        except RuntimeError:
            expected, got = (
                f"{num_species} energies, for one head or each",
                [list(v.shape) for v in (atoms, scale, shift)],
            )
            raise InputError("energy reference", where="reference", expected=expected, got=got) from None

    def __call__(self, energy: Tensor, head: Tensor, species: Tensor) -> Tensor:
        """Network outputs [N] as atomic energies in float64."""
        energy = energy.double()
        atoms, scale, shift = (v.like(energy) for v in (self.atoms, self.scale, self.shift))
        return atoms[head, species] + scale[head] * energy + shift[head]


def _per_graph(node_energy: Tensor, sample: Data) -> Tensor:
    batch, graphs = graph_of_nodes(sample)
    return node_energy.new_zeros(graphs).index_add(0, batch, node_energy)


def _elements(given: Sequence[int]) -> list[int]:
    elements = sorted(set(given))
    if not elements or elements[0] < 1 or elements[-1] > 118 or list(given) != elements:
        raise InputError("elements", where="elements", expected="rising atomic numbers, 1 to 118", got=list(given))
    return elements


ENTRY = Entry(
    name="mace",
    title="MACE, higher order equivariant message passing",
    model=MACE,
    citation=Citation(
        key="batatia2022mace",
        authors="Batatia, Ilyes and Kovacs, David Peter and Simm, Gregor N. C. and Ortner, Christoph and Csanyi, Gabor",
        title="MACE: Higher Order Equivariant Message Passing Neural Networks for Fast and Accurate Force Fields",
        venue="Advances in Neural Information Processing Systems",
        year=2022,
        arxiv="2206.07697",
    ),
    symmetry="E(3)",
    needs=("pos", "z", "edge_index"),
    gives=("energy", "node_energy"),
)
