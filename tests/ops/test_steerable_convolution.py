"""The steerable convolution: in chunks, at once and edge by edge it gives the same numbers and derivatives."""

import pytest
import torch

from equidyn.ops import slots, steerable_convolution
from equidyn.ops.edges import Edges
from equidyn.ops.radial import RadialNet
from equidyn.ops.so3 import spherical_harmonics, wigner_3j
from equidyn.ops.steerable_convolution import Neighbourhood, Path, SteerableConvolution

PATHS = [Path(0, 0, 0, 0), Path(1, 1, 0, 0), Path(0, 1, 1, 1), Path(1, 1, 1, 2), Path(1, 2, 1, 1), Path(2, 2, 1, 2)]
NODES = 9


@pytest.fixture
def case():
    torch.manual_seed(0)
    dense = torch.rand(NODES, NODES) < torch.linspace(0.1, 1, NODES)[:, None]
    dense[3] = False  # a node without neighbours
    receiver, sender = dense.nonzero().T
    edges = Edges.build(torch.stack([sender, receiver]), NODES, torch.float64)
    convolution = SteerableConvolution([(0, 3), (1, 3), (1, 2)], PATHS)
    radial = RadialNet([4, 5, convolution.weight_size], 1.5, normal=True).double()
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    h = [draw(NODES, 1, 3), draw(NODES, 3, 3), draw(NODES, 3, 2)]
    return edges, convolution, radial, h, draw(len(receiver), 4), draw(len(receiver), 3)


def run(case, plain=False):
    edges, convolution, radial, h, features, vector = case
    harmonics = spherical_harmonics(vector / vector.norm(dim=1, keepdim=True), 2)
    near = Neighbourhood(edges, None, harmonics) if plain else Neighbourhood.build(edges, harmonics)
    return torch.cat([part.flatten(1) for part in convolution(h, near.spread(features), radial, near)], dim=1)


def derivatives(out, case):
    """First derivatives, as forces are, and those of a function of them, as in training on forces."""
    *_, radial, h, features, vector = case
    inputs = [*h, features, vector, *radial.parameters()]
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    first = torch.autograd.grad((out * weight).sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [*first, *second]


def test_the_ways_agree(case, monkeypatch):
    edges, *_ = case
    whole, plain = run(case), run(case, plain=True)
    expected = derivatives(whole, case)
    torch.testing.assert_close(plain, whole)
    torch.testing.assert_close(derivatives(plain, case), expected)
    monkeypatch.setattr(slots, "_LARGEST", 12)
    monkeypatch.setattr(slots, "_SMALL", 8)
    del edges.__dict__["slots"]
    kept = run(case)
    assert len(edges.slots.chunks) > 2
    monkeypatch.setattr(steerable_convolution, "_KEPT", 0)
    for out in (kept, run(case)):
        torch.testing.assert_close(out, whole)
        torch.testing.assert_close(derivatives(out, case), expected)
    torch.autograd.grad(run(case).sum(), case[3][0])  # nothing else is wanted


def test_it_is_the_sum_over_edges(case):
    edges, convolution, radial, h, features, vector = case
    y = spherical_harmonics(vector / vector.norm(dim=1, keepdim=True), 2)
    weights = radial(features).split(convolution.weight_sizes, dim=1)
    expected = [[], [], []]
    for (source, l2, l3, target), weight in zip(PATHS, weights, strict=True):
        l1 = convolution.blocks[source][0]
        coupling = (2 * l3 + 1) ** 0.5 * wigner_3j(l1, l2, l3)
        sent = h[source][edges.senders.node]
        message = torch.einsum("abm,eac,eb,ec->emc", coupling, sent, y[:, l2**2 : (l2 + 1) ** 2], weight)
        nodes = message.new_zeros(NODES, *message.shape[1:])
        expected[target].append(nodes.index_add(0, edges.receivers.node, message))
    whole = torch.cat([torch.cat(parts, dim=2).flatten(1) for parts in expected], dim=1)
    torch.testing.assert_close(run(case), whole)
