"""A Lennard-Jones liquid in a periodic box: velocity Verlet with a neighbour list, time and memory linear in N.

    u(r) = 4 (r^-12 - r^-6), shifted so that energy and force are zero at the cutoff

Everything is in reduced units: lengths in sigma, energies in epsilon, unit masses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from equidyn import __version__
from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.ops.edges import Edges
from equidyn.ops.neighbors import neighbor_list

KIND = "liquid"
_TOGETHER = 20_000  # particles of several boxes that are moved in one go
_RESOLVED = 0.1  # largest relative change of the energy that still counts as a simulation
_RESCALE = 10  # steps between two corrections of the temperature while the liquid settles


@dataclass(frozen=True)
class Liquid:
    """The constants of a liquid; the defaults are a simple liquid well above its freezing point.

    Attributes:
        density: particles per volume.
        temperature: at which it settles; afterwards the energy is kept.
        cutoff: distance at which the forces end.
        skin: further distance in the neighbour list, which is made anew when a particle has moved half of it.
        settle: time before the first frame, from a cubic lattice.
    """

    density: float = 0.8
    temperature: float = 1.0
    cutoff: float = 2.5
    skin: float = 0.4
    settle: float = 4.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = "0 or more" if name == "settle" else "more than 0"
            good = isinstance(value, int | float) and (value >= 0 if name == "settle" else value > 0)
            if not good or not math.isfinite(value):
                raise InputError(f"{name} is out of range", where=KIND, expected=least, got=value)


def simulate_liquid(
    liquid: Liquid = Liquid(),
    num: int = 10,
    *,
    bodies: int = 108,
    steps: int = 2000,
    dt: float = 0.004,
    store_every: int = 10,
    seed: int = 43,
    skip: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectories:
    """Simulate independent boxes of the liquid.

    Args:
        liquid: its constants.
        num: number of boxes S.
        bodies: particles per box N.
        steps: time steps after settling; frames from step 0 on.
        dt: length of a step.
        store_every: steps from one frame to the next.
        seed: with the number of a box it fixes where the box starts.
        skip: boxes of the sequence of that seed to leave out first.
        progress: called with (frames stored so far, frames in all).

    Returns:
        Float64 trajectories with `cell`; positions run on through the walls. `meta["drift"]` tells how well energy and
        momentum were kept.

    Raises:
        InputError: an argument out of range, or a step too long for the energy to be kept.
    """
    for name, value, least in (("num", num, 1), ("bodies", bodies, 2), ("steps", steps, 1), ("skip", skip, 0)):
        if value < least:
            raise InputError(f"{name} is too small", expected=f"at least {least}", got=value)
    if not 1 <= store_every <= steps:
        raise InputError("store_every leaves no frame to store", expected=f"1 to {steps}", got=store_every)
    if not 0 < dt < math.inf:
        raise InputError("dt is out of range", expected="a finite number above 0", got=dt)
    stored = range(0, steps + 1, store_every)
    frames = np.empty((2, num, len(stored), bodies, 3))
    energies = np.empty((2, num, len(stored)))  # kinetic, potential
    edge, done = (bodies / liquid.density) ** (1 / 3), 0
    size = max(_TOGETHER // bodies, 1)
    for first in range(0, num, size):
        count = min(size, num - first)
        rngs = [np.random.default_rng([seed, skip + first + k]) for k in range(count)]
        boxes = _Boxes(liquid, *_initial(liquid, bodies, edge, rngs), edge, dt)
        boxes.settle()
        for frame in range(len(stored)):
            if frame:
                boxes.advance(store_every)
            frames[:, first : first + count, frame] = boxes.state()
            energies[:, first : first + count, frame] = boxes.energy()
            done += count
            if progress is not None:
                progress(done, frames.shape[1] * frames.shape[2])
    total = energies.sum(0)
    change = np.abs(total - total[:, :1]).max(1) / np.abs(energies[:, :, 0]).sum(0)
    if not change.max() < _RESOLVED:
        got = f"a change by {change.max():.0%}, dt {dt}"
        raise InputError("the energy of the liquid is not kept", expected="a shorter dt", got=got)
    momentum = frames[1].sum(2)
    meta = {
        "kind": KIND,
        "constants": asdict(liquid),
        "integrator": "velocity Verlet",
        "steps": steps,
        "dt": dt,
        "store_every": store_every,
        "seed": seed,
        "skip": skip,
        "equidyn": __version__,
        "drift": {
            "energy_median": float(np.median(change)),
            "energy_max": float(change.max()),
            "momentum_max": float(np.linalg.norm(momentum - momentum[:, :1], axis=-1).max()),
        },
    }
    cell = np.broadcast_to(edge * np.eye(3), (num, 3, 3)).copy()
    made = Trajectories(frames[0], frames[1], np.array(stored) * dt, cell=cell, meta=meta)
    made.check(where="the simulated liquid (dt is too long)")
    return made


def liquid_energy(trajectories: Trajectories) -> np.ndarray:
    """Kinetic and potential energy at each frame, [2, S, F], of a liquid whose `meta` names its constants.

    Raises:
        InputError: it is no liquid of ours.
    """
    if trajectories.meta.get("kind") != KIND or trajectories.cell is None:
        raise InputError("not a simulated liquid", where="meta", expected=KIND, got=trajectories.meta.get("kind"))
    liquid = Liquid(**trajectories.meta.get("constants", {}))
    velocities = np.asarray(trajectories.velocities, dtype=np.float64)
    found = np.empty((2, *velocities.shape[:2]))
    found[0] = 0.5 * (velocities**2).sum((2, 3))
    for s, paths in enumerate(np.asarray(trajectories.positions, dtype=np.float64)):
        cell = torch.as_tensor(trajectories.cell[s], dtype=torch.float64)
        for f, x in enumerate(map(torch.as_tensor, paths)):
            found[1, s, f] = float(_pairs(liquid, *_edges(x[None], cell, liquid.cutoff), x)[1].sum())
    return found


def _initial(liquid: Liquid, bodies: int, edge: float, rngs: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """Sites of a cubic lattice, chosen at random, and velocities of the temperature without a common motion."""
    side = math.ceil(round(bodies ** (1 / 3), 9))
    sites = (np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5) * edge / side
    x = np.stack([sites[rng.permutation(len(sites))[:bodies]] for rng in rngs])
    v = np.stack([rng.standard_normal((bodies, 3)) for rng in rngs])
    v -= v.mean(1, keepdims=True)
    return torch.from_numpy(x), _rescaled(torch.from_numpy(v), liquid.temperature)


def _rescaled(v: Tensor, temperature: float) -> Tensor:
    freedom = 3 * (v.shape[1] - 1)
    now = v.square().sum((1, 2), keepdim=True) / freedom
    return v * (temperature / now).sqrt()


def _edges(x: Tensor, cell: Tensor, reach: float) -> tuple[Edges, int]:
    """The pairs within reach in each of the boxes x [S, N, 3], numbered one box after the other."""
    bodies = x.shape[1]
    lists = [neighbor_list(box, reach, cell, True) for box in x]
    index = torch.cat([edges + k * bodies for k, (edges, _) in enumerate(lists)], dim=1)
    edges = Edges.build(index, x.shape[0] * bodies, x.dtype)
    return edges.placed(x.flatten(0, 1), torch.cat([shift for _, shift in lists])), len(x)


def _pairs(liquid: Liquid, edges: Edges, boxes: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Forces [S N, 3] and potential energies [S] at the flat positions x [S N, 3]."""
    r, end = edges.relative(x), liquid.cutoff
    square = r.square().sum(1, keepdim=True)
    near = square < end**2
    six = square.reciprocal() ** 3
    last = end**-6
    slope = -24 * (2 * last**2 - last) / end  # du/dr at the cutoff, negative where the force repels
    distance = square.sqrt()
    u = 4 * (six**2 - six) - 4 * (last**2 - last) - (distance - end) * slope
    pull = 24 * (2 * six**2 - six) / square + slope / distance
    forces = edges.sum(torch.where(near, pull, 0.0) * r)
    energy = 0.5 * edges.sum(torch.where(near, u, 0.0)).view(boxes, -1).sum(1)
    return forces, energy


class _Boxes:
    """Boxes that move together."""

    def __init__(self, liquid: Liquid, x: Tensor, v: Tensor, edge: float, dt: float) -> None:
        self.liquid, self.x, self.v, self.dt = liquid, x, v, dt
        self.cell = edge * torch.eye(3, dtype=torch.float64)
        self._list()
        self.force, self.potential = self._forces()

    def _list(self) -> None:
        self.listed = self.x.clone()
        self.edges = _edges(self.x, self.cell, self.liquid.cutoff + self.liquid.skin)

    def _forces(self) -> tuple[Tensor, Tensor]:
        if float((self.x - self.listed).square().sum(-1).max()) > (self.liquid.skin / 2) ** 2:
            self._list()
        force, energy = _pairs(self.liquid, *self.edges, self.x.flatten(0, 1))
        return force.view(self.x.shape), energy

    def settle(self) -> None:
        """Melt the lattice at the temperature."""
        for _ in range(math.ceil(self.liquid.settle / self.dt / _RESCALE)):
            self.advance(_RESCALE)
            self.v = _rescaled(self.v, self.liquid.temperature)

    def advance(self, steps: int) -> None:
        """Velocity Verlet."""
        for _ in range(steps):
            half = self.v + 0.5 * self.dt * self.force
            self.x = self.x + self.dt * half
            if not bool(torch.isfinite(self.x).all()):
                raise InputError("the simulated liquid left the finite numbers", expected="a shorter dt", got=self.dt)
            self.force, self.potential = self._forces()
            self.v = half + 0.5 * self.dt * self.force

    def state(self) -> np.ndarray:
        """Positions and velocities [2, S, N, 3]."""
        return torch.stack([self.x, self.v]).numpy()

    def energy(self) -> np.ndarray:
        """Kinetic and potential energies [2, S]."""
        return torch.stack([0.5 * self.v.square().sum((1, 2)), self.potential]).numpy()
