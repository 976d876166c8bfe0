"""Data families: read, check, convert, split; one file each."""

from equidyn.data.md_trajectories import MolecularDynamics
from equidyn.data.mocap import Mocap
from equidyn.data.nbody import NBody
from equidyn.data.periodic import Periodic
from equidyn.data.proteins import Protein
from equidyn.data.structures import Structures

DATASETS = {
    "md": MolecularDynamics,
    "mocap": Mocap,
    "nbody": NBody,
    "periodic": Periodic,
    "protein": Protein,
    "structures": Structures,
}
"""What a recipe can name under `data.dataset`."""

__all__ = ["DATASETS", "Mocap", "MolecularDynamics", "NBody", "Periodic", "Protein", "Structures"]
