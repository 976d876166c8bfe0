"""SEGNN: records of the original's networks (SEGNN and SEConv) and of its particle simulators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from equidyn.core.errors import InputError, unknown_name
from equidyn.interop.golden import Record
from equidyn.models.segnn import SEGNNOptions, SteerableInputs, SteerableNetwork, hidden_irreps
from equidyn.ops.coupling import degrees, paths
from equidyn.ops.edges import Edges
from equidyn.ops.steerable import Block, Layout
from equidyn.ops.steerable_product import MessageProduct, TensorProduct
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
        model.zero_grad()
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
    places = _product(model, "embedding", "embedding_layer")
    for k, layer in enumerate(model.layers):
        linear_messages = given["model"] == "seconv" and given["conv_type"] == "linear"
        names = {"message_1": "message_layer" if linear_messages else "message_layer_1", "message_2": "message_layer_2"}
        names |= {"update_1": "update_layer_1", "update_2": "update_layer_2"}
        for ours, theirs in names.items():
            if getattr(layer, ours, None) is not None:
                places += _product(model, f"layers.{k}.{ours}", f"layers.{k}.{theirs}")
        for ours, theirs in (("norm", "feature_norm"), ("message_norm", "message_norm")):
            if getattr(layer, ours, None) is not None:
                places += _same(model, f"layers.{k}.{ours}", f"layers.{k}.{theirs}")
    places += _product(model, "out_1", "pre_pool1") + _product(model, "out_2", "pre_pool2")
    if model.readout == "graph":
        for ours, theirs in (("graph_1", "post_pool1"), ("graph_2", "post_pool2")):
            outputs, inputs = model.get_parameter(f"{ours}.weight").shape
            index = torch.arange(inputs * outputs).view(inputs, outputs).T
            places.append(_Place(f"{ours}.weight", f"{theirs}.tp.weight", index))
            places.append(_Place(f"{ours}.bias", f"{theirs}.biases", torch.arange(outputs)))
    return places


def _same(model: nn.Module, ours: str, theirs: str) -> list[_Place]:
    tensors = model.get_submodule(ours).state_dict()
    return [_Place(f"{ours}.{n}", f"{theirs}.{n}", torch.arange(t.numel()).view(t.shape)) for n, t in tensors.items()]


def _product(model: SteerableNetwork, ours: str, theirs: str) -> list[_Place]:
    """The places of one tensor product."""
    module: Any = model.get_submodule(ours)
    lmax = model.lmax_attr
    inputs = (model.source if ours == "embedding" else model.hidden).irreps
    outputs = model.target.irreps if ours == "out_2" and model.readout == "node" else _irreps(module.target)
    if isinstance(module, MessageProduct):
        numbers = _numbers((inputs * 2 + o3.Irreps(f"{model.scalars}x0e")).simplify(), lmax, outputs)
        indices = {f"{ours}.{name}": index for name, index in _of_messages(module, lmax, numbers).items()}
        ours, module = f"{ours}.scalars", module.scalars
    else:
        inputs = (inputs * 2).simplify() if ours.endswith("update_1") else inputs
        indices = {f"{ours}.weights.{t}": index for t, index in enumerate(_of_product(module, lmax, inputs, outputs))}
    places = [_Place(name, f"{theirs}.tp.weight", index) for name, index in indices.items()]
    if module.bias is not None:
        places.append(_Place(f"{ours}.bias", f"{theirs}.biases", torch.arange(module.bias.numel())))
    return places


def _irreps(blocks: Sequence[Block]) -> o3.Irreps:
    return o3.Irreps([(block.mul, block.irrep) for block in blocks])


_Numbers = dict[tuple[Any, int, Any], Tensor]


def _numbers(inputs: o3.Irreps, lmax: int, outputs: o3.Irreps) -> _Numbers:
    """For each path (input irrep, l2, output irrep) the positions [input channel, output channel] in their flat vector.

    Theirs runs over input blocks, l2 and output blocks; channels of one irrep are counted over all its blocks.
    """
    channels = lambda irreps, ir: sum(mul for mul, other in irreps if other == ir)  # noqa: E731
    found: _Numbers = {}
    start, above = 0, dict.fromkeys((ir for _, ir in inputs), 0)
    for mul, ir in inputs:
        for l2 in range(lmax + 1):
            left = dict.fromkeys((out for _, out in outputs), 0)
            for count, out in outputs:
                if l2 in degrees((ir.l, ir.p), lmax, (out.l, out.p)):
                    shape = channels(inputs, ir), channels(outputs, out)
                    table = found.setdefault(((ir.l, ir.p), l2, (out.l, out.p)), torch.full(shape, -1))
                    here = (start + torch.arange(mul * count)).view(mul, count)
                    table[above[ir] : above[ir] + mul, left[out] : left[out] + count] = here
                    start += mul * count
                left[out] += count
        above[ir] += mul
    return found


def _of_product(module: TensorProduct, lmax: int, inputs: o3.Irreps, outputs: o3.Irreps) -> list[Tensor]:
    numbers = _numbers(inputs, lmax, outputs)
    firsts = [sum(b.mul for b in module.source[:n] if b.irrep == a.irrep) for n, a in enumerate(module.source)]
    found = []
    for block in module.target:
        columns = [torch.empty(block.mul, 0, dtype=torch.long)]
        for n, l2 in paths(module.source, lmax, block):
            source = module.source[n]
            rows = numbers[source.irrep, l2, block.irrep][firsts[n] : firsts[n] + source.mul]
            columns.append(rows.T)
        found.append(torch.cat(columns, dim=1))
    return found


def _of_messages(module: MessageProduct, lmax: int, numbers: _Numbers) -> dict[str, Tensor]:
    """Their channels of one irrep are the receiver's, then the sender's, then the invariant inputs."""
    found = {}
    for n, source in enumerate(module.source):
        rows = [torch.empty(0, source.mul, dtype=torch.long)]
        for target in module.target:
            for l2 in degrees(source.irrep, lmax, target.irrep):
                table = numbers[source.irrep, l2, target.irrep]
                rows += [table[: source.mul].T, table[source.mul : 2 * source.mul].T]
        found[f"weights.{n}"] = torch.cat(rows)
    first = 2 * sum(block.mul for block in module.source if block.scalar)
    for t, target in enumerate(module.target):
        columns = [numbers[(0, 1), l2, target.irrep][first:].T for l2 in degrees((0, 1), lmax, target.irrep)]
        found[f"scalars.weights.{t}"] = torch.cat([torch.empty(target.mul, 0, dtype=torch.long), *columns], dim=1)
    return found


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
        scalars = x.new_zeros(edge_index.shape[1], model.scalars)
    graph = record.inputs.get("batch", torch.zeros(len(x), dtype=torch.long))
    edges = Edges.build(edge_index, len(x), x.dtype)
    return SteerableInputs.build(x, scalars, edges, inputs["edge_attr"], inputs["node_attr"], graph)


def _watch(model: SteerableNetwork, found: dict[str, Tensor]) -> list[Any]:
    """Keep what the record calls by these names, in e3nn's layout."""

    def keep(module: nn.Module, name: str, layout: Layout) -> Any:
        def hook(_module: nn.Module, _given: tuple, out: list[Tensor]) -> None:
            found[name] = layout.to_e3nn(out)

        return module.register_forward_hook(hook)

    handles = [keep(model.embedding, "h_embed", model.hidden)]
    handles += [keep(layer, f"h_layer{k}", model.hidden) for k, layer in enumerate(model.layers)]
    last = model.target if model.readout == "node" else Layout(_irreps(model.out_2.target))
    handles.append(keep(model.out_2, "pre_pool2", last))
    if len(model.layers):
        first: Any = model.layers[0]
        conv = model.options.conv
        names = {"segnn": ["msg1_layer0", "msg2_layer0"], "nonlinear": ["msg1_layer0"], "linear": []}[conv]

        def gated(_module: nn.Module, _given: tuple, out: list[Tensor]) -> None:
            if names:  # the gate of a layer is called in the order of the equations
                found[names.pop(0)] = model.hidden.to_e3nn(out)

        handles.append(first.gate.register_forward_hook(gated))
        if conv != "segnn":
            last = first.message_1 if conv == "linear" else first.message_2
            handles.append(
                keep(last, "msg1_layer0" if conv == "linear" else "msg2_layer0", Layout(_irreps(first.gate.source)))
            )
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
