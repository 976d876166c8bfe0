"""Every check passes on a right toy model and fails on one that is broken in just that way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

import equidyn.conformance as conformance
from equidyn.conformance import CHECKS, Check, ConformanceError, Report
from equidyn.core.errors import EquidynError, InputError

SYMMETRIES = {"rotation", "reflection", "translation", "node_permutation", "edge_permutation", "batching"}


def graphs_of(sample: Data) -> tuple[Tensor, int]:
    batch = sample.batch if "batch" in sample else torch.zeros(sample.num_nodes, dtype=torch.long)
    return batch, int(batch.max()) + 1


def pairs(sample: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target and r_ij = pos[j] - pos[i]."""
    source, target = sample.edge_index
    return source, target, sample.pos[source] - sample.pos[target]


class Trajectory(nn.Module):
    """A right model: one message pass, E(n), positions and velocities at all times; subclasses break one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def scale(self, sample: Data) -> Tensor:
        """A number per node."""
        return sample.x.sum(dim=-1, keepdim=True).tanh()

    def push(self, sample: Data) -> Tensor:
        """A vector per node."""
        _, target, r = pairs(sample)
        weight = torch.exp(-r.square().sum(-1, keepdim=True)) * (2 + torch.tanh(sample.edge_attr[:, :1]))
        messages = self.weight.to(r) * weight * r
        return torch.zeros_like(sample.pos).index_add(0, target, messages) * self.scale(sample)

    def forward(self, sample: Data) -> dict[str, Tensor]:
        batch, _ = graphs_of(sample)
        t = sample.times[batch][:, :, None]
        push = self.push(sample)[:, None]
        h = self.push(sample).square().sum(-1, keepdim=True)
        trajectory = sample.pos[:, None] + t * sample.vel[:, None] + t**2 * push
        return {"trajectory": trajectory, "trajectory_vel": sample.vel[:, None] + 2 * t * push, "h": h}


class XCoordinate(Trajectory):
    """Breaks rotation (and reflection): looks at one axis of a relative vector."""

    def push(self, sample: Data) -> Tensor:
        _, target, r = pairs(sample)
        return super().push(sample) * torch.zeros(len(sample.pos), 1).to(r).index_add(0, target, r[:, :1].abs())


class CrossProduct(Trajectory):
    """Breaks reflection only: the cross product of two vectors is no vector under it."""

    def push(self, sample: Data) -> Tensor:
        push = super().push(sample)
        return push + torch.linalg.cross(push, sample.vel)


class AbsolutePosition(Trajectory):
    """Breaks translation only: the distance from the origin."""

    def scale(self, sample: Data) -> Tensor:
        return sample.pos.norm(dim=-1, keepdim=True)


class NodeNumber(Trajectory):
    """Breaks node permutation: the number of a node within its graph."""

    def scale(self, sample: Data) -> Tensor:
        batch, _ = graphs_of(sample)
        first = torch.searchsorted(batch, batch)
        return (torch.arange(len(batch)) - first)[:, None].to(sample.pos)


class EdgeNumber(Trajectory):
    """Breaks edge permutation: the first edge of each graph counts differently."""

    def push(self, sample: Data) -> Tensor:
        source, target, r = pairs(sample)
        batch, count = graphs_of(sample)
        owner = batch[source]
        first = torch.stack([(owner == g).nonzero()[0, 0] for g in range(count) if bool((owner == g).any())])
        weight = torch.ones(len(r), 1).to(r).index_fill(0, first, 2.0)
        return torch.zeros_like(sample.pos).index_add(0, target, weight * r)


class BatchMaximum(Trajectory):
    """Breaks batching only: a feature divided by its maximum over all nodes of the batch."""

    def scale(self, sample: Data) -> Tensor:
        return sample.x[:, :1].abs() / sample.x[:, :1].abs().max()


class FirstTimes(Trajectory):
    """Breaks batching only: the times of the first graph are used for all."""

    def forward(self, sample: Data) -> dict[str, Tensor]:
        changed = sample.clone()
        changed.times = sample.times[:1].expand_as(sample.times)
        return super().forward(changed)


class InPlace(Trajectory):
    """Mutates its input."""

    def forward(self, sample: Data) -> dict[str, Tensor]:
        outputs = super().forward(sample)
        sample.pos += 1.0
        return outputs


class ExtraField(Trajectory):
    """Mutates its input: leaves a field behind."""

    def forward(self, sample: Data) -> dict[str, Tensor]:
        sample.cache = sample.pos.clone()
        return super().forward(sample)


class Counter(Trajectory):
    """Not a function: every call answers differently, by less than the other checks may notice."""

    calls = 0

    def forward(self, sample: Data) -> dict[str, Tensor]:
        self.calls += 1
        return {name: value * (1 + 1e-3 * self.calls) for name, value in super().forward(sample).items()}


class RootOfZero(Trajectory):
    """No finite gradient where two nodes coincide: the derivative of the square root at zero."""

    def push(self, sample: Data) -> Tensor:
        _, target, r = pairs(sample)
        return torch.zeros_like(sample.pos).index_add(0, target, r * r.square().sum(-1, keepdim=True).sqrt())


class NanGradient(Trajectory):
    """No finite gradient anywhere: sqrt of an exact zero."""

    def scale(self, sample: Data) -> Tensor:
        return super().scale(sample) + (sample.pos - sample.pos).square().sum(-1, keepdim=True).sqrt()


class Constant(Trajectory):
    """Symmetric in every way, and says nothing."""

    def forward(self, sample: Data) -> dict[str, Tensor]:
        return {"trajectory_vel": torch.zeros_like(super().forward(sample)["trajectory_vel"])}


class OneConstant(Trajectory):
    """One of its outputs says nothing."""

    def forward(self, sample: Data) -> dict[str, Tensor]:
        return super().forward(sample) | {"h": sample.x}


class IgnoresPositions(Trajectory):
    """Looks at velocities only."""

    def forward(self, sample: Data) -> dict[str, Tensor]:
        return {"vel": 2 * sample.vel}


class Potential(nn.Module):
    """A right pair potential with a smooth cutoff, energy and forces; subclasses break one thing."""

    cutoff = 3.0

    def pair(self, r: Tensor) -> Tensor:
        return torch.exp(-r) * 0.5 * (torch.cos(math.pi * r / self.cutoff) + 1) * (r < self.cutoff)

    def energy(self, sample: Data, pos: Tensor) -> Tensor:
        source, target = sample.edge_index
        batch, count = graphs_of(sample)
        r = (pos[source] - pos[target]).square().sum(-1).add(1e-12).sqrt()
        return torch.zeros(count, dtype=pos.dtype).index_add(0, batch[source], 0.5 * self.pair(r))

    def forces(self, sample: Data) -> Tensor:
        pos = sample.pos.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(sample, pos).sum(), pos)[0]

    def forward(self, sample: Data) -> dict[str, Tensor]:
        return {"energy": self.energy(sample, sample.pos), "forces": self.forces(sample)}


class WrongSign(Potential):
    def forces(self, sample: Data) -> Tensor:
        return -super().forces(sample)


class HardCutoff(Potential):
    def pair(self, r: Tensor) -> Tensor:
        return torch.exp(-r) * (r < self.cutoff)


class ShiftedCutoff(Potential):
    """The value goes to zero at the cutoff, the slope does not."""

    def pair(self, r: Tensor) -> Tensor:
        return (torch.exp(-r) - math.exp(-self.cutoff)) * (r < self.cutoff)


class MeanEnergy(Potential):
    """Not extensive: divided by the number of nodes."""

    def energy(self, sample: Data, pos: Tensor) -> Tensor:
        return super().energy(sample, pos) / graphs_of(sample)[0].bincount()


def failed(report: Report) -> set[str]:
    return {check.name for check in report.failures}


def potential_sample(dtype: torch.dtype = torch.float64, nodes: int = 6) -> Data:
    return conformance.random_sample(nodes, 3.0, dtype, fields=("pos", "z", "edge_index"))


def within_cutoff(pos: Tensor) -> Data:
    near = (torch.cdist(pos, pos) < Potential.cutoff) & ~torch.eye(len(pos), dtype=torch.bool)
    return Data(pos=pos, edge_index=near.nonzero().T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_right_models_pass(dtype: torch.dtype) -> None:
    report = conformance.assert_conforms(Trajectory(), conformance.random_sample(dtype=dtype), group="E(3)")
    assert [check.name for check in report.checks] == list(CHECKS)
    assert [check.name for check in report.checks if check.passed is None] == ["forces"]
    assert all(report.errors()[name] < (1e-14 if dtype == torch.float64 else 1e-5) for name in SYMMETRIES)
    report = conformance.assert_conforms(Potential(), potential_sample(dtype), group="E(3)")
    assert all(check.passed for check in report.checks)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_other_dimensions(dimensions: int) -> None:
    report = conformance.assert_conforms(Trajectory(), conformance.random_sample(dimensions=dimensions), group="E(n)")
    assert (report["rotation"].passed is None) == (dimensions == 1)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (XCoordinate, {"rotation", "reflection"}),
        (CrossProduct, {"reflection"}),
        (AbsolutePosition, {"translation"}),
        (NodeNumber, {"node_permutation"}),
        (EdgeNumber, {"edge_permutation"}),
        (BatchMaximum, {"batching"}),
        (FirstTimes, {"batching"}),
        (InPlace, {"mutation"}),
        (ExtraField, {"mutation"}),
        (RootOfZero, {"coincident"}),
        (NanGradient, {"gradients", "coincident"}),
        (Constant, {"response"}),
        (OneConstant, {"response"}),
        (IgnoresPositions, {"response"}),
    ],
)
def test_a_broken_model_fails_in_just_that_way(model: type[Trajectory], names: set[str]) -> None:
    report = conformance.check(model(), conformance.random_sample())
    assert failed(report) == names, f"\n{report}"
    assert not report.passed


def test_state_between_calls_is_seen() -> None:
    assert "determinism" in failed(conformance.check(Counter(), conformance.random_sample()))


def test_random_numbers_are_seeded_and_told() -> None:
    def noisy(sample: Data) -> dict[str, Tensor]:
        return {"pos": sample.pos * (1 + torch.rand(1, dtype=torch.float64))}

    before = torch.get_rng_state()
    report = conformance.check(noisy, conformance.random_sample(fields=("pos",)), group="O(3)")
    assert report["determinism"].passed
    assert report["determinism"].detail == "draws random numbers"
    assert torch.equal(torch.get_rng_state(), before)


def test_forces_are_the_gradient_of_the_energy() -> None:
    for dtype in (torch.float64, torch.float32):
        assert conformance.check(Potential(), potential_sample(dtype))["forces"].passed
        assert failed(conformance.check(WrongSign(), potential_sample(dtype))) == {"forces"}
    report = conformance.check(WrongSign(), potential_sample(), optional=("forces",))
    assert report.passed
    assert report["forces"].status == "info"


def test_extensivity() -> None:
    conformance.check_extensivity(Potential(), potential_sample()).raise_if_failed()
    assert failed(conformance.check_extensivity(MeanEnergy(), potential_sample())) == {"extensivity"}
    periodic = conformance.random_sample(fields=("pos", "edge_index", "edge_shift", "cell"))
    assert conformance.check_extensivity(Potential(), periodic)["extensivity"].passed is None
    with pytest.raises(InputError, match="energy"):
        conformance.check_extensivity(Trajectory(), conformance.random_sample())


def test_cutoff() -> None:
    pos = potential_sample(nodes=4).pos

    def broken(model: Potential) -> set[str]:
        def energy(sample: Data) -> dict[str, Tensor]:
            return {"energy": model.energy(sample, sample.pos)}

        return failed(conformance.check_cutoff(energy, within_cutoff, pos, 3.0))

    report = conformance.check_cutoff(Potential(), within_cutoff, pos, 3.0)
    report.raise_if_failed()
    assert set(report.errors()) == {"cutoff_value", "cutoff_slope"}
    assert broken(HardCutoff()) == {"cutoff_value", "cutoff_slope"}
    assert broken(ShiftedCutoff()) == {"cutoff_slope"}
    # Forces are slopes of the energy already: they jump where its slope does.
    assert conformance.check_cutoff(ShiftedCutoff(), within_cutoff, pos, 3.0)["cutoff_value"].detail == "forces"


def test_cutoff_does_not_pass_unseen() -> None:
    pos = potential_sample(nodes=2).pos
    elsewhere = conformance.check_cutoff(Potential(), within_cutoff, pos, 2.0)
    assert all(check.passed is None for check in elsewhere.checks)
    assert not elsewhere.passed
    with pytest.raises(ConformanceError, match="no required check"):
        elsewhere.raise_if_failed()

    def silent(sample: Data) -> dict[str, Tensor]:
        return {"energy": torch.zeros(1)}

    assert len(failed(conformance.check_cutoff(silent, within_cutoff, pos, 3.0))) == 2
    for bad_pos, cutoff in ((pos[:1], 3.0), (pos.float(), 3.0), (pos, 0.0)):
        with pytest.raises(InputError):
            conformance.check_cutoff(Potential(), within_cutoff, bad_pos, cutoff)


@pytest.mark.parametrize(
    ("group", "model", "passes"),
    [
        ("SE(3)", CrossProduct, True),
        ("SO(3)", CrossProduct, True),
        ("O(3)", CrossProduct, False),
        ("O(3)", AbsolutePosition, True),
        ("SO(3)", AbsolutePosition, True),
        ("SE(3)", AbsolutePosition, False),
        ("SO(3)", XCoordinate, False),
    ],
)
def test_the_group_decides_what_is_required(group: str, model: type[Trajectory], passes: bool) -> None:
    report = conformance.check(model(), conformance.random_sample(), group=group)
    assert report.passed == passes
    assert all(report.errors()[name] >= 0 for name in SYMMETRIES)


def test_kinds_say_how_other_outputs_transform() -> None:
    def dipole(sample: Data) -> dict[str, Tensor]:
        arm = sample.pos - sample.pos.mean(0)
        return {"dipole": (sample.charge[:, None] * arm).sum(0)[None], "inertia": (arm.T @ arm)[None]}

    sample = conformance.random_sample(fields=("pos", "charge"))
    optional = ("batching",)
    assert failed(conformance.check(dipole, sample, optional=optional)) == {"rotation", "reflection"}
    conformance.assert_conforms(dipole, sample, kinds={"dipole": "vector", "inertia": "tensor"}, optional=optional)
    assert conformance.check(dipole, sample, kinds={"dipole": "vector", "inertia": "tensor"})["batching"].error > 0.1


def test_skipped_checks_say_why() -> None:
    report = conformance.check(
        Trajectory(), conformance.random_sample(1, fields=("pos", "vel", "x", "times", "edge_index", "edge_attr"))
    )
    reasons = {check.name: check.detail for check in report.checks if check.passed is None}
    assert reasons["node_permutation"] == "fewer than two nodes"
    assert reasons["edge_permutation"] == "fewer than two edges"
    assert reasons["coincident"] == "fewer than two nodes"

    def counts(sample: Data) -> dict[str, Tensor]:
        return {"h": sample.x.cumsum(-1)}

    report = conformance.check(counts, conformance.random_sample(fields=("x", "edge_index")))
    assert {"rotation", "reflection", "translation"} <= {c.name for c in report.checks if c.passed is None}
    assert failed(report) == {"response"}


def test_edge_outputs_and_images() -> None:
    """Outputs named edge_* are one row per edge; edge_shift turns and moves with its edge."""

    def lengths(sample: Data) -> dict[str, Tensor]:
        r = pairs(sample)[2]
        return {"edge_length": (r + sample.edge_shift).norm(dim=-1)}

    def without_shift(sample: Data) -> dict[str, Tensor]:
        return {"edge_sum": sample.edge_shift.sum(-1) + pairs(sample)[2].norm(dim=-1)}

    sample = conformance.random_sample(fields=("pos", "edge_index", "edge_shift", "cell", "pbc"))
    conformance.assert_conforms(lengths, sample, optional=("coincident",))
    assert {"rotation", "reflection"} <= failed(conformance.check(without_shift, sample))


def test_modules_are_evaluated_and_given_back_as_they_were() -> None:
    class Noisy(Trajectory):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5)

        def scale(self, sample: Data) -> Tensor:
            return self.dropout(super().scale(sample))

    model = Noisy()
    model.frozen.eval()
    sample = conformance.random_sample()
    kept = sample.clone()
    conformance.assert_conforms(model, sample)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert model.weight.grad is None
    assert all(torch.equal(sample[name], kept[name]) for name in kept.keys())  # noqa: SIM118


def test_an_error_inside_a_check_is_a_failure_of_that_check() -> None:
    class NoBatches(Trajectory):
        def forward(self, sample: Data) -> dict[str, Tensor]:
            if isinstance(sample, Batch):
                raise RuntimeError("no batches, please")
            return super().forward(sample)

    report = conformance.check(NoBatches(), conformance.random_sample())
    assert failed(report) == {"batching"}
    assert report["batching"].detail == "raised RuntimeError: no batches, please"


def test_small_outputs_are_not_hidden_by_the_tolerance() -> None:
    class Small(XCoordinate):
        def forward(self, sample: Data) -> dict[str, Tensor]:
            return {"energy": 1e-5 * super().forward(sample)["h"].sum()[None]}

    assert "rotation" in failed(conformance.check(Small(), conformance.random_sample()))


def test_report() -> None:
    good, bad = Check("rotation", 1e-15, 1e-10, True), Check("batching", 0.5, 1e-10, False, "h")
    worse, info = Check("forces", 2.0, 1e-7, False), Check("reflection", 1.0, 1e-10, False, required=False)
    skip = Check("translation", math.nan, math.nan, None, "the sample has no positions")
    report = Report((good, worse, bad, info, skip))
    assert not report.passed
    assert report.errors() == {"rotation": 1e-15, "forces": 2.0, "batching": 0.5, "reflection": 1.0}
    assert [row.split()[-1] for row in str(Report((good, info))).splitlines()] == ["detail", "passed", "info"]
    assert len({row.index(word) for row, word in zip(str(report).splitlines(), ["error", "1.0e"], strict=False)}) == 1
    with pytest.raises(ConformanceError, match=r"batching failed, error 5.0e-01 > 1.0e-10: h \(also failed: forces\)"):
        report.raise_if_failed()
    with pytest.raises(AssertionError):
        report.raise_if_failed()
    with pytest.raises(EquidynError):
        report.raise_if_failed()
    assert Report((good, info, skip)).passed
    assert not Report((skip,)).passed


def test_bad_input() -> None:
    sample, model = conformance.random_sample(), Trajectory()
    nan = sample.clone()
    nan.pos[0, 0] = math.nan
    two = Batch.from_data_list([sample, sample])
    stacked = sample.clone()
    stacked.pos = stacked.pos[None]
    for wrong in (nan, two, stacked, Data()):
        with pytest.raises(InputError):
            conformance.check(model, wrong)
    for options in ({"group": "U(1)"}, {"group": "E(2)"}, {"kinds": {"h": "spinor"}}, {"optional": ("rotations",)}):
        with pytest.raises(InputError, match=next(iter(options))):
            conformance.check(model, sample, **options)
    with pytest.raises(InputError, match="positive"):
        conformance.check(model, sample, tolerance=0.0)
    for outputs in ({}, {"h": 1.0}, sample.pos):
        with pytest.raises(InputError, match="named tensors"):
            conformance.check(lambda _, outputs=outputs: outputs, sample)


def test_random_sample() -> None:
    every = ("pos", "vel", "x", "z", "charge", "mass", "edge_index", "edge_attr", "edge_shift", "cell", "pbc", "batch")
    sample = conformance.random_sample(4, fields=(*every, "times"), time_points=3, dtype=torch.float32)
    assert set(sample.keys()) == {*every, "times"}
    shapes = {name: list(sample[name].shape) for name in ("pos", "edge_index", "edge_attr", "times", "cell", "batch")}
    assert shapes == {
        "pos": [4, 3], "edge_index": [2, 12], "edge_attr": [12, 2], "times": [1, 3], "cell": [1, 3, 3], "batch": [4],
    }  # fmt: skip
    assert all(value.dtype == torch.float32 for _, value in sample if value.is_floating_point())
    source, target = sample.edge_index
    back = {(int(a), int(b)): shift for a, b, shift in zip(source, target, sample.edge_shift, strict=True)}
    assert all(torch.allclose(shift, -back[b, a]) for (a, b), shift in back.items())
    assert torch.equal(conformance.random_sample(seed=3).pos, conformance.random_sample(seed=3).pos)
    assert not torch.equal(conformance.random_sample(seed=3).pos, conformance.random_sample(seed=4).pos)
    near = conformance.random_sample(8, 2.0)
    assert float(pairs(near)[2].norm(dim=-1).max()) < 2.0
    assert 0 < near.num_edges < 56
    for options in ({"nodes": 0}, {"edges": "some"}, {"fields": ("poss",)}, {"fields": ("energy",)}):
        with pytest.raises(InputError):
            conformance.random_sample(**options)
