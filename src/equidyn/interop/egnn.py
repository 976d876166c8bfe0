"""EGNN: records of the original's three variants (`models/egnn_clean`, `n_body_system`, `qm9`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.interop.golden import Record
from equidyn.interop.weights import Piece, linear, load_weights, refuse_activation, weight_gradients
from equidyn.models.egnn import EGNN, EGNNOptions


def _variant(record: Record) -> str:
    name = record.meta["cls"]
    for part, variant in (("egnn_clean", "clean"), ("n_body", "vel"), ("qm9", "qm9")):
        if part in name:
            return variant
    raise InputError("variant of EGNN", where=record.path, expected="egnn_clean, n_body_system or qm9", got=name)


_COMMON: dict[str, Any] = {"in_node_nf": ..., "hidden_nf": ..., "n_layers": 4, "act_fn": "SiLU"}
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "clean": {
        "out_node_nf": ...,
        "in_edge_nf": 0,
        "residual": True,
        "attention": False,
        "normalize": False,
        "tanh": False,
        "coords_agg": "mean",
    },
    "vel": {"in_edge_nf": ..., "coords_weight": 1.0, "recurrent": False, "norm_diff": False, "tanh": False},
    "qm9": {"in_edge_nf": ..., "coords_weight": 1.0, "attention": False, "node_attr": 1},
}


_READOUTS: dict[str, Any] = {"clean": "node", "vel": "none", "qm9": "graph"}


def _build(record: Record, variant: str) -> EGNN:
    given = record.options(**_COMMON, **_ARGUMENTS[variant])
    refuse_activation(given["act_fn"], record)
    if variant == "clean":
        if given["coords_agg"] not in ("mean", "sum"):
            raise InputError("coords_agg", where=record.path, expected="mean or sum", got=given["coords_agg"])
        options = EGNNOptions(
            residual=given["residual"],
            attention=bool(given["attention"]),
            normalize="unit" if given["normalize"] else "none",
            bounded=given["tanh"],
            reduce=given["coords_agg"],
            clamp="none",
        )
    elif variant == "vel":
        if given["coords_weight"] != 1:
            raise InputError("coords_weight", where=record.path, expected=1.0, got=given["coords_weight"])
        options = EGNNOptions(
            residual=given["recurrent"],
            normalize="plus_one" if given["norm_diff"] else "none",
            bounded=given["tanh"],
            clamp="message_component",
        )
    else:  # the points do not move: coords_weight has no effect
        node_input = given["in_node_nf"] if given["node_attr"] else 0
        options = EGNNOptions(attention=bool(given["attention"]), node_input=node_input, move=False)
    return EGNN(
        given["in_node_nf"],
        given["in_edge_nf"] or 0,
        given["hidden_nf"],
        given["n_layers"],
        velocity=variant == "vel",
        readout=_READOUTS[variant],
        out_dim=given.get("out_node_nf", 1),
        layer=options,
    ).to(record.dtype)


def _pieces(model: EGNN, variant: str) -> list[Piece]:
    pieces = linear("embedding_in" if variant == "clean" else "embedding", "embedding")
    for number, layer in enumerate(model.layers):
        theirs, ours = f"gcl_{number}", f"layers.{number}"
        parts = ["from_receiver", "from_sender", "from_distance", *(["from_edge"] if layer.from_edge else [])]
        pieces += linear(f"{theirs}.edge_mlp.0", *(f"{ours}.{part}" for part in parts))
        pieces += linear(f"{theirs}.edge_mlp.2", f"{ours}.message_out")
        node_parts = ["from_self", "from_messages", *(["from_input"] if layer.from_input else [])]
        pieces += linear(f"{theirs}.node_mlp.0", *(f"{ours}.{part}" for part in node_parts))
        pieces += linear(f"{theirs}.node_mlp.2", f"{ours}.node_out")
        if layer.gate:
            pieces += linear(f"{theirs}.att_mlp.0", f"{ours}.gate")
        if layer.shift:
            pieces += linear(f"{theirs}.coord_mlp.0", f"{ours}.shift.inner")
            pieces += linear(f"{theirs}.coord_mlp.2", f"{ours}.shift.out", bias=False)
        if layer.velocity:
            pieces += linear(f"{theirs}.coord_mlp_vel.0", f"{ours}.velocity_in")
            pieces += linear(f"{theirs}.coord_mlp_vel.2", f"{ours}.velocity_out")
    if variant == "clean":
        pieces += linear("embedding_out", "node_out")
    if variant == "qm9":
        for name in ("node", "graph"):
            pieces += linear(f"{name}_dec.0", f"{name}_decoder.0") + linear(f"{name}_dec.2", f"{name}_decoder.2")
    return pieces


def _sample(record: Record, x: Tensor, h: Tensor, v: Tensor | None) -> Data:
    """The record's graphs; padded slots and masked edges of the QM9 form are dropped."""
    given = record.inputs
    row, col = given["edge_index"]
    edge_attr = given.get("edge_attr")
    graph = torch.zeros(len(x), dtype=torch.long)
    if "node_mask" in given:
        keep = given["node_mask"].flatten() > 0
        slots = len(x) // len(record.meta["graph_sizes"])
        graph = (torch.arange(len(x)) // slots)[keep]
        index = keep.cumsum(0) - 1
        edges = given["edge_mask"].flatten() > 0
        row, col = index[row[edges]], index[col[edges]]
        edge_attr = None if edge_attr is None else edge_attr[edges]
        x, h = x[keep], h[keep]
    return Data(pos=x, x=h, vel=v, edge_index=torch.stack([col, row]), edge_attr=edge_attr, batch=graph)


def replay(record: Record) -> dict[str, Tensor]:
    """Every output of the record, computed by our model."""
    variant = _variant(record)
    model = _build(record, variant)
    pieces = _pieces(model, variant)
    load_weights(model, pieces, record.params)
    inputs = {k: record.inputs[k].clone().requires_grad_() for k in ("x", "h", "v") if k in record.inputs}
    out = model(_sample(record, inputs["x"], inputs["h"], inputs.get("v")))
    results = {"pred": out["prediction"]} if variant == "qm9" else {"x": out["pos"], "h": out["h"]}
    loss = sum(
        ((results[k] - record.inputs[f"target_{k}"]) ** 2).mean() for k in results if f"target_{k}" in record.inputs
    )
    torch.autograd.backward(loss)
    gradients = {f"grad_{k}": torch.zeros_like(t) if t.grad is None else t.grad for k, t in inputs.items()}
    weights = {f"gradparam/{k}": g for k, g in weight_gradients(model, pieces).items()}
    return results | {"loss": loss} | gradients | weights
