"""Structures for tests: labels of ASE's EMT, a smooth potential of its own."""

import ase.build
import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


def labelled(atoms, **info):
    """A copy with EMT's energy, forces and, in a cell, stress."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info |= info
    return atoms


def molecules(count=24, seed=0, spread=0.03):
    """Distorted methanol and water."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        atoms = ase.build.molecule("CH3OH" if k % 2 else "H2O")
        atoms.positions += spread * rng.standard_normal(atoms.positions.shape)
        made.append(labelled(atoms, config_type="methanol" if k % 2 else "water"))
    return made


def crystals(count=6, seed=0):
    """Distorted copper in small cells."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * rng.standard_normal((3, 3))), scale_atoms=True)
        atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
        made.append(labelled(atoms))
    return made
