"""EGNO and EGNN: symmetries, queries at any time, batches, counts of parameters."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.models.egnn import EGNN, EGNNOptions
from equidyn.models.egno import EGNO

PAIRS = {"residual": True, "distance": "inverse", "relative_velocity": True}
OURS = {"lift": "ballistic", "basis": "cosine", "num_modes": 4, "options": PAIRS}
EGNO_FORMS = [{}, OURS, {"num_modes": 0}, {"options": {"fused": False}}, {"features": True, "num_modes": 3}]
EGNN_FORMS = [
    {},
    {"attention": True},
    {"normalize": "unit", "bounded": True, "reduce": "sum"},
    {"normalize": "plus_one", "residual": False},
    {"distance": "inverse", "shift_bias": True},
    {"activation": "tanh", "clamp": "none"},
]


def _egno(**given) -> EGNO:
    torch.manual_seed(0)
    return EGNO(2, 2, 16, 3, **given)


@pytest.mark.parametrize("form", EGNO_FORMS)
def test_egno_conforms(form):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        sample = conformance.random_sample(6, dtype=dtype)
        conformance.assert_conforms(_egno(**form).to(dtype), sample, group="E(3)", tolerance=tolerance)


@pytest.mark.parametrize("form", EGNN_FORMS)
def test_egnn_conforms(form):
    torch.manual_seed(0)
    model = EGNN(2, 2, 16, 3, layer=EGNNOptions(**form))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        fields = ("pos", "vel", "x", "edge_index", "edge_attr")
        sample = conformance.random_sample(6, dtype=dtype, fields=fields)
        conformance.assert_conforms(model.to(dtype), sample, group="E(3)", tolerance=tolerance)


@pytest.mark.parametrize("dimensions", [2, 5])
def test_egnn_in_other_dimensions(dimensions):
    torch.manual_seed(0)
    fields = ("pos", "x", "edge_index", "edge_attr")
    sample = conformance.random_sample(6, fields=fields, dimensions=dimensions)
    model = EGNN(2, 2, 16, 3, velocity=False, readout="node", out_dim=2).double()
    conformance.assert_conforms(model, sample, group="E(n)", tolerance=1e-12)


@pytest.mark.parametrize("form", EGNO_FORMS)
def test_an_answer_does_not_depend_on_what_else_is_asked(form):
    model = _egno(**form).double()
    sample = conformance.random_sample(5)
    del sample.times
    own = model(sample)["trajectory"]
    for times in ([0.4, 1.0], [0.1, 0.4, 0.55, 1.0, 0.3]):
        sample.times = torch.tensor([times], dtype=torch.float64)
        asked = model(sample)["trajectory"]
        torch.testing.assert_close(asked[:, times.index(0.4)], own[:, 1], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(asked[:, times.index(1.0)], own[:, 4], rtol=1e-11, atol=1e-12)
    for times in ([0.5, 1.01], [-0.1, 0.5]):
        sample.times = torch.tensor([times])
        with pytest.raises(InputError, match="time outside the window"):
            model(sample)


def test_stacked_and_flat_batches_agree():
    model = _egno().double()
    samples = [conformance.random_sample(5, seed=k) for k in range(3)]
    for sample in samples:
        sample.times = torch.tensor([[0.2, 0.5]], dtype=torch.float64)
    flat = model(Batch.from_data_list(samples))["trajectory"]
    fields = {name: torch.stack([s[name] for s in samples]) for name in ("pos", "vel", "x", "edge_attr")}
    stacked = Data(**fields, edge_index=samples[0].edge_index, times=samples[0].times)
    torch.testing.assert_close(model(stacked)["trajectory"].flatten(0, 1), flat, rtol=1e-12, atol=1e-12)


def test_time_slices_without_convolution_are_independent():
    sample = conformance.random_sample(5)
    del sample.times
    torch.manual_seed(0)
    five = EGNO(2, 2, 16, 3, num_modes=0).double()
    one = EGNO(2, 2, 16, 3, num_modes=0, times=[0.2]).double()
    one.load_state_dict(five.state_dict())
    torch.testing.assert_close(one(sample)["trajectory"][:, 0], five(sample)["trajectory"][:, 0])


def test_one_time_point_takes_one_mode():
    sample = conformance.random_sample(4)
    del sample.times
    assert EGNO(2, 2, 8, 2, times=[1.0], num_modes=1).double()(sample)["trajectory"].shape == (4, 1, 3)
    with pytest.raises(InputError, match="number of temporal modes"):
        EGNO(2, 2, 8, 2, times=[1.0])
    for times in ([], [0.2, 0.4, 0.7], [0.0, 0.5], [0.5, 0.25]):
        with pytest.raises(InputError, match="anchor times"):
            EGNO(2, 2, times=times)


def test_published_counts_of_parameters():
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(EGNO(1, 2, features=True)) == 201_672
    assert count(EGNO(1, 2, num_modes=0, features=True)) == 136_072
    assert count(EGNN(1, 2)) == 134_020


def test_fused_and_plain_layers_agree():
    sample = conformance.random_sample(6)
    fused, plain = (_egno(options=PAIRS | {"fused": f}).double() for f in (True, False))
    torch.testing.assert_close(fused(sample)["trajectory"], plain(sample)["trajectory"], rtol=1e-12, atol=1e-12)


def test_bfloat16_autocast_trains():
    model, sample = _egno(), conformance.random_sample(6, dtype=torch.float32)
    exact = model(sample)["trajectory"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(sample)["trajectory"]
    rough.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_wrong_width_of_the_features_is_named():
    sample = conformance.random_sample(4, node_features=3)
    for model in (_egno().double(), EGNN(2, 2).double()):
        with pytest.raises(InputError, match="node features"):
            model(sample)
