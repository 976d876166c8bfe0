"""Rotations of space: real spherical harmonics and the coefficients that couple them.

Conventions (those of e3nn 0.6): the polar axis is y, components run from m = -l to l, so that those of l = 1 are
x, y, z; harmonics are scaled to |Y_l|^2 = 2 l + 1 on the unit sphere; coupling coefficients have Frobenius norm 1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache
def _clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """<l1 m1 l2 m2 | l3 m3> by Racah's formula, [2 l1 + 1, 2 l2 + 1, 2 l3 + 1]."""
    f = [math.factorial(n) for n in range(l1 + l2 + l3 + 2)]
    out = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    triangle = (2 * l3 + 1) * f[l3 + l1 - l2] * f[l3 - l1 + l2] * f[l1 + l2 - l3] / f[l1 + l2 + l3 + 1]
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            m3 = m1 + m2
            size = f[l3 + m3] * f[l3 - m3] * f[l1 - m1] * f[l1 + m1] * f[l2 - m2] * f[l2 + m2]
            total = 0.0
            for k in range(max(0, l2 - l3 - m1, l1 - l3 + m2), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
                lower = f[k] * f[l1 + l2 - l3 - k] * f[l1 - m1 - k] * f[l2 + m2 - k]
                total += (-1) ** k / (lower * f[l3 - l2 + m1 + k] * f[l3 - l1 - m2 + k])
            out[m1 + l1, m2 + l2, m3 + l3] = math.sqrt(triangle * size) * total
    return out


@lru_cache
def _real_basis(degree: int) -> np.ndarray:
    """Complex spherical harmonics in terms of the real ones, up to a phase: unitary [2 l + 1, 2 l + 1]."""
    q = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=complex)
    q[degree, degree] = 1
    for m in range(1, degree + 1):
        q[degree - m, degree + m], q[degree - m, degree - m] = 2**-0.5, -1j * 2**-0.5
        q[degree + m, degree + m], q[degree + m, degree - m] = (-1) ** m * 2**-0.5, 1j * (-1) ** m * 2**-0.5
    return (-1j) ** degree * q


@lru_cache
def wigner_3j(l1: int, l2: int, l3: int) -> Tensor:
    """The one real tensor that couples l1, l2 and l3 to an invariant: [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], float64."""
    q1, q2, q3 = _real_basis(l1), _real_basis(l2), _real_basis(l3)
    real = np.einsum("ij,kl,nm,ikn->jlm", q1, q2, q3.conj(), _clebsch_gordan(l1, l2, l3)).real
    return torch.from_numpy(np.where(np.abs(real) < 1e-14, 0.0, real) / np.linalg.norm(real))


@lru_cache
def _raise(degree: int) -> Tensor:
    """[3 (2 l - 1), 2 l + 1]: takes Y_{l-1} (outer) Y_1 to Y_l; its scale is that Y_l at the pole is sqrt(2 l + 1)."""
    coupling = wigner_3j(degree - 1, 1, degree)
    at_pole = math.sqrt((2 * degree - 1) * 3) * coupling[degree - 1, 1, degree]
    return (coupling * (math.sqrt(2 * degree + 1) / at_pole)).flatten(0, 1)


def spherical_harmonics(unit: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics Y_0 to Y_{l_max} of unit vectors.

    Built by raising l one at a time; they are polynomials of the components, differentiable everywhere.

    Args:
        unit: [E, 3] of length one (or zero: then all but Y_0 vanish).
        l_max: highest degree.

    Returns:
        [E, (l_max + 1)^2], degrees side by side.
    """
    first = math.sqrt(3) * unit
    degrees = [unit.new_ones(unit.shape[0], 1), first]
    for degree in range(2, l_max + 1):
        pairs = (degrees[-1][:, :, None] * first[:, None, :]).flatten(1)
        degrees.append(pairs @ _raise(degree).to(unit))
    return torch.cat(degrees[: l_max + 1], dim=1)
