"""Losses and errors of potentials, against sums written out by hand."""

import numpy as np
import pytest
import torch

from emt_structures import crystals, molecules
from equidyn.core.errors import InputError
from equidyn.data.frames import from_atoms
from equidyn.data.structure_dataset import StructureDataset
from equidyn.models.nequip import NequIP
from equidyn.tasks import PotentialTask


@pytest.fixture
def sample():
    frames = [from_atoms(atoms) for atoms in (*molecules(2), *crystals(1))]
    bare = molecules(3, seed=5)[2].copy()
    bare.info["config_weight"] = 2.0
    return StructureDataset([*frames, from_atoms(bare)], 3.0).__getitems__([0, 1, 2, 3])


@pytest.fixture
def out(sample):
    torch.manual_seed(0)
    noise = lambda x: x + 0.1 * torch.randn_like(x)  # noqa: E731
    return {name: noise(sample[name]) for name in ("energy", "forces", "stress")}


def test_the_weighted_loss_leaves_out_what_has_no_label(sample, out):
    terms = PotentialTask(energy=2.0, forces=10.0, stress=5.0).loss(out, sample)
    atoms = torch.bincount(sample.batch)
    known, labelled = slice(0, 3), sample.batch < 3
    energy = ((out["energy"] - sample.energy) / atoms)[known].square().mean()
    forces = (out["forces"] - sample.forces)[labelled].square().mean()
    stress = (out["stress"] - sample.stress)[2].square().mean()  # molecules have none
    assert torch.allclose(torch.stack(list(terms.values())), torch.stack([2 * energy, 10 * forces, 5 * stress]))
    sample.energy[3], sample.forces[~labelled] = 1e6, 1e6  # never looked at
    again = PotentialTask(energy=2.0, forces=10.0, stress=5.0).loss(out, sample)
    assert all(torch.equal(again[name], terms[name]) for name in terms)


def test_weights_of_the_data_multiply(sample, out):
    sample.energy_weight[0], sample.forces_weight[1] = 3.0, 0.0
    terms = PotentialTask(energy=1.0, forces=1.0).loss(out, sample)
    square = ((out["energy"] - sample.energy) / torch.bincount(sample.batch)).square()
    assert torch.allclose(terms["energy"], (3 * square[0] + square[1] + square[2]) / 3)
    chosen = (sample.batch == 0) | (sample.batch == 2)
    assert torch.allclose(terms["forces"], (out["forces"] - sample.forces)[chosen].square().mean())


def test_other_penalties(sample, out):
    error = (out["forces"] - sample.forces)[sample.batch < 3]
    loss = lambda **kw: PotentialTask(energy=0.0, forces=1.0, **kw).loss(out, sample)["forces"]  # noqa: E731
    assert torch.allclose(loss(penalty="norm"), error.norm(dim=1).mean())
    huber = torch.nn.functional.huber_loss
    assert torch.allclose(loss(penalty="huber", delta=0.05), huber(error, torch.zeros_like(error), delta=0.05))
    assert torch.allclose(loss(penalty="universal", delta=0.05), loss(penalty="huber", delta=0.05))  # no steep forces
    sample.forces[0] += torch.tensor([150.0, 0.0, 0.0])
    out["forces"][0] += torch.tensor([150.0, 0.0, 0.0])
    first = huber(error[0], torch.zeros(3), delta=0.7 * 0.05, reduction="sum")
    rest = huber(error[1:], torch.zeros_like(error[1:]), delta=0.05, reduction="sum")
    assert torch.allclose(loss(penalty="universal", delta=0.05), (first + rest) / error.numel())


def test_errors_in_milli_units(sample, out):
    task = PotentialTask(stress=1.0)
    parts = [task.measure(out, sample)]
    metrics = task.metrics({name: 2 * value for name, value in parts[0].items()})  # the same batch twice
    energy = 1000 * (out["energy"] - sample.energy)[:3]
    forces = 1000 * (out["forces"] - sample.forces)[sample.batch < 3]
    assert metrics["e_mae"] == pytest.approx(float(energy.abs().mean()))
    assert metrics["e_rmse"] == pytest.approx(float(energy.square().mean().sqrt()))
    assert metrics["f_mae"] == pytest.approx(float(forces.abs().mean()))
    assert metrics["f_rmse"] == pytest.approx(float(forces.square().mean().sqrt()))
    assert metrics["s_mae"] == pytest.approx(1000 * float((out["stress"] - sample.stress)[2].abs().mean()))
    assert metrics["mae"] == pytest.approx((metrics["e_mae"] + metrics["f_mae"]) / 2)
    assert metrics["loss"] == pytest.approx(float(sum(task.loss(out, sample).values())))
    sample.energy_weight.zero_()
    assert np.isnan(task.metrics(task.measure(out, sample))["e_mae"])


def test_predictions_are_derivatives_and_can_be_trained_on(sample):
    torch.manual_seed(0)
    model = NequIP(["H", "C", "O", "Cu"], cutoff=3.0, num_layers=1, l_max=1, num_features=4, options=_narrow())
    task = PotentialTask(stress=1.0)
    cast = task.cast(sample, torch.float32)
    assert (cast.pos.dtype, cast.energy.dtype, sample.pos.dtype) == (torch.float32, torch.float64, torch.float64)
    out = task.predict(model, cast, training=True)
    sum(task.loss(out, cast).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    plain = task.predict(model, cast, training=False)
    assert not plain["forces"].requires_grad
    assert torch.allclose(plain["forces"], out["forces"])
    assert out["energy"].dtype == torch.float64
    assert "stress" not in PotentialTask().predict(model, cast, training=False)


def _narrow():
    from equidyn.models.nequip import NequIPOptions

    return NequIPOptions(radial=(8,))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"energy": -1.0}, "weight, in task.energy"),
        ({"energy": 0.0, "forces": 0.0}, "all 0"),
        ({"delta": 0.0}, "task.delta"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError, match=words):
        PotentialTask(**options)
