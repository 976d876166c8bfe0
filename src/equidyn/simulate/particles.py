"""Batched N-body simulation: charged particles, springs, gravity.

The official mode repeats the published generators: same random numbers, same arithmetic, same frames (Satorras et al.,
"E(n) Equivariant Graph Neural Networks", ICML 2021, for charges, which EGNO uses too; Kipf et al., ICML 2018, for
springs; Brandstetter et al., "Geometric and Physical Quantities improve E(3) Equivariant Message Passing", ICLR 2022,
for gravity). The benchmark of EGNN, SEGNN and EGNO is

    simulate("charged", 3000, seed=43)                # training part: the first 3,000 of 10,000
    simulate("charged", 2000, seed=43, skip=10_000)   # validation part
    simulate("charged", 2000, seed=43, skip=12_000)   # test part

Its integrator does not resolve close encounters: a few per cent of the charged trajectories are chaotic beyond
round-off. The accurate mode starts from the same initial states and follows the true motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from equidyn import __version__
from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.simulate.energy import drift, pair_state, system_of
from equidyn.simulate.integrate import (
    TOLERANCE,
    AccurateBlock,
    PairForces,
    kick_drift,
    official_frames,
    pair_indices,
    velocity_verlet,
)
from equidyn.simulate.parallel import Advance, Progress, available_workers, run_blocks
from equidyn.simulate.systems import Array, System, get_system

_PAIRS_PER_BLOCK = {
    "official": 50_000,
    "accurate": 20_000,
}  # longer arrays leave the cache, shorter ones spend their time in calls to NumPy
_LANES = (16, 10_000)  # fewest and most trajectories of a block
_WORK_PER_PROCESS = 2e7  # body pairs times steps; below, starting a process costs more than it saves


def simulate(
    system: str | System,
    num: int,
    *,
    bodies: int = 5,
    steps: int = 5000,
    dt: float = 1e-3,
    store_every: int = 100,
    seed: int = 43,
    skip: int = 0,
    accurate: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Trajectories:
    """Simulate trajectories from random initial states.

    Frames of the official mode: at steps 100, 200, ... below `steps` for charges and springs (49 frames, the initial
    state is not stored), at steps 0, 100, ... below `steps` for gravity. Frames of the accurate mode: at the same
    spacing, from the initial state up to `steps` itself. `times` says so in either case.

    Args:
        system: "charged", "springs" or "gravity", or one of `Charged`, `Springs`, `Gravity` with other constants.
        num: number of trajectories S.
        bodies: number of bodies N.
        steps: time steps.
        dt: length of a step.
        store_every: steps from one frame to the next.
        seed: of NumPy's legacy generator. Trajectories take their numbers one after the other.
        skip: trajectories of that sequence to leave out before the first.
        accurate: integrate with adaptive steps to a local error of 1e-12 instead of the official way; steps and dt
            then only set the times of the frames.
        workers: processes; by default as many as there are cores and as pay off.
        progress: called with (frames stored so far, frames in all).

    Returns:
        Float64 trajectories; `meta["drift"]` holds median and maximum of the relative energy drift and the maximum of
        the momentum drift.

    Raises:
        InputError: an argument out of range, an unknown system, or bodies that meet, with the trajectory's number.
    """
    system = system if isinstance(system, System) else get_system(system)
    for name, value, least in (("num", num, 1), ("bodies", bodies, 1), ("seed", seed, 0), ("skip", skip, 0)):
        _check_whole(name, value, least)
    if seed > 2**32 - 1:
        raise InputError("seed is too large", expected="at most 4294967295", got=seed)
    plan = _Plan(system, steps, dt, store_every, accurate)
    initial = _draw(plan, num, bodies, seed, skip)
    return _integrate(initial, plan, workers, progress)


def continue_from(
    trajectories: Trajectories,
    *,
    frame: int = -1,
    steps: int = 5000,
    dt: float = 1e-3,
    store_every: int = 100,
    accurate: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Trajectories:
    """Simulate on from one frame of given trajectories, of the system that their `meta` names.

    A frame of the official mode, continued in the official mode, follows the original trajectory exactly.

    Args:
        trajectories: simulated or made by hand; with charges, masses or couplings as the system needs.
        frame: the frame to start from.
        steps: as for `simulate`, and so are the others.
        dt: as for `simulate`.
        store_every: as for `simulate`.
        accurate: as for `simulate`.
        workers: as for `simulate`.
        progress: as for `simulate`.

    Returns:
        Trajectories whose `times` count from the chosen frame.

    Raises:
        InputError: as for `simulate`, and for trajectories that fail `Trajectories.check` or lack such a frame.
    """
    trajectories.check()
    plan = _Plan(system_of(trajectories.meta), steps, dt, store_every, accurate)
    count = trajectories.positions.shape[1]
    if not -count <= frame < count:
        raise InputError("no such frame", expected=f"{-count} to {count - 1}", got=frame)
    start = [frame % count]
    initial = replace(
        trajectories,
        positions=trajectories.positions[:, start],
        velocities=trajectories.velocities[:, start],
        times=np.zeros(1),
        meta={"seed": None, "skip": None},
    )
    return _integrate(initial, plan, workers, progress)


@dataclass(frozen=True)
class _Plan:
    """A system and how to integrate it, checked."""

    system: System
    steps: int
    dt: float
    store_every: int
    accurate: bool

    def __post_init__(self) -> None:
        _check_whole("steps", self.steps, 1)
        _check_whole("store_every", self.store_every, 1)
        if isinstance(self.dt, bool) or not isinstance(self.dt, (int, float)) or not 0 < self.dt < math.inf:
            raise InputError("dt is out of range", expected="a finite number above 0", got=repr(self.dt))
        most = self.steps if self.accurate else self.steps - 1
        if self.store_every > most:
            got = f"{self.store_every} at {self.steps} steps"
            raise InputError("store_every leaves no frame to store", expected=f"at most {most}", got=got)

    @property
    def official_count(self) -> int:
        """Number of frames F of the official mode."""
        return len(official_frames(self.system.official, self.steps, self.store_every))

    @property
    def times(self) -> Array:
        """Times [F] of the frames."""
        stored = official_frames(self.system.official, self.steps, self.store_every)
        if self.accurate:
            stored = np.arange(0, self.steps + 1, self.store_every)
        return np.asarray(stored * self.dt, dtype=np.float64)

    def meta(self) -> dict[str, Any]:
        return {
            "kind": self.system.kind,
            "constants": asdict(self.system),
            "integrator": f"DOP853, tolerance {TOLERANCE:g}" if self.accurate else self.system.official,
            "accurate": self.accurate,
            "steps": self.steps,
            "dt": self.dt,
            "store_every": self.store_every,
            "equidyn": __version__,
        }


@dataclass(frozen=True)
class _Block:
    """Trajectories first ... first + B - 1, as a worker process gets them."""

    plan: _Plan
    first: int
    state: Array
    """Positions and velocities, [2, 3, N, B]."""
    coupling: Array
    masses: Array | None
    charges: Array | None
    """[N, B], where forces from outside act on them."""


def _draw(plan: _Plan, num: int, bodies: int, seed: int, skip: int) -> Trajectories:
    """Initial states as trajectories of one frame."""
    rng = np.random.RandomState(seed)
    for _ in range(skip):
        plan.system.draw(rng, bodies, plan.official_count)
    drawn = [plan.system.draw(rng, bodies, plan.official_count) for _ in range(num)]
    arrays = {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
    for name in ("positions", "velocities"):
        arrays[name] = arrays[name][:, None]
    return Trajectories(**arrays, times=np.zeros(1), meta={"seed": seed, "skip": skip})


def _integrate(initial: Trajectories, plan: _Plan, workers: int | None, progress: Progress | None) -> Trajectories:
    if plan.accurate:
        _refuse_coincident(initial, plan.system)
    times = plan.times
    num, _, bodies, _ = initial.positions.shape
    workers = _count_workers(workers, plan.steps * num * max(1, bodies * (bodies - 1) // 2))
    report = _report(progress, num * len(times))
    shape = (2, num, len(times), bodies, 3)
    positions, velocities = run_blocks(_run_block, _cut(initial, plan, workers), shape, workers, report)
    result = replace(
        initial, positions=positions, velocities=velocities, times=times, meta={**plan.meta(), **initial.meta}
    )
    result.check(where="the simulated motion (bodies met, or dt is too long)")
    return replace(result, meta={**result.meta, "drift": drift(result).summary()})


def _run_block(block: _Block, out: Array, advance: Advance) -> None:
    """Write the positions and velocities of a block into its part of `out`, [2, S, F, N, 3]."""
    plan, law = block.plan, block.plan.system.law
    state = block.state.copy()
    times = plan.times
    frames = np.empty((2, len(times), *state.shape[1:]))
    # Bodies at one place divide by zero; the frames are checked at the end.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if plan.accurate:
            motion = AccurateBlock(law, block.coupling, block.masses, state, times, block.first, block.charges)
            motion.run(frames, advance)
        else:
            step = velocity_verlet if plan.system.official == "velocity Verlet" else kick_drift
            forces = PairForces(law, block.coupling, block.masses, state.shape[2], block.charges)
            x, v = state
            step(forces, x, v, plan.steps, plan.dt, plan.store_every, frames, advance)
    out[:, block.first : block.first + state.shape[-1]] = frames.transpose(0, 4, 1, 3, 2)


def _cut(initial: Trajectories, plan: _Plan, workers: int) -> list[_Block]:
    """Blocks of nearly equal size that fit the cache, a multiple of the number of workers if possible."""
    num, _, bodies, _ = initial.positions.shape
    i, j = pair_indices(bodies)
    coupling = plan.system.pair_coupling(pair_state(initial, plan.system), i, j)
    pairs = _PAIRS_PER_BLOCK["accurate" if plan.accurate else "official"]
    lanes = min(max(pairs // max(len(i), 1), _LANES[0]), _LANES[1])
    count = workers * math.ceil(num / (lanes * workers))
    edges = np.linspace(0, num, min(count, num) + 1).astype(int)
    masses = None
    if initial.masses is not None and (initial.masses != 1).any():  # unit masses need no division
        masses = initial.masses.astype(np.float64)
    charges = None
    if initial.charges is not None and plan.system.law.external is not None:
        charges = initial.charges.astype(np.float64)
    state = np.stack([initial.positions[:, 0], initial.velocities[:, 0]]).astype(np.float64)
    return [
        _Block(
            plan,
            int(start),
            np.ascontiguousarray(state[:, start:end].transpose(0, 3, 2, 1)),
            np.ascontiguousarray(coupling[start:end].T),
            *(None if a is None else np.ascontiguousarray(a[start:end].T) for a in (masses, charges)),
        )
        for start, end in pairwise(edges)
    ]


def _count_workers(workers: int | None, work: float) -> int:
    if workers is None:
        return int(min(available_workers(), 1 + work // _WORK_PER_PROCESS))
    _check_whole("workers", workers, 1)
    return min(workers, available_workers())


def _report(progress: Progress | None, total: int) -> Callable[[int], None]:
    return (lambda done: None) if progress is None else (lambda done: progress(done, total))


def _refuse_coincident(initial: Trajectories, system: System) -> None:
    """Two bodies at one place have no force between them unless it is softened."""
    if not system.law.inverse_square or system.law.softening > 0:
        return
    x = initial.positions[:, 0]
    for i in range(x.shape[1] - 1):
        same = (x[:, i : i + 1] == x[:, i + 1 :]).all(-1)
        if same.any():
            trajectory, other = (int(k) for k in np.argwhere(same)[0])
            got = f"bodies {i} and {i + 1 + other}"
            where = f"trajectory {trajectory}"
            raise InputError("two bodies at one place", where=where, expected="a softening", got=got)


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name} is not a whole number", expected=f"at least {least}", got=repr(value))
    if value < least:
        raise InputError(f"{name} is too small", expected=f"at least {least}", got=value)
