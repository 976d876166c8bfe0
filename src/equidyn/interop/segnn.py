"""SEGNN: records of the original's networks (SEGNN and SEConv) and of its particle simulators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from equidyn.core.errors import InputError, unknown_name
from equidyn.interop.golden import Record
from equidyn.models.segnn import (
    MessageProduct,
    SEGNNOptions,
    SteerableInputs,
    SteerableNetwork,
    TensorProduct,
    hidden_irreps,
    join,
)
from equidyn.ops.edges import Edges
from equidyn.ops.steerable import Layout, paths
from equidyn.simulate import get_system, simulate

_ARGUMENTS: dict[str, Any] = {
    "model": "segnn",
    "conv_type": "nonlinear",
    "task": ...,
    "input_irreps": ...,
    "output_irreps": ...,
    "hidden_irreps": None,
    "lmax_h": 1,
    "lmax_attr": 1,
    "hidden_features": 64,
    "subspace_type": "weightbalanced",
    "num_layers": ...,
    "norm": None,
    "pool": "avg",
    "additional_message_irreps": None,
    "training": None,
}
_CONSTANTS = ("output_mask", "num_batches_tracked")  # held by the original, not learned


def replay(record: Record) -> dict[str, Tensor]:
    """Every output of the record, computed by ours."""
    if "sims" in record.meta:
        return _replay_simulators(record)
    given = _arguments(record)
    model = _build(record, given)
    places = _places(model, given)
    params = {k: v for k, v in record.params.items() if not k.endswith(_CONSTANTS) and "_w3j_" not in k}
    _load(model, places, params, record)
    results = _run(model.train(_in_training(record, given)), places, record)
    wrong = "y" in record.outputs and not _close(results["y"], record.outputs["y"])
    if given["norm"] == "batch" and given["training"] is None and wrong:
        # The record does not say whether the batch norms averaged over the batch or used their running averages.
        _load(model, places, params, record)
        results = _run(model.train(not model.training), places, record)
    return results


def _arguments(record: Record) -> dict[str, Any]:
    config = record.meta.get("config", record.meta.get("constructor", {}))
    given = replace(record, meta=record.meta | {"constructor": config}).options(**_ARGUMENTS)
    _one_of(record, given, "model", ("segnn", "seconv"))
    _one_of(record, given, "conv_type", ("linear", "nonlinear"))
    _one_of(record, given, "task", ("node", "graph"))
    _one_of(record, given, "pool", ("avg", "mean", "sum", "add"))
    _one_of(record, given, "subspace_type", ("weightbalanced", "balanced"))
    return given


def _one_of(record: Record, given: dict[str, Any], key: str, names: tuple[str, ...]) -> None:
    if given[key] not in names:
        raise unknown_name(key, str(given[key]), names, where=record.path)


def _build(record: Record, given: dict[str, Any]) -> SteerableNetwork:
    messages = o3.Irreps(given["additional_message_irreps"] or "0x0e")
    if any(mul and ir != o3.Irrep("0e") for mul, ir in messages):
        raise InputError("additional_message_irreps", where=record.path, expected="scalars 0e", got=str(messages))
    hidden = given["hidden_irreps"] or hidden_irreps(
        given["hidden_features"], given["lmax_h"], given["lmax_attr"], given["subspace_type"]
    )
    return SteerableNetwork(
        given["input_irreps"],
        hidden,
        given["output_irreps"],
        lmax_attr=given["lmax_attr"],
        scalars=messages.dim,
        num_layers=given["num_layers"],
        readout=given["task"],
        options=SEGNNOptions(
            conv="segnn" if given["model"] == "segnn" else given["conv_type"],
            norm=given["norm"] if given["norm"] in ("instance", "batch") else "none",
            pool="mean" if given["pool"] in ("avg", "mean") else "sum",
        ),
    ).to(record.dtype)


# Parameters: a flat vector of theirs holds the numbers of several tensors of ours, each number once.


@dataclass(frozen=True)
class _Place:
    """Where the numbers of one of our tensors stand in one of theirs: `ours = theirs.flatten()[index]`."""

    ours: str
    theirs: str
    index: Tensor


def _places(model: SteerableNetwork, given: dict[str, Any]) -> list[_Place]:
    places = _product(model, "embedding", "embedding_layer", given)
    for k, layer in enumerate(model.layers):
        linear_messages = given["model"] == "seconv" and given["conv_type"] == "linear"
        names = {"message_1": "message_layer" if linear_messages else "message_layer_1", "message_2": "message_layer_2"}
        names |= {"update_1": "update_layer_1", "update_2": "update_layer_2"}
        for ours, theirs in names.items():
            if getattr(layer, ours, None) is not None:
                places += _product(model, f"layers.{k}.{ours}", f"layers.{k}.{theirs}", given)
        for ours, theirs in (("norm", "feature_norm"), ("message_norm", "message_norm")):
            if getattr(layer, ours, None) is not None:
                places += _same(model, f"layers.{k}.{ours}", f"layers.{k}.{theirs}")
    places += _product(model, "out_1", "pre_pool1", given) + _product(model, "out_2", "pre_pool2", given)
    if model.readout == "graph":
        for ours, theirs in (("graph_1", "post_pool1"), ("graph_2", "post_pool2")):
            inputs, outputs = model.get_submodule(ours).in_features, model.get_submodule(ours).out_features
            index = torch.arange(inputs * outputs).view(inputs, outputs).T
            places.append(_Place(f"{ours}.weight", f"{theirs}.tp.weight", index))
            places.append(_Place(f"{ours}.bias", f"{theirs}.biases", torch.arange(outputs)))
    return places


def _same(model: nn.Module, ours: str, theirs: str) -> list[_Place]:
    tensors = model.get_submodule(ours).state_dict()
    return [_Place(f"{ours}.{n}", f"{theirs}.{n}", torch.arange(t.numel()).view(t.shape)) for n, t in tensors.items()]


def _product(model: SteerableNetwork, ours: str, theirs: str, given: dict[str, Any]) -> list[_Place]:
    """The places of one tensor product; theirs runs over the pairs of input and output blocks, ours over outputs."""
    module = model.get_submodule(ours)
    if isinstance(module, MessageProduct):
        parts = {f"{ours}.{n}": module.get_submodule(n) for n in ("receivers", "senders", "scalars")}
        inputs = [(f"{ours}.{n}", mul, ir) for n in ("receivers", "senders") for mul, ir in model.hidden.irreps]
        inputs += [(f"{ours}.scalars", model.scalars.dim, o3.Irrep("0e"))]
    else:
        assert isinstance(module, TensorProduct)
        parts = {ours: module}
        repeat = 2 if ours.endswith("update_1") else 1
        irreps = model.source.irreps if ours == "embedding" else model.hidden.irreps
        inputs = [(ours, mul, ir) for _ in range(repeat) for mul, ir in irreps]
    first = next(iter(parts.values()))
    assert isinstance(first, TensorProduct)
    outputs = model.target.irreps if ours == "out_2" and model.readout == "node" else first.target.irreps
    indices = _indices(parts, inputs, outputs, model.lmax_attr, merge=ours not in ("embedding", "out_1", "out_2"))
    places = [_Place(name, f"{theirs}.tp.weight", index) for name, index in indices.items()]
    if first.bias is not None:
        name = f"{next(iter(parts))}.bias"
        places.append(_Place(name, f"{theirs}.biases", torch.arange(first.bias.numel())))
    return places


_Input = tuple[str, int, o3.Irrep]


def _indices(
    parts: Mapping[str, nn.Module], inputs: list[_Input], outputs: o3.Irreps, lmax: int, *, merge: bool
) -> dict[str, Tensor]:
    """Per weight of ours, the position of each number in their flat vector.

    Args:
        parts: our products, by name; their inputs are added.
        inputs: (product, multiplicity, irrep) of each input block in their order.
        outputs: their output irreps.
        lmax: of the attributes.
        merge: neighbouring inputs of one irrep are one block of theirs.
    """
    found = {
        f"{name}.weights.{n}": torch.full(weight.shape, -1)
        for name, part in parts.items()
        for n, weight in enumerate(part.get_parameter(f"weights.{i}") for i in range(len(part.weights)))
    }
    seen: dict[tuple[str, o3.Irrep], int] = {}
    start = 0
    for block in _blocks([entry for entry in inputs if entry[1]], merge=merge):
        ir, width = block[0][2], sum(mul for _, mul, _ in block)
        columns = []
        for name, mul, _ in block:
            columns.append((name, seen.get((name, ir), 0), mul))
            seen[name, ir] = seen.get((name, ir), 0) + mul
        for l2 in range(lmax + 1):
            done: dict[o3.Irrep, int] = {}
            for mul_out, out in outputs:
                row = done.get(out, 0)
                done[out] = row + mul_out
                if not mul_out or l2 not in paths((ir.l, ir.p), lmax, (out.l, out.p)):
                    continue
                index = start + torch.arange(width * mul_out).view(width, mul_out).T
                start += width * mul_out
                taken = 0
                for name, first, mul in columns:
                    part = parts[name]
                    number, column = _column(part, (ir.l, ir.p), l2, (out.l, out.p), lmax)
                    target = found[f"{name}.weights.{number}"]
                    target[row : row + mul_out, column + first : column + first + mul] = index[:, taken : taken + mul]
                    taken += mul
    return found


def _blocks(inputs: list[_Input], *, merge: bool) -> list[list[_Input]]:
    blocks: list[list[_Input]] = []
    for entry in inputs:
        if merge and blocks and blocks[-1][0][2] == entry[2]:
            blocks[-1].append(entry)
        else:
            blocks.append([entry])
    return blocks


def _column(
    part: Any, source: tuple[int, int], l2: int, target: tuple[int, int], lmax: int
) -> tuple[int, int]:
    """Which weight of ours mixes a path, and from which column on."""
    number = next(n for n, block in enumerate(part.target.blocks) if block.irrep == target)
    column = 0
    for block in part.source.blocks:
        for degree in paths(block.irrep, lmax, target):
            if (block.irrep, degree) == (source, l2):
                return number, column
            column += block.mul
    raise InputError("path without a weight", expected=f"{source} x {l2} -> {target}")


def _load(model: nn.Module, places: list[_Place], params: Mapping[str, Tensor], record: Record) -> None:
    ours = model.state_dict(keep_vars=True)
    sizes: dict[str, int] = {}
    for place in places:
        sizes[place.theirs] = sizes.get(place.theirs, 0) + place.index.numel()
    sizes = {name: size for name, size in sizes.items() if size}
    missing, extra = sorted(set(sizes) - set(params)), sorted(set(params) - set(sizes))
    extra = [name for name in extra if params[name].numel()]
    if missing or extra:
        raise InputError("parameters", where=record.path, expected=f"also {missing[:3]}", got=f"in excess {extra[:3]}")
    for name, size in sizes.items():
        if params[name].numel() != size:
            raise InputError("parameter of another size", where=name, expected=size, got=params[name].numel())
    with torch.no_grad():
        for place in places:
            if place.index.numel():
                ours[place.ours].copy_(params[place.theirs].flatten()[place.index])


def _gradients(model: nn.Module, places: list[_Place], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for place in places:
        if place.ours in ours and place.index.numel():
            flat = found.setdefault(place.theirs, torch.zeros_like(params[place.theirs]).flatten())
            gradient = ours[place.ours].grad
            if gradient is not None:
                flat[place.index] = gradient
    return {name: flat.view(params[name].shape) for name, flat in found.items()}


# One run, and what the record looks at on the way.

_GIVEN = ("x", "edge_attr", "node_attr", "additional_message_features")


def _in_training(record: Record, given: dict[str, Any]) -> bool:
    return bool(given["training"]) if given["training"] is not None else bool(record.meta.get("training", False))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


def _run(model: SteerableNetwork, places: list[_Place], record: Record) -> dict[str, Tensor]:
    inputs = {k: record.inputs[k].clone().requires_grad_() for k in _GIVEN if k in record.inputs}
    found: dict[str, Tensor] = {}
    handles = _watch(model, found)
    y = model(_inputs(model, record, inputs))
    for handle in handles:
        handle.remove()
    results = {"y": y} | found
    if "cotangent" in record.inputs:
        (y * record.inputs["cotangent"].view(y.shape)).sum().backward()
        zero = {k: torch.zeros_like(t) if t.grad is None else t.grad for k, t in inputs.items()}
        results |= {f"grad_{k}": g for k, g in zero.items()}
        weights = _gradients(model, places, record.params)
        results |= {f"gradparam_{k}": g for k, g in weights.items()}
        results["param_grad_sqnorm"] = torch.stack([g.square().sum() for g in weights.values()]).sum()[None]
    if "pos" in record.inputs and y.shape == record.inputs["pos"].shape:
        results["pos_pred"] = record.inputs["pos"] + y
    if "x_repo" in record.inputs:
        results["y_repo_centring"] = model(_inputs(model, record, inputs | {"x": record.inputs["x_repo"]}))
    return results


def _inputs(model: SteerableNetwork, record: Record, inputs: Mapping[str, Tensor]) -> SteerableInputs:
    x, edge_index = inputs["x"], record.inputs["edge_index"]
    scalars = inputs.get("additional_message_features")
    if scalars is None:
        scalars = x.new_zeros(edge_index.shape[1], model.scalars.dim)
    graph = record.inputs.get("batch", torch.zeros(len(x), dtype=torch.long))
    edges = Edges.build(edge_index, len(x), x.dtype)
    return SteerableInputs.build(x, scalars, edges, inputs["edge_attr"], inputs["node_attr"], graph)


def _watch(model: SteerableNetwork, found: dict[str, Tensor]) -> list[Any]:
    """Keep what the record calls by these names, in e3nn's layout."""

    def keep(module: nn.Module, name: str, layout: Layout) -> Any:
        def hook(_module: nn.Module, _given: tuple, out: Any) -> None:
            found[name] = layout.to_e3nn(join(out) if isinstance(out, list) else out)

        return module.register_forward_hook(hook)

    handles = [keep(model.embedding, "h_embed", model.hidden)]
    handles += [keep(layer, f"h_layer{k}", model.hidden) for k, layer in enumerate(model.layers)]
    handles.append(keep(model.out_2, "pre_pool2", model.out_2.target))
    if len(model.layers):
        first, conv = model.layers[0], model.options.conv
        names = {"segnn": ["msg1_layer0", "msg2_layer0"], "nonlinear": ["msg1_layer0"], "linear": []}[conv]

        def gated(_module: nn.Module, _given: tuple, out: Tensor) -> None:
            if names:  # the gate of a layer is called in the order of the equations
                found[names.pop(0)] = model.hidden.to_e3nn(out)

        handles.append(first.gate.register_forward_hook(gated))
        if conv != "segnn":
            last = first.message_1 if conv == "linear" else first.message_2
            handles.append(keep(last, "msg1_layer0" if conv == "linear" else "msg2_layer0", first.gate.source))
    return handles


# The simulators.


def _replay_simulators(record: Record) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, sim in record.meta["sims"].items():
        system = get_system(name)
        made = simulate(
            system, 1, bodies=sim["n"], steps=sim["T"], store_every=sim["sample_freq"], seed=sim["seed"], workers=1
        )
        motion = {"loc": made.positions[0], "vel": made.velocities[0]}  # [F, N, 3]
        if name == "gravity":
            assert made.masses is not None
            motion["mass"] = made.masses[0][:, None]
            motion["force"] = _gravity(made.positions[0], made.masses[0], system.law.softening)
        else:
            motion = {key: value.transpose(0, 2, 1) for key, value in motion.items()}
            if made.charges is not None:
                charges = made.charges[0][:, None]
                motion |= {"charges": charges, "edges": charges * charges.T}
            else:
                assert made.couplings is not None
                motion["edges"] = made.couplings[0]
        found |= {f"{name}/{key}": torch.as_tensor(np.ascontiguousarray(value)) for key, value in motion.items()}
    return found


def _gravity(x: np.ndarray, masses: np.ndarray, softening: float) -> np.ndarray:
    """Forces [F, N, 3] at positions [F, N, 3]."""
    r = x[:, None] - x[:, :, None]
    weight = masses[:, None] * masses / ((r**2).sum(-1) + softening**2) ** 1.5
    return (weight[..., None] * r).sum(2)
