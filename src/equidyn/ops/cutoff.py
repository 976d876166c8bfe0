"""Functions that take an interaction smoothly to zero at the cutoff."""

from __future__ import annotations

import torch
from torch import Tensor


def polynomial_envelope(x: Tensor, p: int) -> Tensor:
    """The polynomial u(x) of Klicpera et al. 2020 (arXiv 2003.03123, equation 8).

    Args:
        x: distance over cutoff, not negative.
        p: exponent; the larger, the longer u stays near one.

    Returns:
        One at x = 0, zero from x = 1 on; u and two derivatives are continuous there.
    """
    u = 1 - x**p * ((p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x.square())
    return torch.where(x < 1, u, 0.0)
