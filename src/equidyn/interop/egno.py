"""EGNO: records of the original (`model.egno.EGNO`) and of its backbone alone (`model.basic.EGNN`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.interop.golden import Record
from equidyn.interop.weights import Piece, linear, load_weights, refuse_activation, weight_gradients
from equidyn.models.egnn import EGNN, EGNNOptions
from equidyn.models.egno import EGNO

_ARGUMENTS: dict[str, Any] = {
    "n_layers": ...,
    "in_node_nf": ...,
    "in_edge_nf": ...,
    "hidden_nf": ...,
    "activation": "SiLU",
    "with_v": False,
    "flat": False,
    "norm": False,
}
_TEMPORAL = {"use_time_conv": True, "num_modes": 2, "num_timesteps": 8, "time_emb_dim": 32}


def _build(record: Record) -> EGNN | EGNO:
    temporal = record.meta["cls"].endswith("EGNO")
    given = record.options(**_ARGUMENTS, **(_TEMPORAL if temporal else {}))
    refuse_activation(given["activation"], record)
    options: dict[str, Any] = {
        "residual": False,
        "shift_bias": True,
        "clamp": "component",
        "distance": "one" if given["norm"] else "squared",
        "activation": "tanh" if given["flat"] else "silu",
    }
    sizes = (given["in_node_nf"], given["in_edge_nf"] or 0, given["hidden_nf"], given["n_layers"])
    if not temporal:
        return EGNN(*sizes, velocity=given["with_v"], layer=EGNNOptions(**options)).to(record.dtype)
    if not given["with_v"]:
        raise InputError("with_v of EGNO", where=record.path, expected=True, got=given["with_v"])
    return EGNO(
        *sizes,
        times=[float(p + 1) for p in range(given["num_timesteps"])],
        num_modes=given["num_modes"] if given["use_time_conv"] else 0,
        time_dim=given["time_emb_dim"],
        options=options,
        features=True,
    ).to(record.dtype)


def pieces_of(model: EGNN | EGNO) -> list[Piece]:
    """The parameters of the original beside those of the model."""
    pieces = linear("embedding", "embedding")
    for number, layer in enumerate(model.layers):
        theirs, ours = f"layers.{number}", f"layers.{number}"
        parts = ["from_distance", "from_receiver", "from_sender", *(["from_edge"] if layer.from_edge else [])]
        message = linear(f"{theirs}.edge_message_net.scalar_net.mlp.0", *(f"{ours}.{part}" for part in parts))
        message[1] = Piece(message[1].theirs, (f"{ours}.from_receiver.bias",))
        pieces += message + linear(f"{theirs}.edge_message_net.scalar_net.mlp.2", f"{ours}.message_out")
        pieces += linear(f"{theirs}.coord_net.mlp.0", f"{ours}.shift.inner")
        pieces += linear(f"{theirs}.coord_net.mlp.2", f"{ours}.shift.out")
        if layer.velocity:
            pieces += linear(f"{theirs}.node_v_net.mlp.0", f"{ours}.velocity_in")
            pieces += linear(f"{theirs}.node_v_net.mlp.2", f"{ours}.velocity_out")
        if layer.update_features:
            pieces += linear(f"{theirs}.node_net.mlp.0", f"{ours}.from_self", f"{ours}.from_messages")
            pieces += linear(f"{theirs}.node_net.mlp.2", f"{ours}.node_out")
    for theirs, ours in (("time_conv_modules", "time_convs"), ("time_conv_x_modules", "motion_convs")):
        # Theirs is [in, out, mode, part], ours [mode, part, out, in].
        count = len(getattr(model, ours, ()))
        pieces += [
            Piece(f"{theirs}.{n}.t_conv.weights1", (f"{ours}.{n}.weight",), axes=(2, 3, 1, 0)) for n in range(count)
        ]
    return pieces


Pick = Callable[[Any, Any], Tensor]


def _watch(module: nn.Module, name: str, found: dict[str, Tensor], pick: Pick = lambda given, out: out) -> None:
    def keep(_module: nn.Module, given: tuple, out: Any) -> None:
        found[name] = pick(given[0], out)

    module.register_forward_hook(keep)


def replay(record: Record) -> dict[str, Tensor]:
    """Every output of the record, computed by our model."""
    model = _build(record)
    pieces = pieces_of(model)
    load_weights(model, pieces, record.params)
    found: dict[str, Tensor] = {}
    _watch(model.layers[0], "mid/layer0_h", found, lambda _, out: out[0])
    _watch(model.layers[0], "mid/layer0_x", found, lambda _, out: out[1])
    inputs = {k: record.inputs[k].clone().requires_grad_() for k in ("x", "h", "v") if k in record.inputs}
    row, col = record.inputs["edge_index"]
    sizes = torch.tensor(record.meta["graph_sizes"])
    sample = Data(
        pos=inputs["x"],
        x=inputs["h"],
        vel=inputs.get("v"),
        edge_index=torch.stack([col, row]),
        edge_attr=record.inputs.get("edge_attr"),
        batch=torch.arange(len(sizes)).repeat_interleave(sizes),
        centre=record.inputs["loc_mean"],  # the record holds it constant in the gradients
    )
    if isinstance(model, EGNN):
        _watch(model.embedding, "mid/h_embed", found)
        out = model(sample)
        results = {"x": out["pos"], "h": out["h"]} | ({"v": inputs["v"]} if "v" in inputs else {})
    else:
        if not len(model.time_convs):
            _watch(model.layers[0], "mid/h_embed", found, lambda h, _: h)
        else:
            conv, motion = model.time_convs[0], model.motion_convs[0]
            _watch(conv, "mid/h_embed", found, lambda h, _: h.flatten(0, 1))
            _watch(conv, "mid/tconv_h_0", found, lambda h, out: h + torch.nn.functional.leaky_relu(out))
            _watch(motion, "mid/tconv_x_0", found, lambda z, out: z + out)
        out = model(sample)
        results = {
            name: out[ours].movedim(1, 0).flatten(0, 1)
            for name, ours in (("x", "trajectory"), ("v", "trajectory_vel"), ("h", "h"))
        }
    loss = ((results["x"] - record.inputs["target"]) ** 2).mean() + 0.1 * (results["h"] ** 2).mean()
    if "v" in results:
        loss = loss + 0.1 * (results["v"] ** 2).mean()
    loss.backward()
    gradients = {f"grad_{k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in inputs.items()}
    weights = {f"gradparam/{k}": g for k, g in weight_gradients(model, pieces).items()}
    return results | {"loss": loss} | found | gradients | weights
