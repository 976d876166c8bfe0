"""Equidyn: learn how things move and interact in 3D with networks that respect the symmetries of space."""

__version__ = "0.1.0"
