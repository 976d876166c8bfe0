"""Fit a small MACE to copper, then relax a crystal and run molecular dynamics with it in ASE.

    python examples/05_use_a_potential.py [--steps 150] [--run example/copper]

The data come from EMT, a potential that ASE has. A real fit is a recipe (`equidyn train`); this one shows the parts.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from torch_geometric.data import Batch, Data

from equidyn import Calculator
from equidyn.models.mace import MACE, EnergyReference, MACEOptions
from equidyn.ops.derivatives import WithForces
from equidyn.ops.neighbors import Neighbors
from equidyn.train.checkpoint import save_model

CUTOFF = 4.0


def shaken_crystals(count: int) -> list[Data]:
    """Small cubes of copper, strained and shaken, with energies and forces."""
    samples, rng = [], np.random.default_rng(0)
    for number in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), scale_atoms=True)
        atoms.rattle(rng.uniform(0.02, 0.2), seed=number)
        atoms.calc = EMT()
        sample = Data(
            pos=torch.tensor(atoms.positions, dtype=torch.float32),
            z=torch.tensor(atoms.numbers),
            cell=torch.tensor(np.array(atoms.cell), dtype=torch.float32)[None],
            energy=torch.tensor([atoms.get_potential_energy()]),
            forces=torch.tensor(atoms.get_forces(), dtype=torch.float32),
        )
        samples.append(Neighbors(CUTOFF)(sample))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit, relax, run.")
    parser.add_argument("--steps", type=int, default=150, help="of the optimiser")
    parser.add_argument("--run", type=Path, default=Path("example/copper"), help="folder to make")
    options = parser.parse_args()
    torch.manual_seed(0)

    samples = shaken_crystals(40)
    reference = EnergyReference([float(np.mean([s.energy / 4 for s in samples]))], scale=1.0)
    sizes = {"channels": 8, "hidden_l": 0, "cutoff": CUTOFF, "sh_l": 2, "correlation": 2, "neighbours": 12.0}
    arguments = {"elements": [29], **sizes, "reference": reference}
    arguments["options"] = MACEOptions(first_block="plain", radial_hidden=(16, 16))
    model = MACE(**arguments)
    network, optimiser = WithForces(model), torch.optim.Adam(model.parameters(), 0.01)
    for step in range(options.steps):
        batch = Batch.from_data_list([samples[k] for k in torch.randint(len(samples), (8,))])
        out = network(batch)
        energy = (out["energy"] - batch.energy).square().mean() / 16
        loss = 10 * energy + (out["forces"] - batch.forces).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {float(loss):.4f}")

    options.run.mkdir(parents=True, exist_ok=True)
    plain = {k: asdict(v) if k in ("reference", "options") else v for k, v in arguments.items()}
    config = {"name": "copper", "system": "mace", "model": plain, "data": {}, "task": {"name": "potential"}}
    save_model(options.run, model, config, {})

    # From here on only the folder is needed.
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.calc = Calculator(options.run, dtype="float64")
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.005, steps=60)
    print(f"relaxed lattice constant {atoms.cell.lengths().mean():.3f} Å (EMT 3.59)")

    atoms = atoms.repeat((2, 2, 1))
    atoms.calc = Calculator(options.run, dtype="float64")
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    total = [atoms.get_total_energy()]
    dynamics = VelocityVerlet(atoms, 2 * units.fs)
    dynamics.attach(lambda: total.append(atoms.get_total_energy()))
    dynamics.run(100)
    print(f"0.2 ps at constant energy: it varied by {1000 * np.ptp(total) / len(atoms):.3f} meV per atom")
    results = atoms.calc.evaluate_many([bulk("Cu", a=a, cubic=True) for a in (3.5, 3.6, 3.7)])
    print("energies at 3.5, 3.6, 3.7 Å:", *(f"{one['energy']:.3f}" for one in results), "eV")


if __name__ == "__main__":
    main()
