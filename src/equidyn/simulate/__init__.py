"""Real data by physics: batched, vectorised, seeded generators."""

from equidyn.simulate.energy import Drift, drift, kinetic_energy, momentum, potential_energy, system_of
from equidyn.simulate.liquid import Liquid, liquid_energy, simulate_liquid
from equidyn.simulate.particles import continue_from, simulate
from equidyn.simulate.systems import KINDS, Charged, Gravity, Springs, System, get_system

__all__ = [
    "KINDS",
    "Charged",
    "Drift",
    "Gravity",
    "Liquid",
    "Springs",
    "System",
    "continue_from",
    "drift",
    "get_system",
    "kinetic_energy",
    "liquid_energy",
    "momentum",
    "potential_energy",
    "simulate",
    "simulate_liquid",
    "system_of",
]
