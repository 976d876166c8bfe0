"""NequIP: records of the original, version 0.19 (`nequip.model.NequIPGNNModel`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.interop.golden import Record
from equidyn.models.nequip import Convolution, NequIP, NequIPOptions
from equidyn.ops.derivatives import WithForces

# Empty, constant, or rebuilt by us.
_CONSTANT = ("_empty", ".bias", ".output_mask", "tp.weight", "_w3j_", "equivariant_nonlin", "atomic_numbers")
_FIELDS = "type_embed.categorical_graph_field_embed_modules."
_OUR_FIELD = {"charge": "total_charge"}  # the original's "charge" is that of the whole graph


def _parameters(record: Record) -> dict[str, Tensor]:
    """What the original learned, by its name without the prefix `model.func.`."""
    kept = {name: value for name, value in record.params.items() if not any(part in name for part in _CONSTANT)}
    return {name.removeprefix("model.").removeprefix("func."): value for name, value in kept.items()}


def _species(record: Record) -> list[str]:
    """The types as elements; types with other names become hydrogen, helium, ..."""
    names = record.meta["constructor"]["type_names"]
    return list(names) if all(n in atomic_numbers for n in names) else chemical_symbols[1 : len(names) + 1]


def _widths(params: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Hidden widths of a network, from its weights [in, out]."""
    names = sorted((n for n in params if n.startswith(f"{prefix}.mlp.")), key=lambda n: int(n.split(".")[-2]))
    return [params[name].shape[1] for name in names[:-1]]


def _per_type(value: Any, names: list[str], species: list[str]) -> Any:
    return {s: value[n] for s, n in zip(species, names, strict=True)} if isinstance(value, Mapping) else value


def _lowest(config: Any, name: str) -> int | None:
    """Lowest value of a categorical field, in whichever form the configuration names it."""
    if isinstance(config, Mapping):
        found = config.get(name)
        if isinstance(found, (list, tuple)) and all(isinstance(x, int) for x in found):
            return min(found)
        if isinstance(found, Mapping) or name in config.values():
            inner = found if isinstance(found, Mapping) else config
            return next((int(v) for k, v in inner.items() if "min" in k), None)
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        return next((low for part in config if (low := _lowest(part, name)) is not None), None)
    return None


def _graph_fields(record: Record, params: Mapping[str, Tensor]) -> dict[str, tuple[int, int, int]]:
    fields = {}
    for name in (n.removeprefix(_FIELDS).removesuffix(".weight") for n in params if n.startswith(_FIELDS)):
        rows, width = params[f"{_FIELDS}{name}.weight"].shape
        low = _lowest(record.meta["constructor"], name)
        if low is None:
            raise InputError("graph field without its lowest value", where=record.path, got=name)
        fields[_OUR_FIELD.get(name, name)] = (low, low + rows - 1, width)
    return fields


def _pair_term(record: Record) -> Literal["none", "metal", "real"]:
    given = record.meta["constructor"].get("pair_potential")
    if not given:
        return "none"
    if not str(given.get("_target_", "ZBL")).endswith("ZBL") or given.get("units") not in ("metal", "real"):
        raise InputError("pair potential", where=record.path, expected="ZBL in metal or real units", got=given)
    return given["units"]


def _build(record: Record, params: Mapping[str, Tensor]) -> NequIP:
    config, species = record.meta["constructor"], _species(record)
    cutoff, recip = float(config["r_max"]), params["edge_norm._rmax_recip"].double()
    pairs = {}
    if recip.numel() > 1:
        table = recip.reciprocal().clamp(max=cutoff).view(len(species), -1).tolist()
        pairs = {s: dict(zip(species, row, strict=True)) for s, row in zip(species, table, strict=True)}
    type_dim = params["type_embed.embed_module.weight"].shape[1]
    options = NequIPOptions(
        num_bessel=params["bessel_encode.bessel_weights"].numel(),
        trainable_bessel=bool(config.get("bessel_trainable", False)),
        envelope=int(config.get("polynomial_cutoff_p", 6)),
        radial=_widths(params, "layer0_convnet.conv.edge_mlp"),
        type_dim=type_dim,
        readout=_widths(params, "per_atom_energy_readout.mlp_module"),
        nonlinearity=config.get("nonlinearity_type", "gate"),
        residual=bool(config.get("convnet_resnet", False)),
        first_self_connection="layer0_convnet.conv.sc.weight" in params,
        pair_cutoffs=pairs,
        zbl=_pair_term(record),
        graph_fields=_graph_fields(record, params),
    )
    return NequIP(
        species,
        cutoff,
        config.get("num_layers", 4),
        config.get("l_max", 1),
        config.get("num_features", 32),
        config.get("parity", True),
        _per_type(config["avg_num_neighbors"], config["type_names"], species),
        options=options,
    ).to(record.dtype)


def _layers(model: NequIP) -> list[Any]:
    return list(model.layers)


def _radial_order(conv: Convolution) -> Tensor:
    """The original's column for each of our columns of the last radial map; it goes by block, l2, l3."""
    ours = [
        (path.source, path.l_edge, path.l_out, channel)
        for path in conv.convolution.paths
        for channel in range(conv.sending[path.source].mul)
    ]
    place = {key: column for column, key in enumerate(sorted(ours))}
    return torch.tensor([place[key] for key in ours])


def _cut(flat: Tensor, shapes: Sequence[tuple[int, ...]], where: str) -> list[Tensor]:
    """A flat weight as blocks of the given shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) != flat.numel():
        raise InputError("size", where=where, expected=sum(sizes), got=flat.numel())
    return [part.view(shape) for part, shape in zip(flat.flatten().split(sizes), shapes, strict=True)]


def _pairs(model: NequIP, params: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each of our tensors with the original's; what is used is taken out of `params`."""
    recip = model.basis.inverse_cutoff
    pairs: list[tuple[Tensor, Tensor]] = [
        (model.type_embedding, params.pop("type_embed.embed_module.weight")),
        (recip, params.pop("edge_norm._rmax_recip").flatten().expand(len(recip))),
        (model.basis.roots, params.pop("bessel_encode.bessel_weights").flatten()),
    ]
    for name in [n for n in params if n.startswith(_FIELDS)]:
        field = name.removeprefix(_FIELDS).removesuffix(".weight")
        pairs.append((model.field_embeddings[_OUR_FIELD.get(field, field)], params.pop(name)))
    for t, layer in enumerate(_layers(model)):
        conv, theirs = layer.conv, f"layer{t}_convnet.conv"
        mixing = _cut(
            params.pop(f"{theirs}.linear_1.weight"),
            [(b.mul, b.mul) for b in conv.irreps],
            f"{theirs}.linear_1",
        )
        used = [w for w, block in zip(mixing, conv.irreps, strict=True) if block in conv.sending]
        pairs += zip(conv.mix_in.weights, used, strict=True)
        for name, module in (("linear_2", conv.mix_out), ("sc", conv.self_connection)):
            if module is not None:
                where = f"{theirs}.{name}.weight"
                blocks = _cut(params.pop(where), [w.shape for w in module.weights], where)
                pairs += zip(module.weights, blocks, strict=True)
        radial = [params.pop(f"{theirs}.edge_mlp.mlp.{2 * k}.weight") for k in range(len(conv.radial.weights))]
        radial[-1] = radial[-1][:, _radial_order(conv)]
        pairs += zip(conv.radial.weights, radial, strict=True)
    for k, weight in enumerate(model.readout.weights):
        pairs.append((weight, params.pop(f"per_atom_energy_readout.mlp_module.mlp.{2 * k}.weight")))
    for ours, name in ((model.scale_shift.scale, "scales"), (model.scale_shift.shift, "shifts")):
        value = params.pop(f"per_type_energy_scale_shift.{name}", None)
        if value is not None:
            pairs.append((ours, value.flatten().expand(len(ours))))
    if model.zbl is not None:
        model.zbl.coulomb = 2 * float(params.pop("pair_potential._qqr2exesquare"))  # theirs is halved already
    return pairs


def _load(model: NequIP, params: Mapping[str, Tensor]) -> None:
    left = dict(params)
    with torch.no_grad():
        for ours, theirs in _pairs(model, left):
            if ours.shape != theirs.shape:
                raise InputError("shape of a parameter", where="record", expected=ours.shape, got=theirs.shape)
            ours.copy_(theirs)
    if left:
        raise InputError("parameters without a counterpart", where="record", got=sorted(left)[:3])


def _sample(record: Record, numbers: list[int]) -> Data:
    given = record.inputs
    receiver, sender = given["edge_index"]
    sample = Data(
        pos=given["pos"],
        z=torch.tensor(numbers)[given["atom_types"].flatten()],
        edge_index=torch.stack([sender, receiver]),
        batch=given["batch"] if "batch" in given else torch.zeros(len(given["pos"]), dtype=torch.long),
    )
    if "cell" in given:
        sample.cell = given["cell"].view(-1, 3, 3)
        if "edge_cell_shift" in given:
            sample.edge_shift = torch.einsum(
                "ei,eij->ej", given["edge_cell_shift"], sample.cell[sample.batch[receiver]]
            )
    for name in set(given) - {"pos", "edge_index", "batch", "cell", "atom_types", "atomic_numbers", "pbc"}:
        sample[_OUR_FIELD.get(name, name)] = given[name]
    return sample


def _channels_first(blocks: Sequence[Tensor]) -> Tensor:
    """Features in the original's layout: block after block, within each channels before components."""
    return torch.cat([block.mT.flatten(1) for block in blocks], dim=1)


def _watch(model: NequIP, found: dict[str, Tensor]) -> None:
    """Keep what passes between the parts of the model, under the original's names."""

    def keep(module: nn.Module, pick: Any) -> None:
        module.register_forward_hook(lambda _, given, out: found.update(pick(given, out)))

    keep(model.layers[0], lambda given, _: {"type_embed.node_attrs": given[0][0][:, 0]})
    keep(model.layers[0], lambda given, _: {"spharm.edge_attrs": given[2].of_edges()})
    keep(model.basis, lambda _, out: {"edge_norm.normed_edge_lengths": out[0], "factor.edge_embedding": out[1]})
    for t, layer in enumerate(_layers(model)):
        name = f"layer{t}_convnet"
        keep(layer.conv, lambda _, out, n=name: {f"{n}.conv.node_features": _channels_first(out)})
        keep(layer, lambda _, out, n=name: {f"{n}.node_features": _channels_first(out)})
    keep(model.readout, lambda _, out: {"per_atom_energy_readout.atomic_energy": out})
    keep(model.scale_shift, lambda _, out: {"per_type_energy_scale_shift.atomic_energy": out})


def model_of(record: Record) -> NequIP:
    """Our model with the original's arguments and weights, in the dtype of the record."""
    params = _parameters(record)
    model = _build(record, params)
    _load(model, params)
    return model


def replay(record: Record) -> dict[str, Tensor]:
    """Every output of the record, computed by our model."""
    model = model_of(record)
    found: dict[str, Tensor] = {}
    _watch(model, found)
    sample = _sample(record, model.species.numbers)
    out = WithForces(model, stress=True, create_graph=False)(sample)
    energies = {"total_energy": out.pop("energy"), "atomic_energy": out.pop("atom_energy")}
    return found | energies | out | {"pair_potential.atomic_energy": energies["atomic_energy"]}
