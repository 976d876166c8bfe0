"""EGNO as its paper's code computes it, for comparison: the graph repeated P times, edge inputs concatenated, sums
scattered, temporal convolutions by FFT. Written from the equations; the same function and the same initialisation as
`equidyn.models.egno.EGNO` with its defaults."""

import math

import torch
from torch import Tensor, nn


def _mlp(inputs: int, hidden: int, outputs: int, *, last: bool = False) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers, nn.SiLU()) if last else nn.Sequential(*layers)


class FourierConv(nn.Module):
    def __init__(self, channels: int, modes: int, scale: float) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(scale * torch.rand(channels, channels, modes, 2))

    def forward(self, h: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(h, dim=0)
        mixed = torch.zeros_like(spectrum)
        weight = torch.view_as_complex(self.weight)
        mixed[: self.modes] = torch.einsum("t...i,iot->t...o", spectrum[: self.modes], weight)
        return torch.fft.irfft(mixed, n=len(h), dim=0)


class PlainLayer(nn.Module):
    def __init__(self, hidden: int, edge_dim: int) -> None:
        super().__init__()
        self.message = _mlp(1 + 2 * hidden + edge_dim, hidden, hidden, last=True)
        self.weight, self.velocity = _mlp(hidden, hidden, 1), _mlp(hidden, hidden, 1)
        self.update = _mlp(2 * hidden, hidden, hidden)

    def forward(self, h: Tensor, x: Tensor, v: Tensor, row: Tensor, col: Tensor, edge_attr: Tensor):
        r = x[row] - x[col]
        m = self.message(torch.cat([r.square().sum(-1, keepdim=True), h[row], h[col], edge_attr], dim=-1))
        shift = r * self.weight(m)
        count = torch.zeros_like(x).index_add_(0, row, torch.ones_like(shift)).clamp(min=1)
        force = (torch.zeros_like(x).index_add_(0, row, shift) / count).clamp(-100, 100)
        x = x + self.velocity(h) * v + force
        return self.update(torch.cat([h, torch.zeros_like(h).index_add_(0, row, m)], dim=-1)), x


class PlainEGNO(nn.Module):
    def __init__(self, node_dim=1, edge_dim=2, hidden=64, layers=4, points=5, modes=2, time_dim=32) -> None:
        super().__init__()
        self.points, self.time_dim = points, time_dim
        self.embedding = nn.Linear(node_dim + time_dim, hidden)
        self.layers = nn.ModuleList(PlainLayer(hidden, edge_dim) for _ in range(layers))
        self.time_convs, self.motion_convs = nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):  # in the order in which the code draws its initial weights, see egno_start.py
            self.time_convs.append(FourierConv(hidden, modes, hidden**-2))
            self.motion_convs.append(FourierConv(2, modes, 0.1))

    def forward(self, sample) -> Tensor:
        """Positions [P, B N, 3] of a batch of systems on one shared graph."""
        batch, nodes, _ = sample.pos.shape
        total, points = batch * nodes, self.points
        offset = nodes * torch.arange(batch)[:, None]
        send, receive = ((end[None] + offset).flatten() for end in sample.edge_index)
        repeat = total * torch.arange(points)[:, None]
        row, col = ((end[None] + repeat).flatten() for end in (receive, send))
        half = self.time_dim // 2
        rate = torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
        angle = torch.arange(points)[:, None] * rate
        time = torch.cat([angle.sin(), angle.cos()], dim=-1).repeat_interleave(total, 0)
        h = self.embedding(torch.cat([sample.x.flatten(0, 1).repeat(points, 1), time], dim=-1))
        centre = sample.pos.mean(1, keepdim=True).expand_as(sample.pos).flatten(0, 1).repeat(points, 1)
        x, v = (t.flatten(0, 1).repeat(points, 1) for t in (sample.pos, sample.vel))
        edge_attr = sample.edge_attr.flatten(0, 1).repeat(points, 1)
        for layer, conv, motion in zip(self.layers, self.time_convs, self.motion_convs, strict=True):
            over_time = h.view(points, total, -1)
            h = (over_time + nn.functional.leaky_relu(conv(over_time))).flatten(0, 1)
            z = torch.stack([x - centre, v], dim=-1).view(points, total, 3, 2)
            z = (z + motion(z)).flatten(0, 1)
            x, v = z[..., 0] + centre, z[..., 1]
            h, x = layer(h, x, v, row, col, edge_attr)
        return x.view(points, total, 3)
