"""Sizes of other units; Equidyn counts energies in eV and lengths in Å."""

KCAL_MOL = 23.060547830619
"""kcal/mol in one eV."""
KJ_MOL = 96.48533212331002
"""kJ/mol in one eV."""
HARTREE = 27.211386
"""eV in one Hartree."""
