"""Molecular dynamics of a molecule: energy, temperature, seeds, the file, and what is refused."""

import json
import sys

import ase.io
import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.data import MolecularDynamics
from equidyn.data.md_trajectories import find_bonds
from equidyn.simulate.molecules import read_molecule, simulate_molecule


class Springs(Calculator):
    """Harmonic bonds of water, in eV and Å."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces = 0.0, np.zeros((3, 3))
        for i, j, length in ((0, 1, 0.96), (0, 2, 0.96), (1, 2, 1.51)):
            r = atoms.positions[i] - atoms.positions[j]
            distance = np.linalg.norm(r)
            energy += 10 * (distance - length) ** 2
            forces[i] -= 20 * (distance - length) * r / distance
            forces[j] += 20 * (distance - length) * r / distance
        self.results = {"energy": energy, "forces": forces}


def water(**options):
    return simulate_molecule("water", calculator=Springs(), **{"steps": 400, "warmup": 400, "dt": 0.25} | options)


def test_energy_and_momenta_are_kept():
    run = water()
    assert run.positions.shape == run.forces.shape == (401, 3, 3)
    assert run.numbers.tolist() == [8, 1, 1]
    assert run.frame_time == 0.25
    total = run.energies + run.kinetic
    assert total.std() < 0.01 * run.kinetic.mean()
    assert run.meta["spread"] < 1
    masses = np.array([15.999, 1.008, 1.008])[:, None]
    centre = (masses * run.positions).sum(1) / masses.sum()
    assert np.abs(centre - centre[0]).max() < 1e-10
    velocities = np.diff(run.positions, axis=0)
    middle = (run.positions[1:] + run.positions[:-1]) / 2 - centre[0]
    spin = np.cross(middle, velocities * masses).sum(1)
    assert np.abs(spin).max() < 1e-2 * np.abs(masses * velocities).max()
    assert 0 < run.meta["mean_temperature"] < 5000


def test_seeds_and_stored_frames():
    a, b, c = water(seed=1), water(seed=1, store_every=10), water(seed=2)
    np.testing.assert_array_equal(a.positions[::10], b.positions)
    assert b.frame_time == 2.5
    assert not np.allclose(a.positions, c.positions)
    assert (a.meta["seed"], b.meta["store_every"], a.meta["method"]) == (1, 10, "Springs")


def test_progress():
    seen = []
    water(steps=20, warmup=10, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_built_in_molecules(tmp_path):
    aspirin = read_molecule("aspirin")
    assert aspirin.get_chemical_formula() == "C9H8O4"
    heavy = aspirin[aspirin.numbers > 1]
    assert len(find_bonds(heavy.positions, 1.6)) == 13
    assert read_molecule("ethanol").numbers.tolist()[:3] == [6, 6, 8]
    ase.io.write(tmp_path / "mine.xyz", aspirin)
    assert len(read_molecule(tmp_path / "mine.xyz")) == 21


def test_on_the_command_line(tmp_path, monkeypatch, capfd):
    """With forces of tblite: a file that a recipe can train on."""
    pytest.importorskip("tblite")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equidyn.simulate.molecules.simulate_molecule.__kwdefaults__", _short(), raising=True)
    assert main(["simulate", "md", "water.npz", "--molecule", "water", "--steps", "60", "--temperature", "300"]) == 0
    out = capfd.readouterr().out
    assert "water.npz: 61 frames of 3 atoms, 0.5 fs apart" in out
    assert "meV per atom and ps" in out
    with np.load("water.npz") as file:
        meta = json.loads(str(file["meta"]))
        assert file["R"].shape == (61, 3, 3)
        assert float(file["dt"]) == 0.5
    assert (meta["method"], meta["seed"], meta["temperature"]) == ("GFN2-xTB", 43, 300.0)
    assert meta["spread"] < 2
    data = MolecularDynamics("water.npz", selection="all", frames=(2, 4), train=0, val=0, test=0)
    assert len(data.part("test")) == 9
    assert list(tmp_path.iterdir()) == [tmp_path / "water.npz"]


def _short():
    return simulate_molecule.__kwdefaults__ | {"warmup": 20}


def test_bad_input(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["--dt", "0"], "time step, in --dt, expected more than 0"),
        (["--dt", "nan"], "time step, in --dt"),
        (["--steps", "0"], "value out of range, in --steps, expected at least 1, got 0"),
        (["--store-every", "99", "--steps", "9"], "in --store-every, expected at most 9"),
        (["--temperature", "-1"], "in --temperature"),
        (["--molecule", "ethanole"], "unknown molecule 'ethanole', in --molecule, expected 'ethanol'"),
    ):
        assert main(["simulate", "md", "out.npz", *arguments]) == 2
        error = capfd.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["simulate", "md", "out.xyz"]) == 2
    assert "a name that ends with .npz" in capfd.readouterr().err
    (tmp_path / "bad.xyz").write_text("2\n\nC 0 0 0\n")
    with pytest.raises(InputError, match="cannot read the molecule"):
        read_molecule(tmp_path / "bad.xyz")
    with pytest.raises(InputError, match="forces cannot be computed"):
        simulate_molecule("SiH4", calculator=EMT(), steps=5, warmup=0)  # EMT has no silicon
    monkeypatch.setitem(sys.modules, "tblite", None)
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(InputError, match=r"needs tblite, .*pip install 'equidyn\[simulate\]'"):
        simulate_molecule("water", steps=5)
    assert not (tmp_path / "out.npz").exists()
