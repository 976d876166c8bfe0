"""NequIP, an interatomic potential with equivariant messages.

Batzner, Musaelian, Sun, Geiger, Mailoa, Kornbluth, Molinari, Smidt, Kozinsky, "E(3)-equivariant graph neural networks
for data-efficient and accurate interatomic potentials", Nature Communications 13, 2453 (2022), arXiv 2101.03164. The
form is that of version 0.19 of the code.

Symmetry: E(3) and permutations. The energy is a sum over atoms; each sees `num_layers` times the cutoff far.

Reads `pos [N, 3]` Å, `z [N]`, `edge_index [2, E]` and where present `edge_shift [E, 3]`, `cell [G, 3, 3]`, `batch [N]`,
and the fields of each graph named in `graph_fields`. Gives `energy [G]` and `atom_energy [N]`, in float64 and the unit
of the data (eV). Forces and stress are derivatives: `equidyn.ops.derivatives.WithForces(model, stress=True)`.

Differences from the original: coincident atoms have finite forces, a frame without a volume zero stress instead of NaN;
the self-connection is one matrix per kind of atom, contracted from the original's weights (the same numbers, less
work); the radial weights of a layer come in another order.

Features are lists of blocks [N, 2 l + 1, C], one per irrep, channels last; m runs from -l to l in the basis of e3nn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.catalogue import Citation, Entry
from equidyn.core.errors import InputError
from equidyn.ops.activations import activate
from equidyn.ops.coupling import degrees
from equidyn.ops.cutoff import polynomial_envelope
from equidyn.ops.derivatives import graph_of_nodes
from equidyn.ops.edges import EdgeCache, Edges
from equidyn.ops.mix import Mix
from equidyn.ops.precision import Double
from equidyn.ops.radial import RadialNet, length
from equidyn.ops.repulsion import Repulsion, Screening
from equidyn.ops.so3 import spherical_harmonics
from equidyn.ops.species import Kinds, PerSpecies, Species
from equidyn.ops.steerable import Block, Blocks, harmonic_parity
from equidyn.ops.steerable_convolution import Neighbourhood, Path, SteerableConvolution
from equidyn.ops.tracing import traced

# Coulomb constant e^2 / (4 pi epsilon_0) in eV Å and in kcal/mol Å.
_COULOMB = {"metal": 14.399645, "real": 332.06371}
_ZBL = Screening(0.23, 0.46850, ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980)))
# Atoms closer than this (Å) count as coincident: their direction is undefined and left out.
_COINCIDENT = 1e-6


@dataclass(frozen=True)
class NequIPOptions:
    """What varies between published and tuned forms.

    Attributes:
        num_bessel: radial functions per edge.
        trainable_bessel: let their roots be learned.
        envelope: exponent p of the polynomial that takes the radial functions to zero at the cutoff.
        radial: hidden widths of the network from radial functions to the weights of a message.
        type_dim: width of the embedding of a species; that of the scalars if not given.
        readout: hidden widths of the network from scalars to an atom's energy; none is one linear map.
        nonlinearity: "gate": higher irreps times learned gates; "norm": everything scaled by a function of its norm.
        residual: add a layer's output to its input where they have the same irreps.
        first_self_connection: a self-connection in the first layer too, which makes the energy of an isolated atom
            learnable instead of exactly its shift.
        pair_cutoffs: smaller cutoffs by species of the receiver, `{"H": 3.0, "C": {"H": 3.5}}`; need not be symmetric.
        zbl: short-range repulsion of Ziegler, Biersack and Littmark in eV and Å ("metal") or kcal/mol and Å ("real").
        graph_fields: integer fields of the whole graph that each atom sees, by name: lowest and highest value and width
            of the embedding, `{"total_charge": (-1, 1, 8)}`.
        trainable_scale: let the scale of each species be learned.
        trainable_shift: let the shift of each species be learned.
    """

    num_bessel: int = 8
    trainable_bessel: bool = False
    envelope: int = 6
    radial: Sequence[int] = (128,)
    type_dim: int | None = None
    readout: Sequence[int] = ()
    nonlinearity: Literal["gate", "norm"] = "gate"
    residual: bool = False
    first_self_connection: bool = False
    pair_cutoffs: Mapping[str, PerSpecies] = field(default_factory=dict)
    zbl: Literal["none", "metal", "real"] = "none"
    graph_fields: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    trainable_scale: bool = False
    trainable_shift: bool = False


class RadialBasis(Double):
    """Distances in units of the cutoff, and the radial functions of an edge: Bessel functions under an envelope."""

    inverse_cutoff: Tensor

    def __init__(self, cutoff: float, cutoffs: Tensor, options: NequIPOptions) -> None:
        super().__init__()
        self.cutoff, self.envelope = cutoff, options.envelope
        self.register_buffer("inverse_cutoff", cutoffs.flatten().reciprocal())
        roots = torch.arange(1, options.num_bessel + 1, dtype=torch.float64)
        self.roots = nn.Parameter(roots, requires_grad=options.trainable_bessel)  # in units of pi

    def forward(self, length: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        """From lengths [E, 1] and pairs of species [E]: x [E, 1] and e_n(x) [E, num_bessel]."""
        x = length * self.inverse_cutoff[pair, None]
        bessel = torch.sin(math.pi * self.roots * x) / x * (2 / self.cutoff**2)
        return x, bessel * polynomial_envelope(x, self.envelope)


class ScaleShift(Double):
    """E_i = shift + scale times output, by species."""

    def __init__(self, scale: Tensor, shift: Tensor, options: NequIPOptions) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=options.trainable_scale)
        self.shift = nn.Parameter(shift, requires_grad=options.trainable_shift)

    def forward(self, value: Tensor, species: Tensor) -> Tensor:
        """From the network's output [N] and species [N]: energies [N]."""
        return self.shift[species] + self.scale[species] * value.double()


class Atoms(NamedTuple):
    """What the layers know of the atoms.

    Attributes:
        kinds: atoms by kind, a kind being a species in a graph with certain graph fields.
        attributes: [K, F] what describes each kind.
        norm: [N, 1, 1] one over the root of the mean number of neighbours.
    """

    kinds: Kinds
    attributes: Tensor
    norm: Tensor


class SelfConnection(nn.Module):
    """h_i times a matrix that depends on the kind of atom i, for each irrep of h that the output has too."""

    def __init__(self, irreps: Sequence[Block], out: Sequence[Block], attribute_dim: int) -> None:
        super().__init__()
        self.irreps, self.out = tuple(irreps), tuple(out)
        targets = {b.irrep: b.mul for b in out}
        self.kept = [n for n, a in enumerate(irreps) if a.irrep in targets]
        shapes = [(a.mul, attribute_dim, targets[a.irrep]) for a in irreps if a.irrep in targets]
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, h: Blocks, atoms: Atoms) -> Blocks:
        """Blocks of the input to those of the output."""
        found = {}
        for n, weight in zip(self.kept, self.weights, strict=True):
            matrices = torch.einsum("kf,afb->kab", atoms.attributes, weight) * math.prod(weight.shape[:2]) ** -0.5
            product = atoms.kinds.times(h[n].index_select(0, atoms.kinds.order), matrices)
            found[self.irreps[n].irrep] = product.index_select(0, atoms.kinds.inverse)
        empty = h[0].new_zeros
        return [found[b.irrep] if b.irrep in found else empty(h[0].shape[0], b.size, b.mul) for b in self.out]


def paths_from(source: Block, targets: Sequence[Block], l_max: int) -> list[tuple[int, int, int]]:
    """(l3, l2, number of the target) of all couplings of a block with harmonics up to l_max to blocks of an output."""
    paths = [
        (target.l, l2, number)
        for number, target in enumerate(targets)
        for l2 in degrees(source.irrep, l_max, target.irrep)
    ]
    return sorted(paths, key=lambda path: (path[0], path[1] % 2, path[1]))


class Convolution(nn.Module):
    """Messages of the neighbours, summed: their features times harmonics, weighted by functions of the distance.

    Args:
        irreps: of the input.
        out: irreps of the output, all of them reachable from the input.
        l_max: degree of the harmonics.
        radial: widths of the radial network, from the radial functions to its last hidden layer.
        attribute_dim: width of the atoms' attributes for the self-connection; 0 for none.
    """

    def __init__(
        self, irreps: Sequence[Block], out: Sequence[Block], l_max: int, radial: Sequence[int], attribute_dim: int
    ) -> None:
        super().__init__()
        self.irreps, self.out = tuple(irreps), tuple(out)
        # A last layer, with scalars alone in its output, has no use for some blocks.
        self.sending = tuple(block for block in irreps if paths_from(block, out, l_max))
        paths = [
            Path(n, l2, l3, target)
            for n, block in enumerate(self.sending)
            for l3, l2, target in paths_from(block, out, l_max)
        ]
        self.convolution = SteerableConvolution([(block.l, block.mul) for block in self.sending], paths)
        self.radial = RadialNet([*radial, self.convolution.weight_size], math.sqrt(2), normal=False)
        channels = [block.mul for block in self.sending]
        self.mix_in = Mix(channels, channels)
        self.mix_out = Mix(self.convolution.out_channels, [block.mul for block in out])
        self.self_connection = SelfConnection(irreps, out, attribute_dim) if attribute_dim else None

    def forward(self, h: Blocks, basis: Tensor, near: Neighbourhood, atoms: Atoms) -> Blocks:
        """Blocks of `irreps` to blocks of `out`; `basis` as `near` spreads it."""
        mixed = self.mix_in([x for block, x in zip(self.irreps, h, strict=True) if block in self.sending])
        arrived = self.convolution([x * atoms.norm for x in mixed], basis, self.radial, near)
        result = self.mix_out(arrived)
        if self.self_connection is None:
            return result
        return [a + b for a, b in zip(result, self.self_connection(h, atoms), strict=True)]


class Layer(nn.Module):
    """A convolution and its nonlinearity.

    Args:
        irreps: of the input.
        hidden: irreps wanted; those that cannot be reached from the input are left out.
        l_max: degree of the harmonics.
        attribute_dim: see `Convolution`.
        options: of the network.
    """

    def __init__(
        self, irreps: Sequence[Block], hidden: Sequence[Block], l_max: int, attribute_dim: int, options: NequIPOptions
    ) -> None:
        super().__init__()
        kept = [b for b in hidden if any(paths_from(a, [b], l_max) for a in irreps)]
        self.irreps = tuple(kept)  # of the output
        self.gated = tuple(b for b in kept if b.l) if options.nonlinearity == "gate" else ()
        gates = sum(b.mul for b in self.gated)
        before = [Block(b.l, b.p, b.mul + gates) if b.scalar else b for b in kept]
        out = sorted(before, key=lambda b: b.irrep)
        self.conv = Convolution(irreps, out, l_max, (options.num_bessel, *options.radial), attribute_dim)
        self.norm_only = options.nonlinearity == "norm"
        self.residual = options.residual and tuple(irreps) == self.irreps

    def forward(self, h: Blocks, basis: Tensor, near: Neighbourhood, atoms: Atoms) -> Blocks:
        """Blocks of the input to blocks of `irreps`; the rest as for `Convolution`."""
        blocks = self.conv(h, basis, near, atoms)
        found = dict(zip((b.irrep for b in self.conv.out), blocks, strict=True))
        out = self._norm(found) if self.norm_only else self._gate(found)
        return [a + b for a, b in zip(h, out, strict=True)] if self.residual else out

    def _gate(self, x: dict[tuple[int, int], Tensor]) -> Blocks:
        """Scalars through SiLU (even) or tanh (odd, which keeps them odd); the others times gates, even scalars too."""
        channels = [b.mul for b in self.gated]
        even = activate("silu", x[0, 1])
        scalars, *gates = even.split([even.shape[-1] - sum(channels), *channels], dim=-1)
        odd = [activate("tanh", x[0, -1])] if (0, -1) in x else []
        return [scalars, *odd, *(x[b.irrep] * gate for b, gate in zip(self.gated, gates, strict=True))]

    def _norm(self, x: dict[tuple[int, int], Tensor]) -> Blocks:
        """Each irrep keeps its direction, its norm goes through SiLU."""
        norms = {key: value.square().sum(1, keepdim=True).clamp(min=1e-16).sqrt() for key, value in x.items()}
        return [x[b.irrep] * torch.sigmoid(norms[b.irrep]) for b in self.irreps]  # silu(n) / n


class NequIP(nn.Module):
    """The potential.

    Args:
        species: chemical symbols of the elements it knows.
        cutoff: r_max in Å.
        num_layers: T.
        l_max: highest degree of harmonics and features.
        num_features: channels of each irrep, or one number per degree 0 to l_max.
        parity: features of both parities at each degree; False keeps those of the harmonics, (-1)^l, half the work.
        mean_neighbors: mean number of neighbours in the training data, or one per species of the sender.
        scale: of the network's output, usually the root mean square force; or one per species.
        shift: energy of an isolated atom, or the mean energy per atom; or one per species.
        options: what else varies.

    Raises:
        InputError: species or values per species that do not fit; a sample with an unknown element or graph field.
    """

    norm: Tensor

    def __init__(
        self,
        species: Sequence[str],
        cutoff: float = 5.0,
        num_layers: int = 4,
        l_max: int = 1,
        num_features: int | Sequence[int] = 32,
        parity: bool = True,
        mean_neighbors: PerSpecies = 1.0,
        scale: PerSpecies = 1.0,
        shift: PerSpecies = 0.0,
        options: NequIPOptions = NequIPOptions(),
    ) -> None:
        super().__init__()
        self.options, self.l_max, self.cutoff = options, l_max, cutoff
        self.species = Species(species)
        self.elements = tuple(self.species.numbers)
        neighbors = self.species.values(mean_neighbors, "mean_neighbors")
        if num_layers < 1 or not bool((neighbors > 0).all()):
            got = f"num_layers {num_layers}, mean_neighbors {mean_neighbors}"
            raise InputError("num_layers or mean_neighbors", where="NequIP", expected="positive numbers", got=got)
        norm = neighbors.rsqrt()
        self.register_buffer("norm", norm[:, None], persistent=False)
        self.basis = RadialBasis(cutoff, self.species.pair_cutoffs(cutoff, options.pair_cutoffs), options)

        hidden = _hidden_irreps(l_max, num_features, parity)
        type_dim = options.type_dim or hidden[0].mul
        self.type_embedding = nn.Parameter(torch.randn(len(species), type_dim))
        fields = options.graph_fields.items()
        self.field_embeddings = nn.ParameterDict({k: torch.randn(high - low + 1, d) for k, (low, high, d) in fields})
        width = type_dim + sum(d for _, (_, _, d) in fields)
        irreps: Sequence[Block] = [Block(0, 1, width)]
        layers = []
        for t in range(num_layers):
            wanted = hidden if t < num_layers - 1 else hidden[:1]
            attributes = width if t or options.first_self_connection else 0
            layers.append(Layer(irreps, wanted, l_max, attributes, options))
            irreps = layers[-1].irreps
        self.layers = nn.ModuleList(layers)
        self.readout = RadialNet([irreps[0].mul, *options.readout, 1], math.sqrt(2), normal=False)
        per_species = (self.species.values(scale, "scale"), self.species.values(shift, "shift"))
        self.scale_shift = ScaleShift(*per_species, options)
        self.zbl = Repulsion(self.elements, _COULOMB[options.zbl], _ZBL) if options.zbl != "none" else None
        self._edges = EdgeCache()

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """Energies (module docstring for shapes)."""
        dtype = self.type_embedding.dtype
        species = self.species(sample.z)
        batch, graphs = graph_of_nodes(sample)
        edges = self._edges(sample.edge_index, species.shape[0], dtype, copies=1)
        receiver, sender = species[edges.receivers.node], species[edges.senders.node]

        r, unit = _geometry(sample, edges)
        x, basis = self.basis(r, receiver * len(self.species) + sender)
        near = Neighbourhood.build(edges, spherical_harmonics(unit, self.l_max).to(dtype))
        basis = near.spread(basis.to(dtype))

        h, kinds = self._embed(sample, species, batch)
        atoms = Atoms(kinds, h[kinds.example], self.norm[species].to(dtype)[:, None])
        blocks = [h[:, None]]
        for layer in self.layers:
            blocks = layer(blocks, basis, near, atoms)
        energy = self.scale_shift(self.readout(blocks[0][:, 0]).squeeze(-1), species)
        if self.zbl is not None:
            energy = energy + edges.sum(self.zbl(r, receiver, sender) * polynomial_envelope(x, 6)).squeeze(-1)
        total = energy.new_zeros(graphs).index_add(0, batch, energy)
        return {"energy": total, "atom_energy": energy}

    def _embed(self, sample: Data, species: Tensor, batch: Tensor) -> tuple[Tensor, Kinds]:
        """What describes each atom, [N, F]: the features before the first layer; and the atoms by kind."""
        parts, kind, number = [F.embedding(species, self.type_embedding)], species, len(self.species)
        for name, (low, high, _) in self.options.graph_fields.items():
            value = sample.get(name)
            if value is None or (not traced() and bool(((value < low) | (value > high)).any())):
                got = "none" if value is None else value.flatten().tolist()
                raise InputError("graph field", where=name, expected=f"a whole number from {low} to {high}", got=got)
            index = value.flatten().long()[batch] - low
            parts.append(F.embedding(index, self.field_embeddings[name]))
            kind, number = kind * (high - low + 1) + index, number * (high - low + 1)
        return torch.cat(parts, dim=1), Kinds.sort(kind, number)


def _geometry(sample: Data, edges: Edges) -> tuple[Tensor, Tensor]:
    """Lengths [E, 1] and unit vectors [E, 3] of r_ij, in float64; a zero vector for coincident atoms."""
    pos = sample.pos.double()
    r = edges.from_senders(pos) - edges.from_receivers(pos)
    if sample.get("edge_shift") is not None:
        r = r + sample.edge_shift.double()
    distance = length(r, _COINCIDENT)
    return distance, torch.where(distance > _COINCIDENT, r / distance, 0.0)


def _hidden_irreps(l_max: int, num_features: int | Sequence[int], parity: bool) -> list[Block]:
    """Degrees ascending; at each, even before odd."""
    channels = [num_features] * (l_max + 1) if isinstance(num_features, int) else list(num_features)
    if l_max < 0 or len(channels) != l_max + 1 or channels[0] < 1:
        raise InputError("num_features", where="NequIP", expected=f"{l_max + 1} numbers", got=num_features)
    both = [Block(d, p, c) for d, c in enumerate(channels) for p in (1, -1) if c]
    return [b for b in both if parity or b.p == harmonic_parity(b.l)]


ENTRY = Entry(
    name="nequip",
    title="Neural Equivariant Interatomic Potential",
    model=NequIP,
    citation=Citation(
        key="batzner2022nequip",
        authors=(
            "Batzner, Simon and Musaelian, Albert and Sun, Lixin and Geiger, Mario and Mailoa, Jonathan P. and "
            "Kornbluth, Mordechai and Molinari, Nicola and Smidt, Tess E. and Kozinsky, Boris"
        ),
        title=("E(3)-Equivariant Graph Neural Networks for Data-Efficient and Accurate Interatomic Potentials"),
        venue="Nature Communications",
        year=2022,
        arxiv="2101.03164",
    ),
    symmetry="E(3)",
    needs=("pos", "z", "edge_index"),
    gives=("energy", "atom_energy"),
)
