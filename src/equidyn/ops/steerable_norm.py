"""Normalisation of steerable features by means and squares that no symmetry changes, per graph or over a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from equidyn.ops.steerable import Block, Blocks


@dataclass(frozen=True)
class Graphs:
    """Which graph each row belongs to: `index [R]`, and `inverse_size [B, 1]`, one over the number of rows of each."""

    index: Tensor
    inverse_size: Tensor

    @staticmethod
    def build(index: Tensor, dtype: torch.dtype) -> Graphs:
        """From the graph of each row."""
        return Graphs(index, torch.bincount(index).clamp(min=1).to(dtype).reciprocal()[:, None])

    def sum(self, rows: Tensor) -> Tensor:
        """[R, C] to [B, C]."""
        return rows.new_zeros(len(self.inverse_size), rows.shape[1]).index_add(0, self.index, rows)

    def mean(self, rows: Tensor) -> Tensor:
        """[R, C] to [B, C]."""
        return self.sum(rows) * self.inverse_size


class SteerableNorm(nn.Module):
    """Bring every channel to unit second moment over its components and rows, scalars also to zero mean.

    Args:
        features: the space.
        kind: "instance", the rows of one graph; "batch", all rows, and in evaluation the running averages.
    """

    def __init__(self, features: Sequence[Block], kind: Literal["instance", "batch"]) -> None:
        super().__init__()
        self.features, self.kind = tuple(features), kind
        channels, scalars = sum(b.mul for b in features), sum(b.mul for b in features if b.scalar)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(scalars))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(scalars))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, blocks: Blocks, graphs: Graphs) -> Blocks:
        """The blocks, normalised."""
        found, start = [], 0
        for part, block in zip(blocks, self.features, strict=True):
            channels = slice(start, start + block.mul)
            if block.scalar:
                part = part - self._average("running_mean", slice(None), part[:, 0], graphs)[:, None]
            square = self._average("running_var", channels, part.square().mean(1), graphs)
            part = part * (self.weight[channels] * (square + 1e-5).rsqrt())[:, None]
            found.append(part + self.bias if block.scalar else part)
            start += block.mul
        return found

    def _average(self, name: str, channels: slice, rows: Tensor, graphs: Graphs) -> Tensor:
        """The mean of rows [R, mul] over what is normalised together: [R or 1, mul]."""
        if self.kind == "instance":
            return graphs.mean(rows)[graphs.index]
        running = getattr(self, name)[channels]
        if not self.training:
            return running[None]
        mean = rows.mean(0, keepdim=True)
        running.lerp_(mean.detach()[0], 0.1)
        return mean
