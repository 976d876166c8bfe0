"""Symmetric contraction: equivariant polynomials of the spherical components of one feature, channel by channel.

A feature has components a_i, i = 1..D, one for each (l, m) with l <= lmax. The outputs B_LM are all polynomials of
them up to a degree that rotate as L and keep the natural parity (-1)^L, weighted per species and channel (the product
basis of ACE; Batatia et al. 2022, equations 10 and 11). As the factors are identical, few coupling trees differ: of 51
trees of degree three for lmax = 3 and L = 1, twelve are independent, and only those have weights here.

Evaluation: B_LM = sum_gf G_g K_gf,LM F_f with short lists of monomials F (degree 0 to 2) and G (degree 1, or 1 and 2
for degree four), so that nearly all work is one matrix product per species, batched over channels.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement, product
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equidyn.core.errors import InputError
from equidyn.ops.constant import Constant
from equidyn.ops.so3 import wigner_3j

MAX_DEGREE = 4


@cache
def monomials(variables: int, degree: int) -> dict[tuple[int, ...], int]:
    """Number of each monomial, a sorted tuple of its variables."""
    return {key: i for i, key in enumerate(combinations_with_replacement(range(variables), degree))}


def symmetrised(coupling: NDArray) -> NDArray:
    """Coefficients [M, monomials] of the polynomials sum_i c[m, i1 .. in] a_i1 ... a_in, from c [M, D, ..., D]."""
    rows, variables, degree = len(coupling), coupling.shape[-1], coupling.ndim - 1
    number = monomials(variables, degree)
    index = [number[tuple(sorted(key))] for key in product(range(variables), repeat=degree)]
    out = np.zeros((len(number), rows))
    np.add.at(out, np.array(index, dtype=np.int64), coupling.reshape(rows, -1).T)
    return out.T


@cache
def equivariant_polynomials(lmax: int, degree: int, l_out: int) -> NDArray:
    """Independent homogeneous polynomials that rotate as l_out with parity (-1)^l_out: [P, 2 l_out + 1, monomials].

    They are coupled factor by factor, as in the original; of each set of dependent ones the first are kept. Signs are
    fixed, so that stored weights do not depend on the sign convention of the 3j symbols.
    """
    return _polynomials(lmax, degree, l_out)[l_out, (-1) ** l_out]


@cache
def coupling_trees(lmax: int, degree: int, l_out: int) -> int:
    """Number of coupling trees behind `equivariant_polynomials`, dependent ones included."""
    count = {(ell, (-1) ** ell): 1 for ell in range(lmax + 1)}
    for _ in range(degree - 1):
        following: dict[tuple[int, int], int] = {}
        for (l1, p1), trees in count.items():
            for l2 in range(lmax + 1):
                for l3 in range(abs(l1 - l2), l1 + l2 + 1):
                    key = (l3, p1 * (-1) ** l2)
                    following[key] = following.get(key, 0) + trees
        count = following
    return count[l_out, (-1) ** l_out]


@cache
def _polynomials(lmax: int, degree: int, reach: int) -> dict[tuple[int, int], NDArray]:
    """Independent polynomials of one degree by (l, parity), for l up to `reach`."""
    size = (lmax + 1) ** 2
    if degree == 1:
        rows = np.eye(size)
        return {(ell, (-1) ** ell): rows[None, ell * ell : (ell + 1) ** 2] for ell in range(lmax + 1)}
    smaller = _polynomials(lmax, degree - 1, min(reach + lmax, (degree - 1) * lmax))
    source, target = monomials(size, degree - 1), monomials(size, degree)
    # Number of the monomial that one more factor makes of each: [D, monomials].
    times = np.array([[target[tuple(sorted((*key, i)))] for key in source] for i in range(size)])
    found: dict[tuple[int, int], list[NDArray]] = {}
    for (l1, p1), first in sorted(smaller.items()):
        for l2 in range(lmax + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, reach) + 1):
                w3j = sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3).numpy()
                terms = np.einsum("pax,abc->bxpc", first, w3j)
                out = np.zeros((len(target), len(first), 2 * l3 + 1))
                np.add.at(out, times[l2 * l2 : (l2 + 1) ** 2], terms)
                found.setdefault((l3, p1 * (-1) ** l2), []).append(out.transpose(1, 2, 0))
    kept = {key: _independent(np.concatenate(rows)) for key, rows in found.items()}
    return {key: rows for key, rows in kept.items() if len(rows)}


def _independent(rows: NDArray) -> NDArray:
    """The rows [P, ...] that are not combinations of earlier ones, with the first entry that is not zero positive."""
    kept, directions = [], np.zeros((0, rows[0].size))
    for row in rows:
        flat = row.ravel()
        rest = flat
        for _ in range(2):  # the second pass removes what rounding left of the first
            rest = rest - directions.T @ (directions @ rest)
        if np.linalg.norm(rest) > 1e-7 * (1.0 + np.linalg.norm(flat)):
            directions = np.concatenate([directions, (rest / np.linalg.norm(rest))[None]])
            lead = flat[np.argmax(np.abs(flat) > 1e-9 * np.abs(flat).max())]
            kept.append(row * np.sign(lead))
    return np.array(kept).reshape(-1, *rows.shape[1:])


class SymmetricContraction(nn.Module):
    """All equivariant polynomials of a feature, weighted per species and channel.

    Args:
        lmax: of the input, [N, (lmax + 1)^2, C].
        l_out: highest L of the output, [N, (l_out + 1)^2, C].
        degree: highest degree of the polynomials, 1 to 4.
        channels: C.
        num_species: S.
    """

    def __init__(self, lmax: int, l_out: int, degree: int, channels: int, num_species: int) -> None:
        super().__init__()
        if not 1 <= degree <= MAX_DEGREE or l_out > degree * lmax:
            got = f"degree {degree}, lmax {lmax}, L {l_out}"
            raise InputError("degree of the contraction", expected=f"1 to {MAX_DEGREE}, L within reach", got=got)
        self.l_sizes = [2 * ell + 1 for ell in range(lmax + 1)]
        self.degree, self.outputs = degree, (l_out + 1) ** 2
        self.groups = [(ell, n) for ell in range(l_out + 1) for n in range(1, degree + 1) if self._count(lmax, n, ell)]
        std, rows = [], []
        for ell, n in self.groups:
            paths = equivariant_polynomials(lmax, n, ell)
            rows.append(self._kernel(paths, n, ell * ell))
            # As if each of the T dependent trees had a weight of variance 1 / T^2.
            std += [1 / sqrt(coupling_trees(lmax, n, ell) * len(paths))] * len(paths)
        self.basis = Constant(torch.cat(rows))
        self.weight = nn.Parameter(torch.randn(num_species, len(std), channels) * torch.tensor(std)[:, None])

    @staticmethod
    def _count(lmax: int, degree: int, ell: int) -> int:
        return len(equivariant_polynomials(lmax, degree, ell)) if ell <= degree * lmax else 0

    def _lists(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The monomials of the left list G and of the right list F, in the order in which forward makes them."""
        size, start = sum(self.l_sizes), 0
        ones: list[tuple[int, ...]] = [(i,) for i in range(size)]
        pairs: list[tuple[int, ...]] = []
        for width in self.l_sizes:
            pairs += product(range(start, start + width), range(start, size))
            start += width
        right = [(), *(ones if self.degree > 1 else []), *(pairs if self.degree > 2 else [])]
        return [*ones, *(pairs if self.degree > 3 else [])], right

    def _kernel(self, paths: NDArray, degree: int, offset: int) -> Tensor:
        """Polynomials [P, 2 l + 1, monomials] as matrices between the two lists: [P, F * G * outputs]."""
        left, right = self._lists()
        first_left = {tuple(sorted(key)): i for i, key in reversed(list(enumerate(left)))}
        first_right = {tuple(sorted(key)): i for i, key in reversed(list(enumerate(right)))}
        out = torch.zeros(len(paths), len(right), len(left), self.outputs, dtype=torch.float64)
        cut = 1 if degree < 4 else 2  # factors taken from the left list
        for key, number in monomials(sum(self.l_sizes), degree).items():
            f, g = first_right[key[cut:]], first_left[key[:cut]]
            out[:, f, g, offset : offset + paths.shape[1]] = torch.from_numpy(paths[:, :, number])
        return out.flatten(1)

    def _pairs(self, a: Tensor) -> Tensor:
        """Products of two components, each l with itself and all later ones: [..., D] to [..., pairs]."""
        parts = a.split(self.l_sizes, dim=-1)
        later = [torch.cat(parts[i:], dim=-1) for i in range(len(parts))]
        return torch.cat(
            [(p.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2) for p, q in zip(parts, later, strict=True)], -1
        )

    def forward(self, a: Tensor, species: Tensor, counts: list[int]) -> Tensor:
        """[N, D, C] to [N, outputs, C]; rows are sorted: `counts` of each species in `species`."""
        a = a.permute(2, 0, 1).contiguous()  # [C, N, D]
        weights = self.weight.index_select(0, species).unbind()
        out = [self._of_one(part, weight) for part, weight in zip(a.split(counts, dim=1), weights, strict=True)]
        return torch.cat(out, dim=1).permute(1, 2, 0)

    def _of_one(self, a: Tensor, weight: Tensor) -> Tensor:
        """[C, N, D] with the weights [P, C] of one species to [C, N, outputs]."""
        pairs = self._pairs(a) if self.degree > 2 else None
        one = torch.ones_like(a[..., :1])
        right = torch.cat([one, *([a] if self.degree > 1 else []), *([] if pairs is None else [pairs])], dim=-1)
        left = torch.cat([a, pairs], dim=-1) if self.degree > 3 and pairs is not None else a
        kernel = (weight.T @ self.basis.like(weight)).unflatten(1, (right.shape[-1], -1))
        return (torch.bmm(right, kernel).unflatten(2, (-1, self.outputs)) * left.unsqueeze(-1)).sum(2)
