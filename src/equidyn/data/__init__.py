"""Data families: read, check, convert, split; one file each."""

from equidyn.data.mocap import Mocap
from equidyn.data.nbody import NBody

DATASETS = {"mocap": Mocap, "nbody": NBody}
"""What a recipe can name under `data.dataset`."""

__all__ = ["DATASETS", "Mocap", "NBody"]
