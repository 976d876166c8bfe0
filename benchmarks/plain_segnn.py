"""SEGNN as one writes it with e3nn: `FullyConnectedTensorProduct` and `Gate` on concatenated inputs of every edge."""

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import nn


class Product(nn.Module):
    def __init__(self, source: o3.Irreps, attributes: o3.Irreps, target: o3.Irreps):
        super().__init__()
        self.tp = o3.FullyConnectedTensorProduct(source, attributes, target, irrep_normalization="component")
        self.scalars = sum(mul for mul, ir in target if ir.l == 0)
        self.bias = nn.Parameter(torch.zeros(self.scalars))

    def forward(self, x, attributes):
        y = self.tp(x, attributes)
        if not self.scalars:
            return y
        return torch.cat([y[:, : self.scalars] + self.bias, y[:, self.scalars :]], dim=1)


class GatedProduct(nn.Module):
    def __init__(self, source: o3.Irreps, attributes: o3.Irreps, target: o3.Irreps):
        super().__init__()
        scalars, rest = target[:1], target[1:]
        gates = o3.Irreps([(rest.num_irreps, "0e")])
        self.gate = Gate(scalars, [torch.nn.functional.silu], gates, [torch.sigmoid], rest)
        self.product = Product(source, attributes, self.gate.irreps_in.simplify())

    def forward(self, x, attributes):
        return self.gate(self.product(x, attributes))


class PlainSEGNN(nn.Module):
    """The network on ready-made inputs x [R, D], attributes, invariants of the edges; irreps in e3nn's notation."""

    def __init__(self, source, hidden, target, *, lmax_attr, scalars, num_layers):
        super().__init__()
        source, hidden, target = (o3.Irreps(irreps) for irreps in (source, hidden, target))
        a = o3.Irreps.spherical_harmonics(lmax_attr)
        self.embedding = Product(source, a, hidden)
        pair = (hidden + hidden + o3.Irreps([(scalars, "0e")])).simplify()
        self.message_1 = nn.ModuleList(GatedProduct(pair, a, hidden) for _ in range(num_layers))
        self.message_2 = nn.ModuleList(GatedProduct(hidden, a, hidden) for _ in range(num_layers))
        self.update_1 = nn.ModuleList(GatedProduct((hidden + hidden).simplify(), a, hidden) for _ in range(num_layers))
        self.update_2 = nn.ModuleList(Product(hidden, a, hidden) for _ in range(num_layers))
        self.out_1, self.out_2 = GatedProduct(hidden, a, hidden), Product(hidden, a, target)

    def forward(self, x, scalars, edge_index, edge_attr, node_attr):
        sender, receiver = edge_index
        h = self.embedding(x, node_attr)
        for m1, m2, u1, u2 in zip(self.message_1, self.message_2, self.update_1, self.update_2, strict=True):
            m = m2(m1(torch.cat([h[receiver], h[sender], scalars], dim=1), edge_attr), edge_attr)
            total = torch.zeros_like(h).index_add(0, receiver, m)
            h = h + u2(u1(torch.cat([h, total], dim=1), node_attr), node_attr)
        return self.out_2(self.out_1(h, node_attr), node_attr)
