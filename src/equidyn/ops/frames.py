"""Complete local frames: three vectors on every edge that turn with the points.

    d = x_r - x_c,   n = x_r × x_c,   b = d × n

for the two ends r and c of an edge, positions counted from a centre. Projecting vectors on them gives numbers that no
rotation changes; weights on them give back a vector that turns along. n is a pseudo-vector: it keeps its direction
where a reflection flips d and b.

The vectors are not made orthonormal. Where the centre and both ends lie on one line, or the ends at one place, n and b
(and d) shrink to zero instead of jumping, and every function here has finite values and gradients there.

Source: Du et al. 2022 (arXiv 2110.14811), sections 3 and 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def safe_length(v: Tensor) -> Tensor:
    """|v| [..., 1], to rounding from 1e-8 up; 1e-12 and flat instead of a NaN gradient at v = 0."""
    return (v.square().sum(-1, keepdim=True) + 1e-24).sqrt()


class Frame(NamedTuple):
    """The frames of E edges, each vector [E, 3]."""

    d: Tensor
    n: Tensor
    b: Tensor

    def project(self, v: Tensor) -> Tensor:
        """The numbers d·v, n·v, b·v of vectors v [E, 3]: [E, 3] (scalarisation)."""
        return torch.stack([(a * v).sum(-1) for a in self], dim=-1)

    def combine(self, w: Tensor) -> Tensor:
        """The vectors w_1 d + w_2 n + w_3 b of weights w [E, 3]: [E, 3] (vectorisation)."""
        return w[:, :1] * self.d + w[:, 1:2] * self.n + w[:, 2:] * self.b


def local_frame(d: Tensor, u: Tensor, *, scaled: bool) -> Frame:
    """The frame of each edge.

    Args:
        d: [E, 3] difference of the ends, x_r - x_c.
        u: [E, 3] position of either end, counted from the centre: n = x_r × x_c = d × x_r = d × x_c.
        scaled: divide d and n by their length plus one before b is made of them.
    """
    n = torch.linalg.cross(d, u, dim=-1)
    if scaled:
        d, n = d / (safe_length(d) + 1), n / (safe_length(n) + 1)
    return Frame(d, n, torch.linalg.cross(d, n, dim=-1))


def sine_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Sine and cosine of the angle between a and b [E, 3]: [E, 2]; cosine 0 where one of them is zero."""
    cosine = (a * b).sum(-1, keepdim=True) / ((safe_length(a) + 1e-5) * (safe_length(b) + 1e-5))
    # Held off zero, where the slope of the root has no bound.
    sine = ((1 - cosine) * (1 + cosine)).clamp(min=1e-12).sqrt()
    return torch.cat([sine, cosine], dim=-1)
