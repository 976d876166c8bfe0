"""OpenMM, LAMMPS and TorchSim, each where it is installed; forces are those of the ASE calculator."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule

from equidyn import Calculator
from equidyn.core.errors import InputError
from equidyn.core.extras import MissingExtraError, require
from equidyn.core.units import KJ_MOL
from equidyn.deploy import load_potential
from equidyn.deploy.lammps import attach, within_reach
from equidyn.deploy.openmm import make_force
from equidyn.deploy.torch_sim import make_model

HERE = Path(__file__).parent


def available(name):
    """The package of an engine, or skip and say why."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name} is not installed or does not load: {error}")


def crystal():
    """In a cell as LAMMPS and OpenMM want it, lower triangular."""
    cell = [[6.0, 0.0, 0.0], [0.4, 6.6, 0.0], [0.3, -0.5, 7.2]]
    grid = np.array([[i, j, k] for i in (0, 0.5) for j in (0, 0.5) for k in (0, 0.5)])
    atoms = Atoms("COCOHCHO", scaled_positions=grid + 0.1, cell=cell, pbc=True)
    atoms.rattle(0.1, seed=3)
    return atoms


def test_an_engine_that_is_missing():
    with pytest.raises(MissingExtraError, match=r"a force needs no_such_engine, expected .*equidyn\[openmm\]"):
        require("no_such_engine", "openmm", "a force")


# OpenMM --------------------------------------------------------------------------------------------------------------


def openmm_context(potential, atoms, **options):
    openmm = available("openmm")
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if options.get("periodic"):
        system.setDefaultPeriodicBoxVectors(*(np.array(atoms.cell) / 10))
    system.addForce(make_force(potential, atoms.numbers, **options))
    integrator = openmm.VerletIntegrator(0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(atoms.positions / 10)
    return context, integrator


@pytest.mark.parametrize("periodic", [False, True])
def test_openmm(run, periodic):
    potential, atoms = load_potential(run), crystal() if periodic else molecule("CH3CH2OH")
    context, integrator = openmm_context(potential, atoms, periodic=periodic)
    state = context.getState(energy=True, forces=True)
    right = Calculator(potential).evaluate_many([atoms])[0]
    assert state.getPotentialEnergy()._value == pytest.approx(right["energy"] * KJ_MOL, rel=1e-12)
    forces = state.getForces(asNumpy=True)._value / (10 * KJ_MOL)
    np.testing.assert_allclose(forces, right["forces"], rtol=0, atol=1e-9 * np.abs(right["forces"]).max())
    total = []
    for _ in range(20):
        integrator.step(1)
        state = context.getState(energy=True)
        total.append(state.getPotentialEnergy()._value + state.getKineticEnergy()._value)
    assert np.ptp(total) / KJ_MOL / len(atoms) < 1e-3


def test_openmm_some_particles(potential):
    openmm = available("openmm")
    atoms, system = molecule("H2O"), openmm.System()
    for mass in (20.0, *atoms.get_masses()):
        system.addParticle(mass)
    system.addForce(make_force(potential, atoms.numbers, particles=[1, 2, 3]))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    context.setPositions(np.concatenate([[[0, 0, 0.3]], atoms.positions / 10]))
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    right = Calculator(potential).evaluate_many([atoms])[0]["forces"]
    np.testing.assert_allclose(forces[1:] / (10 * KJ_MOL), right, atol=1e-9)
    assert not forces[0].any()
    with pytest.raises(InputError, match="unknown element"):
        make_force(potential, [92])


# LAMMPS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_lammps(run, ranks, tmp_path):
    """100 steps at constant energy; forces, energy and pressure against ASE, on one rank and on two."""
    import equidyn.deploy.lammps  # noqa: F401, which makes the MPI library known

    available("lammps").lammps(cmdargs=["-screen", "none", "-log", "none"]).close()
    command = [sys.executable, str(HERE / "lammps_script.py"), str(run), str(tmp_path / "out.npz")]
    if ranks > 1:
        available("mpi4py.MPI")
        mpiexec = Path(sys.prefix) / "bin" / "mpiexec"
        if not mpiexec.exists():
            pytest.skip("no mpiexec beside this Python (wheel mpich)")
        command = [str(mpiexec), "-n", str(ranks), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out = np.load(tmp_path / "out.npz")
    assert out["ranks"] == ranks
    atoms = Atoms(out["numbers"], out["pos"], cell=out["cell"], pbc=True)
    right = Calculator(run).evaluate_many([atoms])[0]
    assert out["energy"] == pytest.approx(right["energy"], rel=1e-12)
    np.testing.assert_allclose(out["forces"], right["forces"], rtol=0, atol=1e-9 * np.abs(right["forces"]).max())
    pressure = -right["stress"][:3].mean() / units.bar
    assert out["pressure"] == pytest.approx(pressure, rel=1e-6)
    assert np.ptp(out["total"]) / len(atoms) < 1e-3
    assert np.abs(out["pos"] - out["start"]).max() > 0.01


def test_what_an_atom_depends_on():
    """A chain 0-1-2-3-4: after two layers, atom 0 sees atoms 1 and 2 and the edges into 0 and 1."""
    forward = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    edges = torch.cat([forward, forward.flip(0)], dim=1)
    atoms, used = within_reach(torch.tensor([True] + [False] * 4), edges, 2)
    assert atoms.tolist() == [True, True, True, False, False]
    assert sorted(edges[1, used].tolist()) == [0, 1, 1]


def test_parts_add_up(run):
    """What the ranks compute adds up to the whole, without LAMMPS."""
    from equidyn.deploy.lammps import Callback

    class Box:
        @staticmethod
        def extract_box():
            return [0, 0, 0], [6.0, 6.6, 7.2], 0.4, -0.5, 0.3, [1, 1, 1], 0

    atoms, potential = crystal(), load_potential(run)
    callback = Callback(Box(), potential, atoms.numbers, 1.0, None, "x")
    pos, total = torch.from_numpy(atoms.positions), [0.0, 0.0, 0.0]
    for part in (torch.arange(8) < 3, torch.arange(8) >= 3, torch.zeros(8, dtype=torch.bool)):
        total = [a + b for a, b in zip(total, callback._evaluate(pos, atoms.numbers, part), strict=True)]
    right = Calculator(potential).evaluate_many([atoms])[0]
    assert total[0] == pytest.approx(right["energy"], rel=1e-13)
    np.testing.assert_allclose(total[1], right["forces"], atol=1e-11)
    np.testing.assert_allclose(-total[2][0, 1] / atoms.get_volume(), right["stress"][5], atol=1e-13)


def test_lammps_refuses(potential):
    class Lammps:
        units, ranks = "real", 1

        def extract_global(self, _):
            return self.units

        def extract_setting(self, _):
            return self.ranks

    lmp = Lammps()
    with pytest.raises(InputError, match="units of LAMMPS, expected metal, got real"):
        attach(lmp, potential, ["C"])
    lmp.units = "metal"
    with pytest.raises(InputError, match="unknown element 'Q'"):
        attach(lmp, potential, ["Q"])
    with pytest.raises(InputError, match="unknown element, in elements"):
        attach(lmp, potential, ["C", "Fe"])
    lmp.ranks = 2
    with pytest.raises(InputError, match="several MPI ranks"):
        attach(lmp, potential, ["C"])


# TorchSim ------------------------------------------------------------------------------------------------------------


def test_torch_sim(run):
    ts = available("torch_sim")
    potential, many = load_potential(run), [crystal(), crystal().repeat((2, 1, 1)), crystal()]
    many[2].rattle(0.05, seed=1)
    model = make_model(potential)
    state = ts.initialize_state(many, device=potential.device, dtype=torch.float64)
    out, right = model(state), Calculator(potential).evaluate_many(many)
    np.testing.assert_allclose(out["energy"], [one["energy"] for one in right], rtol=1e-13)
    np.testing.assert_allclose(out["forces"], np.concatenate([one["forces"] for one in right]), atol=1e-10)
    np.testing.assert_allclose(out["stress"][:, 0, 1], [one["stress"][5] for one in right], atol=1e-12)


def test_torch_sim_molecules_move(potential):
    ts = available("torch_sim")
    start = molecule("CH3CH2OH")
    start.set_cell([20, 20, 20])
    final = ts.integrate(
        system=[start.copy() for _ in range(4)],
        model=make_model(potential),
        integrator=ts.Integrator.nve if hasattr(ts, "Integrator") else ts.nve,
        n_steps=5,
        temperature=300,
        timestep=0.0005,
    )
    assert final.positions.shape == (36, 3)
    assert bool(torch.isfinite(final.positions).all())
