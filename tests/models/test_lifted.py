"""EGNO over every backbone: symmetries as the backbone claims them, queries at any time, batches."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data

from equidyn import conformance
from equidyn.core.catalogue import BACKBONES
from equidyn.models.egno import EGNO

PAIRS = {"residual": True, "distance": "inverse", "relative_velocity": True}
FORMS = [
    ("egnn", "E(3)", {}),
    ("egnn", "E(3)", PAIRS),
    ("clofnet", "SE(3)", {}),
    ("clofnet", "E(3)", {"reflections": True}),
    ("segnn", "E(3)", {}),
    ("segnn", "E(3)", {"lmax": 2, "lmax_attr": 2, "allocation": "balanced", "harmonics": "component"}),
    ("segnn", "E(3)", {"lmax": 0, "lmax_attr": 1, "distance": "squared"}),
    ("implicit_steerable_kernels", "E(3)", {}),
    ("implicit_steerable_kernels", "SE(3)", {"group": "SO(3)", "order": 2, "channels": 2, "norm": "none"}),
]
NAMES = [f"{name}-{group}-{n}" for n, (name, group, _) in enumerate(FORMS)]


def lifted(backbone, options, hidden_dim=16, num_layers=3, **given) -> EGNO:
    """A model whose points move visibly: the last weights before the shifts start near zero."""
    torch.manual_seed(0)
    model = EGNO(2, 2, hidden_dim, num_layers, backbone=backbone, options=options, **given)
    for name, parameter in model.named_parameters():
        if name.endswith(("weight_out.weight", "shift.out.weight", "head.weights.0", ".out.weights.0")):
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(("backbone", "group", "options"), FORMS, ids=NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_keeps_the_symmetry_its_backbone_claims(backbone, group, options, dtype, tolerance):
    model = lifted(backbone, options, num_modes=3, basis="cosine", lift="ballistic", features=True).to(dtype)
    assert model.symmetry == group
    sample = conformance.random_sample(6, dtype=dtype)
    sample.times = torch.tensor([[0.05, 0.33, 0.4, 0.91]], dtype=dtype)
    report = conformance.assert_conforms(model, sample, tolerance=tolerance)
    assert report["reflection"].required == (group == "E(3)")
    assert (report["reflection"].error > 1e-4) == (group == "SE(3)")
    print(backbone, {c.name: c.error for c in report.checks})


@pytest.mark.parametrize(("backbone", "group", "options"), FORMS, ids=NAMES)
def test_alone_under_gravity_and_on_a_sparse_graph(backbone, group, options):
    model = lifted(backbone, options, num_layers=2, num_modes=0, gravity=True).double()
    sample = conformance.random_sample(8, 2.5, fields=("pos", "vel", "x", "edge_index", "edge_attr", "gravity"))
    conformance.assert_conforms(model, sample, tolerance=1e-12)


@pytest.mark.parametrize(("backbone", "group", "options"), FORMS, ids=NAMES)
def test_queries_and_batches_do_not_see_each_other(backbone, group, options):
    model = lifted(backbone, options).double()
    samples = [conformance.random_sample(4, seed=n) for n in range(3)]
    own = [model(s)["trajectory"] for s in samples]
    stacked = Data(**{k: torch.stack([s[k] for s in samples]) for k in ("pos", "vel", "x", "edge_attr")})
    stacked.edge_index = samples[0].edge_index
    together = model(stacked)["trajectory"]
    flat = model(Batch.from_data_list(samples))["trajectory"]
    torch.testing.assert_close(together, torch.stack(own), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flat, torch.cat(own), rtol=1e-12, atol=1e-12)
    samples[0].times = torch.tensor([[0.13, 0.6, 0.77]], dtype=torch.float64)
    asked = model(samples[0])["trajectory"]
    torch.testing.assert_close(asked[:, 1], own[0][:, 2], rtol=1e-12, atol=1e-12)
    samples[0].times = samples[0].times[:, 2:]
    torch.testing.assert_close(model(samples[0])["trajectory"][:, 0], asked[:, 2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_weight_learns(backbone):
    model = lifted(backbone, None, num_layers=2, features=True).double()
    out = model(conformance.random_sample(5))
    (out["trajectory"].square().sum() + out["h"].square().sum()).backward()
    assert {name for name, p in model.named_parameters() if p.numel() and p.grad is None} == set()
