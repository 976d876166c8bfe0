"""NequIP written down plainly from its equations, in the original's layout, to make golden records with any option.

Paths one after the other, channels before components, one-hot contractions, a dense self-connection: nothing is shared
with the library, and the coupling coefficients are those of the table that comes with the records.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from plain_reference import Weights
from torch.nn.functional import silu

TABLE = np.load(Path(__file__).parents[1] / "golden/nequip/e3nn_conventions.npz", allow_pickle=False)
CONFIG = {
    "type_names": ["H", "C", "O"],
    "r_max": 3.0,
    "avg_num_neighbors": 3.5,
    "num_layers": 3,
    "l_max": 1,
    "parity": True,
    "num_features": 3,
    "num_bessels": 4,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 5,
    "per_type_energy_scales": {"H": 0.9, "C": 1.3, "O": 1.1},
    "per_type_energy_shifts": {"H": -13.5, "C": -1026.8, "O": -2037.8},
}
Z = {"H": 1, "C": 6, "O": 8}


def real(value):
    return torch.tensor(value, dtype=torch.float64)


def harmonics(r, l_max):
    """The polynomials up to degree 3."""
    x, y, z = (r / r.norm(dim=1, keepdim=True)).unbind(1)
    t, a, b = x * x + z * z, math.sqrt(3) * x * z, math.sqrt(3) / 2 * (z * z - x * x)
    rows = [[torch.ones_like(x)], [x, y, z], [a, math.sqrt(3) * x * y, y * y - t / 2, math.sqrt(3) * y * z, b]]
    third = [
        math.sqrt(5 / 6) * (a * z + b * x),
        math.sqrt(5) * a * y,
        math.sqrt(3 / 8) * (4 * y * y - t) * x,
        y * (2 * y * y - 3 * t) / 2,
        math.sqrt(3 / 8) * z * (4 * y * y - t),
        math.sqrt(5) * b * y,
        math.sqrt(5 / 6) * (b * z - a * x),
    ]
    return [math.sqrt(2 * k + 1) * torch.stack(row, 1) for k, row in enumerate([*rows, third][: l_max + 1])]


def envelope(x, p):
    u = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    return u * (x < 1)


def mlp(w, name, x, widths):
    for k, width in enumerate(widths):
        if k:
            x = silu(x)
        x = x @ (w.get(f"{name}.mlp.{2 * k}.weight", x.shape[1], width) * math.sqrt((2 if k else 1) / x.shape[1]))
    return x


def blocks(x, irreps):
    """{(d, p): [N, C, 2 d + 1]} of features in the original's layout."""
    found, start = {}, 0
    for d, p, c in irreps:
        found[d, p] = x[:, start : start + c * (2 * d + 1)].reshape(len(x), c, 2 * d + 1)
        start += c * (2 * d + 1)
    return found


def joined(parts):
    return torch.cat([part.flatten(1) for part in parts], 1)


def layer(w, name, config, h, irreps, hidden, first, edge, attributes, norm):
    """One layer; returns features and irreps before and after the nonlinearity."""
    i, j, harmonic, basis = edge
    flat = config.get("nonlinearity_type", "gate") == "norm"
    reach = {
        (l3, p1 * (-1) ** l2)
        for l1, p1, _ in irreps
        for l2 in range(config["l_max"] + 1)
        for l3 in range(abs(l1 - l2), l1 + l2 + 1)
    }
    kept = [b for b in hidden if b[:2] in reach]
    gated = [] if flat else [b for b in kept if b[0] > 0]
    gates = sum(c for _, _, c in gated)
    out = sorted([(d, p, c + gates if (d, p) == (0, 1) else c) for d, p, c in kept], key=lambda b: b[:2])
    wanted = {b[:2] for b in out}

    # Linear_1, normalised by the neighbours of the source
    x, start = blocks(h, irreps), 0
    flat_1 = w.get(f"{name}.conv.linear_1.weight", sum(c * c for _, _, c in irreps))
    for d, p, c in irreps:
        matrix = flat_1[start : start + c * c].view(c, c) / math.sqrt(c)
        x[d, p] = torch.einsum("nam,ab->nbm", x[d, p], matrix) * norm[:, None, None]
        start += c * c

    # tensor product, weights in loop order
    paths = [
        (l1, p1, c, l2, l3)
        for l1, p1, c in irreps
        for l2 in range(config["l_max"] + 1)
        for l3 in range(abs(l1 - l2), l1 + l2 + 1)
        if (l3, p1 * (-1) ** l2) in wanted
    ]
    widths = [config["radial_mlp_width"]] * config["radial_mlp_depth"] + [sum(path[2] for path in paths)]
    weights = mlp(w, f"{name}.conv.edge_mlp", basis, widths)
    messages, start = {}, 0
    for l1, p1, c, l2, l3 in paths:
        coupling = math.sqrt(2 * l3 + 1) * torch.tensor(TABLE[f"w3j/{l1}_{l2}_{l3}"])
        m = torch.einsum("abc,eua,eb->euc", coupling, x[l1, p1][j], harmonic[l2])
        m = m * weights[:, start : start + c, None]
        start += c
        summed = torch.zeros(len(h), c, 2 * l3 + 1, dtype=h.dtype).index_add(0, i, m)
        messages.setdefault((l3, p1 * (-1) ** l2), []).append(summed)
    mid = {key: torch.cat(parts, 1) for key, parts in messages.items()}

    # Linear_2
    sizes = [mid[b[:2]].shape[1] * b[2] for b in out]
    parts = w.get(f"{name}.conv.linear_2.weight", sum(sizes)).split(sizes)
    result = {}
    for part, b in zip(parts, out, strict=True):
        source = mid[b[:2]]
        matrix = part.view(source.shape[1], b[2]) / math.sqrt(source.shape[1])
        result[b[:2]] = torch.einsum("nam,ab->nbm", source, matrix)

    # self-connection
    if not first or config.get("learnable_shift"):
        channels = {b[:2]: b[2] for b in out}
        pairs = [(b, channels[b[:2]]) for b in irreps if b[:2] in channels]
        sizes = [b[2] * attributes.shape[1] * c for b, c in pairs]
        parts = w.get(f"{name}.conv.sc.weight", sum(sizes)).split(sizes)
        plain = blocks(h, irreps)
        for part, (b, c) in zip(parts, pairs, strict=True):
            tensor = part.view(b[2], -1, c) / math.sqrt(b[2] * attributes.shape[1])
            result[b[:2]] = result[b[:2]] + torch.einsum("num,ns,usv->nvm", plain[b[:2]], attributes, tensor)
    before = joined([result[b[:2]] for b in out])

    if flat:
        lengths = {key: value.norm(dim=2, keepdim=True) for key, value in result.items()}
        after = joined([result[b[:2]] * silu(lengths[b[:2]]) / lengths[b[:2]] for b in kept])
    else:
        even = 1.6791767923989418 * silu(result[0, 1])
        count = next(c for d, p, c in kept if (d, p) == (0, 1))
        parts, start = [even[:, :count]], count
        if (0, -1) in result:
            parts.append(1.5937334472592695 * torch.tanh(result[0, -1]))
        for b in gated:
            parts.append(result[b[:2]] * even[:, start : start + b[2]])
            start += b[2]
        after = joined(parts)
    if config.get("convnet_resnet") and kept == list(irreps):
        after = after + h
    return before, after, kept


def nequip(w, config, inputs):
    """All outputs of a record but the derivatives."""
    names, count = config["type_names"], len(config["type_names"])
    types, pos, batch = inputs["atom_types"], inputs["pos"], inputs["batch"]
    per_type = lambda value: real([value[n] if isinstance(value, dict) else value for n in names])  # noqa: E731
    i, j = inputs["edge_index"]
    vec = pos[j] - pos[i]
    if "edge_cell_shift" in inputs:
        vec = vec + torch.einsum("ea,eab->eb", inputs["edge_cell_shift"], inputs["cell"][batch[i]])
    r = vec.norm(dim=1, keepdim=True)
    recip = 1 / config["r_max"]
    w["edge_norm._rmax_recip"] = real(recip)
    if "per_edge_type_cutoff" in config:
        table = torch.full((count, count), float(config["r_max"]), dtype=torch.float64)
        for a, row in config["per_edge_type_cutoff"].items():
            for b in names:
                value = row if not isinstance(row, dict) else row.get(b, config["r_max"])
                table[names.index(a), names.index(b)] = value
        w["edge_norm._rmax_recip"] = (1 / table).flatten()
        recip = 1 / table[types[i], types[j]][:, None]
    x = r * recip
    roots = w.get("bessel_encode.bessel_weights", 1, config["num_bessels"]).detach() * 0.1
    roots = roots + torch.arange(1, config["num_bessels"] + 1)
    w["bessel_encode.bessel_weights"] = roots
    basis = 2 * math.pi / config["r_max"] ** 2 * roots * torch.sinc(roots * x)
    basis = basis * envelope(x, config.get("polynomial_cutoff_p", 6))

    width = config.get("type_embed_num_features", np.atleast_1d(config["num_features"])[0])
    embedded = [w.get("type_embed.embed_module.weight", count, int(width))[types]]
    for entry in config.get("categorical_graph_field_embed", []):
        name = f"type_embed.categorical_graph_field_embed_modules.{entry['field']}.weight"
        table = w.get(name, entry["max"] - entry["min"] + 1, entry["num_features"])
        embedded.append(table[inputs[entry["field"]][:, 0][batch] - entry["min"]])
    a = h = torch.cat(embedded, 1)
    found = {"type_embed.node_attrs": a, "edge_norm.normed_edge_lengths": x, "factor.edge_embedding": basis}
    harmonic = harmonics(vec, config["l_max"])
    found["spharm.edge_attrs"] = torch.cat(harmonic, 1)

    channels = np.broadcast_to(config["num_features"], config["l_max"] + 1).tolist()
    both = lambda d: (1, -1) if config["parity"] else ((-1) ** d,)  # noqa: E731
    hidden = [(d, p, c) for d, c in enumerate(channels) for p in both(d)]
    irreps = [(0, 1, h.shape[1])]
    norm = per_type(config["avg_num_neighbors"])[types].rsqrt()
    for t in range(config["num_layers"]):
        wanted = hidden if t < config["num_layers"] - 1 else hidden[:1]
        edge = (i, j, harmonic, basis)
        before, h, irreps = layer(w, f"layer{t}_convnet", config, h, irreps, wanted, t == 0, edge, a, norm)
        found |= {f"layer{t}_convnet.conv.node_features": before, f"layer{t}_convnet.node_features": h}
    depth, inner = config.get("readout_mlp_hidden_layers_depth", 0), config.get("readout_mlp_hidden_layers_width", 0)
    energy = mlp(w, "per_atom_energy_readout.mlp_module", h, [inner] * depth + [1])
    found["per_atom_energy_readout.atomic_energy"] = energy
    for name in ("scales", "shifts"):
        value = config.get(f"per_type_energy_{name}")
        if value is not None:
            full = real([[value]]) if not isinstance(value, dict) else per_type(value)[:, None]
            w[f"per_type_energy_scale_shift.{name}"] = full
            energy = (
                energy * full.expand(count, 1)[types] if name == "scales" else energy + full.expand(count, 1)[types]
            )
    found["per_type_energy_scale_shift.atomic_energy"] = energy
    if "pair_potential" in config:
        k = {"metal": 14.399645, "real": 332.06371}[config["pair_potential"]["units"]]
        z = real([Z[n] for n in names])
        w["pair_potential.atomic_numbers"], w["pair_potential._qqr2exesquare"] = z, real(k / 2)
        zi, zj = z[types[i]][:, None], z[types[j]][:, None]
        q = (zi**0.23 + zj**0.23) * r / 0.46850
        psi = 0.02817 * (-0.20162 * q).exp() + 0.28022 * (-0.40290 * q).exp()
        psi = psi + 0.50986 * (-0.94229 * q).exp() + 0.18175 * (-3.19980 * q).exp()
        pair = 0.5 * k * zi * zj / r * psi * envelope(x, 6)
        energy = energy + torch.zeros_like(energy).index_add(0, i, pair)
        found["pair_potential.atomic_energy"] = energy
    total = torch.zeros(int(batch.max()) + 1, 1, dtype=torch.float64).index_add(0, batch, energy)
    return {"total_energy": total, "atomic_energy": energy} | found


def inputs_of(config, sizes, *, periodic=False, seed=3):
    """Random graphs with all edges within the cutoff, centre first, in no particular order."""
    random = np.random.default_rng(seed)
    pos, edges, shifts, cells, first = [], [], [], [], 0
    for size in sizes:
        cell = 2.2 * (np.eye(3) + 0.2 * random.normal(size=(3, 3)))
        here = random.uniform(0, 1, size=(size, 3)) @ (cell if periodic else 3 * np.eye(3))
        images = list(np.ndindex(5, 5, 5)) if periodic else [(2, 2, 2)]
        for s in np.array(images) - 2:
            for a, b in np.ndindex(size, size):
                if (a != b or s.any()) and 0 < np.linalg.norm(here[b] + s @ cell - here[a]) < config["r_max"]:
                    edges.append((first + a, first + b))
                    shifts.append(s)
        pos.append(here)
        cells.append(cell)
        first += size
    order = random.permutation(len(edges))
    types = random.integers(0, len(config["type_names"]), first)
    inputs = {
        "pos": np.concatenate(pos),
        "atom_types": types,
        "edge_index": np.array(edges)[order].T,
        "batch": np.repeat(np.arange(len(sizes)), sizes),
        "num_atoms": np.array(sizes),
    }
    if periodic:
        inputs |= {"cell": np.array(cells), "pbc": np.ones((len(sizes), 3), bool)}
        inputs["edge_cell_shift"] = np.array(shifts, float)[order]
    for entry in config.get("categorical_graph_field_embed", []):
        inputs[entry["field"]] = random.integers(entry["min"], entry["max"] + 1, (len(sizes), 1))
    return {name: torch.tensor(value) for name, value in inputs.items()}


def write_record(path, config, sizes, *, periodic=False):
    """A golden record of the plain model."""
    config = CONFIG | config
    inputs = inputs_of(config, sizes, periodic=periodic)
    weights = Weights(seed=7)
    pos, strain = inputs["pos"].clone().requires_grad_(), torch.zeros(len(sizes), 3, 3, dtype=torch.float64)
    symmetric = 0.5 * (strain.requires_grad_() + strain.mT)
    moved = inputs | {"pos": pos + torch.einsum("na,nab->nb", pos, symmetric[inputs["batch"]])}
    if periodic:
        moved["cell"] = inputs["cell"] + inputs["cell"] @ symmetric
    out = nequip(weights, config, moved)
    by_pos, by_strain = torch.autograd.grad(out["total_energy"].sum(), (pos, strain))
    out |= {"forces": -by_pos, "virial": -by_strain}
    if periodic:
        out["stress"] = by_strain / torch.linalg.det(inputs["cell"]).abs()[:, None, None]
    meta = {"system": "nequip", "config": config, "dtype": "float64"}
    arrays = {f"param/model.func.{name}": value.detach() for name, value in weights.items()}
    arrays |= {f"in/{name}": value for name, value in inputs.items()}
    arrays |= {f"out/{name}": value.detach() for name, value in out.items()}
    np.savez(path, meta=np.array(json.dumps(meta)), **{name: value.numpy() for name, value in arrays.items()})
    return path
