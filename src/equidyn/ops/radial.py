"""Functions of the distance of two atoms: bases, transforms of the distance by covalent radii, networks of a basis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import pi, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from ase.data import covalent_radii
from torch import Tensor, nn

from equidyn.ops.constant import Constant
from equidyn.ops.linear import linear

Basis = Literal["bessel", "gaussian", "chebyshev", "chebyshev_raw"]
Transform = Literal["none", "agnesi", "soft"]


def length(vector: Tensor, smallest: float = 1e-8) -> Tensor:
    """Length [E, 1] of vectors [E, 3]; below the smallest it is that, and has no slope."""
    return vector.square().sum(-1, keepdim=True).clamp(min=smallest**2).sqrt()


class RadialBasis(nn.Module):
    """Functions of the distance, which is transformed first, to resolve more where bonds are.

    Args:
        kind: "bessel": sqrt(2 / cutoff) sin(n pi r / cutoff) / r; "gaussian": evenly spaced from 0 to the cutoff, as
            wide as their spacing; "chebyshev": T_n of r mapped from [0, cutoff] to [-1, 1], n from 1;
            "chebyshev_raw": T_n(r).
        transform: by the sum of both covalent radii.
        cutoff: in Å.
        size: how many functions.
        elements: atomic numbers of the species.
    """

    def __init__(self, kind: Basis, transform: Transform, cutoff: float, size: int, elements: Sequence[int]) -> None:
        super().__init__()
        self.kind, self.transform, self.cutoff, self.size = kind, transform, cutoff, size
        self.radii = Constant(torch.tensor([covalent_radii[z] for z in elements]))

    def bond(self, like: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """Sum of the covalent radii [E, 1] of the species at both ends [E]."""
        radii = self.radii.like(like)
        return (radii[receiver] + radii[sender])[:, None]

    def forward(self, r: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """Distances [E, 1] and species at both ends [E] to [E, size]."""
        r = r if self.transform == "none" else self._transformed(r, self.bond(r, receiver, sender))
        n = torch.arange(1, self.size + 1, dtype=r.dtype, device=r.device)
        if self.kind == "bessel":  # sinc is finite at r = 0
            return sqrt(2 / self.cutoff) * pi / self.cutoff * n * torch.sinc(r / self.cutoff * n)
        if self.kind == "gaussian":
            spacing = self.cutoff / (self.size - 1)
            return torch.exp(-0.5 * (r / spacing - (n - 1)).square())
        x = r if self.kind == "chebyshev_raw" else 2 * r / self.cutoff - 1
        polynomials = [torch.ones_like(x), x]
        while len(polynomials) <= self.size:
            polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
        return torch.cat(polynomials[1:], dim=-1)

    def _transformed(self, r: Tensor, bond: Tensor) -> Tensor:
        if self.transform == "agnesi":
            q = r / (0.5 * bond)
            return 1 / (1 + 1.0805 * q**4.5791 / (1 + q ** (4.5791 - 0.9183)))
        low, high = 0.75 * bond, 4 / 3 * bond
        return low + (r - low) * 0.5 * (1 + torch.tanh(4 / (high - low) * (r - 0.5 * (low + high))))


class RadialNet(nn.Module):
    """Linear maps without bias and SiLU between; weights [in, out] of unit variance, scaled where they are used.

    Args:
        sizes: widths, from the input to the output.
        gain: of SiLU, that keeps the variance.
        normal: initialise weights from a normal distribution, else from a uniform one.
    """

    def __init__(self, sizes: Sequence[int], gain: float, *, normal: bool) -> None:
        super().__init__()
        shapes, bound = list(pairwise(sizes)), sqrt(3)
        fresh = [torch.randn(shape) if normal else torch.empty(shape).uniform_(-bound, bound) for shape in shapes]
        self.weights, self.gain = nn.ParameterList(fresh), gain

    def forward(self, x: Tensor) -> Tensor:
        """[E, in] to [E, out]."""
        for k, weight in enumerate(self.weights):
            scale = (self.gain if k else 1.0) / sqrt(weight.shape[0])
            x = linear(F.silu(x) if k else x, (scale * weight).t())
        return x
