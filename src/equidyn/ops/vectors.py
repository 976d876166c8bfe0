"""Vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def length(r: Tensor) -> Tensor:
    """|r| [..., 1] of r [..., n], with a zero gradient instead of NaN at r = 0."""
    q = r.square().sum(-1, keepdim=True)
    safe = torch.where(q > 0, q, 1.0)
    return torch.where(q > 0, safe.sqrt(), 0.0)
