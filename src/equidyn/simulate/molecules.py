"""Molecular dynamics of one molecule in the gas phase, with forces from semi-empirical quantum chemistry.

The atoms start at a given or built-in geometry, are brought to a temperature by Langevin dynamics, lose their drift and
their rotation, and then move freely: velocity Verlet at constant energy. Forces are those of GFN2-xTB (Bannwarth,
Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652, 2019) from tblite, through ASE; the extra `simulate` installs it.

Lengths are in Å, times in fs, energies in eV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import ase
import ase.build
import ase.collections
import ase.io
import numpy as np
from ase import units
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

import equidyn
from equidyn.core.errors import InputError, unknown_name
from equidyn.core.extras import require

METHODS = ("GFN2-xTB", "GFN1-xTB")
_BUILT_IN = {"ethanol": "CH3CH2OH", "benzene": "C6H6", "water": "H2O"}
_LONGEST_STEP = 5.0  # fs: a bond to hydrogen swings within 10


@dataclass(frozen=True)
class MolecularRun:
    """F frames of N atoms.

    Attributes:
        numbers: [N] atomic numbers.
        positions: [F, N, 3] in Å.
        energies: [F] potential energies in eV.
        forces: [F, N, 3] in eV/Å.
        kinetic: [F] kinetic energies in eV.
        frame_time: fs between two frames.
        meta: molecule, method, temperature, step, seed, version, drift.
    """

    numbers: np.ndarray
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    kinetic: np.ndarray
    frame_time: float
    meta: dict[str, Any] = field(default_factory=dict)

    def drift(self) -> dict[str, float]:
        """How well the total energy is kept.

        Returns:
            `drift`: slope of the total energy in meV per atom and ps; `spread`: its standard deviation around that
            line, in meV per atom; `mean_temperature`: that of the frames in K, for 3 N - 6 degrees of freedom.
        """
        total = (self.energies + self.kinetic) * 1000 / len(self.numbers)
        times = np.arange(len(total)) * self.frame_time / 1000
        slope, start = np.polyfit(times, total, 1) if len(total) > 2 else (0.0, total[0])
        free = max(3 * len(self.numbers) - 6, 1)
        temperature = 2 * float(self.kinetic.mean()) / (free * units.kB)
        spread = float((total - start - slope * times).std())
        return {"drift": float(slope), "spread": spread, "mean_temperature": temperature}


def simulate_molecule(
    molecule: str | Path,
    *,
    steps: int = 20_000,
    dt: float = 0.5,
    store_every: int = 1,
    temperature: float = 500.0,
    warmup: int = 2000,
    seed: int = 43,
    method: str = "GFN2-xTB",
    calculator: Calculator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MolecularRun:
    """Simulate one molecule.

    Args:
        molecule: "aspirin", "ethanol", any molecule of `ase.build.molecule` by its formula, or a file that ASE reads.
        steps: time steps; the start and every `store_every`-th are stored.
        dt: fs per step.
        store_every: steps between frames.
        temperature: K that the warm-up holds.
        warmup: steps of Langevin dynamics before, not stored.
        seed: of the initial velocities and of the warm-up.
        method: of tblite.
        calculator: other forces than tblite's: any calculator of ASE.
        progress: called with steps done and steps in all.

    Raises:
        InputError: a value out of range, an unknown molecule, tblite missing, forces that cannot be computed.
    """
    _check(steps=steps, dt=dt, store_every=store_every, temperature=temperature, warmup=warmup)
    atoms = read_molecule(molecule)
    atoms.calc = calculator or _tblite(method)
    random = np.random.RandomState(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=random)  # half goes into the bonds
    report = progress or (lambda done, total: None)
    rows: list[tuple[Any, ...]] = []

    def store() -> None:
        row = (atoms.get_positions(), atoms.get_potential_energy(), atoms.get_forces(), atoms.get_kinetic_energy())
        if not all(np.isfinite(value).all() for value in row):
            raise InputError(
                "the simulation blew up", where=str(molecule), expected="a shorter time step", got=f"{dt} fs"
            )
        rows.append(row)

    try:
        thermostat = Langevin(
            atoms, dt * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=random
        )
        totals = []
        for _ in thermostat.irun(warmup):
            totals.append(atoms.get_total_energy())
            report(thermostat.nsteps, warmup + steps)
        _release(atoms, totals[len(totals) // 2 :], temperature)
        dynamics = VelocityVerlet(atoms, dt * units.fs)
        for _ in dynamics.irun(steps):
            if dynamics.nsteps % store_every == 0:
                store()
            report(warmup + dynamics.nsteps, warmup + steps)
    except (CalculationFailed, RuntimeError, ValueError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("forces cannot be computed", where=str(molecule), got=error) from None
    positions, energies, forces, kinetic = (np.array(values) for values in zip(*rows, strict=True))
    meta = {
        "molecule": str(molecule),
        "method": method if calculator is None else type(calculator).__name__,
        "temperature": temperature,
        "dt_fs": dt,
        "store_every": store_every,
        "warmup": warmup,
        "seed": seed,
        "equidyn": equidyn.__version__,
    }
    run = MolecularRun(atoms.numbers.copy(), positions, energies, forces, kinetic, dt * store_every, meta)
    return replace(run, meta=meta | run.drift())


def _release(atoms: ase.Atoms, totals: Sequence[float], temperature: float) -> None:
    """Take drift and rotation away, and give the atoms the energy they had on average in the heat bath without these.

    The energy of the last moment alone would be a random one: that of a few atoms varies by a fifth.
    """
    Stationary(atoms, preserve_temperature=False)
    ZeroRotation(atoms, preserve_temperature=False)
    lost = (6 if len(atoms) > 2 else 3 * len(atoms) - 1) / 2 * units.kB * temperature
    wanted, kinetic = float(np.mean(totals)) - lost - atoms.get_potential_energy(), atoms.get_kinetic_energy()
    if wanted > 0 and kinetic > 0:
        atoms.set_velocities(atoms.get_velocities() * math.sqrt(wanted / kinetic))


def read_molecule(molecule: str | Path) -> ase.Atoms:
    """The atoms of a file, or of a molecule that is known by its name.

    Raises:
        InputError: neither.
    """
    path = Path(molecule)
    if path.is_file():
        try:
            atoms = cast(ase.Atoms, ase.io.read(path))
        except Exception as error:
            raise InputError(
                "cannot read the molecule", where=path, expected="a file that ASE reads", got=error
            ) from None
        if not len(atoms) or not np.isfinite(atoms.positions).all():
            raise InputError("no molecule", where=path, expected="atoms at finite positions", got=f"{len(atoms)} atoms")
        return ase.Atoms(atoms.numbers, atoms.positions)
    name = str(molecule)
    if name == "aspirin":
        with resources.as_file(resources.files("equidyn.simulate") / "geometries" / "aspirin.xyz") as file:
            return cast(ase.Atoms, ase.io.read(file))
    formula = _BUILT_IN.get(name, name)
    if formula not in ase.collections.g2.names:
        raise unknown_name("molecule", name, ["aspirin", *_BUILT_IN, *ase.collections.g2.names], where="--molecule")
    return ase.build.molecule(formula)


def _check(**values: float) -> None:
    least = {"steps": 1, "store_every": 1, "warmup": 0, "temperature": 0}
    for name, value in values.items():
        where = f"--{name.replace('_', '-')}"
        if name == "dt":
            if not 0 < value <= _LONGEST_STEP:
                raise InputError(
                    "time step", where=where, expected=f"more than 0, at most {_LONGEST_STEP:g} fs", got=value
                )
        elif not least[name] <= value < float("inf"):
            raise InputError("value out of range", where=where, expected=f"at least {least[name]}", got=value)
    if values["store_every"] > values["steps"]:
        raise InputError("value out of range", where="--store-every", expected=f"at most {values['steps']} steps")


def _tblite(method: str) -> Calculator:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS, where="simulate md")
    tblite = require("tblite.ase", "simulate", "molecular dynamics", where="simulate md")
    return tblite.TBLite(method=method, verbosity=0)
