"""Data families: read, check, convert, split; one file each."""

from equidyn.data.md_trajectories import MolecularDynamics
from equidyn.data.mocap import Mocap
from equidyn.data.nbody import NBody
from equidyn.data.periodic import Periodic
from equidyn.data.properties import Properties
from equidyn.data.proteins import Protein
from equidyn.data.shapes import Shapes
from equidyn.data.structures import Structures

DATASETS = {
    "md": MolecularDynamics,
    "mocap": Mocap,
    "nbody": NBody,
    "periodic": Periodic,
    "properties": Properties,
    "protein": Protein,
    "shapes": Shapes,
    "structures": Structures,
}
"""What a recipe can name under `data.dataset`."""

__all__ = [
    "DATASETS",
    "Mocap",
    "MolecularDynamics",
    "NBody",
    "Periodic",
    "Properties",
    "Protein",
    "Shapes",
    "Structures",
]
