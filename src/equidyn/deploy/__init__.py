"""A trained potential at work elsewhere: ASE, exported programs, TorchSim, LAMMPS, OpenMM.

One short module per engine (`equidyn.deploy.openmm`, `.lammps`, `.torch_sim`, `.export`), imported by its name, as each
but ASE is an optional extra.
"""

from equidyn.deploy.ase import Calculator
from equidyn.deploy.potential import Potential, load_potential

__all__ = ["Calculator", "Potential", "load_potential"]
