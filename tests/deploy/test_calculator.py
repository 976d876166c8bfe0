"""The ASE calculator: right, the same in a batch, with a list reused, and at work in ASE's optimisers and dynamics."""

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

import equidyn
from equidyn import Calculator
from equidyn.core.errors import DataWarning, InputError
from equidyn.deploy import Potential, load_potential


def shaken(atoms, seed=0, by=0.05):
    atoms.rattle(by, seed=seed)
    return atoms


def crystal():
    cell = [[3.0, 0.2, 0.1], [-0.4, 3.3, 0.0], [0.3, 0.5, 3.6]]
    return shaken(Atoms("CO", scaled_positions=[[0, 0, 0], [0.45, 0.5, 0.5]], cell=cell, pbc=True))


def slab(shift=0.0):
    atoms = bulk("C", "sc", a=2.2).repeat((2, 2, 2))
    atoms.cell[2, 2] = 15.0
    atoms.pbc = (True, True, False)
    shaken(atoms).translate([0, 0, shift])
    return atoms


def test_derivatives(run):
    atoms = crystal()
    atoms.calc = Calculator(run)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    assert np.abs(forces - numerical).max() < 1e-5 * np.abs(forces).max()
    assert np.abs(stress - calculate_numerical_stress(atoms, eps=1e-5)).max() < 1e-6 * np.abs(stress).max()
    assert atoms.get_potential_energy() == pytest.approx(atoms.get_potential_energies().sum(), rel=1e-14)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_batch_equals_one_by_one(run):
    calculator, alone = Calculator(run), Calculator(run)
    many = [crystal(), shaken(molecule("CH3CH2OH")), slab(), Atoms("O"), crystal().repeat((2, 1, 1))]
    before = [atoms.copy() for atoms in many]
    for size in (1, 12, 1000):
        for atoms, old, got in zip(many, before, calculator.evaluate_many(many, batch_atoms=size), strict=True):
            assert atoms == old
            alone.calculate(atoms)
            assert got.keys() == alone.results.keys()
            for name, value in alone.results.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-11, atol=1e-12)
    assert calculator.evaluate_many([]) == []


def test_supercell_and_isolated_atom(run):
    calculator = Calculator(run)
    one, eight = calculator.evaluate_many([crystal(), crystal().repeat(2)])
    assert eight["energy"] == pytest.approx(8 * one["energy"], rel=1e-13)
    np.testing.assert_allclose(eight["stress"], one["stress"], rtol=1e-10, atol=1e-14)
    (atom,) = calculator.evaluate_many([Atoms("C")])
    assert np.array_equal(atom["forces"], np.zeros((1, 3)))


def test_list_reused_is_exact(run):
    """A walk in small steps: the list lasts, and results are those of a list made anew."""
    calculator, fresh, atoms = Calculator(run, skin=0.8), Calculator(run, skin=0), slab()
    rng = np.random.default_rng(0)
    for _ in range(12):
        atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
        calculator.calculate(atoms)
        fresh.calculate(atoms)
        np.testing.assert_allclose(calculator.results["forces"], fresh.results["forces"], rtol=0, atol=1e-11)
    assert 1 < calculator.neighbors.built < 8
    assert fresh.neighbors.built == 12
    built = calculator.neighbors.built
    calculator.calculate(atoms)
    assert calculator.neighbors.built == built
    atoms.set_cell(atoms.cell * 1.001)  # atoms stay
    calculator.calculate(atoms)
    fresh.calculate(atoms)
    assert calculator.neighbors.built == built + 1
    np.testing.assert_allclose(calculator.results["forces"], fresh.results["forces"], rtol=0, atol=1e-11)


def test_stress_of_a_slab_does_not_depend_on_the_origin(run):
    calculator = Calculator(run)
    first, other = calculator.evaluate_many([slab(), slab(3.0)])
    np.testing.assert_allclose(first["stress"], other["stress"], rtol=1e-11, atol=1e-15)
    thicker = slab()
    thicker.cell[2, 2] = 30.0  # the volume is that of the cell as it is given
    np.testing.assert_allclose(
        calculator.evaluate_many([thicker])[0]["stress"] * 2, first["stress"], rtol=1e-11, atol=1e-15
    )


def test_no_volume_no_stress(run):
    atoms = shaken(molecule("H2O"))
    atoms.calc = Calculator(run)
    assert atoms.get_forces().shape == (3, 3)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_left_handed_cell(run):
    calculator, right, left = Calculator(run), crystal(), crystal()
    left.set_cell(right.cell[[1, 0, 2]])
    one, other = calculator.evaluate_many([right, left])
    assert one["energy"] == pytest.approx(other["energy"], rel=1e-14)
    np.testing.assert_allclose(one["stress"], other["stress"], rtol=1e-10, atol=1e-14)


def test_precision(mace_run):
    double, single = Calculator(mace_run), Calculator(mace_run, dtype="float32")
    a, b = (c.evaluate_many([crystal()])[0] for c in (double, single))
    assert b["forces"].dtype == np.float64
    assert 0 < np.abs(a["forces"] - b["forces"]).max() < 1e-4 * np.abs(a["forces"]).max()
    assert all(p.dtype == torch.float32 for p in single.potential.parameters())


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (molecule("NH3"), "unknown element, in atoms, expected among H, C, O, got N"),
        (Atoms("C2", positions=[[0, 0, 0], [0, 0, 1e-5]]), "two atoms at the same place, in atoms"),
        (Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.2]], pbc=True), "a periodic box without volume"),
        (
            Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.2]], cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True),
            "without volume",
        ),
        (Atoms("CO", positions=[[0, 0, 0], [0, 0, np.nan]]), "expected finite"),
        (Atoms(), "no atoms"),
    ],
)
def test_bad_atoms(run, atoms, message):
    with pytest.raises(InputError, match=message):
        Calculator(run).calculate(atoms)
    with pytest.raises(InputError):
        Calculator(run).evaluate_many([atoms])


def test_bad_arguments(mace_run, trained_run):
    with pytest.raises(InputError, match="not a potential"):
        load_potential(trained_run)
    with pytest.raises(InputError, match="dtype"):
        Calculator(mace_run, dtype="float16")
    with pytest.raises(InputError, match="skin"):
        Calculator(mace_run, skin=-1)
    with pytest.raises(AttributeError, match="Calculater"):
        equidyn.Calculater  # noqa: B018


def test_nearer_than_in_the_training(mace_run):
    known = load_potential(mace_run)
    known = Potential(known.derivatives.model, nearest={"H-H": 1.3, "H-O": 0.9})
    water = molecule("H2O")  # O-H 0.97, H-H 1.53
    with warnings.catch_warnings(action="error"):
        Calculator(known).calculate(water)
        Calculator(mace_run).calculate(water.repeat(1))  # an imported model, of which nothing is known
    water.set_distance(0, 1, 0.8, fix=0)
    calculator = Calculator(known)
    with pytest.warns(DataWarning, match=r"H-O nearer than .*: atoms 1 and 0 are 0.800 Å apart, .* training 0.900 Å"):
        calculator.calculate(water)
    with warnings.catch_warnings(action="error"):  # not again
        calculator.calculate(water)
        Calculator(known, nearer="ignore").evaluate_many([water])
    with pytest.raises(InputError, match="H-O nearer than in the training"):
        Calculator(known, nearer="error").evaluate_many([water])
    with pytest.raises(InputError, match=r"H-C nearer .* nearest in the training none within 4.0 Å"):
        Calculator(known, nearer="error").calculate(Atoms("CH", positions=[[0, 0, 0], [0, 0, 3.9]]))
    with pytest.raises(InputError, match="expected warn, error or ignore"):
        Calculator(known, nearer="stop")


def test_relaxation(run):
    atoms = crystal()
    atoms.calc = Calculator(run)
    start = atoms.get_potential_energy()
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=15)
    assert atoms.get_potential_energy() < start
    molecule_ = shaken(molecule("H2O"))
    molecule_.set_constraint(FixAtoms([0]))
    molecule_.calc = Calculator(run)
    start = molecule_.get_potential_energy()
    FIRE(molecule_, logfile=None).run(fmax=0.01, steps=10)
    assert molecule_.get_potential_energy() < start


def test_constant_energy(run):
    atoms = crystal().repeat((2, 1, 1))
    atoms.calc = Calculator(run)
    thermalize_momenta(atoms, temperature_K=100, rng=np.random.default_rng(0))
    total = [atoms.get_total_energy()]
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    dynamics.attach(lambda: total.append(atoms.get_total_energy()))
    dynamics.run(40)
    assert np.ptp(total) / len(atoms) < 1e-4
    assert atoms.calc.neighbors.built <= 2
