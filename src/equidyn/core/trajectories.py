"""Trajectories of many independent systems of particles: what the simulator makes and the file format holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equidyn.core.errors import InputError

Array = NDArray[np.floating[Any]]

PER_TRAJECTORY = ("positions", "velocities", "charges", "masses", "couplings", "cell", "deviations")


@dataclass(frozen=True)
class Trajectories:
    """S trajectories of N particles at F common times. Particle systems are unitless.

    Attributes:
        positions: [S, F, N, 3].
        velocities: [S, F, N, 3], length per unit of `times`.
        times: [F], strictly increasing, counted from the initial state.
        charges: [S, N], or None.
        masses: [S, N], or None for unit masses.
        couplings: [S, N, N] symmetric with zero diagonal (which particles a spring joins), or None.
        cell: [S, 3, 3] lattice vectors (rows) of boxes that repeat along all three, or None. Positions may lie outside.
        deviations: [S, F, N] of predictions: how uncertain each position is, per coordinate; or None.
        meta: kind of system, its constants, seed, integrator ...; only what JSON can hold.
    """

    positions: Array
    velocities: Array
    times: Array
    charges: Array | None = None
    masses: Array | None = None
    couplings: Array | None = None
    cell: Array | None = None
    deviations: Array | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def subset(self, which: slice | Array) -> Trajectories:
        """The chosen trajectories, with their charges, masses and couplings; all of their frames."""
        arrays = {name: getattr(self, name) for name in PER_TRAJECTORY}
        return replace(self, **{name: array[which] for name, array in arrays.items() if array is not None})

    def check(self, where: object = None) -> None:
        """Refuse arrays that are not what the attributes above say.

        Args:
            where: file or option that the error message names.

        Raises:
            InputError: wrong shape or dtype, lengths that do not match, no particles, NaN or infinite values.
        """
        for name in (*PER_TRAJECTORY, "times"):
            _check_real(name, getattr(self, name), where)
        shape = self.positions.shape
        if len(shape) != 4 or shape[-1] != 3:
            raise InputError("positions have the wrong shape", where=where, expected="[S, F, N, 3]", got=list(shape))
        for count, name in zip(shape, ("trajectories", "frames", "particles"), strict=False):
            if count == 0:
                raise InputError(f"positions hold zero {name}", where=where, expected="at least 1", got=list(shape))
        trajectories, frames, particles, _ = shape
        expected = {
            "velocities": shape,
            "times": (frames,),
            "charges": (trajectories, particles),
            "masses": (trajectories, particles),
            "couplings": (trajectories, particles, particles),
            "cell": (trajectories, 3, 3),
            "deviations": shape[:3],
        }
        for name, right in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != right:
                what = f"{name} do not match the positions"
                raise InputError(what, where=where, expected=f"shape {list(right)}", got=list(array.shape))
        for name in (*PER_TRAJECTORY, "times"):
            _check_finite(name, getattr(self, name), where)
        if self.cell is not None:
            _check_volume(self.cell, where)
        if not (np.diff(self.times) > 0).all():
            raise InputError("times do not increase", where=where, expected="each time later than the one before")


def _check_real(name: str, array: Array | None, where: object) -> None:
    if array is not None and array.dtype not in (np.float32, np.float64):
        raise InputError(f"{name} have the wrong dtype", where=where, expected="float32 or float64", got=array.dtype)


def _check_volume(cell: Array, where: object) -> None:
    size = np.abs(cell).max((1, 2))
    flat = np.abs(np.linalg.det(cell)) <= 1e-12 * size**3
    if flat.any():
        number = int(np.argmax(flat))
        what = "a box without volume"
        raise InputError(what, where=where, expected="independent lattice vectors", got=f"trajectory {number}")


def _check_finite(name: str, array: Array | None, where: object) -> None:
    if array is None or np.isfinite(array).all():
        return
    bad = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
    axes = {"times": ("frame",), "positions": ("trajectory", "frame"), "velocities": ("trajectory", "frame")}
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes.get(name, ("trajectory",)), bad, strict=False))
    got = f"a bad one at {place}"
    raise InputError(f"{name} hold NaN or infinity", where=where, expected="finite numbers", got=got)
