"""Equidyn: learn how things move and interact in 3D with networks that respect the symmetries of space."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from equidyn import Calculator`, without loading torch and ASE for everything else."""
    if name == "Calculator":
        return importlib.import_module("equidyn.deploy").Calculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
