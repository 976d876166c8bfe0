"""Trajectories packed for the 3D animation: small enough to sit inside a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from equidyn.report.runs import Predictions, Run

Floats = NDArray[np.float64]

LEVELS = 32767
NOT_A_POSITION = -32768
REACH = 8.0  # in radii of the true motion; what strays further is not drawn


def scene_data(runs: Sequence[Run]) -> dict[str, object]:
    """All that the animation needs, with paths that runs have in common stored once."""
    paths: dict[str, int] = {}
    entries = [_run_entry(run, style, paths) for style, run in enumerate(runs)]
    return {"runs": entries, "paths": list(paths)}


def _run_entry(run: Run, style: int, paths: dict[str, int]) -> dict[str, object]:
    given = _upright(run.predictions)
    return {
        "name": run.name,
        "style": style,
        "times": frame_times(given).tolist(),
        "bonds": None if given.bonds is None else given.bonds.tolist(),
        "samples": [_sample_entry(given, k, paths) for k in range(len(given.initial))],
    }


def _upright(given: Predictions) -> Predictions:
    """The same turned so that `up` is the third axis, which the camera takes for it."""
    if given.up is None or not np.linalg.norm(given.up) > 0:
        return given
    up = given.up / np.linalg.norm(given.up)
    across = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    across /= np.linalg.norm(across)
    axes = np.stack([across, np.cross(up, across), up])  # rows: the new axes
    turned = {name: getattr(given, name) @ axes.T for name in ("initial", "initial_vel", "predicted", "true")}
    return replace(given, **turned)


def frame_times(given: Predictions) -> Floats:
    """The times drawn: zero, where the input stands, then the predicted ones."""
    return np.concatenate([[0.0], given.times]) if given.times[0] > 0 else given.times


def _sample_entry(given: Predictions, k: int, paths: dict[str, int]) -> dict[str, object]:
    true, predicted = given.true[k], given.predicted[k]
    error = ((predicted - true) ** 2).mean(axis=(1, 2))
    if given.times[0] > 0:
        true, predicted = (np.concatenate([given.initial[k][None], path]) for path in (true, predicted))
        error = np.concatenate([[0.0], error])
    centre, radius = _bounds(true)
    return {
        "centre": centre.tolist(),
        "radius": radius,
        "reach": REACH,
        "true": _stored(true, centre, radius, paths),
        "predicted": _stored(predicted, centre, radius, paths),
        "velocity": _directions(given.initial_vel[k]),
        "charge": None if given.charge is None else np.sign(given.charge[k]).tolist(),
        "error": error.tolist(),
    }


def _bounds(path: Floats) -> tuple[Floats, float]:
    points = path.reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return np.zeros(3), 1.0
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, float(np.linalg.norm(high - low)) / 2 or 1.0


def _stored(path: Floats, centre: Floats, radius: float, paths: dict[str, int]) -> int:
    """Quantised to 16 bits, far finer than a pixel: the errors shown are computed before, from the full numbers."""
    scaled = (path - centre) / (REACH * radius)
    lost = ~(np.abs(scaled) <= 1).all(axis=-1, keepdims=True)
    levels = np.where(lost, NOT_A_POSITION, np.rint(np.where(lost, 0, scaled) * LEVELS)).astype("<i2")
    return paths.setdefault(base64.b64encode(levels.tobytes()).decode("ascii"), len(paths))


def _directions(velocity: Floats) -> list[list[float]]:
    """Initial velocities relative to the fastest: the arrows show direction and proportion."""
    speed = np.linalg.norm(velocity, axis=1)
    fastest = np.nanmax(speed) if np.isfinite(speed).any() else 0.0
    if not np.isfinite(fastest) or fastest == 0:
        return []
    return [[round(float(c), 3) for c in row] for row in velocity / fastest]
