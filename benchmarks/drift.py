"""Energy drift of constant-energy molecular dynamics with a potential fitted here, through the ASE calculator.

    python -m benchmarks.drift copper                     copper near 300 K, fitted to EMT
    python -m benchmarks.drift molecule --data FILE.xyz   a molecule near 300 K, fitted to energies and forces of a file

10 ps in steps of 0.5 fs, float64. Prints, every half picosecond, the total energy per atom: its drift (mean over the
last picosecond minus that over the first) and its largest departure from the start. `--run FOLDER` takes a trained
potential instead of a fit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from equidyn import Calculator
from equidyn.deploy import Potential
from equidyn.deploy.potential import Structure, join
from equidyn.models.mace import MACE, EnergyReference, MACEOptions
from equidyn.ops.derivatives import WithForces
from equidyn.train.checkpoint import save_model


def copper(count: int = 60) -> list[Atoms]:
    """Shaken and strained cubes of copper with energies and forces of EMT."""
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
        strain = np.eye(3) + rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.rattle(rng.uniform(0.02, 0.25), seed=number)
        atoms.calc = EMT()
        atoms.get_forces()
        made.append(atoms)
    return made


def fit(frames: list[Atoms], elements: list[int], *, steps: int = 400, batch: int = 5, cutoff: float = 4.5) -> MACE:
    """A small MACE fitted to energies and forces, in a minute or two; returned in float64."""
    torch.manual_seed(0)
    counts = np.array([[np.sum(a.numbers == z) for z in elements] for a in frames], dtype=float)
    energies = np.array([a.get_potential_energy() for a in frames])
    atoms_energy = np.linalg.lstsq(counts, energies, rcond=None)[0]
    scale = float(np.sqrt(np.mean([np.mean(a.get_forces() ** 2) for a in frames])))
    arguments = {
        "elements": elements,
        "channels": 16,
        "hidden_l": 0,
        "cutoff": cutoff,
        "sh_l": 2,
        "correlation": 2,
        "neighbours": 12.0,
        "reference": EnergyReference(atoms_energy.tolist(), scale),
        "options": MACEOptions(first_block="plain", radial_hidden=(16, 16)),
    }
    model = MACE(**arguments)
    maker = Potential(model)
    samples = []
    for atoms in frames:
        cell, pbc = torch.from_numpy(np.array(atoms.cell)), torch.from_numpy(np.array(atoms.pbc))
        pos = torch.from_numpy(atoms.positions.copy())
        samples.append(maker.structure(atoms.numbers, pos, maker.edges(pos, cell, pbc), "frame"))
    model.requires_grad_(True)
    network = WithForces(model.train())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randperm(len(frames), generator=generator)[:batch].tolist()
        joined = join([samples[k] for k in chosen])
        out = network(as_data(joined))
        size = torch.bincount(joined.batch)
        energy = torch.from_numpy(energies[chosen])
        forces = torch.from_numpy(np.concatenate([frames[k].get_forces() for k in chosen]))
        loss = ((out["energy"] - energy) / size / scale).square().mean() * 10
        loss = loss + ((out["forces"] - forces) / scale).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    error = (out["forces"] - forces).detach().square().mean().sqrt()
    print(f"fit: forces of {scale:.2f} eV/Å RMS to within {float(error):.3f}")
    model = model.double().eval().requires_grad_(False)
    model.arguments = {k: asdict(v) if k in ("reference", "options") else v for k, v in arguments.items()}
    return model


def as_data(structure: Structure):
    from torch_geometric.data import Data

    return Data(**structure._asdict())


def save(model: MACE, folder: Path) -> Path:
    """As a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"name": "small", "system": "mace", "model": model.arguments, "data": {}, "task": {"name": "potential"}}
    save_model(folder, model, config, {})
    return folder


def drift(atoms: Atoms, run: Path, *, picoseconds: float, timestep: float) -> None:
    """Run and print."""
    calculator = Calculator(run, dtype="float64")
    atoms.calc = calculator
    rng = np.random.default_rng(1)
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=rng)  # half of it becomes potential energy
    Stationary(atoms)
    if not any(atoms.pbc):
        ZeroRotation(atoms)
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    total, steps, start = [], round(1000 * picoseconds / timestep), time.perf_counter()
    dynamics.attach(lambda: total.append(atoms.get_total_energy()))
    each = max(round(500 / timestep), 1)
    while len(total) <= steps:
        dynamics.run(min(each, steps + 1 - max(len(total), 1)))
        energy, done = 1000 * np.array(total) / len(atoms), len(total) - 1
        window = min(round(1000 / timestep), len(energy) // 4)
        change = energy[-window:].mean() - energy[:window].mean()
        used = (time.perf_counter() - start) / done
        print(
            f"{atoms.get_chemical_formula()}: {done * timestep / 1000:.2f} ps, {done} steps of {timestep} fs, "
            f"drift {change:+.4f} meV/atom, largest departure {np.abs(energy - energy[0]).max():.3f} meV/atom, "
            f"{atoms.get_temperature():.0f} K at the end; "
            f"{1000 * used:.1f} ms per step, {calculator.neighbors.built} neighbour lists",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Energy drift of molecular dynamics.")
    parser.add_argument("what", choices=("copper", "molecule"))
    parser.add_argument("--data", type=Path, help="frames of the molecule, with energies and forces")
    parser.add_argument("--run", type=Path, help="run folder of a potential; one is fitted if not given")
    parser.add_argument("--keep", type=Path, help="folder to keep the fitted potential in")
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    options = parser.parse_args()
    frames = copper() if options.what == "copper" else ase.io.read(options.data, ":100")
    elements = sorted({int(z) for z in frames[0].numbers})
    start = bulk("Cu", cubic=True).repeat((2, 2, 2)) if options.what == "copper" else frames[0].copy()
    if options.what == "molecule":
        start = Atoms(start.numbers, start.positions)
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or save(fit(frames, elements), options.keep or Path(folder))
        drift(start, run, picoseconds=options.picoseconds, timestep=options.timestep)


if __name__ == "__main__":
    main()
