"""ClofNet: its symmetries and frames, where frames degenerate, batches, its layer under EGNO, the score network."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.models.clofnet import ClofNet, ClofNetOptions
from equidyn.models.clofnet_score import ClofNetScore
from equidyn.models.egno import EGNO
from equidyn.ops.frames import local_frame, sine_cosine

FIELDS = ("pos", "vel", "x", "edge_index", "edge_attr")
FORMS = [
    {},
    {"velocity_scalars": False, "scaled": False, "bounded": True, "skip": 2.0},
    {"gaussians": True, "clamp": "none"},
    {"centre": "neighbours", "shift_scale": 0.5},
    {"reflections": True},
    {"reflections": True, "centre": "neighbours"},
]


def stirred(model: nn.Module) -> nn.Module:
    """The same model with weights of the frame vectors that matter; they start near zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight_out.weight"):
            nn.init.normal_(parameter, std=0.3)
    return model


def clofnet(**options) -> ClofNet:
    torch.manual_seed(0)
    return stirred(ClofNet(2, 2, 16, 3, options=ClofNetOptions(**options)))


def particles(nodes=6, dtype=torch.float64, fields=FIELDS, **given) -> Data:
    sample = conformance.random_sample(nodes, dtype=dtype, fields=fields, **given)
    if "edge_attr" in sample:
        sample.edge_attr[:, 0] = sample.edge_attr[:, 0].sign()
    return sample


class SignsKept(nn.Module):
    """The Gaussians read a charge product, which the suite scales in its companions of a batch."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, sample):
        return self.model(sample.clone().update({"edge_attr": sample.edge_attr.sign()}))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_clofnet_conforms(form, dtype, tolerance):
    model = clofnet(**form).to(dtype)
    model = SignsKept(model) if form.get("gaussians") else model
    group = "E(3)" if form.get("reflections") else "SE(3)"
    report = conformance.assert_conforms(model, particles(dtype=dtype), group=group, tolerance=tolerance)
    assert (report["reflection"].error > 1e-3) == (group == "SE(3)")


@pytest.mark.parametrize("reflections", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_egno_with_its_layer_conforms(reflections, dtype, tolerance):
    torch.manual_seed(0)
    model = stirred(EGNO(2, 2, 16, 3, backbone="clofnet", options={"reflections": reflections})).to(dtype)
    sample = conformance.random_sample(6, dtype=dtype)
    group = "E(3)" if reflections else "SE(3)"
    report = conformance.assert_conforms(model, sample, group=group, tolerance=tolerance)
    assert (report["reflection"].error > 1e-4) == (group == "SE(3)")


def test_egno_takes_the_layer_with_its_own_defaults_and_sparse_graphs():
    torch.manual_seed(0)
    model = stirred(EGNO(2, 0, 16, 2, backbone="clofnet")).double()
    sample = conformance.random_sample(8, edges=2.5, fields=("pos", "vel", "x", "edge_index", "times"))
    conformance.assert_conforms(model, sample, group="SE(3)", tolerance=1e-12)


def assert_finite(model, sample, twice=True):
    fields = [f for f in ("pos", "vel") if f in sample]
    for field in fields:
        sample[field] = sample[field].clone().requires_grad_()
    out = model(sample)
    out = out.get("pos", out.get("trajectory", out.get("score")))
    assert torch.isfinite(out).all()
    first = torch.autograd.grad(out.sin().sum(), [sample[f] for f in fields], create_graph=twice)
    assert all(torch.isfinite(g).all() for g in first)
    if not twice:
        return
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), list(model.parameters()), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in second if g is not None)


LINE = torch.tensor([1.0, 2.0, -0.5]).double()
DEGENERATE = {
    "collinear": torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]).double()[:, None] * LINE,
    "collinear, off the origin": torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]).double()[:, None] * LINE + 1.0,
    "collinear and far": torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]).double()[:, None] * LINE * 100,
    "two": torch.tensor([-1.0, 1.0]).double()[:, None] * LINE,
    "all at one place": torch.zeros(4, 3).double() + 0.3,
    "two at one place": torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0.2], [0, 2, 0]]).double(),
    "one at the centre": torch.tensor([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 1], [0, -1, -1]]).double(),
    "alone": torch.ones(1, 3).double(),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("build", [clofnet, lambda **o: stirred(EGNO(2, 2, 16, 2, backbone="clofnet", options=o))])
def test_degenerate_frames_have_finite_values_and_derivatives(name, build):
    pos = DEGENERATE[name]
    for options in ({}, {"scaled": False, "velocity_scalars": False}, {"reflections": True}):
        for dtype in (torch.float64, torch.float32):
            sample = particles(len(pos), dtype=dtype)
            sample.pos = pos.to(dtype)
            for vel in (sample.vel, torch.zeros_like(sample.pos)):
                sample.vel = vel.detach()
                assert_finite(build(**options).to(dtype), sample.clone(), twice=False)
                assert_finite(build(**options, fused=False).to(dtype), sample.clone())


def test_collinear_points_stay_on_their_line():
    sample = particles(5)
    sample.pos, sample.vel = DEGENERATE["collinear"], torch.zeros(5, 3).double()
    moved = clofnet().double()(sample)["pos"]
    assert torch.linalg.cross(moved, LINE.expand_as(moved)).abs().max() < 1e-12
    assert (moved - sample.pos).abs().max() > 1e-3


def test_frames_shrink_smoothly_on_the_way_to_a_line():
    """No jump as the third point comes onto the line: the output tends to that of the degenerate frame."""
    model, sample = clofnet().double(), particles(3)
    outputs = []
    for off in (1e-2, 1e-3, 1e-4, 0.0):
        sample.pos = torch.tensor([[-1.0, 0, 0], [0.2, 0, 0], [0.8, off, 0]]).double()
        outputs.append(model(sample)["pos"].detach())
    errors = [float((out - outputs[-1]).abs().max()) for out in outputs[:-1]]
    assert errors[0] < 0.1
    assert all(later < 0.2 * earlier for earlier, later in pairwise(errors))


def test_the_frame_is_that_of_the_paper():
    torch.manual_seed(0)
    x, y, v = torch.randn(3, 7, 3).double()
    for scaled in (False, True):
        d, n = x - y, torch.linalg.cross(x, y)
        if scaled:
            d, n = (t / (t.norm(dim=1, keepdim=True) + 1) for t in (d, n))
        frame = local_frame(x - y, x, scaled=scaled)
        for ours, theirs in zip(frame, (d, n, torch.linalg.cross(d, n)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(frame.project(v)[:, 1], (v * n).sum(1))
        torch.testing.assert_close(frame.combine(torch.eye(3).double()[[1] * 7]), n)
    angle = sine_cosine(torch.tensor([[2.0, 0, 0]]), torch.tensor([[0, 0, 3.0]]))
    torch.testing.assert_close(angle, torch.tensor([[1.0, 0.0]]))


def test_frames_around_neighbours_are_local():
    """The same as around the whole on a complete graph; on a sparse one a far node without edges changes nothing."""
    sample = particles(5)
    torch.manual_seed(0)
    whole, local = (
        stirred(ClofNet(2, 2, 16, 1, options=ClofNetOptions(centre=centre))).double()
        for centre in ("graph", "neighbours")
    )
    local.load_state_dict(whole.state_dict())
    torch.testing.assert_close(whole(sample)["pos"], local(sample)["pos"], rtol=1e-12, atol=1e-12)
    more = sample.clone()
    for name in ("pos", "vel", "x"):
        more[name] = torch.cat([sample[name], 50 * torch.ones(1, sample[name].shape[1]).double()])
    torch.testing.assert_close(local(more)["pos"][:5], local(sample)["pos"], rtol=1e-12, atol=1e-12)
    assert (whole(more)["pos"][:5] - whole(sample)["pos"]).abs().max() > 1e-3


def test_stacked_and_flat_batches_agree_and_sizes_may_differ():
    model = clofnet().double()
    samples = [particles(5, seed=k) for k in range(3)]
    flat = model(Batch.from_data_list(samples))["pos"]
    fields = {name: torch.stack([s[name] for s in samples]) for name in ("pos", "vel", "x", "edge_attr")}
    stacked = model(Data(**fields, edge_index=samples[0].edge_index))["pos"]
    torch.testing.assert_close(stacked.flatten(0, 1), flat, rtol=1e-12, atol=1e-12)
    ragged = [particles(n, seed=n) for n in (2, 7, 1, 4)]
    together = model(Batch.from_data_list(ragged))["pos"]
    apart = torch.cat([model(sample)["pos"] for sample in ragged])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


def test_published_counts_of_parameters():
    """The original's, without what nothing reads: 24 of `embedding_edge`, 12 rows of the Gaussians' tables."""
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(ClofNet(1, 2, options=ClofNetOptions(velocity_scalars=False))) == 160_796 - 24
    assert count(ClofNet(1, 2)) == 160_964
    assert count(ClofNet(1, 2, options=ClofNetOptions(gaussians=True))) == 160_980 - 12
    assert count(ClofNetScore()) == 3_288_262


def test_fused_and_plain_layers_agree():
    sample, results = particles(6), []
    for fused in (True, False):
        model = clofnet(fused=fused).double()
        pos = model(sample)["pos"]
        with torch.no_grad():
            torch.testing.assert_close(model(sample)["pos"], pos, rtol=1e-12, atol=1e-12)
        results.append((pos, *torch.autograd.grad(pos.sin().sum(), list(model.layers.parameters()), allow_unused=True)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_bfloat16_autocast_trains():
    model, sample = clofnet(), particles(6, dtype=torch.float32)
    exact = model(sample)["pos"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(sample)["pos"]
    rough.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_wrong_input_is_named():
    model = clofnet().double()
    for change, words in (
        ({"x": torch.zeros(6, 3)}, "field x"),
        ({"edge_attr": torch.zeros(30, 1)}, "field edge_attr"),
        ({"edge_attr": None}, "field edge_attr.*got nothing"),
    ):
        with pytest.raises(InputError, match=words):
            model(particles().update(change))
    with pytest.raises(InputError, match="1 or -1"):
        clofnet(gaussians=True).double()(conformance.random_sample(4, fields=FIELDS))
    with pytest.raises(InputError, match="even"):
        ClofNet(1, 2, 15)
    with pytest.raises(InputError, match="product of charges"):
        ClofNet(1, 0, options=ClofNetOptions(gaussians=True))


def molecule(dtype=torch.float64, nodes=7, seed=0) -> Data:
    sample = conformance.random_sample(nodes, dtype=dtype, seed=seed, fields=("pos", "z", "edge_index"))
    sample.edge_type = torch.randint(1, 25, (sample.num_edges,), generator=torch.Generator().manual_seed(seed))
    sample.sigma = torch.tensor([0.7], dtype=dtype)
    return sample


def score(**options) -> ClofNetScore:
    torch.manual_seed(0)
    model = ClofNetScore(32, **options)
    for part in (model.edge_features.length, model.edge_features.coordinate):
        part.frequency *= 0.3
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
def test_score_network_conforms(dtype, tolerance):
    kinds = {"score": "vector"}
    report = conformance.assert_conforms(
        score().to(dtype), molecule(dtype), group="SE(3)", kinds=kinds, tolerance=tolerance
    )
    assert report["reflection"].error > 1e-2
    as_published = conformance.check(score(centre="origin").to(dtype), molecule(dtype), group="SO(3)", kinds=kinds)
    assert as_published["translation"].error > 1e-2


@pytest.mark.parametrize("name", DEGENERATE)
def test_score_of_degenerate_molecules_is_finite(name):
    pos = DEGENERATE[name]
    for dtype in (torch.float64, torch.float32):
        sample = molecule(dtype, len(pos))
        sample.pos = pos.to(dtype)
        assert_finite(score().to(dtype).eval(), sample)


def test_score_network_trains_with_dropout_and_refuses_wrong_numbers():
    model, sample = score().double(), molecule()
    assert not torch.equal(model(sample)["score"], model(sample)["score"])
    assert torch.equal(model.eval()(sample)["score"], model(sample)["score"])
    with pytest.raises(InputError, match=r"edge_type.*0 to 99"):
        model(molecule().update({"edge_type": sample.edge_type + 90}))
    with pytest.raises(InputError, match="multiple of 8"):
        ClofNetScore(20)
    with pytest.raises(InputError, match="'relu'"):
        score(node_activation="rellu")
