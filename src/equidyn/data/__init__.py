"""Data families: read, check, convert, split; one file each."""

from equidyn.data.nbody import NBody

DATASETS = {"nbody": NBody}
"""What a recipe can name under `data.dataset`."""

__all__ = ["DATASETS", "NBody"]
