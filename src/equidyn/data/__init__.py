"""Data families: read, check, convert, split; one file each."""

from equidyn.data.mocap import Mocap
from equidyn.data.nbody import NBody
from equidyn.data.structures import Structures

DATASETS = {"mocap": Mocap, "nbody": NBody, "structures": Structures}
"""What a recipe can name under `data.dataset`."""

__all__ = ["DATASETS", "Mocap", "NBody", "Structures"]
