"""OpenMM: a potential as a force (extra `openmm`, OpenMM 8.4 or later, through its PythonForce).

    from equidyn.deploy.openmm import make_force

    system.addForce(make_force(load_potential("runs/mine"), numbers, periodic=True))

OpenMM calls back into Python each step; its units are nm and kJ/mol. Forces are as precise as its platform: float64 on
Reference, float32 on CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from equidyn.core.errors import InputError
from equidyn.core.extras import require
from equidyn.core.units import KJ_MOL
from equidyn.deploy.neighbors import SkinNeighbors
from equidyn.deploy.potential import Potential


def make_force(
    potential: Potential,
    numbers: Sequence[int],
    *,
    particles: Sequence[int] | None = None,
    periodic: bool = False,
    skin: float = 1.0,
) -> Any:
    """A `PythonForce` with the energy of all particles, or of some.

    Args:
        potential: see `load_potential`.
        numbers: atomic number of each particle that it acts on.
        particles: their places in the system; all if not given.
        periodic: take the box of the context as repeating in all three directions.
        skin: Å, see `SkinNeighbors`.

    Raises:
        MissingExtraError: OpenMM is not installed.
        InputError: an unknown element, or an OpenMM without PythonForce.
    """
    openmm = require("openmm", "openmm", "a force for OpenMM")
    if not hasattr(openmm, "PythonForce"):
        raise InputError("OpenMM without PythonForce", expected="8.4 or later", got=openmm.version.version)
    potential.check_elements(numbers, "numbers")
    neighbors = SkinNeighbors(potential, skin)
    pbc = torch.tensor([periodic] * 3)

    def compute(state: Any) -> tuple[float, np.ndarray]:
        pos = torch.from_numpy(_in_angstrom(state.getPositions(asNumpy=True)))
        box = np.zeros((3, 3))
        if periodic:
            box = _in_angstrom(state.getPeriodicBoxVectors(asNumpy=True))
        edges = neighbors(pos, torch.from_numpy(box), pbc)
        out = potential(potential.structure(numbers, pos, edges, "OpenMM"))
        return KJ_MOL * float(out["energy"]), 10 * KJ_MOL * out["forces"].cpu().numpy()

    force = openmm.PythonForce(compute, {}, [] if particles is None else list(particles))
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setName("Equidyn")
    return force


def _in_angstrom(quantity: Any) -> np.ndarray:
    unit = require("openmm.unit", "openmm", "a force for OpenMM")
    return np.array(quantity.value_in_unit(unit.angstrom), dtype=np.float64)
