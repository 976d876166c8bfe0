"""ClofNet: records of the original's networks for particles, of its score network and of its particle simulator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.errors import InputError, unknown_name
from equidyn.data.bonds import extend_bonds
from equidyn.interop.golden import Record
from equidyn.interop.weights import Piece, linear, load_weights, weight_gradients
from equidyn.models.clofnet import ClofNet, ClofNetOptions
from equidyn.models.clofnet_score import ClofNetScore
from equidyn.simulate import get_system, simulate

_NEWTON: dict[str, Any] = {
    "model": ...,
    "hidden_nf": ...,
    "n_layers": 4,
    "coords_weight": 1.0,
    "recurrent": True,
    "norm_diff": False,
    "tanh": False,
    "n_nodes": ...,
}
_VARIANTS = ("clof", "clof_vel", "clof_vel_gbf")
_UNUSED = ("embedding_edge.0.weight", "embedding_edge.0.bias")  # held by `clof`, read by nobody

_SCORE: dict[str, Any] = {
    "hidden_dim": ...,
    "order": 3,
    "mlp_act": "relu",
    "gnn_act": "relu",
    "short_cut": True,
    "concat_hidden": False,
    # What the original reads elsewhere or not at all.
    "num_convs": 4,
    "sigma_begin": 10.0,
    "sigma_end": 0.01,
    "num_noise_level": 50,
    "cutoff": 10.0,
    "noise_type": "rand",
    "edge_encoder": "mlp",
}
_SYSTEMS: dict[str, dict[str, float]] = {
    "charged": {},
    "static": {"uniform": 0.098},
    "dynamic": {"magnetic": 0.5},
    "fixcharge": {"fixed": 0.1},
}


def replay(record: Record) -> dict[str, Tensor]:
    """Every output of the record, computed by ours."""
    if "sims" in record.meta:
        return _replay_simulator(record)
    config = record.meta.get("config", record.meta.get("constructor"))
    if not isinstance(config, dict):
        raise InputError("constructor arguments of the record", where=record.path, expected="config", got=config)
    return _replay_score(record, config) if "hidden_dim" in config.get("model", {}) else _replay_newton(record, config)


def _options(config: dict[str, Any], known: dict[str, Any], record: Record) -> dict[str, Any]:
    return Record(record.path, record.meta | {"constructor": config}, {}, {}, {}).options(**known)


def _square_of_gradients(model: nn.Module) -> Tensor:
    return torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None]).sum()


# The networks for particles.


def _build_newton(given: dict[str, Any], record: Record) -> ClofNet:
    if given["model"] not in _VARIANTS:
        raise unknown_name("model", str(given["model"]), _VARIANTS, where=record.path)
    options = ClofNetOptions(
        velocity_scalars=given["model"] != "clof",
        gaussians=given["model"] == "clof_vel_gbf",
        scaled=given["norm_diff"],
        bounded=given["tanh"],
        skip=2.0 if given["recurrent"] else 1.0,
        shift_scale=given["coords_weight"],
        clamp="message_component",
    )
    return ClofNet(1, 2, given["hidden_nf"], given["n_layers"], options=options).to(record.dtype)


def _newton_pieces(model: ClofNet) -> list[Piece]:
    scalars = model.scalars
    pieces = linear("embedding_node", "embedding")
    parts = [*(["from_edge"] if scalars.from_edge else []), "from_geometry"]
    pieces += linear("fuse_edge.0", *(f"scalars.{part}" for part in parts)) + linear("fuse_edge.2", "scalars.out")
    if scalars.gaussians:
        pieces += [
            Piece("gbf.means.weight", ("scalars.gaussians.mean",)),
            Piece("gbf.stds.weight", ("scalars.gaussians.width",)),
            Piece("gbf.mul.weight", ("scalars.gaussians.scale",)),
            Piece("gbf.bias.weight", ("scalars.gaussians.shift",)),
        ]
    for number in range(len(model.layers)):
        theirs, ours = f"gcl_{number}", f"layers.{number}"
        parts = ["from_receiver", "from_sender", "from_distance", "from_edge"]
        pieces += linear(f"{theirs}.edge_mlp.0", *(f"{ours}.{part}" for part in parts))
        pieces += linear(f"{theirs}.edge_mlp.2", f"{ours}.message_inner")
        pieces += linear(f"{theirs}.edge_mlp.4", f"{ours}.message_out")
        pieces += linear(f"{theirs}.coord_mlp.0", f"{ours}.weight_inner")
        pieces += linear(f"{theirs}.coord_mlp.2", f"{ours}.weight_out", bias=False)
        pieces += linear(f"{theirs}.coord_mlp_vel.0", f"{ours}.velocity_in")
        pieces += linear(f"{theirs}.coord_mlp_vel.2", f"{ours}.velocity_out")
        pieces += linear(f"{theirs}.node_mlp.0", f"{ours}.from_self", f"{ours}.from_messages")
        pieces += linear(f"{theirs}.node_mlp.2", f"{ours}.node_out")
        pieces += linear(f"{theirs}.layer_norm", f"{ours}.norm")
    return pieces


def _newton_params(record: Record) -> dict[str, Tensor]:
    """The record's parameters without those that nothing reads, tables of the Gaussians as vectors."""
    params = {name: value for name, value in record.params.items() if name not in _UNUSED}
    for name in params:
        if name.startswith("gbf."):  # a row per pair of types; two of them exist
            params[name] = params[name].flatten()[: 2 if name.startswith(("gbf.mul", "gbf.bias")) else None]
    return params


def _newton_gradients(model: ClofNet, pieces: list[Piece], record: Record) -> dict[str, Tensor]:
    gradients = weight_gradients(model, pieces)
    for name, theirs in record.params.items():
        ours = gradients.get(name, theirs.new_zeros(0)).flatten()
        gradients[name] = torch.cat([ours, ours.new_zeros(theirs.numel() - len(ours))]).view(theirs.shape)
    return {f"gradparam_{name}": value for name, value in gradients.items()}


def _replay_newton(record: Record, config: dict[str, Any]) -> dict[str, Tensor]:
    given = _options(config, _NEWTON, record)
    model = _build_newton(given, record)
    pieces = _newton_pieces(model)
    load_weights(model, pieces, _newton_params(record))
    loc, vel = (record.inputs[name].clone().requires_grad_() for name in ("loc", "vel"))
    row, col = record.inputs["edge_index"]
    square = (loc[row] - loc[col]).square().sum(1, keepdim=True)
    sample = Data(
        pos=loc,
        vel=vel,
        x=vel.norm(dim=1, keepdim=True),
        edge_index=torch.stack([col, row]),
        edge_attr=torch.cat([record.inputs["charge_prod"], square], dim=1),
        batch=torch.arange(len(loc)) // given["n_nodes"],
    )
    found = _watch_newton(model)
    y = model(sample)["pos"]
    (y * record.inputs["cotangent"]).sum().backward()
    parts = [found[name] for name in ("z_edge", "z_geometry") if name in found]
    results = {"y": y, "grad_loc": loc.grad, "grad_vel": vel.grad, "fuse_in": torch.cat(parts, dim=1)}
    layers = {name: value for name, value in found.items() if not name.startswith("z_")}
    sums = {"param_grad_sqnorm": _square_of_gradients(model)}
    return results | layers | sums | _newton_gradients(model, pieces, record)


def _watch_newton(model: ClofNet) -> dict[str, Tensor]:
    """Intermediate results under the record's names, filled in when the model runs."""
    found: dict[str, Tensor] = {}

    def keep_input(name: str) -> Any:
        return lambda _module, given, _out: found.update({name: given[0]})

    if model.scalars.from_edge is not None:
        model.scalars.from_edge.register_forward_hook(keep_input("z_edge"))
    model.scalars.from_geometry.register_forward_hook(keep_input("z_geometry"))
    # Without the Gaussians, as the record has it.
    model.scalars.out.register_forward_hook(lambda _m, _i, out: found.update(edge_feat=nn.functional.silu(out)))
    for number, layer in enumerate(model.layers):

        def keep_layer(_module: nn.Module, _given: Any, out: Any, number: int = number) -> None:
            found[f"h_layer{number}"], found[f"xc_layer{number}"] = out

        layer.register_forward_hook(keep_layer)
    return found


# The score network.


def _build_score(given: dict[str, Any], record: Record) -> ClofNetScore:
    if given["concat_hidden"]:  # the original cannot run it either
        raise InputError("concat_hidden", where=record.path, expected=False, got=given["concat_hidden"])
    return ClofNetScore(
        given["hidden_dim"],
        node_activation=given["gnn_act"],
        edge_activation=given["mlp_act"],
        short_cut=given["short_cut"],
        centre="origin",
    ).to(record.dtype)


def _score_pieces(model: ClofNetScore) -> list[Piece]:
    pieces = [Piece("node_emb.weight", ("elements.weight",)), Piece("edge_emb.weight", ("edge_features.types.weight",))]
    pieces += linear("input_mlp.layers.0", "edge_features.from_length")
    pieces += linear("coff_mlp", "edge_features.from_d", "edge_features.from_b")
    parts = ("project_angle", "project_sender", "project_receiver")
    pieces += linear("project.layers.0", *(f"edge_features.{part}" for part in parts))
    pieces += linear("project.layers.1", "edge_features.project_out")
    for a in range(len(model.blocks)):
        for b in range(2):
            theirs, ours = f"model.transformers.{a}.{b}", f"blocks.{a}.layers.{b}"
            for part in ("query", "key", "value", "skip", "edge"):
                pieces += linear(f"{theirs}.MHA.lin_{part}", f"{ours}.attention.{part}", bias=part != "edge")
            pieces += linear(f"{theirs}.FFN.0", f"{ours}.inner") + linear(f"{theirs}.FFN.3", f"{ours}.out")
            pieces += linear(f"{theirs}.norm1", f"{ours}.norm1") + linear(f"{theirs}.norm2", f"{ours}.norm2")
        weights = f"model.dynamic_mlp_modules.{a}"
        pieces += linear(f"{weights}.0", f"blocks.{a}.from_nodes", f"blocks.{a}.from_edge")
        pieces += linear(f"{weights}.2", f"blocks.{a}.out")
    return pieces


def _load_score(model: ClofNetScore, pieces: list[Piece], record: Record) -> None:
    buffers = {
        "dist_gaussian_fourier.W": model.edge_features.length.frequency,
        "coff_gaussian_fourier.W": model.edge_features.coordinate.frequency,
    }
    for name, buffer in buffers.items():
        buffer.copy_(record.params[name])
    skip = ("sigmas", *buffers)
    params = {k: v for k, v in record.params.items() if k not in skip and not k.startswith("model.equi_modules.")}
    load_weights(model, pieces, params)


def _replay_score(record: Record, config: dict[str, Any]) -> dict[str, Tensor]:
    given = _options(config["model"], _SCORE, record)
    power = config.get("train", {}).get("anneal_power", 2.0)
    model = _build_score(given, record).eval()
    pieces = _score_pieces(model)
    _load_score(model, pieces, record)
    found: dict[str, Tensor] = {}
    model.edge_features.register_forward_hook(lambda _m, _i, out: found.update(e=out))

    inputs = record.inputs
    pos, batch = inputs["pos"], inputs["batch"]
    edge_index, edge_type, hops = extend_bonds(inputs["bond_index"], inputs["bond_type"], len(pos), given["order"])
    fixed = {"z": inputs["atom_type"], "edge_index": edge_index, "edge_type": edge_type, "batch": batch}
    graphs = int(batch.max()) + 1

    at = Data(pos=inputs["score_pos"], sigma=inputs["sigma"].expand(graphs), **fixed)
    out = model(at)
    results = {"score": out["score"], "score_node_feature": out["h"], "score_edge_attr": found["e"]}

    sigma = record.params["sigmas"][inputs["noise_level"]]
    level = sigma[batch][:, None]
    noisy = pos + level * inputs["coord_noise"]
    score = model(Data(pos=noisy, sigma=sigma, **fixed))["score"]
    target = -(noisy - pos) / level**2
    per_atom = 0.5 * (score - target).square().sum(1) * level[:, 0] ** power
    loss = torch.stack([per_atom[batch == graph].mean() for graph in range(graphs)]).mean()
    loss.backward()
    results |= {"pert_pos": noisy, "train_gradient": score * level, "scores_train": score, "loss": loss}
    results |= {"edge_index": edge_index, "edge_type": edge_type, "edge_order": hops}
    gradients = {f"gradparam_{name}": value for name, value in weight_gradients(model, pieces).items()}
    return results | gradients | {"param_grad_sqnorm": _square_of_gradients(model)}


# The simulator.


def _replay_simulator(record: Record) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    for name, sim in record.meta["sims"].items():
        kind = "charged" if name.startswith("charged") else name
        if kind not in _SYSTEMS:
            raise unknown_name("simulated system", name, _SYSTEMS, where=record.path)
        system = get_system("charged", softening=1e-3, **_SYSTEMS[kind])
        made = simulate(
            system, 1, bodies=sim["n"], steps=sim["T"], store_every=sim["sample_freq"], seed=sim["seed"], workers=1
        )
        assert made.charges is not None
        charges = torch.from_numpy(made.charges[0])[:, None]
        results[f"{name}/loc"] = torch.from_numpy(made.positions[0].transpose(0, 2, 1).copy())
        results[f"{name}/vel"] = torch.from_numpy(made.velocities[0].transpose(0, 2, 1).copy())
        results[f"{name}/charges"], results[f"{name}/edges"] = charges, charges * charges.T
    return results
