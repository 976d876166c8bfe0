"""Conserved quantities of simulated or predicted trajectories.

All functions take `Trajectories` whose `meta` names the system, as the simulator writes it. For predictions, put the
predicted arrays in place of the true ones: `dataclasses.replace(true, positions=..., velocities=..., times=...)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.simulate.systems import Array, System, get_system


@dataclass(frozen=True)
class Drift:
    """Largest change of the conserved quantities since the first frame, per trajectory.

    Attributes:
        energy: [S], |E - E_0| / (|K_0| + |U_0|).
        momentum: [S], length of P - P_0, in units of mass times velocity.
    """

    energy: Array
    momentum: Array

    def summary(self) -> dict[str, float]:
        """Median and largest values, for a report."""
        return {
            "energy_median": float(np.median(self.energy)),
            "energy_max": float(self.energy.max()),
            "momentum_max": float(self.momentum.max()),
        }


def system_of(meta: Mapping[str, Any]) -> System:
    """The system that a file's `meta` names.

    Raises:
        InputError: no kind, or an unknown kind or constant.
    """
    if "kind" not in meta:
        raise InputError("no kind of system", where="meta", expected="charged, springs or gravity")
    return get_system(meta["kind"], **meta.get("constants", {}))


def pair_state(trajectories: Trajectories, system: System) -> dict[str, Array]:
    """What the system's forces need of the trajectories beside positions.

    Raises:
        InputError: an array that this kind of system needs is missing.
    """
    name = {"charged": "charges", "springs": "couplings", "gravity": "masses"}[system.kind]
    array = getattr(trajectories, name)
    if array is None:
        raise InputError(f"no {name}", where=f"trajectories of kind {system.kind!r}", expected=f"an array {name!r}")
    return {name: np.asarray(array, dtype=np.float64)}


def kinetic_energy(trajectories: Trajectories) -> Array:
    """Σ_i m_i v_i² / 2 at each frame, [S, F]."""
    v = np.asarray(trajectories.velocities, dtype=np.float64)
    if trajectories.masses is None:
        return 0.5 * np.einsum("sfni,sfni->sf", v, v)
    return 0.5 * np.einsum("sn,sfn->sf", trajectories.masses, np.einsum("sfni,sfni->sfn", v, v))


def potential_energy(trajectories: Trajectories) -> Array:
    """Sum over pairs at each frame, [S, F]: q_i q_j / r, k s_ij r² / 2 or -G m_i m_j / r, r² softened as the force is,
    and the energy in outside fields, where such act.

    The official integrator's clamp is not part of it.

    Raises:
        InputError: `meta` or the arrays do not say which forces act.
    """
    system = system_of(trajectories.meta)
    state = pair_state(trajectories, system)
    # [3, N, S, F] and one row of pairs at a time: long contiguous passes, and memory that grows with N, not N².
    x = np.ascontiguousarray(trajectories.positions.transpose(3, 2, 0, 1), dtype=np.float64)
    bodies = x.shape[1]
    total = np.zeros(x.shape[2:])
    for i in range(bodies - 1):
        others = np.arange(i + 1, bodies)
        coupling = system.pair_coupling(state, np.full(len(others), i), others).T[..., None]
        square = ((x[:, i : i + 1] - x[:, i + 1 :]) ** 2).sum(0)
        if system.law.inverse_square:
            total += (coupling / np.sqrt(square + system.law.softening**2)).sum(0)
        else:
            total -= 0.5 * (coupling * square).sum(0)
    if system.law.external is not None:
        positions = np.asarray(trajectories.positions, dtype=np.float64)
        total += system.law.external.potential(positions, state["charges"][:, None]).sum(-1)
    return total


def momentum(trajectories: Trajectories) -> Array:
    """Σ_i m_i v_i at each frame, [S, F, 3]."""
    v = np.asarray(trajectories.velocities, dtype=np.float64)
    return v.sum(2) if trajectories.masses is None else np.einsum("sn,sfni->sfi", trajectories.masses, v)


def drift(trajectories: Trajectories) -> Drift:
    """How far energy and momentum stray from their values at the first frame."""
    few = 200  # at a time: small arrays are reused, large ones are fetched from the system again and again
    parts = [_drift_of(trajectories.subset(slice(s, s + few))) for s in range(0, len(trajectories), few)]
    return Drift(np.concatenate([part.energy for part in parts]), np.concatenate([part.momentum for part in parts]))


def _drift_of(trajectories: Trajectories) -> Drift:
    kinetic, potential = kinetic_energy(trajectories), potential_energy(trajectories)
    total = kinetic + potential
    size = np.abs(kinetic[:, 0]) + np.abs(potential[:, 0])
    change = np.abs(total - total[:, :1]).max(1)
    p = momentum(trajectories)
    return Drift(
        energy=change / np.where(size > 0, size, 1.0),
        momentum=np.linalg.norm(p - p[:, :1], axis=-1).max(1),
    )
