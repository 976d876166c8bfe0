"""Molecular dynamics of many molecules: TorchSim in one batch against ASE one by one, same steps.

    python -m benchmarks.batched RUN [--molecules 64] [--steps 20]

RUN is a run folder of a potential that knows the elements of the molecule (ethanol by default). Times are those of the
processor, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch_sim as ts
from ase import units
from ase.build import molecule
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from equidyn import Calculator
from equidyn.deploy import load_potential
from equidyn.deploy.torch_sim import make_model


def main() -> None:
    parser = argparse.ArgumentParser(description="Batched molecular dynamics against one by one.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--molecule", default="CH3CH2OH", help="a name that ase.build.molecule knows")
    parser.add_argument("--molecules", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    one = molecule(options.molecule)
    one.set_cell([30.0] * 3)
    potential = load_potential(options.run)

    start = time.process_time()
    for number in range(options.molecules):
        atoms = one.copy()
        atoms.calc = Calculator(potential)
        thermalize_momenta(atoms, temperature_K=300)
        VelocityVerlet(atoms, 0.5 * units.fs).run(options.steps)
        if number == 0:
            print(f"one molecule: {(time.process_time() - start) / options.steps * 1000:.2f} ms per step")
    alone = time.process_time() - start

    model = make_model(potential)
    start = time.process_time()
    ts.integrate(
        system=[one.copy() for _ in range(options.molecules)],
        model=model,
        integrator=ts.Integrator.nve if hasattr(ts, "Integrator") else ts.nve,
        n_steps=options.steps,
        temperature=300,
        timestep=0.0005,
    )
    batched = time.process_time() - start
    print(
        f"{options.molecules} x {options.molecule}, {options.steps} steps: ASE {alone:.2f} s, TorchSim {batched:.2f} s"
    )
    print(f"ratio {alone / batched:.1f}")


if __name__ == "__main__":
    main()
