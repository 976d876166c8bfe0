"""State to trajectory (S2T) and state to state (S2S): from one state to later positions.

F-MSE is the squared error per coordinate at the last time, A-MSE its mean over all times (Xu et al. 2024, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.data.nbody import particle_sample
from equidyn.ops.graphs import mean_of_graph
from equidyn.ops.skeleton import keep_bone_lengths


@dataclass
class TrajectoryTask:
    """Losses and errors of predicted trajectories.

    Attributes:
        huber: distance beyond which a position error counts linearly in the loss instead of squared (pseudo-Huber of
            the length of the error vector, so that it does not depend on the axes); 0 for squared errors. Outcomes of
            close encounters are chaotic, and squared errors make a network learn those of the training by heart.
        velocity_weight: weight of the squared error of the velocities beside that of the positions; needs a model
            that gives `trajectory_vel` and data that have it.
        rollout: the model predicts one step from `times[0]` to the next; train on that step and evaluate by applying
            it again and again (EGNN-R).
        bone_lengths: move predicted joints as little as needed for all bones to keep the length they have in the input
            state; needs data with bones.
    """

    huber: float = 0.0
    velocity_weight: float = 0.0
    rollout: bool = False
    bone_lengths: bool = False

    METRICS: ClassVar = ("f_mse", "a_mse")
    NEEDS: ClassVar = "trajectory"
    monitor: ClassVar = "f_mse"
    differentiates: ClassVar = False

    def cast(self, sample: Data, dtype: torch.dtype) -> Data:
        """Samples are stored in float32; training in float64 casts them."""
        if dtype != torch.float64:
            return sample
        return copy(sample).apply(lambda t: t.double() if t.is_floating_point() else t)

    def predict(self, model: Callable[[Data], dict[str, Tensor]], sample: Data, *, training: bool) -> dict[str, Tensor]:
        """The model's outputs; outside training with roll-out where that is asked for."""
        return {"trajectory": roll_out(model, sample)} if self.rollout and not training else model(sample)

    def loss(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """The terms of the loss; their sum is minimised."""
        error = self.predicted(out, sample) - self._target(out, sample)
        terms = {"positions": self._position_loss(error)}
        if self.velocity_weight:
            if sample.get("trajectory_vel") is None or "trajectory_vel" not in out:
                raise InputError("velocity_weight needs velocities", where="task", expected="data and model with them")
            error = out["trajectory_vel"] - sample.trajectory_vel
            terms["velocities"] = self.velocity_weight * error.square().mean()
        return terms

    def _position_loss(self, error: Tensor) -> Tensor:
        """Mean over coordinates; for small errors the same with and without `huber`."""
        if not self.huber:
            return error.square().mean()
        scaled = error.square().sum(-1) / self.huber**2
        # s / (sqrt(1 + s) + 1) is sqrt(1 + s) - 1 without its cancellation.
        return (2 * self.huber**2 / error.shape[-1]) * (scaled / ((1 + scaled).sqrt() + 1)).mean()

    def predicted(self, out: Mapping[str, Tensor], sample: Data) -> Tensor:
        """Predicted positions [..., N, P, 3]; a model that gives `pos` alone predicts one time (S2S)."""
        positions = out["trajectory"] if "trajectory" in out else out["pos"].unsqueeze(-2)
        if not self.bone_lengths:
            return positions
        if sample.get("bone_index") is None:
            raise InputError("bone_lengths needs a skeleton", where="task", expected="data with bones")
        joints = positions.transpose(-2, -3)  # [..., P, N, 3]
        return keep_bone_lengths(joints, sample.pos.unsqueeze(-3), sample.bone_index).transpose(-2, -3)

    def measure(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """Sums over a batch, from which `metrics` makes errors once the sums of all batches are added up."""
        count = torch.tensor(float(len(sample.pos)), dtype=torch.float64, device=sample.pos.device)
        return {"squared": count * self.errors(out, sample).double(), "count": count}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """F-MSE and A-MSE."""
        horizon = sums["squared"] / sums["count"]
        return {"f_mse": float(horizon[-1]), "a_mse": float(horizon.mean())}

    def errors(self, out: Mapping[str, Tensor], sample: Data) -> Tensor:
        """Squared error per coordinate at each time, averaged over the batch: [P], or [1] for S2S."""
        error = self.predicted(out, sample) - self._target(out, sample)
        return error.square().mean(dim=-1).flatten(0, -2).mean(0)

    def _target(self, out: Mapping[str, Tensor], sample: Data) -> Tensor:
        predicted, target = self.predicted(out, sample), sample.trajectory
        if predicted.shape == target.shape:
            return target
        if predicted.shape[-2] == 1:  # state to state: the last time, or the first step of a rollout
            return target[..., :1, :] if self.rollout else target[..., -1:, :]
        raise InputError(
            "time points of the prediction", expected=target.shape[-2], got=predicted.shape[-2], where="task"
        )


def roll_out(model: Callable[[Data], dict[str, Tensor]], sample: Data) -> Tensor:
    """Apply a one-step model (state at 0 to positions at `times[0]`) once per time point: [B, N, P, 3].

    The velocity after a step is the displacement over its duration. `sample` is a batch of particle systems on one
    shared graph with equidistant times.

    Raises:
        InputError: it is not.
    """
    if sample.get("charge") is None:
        raise InputError("rollout needs particles", where="task", expected="a data set whose samples have charges")
    step, steps = sample.times[0, 0].to(sample.pos.dtype), sample.times.shape[1]
    state, positions = sample, []
    for _ in range(steps):
        moved = model(state)["pos"]
        positions.append(moved)
        velocity = (moved - state.pos) / step
        state = particle_sample(moved, velocity, sample.charge, sample.edge_index, sample.get("coupling"))
    return torch.stack(positions, dim=-2)


def constant(sample: Data) -> Tensor:
    """Baseline: nothing moves. [..., N, P, 3]."""
    return sample.pos.unsqueeze(-2).expand_as(sample.trajectory)


def ballistic(sample: Data) -> Tensor:
    """Baseline: straight on, x + v t. [..., N, P, 3]."""
    times = sample.times[0].to(sample.pos.dtype)[:, None]
    return sample.pos.unsqueeze(-2) + sample.vel.unsqueeze(-2) * times


def translation(sample: Data) -> Tensor:
    """Baseline: all move on together, with the mean velocity. [..., N, P, 3]."""
    times = sample.times[0].to(sample.pos.dtype)[:, None]
    return sample.pos.unsqueeze(-2) + _mean_velocity(sample).unsqueeze(-2) * times


def _mean_velocity(sample: Data) -> Tensor:
    """Mean velocity of each graph, [..., 1, 3] or, in one large graph, at its nodes [N, 3]."""
    graph = sample.get("batch")
    if graph is None:
        return sample.vel.mean(-2, keepdim=True)
    return mean_of_graph(sample.vel, graph)


def fit_linear(samples: Iterable[Data]) -> Tensor:
    """The best factors c_p in x + c_p v, by least squares over all training samples: [P] ("Linear" in the papers)."""
    along, squared = torch.zeros(1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for sample in samples:
        moved, vel = sample.trajectory - sample.pos.unsqueeze(-2), sample.vel.unsqueeze(-2)
        along = along + (moved * vel).flatten(0, -3).sum((0, 2)).double()
        squared = squared + vel.square().sum().double()
    return (along / squared).float()


def linear(sample: Data, factors: Tensor) -> Tensor:
    """Baseline x + c_p v with the factors of `fit_linear`. [..., N, P, 3]."""
    return sample.pos.unsqueeze(-2) + sample.vel.unsqueeze(-2) * factors[:, None]


def roll_windows(
    predict: Callable[[Data], dict[str, Tensor]],
    sample: Data,
    windows: int,
    restate: Callable[[Data, Tensor, Tensor], Data],
    *,
    trained_velocities: bool,
) -> tuple[Tensor, Tensor]:
    """Predict window after window: the state at the last time of one is the input of the next.

    Args:
        predict: gives `trajectory` (and `trajectory_vel`) at the `times` of a sample.
        sample: input states.
        windows: how many.
        restate: makes a sample of another state.
        trained_velocities: take the predicted velocities; else they come from the parabola through the last three
            positions, as velocities that no training has seen mean nothing.

    Returns:
        Positions and velocities [..., N, windows * P, 3].
    """
    state, found = sample, []
    for _ in range(windows):
        out = predict(state)
        x = out["trajectory"]
        v = out["trajectory_vel"] if trained_velocities else _difference_velocities(x, state)
        found.append((x, v))
        state = restate(state, x[..., -1, :], v[..., -1, :])
    return torch.cat([x for x, _ in found], dim=-2), torch.cat([v for _, v in found], dim=-2)


def _difference_velocities(x: Tensor, state: Data) -> Tensor:
    """Slope at each time of the parabola through it and the two positions before, [..., N, P, 3]."""
    times = state.times[0].to(x.dtype)
    first = times[:1]
    # Straight on backwards from the input state, as far as the first time lies ahead.
    before = (state.pos - state.vel * first).unsqueeze(-2)
    x = torch.cat([before, state.pos.unsqueeze(-2), x], dim=-2)
    t = torch.cat([-first, first.new_zeros(1), times])[:, None]
    count = x.shape[-2] - 2
    x0, x1, x2 = (x[..., k : k + count, :] for k in range(3))
    t0, t1, t2 = (t[k : k + count] for k in range(3))
    left, right = (x1 - x0) / (t1 - t0), (x2 - x1) / (t2 - t1)
    return right + (right - left) * (t2 - t1) / (t2 - t0)


BASELINES = ("constant", "ballistic", "translation", "linear")


def horizon_error(predicted: Tensor, sample: Data) -> list[float]:
    """Mean squared error per coordinate at each time [P]."""
    error = (predicted - sample.trajectory).square().mean(-1)
    return error.flatten(0, -2).mean(0).double().tolist()
