"""Particles in surroundings that tell up from down: springs to a plane, and charges in a field along z.

The data of Zhdanov, Hoffmann, Cesa, "Implicit Convolutional Kernels for Steerable CNNs", NeurIPS 2023. Turning about z
and mirrors that hold z remain symmetries; other rotations do not. Everything is unitless.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.simulate.systems import Array

_CLAMP = 100.0
_BOX = 5.0


@dataclass(frozen=True)
class PlaneSprings:
    """Unit masses joined in pairs by springs, each also hanging on a spring to the plane z = 0.

    F_i = -strength Σ_j e_ij (x_i - x_j) - stiffness (z_i - l_i) ẑ, with e_ij 0, ½ or 1 and rest lengths l_i in 0 ... 1.

    Attributes:
        stiffness: of the springs to the plane; 0 leaves full symmetry.
        strength: of the springs between particles.
    """

    stiffness: float = 1.0
    strength: float = 0.1
    kind: ClassVar[str] = "plane springs"

    def spread(self, bodies: int) -> float:
        """Standard deviation of the initial positions."""
        return 0.5

    def draw(self, rng: np.random.RandomState, bodies: int) -> dict[str, Array]:
        """Numbers of one initial state, in the original's order."""
        return {
            "lengths": rng.random_sample(bodies),
            "couplings": rng.choice([0.0, 0.5, 1.0], size=(bodies, bodies), p=[0.5, 0.0, 0.5]),
        }

    def prepare(self, drawn: dict[str, Array]) -> dict[str, Array]:
        """Rest lengths [S, N] as charges, and symmetric couplings [S, N, N]."""
        lower = np.tril(drawn["couplings"], -1)
        return {"charges": drawn["lengths"].reshape(lower.shape[:-1]), "couplings": lower + lower.swapaxes(1, 2)}

    def forces(self, x: Array, state: dict[str, Array]) -> Array:
        """Forces [S, 3, N] at positions x [S, 3, N]."""
        couplings = state["couplings"]
        force = self.strength * (x @ couplings - x * couplings.sum(-1)[:, None])
        force[:, 2] -= self.stiffness * (x[:, 2] - state["charges"])
        return force


@dataclass(frozen=True)
class FieldCharges:
    """Unit masses with charges ±1, whose forces on each other are stretched along z, in a field along z.

    F_i = Σ_j q_i q_j (x_i - x_j) ⊙ (1, 1, stretch) / |x_i - x_j|³ + field q_i ẑ.

    Attributes:
        stretch: factor of the z components of the pair forces.
        field: strength of the field.
    """

    stretch: float = 1.0
    field: float = 1.0
    kind: ClassVar[str] = "field charges"

    def spread(self, bodies: int) -> float:
        """Standard deviation of the initial positions."""
        return (bodies / 5.0) ** (1 / 3)

    def draw(self, rng: np.random.RandomState, bodies: int) -> dict[str, Array]:
        """Numbers of one initial state, in the original's order."""
        return {"charges": rng.choice([-1.0, 0.0, 1.0], size=(bodies, 1), p=[0.5, 0.0, 0.5])}

    def prepare(self, drawn: dict[str, Array]) -> dict[str, Array]:
        """Charges [S, N]."""
        charges = drawn["charges"]
        return {"charges": charges.reshape(len(charges), -1)}

    def forces(self, x: Array, state: dict[str, Array]) -> Array:
        """Forces [S, 3, N] at positions x [S, 3, N]."""
        charges = state["charges"]
        r = x[:, :, :, None] - x[:, :, None, :]
        square = np.square(r).sum(1) + np.eye(x.shape[-1])
        weight = charges[:, :, None] * charges[:, None, :] / square**1.5
        force = (r * weight[:, None]).sum(-1)
        force[:, 2] = self.stretch * force[:, 2] + self.field * charges
        return force


def simulate_plane(
    system: PlaneSprings | FieldCharges,
    num: int,
    *,
    bodies: int = 5,
    steps: int = 5000,
    dt: float = 1e-3,
    store_every: int = 100,
    seed: int = 43,
) -> Trajectories:
    """Simulate trajectories from random initial states, all side by side, with the original's numbers and integrator.

    Args:
        system: the forces.
        num: number of trajectories S.
        bodies: number of bodies N.
        steps: time steps; the frames are at `store_every`, twice that, ... below `steps`.
        dt: length of a step.
        store_every: steps from one frame to the next.
        seed: of NumPy's legacy generator.

    Returns:
        Float64 trajectories; `charges` holds the rest lengths where there are springs.

    Raises:
        InputError: an argument out of range.
    """
    for name, value, least in (("num", num, 1), ("bodies", bodies, 1), ("store_every", store_every, 1)):
        if value < least:
            raise InputError(f"{name} is too small", expected=f"at least {least}", got=value)
    if steps <= store_every or not dt > 0:
        raise InputError("no frame to store", expected=f"steps above {store_every} and dt above 0", got=(steps, dt))
    rng = np.random.RandomState(seed)
    frames = (steps - 1) // store_every
    drawn = [_draw(system, rng, bodies, frames) for _ in range(num)]
    return run_plane(system, {k: np.stack([d[k] for d in drawn]) for k in drawn[0]}, steps, dt, store_every)


def _draw(
    system: PlaneSprings | FieldCharges, rng: np.random.RandomState, bodies: int, frames: int
) -> dict[str, Array]:
    drawn = system.draw(rng, bodies)
    drawn |= {"positions": rng.standard_normal((3, bodies)), "velocities": rng.standard_normal((3, bodies))}
    rng.standard_normal(2 * frames * 3 * bodies)  # the original's noise, times zero
    return drawn


def run_plane(
    system: PlaneSprings | FieldCharges, drawn: dict[str, Array], steps: int, dt: float, store_every: int
) -> Trajectories:
    """Integrate from drawn numbers: what the system draws, and normal `positions` and `velocities` [S, 3, N]."""
    state = system.prepare(drawn)
    x = system.spread(drawn["positions"].shape[-1]) * drawn["positions"]
    v = 0.5 * drawn["velocities"] / np.linalg.norm(drawn["velocities"], axis=1, keepdims=True)
    v = np.where(x > _BOX, -np.abs(v), np.where(x < -_BOX, np.abs(v), v))
    x = np.where(x > _BOX, 2 * _BOX - x, np.where(x < -_BOX, -2 * _BOX - x, x))
    stored = []
    v = v + dt * system.forces(x, state).clip(-_CLAMP, _CLAMP)
    for step in range(1, steps):
        x = x + dt * v
        if step % store_every == 0:
            stored.append((x, v))
        v = v + dt * system.forces(x, state).clip(-_CLAMP, _CLAMP)
    positions, velocities = (np.stack(part, axis=1).swapaxes(2, 3) for part in zip(*stored, strict=True))
    meta: dict[str, Any] = {"kind": system.kind, "constants": asdict(system), "integrator": "kick-drift", "dt": dt}
    times = dt * store_every * np.arange(1.0, len(stored) + 1)
    result = Trajectories(positions, velocities, times, meta=meta, **state)
    result.check(where="the simulated motion")
    return result
