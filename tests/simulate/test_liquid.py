"""The liquid keeps energy and momentum, does not care about the size of its box, and starts from its seed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data.trajectories import read_trajectories, write_trajectories
from equidyn.simulate import Liquid, liquid_energy, simulate_liquid
from equidyn.simulate.liquid import _edges, _pairs

SHORT = {"bodies": 32, "steps": 100, "dt": 0.004, "store_every": 20, "seed": 5}
QUICK = Liquid(settle=0.4)


@pytest.fixture(scope="module")
def liquid():
    return simulate_liquid(QUICK, 3, **SHORT)


def test_energy_and_momentum_stay(liquid):
    assert liquid.positions.shape == (3, 6, 32, 3)
    assert liquid.meta["drift"]["energy_max"] < 2e-3
    assert liquid.meta["drift"]["momentum_max"] < 1e-10
    kinetic, potential = liquid_energy(liquid)
    total, size = kinetic + potential, np.abs(kinetic[:, :1]) + np.abs(potential[:, :1])
    assert (np.abs(total - total[:, :1]) / size).max() == pytest.approx(liquid.meta["drift"]["energy_max"], rel=1e-6)


def test_half_the_step_makes_a_quarter_of_the_error():
    short = simulate_liquid(QUICK, 2, **(SHORT | {"steps": 200, "dt": 0.002, "store_every": 10}))
    long = simulate_liquid(QUICK, 2, **(SHORT | {"steps": 100, "dt": 0.004, "store_every": 5}))
    ratio = long.meta["drift"]["energy_median"] / short.meta["drift"]["energy_median"]
    assert 2 < ratio < 8


def test_forces_are_minus_the_gradient_and_end_smoothly():
    torch.manual_seed(0)
    law, cell = Liquid(cutoff=1.7), torch.diag(torch.tensor([2.1, 2.3, 2.2], dtype=torch.float64))
    x = (torch.rand(6, 3, dtype=torch.float64) @ cell).requires_grad_()  # images of itself are within the cutoff
    force, energy = _pairs(law, *_edges(x.detach()[None], cell, 2.0), x)
    (slope,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(force.detach(), -slope, rtol=1e-9, atol=1e-9)
    pair = torch.tensor([[0.0, 0, 0], [1.7 - 1e-7, 0, 0]], dtype=torch.float64)
    force, energy = _pairs(law, *_edges(pair[None], 9 * torch.eye(3, dtype=torch.float64), 2.0), pair)
    assert abs(float(energy)) < 1e-12
    assert force.abs().max() < 1e-5


def test_a_box_may_be_smaller_than_the_cutoff(liquid):
    """Two boxes side by side are the same liquid in a box twice as long."""
    one = liquid.subset(slice(0, 1))
    shift = np.array([one.cell[0, 0, 0], 0, 0])
    cell = one.cell * np.array([[2.0], [1.0], [1.0]])
    positions = np.concatenate([one.positions, one.positions + shift], axis=2)
    both = replace(one, positions=positions, velocities=np.concatenate([one.velocities] * 2, axis=2), cell=cell)
    assert one.cell[0, 0, 0] < 2 * Liquid().cutoff
    np.testing.assert_allclose(liquid_energy(both), 2 * liquid_energy(one), rtol=1e-12)


def test_the_seed_and_the_number_of_a_box_fix_it(liquid, tmp_path):
    again, later = simulate_liquid(QUICK, 1, **SHORT), simulate_liquid(QUICK, 1, skip=2, **SHORT)
    np.testing.assert_allclose(again.positions[0, 0], liquid.positions[0, 0], atol=1e-9)
    np.testing.assert_allclose(later.positions[0, 0], liquid.positions[2, 0], atol=1e-9)
    write_trajectories(tmp_path / "l.npz", liquid)
    np.testing.assert_array_equal(read_trajectories(tmp_path / "l.npz").cell, liquid.cell)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Liquid(density=0.0), "density is out of range"),
        (lambda: Liquid(settle=-1.0), "settle is out of range"),
        (lambda: Liquid(temperature=float("nan")), "temperature is out of range"),
        (lambda: simulate_liquid(QUICK, 0), "num is too small"),
        (lambda: simulate_liquid(QUICK, 1, bodies=1), "bodies is too small"),
        (lambda: simulate_liquid(QUICK, 1, steps=5), "store_every leaves no frame"),
        (lambda: simulate_liquid(QUICK, 1, dt=0.0), "dt is out of range"),
        (lambda: simulate_liquid(QUICK, 1, bodies=8, dt=0.05, steps=40), "energy of the liquid is not kept"),
        (lambda: simulate_liquid(QUICK, 1, bodies=8, dt=1e200, steps=40), "left the finite numbers"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_bad_boxes(liquid):
    flat = liquid.cell.copy()
    flat[1, 2] = flat[1, 0]
    with pytest.raises(InputError, match=r"a box without volume.*trajectory 1"):
        replace(liquid, cell=flat).check()
    with pytest.raises(InputError, match="cell do not match the positions"):
        replace(liquid, cell=liquid.cell[0]).check()
    with pytest.raises(InputError, match="cell hold NaN"):
        replace(liquid, cell=liquid.cell * np.nan).check()
    with pytest.raises(InputError, match="not a simulated liquid"):
        liquid_energy(Trajectories(liquid.positions, liquid.velocities, liquid.times))


def test_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "liquid.npz"
    size = ["--num", "2", "--bodies", "16", "--steps", "20", "--store-every", "10", "--set", "settle=0.1"]
    assert main(["simulate", "liquid", str(out), *size, "--set", "cutoff=1.5"]) == 0
    assert "relative energy drift" in capsys.readouterr().out
    assert read_trajectories(out).meta["constants"]["cutoff"] == 1.5
    for wrong, words in (
        (["liquid", "--set", "densty=1"], "densty.*density"),
        (["liquid", "--set", "density=-1"], "density is out of range, in liquid"),
        (["liquid", "--accurate"], "liquids have one integrator, in --accurate"),
        (["liquids"], "liquids.*liquid"),
    ):
        system, *rest = wrong
        assert main(["simulate", system, str(tmp_path / "no.npz"), *rest]) == 2
        assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "no.npz").exists()
