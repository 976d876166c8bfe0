"""A model rolled on beyond its window, measured: error against what happened, and what should not drift."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data.nbody import NBody, initial_states
from equidyn.data.periodic import Periodic, PeriodicDataset, relisted
from equidyn.data.states import with_state
from equidyn.simulate import continue_from, kinetic_energy, liquid_energy, momentum, potential_energy
from equidyn.tasks.trajectory import TrajectoryTask, ballistic, constant, horizon_error, roll_windows
from equidyn.train.checkpoint import Trained
from equidyn.train.predicting import Family, per_graph, predict

SAMPLES = 100


def rolled(trained: Trained, task: TrajectoryTask, source: Family, windows: int) -> dict[str, Any]:
    """Errors and drifts of the test samples over several windows, for `evaluation.json`.

    Velocities at the end of a window are the model's if its training has supervised them (`task.velocity_weight`), else
    they come from the predicted positions; `velocities` in the result says which.

    Raises:
        InputError: a model that predicts no trajectory, fewer than two windows, or data that end before the last one.
    """
    if windows < 2:
        raise InputError("windows", where="--windows", expected="2 or more", got=windows)
    if task.rollout or not hasattr(trained.model, "times"):
        raise InputError("rolling windows", where=trained.folder, expected="a model that predicts a trajectory")
    sample, states = _truth(source, windows)
    supervised = task.velocity_weight > 0
    window = len(sample.times[0]) // windows
    start = sample.clone()
    start.times = sample.times[:, :window]
    positions, velocities = roll_windows(
        lambda state: predict(trained.model, task, state),
        start,
        windows,
        lambda state, x, v: _restate(source, state, x, v),
        trained_velocities=supervised,
    )
    found: dict[str, Any] = {
        "windows": windows,
        "samples": len(per_graph(sample.pos, sample)),
        "velocities": "trained" if supervised else "from positions; the training has not supervised velocities",
        "times": sample.times[0].tolist(),
        "mse": horizon_error(positions, sample),
        "baselines": {
            "constant": horizon_error(constant(sample), sample),
            "ballistic": horizon_error(ballistic(sample), sample),
        },
        "drift": _bonds(sample, positions),
    }
    predicted, true = (
        (per_graph(a, sample), per_graph(b, sample))
        for a, b in ((positions, velocities), (sample.trajectory, sample.trajectory_vel))
    )
    begin = per_graph(sample.pos, sample), per_graph(sample.vel, sample)
    for suffix, (x, v) in (("", predicted), ("_true", true)):
        found["drift"] |= {name + suffix: drift for name, drift in _conserved(states, begin, x, v).items()}
    return found


def _restate(source: Family, state: Data, pos: Tensor, vel: Tensor) -> Data:
    moved = with_state(state, pos, vel)
    return relisted(moved, source.cutoff) if isinstance(source, Periodic) else moved


def _truth(source: Family, windows: int) -> tuple[Data, Trajectories | None]:
    """Test samples with what happens over all windows, and what says which forces act."""
    if isinstance(source, NBody):
        try:
            return _simulated(source, windows)
        except InputError:  # data from elsewhere
            pass
    begin = source.start if isinstance(source, NBody) else 0
    within = np.array(source.frames) - begin
    frames = tuple(int(begin + k * within[-1] + f) for k in range(windows) for f in within)
    part = replace(source, frames=frames, train_frames=None).part("test")
    sample = part.__getitems__(range(min(SAMPLES, len(part))))
    if sample.get("trajectory_vel") is None:
        raise InputError("rolling windows", where=source.path, expected="velocities at all frames")
    if not isinstance(part, PeriodicDataset) or not isinstance(source, Periodic):
        return sample, None
    # Boxes, constants and kind of the trajectories the samples are cut from.
    whole = source.read(source.path)
    first = source.train + source.val
    trajectories = [first + int(s) for s, _ in part.starts[: len(per_graph(sample.pos, sample))]]
    return sample, replace(whole.subset(np.array(trajectories)), meta=whole.meta)


def _simulated(source: NBody, windows: int) -> tuple[Data, Trajectories]:
    """The simulator, continued from test states; its frames at the times of the windows."""
    times = source.part("test").times.numpy()
    steps = np.diff(times, prepend=0.0)
    if not np.allclose(steps, steps[0]):
        raise InputError("frames to roll", where=source.path, expected="equidistant frames")
    start = source.start_states(min(SAMPLES, source.test))
    stored = max(round(steps[0] / 1e-3), 1)  # the official step of 0.001
    count = windows * len(times)
    true = continue_from(start, steps=count * stored + 1, dt=steps[0] / stored, store_every=stored)
    keep = true.times > 0
    sample = initial_states(start)
    moved = (torch.as_tensor(a[:, keep]).transpose(1, 2).float() for a in (true.positions, true.velocities))
    sample.trajectory, sample.trajectory_vel = moved
    sample.times = torch.as_tensor(true.times[keep])[None]
    return sample, replace(true, meta=start.meta)


def _bonds(sample: Data, positions: Tensor) -> dict[str, list[float]]:
    """Median relative change of the bone lengths at each time, predicted and true."""
    bones = sample.get("bone_index")
    if bones is None:
        return {}
    length = lambda x: (x[..., bones[0], :, :] - x[..., bones[1], :, :]).norm(dim=-1)  # noqa: E731
    first = length(sample.pos.unsqueeze(-2))
    changes = {"bonds": length(positions), "bonds_true": length(sample.trajectory)}
    return {k: (v / first - 1).abs().flatten(0, -2).median(0).values.tolist() for k, v in changes.items()}


def _conserved(
    states: Trajectories | None, begin: tuple[Tensor, Tensor], positions: Tensor, velocities: Tensor
) -> dict[str, list[float]]:
    """Median relative drift of the energy and median drift of the momentum per particle at each time."""
    if states is None:
        return {}
    paths = (
        torch.cat([b.unsqueeze(-2), a], dim=-2).transpose(1, 2).double().numpy()
        for b, a in zip(begin, (positions, velocities), strict=True)
    )
    x, v = paths
    path = replace(states, positions=x, velocities=v, times=np.arange(x.shape[1], dtype=np.float64))
    bodies = x.shape[2]
    p = momentum(path)
    drift = {"momentum": np.median(np.linalg.norm(p[:, 1:] - p[:, :1], axis=-1), axis=0) / bodies}
    try:
        if path.cell is not None:
            few = slice(0, 8)  # each energy takes a neighbour list
            kinetic, potential = liquid_energy(path.subset(few))
        else:
            kinetic, potential = kinetic_energy(path), potential_energy(path)
    except InputError:  # nothing says which forces act
        return {name: value.tolist() for name, value in drift.items()}
    energy, size = kinetic + potential, np.abs(kinetic[:, :1]) + np.abs(potential[:, :1])
    drift["energy"] = np.median(np.abs(energy[:, 1:] - energy[:, :1]) / size, axis=0)
    return {name: value.tolist() for name, value in drift.items()}
