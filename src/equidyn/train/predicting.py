"""What a trained model predicts for a sample of its data family, in one place for all who measure it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.data.md_trajectories import MolecularDynamics, MoleculeDataset
from equidyn.data.mocap import Mocap, SkeletonDataset
from equidyn.data.nbody import NBody, ParticleDataset
from equidyn.data.periodic import Periodic, PeriodicDataset
from equidyn.data.proteins import Protein, ProteinDataset
from equidyn.tasks.trajectory import TrajectoryTask
from equidyn.train.checkpoint import Trained, build_family, build_task

Family = NBody | Mocap | Periodic | MolecularDynamics | Protein
Part = ParticleDataset | SkeletonDataset | PeriodicDataset | MoleculeDataset | ProteinDataset


def family_of(trained: Trained, **other: Any) -> Family:
    """The data family of a run, with other arguments than its recipe's."""
    return build_family(trained.config, **other)


def task_of(trained: Trained) -> TrajectoryTask:
    """The task of a run."""
    return cast(TrajectoryTask, build_task(trained.config))


@torch.no_grad()
def predict(model: nn.Module, task: TrajectoryTask, sample: Data) -> dict[str, Tensor]:
    """The outputs of a model, `trajectory` among them, with roll-out where the task asks for it."""
    out = task.predict(model, sample, training=False)
    return out | {"trajectory": task.predicted(out, sample)}


def per_graph(value: Tensor, sample: Data) -> Tensor:
    """Rows of nodes as [B, N, ...], also where the graphs of a batch, of one size, make up one large graph."""
    if sample.pos.dim() == 3:
        return value
    graphs = 1 if sample.get("batch") is None else int(sample.batch[-1]) + 1
    return value.unflatten(0, (graphs, -1))


def batches(part: Part) -> Iterator[Data]:
    """A part in batches that memory bears."""
    size = part.at_once
    return (part.__getitems__(range(i, min(i + size, len(part)))) for i in range(0, len(part), size))
