"""Representations of a group G of rotations and reflections, by linear algebra.

Every field here is a sum of irreps of O(n), n = 2 or 3, restricted to a subgroup G; each irrep of G is part of such a
restriction. G enters only through a few of its elements, which generate it or a dense part of it: a tensor is invariant
under G if these leave it as it is. The invariant tensors of a product of irreps are at once the invariant vectors of a
field, the equivariant maps between two fields and the Clebsch-Gordan coefficients of three.

Irreps of O(3) are (k, l), of size 2 l + 1, in the basis of real spherical harmonics about z, order m = -l ... l; k = 1
changes sign under inversion. (1, 1) is a vector in the order (y, z, x). Irreps of O(2) are (1, f), f > 0, which turn by
f times the angle, and (k, 0), of size one, where k = 1 changes sign under reflection.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from equidyn.core.errors import InputError

Irrep = tuple[int, int]

_VECTOR_ORDER = {2: [0, 1], 3: [1, 2, 0]}
_POLYHEDRA = ("T", "Td", "Th", "O", "Oh", "I", "Ih")


@dataclass(frozen=True, eq=False)
class Group:
    """A closed subgroup of O(n).

    Attributes:
        name: what it is called in recipes.
        generators: [K, n, n] orthogonal matrices that generate the group, or a dense part of it.
    """

    name: str
    generators: Tensor

    def __post_init__(self) -> None:
        shape, where = tuple(self.generators.shape), f"group {self.name}"
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in (2, 3):
            raise InputError("generators", where=where, expected="[K, n, n] with n = 2 or 3", got=shape)
        products = self.generators.double() @ self.generators.double().mT
        if not bool((products - torch.eye(shape[1], dtype=torch.float64)).abs().max() < 1e-12):
            raise InputError("generators", where=where, expected="orthogonal matrices to 1e-12")

    @property
    def dimension(self) -> int:
        """The n of the space that the group acts on."""
        return self.generators.shape[1]


@cache
def get_group(name: str, dimension: int) -> Group:
    """A group by name.

    Args:
        name: "SO(2)", "O(2)", "SO(3)", "O(3)", "C4" or any cyclic, "D4" or any dihedral group, and in three dimensions
            the polyhedral groups "T", "Td", "Th", "O", "Oh", "I", "Ih".
        dimension: n. In three dimensions SO(2), O(2), C and D act about z, and their reflections are mirrors that
            hold z: they keep up and down apart.

    Raises:
        InputError: no such group in that dimension.
    """
    turn = _rotation(2, 1.0, dimension)
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0][:dimension], dtype=torch.float64))
    tilt = _rotation(0, math.sqrt(2.0), 3)
    known: dict[str, list[Tensor]] = {"SO(2)": [turn], "O(2)": [turn, mirror]}
    if dimension == 3:
        known |= {"SO(3)": [turn, tilt], "O(3)": [turn, tilt, -torch.eye(3, dtype=torch.float64)]}
    known |= {rest: _polyhedral(rest) for rest in _POLYHEDRA if dimension == 3 and rest == name}
    if match := re.fullmatch(r"([CD])([1-9]\d*)", name):
        step = _rotation(2, 2 * math.pi / int(match[2]), dimension)
        known[name] = [step] if match[1] == "C" else [step, mirror]
    if dimension not in (2, 3) or name not in known:
        names = "SO(2), O(2), C<n>, D<n>" + (", SO(3), O(3), " + ", ".join(_POLYHEDRA) if dimension == 3 else "")
        raise InputError("group", where=f"{dimension} dimensions", expected=f"one of {names}", got=name)
    return Group(name, torch.stack(known[name]))


def _rotation(axis: int, angle: float, dimension: int) -> Tensor:
    """The rotation about an axis (2 for z, and in the plane) by an angle."""
    matrix = torch.eye(dimension, dtype=torch.float64)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    c, s = math.cos(angle), math.sin(angle)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def _polyhedral(name: str) -> list[Tensor]:
    cycle = torch.eye(3, dtype=torch.float64).roll(1, 0)  # x to y to z
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    generators = [cycle, half]
    if name in ("O", "Oh"):
        generators.append(_rotation(2, math.pi / 2, 3).round())
    if name == "Td":
        generators.append(torch.diag(torch.tensor([-1.0, -1.0, -1.0]).double()) @ _rotation(2, math.pi / 2, 3).round())
    if name in ("I", "Ih"):
        axis = torch.tensor([0.0, 1.0, (1 + math.sqrt(5)) / 2], dtype=torch.float64)  # through a vertex
        generators.append(o3.axis_angle_to_matrix(axis, torch.tensor(2 * math.pi / 5, dtype=torch.float64)))
    if name.endswith("h"):
        generators.append(-torch.eye(3, dtype=torch.float64))
    return generators


def size(irreps: Sequence[Irrep], dimension: int) -> int:
    """Numbers in one field."""
    return sum(_size(irrep, dimension) for irrep in irreps)


def _size(irrep: Irrep, dimension: int) -> int:
    return 2 * irrep[1] + 1 if dimension == 3 else 1 + (irrep[1] > 0)


def band(order: int, dimension: int) -> tuple[Irrep, ...]:
    """The irreps of functions on the sphere or circle, up to an order: a scalar, a vector, and so on."""
    return tuple((f % 2, f) if dimension == 3 else (int(f > 0), f) for f in range(order + 1))


def vector_order(dimension: int) -> list[int]:
    """Cartesian axes in the order in which a vector irrep holds them."""
    return _VECTOR_ORDER[dimension]


def solid_harmonics(x: Tensor, orders: Sequence[int]) -> Tensor:
    """The homogeneous harmonic polynomials r^l Y_l of points x [..., n], side by side; |Y_l| = 1 on the unit sphere."""
    if x.shape[-1] == 3:
        return o3.spherical_harmonics(list(orders), x[..., [1, 2, 0]], normalize=False, normalization="norm")
    columns, real, imaginary = [], torch.ones_like(x[..., 0]), torch.zeros_like(x[..., 0])
    for order in range(max(orders) + 1):
        if order in orders:
            columns += [real, imaginary] if order else [real]
        real, imaginary = real * x[..., 0] - imaginary * x[..., 1], real * x[..., 1] + imaginary * x[..., 0]
    return torch.stack(columns, dim=-1)


def irrep_matrix(irrep: Irrep, g: Tensor) -> Tensor:
    """The matrix of an orthogonal g [n, n] in an irrep of O(n).

    Raises:
        InputError: no such irrep.
    """
    (k, order), dimension = irrep, len(g)
    if k not in (0, 1) or order < 0 or (dimension == 2 and order and not k):
        expected = "(0 or 1, l)" if dimension == 3 else "(0 or 1, 0) or (1, f)"
        raise InputError("irrep", where=f"O({dimension})", expected=expected, got=irrep)
    # From Y(g p) = D Y(p) at more points p than Y has components.
    random = torch.Generator().manual_seed(order)
    points = torch.randn(8 * (order + 1), dimension, dtype=torch.float64, generator=random)
    points = points / points.norm(dim=1, keepdim=True)
    here, there = solid_harmonics(points, [order]), solid_harmonics(points @ g.double().T, [order])
    matrix = torch.linalg.lstsq(here, there).solution.T
    natural = order % 2 if dimension == 3 else int(order > 0)
    return matrix * torch.linalg.det(g.double()).round() ** ((k - natural) % 2)


def field_matrix(irreps: Sequence[Irrep], g: Tensor) -> Tensor:
    """The matrix of an orthogonal g in a field that is a sum of irreps."""
    return torch.block_diag(*(irrep_matrix(irrep, g) for irrep in irreps))


@cache
def couplings(group: Group, *irreps: Irrep) -> Tensor:
    """An orthonormal basis of the tensors [d_1, ..., d_m] that G leaves as they are: [K, d_1, ..., d_m], float64.

    The basis is the same on every machine: it is made from the projector onto the invariant tensors, not from the
    singular vectors that a library happens to return.
    """
    sizes = [_size(irrep, group.dimension) for irrep in irreps]
    total = math.prod(sizes)
    residual = torch.zeros(total, total, dtype=torch.float64)
    for g in group.generators.double():
        product = torch.ones(1, 1, dtype=torch.float64)
        for irrep in irreps:
            product = torch.kron(product, irrep_matrix(irrep, g))
        difference = product - torch.eye(total, dtype=torch.float64)
        residual += difference.T @ difference
    values, vectors = torch.linalg.eigh(residual)
    null = vectors[:, values < 1e-10]
    return _canonical(null @ null.T, null.shape[1]).view(-1, *sizes)


def _canonical(projector: Tensor, rank: int) -> Tensor:
    """An orthonormal basis [rank, D] of what a projector keeps, by pivoted Cholesky with ties to the first."""
    rows = []
    for _ in range(rank):
        diagonal = projector.diagonal()
        pivot = int((diagonal > diagonal.max() - 1e-6).nonzero()[0])
        row = projector[pivot] / diagonal[pivot].sqrt()
        row = torch.where(row.abs() < 1e-13, 0.0, row)
        projector = projector - torch.outer(row, row)
        rows.append(row)
    return torch.stack(rows) if rows else projector.new_zeros(0, len(projector))


def intertwiners(group: Group, source: Sequence[Irrep], *targets: Sequence[Irrep]) -> Tensor:
    """A basis of the G-equivariant maps of a field into a field, or into the matrices between two: [K, D, d].

    Args:
        group: G.
        source: irreps of the input, of size d together.
        targets: one field of size D, or the fields of the rows and of the columns of a matrix, flattened to D.

    Returns:
        Float64. Each map has one irrep of the source and one of each target, and trace(B Bᵀ) = the size of that part of
        the target, so that with a normal input each entry it fills has variance one on average.
    """
    n = group.dimension
    parts = []
    shape = [size(irreps, n) for irreps in (*targets, source)]
    for chosen in itertools.product(*(_placed(irreps, n) for irreps in (*targets, source))):
        basis = couplings(group, *(irrep for irrep, _ in chosen))
        block = basis.new_zeros(len(basis), *shape)
        rows = math.prod(basis.shape[1:-1])
        block[(slice(None), *(place for _, place in chosen))] = basis * math.sqrt(rows)
        parts.append(block.flatten(1, -2))
    return torch.cat(parts)


def invariants(group: Group, irreps: Sequence[Irrep]) -> Tensor:
    """An orthonormal basis of the vectors of a field that G leaves as they are: [d, K], float64."""
    columns = []
    for irrep, place in _placed(irreps, group.dimension):
        basis = couplings(group, irrep)
        block = basis.new_zeros(len(basis), size(irreps, group.dimension))
        block[:, place] = basis
        columns.append(block)
    return torch.cat(columns).T


def _placed(irreps: Sequence[Irrep], dimension: int) -> list[tuple[Irrep, slice]]:
    ends = list(itertools.accumulate(_size(irrep, dimension) for irrep in irreps))
    return [(irrep, slice(end - _size(irrep, dimension), end)) for irrep, end in zip(irreps, ends, strict=True)]


def sphere_quadrature(degree: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Points [P, n] on the sphere or circle and weights [P] that integrate polynomials up to a degree exactly."""
    turns = degree + 1
    angle = 2 * math.pi * (torch.arange(turns, dtype=torch.float64) + 0.25) / turns
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    if dimension == 2:
        return circle, torch.full((turns,), 1 / turns, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(degree // 2 + 1))
    ring = (1 - nodes**2).sqrt()[:, None, None] * circle
    points = torch.cat([ring, nodes[:, None, None].expand(-1, turns, 1)], dim=2)
    return points.flatten(0, 1), (weights / (2 * turns)).repeat_interleave(turns)


def sample_matrices(order: int, dimension: int, degree: int) -> tuple[Tensor, Tensor]:
    """From a field of `band(order)` to the values of its function on a quadrature, and back by projection.

    Returns:
        A [P, d], with rows of length one, and its left inverse [d, P]. The way back is the exact projection of
        polynomials up to `degree - order`.
    """
    points, weights = sphere_quadrature(degree, dimension)
    values = solid_harmonics(points, range(order + 1)) / math.sqrt(order + 1)
    weighted = values.T * weights
    return values, torch.linalg.solve(weighted @ values, weighted)


class Constant:
    """A float64 constant at the precision and on the device of whatever it meets.

    A buffer would be rounded when a model is built in float32 and stay so when the model is turned to float64.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().cpu().double().contiguous()
        self._made: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, like: Tensor) -> Tensor:
        """The constant as a tensor that can be multiplied with `like`."""
        key = (like.dtype, like.device)
        if key not in self._made:
            self._made[key] = self.value.to(like)
        return self._made[key]
