"""ClofNet written down plainly from its equations, to make golden records with any option.

Concatenated inputs, orthodox cross products, loops over nodes and molecules: nothing is shared with the library.
"""

import json
import math

import numpy as np
import torch
from plain_reference import Weights, graphs, sum_at
from torch.nn.functional import relu, silu, softplus


def frame(x, row, col, scaled):
    """Rows d, n, b of each edge [E, 3, 3]."""
    d, n = x[row] - x[col], torch.cross(x[row], x[col], dim=1)
    if scaled:
        d, n = d / (d.norm(dim=1, keepdim=True) + 1), n / (n.norm(dim=1, keepdim=True) + 1)
    return torch.stack([d, n, torch.cross(d, n, dim=1)], dim=1)


def on_frame(rows, v):
    return torch.einsum("eki,ei->ek", rows, v)


def angle(a, b):
    cosine = (a * b).sum(1) / ((a.norm(dim=1) + 1e-5) * (b.norm(dim=1) + 1e-5))
    return torch.stack([(1 - cosine**2).sqrt(), cosine], dim=1)


def layer_norm(w, name, h):
    centred = h - h.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return unit * w.get(f"{name}.weight", h.shape[1]) + w.get(f"{name}.bias", h.shape[1])


def gaussians(w, square, product, count):
    kind = (product / 2 + 0.5).long()
    s = w.get("gbf.mul.weight", 8, 1)[kind] * square + w.get("gbf.bias.weight", 8, 1)[kind]
    width = w.get("gbf.stds.weight", 1, count).abs() + 1e-5
    return torch.exp(-0.5 * ((s - w.get("gbf.means.weight", 1, count)) / width) ** 2) / ((2 * 3.14159) ** 0.5 * width)


def newton(w, given, inputs):
    loc, vel, (row, col) = inputs["loc"], inputs["vel"], inputs["edge_index"]
    hidden, model, scaled = given["hidden_nf"], given["model"], given["norm_diff"]
    count, product = len(loc), inputs["charge_prod"]
    h = w.linear("embedding_node", vel.norm(dim=1, keepdim=True), hidden)
    centre = torch.cat([part.mean(0).expand(len(part), -1) for part in loc.split(given["n_nodes"])])
    x = loc - centre
    square = (loc[row] - loc[col]).square().sum(1, keepdim=True)
    rows = frame(x, row, col, scaled or model != "clof")
    ends = [on_frame(rows, x[row]), on_frame(rows, x[col])]
    z = [angle(*ends), *ends]
    if model != "clof_vel_gbf":
        z = [product, square, *z]
    if model != "clof":
        z += [on_frame(rows, vel[row]), on_frame(rows, vel[col])]
    z = torch.cat(z, 1)
    e = silu(w.linear("fuse_edge.2", silu(w.linear("fuse_edge.0", z, hidden // 2)), hidden // 2))
    out = {"fuse_in": z, "edge_feat": e}
    if model == "clof_vel_gbf":
        e = e + gaussians(w, square, product[:, 0], hidden // 2)
    if model == "clof":
        w.get("embedding_edge.0.weight", 8, 2), w.get("embedding_edge.0.bias", 8)
    for number in range(given["n_layers"]):
        name = f"gcl_{number}"
        rows = frame(x, row, col, scaled)
        q = (x[row] - x[col]).square().sum(1, keepdim=True)
        m = torch.cat([h[row], h[col], q, e], 1)
        for place in (0, 2, 4):
            m = silu(w.linear(f"{name}.edge_mlp.{place}", m, hidden))
        weight = w.mlp(f"{name}.coord_mlp", m, hidden, 3, silu, bias=False)
        weight = weight.tanh() if given["tanh"] else weight
        t = torch.einsum("ek,eki->ei", weight, rows).clamp(-100, 100)
        x = x + given["coords_weight"] * sum_at(row, t, count, mean=True)
        x = x + w.mlp(f"{name}.coord_mlp_vel", h, hidden, 1, silu) * vel
        u = w.mlp(f"{name}.node_mlp", torch.cat([h, sum_at(row, m, count)], 1), hidden, hidden, silu)
        u = h + u if given["recurrent"] else u
        h = layer_norm(w, f"{name}.layer_norm", h + u)
        out |= {f"h_layer{number}": h, f"xc_layer{number}": x}
    return out | {"y": x + centre}


def newton_record(path, given, systems, scale=1.0):
    """Run the plain network with gradients and write the golden record."""
    rng = np.random.default_rng(4)
    draw = lambda *shape: torch.tensor(rng.normal(size=shape))  # noqa: E731
    nodes, edges = given["n_nodes"], graphs([given["n_nodes"]] * systems)
    charges = torch.tensor(rng.choice([-1.0, 1.0], size=(nodes * systems, 1)))
    inputs = {"loc": scale * draw(nodes * systems, 3) + 2.0, "vel": draw(nodes * systems, 3), "edge_index": edges}
    inputs |= {"charges": charges, "charge_prod": charges[edges[0]] * charges[edges[1]]}
    inputs["cotangent"] = draw(nodes * systems, 3)
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("loc", "vel")}
    w = Weights(seed=9)
    out = newton(w, given, inputs | leaves)
    (out["y"] * inputs["cotangent"]).sum().backward()
    out |= {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}
    return _write(path, given, w, inputs, out)


def fourier(w, name, a, width):
    turned = 2 * math.pi * a[:, None] * w.get(name, width)
    return torch.cat([turned.sin(), turned.cos()], 1)


def hops(bonds, count, order):
    """Shortest ways of at most `order` bonds, by powers of the adjacency matrix: {(i, j): s}."""
    step = torch.zeros(count, count, dtype=torch.long)
    step[bonds[0], bonds[1]] = 1
    reach, found = torch.eye(count, dtype=torch.long), {}
    for s in range(1, order + 1):
        reach = reach @ step
        for i, j in reach.nonzero().tolist():
            if i != j:
                found.setdefault((i, j), s)
    return dict(sorted(found.items()))


def score(w, given, inputs, pos, sigma, act):
    """Score, edge features and node features; sigma per atom."""
    hidden, (row, col), kind = given["hidden_dim"], inputs["ext_index"], inputs["ext_type"]
    d = (pos[row] - pos[col]).norm(dim=1)
    e = w.linear("input_mlp.layers.0", fourier(w, "dist_gaussian_fourier.W", d, hidden), hidden)
    e = e * w.get("edge_emb.weight", 100, hidden)[kind]
    rows = frame(pos, row, col, True)
    ends = [on_frame(rows, pos[row]), on_frame(rows, pos[col])]
    placed = []
    for c in ends:
        both = [fourier(w, "coff_gaussian_fourier.W", c[:, k], hidden) for k in (0, 2)]
        placed.append(w.linear("coff_mlp", torch.cat(both, 1), hidden))
    p = act["mlp_act"](w.linear("project.layers.0", torch.cat([angle(*ends), *placed], 1), hidden))
    e = e + w.linear("project.layers.1", p, hidden)
    h, total = w.get("node_emb.weight", 100, hidden)[inputs["atom_type"]], torch.zeros_like(pos)
    for a in range(2):
        for b in range(2):
            g = transformer(w, f"model.transformers.{a}.{b}", h, e, row, col)
            g = act["gnn_act"](g) if b == 0 else g
            h = g + h if given["short_cut"] else g
        name = f"model.dynamic_mlp_modules.{a}"
        weight = w.mlp(name, torch.cat([h[row] * h[col], e], 1), 128, 3, softplus)
        total = total + sum_at(col, torch.einsum("ek,eki->ei", weight, rows), len(pos))
        w.get(f"model.equi_modules.{a}.eps", 1)
    return total / sigma[:, None], e, h


def transformer(w, name, h, e, row, col, heads=8):
    width = h.shape[1]
    q, k, v = (w.linear(f"{name}.MHA.lin_{part}", h, width) for part in ("query", "key", "value"))
    extra = w.linear(f"{name}.MHA.lin_edge", e, width, bias=False)
    o = []
    for i in range(len(h)):
        mine = (col == i).nonzero()[:, 0]
        keys, values = k[row[mine]] + extra[mine], v[row[mine]] + extra[mine]
        parts = []
        for head in range(heads):
            s = slice(head * width // heads, (head + 1) * width // heads)
            alpha = torch.softmax(keys[:, s] @ q[i, s] / (width / heads) ** 0.5, 0)
            parts.append(alpha @ values[:, s])
        o.append(torch.cat(parts))
    o = torch.stack(o) + w.linear(f"{name}.MHA.lin_skip", h, width)
    g = h + layer_norm(w, f"{name}.norm1", o)
    inner = silu(w.linear(f"{name}.FFN.0", g, width))
    return g + layer_norm(w, f"{name}.norm2", w.linear(f"{name}.FFN.3", inner, width))


ACTIVATIONS = {"relu": relu, "silu": silu, "softplus": softplus}


def score_record(path, given, sizes, power=2.0):
    """Chains of atoms with one ring bond each, noise, loss and gradients, as a golden record."""
    rng = np.random.default_rng(5)
    draw = lambda *shape: torch.tensor(rng.normal(size=shape))  # noqa: E731
    pairs, first = [], 0
    for size in sizes:
        pairs += [(first + i, first + i + 1) for i in range(size - 1)] + [(first, first + size - 2)]
        first += size
    one_way = torch.tensor(sorted({tuple(sorted(p)) for p in pairs})).T
    kinds = torch.tensor(rng.choice([1, 2, 3, 12], size=one_way.shape[1]))
    bonds, kinds = torch.cat([one_way, one_way.flip(0)], 1), torch.cat([kinds, kinds])
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    count, levels = sum(sizes), torch.tensor(np.geomspace(10.0, 0.1, 6))
    inputs = {
        "atom_type": torch.tensor(rng.choice([1, 6, 7, 8], size=count)),
        "pos": draw(count, 3),
        "bond_index": bonds,
        "bond_type": kinds,
        "batch": batch,
        "noise_level": torch.tensor(rng.integers(0, 6, len(sizes))),
        "coord_noise": draw(count, 3),
        "sigma": torch.tensor([0.7]).double(),
        "score_pos": draw(count, 3) + 0.5,
    }
    found = hops(bonds, count, given["order"])
    direct = dict(zip(map(tuple, bonds.T.tolist()), kinds.tolist(), strict=True))
    ext_index = torch.tensor(list(found)).T
    ext_type = torch.tensor([direct[pair] if s == 1 else 22 + s - 1 for pair, s in found.items()])
    graph = {"ext_index": ext_index, "ext_type": ext_type}
    act = {name: ACTIVATIONS[given[name]] for name in ("gnn_act", "mlp_act")}
    w = Weights(seed=11)
    run = lambda pos, sigma: score(w, given, inputs | graph, pos, sigma, act)  # noqa: E731
    at, e, h = run(inputs["score_pos"], inputs["sigma"].expand(count))
    sigma = levels[inputs["noise_level"]][batch]
    noisy = inputs["pos"] + sigma[:, None] * inputs["coord_noise"]
    s = run(noisy, sigma)[0]
    square = (s + (noisy - inputs["pos"]) / sigma[:, None] ** 2).square().sum(1)
    per_atom = 0.5 * square * sigma**power
    loss = torch.stack([part.mean() for part in per_atom.split(sizes)]).mean()
    loss.backward()
    out = {"score": at, "score_edge_attr": e, "score_node_feature": h, "loss": loss.reshape(1), "pert_pos": noisy}
    out |= {"scores_train": s, "train_gradient": s * sigma[:, None]}
    out |= {"edge_index": ext_index, "edge_type": ext_type, "edge_order": torch.tensor(list(found.values()))}
    for name in w:
        if name.endswith("fourier.W"):  # not trained
            w[name].grad = None
    config = {"train": {"anneal_power": power}, "model": given}
    return _write(path, config, w, inputs, out, {"sigmas": levels})


def _write(path, config, w, inputs, out, more=None):
    zero = lambda t: torch.zeros_like(t) if t.grad is None else t.grad  # noqa: E731
    out["param_grad_sqnorm"] = sum(zero(value).square().sum() for value in w.values()).reshape(1)
    # The bias of the keys drops out of the softmax: its gradient is zero to rounding.
    silent = ("fourier.W", "eps", "lin_key.bias")
    out |= {f"gradparam_{k}": zero(v) for k, v in w.items() if not k.endswith(silent)}
    meta = {"system": "clofnet", "case": "plain", "config": config, "dtype": "float64"}
    arrays = {f"param/{name}": value for name, value in (w | (more or {})).items()}
    arrays |= {f"in/{name}": value for name, value in inputs.items()}
    arrays |= {f"out/{name}": value for name, value in out.items()}
    np.savez(path, meta=np.array(json.dumps(meta)), **{k: v.detach().numpy() for k, v in arrays.items()})
    return path
