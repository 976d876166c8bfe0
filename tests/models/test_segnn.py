"""SEGNN: symmetries of every form, edge cases, batches, counts of parameters."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.models.segnn import ENTRY, SEGNN, SEGNNOptions, SteerableNetwork, hidden_irreps
from equidyn.ops.steerable import Layout
from equidyn.ops.steerable_norm import SteerableNorm

FIELDS = (*ENTRY.needs, "edge_attr")
PARTICLES = [
    {},
    {"lmax": 2, "lmax_attr": 3, "options": SEGNNOptions(norm="instance", harmonics="component")},
    {"options": SEGNNOptions(conv="linear", allocation="balanced", norm="batch")},
    {"lmax_attr": 2, "options": SEGNNOptions(conv="nonlinear", norm="instance", distance="squared")},
    {"velocity": False, "lmax": 2, "lmax_attr": 2, "options": SEGNNOptions(allocation="balanced")},
]
MOLECULES = [
    {"options": SEGNNOptions(norm="instance", harmonics="component", distance="squared")},
    {"lmax": 0, "lmax_attr": 2, "options": SEGNNOptions(pool="sum")},
    {"out_dim": 3, "options": SEGNNOptions(conv="nonlinear", pool="sum")},
]


def _particles(**given) -> SEGNN:
    torch.manual_seed(0)
    return SEGNN(2, 1, 16, 2, **given)


def _molecules(**given) -> SEGNN:
    torch.manual_seed(0)
    return SEGNN(2, 0, 16, 2, velocity=False, readout="graph", **{"lmax": 2, "lmax_attr": 3} | given)


@pytest.mark.parametrize("form", PARTICLES)
def test_particles_conform(form):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        sample = conformance.random_sample(6, dtype=dtype, fields=FIELDS)
        conformance.assert_conforms(_particles(**form).to(dtype), sample, group="E(3)", tolerance=tolerance)


@pytest.mark.parametrize("form", MOLECULES)
def test_molecules_conform(form):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        sample = conformance.random_sample(8, edges=2.5, dtype=dtype, fields=("pos", "x", "edge_index"))
        conformance.assert_conforms(_molecules(**form).to(dtype), sample, group="E(3)", tolerance=tolerance)


def test_periodic_images():
    fields = ("pos", "x", "edge_index", "edge_shift", "cell", "pbc")
    sample = conformance.random_sample(6, edges=4.0, fields=fields)
    conformance.assert_conforms(_molecules().double(), sample, group="E(3)", tolerance=1e-12)


def test_forces_by_differentiation_and_their_derivatives():
    sample, model = conformance.random_sample(5, fields=("pos", "x", "edge_index")), _molecules().double()

    def energy(pos):
        return model(Data(pos=pos, x=sample.x, edge_index=sample.edge_index))["prediction"]

    pos = sample.pos.clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, pos)
    assert torch.autograd.gradgradcheck(energy, pos)
    forces = -torch.autograd.grad(energy(pos).sum(), pos, create_graph=True)[0]
    forces.square().sum().backward()
    without = {name for name, p in model.named_parameters() if p.numel() and p.grad is None}
    assert without == {"network.graph_2.bias"}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("nodes", [1, 2])
def test_isolated_and_lone_nodes(nodes):
    sample = conformance.random_sample(nodes, fields=FIELDS)
    sample.edge_index, sample.edge_attr = sample.edge_index[:, :0], sample.edge_attr[:0]
    model = _particles(options=SEGNNOptions(norm="instance")).double()
    assert torch.isfinite(model(sample)["pos"]).all()
    last = conformance.random_sample(4, fields=FIELDS)
    keep = (last.edge_index < 3).all(0)
    last.edge_index, last.edge_attr = last.edge_index[:, keep], last.edge_attr[keep]
    assert torch.isfinite(model(last)["pos"]).all()


def test_resting_particles_have_finite_gradients():
    sample, model = conformance.random_sample(4, fields=FIELDS), _particles().double()
    sample.vel = torch.zeros_like(sample.vel, requires_grad=True)
    model(sample)["pos"].square().sum().backward()
    assert torch.isfinite(sample.vel.grad).all()


def test_stacked_and_flat_batches_agree():
    model = _particles(options=SEGNNOptions(norm="instance")).double()
    samples = [conformance.random_sample(5, fields=FIELDS, seed=k) for k in range(3)]
    flat = model(Batch.from_data_list(samples))["pos"]
    fields = {name: torch.stack([s[name] for s in samples]) for name in ("pos", "vel", "x", "edge_attr")}
    stacked = model(Data(**fields, edge_index=samples[0].edge_index))["pos"]
    torch.testing.assert_close(stacked.flatten(0, 1), flat, rtol=1e-12, atol=1e-12)
    molecules = _molecules().double()
    fields = {name: fields[name] for name in ("pos", "x")}
    flat = molecules(Batch.from_data_list(samples))["prediction"]
    stacked = molecules(Data(**fields, edge_index=samples[0].edge_index))["prediction"]
    torch.testing.assert_close(stacked, flat, rtol=1e-12, atol=1e-12)


def test_batch_norm_in_training():
    rows = [2 + 3 * torch.randn(500, 1, 4), 3 * torch.randn(500, 3, 2)]
    norm = SteerableNorm(Layout("4x0e+2x1o").blocks, "batch")
    scalars, vectors = norm(rows, None)
    torch.testing.assert_close(scalars.mean(0), torch.zeros(1, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(vectors.square().mean((0, 1)), torch.ones(2), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * rows[0].mean((0, 1)))
    torch.testing.assert_close(norm.running_var[4:], 0.9 + 0.1 * rows[1].square().mean((0, 1)))


def test_published_sizes():
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert hidden_irreps(64, 1, 1, "weightbalanced") == "32x0e+32x1o"
    assert hidden_irreps(80, 1, 1, "weightbalanced") == "40x0e+40x1o"
    assert hidden_irreps(128, 2, 3, "weightbalanced") == "36x0e+36x1o+36x2e"
    assert hidden_irreps(64, 2, 2, "balanced") == "23x0e+7x1o+4x2e"
    assert count(SEGNN(1, 1)) == 147_424
    assert count(SEGNN(1, 1, 80, options=SEGNNOptions(conv="linear", norm="instance"))) == 88_600
    assert count(SEGNN(1, 1, 64, options=SEGNNOptions(conv="nonlinear", norm="instance"))) == 81_888
    molecules = {"lmax": 2, "lmax_attr": 3, "velocity": False, "readout": "graph"}
    assert count(SEGNN(5, 0, 128, 7, **molecules, options=SEGNNOptions(norm="instance"))) == 1_033_525


def test_an_output_that_no_path_reaches_is_zero():
    network = SteerableNetwork("2x0e", "2x0e+2x1o", "1x1e+1x0o", lmax_attr=1, scalars=0, num_layers=1)
    model = _particles()
    inputs = model.inputs(conformance.random_sample(4, dtype=torch.float32, fields=FIELDS))
    y = network(type(inputs)(**vars(inputs) | {"x": torch.ones(4, 2), "scalars": torch.ones(12, 0)}))
    assert torch.equal(y[:, 3], torch.zeros(4))  # 0o
    assert torch.isfinite(y).all()


def test_bfloat16_autocast_trains():
    model, sample = _particles(), conformance.random_sample(6, dtype=torch.float32, fields=FIELDS)
    exact = model(sample)["pos"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(sample)["pos"]
    rough.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_what_does_not_fit_is_named():
    sample = conformance.random_sample(4, fields=FIELDS)
    for change, words in (
        ({"vel": None}, "no velocities"),
        ({"x": sample.x[:, :1]}, "node features"),
        ({"edge_attr": None}, "edge features"),
    ):
        with pytest.raises(InputError, match=words):
            _particles().double()(Data(**sample.to_dict() | change))
    with pytest.raises(InputError, match="hidden irreps"):
        SteerableNetwork("1x0e", "2x1o", "1x0e", lmax_attr=1, scalars=0, num_layers=1)
