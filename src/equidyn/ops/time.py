"""Points in time: their embedding, and integration over them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


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


class DoubleIntegral(nn.Module):
    """Solve x'' = f, x(0) = x0, x'(0) = v0 for an f known at a few times.

    f is taken as the polynomial through its values at Chebyshev-Lobatto points of the window (both ends included, dense
    towards them, so that polynomials of any degree stay tame); it is integrated exactly.

    Args:
        num_nodes: K, number of times f is known at.
        window: length of the interval [0, window].
    """

    def __init__(self, num_nodes: int, window: float) -> None:
        super().__init__()
        chebyshev = np.polynomial.chebyshev
        nodes = -np.cos(np.pi * np.arange(num_nodes) / (num_nodes - 1))  # on [-1, 1]
        coefficients = np.linalg.inv(chebyshev.chebvander(nodes, num_nodes - 1))  # values at the nodes -> series
        integrate = lambda order: chebyshev.chebint(coefficients, m=order, lbnd=-1, scl=window / 2, axis=0)  # noqa: E731
        self.window = window
        self.register_buffer("nodes", torch.from_numpy((nodes + 1) * window / 2), persistent=False)
        self.register_buffer("once", torch.from_numpy(integrate(1)), persistent=False)
        self.register_buffer("twice", torch.from_numpy(integrate(2)), persistent=False)

    def forward(self, x0: Tensor, v0: Tensor, f: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions and velocities under f.

        Args:
            x0, v0: [R, n] initial state.
            f: [K, R, n] accelerations at `nodes`.
            times: [Q, R] when to evaluate each row; None for the nodes.

        Returns:
            x and v, [Q, R, n] each.
        """
        if times is None:
            times = self.nodes[:, None]
        t = times.to(f.dtype)[..., None]
        return x0 + v0 * t + self._series(self.twice, f, times), v0 + self._series(self.once, f, times)

    def _series(self, integral: Tensor, f: Tensor, times: Tensor) -> Tensor:
        degree = torch.arange(len(integral), device=f.device)
        angle = torch.acos((times.double() * (2 / self.window) - 1).clamp(-1, 1))
        basis = torch.cos(angle[..., None] * degree)  # Chebyshev polynomials at the times
        return torch.einsum("qrk,krn->qrn", (basis @ integral).to(f.dtype).expand(-1, f.shape[1], -1), f)
