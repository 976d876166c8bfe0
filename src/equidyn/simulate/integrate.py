"""Integrators for blocks of independent trajectories at once.

Arrays are laid out [3, N, B], the B trajectories of a block side by side in memory, so that every operation is one
vectorised pass. A block is small enough for its pair arrays to stay in the cache and large enough to hide the cost of
calling NumPy; all passes write into arrays made once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import DOP853

from equidyn.core.errors import InputError
from equidyn.simulate.parallel import Advance
from equidyn.simulate.systems import Array, PairLaw

TOLERANCE = 1e-12
"""Local error of the accurate integrator, per component, relative to max(1, |component|)."""


def pair_indices(bodies: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """All pairs i < j, neighbours in number first: (0, 1), (1, 2), ..., then (0, 2), (1, 3), ..., last (0, N-1)."""
    gaps = range(1, bodies)
    i = np.concatenate([np.arange(bodies - gap) for gap in gaps] or [np.arange(0)])
    return i, i + np.repeat(np.arange(1, bodies), np.arange(bodies - 1, 0, -1))


class PairForces:
    """Accelerations of the bodies of a block of trajectories.

    A trajectory's numbers do not depend, to the last bit, on the block it is in.

    Args:
        law: the pair force.
        coupling: [pairs, B], pairs in the order of `pair_indices`.
        masses: [N, B], or None for unit masses.
        bodies: N.
        charges: [N, B]; external forces need them.
    """

    def __init__(
        self, law: PairLaw, coupling: Array, masses: Array | None, bodies: int, charges: Array | None = None
    ) -> None:
        pairs, lanes = coupling.shape
        self.law, self.coupling, self.masses, self.charges = law, coupling, masses, charges
        self._difference = np.empty((3, pairs, lanes))
        self._product = np.empty((3, pairs, lanes))
        self._square = np.empty((pairs, lanes))
        self._weight = np.empty((pairs, lanes))
        self._norm = np.empty((bodies, lanes))
        self._doubled = np.empty((3, bodies, lanes))
        ends = np.cumsum(np.arange(bodies - 1, 0, -1)).tolist()
        # The pairs of equal gap: slices of first bodies, of second bodies and of pairs; no index arrays.
        self._gaps = [
            (slice(0, bodies - gap), slice(gap, bodies), slice(end - (bodies - gap), end))
            for gap, end in enumerate(ends, start=1)
        ]

    def __call__(self, x: Array, v: Array, out: Array) -> Array:
        """Accelerations at positions x and velocities v [3, N, B], written to `out` [3, N, B]."""
        difference, force = self._difference, self._product
        for i, j, pairs in self._gaps:
            np.subtract(x[:, i], x[:, j], out=difference[:, pairs])
        weight = self._weights(x) if self.law.inverse_square else self.coupling
        np.multiply(difference, weight, out=force)
        out.fill(0.0)
        for i, j, pairs in self._gaps:
            np.add(out[:, i], force[:, pairs], out=out[:, i])
            np.subtract(out[:, j], force[:, pairs], out=out[:, j])
        if self.law.external is not None and self.charges is not None:
            self.law.external.add(x, v, self.charges, out)
        if np.isfinite(self.law.clamp):
            np.clip(out, -self.law.clamp, self.law.clamp, out=out)
        if self.masses is not None:
            np.divide(out, self.masses, out=out)
        return out

    def _weights(self, x: Array) -> Array:
        """c / (r² + ε²)^{3/2} of each pair."""
        square, weight = self._square, self._weight
        if self.law.expanded:
            self._square_expanded(x)
        else:
            _sum_of_squares(self._difference, self._product, square)
        if self.law.softening:
            np.add(square, self.law.softening**2, out=square)
        np.sqrt(square, out=weight)
        np.multiply(weight, square, out=weight)
        return np.divide(self.coupling, weight, out=weight)

    def _square_expanded(self, x: Array) -> None:
        """r² = a² + b² - 2ab."""
        square, product, norm, doubled = self._square, self._product, self._norm, self._doubled
        _sum_of_squares(x, doubled, norm)
        np.add(x, x, out=doubled)
        for i, j, pairs in self._gaps:
            np.add(norm[i], norm[j], out=square[pairs])
            np.multiply(doubled[:, i], x[:, j], out=product[:, pairs])
        np.add(product[0], product[1], out=self._weight)
        np.add(self._weight, product[2], out=self._weight)
        np.subtract(square, self._weight, out=square)


def _sum_of_squares(vectors: Array, scratch: Array, out: Array) -> None:
    np.multiply(vectors, vectors, out=scratch)
    np.add(scratch[0], scratch[1], out=out)
    np.add(out, scratch[2], out=out)


def official_frames(integrator: str, steps: int, store_every: int) -> NDArray[np.int_]:
    """Steps [F] at which an official integrator stores a frame; Verlet keeps the initial state, kick-drift does not."""
    return np.arange(0 if integrator == "velocity Verlet" else store_every, steps, store_every)


def kick_drift(
    forces: PairForces, x: Array, v: Array, steps: int, dt: float, store_every: int, frames: Array, advance: Advance
) -> None:
    """Semi-implicit Euler as the charged-particle generator has it: v += dt a(x), then (x += dt v, store, v += dt a).

    A stored velocity is the one that made the last drift; it lacks the kick at the stored positions.

    Args:
        forces: accelerations.
        x: positions [3, N, B], advanced in place.
        v: velocities [3, N, B], advanced in place.
        steps: number of steps; the last drift is number steps - 1.
        dt: time step.
        store_every: steps between frames.
        frames: [2, F, 3, N, B], filled with positions and velocities.
        advance: progress.
    """
    a = np.empty_like(x)
    drift = np.empty_like(x)
    np.add(v, np.multiply(forces(x, v, a), dt, out=a), out=v)
    for step in range(1, steps):
        np.add(x, np.multiply(v, dt, out=drift), out=x)
        if step % store_every == 0:
            frames[:, step // store_every - 1] = x, v
            advance(x.shape[-1])
        np.add(v, np.multiply(forces(x, v, a), dt, out=a), out=v)


def velocity_verlet(
    forces: PairForces, x: Array, v: Array, steps: int, dt: float, store_every: int, frames: Array, advance: Advance
) -> None:
    """Kick-drift-kick; frame f is the state at step f · store_every, the initial state first. Arguments as above."""
    a = forces(x, v, np.empty_like(x))
    change = np.empty_like(x)
    for step in range(steps):
        if step % store_every == 0:
            frames[:, step // store_every] = x, v
            advance(x.shape[-1])
        np.add(v, np.multiply(a, dt / 2, out=change), out=v)
        np.add(x, np.multiply(v, dt, out=change), out=x)
        forces(x, v, a)
        np.add(v, np.multiply(a, dt / 2, out=change), out=v)


class AccurateBlock:
    """Dormand and Prince's method of order 8(5,3), every trajectory with its own adaptive step.

    Coefficients and error estimate are SciPy's (`scipy.integrate.DOP853`; Hairer, Nørsett, Wanner, "Solving Ordinary
    Differential Equations I", II.5). No clamp; r² from differences.

    Args:
        law: the pair force.
        coupling: [pairs, B].
        masses: [N, B], or None.
        state: positions and velocities [2, 3, N, B] at the first time.
        times: [F], the first at which a frame is stored is times[0].
        first: number of the block's first trajectory, for error messages.
        charges: [N, B], or None.
    """

    def __init__(
        self,
        law: PairLaw,
        coupling: Array,
        masses: Array | None,
        state: Array,
        times: Array,
        first: int,
        charges: Array | None = None,
    ) -> None:
        self.law = replace(law, clamp=np.inf, expanded=False)
        self.coupling, self.masses, self.times, self.first = coupling, masses, times, first
        self.charges = charges
        lanes = state.shape[-1]
        self.lane = np.arange(lanes)  # which trajectory of the block each column of `y` is
        self.y = state
        self.t = np.full(lanes, times[0])
        self.h = np.full(lanes, 1e-4 * (times[-1] - times[0]))
        self.next_frame = np.ones(lanes, dtype=np.int64)
        self._allocate()

    def run(self, frames: Array, advance: Advance) -> None:
        """Fill `frames` [2, F, 3, N, B]; progress goes to `advance`."""
        frames[:, 0] = self.y
        advance(len(self.lane))
        last = len(self.times) - 1
        while len(self.lane):
            self._step()
            hit = np.flatnonzero(self.t == self._target())
            hit = hit[self.next_frame[hit] <= last]
            if len(hit):
                # Advanced indices beside slices: NumPy puts the frame-and-lane axis first.
                frames[:, self.next_frame[hit], :, :, self.lane[hit]] = np.moveaxis(self.y[..., hit], -1, 0)
                self.next_frame[hit] += 1
                advance(len(hit))
            running = self.next_frame <= last
            if running.mean() < 0.75:
                self._keep(running)

    def _target(self) -> Array:
        return self.times[np.minimum(self.next_frame, len(self.times) - 1)]

    def _keep(self, running: NDArray[np.bool_]) -> None:
        """Drop the columns of finished trajectories."""
        self.y = np.ascontiguousarray(self.y[..., running])
        self.coupling = np.ascontiguousarray(self.coupling[:, running])
        if self.masses is not None:
            self.masses = np.ascontiguousarray(self.masses[:, running])
        if self.charges is not None:
            self.charges = np.ascontiguousarray(self.charges[:, running])
        self.lane, self.t = self.lane[running], self.t[running]
        self.h, self.next_frame = self.h[running], self.next_frame[running]
        self._allocate()

    def _allocate(self) -> None:
        self.forces = PairForces(self.law, self.coupling, self.masses, self.y.shape[2], self.charges)
        self.slopes = np.empty((len(DOP853.B) + 1, *self.y.shape))
        self.scratch = np.empty_like(self.y)
        self._slope(self.y, 0)

    def _slope(self, y: Array, stage: int) -> None:
        self.slopes[stage, 0] = y[1]
        self.forces(y[0], y[1], self.slopes[stage, 1])

    def _step(self) -> None:
        """Try one step of every trajectory; those whose error is small enough move."""
        left = self._target() - self.t
        cut = self.h >= left
        h = np.where(cut, left, self.h)
        new = self.y
        for stage in range(1, len(DOP853.B)):
            self._slope(self.y + h * self._mix(DOP853.A[stage, :stage]), stage)
        new = self.y + h * self._mix(DOP853.B)
        self._slope(new, len(DOP853.B))
        error = self._error(new, h)
        good = error <= 1
        self.y = np.where(good, new, self.y)
        self.slopes[0] = np.where(good, self.slopes[-1], self.slopes[0])
        self.t = np.where(good, np.where(cut, self._target(), self.t + h), self.t)
        factor = np.clip(0.9 * np.maximum(error, 1e-12) ** (-1 / 8), 0.2, 5.0)
        # A step cut short by a frame says nothing about how long the next one may be, unless it was too long.
        self.h = np.where(cut & good, np.maximum(self.h, h * factor), h * factor)
        self._refuse_standstill()

    def _mix(self, weights: Array) -> Array:
        """Weighted sum of the slopes, term by term: a matrix product would round by the size of the block."""
        mixed = np.zeros_like(self.y)
        for stage in np.flatnonzero(weights):
            np.multiply(self.slopes[stage], weights[stage], out=self.scratch)
            np.add(mixed, self.scratch, out=mixed)
        return mixed

    def _error(self, new: Array, h: Array) -> Array:
        """Estimated local error of each trajectory in units of the tolerance, [B]; infinite if not a number."""
        scale = TOLERANCE * np.maximum(1.0, np.maximum(np.abs(self.y), np.abs(new)))
        fifth = ((self._mix(DOP853.E5) / scale) ** 2).max((0, 1, 2))
        third = ((self._mix(DOP853.E3) / scale) ** 2).max((0, 1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.where(fifth > 0, h * fifth / np.sqrt(fifth + 0.01 * third), 0.0)
        return np.where(np.isfinite(fifth) & np.isfinite(third), error, np.inf)

    def _refuse_standstill(self) -> None:
        stuck = np.flatnonzero(self.h < 4 * np.spacing(np.abs(self.t) + 1e-3))
        if len(stuck):
            raise InputError(
                "two bodies meet",
                where=f"trajectory {self.first + self.lane[stuck[0]]}, time {self.t[stuck[0]]:.6g}",
                expected="distances that can be resolved; give a softening",
            )
