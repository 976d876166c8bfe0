"""ClofNet as its paper's code computes it, for comparison: inputs of the edge networks concatenated, sums scattered, a
frame of stacked vectors. Written from the equations; the same function and the same initialisation as
`equidyn.models.clofnet.ClofNet` with its defaults, but for the clamp, which acts on the components of every summand."""

from itertools import pairwise

import torch
from torch import Tensor, nn


def _mlp(*widths: int, last: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*(layers if last else layers[:-1]))


def _frame(x: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [E, 1] and frames [E, 3, 3]."""
    d, n = x[row] - x[col], torch.linalg.cross(x[row], x[col])
    square = d.square().sum(-1, keepdim=True)
    d = d / (square.sqrt() + 1)
    n = n / (n.norm(dim=-1, keepdim=True) + 1)
    return square, torch.stack([d, n, torch.linalg.cross(d, n)], dim=1)


class PlainLayer(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.message = _mlp(2 * hidden + 1 + hidden // 2, hidden, hidden, hidden, last=True)
        self.weight = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 3, bias=False))
        nn.init.xavier_uniform_(self.weight[2].weight, gain=0.001)
        self.velocity, self.update = _mlp(hidden, hidden, 1), _mlp(2 * hidden, hidden, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, h: Tensor, x: Tensor, v: Tensor, e: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
        square, frame = _frame(x, row, col)
        m = self.message(torch.cat([h[row], h[col], square, e], dim=-1))
        t = (self.weight(m)[:, :, None] * frame).sum(1).clamp(-100, 100)
        count = torch.zeros_like(x).index_add_(0, row, torch.ones_like(t)).clamp(min=1)
        x = x + torch.zeros_like(x).index_add_(0, row, t) / count + self.velocity(h) * v
        update = self.update(torch.cat([h, torch.zeros_like(h).index_add_(0, row, m)], dim=-1))
        return self.norm(h + update), x


class PlainClofNet(nn.Module):
    def __init__(self, node_dim: int = 1, edge_dim: int = 2, hidden: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Linear(node_dim, hidden)
        self.scalars = _mlp(edge_dim + 14, hidden // 2, hidden // 2, last=True)
        self.layers = nn.ModuleList(PlainLayer(hidden) for _ in range(layers))

    def forward(self, sample) -> Tensor:
        """Positions [B, N, 3] of a batch of systems on one shared graph."""
        batch, nodes, _ = sample.pos.shape
        offset = nodes * torch.arange(batch)[:, None]
        col, row = ((end[None] + offset).flatten() for end in sample.edge_index)
        centre = sample.pos.mean(1, keepdim=True)
        x, v = (sample.pos - centre).flatten(0, 1), sample.vel.flatten(0, 1)
        h = self.embedding(sample.x.flatten(0, 1))
        _, frame = _frame(x, row, col)
        ends = [(frame @ t[end][..., None])[..., 0] for t in (x, v) for end in (row, col)]
        a, b = ends[:2]
        length = (a.norm(dim=-1) + 1e-5) * (b.norm(dim=-1) + 1e-5)
        cosine = ((a * b).sum(-1) / length)[:, None]
        z = torch.cat([sample.edge_attr.flatten(0, 1), (1 - cosine**2).sqrt(), cosine, *ends], dim=-1)
        e = self.scalars(z)
        for layer in self.layers:
            h, x = layer(h, x, v, e, row, col)
        return x.view(batch, nodes, 3) + centre
