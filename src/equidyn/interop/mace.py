"""MACE: records and weights of mace-torch 0.3.

The symmetric contraction is folded: the original's stored coupling tensors, whatever basis or sign convention they were
made in, are symmetrised and expressed in our independent polynomials, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.errors import InputError, unknown_name
from equidyn.interop.golden import Record
from equidyn.models.mace import (
    MACE,
    EnergyReference,
    Interaction,
    Layer,
    LinearReadout,
    MACEOptions,
    MLPReadout,
    NonlinearInteraction,
    PairNet,
)
from equidyn.ops.cutoff import polynomial_envelope
from equidyn.ops.radial import length
from equidyn.ops.so3 import spherical_harmonics
from equidyn.ops.symmetric_contraction import SymmetricContraction, equivariant_polynomials, symmetrised

_BLOCKS = {
    "RealAgnosticInteractionBlock": "plain",
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticDensityInteractionBlock": "density",
    "RealAgnosticDensityResidualInteractionBlock": "density_residual",
    "RealAgnosticResidualNonLinearInteractionBlock": "nonlinear",
}
_READOUTS = {"NonLinearReadoutBlock": False, "NonLinearBiasReadoutBlock": True}
_RADIAL = {"bessel": "bessel", "gaussian": "gaussian", "chebyshev": "chebyshev_raw"}

ARGUMENTS: dict[str, Any] = {
    "class": "ScaleShiftMACE",
    "r_max": ...,
    "num_bessel": 8,
    "num_polynomial_cutoff": 5,
    "max_ell": 3,
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
    "num_interactions": 2,
    "num_elements": None,
    "hidden_irreps": ...,
    "MLP_irreps": "16x0e",
    "atomic_energies": ...,
    "avg_num_neighbors": ...,
    "atomic_numbers": ...,
    "correlation": 3,
    "gate": "silu",
    "pair_repulsion": False,
    "apply_cutoff": True,
    "use_reduced_cg": False,
    "use_so3": False,
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "use_embedding_readout": False,
    "distance_transform": "None",
    "edge_irreps": None,
    "use_edge_irreps_first": False,
    "radial_MLP": None,
    "radial_type": "bessel",
    "heads": None,
    "cueq_config": None,
    "embedding_specs": None,
    "oeq_config": None,
    "lammps_mliap": False,
    "readout_cls": "NonLinearReadoutBlock",
    "keep_last_layer_irreps": False,
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
}
"""Constructor arguments of the original, with its defaults."""

_REFUSED = (
    "use_so3",
    "use_embedding_readout",
    "cueq_config",
    "embedding_specs",
    "oeq_config",
    "keep_last_layer_irreps",
)


def build(given: Mapping[str, Any], where: object) -> MACE:
    """Our model for the original's constructor arguments (all of `ARGUMENTS`).

    Raises:
        InputError: an option that we do not have.
    """
    return MACE(**our_arguments(given, where))


def our_arguments(given: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The original's constructor arguments as ours.

    Raises:
        InputError: an option that we do not have.
    """
    for name in _REFUSED:
        if given[name]:
            raise InputError(
                "option of MACE that is not supported", where=where, expected=f"no {name}", got=given[name]
            )
    hidden = _channels(given["hidden_irreps"], where)
    if len(set(hidden)) > 1:
        raise InputError("hidden_irreps", where=where, expected="equal numbers of channels", got=given["hidden_irreps"])
    edge = given["edge_irreps"]
    options = MACEOptions(
        first_block=_known("interaction", given["interaction_cls_first"], _BLOCKS, where),
        block=_known("interaction", given["interaction_cls"], _BLOCKS, where),
        radial=_known("radial basis", given["radial_type"] or "bessel", _RADIAL, where),
        num_radial=given["num_bessel"],
        transform=_known(
            "transform", given["distance_transform"], {"None": "none", "Agnesi": "agnesi", "Soft": "soft"}, where
        ),
        cutoff_power=int(given["num_polynomial_cutoff"]),
        late_cutoff=not given["apply_cutoff"],
        radial_hidden=tuple(given["radial_MLP"] or (64, 64, 64)),
        edge_channels=None if edge is None else tuple(_channels(edge, where)),
        edge_channels_first=given["use_edge_irreps_first"],
        agnostic_product=given["use_agnostic_product"],
        readout_hidden=sum(_channels(given["MLP_irreps"], where)),
        readout_mid=_known("readout", given["readout_cls"], _READOUTS, where),
        last_readout_only=given["use_last_readout_only"],
        activation=_known(
            "activation", given["gate"], {k: k for k in ("silu", "tanh", "sigmoid", "abs")} | {"None": "none"}, where
        ),
        repulsion=given["pair_repulsion"],
    )
    shifted = given["class"].endswith("ScaleShiftMACE")
    correlation = given["correlation"]
    return {
        "elements": [int(z) for z in given["atomic_numbers"]],
        "channels": hidden[0],
        "hidden_l": len(hidden) - 1,
        "num_layers": given["num_interactions"],
        "cutoff": float(given["r_max"]),
        "sh_l": given["max_ell"],
        "correlation": correlation if isinstance(correlation, int) else tuple(correlation),
        "neighbours": float(given["avg_num_neighbors"]),
        "reference": EnergyReference(
            _plain(given["atomic_energies"], len(given["heads"] or [0])),
            given["atomic_inter_scale"] if shifted else 1.0,
            given["atomic_inter_shift"] if shifted else 0.0,
        ),
        "options": options,
    }


def _known(kind: str, name: object, known: Mapping[str, Any], where: object) -> Any:
    name = str(name).rsplit(".", 1)[-1]
    if name not in known:
        raise unknown_name(kind, name, known, where=where)
    return known[name]


def _plain(energies: Any, heads: int) -> Any:
    """Atomic energies [S] or [heads, S]; one row where all heads share them."""
    table = np.asarray(energies, dtype=np.float64)
    table = np.broadcast_to(np.atleast_2d(table), (max(heads, len(np.atleast_2d(table))), table.shape[-1]))
    return table.tolist()


def _channels(irreps: str, where: object) -> list[int]:
    """Channels per l of irreps such as "8x0e + 8x1o".

    Raises:
        InputError: another parity than (-1)^l, or an l out of order.
    """
    found = re.findall(r"(?:(\d+)x)?(\d+)([eo])", str(irreps))
    if not found or any(int(ell) != i or p != "eo"[i % 2] for i, (_, ell, p) in enumerate(found)):
        raise InputError("irreps", where=where, expected="natural parities 0e + 1o + 2e ...", got=irreps)
    return [int(mul or 1) for mul, _, _ in found]


# Weights -------------------------------------------------------------------------------------------------------------

# Constants and empty entries of the original's state.
_IGNORED = re.compile(
    r"(atomic_numbers|r_max|num_interactions|.*\.output_mask|.*conv_tp\.weight|.*_w3j_\w+|.*_zeroed|.*U_matrix_\w+"
    r"|radial_embedding\..*|pair_repulsion_fn\..*|atomic_energies_fn\..*|scale_shift\..*)"
)


class _State:
    """The original's state; remembers what has been read."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self.params = params
        self.read: set[str] = set()

    def take(self, name: str) -> Tensor:
        if name not in self.params:
            raise InputError("missing parameter", where="state of MACE", expected=name)
        self.read.add(name)
        return self.params[name]

    def fill(self, name: str, targets: list[Tensor], shapes: list[tuple[int, ...]] | None = None) -> None:
        """Cut a flat tensor into ours; `shapes` are the original's, (in, S, out), where ours are (S, in, out)."""
        value = self.take(name).flatten()
        sizes = [t.numel() for t in targets]
        if len(value) != sum(sizes):
            raise InputError("shape", where=name, expected=f"{sum(sizes)} numbers", got=len(value))
        for number, (target, part) in enumerate(zip(targets, value.split(sizes), strict=True)):
            part = part.view(shapes[number]).transpose(0, 1) if shapes else part.view(target.shape)
            target.copy_(part)

    def leftover(self) -> list[str]:
        rest = (name for name, value in self.params.items() if name not in self.read and value.numel())
        return sorted(name for name in rest if not _IGNORED.fullmatch(name))


@torch.no_grad()
def load(model: MACE, params: Mapping[str, Tensor]) -> None:
    """Fill our model with the original's state.

    Raises:
        InputError: a parameter is missing, left over, or does not fit.
    """
    state = _State(params)
    _check_constants(model, params)
    state.fill("node_embedding.linear.weight", [model.embedding])
    for t, layer in enumerate(_layers(model)):
        _load_interaction(state, f"interactions.{t}", layer.interaction)
        for ell, _ in enumerate(layer.update.weights):
            name = f"products.{t}.symmetric_contractions.contractions.{ell}"
            _load_contraction(state, name, layer.product, ell)
        state.fill(f"products.{t}.linear.weight", list(layer.update.weights))
    for k, readout in enumerate(model.readouts):
        _load_readout(state, f"readouts.{k}", readout)
    if rest := state.leftover():
        raise InputError("parameters without a counterpart", where="state of MACE", got=rest[:3])


def _check_constants(model: MACE, params: Mapping[str, Tensor]) -> None:
    """Refuse a state whose constants differ from what the constructor arguments say."""
    n = torch.arange(1, model.radial.size + 1, dtype=torch.float64)
    expected: dict[str, Tensor] = {
        "radial_embedding.bessel_fn.bessel_weights": n * torch.pi / model.cutoff,
        "radial_embedding.cutoff_fn.p": torch.tensor(model.cutoff_power),
        "r_max": torch.tensor(model.cutoff),
    }
    for name, value in expected.items():
        if name in params and not torch.allclose(params[name].double(), value.double(), rtol=1e-6):
            raise InputError("constant", where=name, expected=value.tolist(), got=params[name].tolist())


def _layers(model: MACE) -> list[Layer]:
    return [layer for layer in model.layers if isinstance(layer, Layer)]


def _load_interaction(state: _State, name: str, block: Interaction | NonlinearInteraction) -> None:
    state.fill(f"{name}.linear_up.weight", list(block.up.weights))
    if isinstance(block, NonlinearInteraction):
        for theirs, mix in (("linear_1", block.mix), ("linear_res", block.bypass), ("linear_2", block.out)):
            state.fill(f"{name}.{theirs}.weight", list(mix.weights))
        state.fill(f"{name}.skip_tp.weight", list(block.skip.weights))
        for end in ("source", "target"):
            state.fill(f"{name}.{end}_embedding.weight", [getattr(block, end)])
        for number in ("alpha", "beta"):
            state.fill(f"{name}.{number}", [getattr(block, number)])
        _load_pair_net(state, f"{name}.conv_tp_weights.net", block.radial)
        _load_pair_net(state, f"{name}.density_fn.net", block.density)
        return
    state.fill(f"{name}.linear.weight", list(block.mix.weights))
    shapes: list[tuple[int, ...]] = [(w.shape[1], w.shape[0], w.shape[2]) for w in block.skip.weights]
    state.fill(f"{name}.skip_tp.weight", list(block.skip.weights), shapes)
    for k, weight in enumerate(block.radial.weights):
        state.fill(f"{name}.conv_tp_weights.layer{k}.weight", [weight])
    if block.density is not None:
        state.fill(f"{name}.density_fn.layer0.weight", list(block.density.weights))


def _load_pair_net(state: _State, name: str, net: PairNet) -> None:
    for number, module in enumerate([net.first, *net.rest]):
        for kind, parameter in module.named_parameters():
            state.fill(f"{name}.{number}.{kind}", [parameter])


def _load_readout(state: _State, name: str, readout: nn.Module) -> None:
    if isinstance(readout, LinearReadout):
        state.fill(f"{name}.linear.weight", list(readout.out.weights))
    if not isinstance(readout, MLPReadout):
        return
    parts = {"linear_1": readout.inner, "linear_mid": readout.mid, "linear_2": readout.out}
    layers = [(theirs, mix) for theirs, mix in parts.items() if mix is not None]
    for theirs, mix in layers:
        state.fill(f"{name}.{theirs}.weight", list(mix.weights))
    for (theirs, _), bias in zip(layers[1:], readout.biases, strict=False):
        state.fill(f"{name}.{theirs}.bias", [bias])


def _load_contraction(state: _State, name: str, product: SymmetricContraction, ell: int) -> None:
    """Fold the couplings and weights of all degrees of one l."""
    lmax, first = len(product.l_sizes) - 1, 0
    for group_l, degree in product.groups:
        ours = equivariant_polynomials(lmax, degree, group_l)
        rows = slice(first, first + len(ours))
        first += len(ours)
        if group_l != ell:
            continue
        lower = product.degree - 1 - degree
        weight = state.take(f"{name}.weights_max" if lower < 0 else f"{name}.weights.{lower}")
        zeroed = state.params.get(f"{name}.weights_{'max' if lower < 0 else lower}_zeroed")
        fold = _fold(state.take(f"{name}.U_matrix_{degree}"), ours, ell, name).to(weight)
        value = torch.einsum("pk,skc->spc", fold, weight)
        if value.shape != product.weight[:, rows].shape:
            raise InputError("shape", where=name, expected=tuple(product.weight[:, rows].shape), got=tuple(value.shape))
        product.weight[:, rows] = 0.0 if zeroed is not None and bool(zeroed) else value


def _fold(coupling: Tensor, ours: np.ndarray, ell: int, where: str) -> Tensor:
    """The original's paths [.., K] in terms of our polynomials: [P, K]."""
    table = coupling.double().numpy()
    table = table if ell else table[None]
    flat = np.moveaxis(table, -1, 0).reshape(-1, *table.shape[1:-1])
    theirs = symmetrised(flat).reshape(table.shape[-1], -1)
    basis = ours.reshape(len(ours), -1)
    fold = np.linalg.lstsq(basis.T, theirs.T, rcond=None)[0]
    if np.abs(basis.T @ fold - theirs.T).max() > 1e-5:  # a float32 file holds about seven digits
        raise InputError("couplings that do not rotate as they should", where=where, expected=f"L = {ell}")
    return torch.from_numpy(fold)


# Records -------------------------------------------------------------------------------------------------------------


def replay(record: Record) -> dict[str, Tensor]:
    """Every output of the record, computed by our model."""
    given = record.options(**ARGUMENTS)
    model = build(given, record.path).to(record.dtype)
    load(model, record.params)
    trace = _Trace(model)
    sample, strain = record_sample(record)
    out = model(sample)
    forces, slope = torch.autograd.grad(out["energy"].sum(), [sample.pos, strain])
    reference = trace.reference_energy(sample)
    cell = record.inputs["cell"].view(-1, 3, 3)
    results = {
        "energy": out["energy"],
        "node_energy": out["atom_energy"],
        "forces": -forces,
        "virials": -slope,
        "stress": slope / torch.linalg.det(cell).abs()[:, None, None],
        "interaction_energy": out["energy"] - _total(reference, sample),
    }
    parts = [reference, *trace.energies(sample)]
    results["contributions"] = torch.stack([_total(part, sample) for part in parts], dim=1)
    return results | trace.outputs(sample)


def _total(per_atom: Tensor, sample: Data) -> Tensor:
    return per_atom.new_zeros(int(sample.batch.max()) + 1).index_add(0, sample.batch, per_atom)


def record_sample(record: Record) -> tuple[Data, Tensor]:
    """The record's graphs under a strain of zero, and that strain [G, 3, 3]."""
    given = record.inputs
    elements = record.params["atomic_numbers"]
    strain = given["positions"].new_zeros(len(given["ptr"]) - 1, 3, 3, requires_grad=True)
    symmetric = (strain + strain.mT) / 2
    pos, shift, batch = given["positions"], given["shifts"], given["batch"]
    pos = pos + torch.einsum("na,nab->nb", pos, symmetric[batch])
    edge_batch = batch[given["edge_index"][1]]
    shift = shift + torch.einsum("ea,eab->eb", shift, symmetric[edge_batch])
    sample = Data(
        pos=pos.requires_grad_(),
        z=elements[given["node_attrs"].argmax(1)],
        edge_index=given["edge_index"],
        edge_shift=-shift,  # ours points from the receiver to the sender's image
        batch=batch,
        head=given.get("head", torch.zeros(len(strain), dtype=torch.long)),
    )
    return sample, strain


class _Trace:
    """The intermediate tensors of one call of a model, under the original's names and in its layout."""

    def __init__(self, model: MACE) -> None:
        self.model = model
        self.seen: dict[str, Any] = {}
        for t, layer in enumerate(_layers(model)):
            self._watch(layer, f"product{t}")
            self._watch(layer.interaction, f"interaction{t}")
        for k, readout in enumerate(model.readouts):
            self._watch(readout, f"readout{k}")

    def _watch(self, module: nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _m, _i, out: self.seen.__setitem__(name, out))

    def _row(self, sample: Data) -> Tensor:
        return self.model.prepare(sample)[0].kinds.inverse

    def outputs(self, sample: Data) -> dict[str, Tensor]:
        """All intermediates that records hold."""
        model, row, named = self.model, self._row(sample), {}
        for name, value in self.seen.items():
            if name.startswith("interaction"):
                a, skip = value
                named[f"{name}.0"] = named[name] = torch.cat(a, dim=1)[row].transpose(1, 2)
                if skip is not None:
                    named[f"{name}.1"] = _flat(skip, row)
            elif name.startswith("product"):
                named[name] = _flat(value, row)
            else:
                named[name] = value[row, 0]
        products = takewhile(lambda name: name in named, (f"product{t}" for t in count()))
        named["node_feats"] = torch.cat([named[name] for name in products], dim=1)
        named["zbl_node_energy"] = self.repulsion(sample)
        graph = model.prepare(sample)[0]
        named["node_embedding"] = (model.embedding / len(model.embedding) ** 0.5)[graph.species][row]
        return named | self._edge_outputs(sample)

    def _edge_outputs(self, sample: Data) -> dict[str, Tensor]:
        model, (sender, receiver) = self.model, sample.edge_index
        vector = sample.pos[receiver] - sample.pos[sender] - sample.edge_shift
        r = length(vector)
        species = model.species(sample.z)
        cut = polynomial_envelope(r / model.cutoff, model.cutoff_power)
        radial = model.radial(r, species[receiver], species[sender])
        return {
            "edge_attrs": spherical_harmonics(vector / r, model.sh_l),
            "edge_feats.0": radial if model.late else radial * cut,
            "edge_feats.1": cut,
        }

    def repulsion(self, sample: Data) -> Tensor:
        """Repulsion energy of each atom."""
        graph, _ = self.model.prepare(sample)
        return self.model.edge_features(sample, graph)[1][graph.kinds.inverse, 0]

    def reference_energy(self, sample: Data) -> Tensor:
        """Isolated-atom energy of each atom."""
        graph, head = self.model.prepare(sample)
        return self.model.reference.atoms.like(sample.pos.double())[head, graph.species][graph.kinds.inverse]

    def energies(self, sample: Data) -> Iterator[Tensor]:
        """Contribution of repulsion and of each readout to the energy of each atom, unscaled, for the graph's head."""
        yield self.repulsion(sample).double()
        row, head = self._row(sample), sample.head[sample.batch]
        for k in range(len(self.model.readouts)):
            yield self.seen[f"readout{k}"][row, 0].gather(1, head[:, None])[:, 0].double()


def _flat(features: list[Tensor], row: Tensor) -> Tensor:
    """Features as the original stores them: per l channels first, flattened."""
    return torch.cat([h[row].transpose(1, 2).flatten(1) for h in features], dim=1)
