"""Implicit steerable kernels written down plainly, to make golden records with any option.

Representations are matrices of group elements, equivariant bases null spaces, kernels one dense matrix per
edge; nothing is shared with the library.
"""

import json
import math

import numpy as np
import torch
from torch.nn.functional import elu

rng = np.random.default_rng


def harmonics(x):
    """Racah-normalised real spherical harmonics up to l = 3, times r^l, one list entry per l."""
    x, y, z = x.unbind(-1)
    r = x * x + y * y + z * z
    s = math.sqrt
    rows = [
        [torch.ones_like(x)],
        [y, z, x],
        [s(3) * x * y, s(3) * y * z, (3 * z * z - r) / 2, s(3) * x * z, s(3) / 2 * (x * x - y * y)],
        [
            s(5 / 8) * y * (3 * x * x - y * y),
            s(15) * x * y * z,
            s(3 / 8) * y * (5 * z * z - r),
            z * (5 * z * z - 3 * r) / 2,
            s(3 / 8) * x * (5 * z * z - r),
            s(15) / 2 * z * (x * x - y * y),
            s(5 / 8) * x * (x * x - 3 * y * y),
        ],
    ]
    return [torch.stack(row, -1) for row in rows]


POINTS = torch.tensor(rng(3).normal(size=(40, 3)))


def wigner(order, g):
    return torch.linalg.lstsq(harmonics(POINTS)[order], harmonics(POINTS @ g.T)[order]).solution.T


def turn(angle):
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def angle_of(g):
    """Angle of the rotation, which follows a reflection across the x axis if there is one."""
    return math.atan2(g[1, 0], g[0, 0])


def circle_irrep(f, g, k=None):
    """Irreps of O(2) restricted to what is at hand; `g` is 2 x 2, or 3 x 3 about z."""
    det = torch.linalg.det(g[:2, :2])
    if f == 0:
        return (det if k else det**0).reshape(1, 1)
    return turn(f * angle_of(g)) @ torch.diag(torch.stack([det**0, det]))


def elements(group, dimension):
    """A few elements that generate the group, or a dense part of it."""
    embed = lambda m: torch.block_diag(m, torch.ones(1, 1)).double() if dimension == 3 else m  # noqa: E731
    flip = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    some = torch.linalg.qr(torch.tensor(rng(1).normal(size=(2, 3, 3)))).Q
    some = some * torch.linalg.det(some)[:, None, None]
    return {
        "SO(2)": [embed(turn(1.0))],
        "O(2)": [embed(turn(1.0)), embed(flip)],
        "C2": [embed(turn(math.pi))],
        "SO(3)": list(some),
        "O(3)": [*some, -torch.eye(3, dtype=torch.float64)],
    }[group]


class Field:
    """A representation: a name and the matrix of each generating element."""

    def __init__(self, name, matrices):
        self.name, self.matrices, self.size = name, matrices, len(matrices[0])

    def __matmul__(self, other):
        pairs = zip(self.matrices, other.matrices, strict=True)
        return Field(f"{self.name} X {other.name}", [torch.kron(a, b) for a, b in pairs])


def fields(group, dimension):
    """Standard, scalar, pseudoscalar, scalar + standard, and the hidden field with its sampling matrix of band 3."""
    gs = elements(group, dimension)
    one = [torch.ones(1, 1, dtype=torch.float64) for _ in gs]
    det = [torch.linalg.det(g).reshape(1, 1) for g in gs]
    both = [torch.block_diag(a, g) for a, g in zip(one, gs, strict=True)]
    found = {
        "vector": Field("standard", gs),
        "scalar": Field("irrep_0,0", one),
        "pseudo": Field("irrep_1,0", det),
        "scalar+vector": Field("[irrep_0,0]_[standard]", both),
    }
    if group in ("SO(3)", "O(3)"):
        order = (2, 1, 3, 0)
        found["hidden"] = Field("quotient_[2|1|3|0]", [torch.block_diag(*(wigner(f, g) for f in order)) for g in gs])
        points = torch.tensor(rng(4).normal(size=(60, 3)))
        points = points / points.norm(dim=1, keepdim=True)
        samples = torch.cat([harmonics(points)[f] for f in order], 1) / 2
    elif group == "C2":
        found["hidden"] = Field("regular", [torch.eye(2, dtype=torch.float64).flip(0)])
        samples = None
    else:
        irreps = [(2, 1), (0, 0), (1, 1), (3, 1)]
        if group == "O(2)":
            irreps = [(2, 1), (2, 1), (0, 0), (1, 1), (1, 1), (0, 1), (3, 1), (3, 1)]
        found["hidden"] = Field(
            "regular_[...]", [torch.block_diag(*(circle_irrep(f, g, k) for f, k in irreps)) for g in gs]
        )
        samples = torch.tensor(rng(5).normal(size=(50, found["hidden"].size))) / 3
    return found, samples


def null_space(matrix):
    _, values, vectors = torch.linalg.svd(matrix)
    return vectors[(values > 1e-9).sum() :]


def basis(source, target):
    """Maps B with B ρ_source = ρ_target B, [K, d_target, d_source]."""
    eye_in, eye_out = torch.eye(source.size, dtype=torch.float64), torch.eye(target.size, dtype=torch.float64)
    pairs = zip(source.matrices, target.matrices, strict=True)
    rows = torch.cat([torch.kron(b, eye_in) - torch.kron(eye_out, a.T.contiguous()) for a, b in pairs])
    return null_space(rows).view(-1, target.size, source.size)


def invariant(field):
    eye = torch.eye(field.size, dtype=torch.float64)
    return null_space(torch.cat([matrix - eye for matrix in field.matrices])).T


class Draw:
    """Random numbers and the parameters made of them."""

    def __init__(self, seed):
        self.rng, self.params = rng(seed), {}

    def normal(self, *shape, scale=0.5):
        return torch.tensor(self.rng.normal(0, scale, shape))

    def put(self, name, value):
        self.params[name] = value
        return value

    def linear(self, name, sources, target, copies):
        """An equivariant map from [(copies, field), ...]; blocks without a basis are zero and leave no key."""
        parts = []
        for count, source in sources:
            known = basis(source, target)
            if len(known):
                self.put(
                    f"{name}._basisexpansion.block_expansion_('{source.name}', 'out').sampled_basis", known[..., None]
                )
            weights = self.normal(copies, count, len(known))
            parts.append(torch.einsum("oik,kab->oaib", weights, known).reshape(copies * target.size, -1))
        matrix = self.put(f"{name}.matrix", torch.cat(parts, 1))
        return matrix, self.bias(name, target, copies)

    def bias(self, name, field, copies):
        columns = invariant(field)
        if not columns.shape[1]:
            return torch.zeros(copies * field.size, dtype=torch.float64)
        dot = "." if name else ""
        expansion = self.put(f"{name}{dot}bias_expansion", torch.kron(torch.eye(copies, dtype=torch.float64), columns))
        bias = self.put(f"{name}{dot}bias", self.normal(copies * columns.shape[1]))
        return self.put(f"{name}{dot}expanded_bias", expansion @ bias)

    def norm(self, name, field, copies):
        """Field batch norm as a function of (h, train)."""
        columns = invariant(field)
        prefix = f"{name}.{field.name}_"
        weight = self.put(f"{prefix}weight", 1 + self.normal(copies, 1, scale=0.2))
        bias = self.put(f"{prefix}bias", self.normal(copies, columns.shape[1]))
        self.put(f"{prefix}change_of_basis", columns)
        self.put(f"{prefix}avg", columns @ columns.T)
        mean = self.put(f"{prefix}running_mean", self.normal(copies, columns.shape[1]) @ columns.T)
        var = self.put(f"{prefix}running_var", self.normal(copies, 1).exp())
        self.put(f"{name}.num_batches_tracked", torch.tensor(7))

        def apply(h, train=False, after=None):
            h = h.view(len(h), copies, field.size)
            m, v = mean, var
            if train:
                m = h.detach().mean(0) @ columns @ columns.T
                v = h.detach().var(0).mean(1, keepdim=True)
                after[f"{prefix}running_mean"] = 0.9 * mean + 0.1 * m
                after[f"{prefix}running_var"] = 0.9 * var + 0.1 * v
            return ((h - m) * weight / (v + 1e-5).sqrt() + bias @ columns.T).flatten(1)

        return apply

    def activation(self, name, field, samples):
        if samples is None:
            return torch.relu
        back = torch.linalg.solve(samples.T @ samples + 1e-8 * torch.eye(field.size, dtype=torch.float64), samples.T)
        self.put(f"{name}.A", samples)
        self.put(f"{name}.Ainv", back)
        return lambda h: (elu(h.view(len(h), -1, field.size) @ samples.T) @ back.T).flatten(1)


def kernel_network(draw, prefix, given, samples, hidden, source, target, copies, layers, channels, *, norm=True):
    """The kernel network as a function of (its input, train, after), which gives every stage."""
    c_out, c_in = copies
    stages, number, current = [], 0, given
    dense = lambda m, b: lambda h, *_: h @ m.T + b  # noqa: E731
    for _ in range(layers - 1):
        stages.append(dense(*draw.linear(f"{prefix}mlp.mlp.{number}", current, hidden, channels)))
        activation = draw.activation(f"{prefix}mlp.mlp.{number + 1}", hidden, samples)
        stages.append(lambda h, *_, activation=activation: activation(h))
        if norm:
            apply = draw.norm(f"{prefix}mlp.mlp.{number + 2}", hidden, channels)
            stages.append(apply)
        number, current = number + 2 + norm, [(channels, hidden)]
    stages.append(dense(*draw.linear(f"{prefix}mlp.mlp.{number}", current, target @ source, c_out * c_in)))

    def run(h, train=False, after=None):
        found = []
        for stage in stages:
            h = stage(h, train, after) if stage in stages else h
            found.append(h)
        k = h.view(len(h), c_out, c_in, target.size, source.size).permute(0, 1, 3, 2, 4)
        return k.reshape(len(h), c_out * target.size, c_in * source.size), found

    return run


def envelope(draw, prefix, c_out):
    width = draw.put(f"{prefix}shell_width", torch.full((1, 1, 1), 0.8, dtype=torch.float64))
    return lambda r: (r.square().sum(1) / (-2 * width.flatten() ** 2)).exp()[:, None, None] / math.sqrt(c_out)


def convolve(kernels, x, edge_index, targets, mean=False):
    rows = []
    for i in range(targets):
        mine = edge_index[1] == i
        total = sum(
            (k @ x[j] for k, j in zip(kernels[mine], edge_index[0][mine], strict=True)), x.new_zeros(kernels.shape[1])
        )
        rows.append(total / max(int(mine.sum()), 1) if mean else total)
    return torch.stack(rows)


def random_graph(nodes, targets, per_target, seed=0):
    random = rng(seed)
    pairs = [
        (j, i) for i, count in zip(range(targets), per_target, strict=False) for j in random.permutation(nodes)[:count]
    ]
    return torch.tensor(pairs).T.contiguous()


def point_record(path, group, *, dimension=3, copies=(3, 2), attributes=("scalar", "vector"), layers=3, channels=3,
                 down=False, dtype="float64", hubs=False):  # fmt: skip
    """Version 2, points; `down` for targets that are a part of the points."""
    draw = Draw(11)
    known, samples = fields(group, dimension)
    field, (c_out, c_in) = known["scalar+vector"], copies
    given = [(1, known["vector"]), *((1, known[name]) for name in attributes)]
    nodes, per = 9, ([9, 1, 1, 0, 1, 1, 1, 1, 1] if hubs else [3, 0, 5, 4, 2, 3, 3, 4, 1])
    chosen = torch.tensor([4, 1, 7]) if down else torch.arange(nodes)
    edges = random_graph(nodes, len(chosen), per)
    pos = draw.normal(nodes, dimension, scale=1.0)
    leaf = lambda t: t.requires_grad_()  # noqa: E731
    r = leaf(pos[chosen[edges[1]]] - pos[edges[0]])
    x = leaf(draw.normal(nodes, c_in * field.size))
    width = sum(known[name].size for name in attributes)
    attr = leaf(draw.normal(edges.shape[1], width)) if width else None
    prefix = "implicit_kernel."
    network = kernel_network(draw, prefix, given, samples, known["hidden"], field, field, copies, layers, channels)
    factor = envelope(draw, prefix, c_out)
    bias = draw.bias("", field, c_out)
    entry = r if attr is None else torch.cat([r, attr], 1)
    kernels, stages = network(entry)
    kernels = kernels * factor(r)
    y = convolve(kernels, x, edges, len(chosen)) + bias
    cotangent = draw.normal(*y.shape)
    leaves = {"x": x, "edge_delta": r} | ({} if attr is None else {"edge_attr": attr})
    gradients = torch.autograd.grad((y * cotangent).sum(), list(leaves.values()))
    after = {}
    y_train = convolve(network(entry, True, after)[0] * factor(r), x, edges, len(chosen)) + bias
    inputs = leaves | {"pos": pos, "edge_index": edges, "cotangent": cotangent}
    if down:
        inputs["idx_downsampled"] = chosen
    out = {"y": y, "kernel": kernels, "y_train": y_train} | {f"mlp{k}": h for k, h in enumerate(stages)}
    out |= {f"grad_{k}": g for k, g in zip(leaves, gradients, strict=True)}
    out |= {f"after_train/{k}": v for k, v in after.items()}
    return write(path, {"layer": "ImplicitPointConv", "c_in": c_in, "c_out": c_out}, draw.params, inputs, out, dtype)


def grid_record(path, group, *, dimension=2, size=7, copies=(2, 2), kernel_size=3, scalars=2, layers=2, cached=False,
                **window):  # fmt: skip
    """Version 2, grids; `cached` for the filter that the original makes in training mode and keeps."""
    draw = Draw(12)
    known, samples = fields(group, dimension)
    field, (c_out, c_in) = known["scalar+vector"], copies
    given = [(1, known["vector"])] + ([(scalars, known["scalar"])] if scalars else [])
    prefix, k = "implicit_kernel.", kernel_size
    network = kernel_network(draw, prefix, given, samples, known["hidden"], field, field, copies, layers, 4)
    factor = envelope(draw, prefix, c_out)
    bias = draw.bias("", field, c_out)
    axis = (torch.arange(k, dtype=torch.float64) - k // 2) / max(k // 2, 1)
    grid = torch.stack(torch.meshgrid(*[axis] * dimension, indexing="ij"), -1).view(-1, dimension)
    attr = draw.normal(1, scalars) if scalars else None
    entry = grid if attr is None else torch.cat([grid, attr.expand(len(grid), -1)], 1)
    kernels = network(entry, cached, {})[0] * factor(grid)
    x = draw.normal(2 if attr is None else 1, c_in * field.size, *[size] * dimension).requires_grad_()
    weight = kernels.permute(1, 2, 0).reshape(*kernels.shape[1:], *[k] * dimension)
    conv = torch.nn.functional.conv2d if dimension == 2 else torch.nn.functional.conv3d
    y = conv(x, weight, **window) + bias.view(-1, *[1] * dimension)
    cotangent = draw.normal(*y.shape)
    (gradient,) = torch.autograd.grad((y * cotangent).sum(), [x])
    if cached:
        draw.put("filter", kernels)
    config = {"layer": "ImplicitConv", "c_in": c_in, "c_out": c_out, "kernel_size": k, **window}
    inputs = {"x": x, "grid": grid, "cotangent": cotangent} | ({} if attr is None else {"attr": attr})
    return write(path, config, draw.params, inputs, {"y": y, "filter": kernels, "grad_x": gradient})


def version_1_record(path, *, order=2, copies=(2, 3), scalars=2, layers=3):
    """Version 1, points, O(3)."""
    draw = Draw(13)
    known, samples = fields("O(3)", 3)
    gs = elements("O(3)", 3)
    field, (c_out, c_in) = known["scalar+vector"], copies
    stacked = [torch.block_diag(*(wigner(f, g) for f in range(order + 1))) for g in gs]
    hp = Field("O(3):quotient", stacked)
    given = [(1, hp)] + ([(scalars, known["scalar"])] if scalars else [])
    edges = random_graph(8, 8, [3, 0, 5, 4, 2, 3, 3, 4])
    r = draw.normal(edges.shape[1], 3, scale=0.8).requires_grad_()
    x = draw.normal(8, c_in * field.size).requires_grad_()
    attr = draw.normal(edges.shape[1], scalars) if scalars else None
    prefix = "implicit_kernel."
    weight = draw.put(f"{prefix}bn_coords.standard_weight", torch.tensor([[1.3]]).double())
    var = draw.put(f"{prefix}bn_coords.standard_running_var", torch.tensor([[0.6]]).double())
    polynomials = harmonics(r * (weight / (var + 1e-5).sqrt()))[: order + 1]
    signs = [1, 1, -1, -1]
    polynomials = [sign * p for sign, p in zip(signs, polynomials, strict=False)]
    probe = harmonics(torch.tensor(rng(8).normal(size=(80, 3))))
    for f in range(1, order + 1):  # as the original: from the product of the order below and the vector
        theirs = [sign * p for sign, p in zip(signs, probe, strict=False)]
        below = torch.stack([probe[1][:, k] for k in (2, 0, 1)], 1) if f == 1 else None
        product = below if f == 1 else torch.einsum("pa,pb->pab", theirs[f - 1], theirs[1]).flatten(1)
        draw.put(
            f"{prefix}hp.harmonics_generator.cob_{f}", torch.linalg.lstsq(product, theirs[f], driver="gelsd").solution.T
        )
    normed = []
    for f, p in enumerate(polynomials):
        name = f"{prefix}bn_hp.irrep_{f % 2},{f}_"
        w = draw.put(f"{name}weight", torch.tensor([[0.7 + 0.2 * f]]).double())
        v = draw.put(f"{name}running_var", torch.tensor([[0.5 + 0.1 * f]]).double())
        if f == 0:
            p = p - draw.put(f"{name}running_mean", torch.tensor([[0.3]]).double())
            shift = draw.put(f"{name}bias", torch.tensor([[0.2]]).double())
            draw.put(f"{name}avg", torch.ones(1, 1).double())
            draw.put(f"{name}change_of_basis", torch.ones(1, 1).double())
        normed.append(p * w / (v + 1e-5).sqrt() + (shift if f == 0 else 0))
    network = kernel_network(draw, prefix, given, samples, known["hidden"], field, field, copies, layers, 3, norm=False)
    inner = draw.put(f"{prefix}inv_scale", torch.tensor(0.9).double())
    std = draw.put(f"{prefix}inv_std", draw.normal(1, c_out, c_in, 1, 1).exp())
    bias = draw.bias("", field, c_out)
    kernels, _ = network(torch.cat([*normed, *([] if attr is None else [attr])], 1))
    scale = std.expand(1, c_out, c_in, field.size, field.size).permute(0, 1, 3, 2, 4).reshape(1, *kernels.shape[1:])
    falloff = (-0.5 * r.square().sum(1) * inner**2).exp()[:, None, None]
    kernels = kernels * falloff * scale * 2 / math.sqrt(c_in * c_out)
    y = convolve(kernels, x, edges, 8, mean=True) + bias
    cotangent = draw.normal(*y.shape)
    gradients = torch.autograd.grad((y * cotangent).sum(), [x, r])
    inputs = {"x": x, "edge_index": edges, "edge_delta": r, "cotangent": cotangent}
    inputs |= {} if attr is None else {"edge_attr": attr}
    out = {"y": y, "kernel": kernels, "harmonics": torch.cat(polynomials, 1), "grad_x": gradients[0]}
    out["grad_edge_delta"] = gradients[1]
    return write(path, {"layer": "v1", "c_in": c_in, "c_out": c_out}, draw.params, inputs, out)


def write(path, config, params, inputs, outputs, dtype="float64"):
    meta = {"system": "implicit_steerable_kernels", "config": config, "dtype": dtype}
    arrays = {f"param/{k}": v for k, v in params.items()}
    arrays |= {f"in/{k}": v for k, v in inputs.items()} | {f"out/{k}": v for k, v in outputs.items()}
    cast = lambda t: t.float() if dtype == "float32" and t.is_floating_point() else t  # noqa: E731
    np.savez(path, meta=np.array(json.dumps(meta)), **{k: cast(v.detach()).numpy() for k, v in arrays.items()})
    return path
