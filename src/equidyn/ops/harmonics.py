"""Real spherical harmonics in the basis of e3nn."""

from __future__ import annotations

from math import sqrt

import torch
from e3nn.o3 import wigner_3j
from torch import Tensor, nn

from equidyn.ops.constant import Constant


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics up to lmax of unit vectors [E, 3], as a list over l of [E, 2 l + 1].

    The squares of each l sum to 2 l + 1; y is the polar axis. Each l is coupled from l - 1 and 1.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax, self.couplings = lmax, []
        for ell in range(2, lmax + 1):
            coupling = wigner_3j(ell - 1, 1, ell, dtype=torch.float64).flatten(0, 1)
            # At the pole only m = 0 is not zero: sqrt(2 l - 1) sqrt(3) coupling = sqrt(2 l + 1) fixes the scale.
            pole = coupling[3 * (ell - 1) + 1, ell] * sqrt(3 * (2 * ell - 1))
            self.couplings.append(Constant(coupling * sqrt(2 * ell + 1) / pole))

    def forward(self, unit: Tensor) -> list[Tensor]:
        """Evaluate (class docstring for shapes)."""
        out = [torch.ones_like(unit[:, :1]), sqrt(3) * unit][: self.lmax + 1]
        for coupling in self.couplings:
            pairs = (out[-1].unsqueeze(2) * out[1].unsqueeze(1)).flatten(1)
            out.append(pairs @ coupling.like(unit))
        return out
