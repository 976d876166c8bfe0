"""How well a predicted uncertainty tells the true error.

Two sources of uncertainty, each a standard deviation per coordinate for every node and time:

- **ensemble**: how far models from different seeds disagree;
- **curvature**: how far the mean of one model's answers to two opposite disturbances of the input state lies from its
  answer to the state itself, over random pairs of them. Free motion is linear in the state and has none; close
  encounters bend it. It needs one model and no training. It tells where the motion is hard to predict, and knows
  nothing of what the model has not learned.

Neither comes in the right unit of error: one factor is fitted on validation samples, so that half of their errors lie
within the interval that is to hold half of them, and all is then measured on test samples.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.data.states import state_noise, with_state
from equidyn.tasks.trajectory import TrajectoryTask
from equidyn.train.checkpoint import Ensemble, Trained
from equidyn.train.predicting import Family, batches, predict

SAMPLES = 500
PAIRS = 4
NOISE = 0.2  # share of the velocities, see `state_noise`
BINS = 10
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def calibration(trained: Trained, task: TrajectoryTask, source: Family, *, curvature: bool) -> list[dict[str, Any]]:
    """What `evaluation.json` holds of each source of uncertainty."""
    methods = {"ensemble": _ensemble} if isinstance(trained.model, Ensemble) else {}
    if curvature:
        methods["curvature"] = _curvature
    found = []
    for name, method in methods.items():
        val, test = (_measure(trained.model, task, source, part, method) for part in ("val", "test"))
        # The median, as squared errors are those of a few samples.
        ratio = val[1].abs() / val[0].clamp(min=1e-30)[:, None]
        scale = float(ratio.median()) / NormalDist().inv_cdf(0.75)
        found.append({"method": name, "factor": scale} | _compare(scale * test[0], test[1]))
    return found


def _measure(model: nn.Module, task: TrajectoryTask, source: Family, name: str, method: Any) -> tuple[Tensor, Tensor]:
    """Uncertainties [K] and errors [K, 3] of all nodes and times of some samples of a part."""
    part = source.part(name)
    seen, rows = 0, []
    for batch in batches(part):
        predicted, std = method(model, task, batch)
        target = batch.trajectory if predicted.shape[-2] > 1 else batch.trajectory[..., -1:, :]
        rows.append((std.flatten(), (predicted - target).flatten(0, -2)))
        seen += len(batch.pos) if batch.pos.dim() == 3 else int(batch.batch[-1]) + 1
        if seen >= SAMPLES:
            break
    return torch.cat([std for std, _ in rows]).double(), torch.cat([error for _, error in rows]).double()


def _ensemble(model: nn.Module, task: TrajectoryTask, sample: Data) -> tuple[Tensor, Tensor]:
    out = predict(model, task, sample)
    return out["trajectory"], out["trajectory_std"]


def _curvature(model: nn.Module, task: TrajectoryTask, sample: Data) -> tuple[Tensor, Tensor]:
    mean = predict(model, task, sample)["trajectory"]
    generator, total = torch.Generator().manual_seed(0), torch.zeros(())
    for _ in range(PAIRS):
        dx, dv = state_noise(sample, NOISE, generator)
        moved = (with_state(sample, sample.pos + k * dx, sample.vel + k * dv, targets=True) for k in (1, -1))
        ahead, back = (predict(model, task, state)["trajectory"] for state in moved)
        total = total + (0.5 * (ahead + back) - mean).square().mean(-1)
    return mean, (total / PAIRS).sqrt()


def _compare(std: Tensor, error: Tensor) -> dict[str, Any]:
    """Predicted against true error by quantile of the prediction, coverage, and rank correlation."""
    size = error.square().mean(-1).sqrt()
    order = std.argsort()
    bins = [part for part in order.tensor_split(BINS) if len(part)]
    root = lambda values: float(values.square().mean().sqrt())  # noqa: E731
    # The distribution of an error that is normal with the predicted deviation.
    z = error.abs() / std.clamp(min=1e-30)[:, None]
    widths = [NormalDist().inv_cdf(0.5 + level / 2) for level in LEVELS]
    return {
        "predicted": [root(std[part]) for part in bins],
        "true": [root(size[part]) for part in bins],
        "levels": list(LEVELS),
        "coverage": [float((z <= width).double().mean()) for width in widths],
        "rank_correlation": float(torch.corrcoef(torch.stack([_ranks(std), _ranks(size)]))[0, 1]),
    }


def _ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()
