"""Errors, baselines and predictions of a model of trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.core.files import write_arrays
from equidyn.core.trajectories import Trajectories
from equidyn.data.nbody import NBody, initial_states
from equidyn.models import SYSTEMS
from equidyn.simulate import continue_from, kinetic_energy, momentum, potential_energy
from equidyn.tasks.trajectory import (
    TrajectoryTask,
    ballistic,
    constant,
    fit_linear,
    horizon_error,
    linear,
    translation,
)
from equidyn.train.calibration import calibration
from equidyn.train.checkpoint import Ensemble, Trained
from equidyn.train.predicting import Family, Part, batches, family_of, per_graph, predict, task_of
from equidyn.train.rolling import rolled
from equidyn.train.symmetry import symmetry_errors

SHOWN = 8  # samples in the report's animation
DENSE = 50  # times it is asked for
DENSE_SAMPLES = 200


def evaluate_trajectories(
    trained: Trained, task: TrajectoryTask, source: Family, *, windows: int = 1, curvature: bool = False
) -> dict[str, Any]:
    """What `evaluation.json` says of the predictions, which go to `predictions.npz` (arguments of `evaluate`).

    Raises:
        InputError: unusable data.
    """
    test, fit_on = source.part("test"), replace(source, train_frames=None).part("train")
    horizon = _horizon(trained.model, task, test)
    if len(horizon) == 1:  # state to state: the last time alone
        test, fit_on = (
            replace(source, frames=source.frames[-1:], train_frames=None).part(n) for n in ("test", "train")
        )
    group = getattr(trained.model, "symmetry", SYSTEMS[trained.config["system"]].symmetry)
    measured: dict[str, Any] = {
        "split": "test",
        "samples": len(test),
        "val_f_mse": trained.info["val_f_mse"],
        "f_mse": horizon[-1],
        "a_mse": float(np.mean(horizon)) if len(horizon) > 1 else None,
        "times": test.times.tolist(),
        "horizon_mse": horizon,
        "baselines": _baselines(test, fit_on),
        "symmetry": _symmetry(trained.model, test, group),
    }
    measured |= _dense(trained, task, source, test)
    if windows != 1:
        measured["rolled"] = rolled(trained, task, source, windows)
    if isinstance(trained.model, Ensemble) or curvature:
        measured["calibration"] = calibration(trained, task, source, curvature=curvature)
    return measured


def read_states(trained: Trained, path: str | Path) -> Trajectories:
    """Read initial states for `predict_trajectories`: a file of the kind the model was trained on.

    Raises:
        InputError: it cannot be read.
    """
    return family_of(trained).read(path)


def predict_trajectories(
    trained: Trained, states: Trajectories, *, frame: int = 0, times: Sequence[float] | None = None
) -> Trajectories:
    """Predict on from one frame of given trajectories.

    Args:
        trained: from `load_model`.
        states: initial states, with the charges, masses or bones of the training data (see `read_states`).
        frame: the frame that holds them.
        times: when to predict, counted from that frame; None for the times of the training. A model that steps to
            fixed times has no choice.

    Returns:
        Float64 trajectories at the times. Where the model gives no velocities they are mean velocities since the time
        before.

    Raises:
        InputError: times that the model cannot predict, no such frame.
    """
    family = family_of(trained)
    own = getattr(trained.model, "times", None)
    if own is None:
        own = family.after(family.frames if trained.config["task"].get("rollout") else family.frames[-1:])
        if times is not None:
            raise InputError(
                "this model predicts fixed times", where=trained.folder, expected=f"{own}", got=list(times)
            )
    asked = sorted(own if times is None else times)
    if not all(math.isfinite(t) and t >= 0 for t in asked) or len({*asked}) < len(asked):
        raise InputError("times to predict", where="--times", expected="different ones, 0 or later", got=asked)
    sample = family.sample(states, frame)
    sample.times = torch.tensor([asked], dtype=torch.float64)
    out = predict(trained.model, task_of(trained), sample)
    positions = per_graph(out["trajectory"], sample).transpose(1, 2).double()
    if "trajectory_vel" in out:
        velocities = per_graph(out["trajectory_vel"], sample).transpose(1, 2).double()
    else:
        before = torch.cat([per_graph(sample.pos, sample)[:, None].double(), positions[:, :-1]], dim=1)
        steps = torch.diff(sample.times[0], prepend=torch.zeros(1, dtype=torch.float64))
        velocities = (positions - before) / steps[:, None, None]
    meta = {**states.meta, "predicted_by": trained.config["name"]}
    arrays = {"positions": positions.numpy(), "velocities": velocities.numpy(), "times": sample.times[0].numpy()}
    if "trajectory_std" in out:
        arrays["deviations"] = per_graph(out["trajectory_std"], sample).transpose(1, 2).double().numpy()
    return replace(states, **arrays, meta=meta)


def _horizon(model: nn.Module, task: TrajectoryTask, test: Part) -> list[float]:
    """Mean squared error at each time, over all test samples."""
    total, rows = torch.zeros(1, dtype=torch.float64), 0
    for batch in batches(test):
        out = predict(model, task, batch)
        total = total + len(batch.pos) * task.errors(out, batch).double()
        rows += len(batch.pos)
    return (total / rows).tolist()


def _baselines(test: Part, train: Part) -> dict[str, dict[str, Any]]:
    factors = fit_linear(batches(train))
    simple: dict[str, Callable[[Data], Tensor]] = {
        "constant": constant,
        "ballistic": ballistic,
        "translation": translation,
        "linear": partial(linear, factors=factors),
    }
    sums = {name: np.zeros(len(test.times)) for name in simple}
    rows = 0
    for batch in batches(test):
        rows += len(batch.pos)
        for name, predicted in simple.items():
            sums[name] += len(batch.pos) * np.array(horizon_error(predicted(batch), batch))
    errors = {name: (total / rows).tolist() for name, total in sums.items()}
    return {
        name: {"f_mse": error[-1], "a_mse": float(np.mean(error)) if len(error) > 1 else None, "horizon_mse": error}
        for name, error in errors.items()
    }


def _symmetry(model: nn.Module, test: Part, group: str) -> dict[str, float]:
    """Relative errors under the symmetries of the group, measured on one test sample in float32."""
    batch = test.__getitems__([0])
    names = ("pos", "vel", "x", "edge_attr", "edge_shift", "centre")
    fields = {name: batch[name][0] if batch.pos.dim() == 3 else batch[name] for name in names if name in batch}
    shared = {name: batch[name] for name in ("edge_index", "times", "gravity", "cell") if name in batch}
    sample = Data(**fields, **shared)
    found = symmetry_errors(model, sample, group)
    return found | conformance.check_periodic(model, sample).errors() if "cell" in sample else found


def _dense(trained: Trained, task: TrajectoryTask, source: Family, test: Part) -> dict[str, Any]:
    """Ask for many unseen times, and compare with what happened there; writes `predictions.npz`.

    A model of fixed times is asked for those, and every model where nothing tells what happened at others.
    """
    any_time = hasattr(trained.model, "times") and not task.rollout
    start, true = _continued(source, test) if any_time and isinstance(source, NBody) else (None, None)
    part = source.every_frame() if any_time and not isinstance(source, NBody) else None
    if start is not None and true is not None:
        sample = initial_states(start)
        keep = true.times > 0
        sample.trajectory = torch.as_tensor(true.positions[:, keep]).transpose(1, 2).float()
        sample.times = torch.as_tensor(true.times[keep])[None]
    elif part is not None:
        sample = part.__getitems__(range(min(DENSE_SAMPLES, len(part))))
    else:
        sample = test.__getitems__(range(min(SHOWN, len(test))))
    out = predict(trained.model, task, sample)
    times = sample.times[0].tolist()
    _write_predictions(trained.folder, sample, out["trajectory"])
    if true is None and part is None:
        return {"unseen_times": None, "drift": None}
    error = horizon_error(out["trajectory"], sample)
    unseen = {"times": times, "mse": error, "trained_at": list(getattr(trained.model, "times", ()))}
    return {"unseen_times": unseen, "drift": None if true is None else _drift(true, out, true.times > 0)}


def _continued(source: NBody, test: Part) -> tuple[Trajectories | None, Trajectories | None]:
    """Test states, and the simulator continued from them over the window; None where nothing says which forces act."""
    window = float(test.times[-1])
    try:
        start = source.start_states(min(DENSE_SAMPLES, len(test)))
        steps = 20 * round(window * 1000 / 20)  # the official step of 0.001, a multiple of what is stored
        stored = max(steps // DENSE, 1)
        return start, continue_from(start, steps=stored * DENSE + 1, dt=window / (stored * DENSE), store_every=stored)
    except InputError:  # data from elsewhere
        return None, None


def _drift(true: Trajectories, out: dict[str, Tensor], keep: np.ndarray) -> dict[str, Any] | None:
    """Median relative drift of the energy and median drift of the momentum at each time, predicted and true."""
    if "trajectory_vel" not in out:
        return None
    kept = replace(true, positions=true.positions[:, keep], velocities=true.velocities[:, keep], times=true.times[keep])
    positions, velocities = (out[k].transpose(1, 2).double().numpy() for k in ("trajectory", "trajectory_vel"))
    predicted = replace(kept, positions=positions, velocities=velocities)
    drift: dict[str, Any] = {}
    kinetic, potential = kinetic_energy(kept)[:, :1], potential_energy(kept)[:, :1]
    for name, trajectories in (("", predicted), ("_true", kept)):
        energy = kinetic_energy(trajectories) + potential_energy(trajectories)
        relative = np.abs(energy - kinetic - potential) / (np.abs(kinetic) + np.abs(potential))
        change = np.linalg.norm(momentum(trajectories) - momentum(kept)[:, :1], axis=-1)
        drift["energy" + name] = np.median(relative, axis=0).tolist()
        drift["momentum" + name] = np.median(change, axis=0).tolist()
    drift["times"] = true.times[keep].tolist()
    return drift


def _write_predictions(folder: Path, sample: Data, predicted: Tensor) -> None:
    shown = lambda value: per_graph(value, sample)[:SHOWN]  # noqa: E731
    arrays = {
        "times": sample.times[0].numpy(),
        "initial": shown(sample.pos).numpy(),
        "initial_vel": shown(sample.vel).numpy(),
        "predicted": shown(predicted).transpose(1, 2).numpy(),
        "true": shown(sample.trajectory).transpose(1, 2).numpy(),
    }
    if "charge" in sample:
        arrays["charge"] = sample.charge[:SHOWN].numpy()
    for name in ("bone_index", "bond_index"):
        if name in sample:
            arrays["bonds"] = sample[name].T.numpy()
    if "gravity" in sample:
        arrays["up"] = -sample.gravity[0].numpy()
    write_arrays(folder / "predictions.npz", arrays)
