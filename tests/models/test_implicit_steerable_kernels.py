"""Implicit steerable kernels: equivariance under each group, on points and grids, batches, derivatives, messages."""

import math

import pytest
import torch
from torch_geometric.data import Batch, Data

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.models.implicit_steerable_kernels import (
    GridConv,
    ImplicitSteerableKernels,
    KernelOptions,
    PointConv,
    make_kernel,
)
from equidyn.ops.edges import Edges
from equidyn.ops.fields import Field
from equidyn.ops.outer import neighbour_slots
from equidyn.ops.representations import Group, band, field_matrix, get_group, invariants, vector_order

PLANE = [("SO(2)", 2), ("O(2)", 2), ("C4", 2), ("D3", 2), ("C1", 2)]
SPACE = [("SO(3)", 3), ("O(3)", 3), ("SO(2)", 3), ("O(2)", 3), ("C3", 3), ("T", 3), ("Oh", 3), ("I", 3)]
FIELDS = ("pos", "vel", "x", "edge_index", "edge_attr")
SMALL = KernelOptions(channels=4)


def random_element(group):
    """A word in the generators."""
    g = torch.eye(group.dimension, dtype=torch.float64)
    for k in torch.randint(len(group.generators), (9,)).tolist():
        g = group.generators[k] @ g
    return g


def turned(sample, g):
    sample = sample.clone()
    sample.pos, sample.vel = sample.pos @ g.T + 0.7, sample.vel @ g.T
    return sample


def worst(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize(("name", "dimension"), PLANE + SPACE)
def test_networks_are_equivariant(name, dimension):
    torch.manual_seed(0)
    sample = conformance.random_sample(6, fields=FIELDS, dimensions=dimension)
    given = {"group": name, "dimension": dimension, "velocity": True, "options": SMALL}
    move = ImplicitSteerableKernels(2, 2, 3, 2, readout="position", **given).double()  # built in float32
    judge = ImplicitSteerableKernels(2, 2, 3, 1, readout="graph", out_dim=2, order=2, **given).double()
    for _ in range(3):
        g = random_element(get_group(name, dimension))
        out = move(turned(sample, g))["pos"] - (sample.pos @ g.T + 0.7)
        assert worst(out, (move(sample)["pos"] - sample.pos) @ g.T) < 1e-10
        assert worst(judge(turned(sample, g))["prediction"], judge(sample)["prediction"]) < 1e-10


@pytest.mark.parametrize("name", ["SO(2)", "O(2)", "C4"])
def test_a_smaller_group_is_not_held_to_the_larger_one(name):
    torch.manual_seed(0)
    sample = conformance.random_sample(6, fields=FIELDS)
    model = ImplicitSteerableKernels(2, 2, 3, 1, group=name, velocity=True, readout="position", options=SMALL).double()
    g = get_group("SO(3)", 3).generators[1]
    assert worst(model(turned(sample, g))["pos"], model(sample)["pos"] @ g.T + 0.7) > 1e-4


def test_a_group_of_ones_own():
    """Turns of a triangular prism, its mirror plane included."""
    c, s = -0.5, math.sqrt(0.75)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    group = Group("prism", torch.stack([turn, torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()]))
    sample = conformance.random_sample(5, fields=FIELDS)
    model = ImplicitSteerableKernels(2, 2, 3, 1, group=group, velocity=True, readout="position", options=SMALL).double()
    for _ in range(3):
        g = random_element(group)
        assert worst(model(turned(sample, g))["pos"], model(sample)["pos"] @ g.T + 0.7) < 1e-10


@pytest.mark.parametrize(("name", "dimension"), [("SO(2)", 2), ("O(2)", 2), ("SO(3)", 3), ("O(3)", 3), ("O", 3)])
def test_kernel_constraint(name, dimension):
    """K(g r, g a) = ρ_out(g) K(r, a) ρ_in(g)⁻¹, with a vector among the attributes."""
    torch.manual_seed(1)
    group, order = get_group(name, dimension), vector_order(dimension)
    source, target = Field(2, band(2, dimension)), Field(3, band(1, dimension))
    vector = Field(1, (band(1, dimension)[1],))
    kernel = make_kernel(group, source, target, [Field(2, ((0, 0),)), vector], SMALL).double()
    r, s, a = torch.randn(4, dimension).double(), torch.randn(4, 2).double(), torch.randn(4, dimension).double()
    g = random_element(group)
    out = torch.block_diag(*[field_matrix(target.irreps, g)] * 3)
    into = torch.block_diag(*[field_matrix(source.irreps, g)] * 2)
    plain = kernel(r, torch.cat([s, a[:, order]], 1))
    moved = kernel(r @ g.T, torch.cat([s, (a @ g.T)[:, order]], 1))
    assert worst(moved, out @ plain @ into.T) < 1e-12


@pytest.mark.parametrize("form", [{}, {"readout": "node", "out_dim": 3}, {"readout": "position", "velocity": True}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_conforms(form, dtype, tolerance):
    torch.manual_seed(0)
    sample = conformance.random_sample(6, dtype=dtype, fields=FIELDS)
    model = ImplicitSteerableKernels(2, 2, 4, 2, **form).to(dtype)
    conformance.assert_conforms(model, sample, group="E(3)", tolerance=tolerance)
    flat = conformance.random_sample(6, dtype=dtype, fields=FIELDS, dimensions=2)
    model = ImplicitSteerableKernels(2, 2, 4, 2, group="O(2)", dimension=2, **form).to(dtype)
    conformance.assert_conforms(model, flat, group="E(2)", tolerance=tolerance)


@pytest.mark.parametrize("options", [{"norm": "none", "layers": 1}, {"reduce": "mean", "layers": 2}, {"norm": "batch"}])
def test_options_conform(options):
    torch.manual_seed(0)
    options = KernelOptions(channels=4, embedding="square", **options)
    model = ImplicitSteerableKernels(2, 2, 4, 2, group="SO(3)", options=options).double()
    conformance.assert_conforms(model, conformance.random_sample(6, fields=FIELDS), group="SE(3)")


def test_sampled_elu_is_only_nearly_equivariant():
    """What the original does, on a grid finer than its own."""
    torch.manual_seed(0)
    options = KernelOptions(channels=4, activation="elu")
    model = ImplicitSteerableKernels(2, 2, 4, 2, options=options).double()
    report = conformance.check(model, conformance.random_sample(6, fields=FIELDS), group="E(3)")
    error = next(c.error for c in report.checks if c.name == "rotation")
    assert 1e-6 < error < 1e-1


def turn_grid(x, field, g):
    """Apply a quarter turn or mirror, a signed permutation matrix of the axes, to images [B, C, ...]."""
    n = len(g)
    axes = g.abs().argmax(1).tolist()  # axis a of the result is axis axes[a] of x
    x = x.permute(0, 1, *(2 + a for a in axes)).flip([2 + a for a in range(n) if g[a].sum() < 0])
    rho = torch.block_diag(*[field_matrix(field.irreps, g)] * field.copies)
    return torch.einsum("ij,bj...->bi...", rho, x)


@pytest.mark.parametrize(
    ("name", "dimension"), [("SO(2)", 2), ("O(2)", 2), ("C4", 2), ("D4", 2), ("SO(3)", 3), ("O(3)", 3), ("O(2)", 3)]
)
def test_grids_are_equivariant(name, dimension):
    torch.manual_seed(0)
    group, big = get_group(name, dimension), get_group("D4" if dimension == 2 else "Oh", dimension)
    source, target = Field(2, band(1, dimension)), Field(1, band(1, dimension))
    kernel = make_kernel(group, source, target, [Field(2, ((0, 0),))], SMALL)
    conv = GridConv(kernel, invariants(group, target.irreps), 3, padding=1).double()
    x = torch.randn(2, 2 * sum(conv.kernel.shape[3:]), *[5] * dimension).double()
    attributes = torch.randn(2, 2).double()
    checked = 0
    for _ in range(40):
        g = random_element(big).round()
        keeps = (name[0] in "OD" or torch.linalg.det(g) > 0) and (
            not (name == "O(2)" and dimension == 3) or g[2, 2] > 0
        )
        if keeps:
            y = conv(turn_grid(x, source, g), attributes)
            assert worst(y, turn_grid(conv(x, attributes), target, g)) < 1e-12
            checked += 1
    assert checked > 5


def test_grids_take_attributes_for_each_image():
    torch.manual_seed(0)
    group, field = get_group("O(2)", 2), Field(2, band(1, 2))
    kernel = make_kernel(group, field, field, [Field(2, ((0, 0),))], SMALL)
    conv = GridConv(kernel, invariants(group, field.irreps), 3, stride=2, padding=1).double()
    x, attributes = torch.randn(3, 6, 7, 7).double(), torch.randn(3, 2).double()
    together = conv(x, attributes)
    for k in range(3):
        torch.testing.assert_close(conv(x[k : k + 1], attributes[k : k + 1]), together[k : k + 1])
    torch.testing.assert_close(conv(x, attributes[:1])[0], together[0])


@pytest.mark.parametrize("degrees", [[2] * 8, [8, 0, 1, 1, 0, 2, 1, 1], [0, 0, 0, 0, 0, 0, 0, 7]])
@pytest.mark.parametrize("targets", [8, 3])
def test_convolution_is_the_sum_of_kernels_times_neighbours(degrees, targets):
    torch.manual_seed(0)
    group, field = get_group("O(3)", 3), Field(2, band(1, 3))
    conv = PointConv(make_kernel(group, field, field, options=SMALL), invariants(group, field.irreps)).double()
    receive = torch.arange(targets).repeat_interleave(torch.tensor(degrees[:targets]))
    edge_index = torch.stack([torch.randint(8, receive.shape), receive])[:, torch.randperm(len(receive))]
    x, r = torch.randn(8, 8).double(), torch.randn(len(receive), 3).double()
    edges = Edges.build(edge_index, 8, x.dtype)
    y = conv(x, r, edges, slots=neighbour_slots(edges, targets))
    expected = x.new_zeros(targets, 8)
    for (send, to), kernel in zip(edge_index.T.tolist(), conv.kernel(r), strict=True):
        expected[to] += kernel @ x[send]
    torch.testing.assert_close(y, expected)


def test_stacked_and_flat_batches_agree():
    torch.manual_seed(0)
    model = ImplicitSteerableKernels(2, 2, 4, 2, velocity=True, readout="position").double()
    samples = [conformance.random_sample(5, seed=k, fields=FIELDS) for k in range(3)]
    flat = model(Batch.from_data_list(samples))["pos"]
    stacked = Data(
        **{name: torch.stack([s[name] for s in samples]) for name in ("pos", "vel", "x", "edge_attr")},
        edge_index=samples[0].edge_index,
    )
    torch.testing.assert_close(model(stacked)["pos"].flatten(0, 1), flat, rtol=1e-12, atol=1e-12)


def test_one_node_without_neighbours_and_periodic_images():
    model = ImplicitSteerableKernels(2, 0, 4, 1, readout="graph").double()
    alone = Data(pos=torch.zeros(1, 3).double(), x=torch.ones(1, 2).double(), edge_index=torch.zeros(2, 0).long())
    assert model(alone)["prediction"].isfinite().all()
    sample = conformance.random_sample(4, fields=("pos", "x", "edge_index", "edge_shift"))
    moved = sample.clone()
    moved.pos = sample.pos.clone()
    moved.pos[1] += 2.0
    moved.edge_shift = sample.edge_shift + 2.0 * (
        (sample.edge_index[1] == 1).double() - (sample.edge_index[0] == 1).double()
    )[:, None].expand(-1, 3)
    torch.testing.assert_close(model(moved)["prediction"], model(sample)["prediction"])


def test_second_derivatives():
    torch.manual_seed(0)
    model = ImplicitSteerableKernels(2, 2, 2, 1, options=KernelOptions(channels=2, readout_dim=4)).double()
    sample = conformance.random_sample(4, fields=FIELDS)

    def energy(pos):
        sample.pos = pos
        return model(sample)["prediction"].sum()

    assert torch.autograd.gradgradcheck(energy, sample.pos.clone().requires_grad_(), atol=1e-6)


def test_it_learns():
    """A rotation-invariant target, the sum of inverse distances, from 16 graphs."""
    torch.manual_seed(0)
    samples = [
        conformance.random_sample(4, seed=k, dtype=torch.float32, fields=("pos", "x", "edge_index")) for k in range(16)
    ]
    for sample in samples:
        sample.x = torch.ones(4, 1)
        sample.y = (1 / (1 + torch.pdist(sample.pos))).sum()
    batch = Batch.from_data_list(samples)
    target = (batch.y - batch.y.mean()) / batch.y.std()
    model = ImplicitSteerableKernels(1, 0, 4, 1, options=KernelOptions(channels=4, width=2.0, scale=2.0))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        loss = (model(batch)["prediction"] - target).square().mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"group": "SO(4)"}, "SO\\(4\\)"),
        ({"group": "SO(3)", "dimension": 2}, "2 dimensions"),
        ({"options": KernelOptions(width=0.0)}, "positive"),
    ],
)
def test_arguments_that_cannot_be(given, words):
    with pytest.raises(InputError, match=words):
        ImplicitSteerableKernels(2, **given)


@pytest.mark.parametrize("name", ["pos", "x", "vel", "edge_attr"])
def test_samples_that_do_not_fit(name):
    model = ImplicitSteerableKernels(2, 2, 2, 1, velocity=True).double()
    sample = conformance.random_sample(4, fields=FIELDS)
    sample[name] = sample[name][:, :1]
    with pytest.raises(InputError, match=name):
        model(sample)
    del sample[name]
    with pytest.raises(InputError, match=name):
        model(sample)
