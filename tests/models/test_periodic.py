"""Trajectory models in periodic boxes: images, wrapping, supercells, and messages that fade at the cutoff."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.models.clofnet import ClofNet, ClofNetOptions
from equidyn.models.egnn import EGNN, EGNNOptions
from equidyn.models.egno import EGNO
from equidyn.ops.neighbors import Neighbors, neighbor_list

CUTOFF = 2.0
OURS = {"residual": True, "shift_bias": False, "distance": "inverse", "relative_velocity": True, "cutoff": CUTOFF}
MODELS = {
    "egno": lambda: EGNO(1, 1, 16, 3, options=OURS, num_modes=3, basis="cosine"),
    "egno, plain": lambda: EGNO(1, 1, 16, 3, options=OURS | {"fused": False}, lift="ballistic"),
    "egno, no cutoff": lambda: EGNO(1, 1, 16, 3),
    "egno on clofnet": lambda: EGNO(1, 1, 16, 3, backbone="clofnet", options={"reflections": True}),
    "egnn": lambda: EGNN(1, 1, 16, 3, layer=EGNNOptions(cutoff=CUTOFF, attention=True, reduce="sum")),
    "clofnet": lambda: ClofNet(1, 1, 16, 3, options=ClofNetOptions(centre="neighbours", reflections=True)),
}
SMOOTH = ("egno", "egno, plain", "egnn")


def _model(name):
    torch.manual_seed(0)
    return MODELS[name]().double()


def box(pos, cell, seed=0):
    """A sample of N points within CUTOFF in a skewed box."""
    generator = torch.Generator().manual_seed(seed)
    vel = torch.randn(len(pos), 3, generator=generator, dtype=torch.float64)
    sample = Data(pos=pos, vel=vel, x=vel.norm(dim=-1, keepdim=True), cell=cell[None])
    sample.times = torch.tensor([[0.2, 0.4, 0.6, 0.8, 1.0]], dtype=torch.float64)
    sample = Neighbors(CUTOFF)(sample)
    j, i = sample.edge_index
    sample.edge_attr = (pos[j] + sample.edge_shift - pos[i]).square().sum(-1, keepdim=True)
    return sample


def points(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cell = torch.tensor([[2.6, 0.0, 0.0], [0.5, 2.4, 0.0], [-0.3, 0.4, 2.8]], dtype=torch.float64)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64) @ cell, cell


@pytest.mark.parametrize("name", MODELS)
def test_boxes_conform(name):
    model, sample = _model(name), box(*points())
    report = conformance.check_periodic(model, sample, tolerance=1e-11)
    report.raise_if_failed()
    assert all(check.passed for check in report.checks)
    conformance.assert_conforms(model, sample, group="E(3)", tolerance=1e-11)


@pytest.mark.parametrize("name", ["egno", "egnn"])
def test_boxes_conform_in_float32(name):
    sample = box(*points()).apply(lambda t: t.float() if t.is_floating_point() else t)
    conformance.check_periodic(_model(name).float(), sample, tolerance=1e-4).raise_if_failed()


def test_the_check_sees_a_model_that_is_blind_to_images():
    def blind(sample):
        given = Data(**{k: v for k, v in sample.to_dict().items() if k != "edge_shift"})
        return _model("egno")(given)

    report = conformance.check_periodic(blind, box(*points()))
    assert not report["wrapping"].passed
    assert not report["supercell"].passed
    with pytest.raises(InputError, match=r"a sample without a box.*no edge_shift"):
        conformance.check_periodic(blind, conformance.random_sample())
    flat = box(*points())
    flat.cell[0, 2] = flat.cell[0, 1]
    with pytest.raises(InputError, match="a box without volume"):
        conformance.check_periodic(blind, flat)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_jumps_at_the_cutoff(name):
    pos = torch.tensor([[0.0, 0, 0], [1, 0.3, 0], [-0.5, 1, 0.2], [5, 0, 0]], dtype=torch.float64)

    def build(moved):
        return box(moved, 20 * torch.eye(3, dtype=torch.float64))

    report = conformance.check_cutoff(_model(name), build, pos, CUTOFF)
    assert report.passed == (name in SMOOTH)


def test_a_wide_box_is_no_box():
    pos, _ = points()
    wide = box(pos, 50 * torch.eye(3, dtype=torch.float64))
    open_ = Data(**{k: v for k, v in wide.to_dict().items() if k not in ("edge_shift", "cell")})
    open_.centre = pos
    model = _model("egno")
    torch.testing.assert_close(model(wide)["trajectory"], model(open_)["trajectory"], rtol=0, atol=0)


def test_fused_and_plain_messages_agree_with_weights():
    sample, grads, values = box(*points()), [], []
    for fused in (True, False):
        torch.manual_seed(0)
        model = EGNO(1, 1, 16, 3, options=OURS | {"fused": fused}).double()
        given = sample.clone()
        given.pos.requires_grad_()
        out = model(given)["trajectory"]
        out.square().sum().backward()
        values.append(out.detach())
        grads.append([given.pos.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_stacked_boxes_with_shifts_of_their_own():
    """Batches of one topology may have offsets per sample."""
    model, samples = _model("egno"), [box(*points(seed=0)), box(*points(seed=0), seed=1)]
    flat = model(Batch.from_data_list(samples))["trajectory"]
    names = ("pos", "vel", "x", "edge_attr", "edge_shift")
    stacked = Data(**{k: torch.stack([s[k] for s in samples]) for k in names}, edge_index=samples[0].edge_index)
    torch.testing.assert_close(model(stacked)["trajectory"].flatten(0, 1), flat, rtol=1e-12, atol=1e-12)


def test_no_edges_and_one_atom_among_its_own_images():
    model = _model("egno")
    lone = box(torch.zeros(1, 3, dtype=torch.float64), 9 * torch.eye(3, dtype=torch.float64))
    assert lone.num_edges == 0
    assert torch.isfinite(model(lone)["trajectory"]).all()
    images = box(torch.zeros(1, 3, dtype=torch.float64), 1.5 * torch.eye(3, dtype=torch.float64))
    assert images.num_edges > 1
    conformance.check_periodic(model, images, tolerance=1e-11).raise_if_failed()


def test_bad_boxes():
    pos, cell = points()
    cell = cell.clone()
    cell[2] = cell[0] + cell[1]
    with pytest.raises(InputError, match="a periodic box without volume"):
        neighbor_list(pos, CUTOFF, cell, True)
    sample = box(*points())
    sample.edge_shift = sample.edge_shift[:-1]
    with pytest.raises(InputError, match="image offsets, in field edge_shift"):
        _model("egno")(sample)
    with pytest.raises(InputError, match=r"a periodic box has no middle.*options.centre: neighbours"):
        ClofNet(1, 1, 16, 1).double()(box(*points()))
    with pytest.raises(InputError, match="option cutoff"):
        EGNNOptions(cutoff=-1.0)
