"""Nodes of several graphs side by side."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_graph(value: Tensor, graph: Tensor) -> Tensor:
    """The mean over all nodes of each node's own graph [N, C], of values [N, C] of nodes of the graphs [N]."""
    count = torch.bincount(graph).clamp(min=1).to(value)[:, None]
    return (value.new_zeros(len(count), value.shape[1]).index_add(0, graph, value) / count)[graph]
