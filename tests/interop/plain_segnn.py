# ruff: noqa: E741
"""SEGNN written down plainly from its equations, to make golden records with any option.

Loops over paths, concatenated inputs, everything in the layout of the original; coupling tensors from Racah's formula.
Nothing is shared with the library.
"""

import json
import re
from functools import cache
from math import factorial, sqrt

import numpy as np
import torch
from plain_reference import Weights, graphs, sum_at
from torch.nn.functional import silu

SILU, SIGMOID = 1.6791767923989418, 1.8467055342154763


def parse(irreps):
    """[(mul, l, p)] of a string such as 2x1o+1x0e."""
    terms = [re.fullmatch(r"(\d+)x(\d+)([eo])", term.strip()).groups() for term in irreps.split("+")]
    return [(int(mul), int(l), 1 if p == "e" else -1) for mul, l, p in terms if int(mul)]


def merge(blocks):
    """Join neighbours of one irrep."""
    found = []
    for mul, l, p in blocks:
        if found and found[-1][1:] == (l, p):
            found[-1] = (found[-1][0] + mul, l, p)
        else:
            found.append((mul, l, p))
    return found


def dim(blocks):
    return sum(mul * (2 * l + 1) for mul, l, _ in blocks)


def clebsch_gordan(l1, m1, l2, m2, l3, m3):
    if m3 != m1 + m2 or not abs(l1 - l2) <= l3 <= l1 + l2:
        return 0.0
    f = factorial
    total = 0.0
    for k in range(l1 + l2 + l3 + 1):
        terms = (k, l1 + l2 - l3 - k, l1 - m1 - k, l2 + m2 - k, l3 - l2 + m1 + k, l3 - l1 - m2 + k)
        if min(terms) >= 0:
            total += (-1) ** k / np.prod([float(f(t)) for t in terms])
    before = (2 * l3 + 1) * f(l3 + l1 - l2) * f(l3 - l1 + l2) * f(l1 + l2 - l3) / f(l1 + l2 + l3 + 1)
    return (
        sqrt(before) * sqrt(float(f(l3 + m3) * f(l3 - m3) * f(l1 - m1) * f(l1 + m1) * f(l2 - m2) * f(l2 + m2))) * total
    )


def real_basis(l):
    q = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    q[l, l] = 1
    for m in range(1, l + 1):
        q[l - m, l + m], q[l - m, l - m] = 1 / sqrt(2), -1j / sqrt(2)
        q[l + m, l + m], q[l + m, l - m] = (-1) ** m / sqrt(2), 1j * (-1) ** m / sqrt(2)
    return (-1j) ** l * q


@cache
def coupling(l1, l2, l3):
    cg = np.array(
        [
            [[clebsch_gordan(l1, i, l2, k, l3, n) for n in range(-l3, l3 + 1)] for k in range(-l2, l2 + 1)]
            for i in range(-l1, l1 + 1)
        ]
    )
    c = np.einsum("ij,kl,nm,ikn->jlm", real_basis(l1), real_basis(l2), real_basis(l3).conj(), cg).real
    return torch.tensor(c / np.linalg.norm(c))


def product(w, name, x, source, a, lmax, target):
    """Tensor product with attributes a of degrees 0 to lmax; flat weights in the order of the paths."""
    total = [torch.zeros(len(x), mul, 2 * l + 1, dtype=x.dtype) for mul, l, _ in target]
    allowed = [
        (i, l2, o)
        for i, (_, l1, p1) in enumerate(source)
        for l2 in range(lmax + 1)
        for o, (_, lo, po) in enumerate(target)
        if p1 * (-1) ** l2 == po and abs(l1 - l2) <= lo <= l1 + l2
    ]
    count = sum(source[i][0] * target[o][0] for i, _, o in allowed)
    flat = w.get(f"{name}.tp.weight", count)
    place, starts = 0, np.cumsum([0] + [mul * (2 * l + 1) for mul, l, _ in source])
    for i, l2, o in allowed:
        mul, l1, _ = source[i]
        mul_out, lo, _ = target[o]
        part = x[:, starts[i] : starts[i + 1]].reshape(len(x), mul, 2 * l1 + 1)
        mix = flat[place : place + mul * mul_out].view(mul, mul_out)
        place += mul * mul_out
        attribute = a[:, l2**2 : (l2 + 1) ** 2]
        term = torch.einsum("nui,nj,ijk,uw->nwk", part, attribute, coupling(l1, l2, lo).to(x), mix)
        total[o] = total[o] + sqrt(2 * lo + 1) * term
    scalars = sum(mul for mul, l, _ in target if l == 0)
    if scalars:
        bias, place = w.get(f"{name}.biases", scalars), 0
        for o, (mul, l, _) in enumerate(target):
            if l == 0:
                total[o] = total[o] + bias[place : place + mul, None]
                place += mul
    return torch.cat([t.flatten(1) for t in total], dim=1)


def before_gate(hidden):
    return merge([hidden[0], (sum(mul for mul, _, _ in hidden[1:]), 0, 1), *hidden[1:]]) if hidden[1:] else hidden


def gate(y, hidden):
    n = hidden[0][0]
    if not hidden[1:]:
        return silu(y)
    found, place, count = [SILU * silu(y[:, :n])], n, n + sum(mul for mul, _, _ in hidden[1:])
    for mul, l, _ in hidden[1:]:
        g = SIGMOID * torch.sigmoid(y[:, place : place + mul])
        place += mul
        part = y[:, count : count + mul * (2 * l + 1)].view(len(y), mul, -1)
        count += mul * (2 * l + 1)
        found.append((part * g[:, :, None]).flatten(1))
    return torch.cat(found, dim=1)


def normalise(w, name, f, blocks, mean_of, running=None):
    """`mean_of` averages rows; with `running` (mean, var) those are taken instead."""
    scale = w.get(f"{name}.weight", sum(mul for mul, _, _ in blocks))
    shift = w.get(f"{name}.bias", sum(mul for mul, l, _ in blocks if l == 0))
    found, column, channel, scalar = [], 0, 0, 0
    for mul, l, _ in blocks:
        part = f[:, column : column + mul * (2 * l + 1)].view(len(f), mul, -1)
        column += mul * (2 * l + 1)
        if l == 0:
            mean = mean_of(part[:, :, 0]) if running is None else running[0][scalar : scalar + mul]
            part = part - mean.reshape(-1, mul, 1)
        square = mean_of(part.square().mean(2)) if running is None else running[1][channel : channel + mul]
        part = part * (scale[channel : channel + mul] / (square + 1e-5).sqrt()).reshape(-1, mul, 1)
        if l == 0:
            part = part + shift[scalar : scalar + mul, None]
            scalar += mul
        channel += mul
        found.append(part.flatten(1))
    return torch.cat(found, dim=1)


def network(w, given, inputs, *, training=False):
    """Every output of a record but the gradients."""
    hidden, source, target = (parse(given[f"{k}_irreps"]) for k in ("hidden", "input", "output"))
    extra = parse(given["additional_message_irreps"]) if given["additional_message_irreps"] else []
    lmax, task, norm = given["lmax_attr"], given["task"], given["norm"]
    send, receive = inputs["edge_index"]
    a, batch = inputs["edge_attr"], inputs["batch"]
    b = torch.cat([torch.ones_like(inputs["node_attr"][:, :1]), inputs["node_attr"][:, 1:]], dim=1)
    graph_count = int(batch.max()) + 1
    gated = before_gate(hidden)

    def per_graph(rows):
        return sum_at(batch, rows, graph_count, mean=True)[batch]

    def batch_norm(name, f, blocks):
        if training:
            return normalise(w, name, f, blocks, lambda rows: rows.mean(0, keepdim=True))
        mean = w.get(f"{name}.running_mean", sum(mul for mul, l, _ in blocks if l == 0)).detach()
        var = w.get(f"{name}.running_var", sum(mul for mul, _, _ in blocks)).detach().abs() + 0.1
        w.running |= {f"{name}.running_mean": mean, f"{name}.running_var": var}
        return normalise(w, name, f, blocks, None, (mean, var))

    def tpg(name, x, blocks, attributes):
        return gate(product(w, name, x, blocks, attributes, lmax, gated), hidden)

    h = product(w, "embedding_layer", inputs["x"], source, b, lmax, hidden)
    found = {"h_embed": h}
    for k in range(given["num_layers"]):
        name = f"layers.{k}"
        pair = torch.cat([h[receive], h[send], *([inputs["additional_message_features"]] if extra else [])], dim=1)
        blocks = merge(hidden + hidden + extra)
        if given["model"] == "segnn":
            m1 = tpg(f"{name}.message_layer_1", pair, blocks, a)
            m = m2 = tpg(f"{name}.message_layer_2", m1, hidden, a)
            m = batch_norm(f"{name}.message_norm", m, hidden) if norm == "batch" else m
            total = sum_at(receive, m, len(h))
            u = tpg(f"{name}.update_layer_1", torch.cat([h, total], dim=1), merge(hidden + hidden), b)
            h = h + product(w, f"{name}.update_layer_2", u, hidden, b, lmax, hidden)
            mid = {"msg1_layer0": m1, "msg2_layer0": m2}
        else:
            if given["conv_type"] == "linear":
                m = product(w, f"{name}.message_layer", pair, blocks, a, lmax, gated)
                mid = {}
            else:
                m1 = tpg(f"{name}.message_layer_1", pair, blocks, a)
                m = product(w, f"{name}.message_layer_2", m1, hidden, a, lmax, gated)
                mid = {"msg1_layer0": m1, "msg2_layer0": m}
            m = batch_norm(f"{name}.message_norm", m, gated) if norm == "batch" else m
            h = h + gate(sum_at(receive, m, len(h)), hidden)
        if norm == "batch":
            h = batch_norm(f"{name}.feature_norm", h, hidden)
        elif norm == "instance":
            h = normalise(w, f"{name}.feature_norm", h, hidden, per_graph)
        found |= (mid if k == 0 else {}) | {f"h_layer{k}": h}
    h = tpg("pre_pool1", h, hidden, b)
    if task == "node":
        y = found["pre_pool2"] = product(w, "pre_pool2", h, hidden, b, lmax, target)
        return found | {"y": y}
    pooled = merge(target * sum(mul for mul, _, _ in hidden))
    z = found["pre_pool2"] = product(w, "pre_pool2", h, hidden, b, lmax, pooled)
    z = sum_at(batch, z, graph_count, mean=given["pool"] == "avg")
    one = torch.ones(len(z), 1, dtype=z.dtype)
    z = silu(product(w, "post_pool1", z, pooled, one, 0, pooled))
    return found | {"y": product(w, "post_pool2", z, pooled, one, 0, target)}


def random_inputs(given, sizes, *, per_node=None, seed=0):
    random = np.random.default_rng(seed)
    normal = lambda *shape: torch.tensor(random.normal(size=shape))  # noqa: E731
    row, col = graphs(sizes, per_node)
    nodes, width = sum(sizes), (given["lmax_attr"] + 1) ** 2
    inputs = {
        "edge_index": torch.stack([col, row]),
        "batch": torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        "x": normal(nodes, dim(parse(given["input_irreps"]))),
        "edge_attr": normal(len(row), width),
        "node_attr": normal(nodes, width),
        "pos": normal(nodes, 3),
    }
    if given["additional_message_irreps"]:
        inputs["additional_message_features"] = normal(len(row), dim(parse(given["additional_message_irreps"])))
    rows = nodes if given["task"] == "node" else len(sizes)
    inputs["cotangent"] = normal(rows, dim(parse(given["output_irreps"])))
    return inputs


def write_record(path, given, inputs, *, training=False, told=False):
    """A record as the original's looks; `told` says in it whether the batch norms were training."""
    w = Weights(1)
    w.running = {}
    leaves = ("x", "edge_attr", "node_attr", "additional_message_features")
    inputs = {k: v.clone().requires_grad_(k in leaves) for k, v in inputs.items()}
    found = network(w, given, inputs, training=training)
    (found["y"] * inputs["cotangent"]).sum().backward()
    parameters = {k: v for k, v in w.items() if k not in w.running}
    gradients = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in parameters.items()}
    found |= {f"grad_{k}": inputs[k].grad for k in leaves if k in inputs and inputs[k].grad is not None}
    # A norm takes away a shift, whose gradient is then rounding alone.
    found |= {f"gradparam_{k}": g for k, g in gradients.items() if g.numel() and g.abs().max() > 1e-10}
    found["param_grad_sqnorm"] = sum(g.square().sum() for g in gradients.values())[None]
    if given["task"] == "node" and found["y"].shape[1] == 3:
        found["pos_pred"] = inputs["pos"] + found["y"]
    if given["norm"] == "batch" and training:
        for name in [k.removesuffix(".weight") for k in parameters if "_norm.weight" in k]:
            parameters[f"{name}.running_mean"] = torch.zeros_like(parameters[f"{name}.bias"])
            parameters[f"{name}.running_var"] = torch.ones_like(parameters[f"{name}.weight"])
    config = given | ({"training": training} if told else {})
    arrays = {"meta": json.dumps({"system": "segnn", "dtype": "float64", "config": config})}
    for group, values in (("param", parameters | w.running), ("in", inputs), ("out", found)):
        arrays |= {f"{group}/{k}": v.detach().numpy() for k, v in values.items()}
    np.savez(path, **arrays)
    return path
