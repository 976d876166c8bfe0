"""Steerable operators: layouts, couplings against e3nn, derivatives of any order."""

import pytest
import torch
from e3nn import o3

from equidyn.core.errors import InputError
from equidyn.ops.coupling import Attributes, contract
from equidyn.ops.edges import Edges
from equidyn.ops.steerable import Layout, join, spherical_harmonics
from equidyn.ops.steerable_product import TensorProduct


def test_layouts_come_and_go():
    layout = Layout("2x1o+3x0e+1x1o+1x2e+0x3o")
    rows = torch.randn(4, layout.dim)
    blocks = layout.from_e3nn(rows)
    assert [tuple(b.shape) for b in blocks] == [(4, 3, 3), (4, 1, 3), (4, 5, 1)]
    assert torch.equal(blocks[0][:, :, 2], rows[:, 9:12])  # the third vector
    assert torch.equal(layout.to_e3nn(blocks), rows)
    assert torch.equal(join(layout.split(join(blocks))), join(blocks))
    with pytest.raises(InputError, match="irreps"):
        Layout("two vectors")


def test_product_is_that_of_e3nn():
    source, target = "3x0e+3x1o+2x2e+1x1e", "2x0e+2x1o+4x2e+1x1e"
    a = o3.Irreps.spherical_harmonics(3)
    full = o3.FullyConnectedTensorProduct(source, a, target, path_normalization="none").double()
    ours = TensorProduct(Layout(source).blocks, Layout(target).blocks, 3).double()
    torch.nn.init.zeros_(ours.bias)
    with torch.no_grad():
        full.weight.fill_(1.0)
        for weight in ours.weights:
            weight.fill_(1.0)
    x, y = (torch.randn(5, o3.Irreps(i).dim, dtype=torch.float64) for i in (source, a))
    found = Layout(target).to_e3nn(ours(Layout(source).from_e3nn(x), Attributes(y)))
    torch.testing.assert_close(found, full(x, y), rtol=1e-5, atol=1e-5)  # its constants are float32


def test_coupling_differentiates_twice():
    torch.manual_seed(0)
    source, target = Layout("2x0e+2x1o+1x1e"), Layout("1x0e+1x1o+1x0o")
    a = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    blocks = [torch.randn(3, b.size, b.mul, dtype=torch.float64, requires_grad=True) for b in source.blocks]

    def product(a, *blocks):
        return join(contract(blocks, source.blocks, target.blocks, Attributes(a)))

    assert torch.autograd.gradcheck(product, (a, *blocks))
    assert torch.autograd.gradgradcheck(product, (a, *blocks))


def test_both_ends_in_one_pass():
    edge_index = torch.tensor([[0, 2, 1, 1], [1, 1, 0, 2]])
    edges = Edges.build(edge_index, 4, torch.float64)
    h = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = h[edge_index[1], 0] + h[edge_index[0], 1]
    torch.testing.assert_close(edges.from_both(h), expected)
    assert torch.autograd.gradcheck(edges.from_both, h)
    assert torch.autograd.gradgradcheck(edges.from_both, h)


@pytest.mark.parametrize("normalization", ["component", "integral"])
def test_harmonics_are_those_of_e3nn_and_a_zero_vector_has_none(normalization):
    r = torch.randn(6, 3, dtype=torch.float64)
    r[0] = 0
    r.requires_grad_()
    found = spherical_harmonics(3, r, normalization)
    expected = o3.spherical_harmonics([0, 1, 2, 3], r[1:], normalize=True, normalization=normalization)
    torch.testing.assert_close(found[1:], expected, rtol=1e-12, atol=1e-12)
    assert not found[0, 1:].any()
    found.square().sum().backward()
    assert torch.isfinite(r.grad).all()
