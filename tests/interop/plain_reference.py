"""EGNO and EGNN written down plainly from their equations, to make golden records with any option.

Loops over nodes, concatenated inputs, copied graphs and a complex FFT: nothing is shared with the library.
"""

import json

import numpy as np
import torch
from torch.nn.functional import leaky_relu, silu

rng = np.random.default_rng


class Weights(dict):
    """Parameters that come into being when they are first asked for."""

    def __init__(self, seed):
        super().__init__()
        self.rng = rng(seed)

    def get(self, name, *shape):
        if name not in self:
            self[name] = torch.tensor(self.rng.normal(0, 0.4, shape), requires_grad=True)
        return self[name]

    def linear(self, name, x, out, bias=True):
        y = x @ self.get(f"{name}.weight", out, x.shape[1]).T
        return y + self.get(f"{name}.bias", out) if bias else y

    def mlp(self, name, x, hidden, out, act, bias=True):
        return self.linear(f"{name}.2", act(self.linear(f"{name}.0", x, hidden)), out, bias)


def graphs(sizes, per_node=None, seed=0):
    """Row and column of complete graphs (or of `per_node` random neighbours), numbered one after the other."""
    row, col, first = [], [], 0
    random = rng(seed)
    for size in sizes:
        for i in range(size):
            others = [j for j in range(size) if j != i]
            if per_node is not None:
                others = random.permutation(others)[: min(per_node, i)].astype(int).tolist()
            row += [first + i] * len(others)
            col += [first + j for j in others]
        first += size
    return torch.tensor([row, col], dtype=torch.long).reshape(2, -1)


def sum_at(row, values, count, mean=False):
    """Sum (or mean) of the values of the edges of each row."""
    sums = []
    for i in range(count):
        mine = values[row == i]
        sums.append(mine.sum(0) / (max(len(mine), 1) if mean else 1))
    return torch.stack(sums)


def temporal_conv(weight, h, modes):
    """[T, ..., C] through rfft, a complex matrix per mode, irfft."""
    spectrum = torch.fft.rfft(h, dim=0)
    mixed = torch.zeros_like(spectrum)
    for k in range(modes):
        mixed[k] = spectrum[k] @ torch.complex(weight[:, :, k, 0], weight[:, :, k, 1])
    return torch.fft.irfft(mixed, n=len(h), dim=0)


def egno_layer(w, name, given, x, v, h, edges, edge_attr):
    act, hidden = (torch.tanh, 4 * given["hidden_nf"]) if given["flat"] else (silu, given["hidden_nf"])
    width = given["hidden_nf"]
    row, col = edges
    r = x[row] - x[col]
    q = r.square().sum(1, keepdim=True)
    if given["norm"]:
        q = q / q.abs().clamp(min=1e-12)
    inputs = [q, h[row], h[col]] + ([] if edge_attr is None else [edge_attr])
    m = act(w.mlp(f"{name}.edge_message_net.scalar_net.mlp", torch.cat(inputs, 1), hidden, width, act))
    g = w.mlp(f"{name}.coord_net.mlp", m, hidden, 1, act)
    f = sum_at(row, r * g, len(x), mean=True).clamp(-100, 100)
    if given["with_v"]:
        pushed = w.mlp(f"{name}.node_v_net.mlp", h, hidden, 1, act)
        f = f if v is None else f + pushed * v
    h = w.mlp(f"{name}.node_net.mlp", torch.cat([h, sum_at(row, m, len(x))], 1), hidden, width, act)
    return x + f, h


def egno(w, given, inputs):
    """EGNO: outputs x, v, h [T N, ...]."""
    steps, dim, count = given["num_timesteps"], given["time_emb_dim"], len(inputs["x"])
    half = dim // 2
    angle = torch.arange(steps).double()[:, None] * torch.exp(-torch.arange(half).double() * np.log(1e4) / (half - 1))
    time = torch.cat([angle.sin(), angle.cos(), torch.zeros(steps, dim % 2, dtype=torch.float64)], 1)
    h = torch.cat([torch.cat([inputs["h"], time[p].expand(count, -1)], 1) for p in range(steps)])
    h = w.linear("embedding", h, given["hidden_nf"])
    x, v, c = (torch.cat([inputs[name]] * steps) for name in ("x", "v", "loc_mean"))
    edges = torch.cat([inputs["edge_index"] + p * count for p in range(steps)], 1)
    attr = None if inputs.get("edge_attr") is None else torch.cat([inputs["edge_attr"]] * steps)
    found = {"mid/h_embed": h}
    for number in range(given["n_layers"]):
        if given["use_time_conv"]:
            modes, width = given["num_modes"], given["hidden_nf"]
            mix = w.get(f"time_conv_modules.{number}.t_conv.weights1", width, width, modes, 2)
            h = h + leaky_relu(temporal_conv(mix, h.view(steps, count, -1), modes)).reshape(h.shape)
            mix = w.get(f"time_conv_x_modules.{number}.t_conv.weights1", 2, 2, modes, 2)
            z = torch.stack([x - c, v], dim=-1).view(steps, count, 3, 2)
            z = z + temporal_conv(mix, z, modes)
            if number == 0:
                found |= {"mid/tconv_h_0": h.view(steps, count, -1), "mid/tconv_x_0": z}
            z = z.reshape(-1, 3, 2)
            x, v = z[..., 0] + c, z[..., 1]
        x, h = egno_layer(w, f"layers.{number}", given, x, v, h, edges, attr)
        if number == 0:
            found |= {"mid/layer0_x": x, "mid/layer0_h": h}
    return {"x": x, "v": v, "h": h} | found


def egno_backbone(w, given, inputs):
    """The EGNN of the EGNO code: outputs x, h (and v, untouched)."""
    h, x, v = w.linear("embedding", inputs["h"], given["hidden_nf"]), inputs["x"], inputs.get("v")
    found = {"mid/h_embed": h}
    for number in range(given["n_layers"]):
        name = f"layers.{number}"
        x, h = egno_layer(w, name, given, x, v, h, inputs["edge_index"], inputs.get("edge_attr"))
        if number == 0:
            found |= {"mid/layer0_x": x, "mid/layer0_h": h}
    return {"x": x, "h": h} | found | ({} if v is None else {"v": v})


def egnn(w, variant, given, inputs):
    """The three forms of EGNN: "clean" (x, h), "vel" (x), "qm9" (pred)."""
    width, option = given["hidden_nf"], lambda name: given.get(name, False)
    h0, x = inputs["h"], inputs["x"]
    row, col = inputs["edge_index"]
    h = w.linear("embedding_in" if variant == "clean" else "embedding", h0, width)
    for number in range(given["n_layers"]):
        name = f"gcl_{number}"
        d = x[row] - x[col]
        q = d.square().sum(1, keepdim=True)
        if option("normalize"):
            d = d / (q.sqrt().detach() + 1e-8)
        if option("norm_diff"):
            d = d / (q.sqrt() + 1)
        columns = [h[row], h[col], q] + ([inputs["edge_attr"]] if "edge_attr" in inputs else [])
        m = silu(w.mlp(f"{name}.edge_mlp", torch.cat(columns, 1), width, width, silu))
        if option("attention"):
            m = m * torch.sigmoid(w.linear(f"{name}.att_mlp.0", m, 1))
        if variant == "qm9":
            m = m * inputs["edge_mask"]
        else:
            shift = w.mlp(f"{name}.coord_mlp", m, width, 1, silu, bias=False)
            t = d * (shift.tanh() if option("tanh") else shift)
            if variant == "vel":
                t = t.clamp(-100, 100)
            moved = x + sum_at(row, t, len(x), mean=given.get("coords_agg", "mean") == "mean")
            if variant == "vel":
                moved = moved + w.mlp(f"{name}.coord_mlp_vel", h, width, 1, silu) * inputs["v"]
            x = moved
        columns = [h, sum_at(row, m, len(h))] + ([h0] if option("node_attr") else [])
        update = w.mlp(f"{name}.node_mlp", torch.cat(columns, 1), width, width, silu)
        residual = {"clean": given.get("residual", True), "vel": option("recurrent"), "qm9": True}[variant]
        h = h + update if residual else update
    if variant == "vel":
        return {"x": x}
    if variant == "clean":
        return {"x": x, "h": w.linear("embedding_out", h, given["out_node_nf"])}
    h = w.mlp("node_dec", h, width, width, silu) * inputs["node_mask"]
    molecules = h.view(inputs["molecules"], -1, width).sum(1)
    return {"pred": w.mlp("graph_dec", molecules, width, 1, silu)[:, 0]}


def egno_inputs(given, sizes, *, velocity=True, per_node=None, scale=1.0, seed=5):
    random = rng(seed)
    draw = lambda *shape: torch.tensor(random.normal(size=shape))  # noqa: E731
    count, edges = sum(sizes), graphs(sizes, per_node)
    inputs = {"x": scale * draw(count, 3), "h": draw(count, given["in_node_nf"]), "edge_index": edges}
    if given["in_edge_nf"]:
        inputs["edge_attr"] = draw(edges.shape[1], given["in_edge_nf"])
    if velocity:
        inputs["v"] = draw(count, 3)
    inputs["loc_mean"] = torch.cat([part.mean(0).expand(len(part), -1) for part in inputs["x"].split(sizes)])
    inputs["target"] = draw(count * given.get("num_timesteps", 1), 3)
    return inputs


def egnn_inputs(given, variant, sizes, *, scale=1.0, seed=6):
    random = rng(seed)
    draw = lambda *shape: torch.tensor(random.normal(size=shape))  # noqa: E731
    slots = max(sizes)
    count, edges = (
        (len(sizes) * slots, graphs([slots] * len(sizes))) if variant == "qm9" else (sum(sizes), graphs(sizes))
    )
    inputs = {"x": scale * draw(count, 3), "h": draw(count, given["in_node_nf"]), "edge_index": edges}
    if given.get("in_edge_nf"):
        inputs["edge_attr"] = draw(edges.shape[1], given["in_edge_nf"])
    if variant == "vel":
        inputs |= {"v": draw(count, 3), "target_x": draw(count, 3)}
    elif variant == "clean":
        inputs |= {"target_x": draw(count, 3), "target_h": draw(count, given["out_node_nf"])}
    else:
        real = torch.cat([torch.arange(slots) < size for size in sizes])
        inputs["node_mask"] = real[:, None].double()
        inputs["edge_mask"] = (real[edges[0]] & real[edges[1]])[:, None].double()
        inputs["h"] = inputs["h"] * inputs["node_mask"]
        inputs |= {"molecules": len(sizes), "target_pred": draw(len(sizes))}
    return inputs


def write_record(path, system, cls, given, sizes, inputs, compute, loss_of, dtype="float64"):
    """Run `compute(weights, inputs)` with gradients and write the golden record."""
    weights = Weights(seed=len(str(path.name)))
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("x", "h", "v") if name in inputs}
    out = compute(weights, inputs | leaves)
    loss = loss_of(out, inputs)
    loss.backward()
    zero = lambda t: torch.zeros_like(t) if t.grad is None else t.grad  # noqa: E731
    meta = {"system": system, "cls": cls, "constructor": given, "graph_sizes": list(sizes), "dtype": dtype}
    arrays = {f"param/{name}": value.detach() for name, value in weights.items()}
    arrays |= {f"in/{name}": value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    arrays |= {f"out/{name}": value.detach() for name, value in out.items()}
    arrays |= {f"out/grad_{name}": zero(leaf) for name, leaf in leaves.items()}
    arrays |= {f"out/gradparam/{name}": zero(value) for name, value in weights.items()}
    arrays["out/loss"] = loss.detach().reshape(1)
    cast = lambda t: t.float() if dtype == "float32" and t.is_floating_point() else t  # noqa: E731
    np.savez(path, meta=np.array(json.dumps(meta)), **{name: cast(value).numpy() for name, value in arrays.items()})
    return path


def egno_loss(out, inputs):
    loss = (out["x"] - inputs["target"]).square().mean() + 0.1 * out["h"].square().mean()
    return loss + 0.1 * out["v"].square().mean() if "v" in out else loss


def egnn_loss(out, inputs):
    return sum((value - inputs[f"target_{name}"]).square().mean() for name, value in out.items())
