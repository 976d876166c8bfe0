"""Data families: read, check, convert, split; one file each."""

from equidyn.data.mocap import Mocap
from equidyn.data.nbody import NBody
from equidyn.data.periodic import Periodic

DATASETS = {"mocap": Mocap, "nbody": NBody, "periodic": Periodic}
"""What a recipe can name under `data.dataset`."""

__all__ = ["DATASETS", "Mocap", "NBody", "Periodic"]
