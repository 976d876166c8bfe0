"""MACE, an interatomic potential with messages of many-body order.

Batatia, Kovacs, Simm, Ortner, Csanyi, "MACE: Higher Order Equivariant Message Passing Neural Networks for Fast and
Accurate Force Fields", NeurIPS 2022, arXiv 2206.07697.

Symmetry: E(3) and permutations of like atoms; additive over atoms, so that size only costs time.

Reads `pos [N, 3]` (Å), `z [N]`, `edge_index [2, E]`, and where present `edge_shift [E, 3]` (Å), `batch [N]` and
`head [B]` (which level of theory each graph asks for). Gives `energy [B]` and `atom_energy [N]` in eV, always in
float64: the sum of atomic energies would lose the digits that matter. Forces and stress are its derivatives.

Differences from the original: dependent coupling trees of the symmetric contraction have no weights of their own, the
function is the same; element-dependent maps are products with the matrix of the element, not with a one-hot vector;
coincident atoms have finite energies and forces; the cell is neither needed nor changed; the Chebyshev basis sees the
distance mapped to [-1, 1], not in Å (`chebyshev_raw` is the original's).

Features are lists over l of tensors [N, 2 l + 1, C], channels last; m runs from -l to l in the real basis of e3nn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Literal, NamedTuple

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry
from equidyn.core.errors import InputError
from equidyn.ops.activations import SCALES, activate
from equidyn.ops.cutoff import polynomial_envelope
from equidyn.ops.derivatives import graph_of_nodes
from equidyn.ops.edges import EdgeCache, Edges
from equidyn.ops.mix import Mix, SpeciesMix
from equidyn.ops.radial import Basis, RadialBasis, RadialNet, Transform, length
from equidyn.ops.reference import EnergyReference, Reference
from equidyn.ops.repulsion import Repulsion, Screening
from equidyn.ops.so3 import spherical_harmonics
from equidyn.ops.species import Kinds, Species
from equidyn.ops.steerable_convolution import Neighbourhood, Path, SteerableConvolution
from equidyn.ops.symmetric_contraction import SymmetricContraction
from equidyn.ops.tracing import traced

Features = list[Tensor]
Block = Literal["plain", "residual", "density", "density_residual", "nonlinear"]
_ZBL = Screening(0.3, 0.4543 * 0.529, ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4028), (0.02817, 0.2016)))
_COULOMB = 14.3996  # e^2 / (4 pi epsilon_0) in eV Å


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
    radial: Basis = "bessel"
    num_radial: int = 8
    transform: Transform = "none"
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


class Sizes(NamedTuple):
    """Sizes that all layers share: C, highest l of the harmonics, S, mean number of neighbours."""

    channels: int
    sh_l: int
    species: int
    neighbours: float


class Graph(NamedTuple):
    """What the layers know of a batch; its atoms are in rows sorted by element.

    Attributes:
        kinds: the order of the rows.
        species: [N] element of each row.
        edges: between rows.
    """

    kinds: Kinds
    species: Tensor
    edges: Edges


class EdgeFeatures(NamedTuple):
    """What the layers know of the edges.

    Attributes:
        radial: [E, B] radial basis.
        window: [E, 1] the envelope if it is applied late, else one.
        near: edges and harmonics, for convolutions.
        ends: [E] element of receiver and sender.
    """

    radial: Tensor
    window: Tensor
    near: Neighbourhood
    ends: tuple[Tensor, Tensor]


# Layers --------------------------------------------------------------------------------------------------------------


def _convolution(channels: Sequence[int], lmax: int) -> SteerableConvolution:
    """All couplings of features with harmonics that keep the natural parity (-1)^l, up to lmax, sorted by l3."""
    paths = [
        Path(l1, l2, l3, l3)
        for l1 in range(len(channels))
        for l2 in range(lmax + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax) + 1)
        if (l1 + l2 + l3) % 2 == 0 and channels[l1]
    ]
    return SteerableConvolution(list(enumerate(channels)), sorted(paths, key=lambda path: path.l_out))


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

    def inputs(self, source: Tensor, target: Tensor, edges: EdgeFeatures) -> Tensor:
        """What `rest` takes, [E, H], from embeddings of the elements [S, C]."""
        receiver, sender = edges.ends
        from_x, from_source, from_target = self.first.weight.split(self.sizes, dim=1)
        by_sender, by_receiver = source @ from_source.T, target @ from_target.T + self.first.bias
        return edges.radial @ from_x.T + by_sender[sender] + by_receiver[receiver]


class Interaction(nn.Module):
    """Messages: what the neighbours' features look like from each atom (equation 8), as spherical components A."""

    def __init__(self, l_in: int, l_skip: int, block: Block, sizes: Sizes, options: MACEOptions) -> None:
        super().__init__()
        (c, lmax, species, self.neighbours), bases = sizes, options.num_radial
        self.residual = block.endswith("residual")
        self.up = Mix([c] * (l_in + 1), [c] * (l_in + 1))
        self.convolution = _convolution([c] * (l_in + 1), lmax)
        widths = [bases, *options.radial_hidden, self.convolution.weight_size]
        self.radial = RadialNet(widths, SCALES["silu"], normal=True)
        self.density = RadialNet([bases, 1], 1.0, normal=True) if block.startswith("density") else None
        self.mix = Mix(self.convolution.out_channels, [c] * (lmax + 1))
        inputs, outputs = (l_in, l_skip) if self.residual else (lmax, lmax)
        self.skip = SpeciesMix([c] * (inputs + 1), [c] * (outputs + 1), species)

    def forward(self, h: Features, edges: EdgeFeatures, graph: Graph) -> tuple[Features, Features | None]:
        """Features to A, and to what bypasses the product."""
        near = edges.near
        a = self.mix(self.convolution(self.up(h), near.spread(edges.radial), self.radial, near))
        if self.density is None:
            a = [part / self.neighbours for part in a]
        else:
            rho = graph.edges.sum(torch.tanh(self.density(edges.radial).square()) * edges.window)
            a = [part / (rho + 1).unsqueeze(1) for part in a]
        return (a, self.skip(h, graph.kinds)) if self.residual else (self.skip(a, graph.kinds), None)


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
        self.convolution = _convolution(edge, lmax)
        self.radial = PairNet([options.num_radial, *options.radial_hidden, self.convolution.weight_size], c)
        self.density = PairNet([options.num_radial, 64, 1], c)
        self.alpha, self.beta = nn.Parameter(torch.tensor(20.0)), nn.Parameter(torch.tensor(0.0))
        gated = [c * (lmax + 1), *[c] * lmax]
        self.mix, self.bypass = Mix(self.convolution.out_channels, gated), Mix(edge, gated)
        self.out = Mix([c] * (lmax + 1), [c] * (lmax + 1))
        self.skip = Mix([c] * (l_in + 1), [c] * (l_skip + 1))

    def forward(self, h: Features, edges: EdgeFeatures, graph: Graph) -> tuple[Features, Features | None]:
        """Features to A, and to what bypasses the product."""
        x, near, scale = self.up(h), edges.near, 1 / sqrt(len(self.source))
        pair = (self.source * scale, self.target * scale, edges)
        density = self.density.rest(self.density.inputs(*pair))
        rho = graph.edges.sum(torch.tanh(density.square()) * edges.window).unsqueeze(1)
        m = self.mix(self.convolution(x, near.spread(self.radial.inputs(*pair)), self.radial.rest, near))
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
        present, counts = graph.kinds.present, graph.kinds.counts
        if self.agnostic:
            present, counts = torch.zeros_like(present[:1]), [sum(counts)]
        b = self.product(torch.cat(a, dim=1), present, counts)
        out = self.update(list(b.split([2 * ell + 1 for ell in range(len(self.update.weights))], dim=1)))
        return out if skip is None else [x + y for x, y in zip(out, skip, strict=True)]


class LinearReadout(nn.Module):
    """Energies of all heads, linear in the scalars."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.out = Mix([channels], [heads])

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """[N, 1, C] and each atom's head, one-hot [N, 1, heads], to [N, 1, heads]."""
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
        reference: EnergyReference = EnergyReference(),  # noqa: B008
        options: MACEOptions = MACEOptions(),
    ) -> None:
        super().__init__()
        if list(elements) != sorted(set(elements)) or not all(0 < z < 119 for z in elements):
            raise InputError(
                "elements", where="elements", expected="rising atomic numbers, 1 to 118", got=list(elements)
            )
        degrees = [correlation] * num_layers if isinstance(correlation, int) else list(correlation)
        if num_layers < 1 or len(degrees) != num_layers:
            raise InputError("correlation", expected=f"one number, or one for each of {num_layers} layers", got=degrees)
        self.elements, self.cutoff, self.sh_l = tuple(elements), cutoff, sh_l
        self.reference = Reference(reference, len(elements))
        self.late, self.cutoff_power = options.late_cutoff, options.cutoff_power
        sizes = Sizes(channels, sh_l, len(elements), neighbours)
        self.species = Species([chemical_symbols[z] for z in elements])
        self.embedding = nn.Parameter(torch.randn(len(elements), channels))
        self.radial = RadialBasis(options.radial, options.transform, cutoff, options.num_radial, elements)
        self.repulsion = Repulsion(elements, _COULOMB, _ZBL) if options.repulsion else None
        self.layers, self.readouts = nn.ModuleList(), nn.ModuleList()
        for number, degree in enumerate(degrees):
            last = number == num_layers - 1
            l_in, l_out = hidden_l if number else 0, 0 if last else hidden_l
            self.layers.append(Layer(l_in, l_out, degree, number == 0, sizes, options))
            if last and number:
                self.readouts.append(MLPReadout(channels, self.reference.heads, options))
            elif last or not options.last_readout_only:
                self.readouts.append(LinearReadout(channels, self.reference.heads))
        self._edges = EdgeCache()

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """Energies of a batch (module docstring for fields and shapes)."""
        graph, head = self.prepare(sample)
        edges, energy = self.edge_features(sample, graph)
        mask = one_hot(head, self.reference.heads).to(energy)[:, None]
        h = [(self.embedding / sqrt(len(self.embedding)))[graph.species].unsqueeze(1)]
        silent = len(self.layers) - len(self.readouts)
        for number, layer in enumerate(self.layers):
            h = layer(h, edges, graph)
            if number >= silent:
                energy = energy + (self.readouts[number - silent](h[0], mask) * mask).sum(2)
        atom_energy = self.reference(energy[:, 0], head, graph.species)[graph.kinds.inverse]
        batch, graphs = graph_of_nodes(sample)
        return {"energy": atom_energy.new_zeros(graphs).index_add(0, batch, atom_energy), "atom_energy": atom_energy}

    @torch.compiler.disable  # depends on values; the rest depends on shapes alone
    def prepare(self, sample: Data) -> tuple[Graph, Tensor]:
        """The sorted batch, and the head that each row asks for."""
        species = self.species(sample.z)
        kinds = Kinds.sort(species, len(self.species))
        edges = self._edges(kinds.inverse[sample.edge_index], kinds.order.shape[0], self.embedding.dtype, copies=1)
        graph = Graph(kinds, species[kinds.order], edges)
        head, heads = sample.get("head"), self.reference.heads
        if head is None:
            return graph, torch.zeros_like(species)
        if not traced() and bool(((head < 0) | (head >= heads)).any()):
            raise InputError("head", where="field head", expected=f"0 to {heads - 1}", got=head.tolist())
        return graph, head[graph_of_nodes(sample)[0]][kinds.order]

    def edge_features(self, sample: Data, graph: Graph) -> tuple[EdgeFeatures, Tensor]:
        """Features of the edges, and the energy of each row [N, 1] that comes from repulsion."""
        edges, pos = graph.edges, sample.pos[graph.kinds.order]
        vector = edges.from_receivers(pos) - edges.from_senders(pos)
        if sample.get("edge_shift") is not None:
            vector = vector - sample.edge_shift
        vector = vector.to(self.embedding.dtype)  # positions may have more digits than the weights
        r, ends = length(vector), (graph.species[edges.receivers.node], graph.species[edges.senders.node])
        cut, radial = polynomial_envelope(r / self.cutoff, self.cutoff_power), self.radial(r, *ends)
        radial, window = (radial, cut) if self.late else (radial * cut, torch.ones_like(cut))
        near = Neighbourhood.build(edges, spherical_harmonics(vector / r, self.sh_l) * window)
        energy = r.new_zeros(pos.shape[0], 1)
        if self.repulsion is not None:  # switched off at the sum of the covalent radii
            switch = polynomial_envelope(r / self.radial.bond(r, *ends), self.cutoff_power)
            energy = edges.sum(self.repulsion(r, *ends) * switch)
        return EdgeFeatures(radial, window, near, ends), energy


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
    gives=("energy", "atom_energy"),
)
