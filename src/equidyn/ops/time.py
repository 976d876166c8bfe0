"""Points in time as input of a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_embedding(points: Tensor, dim: int) -> Tensor:
    """Sines and cosines of a time index, as in the Transformer (Vaswani et al. 2017, section 3.5).

    Args:
        points: [...] real-valued time indices.
        dim: width; 4 or more. An odd one is padded with one zero.

    Returns:
        [..., dim].
    """
    half = dim // 2
    rate = torch.arange(half, dtype=points.dtype, device=points.device) * (-math.log(10000.0) / (half - 1))
    angle = points[..., None] * rate.exp()
    embedding = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))
