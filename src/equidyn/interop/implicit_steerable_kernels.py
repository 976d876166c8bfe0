"""Implicit steerable kernels: records of the original's layers, QM9 network and simulator, of both of its versions.

The original stores its bases of equivariant maps beside the weights; ours are built on the same bases, so that no
convention of its representations needs to be known, and a loaded layer stays equivariant when it is trained on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.interop.golden import Record
from equidyn.models.implicit_steerable_kernels import (
    Block,
    GridConv,
    ImplicitSteerableKernels,
    Kernel,
    KernelOptions,
    PointConv,
)
from equidyn.ops.edges import Edges
from equidyn.ops.fields import Activation, EquivariantLinear, FieldBatchNorm
from equidyn.ops.outer import neighbour_slots
from equidyn.ops.representations import band, size, solid_harmonics, vector_order
from equidyn.simulate.plane import FieldCharges, PlaneSprings, run_plane

Params = Mapping[str, Tensor]
_EPSILON = 1e-5  # of the original's norms


def _below(params: Params, prefix: str) -> dict[str, Tensor]:
    """The parameters under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _only(params: Params, ending: str, default: Tensor | None = None) -> Tensor:
    found = [value for name, value in params.items() if name.endswith(ending)]
    if not found and default is not None:
        return default
    if len(found) != 1:
        raise InputError("parameters of a norm", expected=f"one that ends in {ending}", got=sorted(params)[:4])
    return found[0]


# Linear maps: the dense matrix, spread over the stored bases.

Part = tuple[Tensor, Tensor]
"""A basis [K, d_out, d_in] and the weights [copies, n, K] of the n input fields that it acts on."""


def _fit(block: Tensor, basis: Tensor) -> tuple[float, Tensor]:
    """Relative error and weights [copies, K] of a block [copies, d_out, d_in] on a basis [K, d_out, d_in]."""
    wanted, columns = block.flatten(1).T, basis.flatten(1).T
    weights = torch.linalg.lstsq(columns, wanted, driver="gelsd").solution
    return float((columns @ weights - wanted).norm() / wanted.norm().clamp(min=1e-300)), weights.T


def _parts(matrix: Tensor, bases: list[Tensor], size: int) -> list[Part]:
    """Cut a matrix [copies * size, C] along its columns into parts, each on one of the bases."""
    blocks, column = matrix.view(len(matrix) // size, size, matrix.shape[1]), 0
    found: list[Part] = []
    while column < matrix.shape[1]:
        for basis in sorted(bases, key=lambda basis: -basis.shape[2]):
            block = blocks[:, :, column : column + basis.shape[2]]
            if block.shape[2] == basis.shape[2] and block.any() and (fit := _fit(block, basis))[0] < 1e-5:
                weights = fit[1][:, None]
                break
        else:
            if blocks[:, :, column].any():
                raise InputError("linear map", where=f"column {column}", expected="a combination of its stored bases")
            basis, weights = (
                matrix.new_zeros(0, size, 1),
                matrix.new_zeros(len(blocks), 1, 0),
            )  # nothing leads from here
        if found and found[-1][0] is basis:
            found[-1] = basis, torch.cat([found[-1][1], weights], dim=1)
        else:
            found.append((basis, weights))
        column += basis.shape[2]
    return found


def _joined(parts: list[Part]) -> Part:
    """Several parts as a single field."""
    fields = [(basis, weights[:, k]) for basis, weights in parts for k in range(weights.shape[1])]
    width = sum(basis.shape[2] for basis, _ in fields)
    joined, column = [], 0
    for basis, _ in fields:
        joined.append(torch.nn.functional.pad(basis, (column, width - column - basis.shape[2])))
        column += basis.shape[2]
    return torch.cat(joined), torch.cat([weights for _, weights in fields], dim=1)[:, None]


def _span(rows: Tensor) -> Tensor:
    """An orthonormal basis [d, T] of what rows [R, d] span."""
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    return vectors[values > 1e-6].T


def _linear(params: Params, position: Position | None = None) -> EquivariantLinear:
    """An equivariant map of ours; the first map of a network takes its position as `position` says."""
    if "matrix" not in params:
        raise InputError(
            "linear map of the record", expected="its matrix (a state of evaluation mode)", got=list(params)
        )
    bases = [value.squeeze(-1).double() for name, value in sorted(params.items()) if name.endswith("sampled_basis")]
    matrix = params["matrix"].double()
    size = bases[0].shape[1]
    offset = params.get("expanded_bias", torch.zeros(len(matrix))).double()
    if position is None:
        parts = _parts(matrix, bases, size)
    else:
        first = matrix[:, : len(position.constant)]
        basis, weights = _joined(_parts(first, bases, size))
        offset = offset + first @ position.constant
        parts = [(basis[:, :, position.order] * position.scale, weights)]
        parts += _parts(matrix[:, len(position.constant) :], bases, size)
    expansion = params.get("bias_expansion", matrix.new_zeros(len(matrix), 0)).double()
    invariant = _span(torch.cat([expansion, offset[:, None]], dim=1).T.reshape(-1, size))
    layer = EquivariantLinear(len(matrix) // size, [(w.shape[1], b) for b, w in parts], invariant).double()
    with torch.no_grad():
        for weight, (_, value) in zip(layer.weights, parts, strict=True):
            weight.copy_(value)
        if layer.bias is not None:
            layer.bias.copy_(offset.view(-1, size) @ invariant)
    return layer


def _scale(layer: EquivariantLinear, factors: Tensor | float) -> None:
    """Multiply the output fields of a map by factors [copies]."""
    factors = torch.as_tensor(factors, dtype=torch.float64)
    with torch.no_grad():
        for weight in layer.weights:
            weight.mul_(factors.view(-1, 1, 1))
        if layer.bias is not None:
            layer.bias.mul_(factors.view(-1, 1))


def _norm(params: Params) -> FieldBatchNorm:
    mean = _only(params, "_running_mean")
    norm = FieldBatchNorm(len(mean), _only(params, "_change_of_basis")).double()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(_only(params, f"_{name}"))
    return norm


def _activation(params: Params) -> Activation:
    """Sampled ELU, or the plain ReLU of a group whose fields are sampled as they are."""
    if "A" in params:
        return Activation(params["A"], params["Ainv"], "elu")
    return Activation(torch.eye(1), torch.eye(1), "relu")


# Kernels.


class Position:
    """How the first map takes the relative position: the original's columns `order`, times `scale`, read our harmonics.

    Version 2 reads (x, y, z). Version 1 reads normed harmonic polynomials, of order zero too, of normed coordinates;
    outside training all of that is factors, and a constant.

    Attributes:
        order: columns that our harmonics are.
        scale: factors of these columns.
        constant: what the original's columns hold beside that.
        signs: of the original's harmonics of each order from zero; empty in version 2.
        stretch: of the coordinates before the harmonics.
    """

    def __init__(self, params: Params, dimension: int) -> None:
        self.signs: list[float] = []
        self.stretch = 1.0
        self.order = vector_order(dimension)
        self.scale, self.constant = (torch.full((dimension,), v, dtype=torch.float64) for v in (1.0, 0.0))
        if "inv_scale" in params:
            self._read_version_1(params, dimension)

    @property
    def harmonics(self) -> int:
        """Highest order."""
        return max(len(self.signs) - 1, 1)

    def _read_version_1(self, params: Params, dimension: int) -> None:
        coordinates = _below(params, "bn_coords.")
        if any(name.endswith("_running_mean") for name in coordinates):
            raise InputError("norm of the coordinates", where="bn_coords", expected="one that only scales")
        self.stretch = float(_factor(coordinates))
        self.signs = _signs(_below(params, "hp.harmonics_generator."), dimension)
        norms = _below(params, "bn_hp.")
        scale, constant = [], []
        for order, sign in enumerate(self.signs):
            width = size([band(order, dimension)[order]], dimension)
            own = {k: v for k, v in norms.items() if re.match(rf"(.*:)?irrep_(\d+,)?{order}_[a-z]", k)}
            scale.append((_factor(own) * sign * self.stretch**order).expand(width))
            value = torch.full((width,), float(order == 0), dtype=torch.float64)  # the polynomial of order zero is one
            if any(name.endswith("_running_mean") for name in own):
                shift = _only(own, "_bias") @ _only(own, "_change_of_basis").T
                value = (value - _only(own, "_running_mean").flatten()) * _factor(own) + shift.flatten()
            constant.append(value)
        self.scale, self.constant = torch.cat(scale)[1:], torch.cat(constant)
        self.order = list(range(1, len(self.constant)))

    def polynomials(self, r: Tensor) -> Tensor:
        """The original's harmonics before their norms."""
        signs = [s for k, s in enumerate(self.signs) for _ in range(size([band(k, r.shape[1])[k]], r.shape[1]))]
        return solid_harmonics(self.stretch * r, range(len(self.signs))) * torch.tensor(signs).to(r)


def _factor(norm: Params) -> Tensor:
    return (_only(norm, "_weight").double() * (_only(norm, "_running_var").double() + _EPSILON).rsqrt()).flatten()


def _signs(params: Params, dimension: int) -> list[float]:
    """The sign of each order's harmonics, which the original makes from those of the order below and of order one."""
    x = torch.linspace(-0.7, 0.9, dimension, dtype=torch.float64)
    signs, first, below = [1.0], x, x
    for order in range(1, 1 + sum(name.startswith("cob_") for name in params)):
        change, ours = params[f"cob_{order}"].double(), solid_harmonics(x[None], [order])[0]
        products = [x] if order == 1 else [torch.kron(below, first), torch.kron(first, below)]
        ratios = [(change @ product, (change @ product) @ ours / ours.square().sum()) for product in products]
        below, ratio = next(
            (t for t in ratios if (t[0] - t[1] * ours).norm() < 1e-6 * ours.norm()), (x, x.new_zeros(()))
        )
        if abs(abs(float(ratio)) - 1) > 1e-6:
            raise InputError("harmonic polynomials", where=f"cob_{order}", expected="spherical harmonics about z")
        first = below if order == 1 else first
        signs.append(float(ratio))
    return signs


@dataclass(frozen=True)
class _Imported:
    """A kernel of ours and what relates it to the original's.

    Attributes:
        kernel: ours.
        position: how it reads its position.
        factors: [rows of the last map] by which its results were multiplied.
        norms: its norms, by the beginning of the original's parameter names.
    """

    kernel: Kernel
    position: Position
    factors: Tensor
    norms: dict[str, FieldBatchNorm]

    def stages(self, r: Tensor, attributes: Tensor | None) -> dict[str, Tensor]:
        """What each stage of the network gives, under the original's names."""
        found = {"harmonics": self.position.polynomials(r)} if self.position.signs else {}
        h = solid_harmonics(r, range(1, self.kernel.harmonics + 1))
        h = h if attributes is None else torch.cat([h, attributes], dim=-1)
        for number, stage in enumerate([*self.kernel.body, self.kernel.last]):
            h = stage(h)
            found[f"mlp{number}"] = h
        found[f"mlp{number}"] = h / self.factors.to(h)
        return found


def _kernel(params: Params, copies: tuple[int, int], width_in: int, dimension: int) -> _Imported:
    """A kernel from the parameters below `implicit_kernel`; copies (c_out, c_in), width_in = c_in d_in."""
    mlp = _below(params, "mlp.mlp.")
    position = Position(params, dimension)
    norms: dict[str, FieldBatchNorm] = {}
    body: list[nn.Module] = []
    numbers = range(max(int(name.split(".")[0]) for name in mlp) + 1)
    for number in numbers[:-1]:
        stage = _below(mlp, f"{number}.")
        if "matrix" in stage:
            body.append(_linear(stage, None if number else position))
        elif any(name.endswith("_running_var") for name in stage):
            norm = _norm(stage)
            body.append(norm)
            norms |= {f"mlp.mlp.{number}.{n.removesuffix('weight')}": norm for n in stage if n.endswith("_weight")}
        else:
            body.append(_activation(stage))
    stage = _below(mlp, f"{numbers[-1]}.")
    last = _linear(stage, position if len(numbers) == 1 else None)
    (c_out, c_in), rows = copies, len(stage["matrix"])
    if "inv_scale" in params:
        width = 1 / params["inv_scale"]
        factors = params["inv_std"].double().flatten() * 2 / math.sqrt(c_out * c_in)
    else:
        width = params["shell_width"].flatten()[0]
        factors = torch.full((c_out * c_in,), c_out**-0.5, dtype=torch.float64)
    block = rows // (c_out * c_in)
    per_field = rows // len(last.weights[0])  # a field of the last map is a kernel, or all of them
    _scale(last, factors.repeat_interleave(block)[::per_field])
    shape = (c_out, c_in, rows // width_in // c_out, width_in // c_in)
    kernel = Kernel(nn.Sequential(*body), last, shape, position.harmonics, 1.0).double()
    with torch.no_grad():
        kernel.width.copy_(width.double())
    return _Imported(kernel, position, factors.repeat_interleave(block), norms)


def _take_bias(conv: PointConv | GridConv, params: Params) -> None:
    if "expanded_bias" in params:
        bias = conv.bias
        with torch.no_grad():
            bias.weight.copy_(params["expanded_bias"].double().view(len(bias.weight), -1) @ bias.invariant.value)


def _invariant(params: Params, copies: int, width: int) -> Tensor:
    rows = params.get("bias_expansion", torch.zeros(width, 0)).double().T.reshape(-1, width // copies)
    return _span(torch.cat([rows, params.get("expanded_bias", torch.zeros(width)).double().view(copies, -1)]))


def _point_conv(params: Params, copies: tuple[int, int], width_in: int, dimension: int) -> tuple[PointConv, _Imported]:
    found = _kernel(_below(params, "implicit_kernel."), copies, width_in, dimension)
    shape = found.kernel.shape
    invariant = _invariant(params, shape[0], shape[0] * shape[2])
    conv = PointConv(found.kernel, invariant, "mean" if found.position.signs else "sum").double()
    _take_bias(conv, params)
    return conv, found


# Records.


def replay(record: Record) -> dict[str, Tensor]:
    """Every output of the record, computed by ours."""
    if "sims" in record.meta:
        return _replay_simulator(record)
    config = record.meta.get("config", record.meta.get("constructor"))
    if not isinstance(config, dict):
        raise InputError("options of the record", where=record.path, expected="config", got=config)
    if "embedding.fc.weight" in record.params:
        return _replay_network(record)
    try:
        copies = int(config["c_out"]), int(config["c_in"])
    except (KeyError, TypeError):
        raise InputError(
            "options of the record", where=record.path, expected="c_out and c_in", got=sorted(config)
        ) from None
    return _replay_grid(record, config, copies) if record.inputs["x"].dim() > 3 else _replay_points(record, copies)


def _leaves(record: Record) -> dict[str, Tensor]:
    """The inputs, those with a gradient ready for it."""
    wanted = [name.removeprefix("grad_") for name in record.outputs if name.startswith("grad_")]
    return {k: v.clone().requires_grad_() if k in wanted else v for k, v in record.inputs.items()}


def _gradients(y: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: value for name, value in given.items() if value.requires_grad}
    if not leaves or "cotangent" not in given:
        return {}
    found = torch.autograd.grad(y, list(leaves.values()), given["cotangent"].view_as(y), allow_unused=True)
    return {
        f"grad_{k}": torch.zeros_like(v) if g is None else g for (k, v), g in zip(leaves.items(), found, strict=True)
    }


def _statistics(norms: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Running statistics after a pass in training mode."""
    found: dict[str, Tensor] = {}
    for name, norm in norms.items():
        for part in ("running_mean", "running_var"):
            found[f"after_train/{name}{part}"] = getattr(norm, part).clone()
    return found


def _replay_points(record: Record, copies: tuple[int, int]) -> dict[str, Tensor]:
    given = _leaves(record)
    x, (send, receive) = given["x"], given["edge_index"]
    chosen = next((v for k, v in given.items() if "down" in k or k == "idx"), None)
    if "edge_delta" in given:
        r = given["edge_delta"]
    else:
        r = given["pos"][receive if chosen is None else chosen[receive]] - given["pos"][send]
    targets = len(x) if chosen is None else len(chosen)
    conv, imported = _point_conv(record.params, copies, x.shape[1], r.shape[1])
    conv = conv.to(record.dtype).eval()
    edges = Edges.build(given["edge_index"], max(len(x), targets), x.dtype)
    attributes = given.get("edge_attr")
    slots = neighbour_slots(edges, targets)
    y = conv(x, r, edges, attributes, slots)
    results = {"y": y, "kernel": conv.kernel(r, attributes)} | imported.stages(r, attributes) | _gradients(y, given)
    if "y_train" in record.outputs:
        conv.train()
        results["y_train"] = conv(x, r, edges, attributes, slots)
        results |= _statistics({f"implicit_kernel.{name}": norm for name, norm in imported.norms.items()})
    return results


def _replay_grid(record: Record, config: dict[str, Any], copies: tuple[int, int]) -> dict[str, Tensor]:
    given = _leaves(record)
    x, n = given["x"], given["x"].dim() - 2
    params = dict(record.params)
    cached = params.pop("filter", None)
    imported = _kernel(_below(params, "implicit_kernel."), copies, x.shape[1], n)
    window = {name: config.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
    shape = imported.kernel.shape
    conv = GridConv(
        imported.kernel, _invariant(params, copies[0], shape[0] * shape[2]), config["kernel_size"], **window
    )
    _take_bias(conv.double(), params)
    conv = conv.to(record.dtype)
    attributes = given.get("attr", given.get("kernel_attr"))
    before = {name: norm.running_mean.clone() for name, norm in imported.norms.items()}
    # The original keeps a filter that it made in training mode; without one it makes it anew.
    filters = conv.train(cached is not None).filters(x, attributes)
    if cached is not None and not torch.allclose(filters[0], cached, rtol=1e-8, atol=1e-12):
        filters = cached[None]
    y = conv.convolve(x, filters)
    results = {"y": y, "filter": filters[0]} | _gradients(y, given)
    if "y_train" in record.outputs and before:
        results["y_train"] = conv.train()(x, attributes)
        results |= _statistics({f"implicit_kernel.{name}": norm for name, norm in imported.norms.items()})
    return results


def _replay_network(record: Record) -> dict[str, Tensor]:
    given = _leaves(record)
    network, norms = _network(record.params, given)
    network = network.to(record.dtype).eval()
    sample = Data(**{k: given[k] for k in ("x", "pos", "edge_index", "edge_attr", "batch") if k in given})
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: seen.__setitem__(name, out))
        for name, module in [
            ("h_embed", network.activation),
            ("inv", network.to_invariant),
            *((f"h_block{number}", block) for number, block in enumerate(network.blocks)),
        ]
    ]
    y = network(sample)["prediction"].view(-1, 1)
    for hook in hooks:
        hook.remove()
    results = {"y": y, **seen} | _gradients(y, given)
    if "y_train" in record.outputs:
        results["y_train"] = network.train()(sample)["prediction"]
        results |= _statistics(norms)
    return results


def _network(params: Params, given: dict[str, Tensor]) -> tuple[ImplicitSteerableKernels, dict[str, nn.Module]]:
    """The original's QM9 network, and its norms by the beginning of their names."""
    channels, node_dim = params["embedding.fc.weight"].shape
    width, dimension = len(params["embedding.tp_module.matrix"]), given["pos"].shape[1]
    edge_dim = given["edge_attr"].shape[1] if "edge_attr" in given else 0
    blocks = len({name.split(".")[1] for name in params if name.startswith("residual_blocks.")})
    readout = len(params["fc.0.weight"])
    options = KernelOptions(
        norm="batch", activation="elu", embedding="square", readout_dim=readout, layers=1, harmonics=1
    )
    network = ImplicitSteerableKernels(
        node_dim, edge_dim, channels, 0, dimension=dimension, out_dim=len(params["fc.5.weight"]), options=options
    ).double()
    norms: dict[str, nn.Module] = {}

    def conv(prefix: str, copies: int) -> PointConv:
        layer, imported = _point_conv(_below(params, prefix), (copies, channels), width, dimension)
        norms.update({f"{prefix}implicit_kernel.{name}": norm for name, norm in imported.norms.items()})
        return layer

    network.embedding.load_state_dict(_below(params, "embedding.fc."))
    network.lift = _square_lift(params["embedding.tp_module.matrix"], channels)
    network.activation = _activation(_below(params, "embedding.activation."))
    for number in range(blocks):
        prefix = f"residual_blocks.{number}."
        layers = [conv(f"{prefix}conv{k}.", channels) for k in (1, 2)]
        block_norms = [_norm(_below(params, f"{prefix}bnorm{k}.")) for k in (1, 2)]
        for k, norm in enumerate(block_norms, start=1):
            names = [n for n in params if n.startswith(f"{prefix}bnorm{k}.") and n.endswith("_weight")]
            norms |= {name.removesuffix("weight"): norm for name in names}
        network.blocks.append(Block(layers, block_norms, _activation(_below(params, f"{prefix}activation."))))
    network.to_invariant = conv("invariant_map.conv.", readout)
    network.decoder.load_state_dict(_below(params, "fc."))
    norms |= {f"fc.{number}.": network.decoder[number] for number in (0, 3)}
    return network, norms


def _square_lift(matrix: Tensor, channels: int) -> EquivariantLinear:
    """The map of each scalar to its own field, [channels * d, 1] in the record."""
    fields = matrix.double().view(channels, -1)
    direction = _span(fields)
    lift = EquivariantLinear(channels, [(channels, direction.T[:, :, None])], None).double()
    with torch.no_grad():
        lift.weights[0].copy_(torch.diag_embed((fields @ direction).T).movedim(0, -1))
    return lift


def _replay_simulator(record: Record) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    for name, options in record.meta["sims"].items():
        draws = {k.removeprefix(f"{name}/"): v.numpy() for k, v in record.inputs.items() if k.startswith(f"{name}/")}
        ordered = [draws[k] for k in sorted(draws, key=lambda k: int(re.findall(r"\d+", k)[0]))]
        number = re.search(r"k(\d+(\.\d+)?)$", name)
        strength = options.get("z_component", float(number[1]) if number else 2.0)
        springs = ordered[0].shape == (options["n"],)
        system = PlaneSprings(stiffness=strength) if springs else FieldCharges(stretch=strength)
        keys = ["lengths", "couplings"] if springs else ["charges"]
        drawn = dict(zip([*keys, "positions", "velocities"], (a[None] for a in ordered), strict=False))
        run = run_plane(system, drawn, options["T"], options.get("dt", 1e-3), options["sample_freq"])
        charges = run.charges[0][:, None]  # type: ignore[index]
        edges = run.couplings[0] if run.couplings is not None else charges @ charges.T
        arrays = {"loc": run.positions[0].swapaxes(1, 2), "vel": run.velocities[0].swapaxes(1, 2), "edges": edges}
        arrays |= {"lengths": charges, "charges": charges}
        results |= {f"{name}/{key}": torch.from_numpy(value.copy()) for key, value in arrays.items()}
    return results
