"""Representations: irreps, couplings and quadratures against what is known about them."""

import pytest
import torch
from e3nn import o3

from equidyn.core.errors import InputError
from equidyn.ops.fields import Activation, Field, equivariant_linear
from equidyn.ops.representations import (
    Constant,
    Group,
    band,
    couplings,
    field_matrix,
    get_group,
    intertwiners,
    invariants,
    irrep_matrix,
    sample_matrices,
    solid_harmonics,
    sphere_quadrature,
    vector_order,
)


def rotation(seed=0):
    torch.manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3).double()).Q
    return q * torch.linalg.det(q)


@pytest.mark.parametrize("irrep", [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 3), (0, 4)])
def test_irreps_multiply_as_the_group_does(irrep):
    a, b = rotation(0), -rotation(1)
    matrix = irrep_matrix(irrep, a @ b)
    torch.testing.assert_close(irrep_matrix(irrep, a) @ irrep_matrix(irrep, b), matrix, rtol=0, atol=1e-13)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)).double(), rtol=0, atol=1e-13)
    sign = irrep_matrix(irrep, -torch.eye(3).double())
    torch.testing.assert_close(sign, (-1) ** irrep[0] * torch.eye(len(matrix)).double(), rtol=0, atol=1e-13)


def test_a_vector_is_the_first_irrep():
    g, order = rotation(), vector_order(3)
    torch.testing.assert_close(irrep_matrix((1, 1), g), g[order][:, order], rtol=0, atol=1e-13)


def test_couplings_are_clebsch_gordan_coefficients():
    group = get_group("O(3)", 3)
    for a, b, c in [
        ((1, 1), (1, 1), (0, 0)),
        ((1, 1), (1, 1), (0, 2)),
        ((1, 1), (0, 2), (1, 3)),
        ((0, 2), (0, 2), (0, 2)),
    ]:
        ours = couplings(group, a, b, c)
        assert len(ours) == 1
        theirs = o3.wigner_3j(a[1], b[1], c[1], dtype=torch.float64)
        assert abs(abs(float((ours[0] * theirs).sum())) - 1) < 1e-12
    assert len(couplings(group, (1, 1), (1, 1), (1, 1))) == 0  # the cross product is an axial vector
    assert len(couplings(group, (1, 1), (1, 1), (0, 1))) == 1
    assert len(couplings(get_group("SO(3)", 3), (1, 1), (1, 1), (1, 1))) == 1
    assert len(couplings(group, (1, 1), (1, 1), (0, 4))) == 0


@pytest.mark.parametrize(
    ("name", "dimension", "counts"),
    [
        # dimensions of the invariants of functions up to order 4, and of the maps from vectors to vectors
        ("SO(3)", 3, (1, 1)),
        ("O(3)", 3, (1, 1)),
        ("SO(2)", 3, (5, 3)),
        ("O(2)", 3, (5, 2)),
        ("C1", 3, (25, 9)),
        ("T", 3, (3, 1)),
        ("Td", 3, (3, 1)),
        ("Th", 3, (2, 1)),
        ("O", 3, (2, 1)),
        ("Oh", 3, (2, 1)),
        ("I", 3, (1, 1)),
        ("Ih", 3, (1, 1)),
        ("SO(2)", 2, (1, 2)),
        ("O(2)", 2, (1, 1)),
        ("C4", 2, (3, 2)),
        ("D4", 2, (2, 1)),
        ("C2", 2, (5, 4)),
        ("D2", 2, (3, 2)),
    ],
)
def test_dimensions_of_invariants_and_maps(name, dimension, counts):
    group = get_group(name, dimension)
    vector = (band(1, dimension)[1],)
    assert invariants(group, band(4, dimension)).shape[1] == counts[0]
    assert len(intertwiners(group, vector, vector)) == counts[1]


@pytest.mark.parametrize(("name", "dimension"), [("SO(2)", 2), ("D3", 2), ("O(3)", 3), ("O(2)", 3), ("Td", 3)])
def test_intertwiners_commute(name, dimension):
    group = get_group(name, dimension)
    source, target = band(3, dimension), band(1, dimension)
    maps, pairs = intertwiners(group, source, target), intertwiners(group, source, target, target)
    for g in group.generators:
        a, b = field_matrix(source, g), field_matrix(target, g)
        torch.testing.assert_close(b @ maps, maps @ a, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.kron(b, b) @ pairs, pairs @ a, rtol=0, atol=1e-12)


def test_the_basis_does_not_depend_on_the_order_of_generators():
    one = get_group("O(2)", 3)
    two = Group("again", one.generators.flip(0).contiguous())
    torch.testing.assert_close(
        couplings(one, (1, 1), (0, 2), (1, 1)), couplings(two, (1, 1), (0, 2), (1, 1)), rtol=0, atol=1e-12
    )


def test_quadrature_is_exact_to_its_degree():
    for dimension in (2, 3):
        points, weights = sphere_quadrature(9, dimension)
        values = solid_harmonics(points, range(10))
        mean = torch.zeros(values.shape[1]).double()
        mean[0] = 1
        torch.testing.assert_close(weights @ values, mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_square_is_exactly_equivariant(dimension):
    g = -rotation() if dimension == 3 else get_group("O(2)", 2).generators.prod(0).sign()
    g = g if dimension == 3 else get_group("O(2)", 2).generators[0] @ get_group("O(2)", 2).generators[1]
    field = band(3, dimension)
    act = Activation(*sample_matrices(3, dimension, 9), "square")
    matrix = torch.block_diag(*[field_matrix(field, g)] * 2)
    h = torch.randn(5, len(matrix)).double()
    torch.testing.assert_close(act(h @ matrix.T), act(h) @ matrix.T, rtol=0, atol=1e-13)


def test_linear_maps_keep_the_size_of_normal_inputs():
    torch.manual_seed(0)
    for name in ("O(3)", "SO(2)", "C1"):
        layer = equivariant_linear(
            get_group(name, 3), [Field(20, band(2, 3)), Field(5, band(1, 3))], Field(30, band(2, 3))
        )
        out = layer(torch.randn(500, 20 * 9 + 5 * 4)).view(500, 30, 9)
        assert 0.8 < float(out.detach().square().mean()) < 1.25


def test_constants_are_not_rounded():
    constant = Constant(torch.tensor([1 / 3], dtype=torch.float64))
    assert constant(torch.zeros(1)).dtype == torch.float32
    assert float(constant(torch.zeros(1).double())) == 1 / 3


def test_what_is_no_group_or_irrep():
    with pytest.raises(InputError, match="orthogonal"):
        Group("shear", torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]))
    with pytest.raises(InputError, match="K, n, n"):
        Group("flat", torch.eye(4)[None])
    with pytest.raises(InputError, match="irrep"):
        irrep_matrix((0, 2), torch.eye(2))
