"""Particles in periodic boxes, liquids and crystals: from the state at one frame to the positions at later ones.

Reads trajectory files that have a `cell` (those of `equidyn simulate liquid`, or made by any tool). Each sample has a
graph of its own, the pairs within a cutoff in the input state and all their images; a batch is one large graph, as
PyG's loaders build it, and memory is linear in its particles.

Nodes carry their speed, and charge and mass where the file has them; edges carry the squared distance. Units are those
of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data.trajectories import read_trajectories
from equidyn.ops.neighbors import neighbor_list

_NODES_AT_ONCE = 20_000  # of one batch in evaluations


def periodic_sample(pos: Tensor, vel: Tensor, cell: Tensor, cutoff: float, scalars: Tensor | None = None) -> Data:
    """The state of one box.

    Args:
        pos, vel: [N, 3].
        cell: [3, 3] lattice vectors in rows.
        cutoff: largest distance of a pair.
        scalars: [N, F] further features of the nodes.

    Returns:
        Data with `pos`, `vel`, `x [N, 1 + F]` (speed, scalars), `edge_index`, `edge_shift`, `edge_attr [E, 1]` (squared
        distance), `cell [1, 3, 3]`, `pbc [1, 3]`, `centre [N, 3]` (a box has no middle: each node's own position).

    Raises:
        InputError: as for `neighbor_list`.
    """
    edge_index, shift = neighbor_list(pos, cutoff, cell, True)
    r = pos[edge_index[0]] + shift - pos[edge_index[1]]
    speed = vel.norm(dim=-1, keepdim=True)
    return Data(
        pos=pos,
        vel=vel,
        x=speed if scalars is None else torch.cat([speed, scalars], dim=1),
        edge_index=edge_index,
        edge_shift=shift,
        edge_attr=r.square().sum(-1, keepdim=True),
        cell=cell[None],
        pbc=torch.ones(1, 3, dtype=torch.bool),
        centre=pos,
    )


class PeriodicDataset(Dataset):
    """State-to-trajectory samples; graphs are built when they are first asked for and kept.

    Args:
        trajectories: in float32; every sample is a stretch of one of them.
        starts: [S, 2] trajectory and frame of each input state.
        frames: frames to predict, counted from the input.
        cutoff: of the graphs.
    """

    def __init__(self, trajectories: Trajectories, starts: np.ndarray, frames: Sequence[int], cutoff: float) -> None:
        self.trajectories, self.starts, self.frames, self.cutoff = trajectories, starts, tuple(frames), cutoff
        step = trajectories.times[1] - trajectories.times[0]
        self.times = torch.tensor(self.frames, dtype=torch.float64) * float(step)
        self.at_once = max(_NODES_AT_ONCE // trajectories.positions.shape[2], 1)
        self._kept: dict[int, Data] = {}

    def __len__(self) -> int:
        return len(self.starts)

    def _one(self, index: int) -> Data:
        if index not in self._kept:
            s, start = self.starts[index]
            later = start + np.array(self.frames)
            sample = state_sample(self.trajectories, int(s), int(start), self.cutoff)
            moved = (torch.as_tensor(a[s, later]).transpose(0, 1).contiguous() for a in self._paths())
            sample.trajectory, sample.trajectory_vel = moved
            self._kept[index] = sample
        return self._kept[index]

    def _paths(self) -> tuple[Any, Any]:
        return self.trajectories.positions, self.trajectories.velocities

    def __getitems__(self, indices: Sequence[int]) -> Data:
        return joined([self._one(int(index)) for index in indices], self.times)

    def __getitem__(self, index: int) -> Data:
        return self.__getitems__([index])


def joined(samples: Sequence[Data], times: Tensor) -> Data:
    """One large graph of several boxes, with common times."""
    batch = Batch.from_data_list(list(samples))
    together = Data(**{name: batch[name] for name in (*samples[0].keys(), "batch")})
    together.times = times[None]
    return together


def state_sample(trajectories: Trajectories, s: int, frame: int, cutoff: float) -> Data:
    """One frame of one trajectory as a sample, in float32."""
    tensor = lambda array: torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32)  # noqa: E731
    assert trajectories.cell is not None
    columns = [a[s] for a in (trajectories.charges, trajectories.masses) if a is not None]
    scalars = tensor(np.stack(columns, 1)) if columns else None
    pos, vel = tensor(trajectories.positions[s, frame]), tensor(trajectories.velocities[s, frame])
    return periodic_sample(pos, vel, tensor(trajectories.cell[s]), cutoff, scalars)


@dataclass
class Periodic:
    """The data of an experiment in periodic boxes.

    Attributes:
        path: trajectory file with a `cell`.
        cutoff: pairs within it are joined; the unit is that of the file. Give the model's layers the same
            (`options: {cutoff: ...}`), so that nothing jumps when a pair crosses it.
        frames: frames to predict, counted from the input; the last one gives F-MSE, all of them A-MSE.
        train_frames: frames the training sees; null for the same.
        stride: frames between the input states of two samples.
        train, val, test: number of trajectories of each part, in the order of the file.

    Raises:
        InputError: (from `part`) the file is missing or broken, has no box, or holds fewer frames or trajectories.
    """

    path: str
    cutoff: float
    frames: tuple[int, ...] = (2, 4, 6, 8, 10)
    train_frames: tuple[int, ...] | None = None
    stride: int = 10
    train: int = 20
    val: int = 6
    test: int = 6

    def part(self, name: str) -> PeriodicDataset:
        """The samples of one part: "train", "val" or "test"."""
        frames = self.train_frames if name == "train" and self.train_frames else self.frames
        if not frames or any(b <= a for a, b in pairwise((0, *frames))):
            raise InputError("frames to predict", where=self.path, expected="1 or later, rising", got=list(frames))
        if self.stride < 1:
            raise InputError("stride", where="data.stride", expected="at least 1", got=self.stride)
        counts = {"train": self.train, "val": self.val, "test": self.test}
        for part, count in counts.items():
            if count < 1:
                raise InputError(f"number of {part} trajectories", where=self.path, expected="at least 1", got=count)
        whole = self.read(self.path)
        if sum(counts.values()) > len(whole):
            got = " + ".join(map(str, counts.values()))
            raise InputError("train + val + test", where=self.path, expected=f"at most {len(whole)}", got=got)
        begin = sum(counts[part] for part in list(counts)[: list(counts).index(name)])
        last, have = max(*self.frames, *frames), whole.positions.shape[1]
        if last >= have:
            raise InputError("frame outside the trajectory", where=self.path, expected=f"up to {have - 1}", got=last)
        grid = np.mgrid[0 : counts[name], 0 : have - last : self.stride].reshape(2, -1).T
        return PeriodicDataset(_single(whole.subset(slice(begin, begin + counts[name]))), grid, frames, self.cutoff)

    def every_frame(self) -> None:
        """No denser samples: a liquid at many times at once takes much memory."""

    def after(self, frames: Sequence[int]) -> list[float]:
        """Times of frames, counted from the input state."""
        times = self.read(self.path).times
        return [float(frame * (times[1] - times[0])) for frame in frames]

    @staticmethod
    def read(path: str | Path) -> Trajectories:
        """Trajectories in boxes, at equidistant times.

        Raises:
            InputError: there is no box, one frame alone, or times that are not equidistant.
        """
        found = read_trajectories(path)
        if found.cell is None:
            raise InputError("no box", where=path, expected="an array 'cell' [S, 3, 3]", got="none")
        steps = np.diff(found.times)
        if not len(steps):
            raise InputError("trajectories of one frame", where=path, expected="two or more", got=1)
        if not np.allclose(steps, steps[0]):
            got = f"steps of {steps.min():g} to {steps.max():g}"
            raise InputError("times", where=path, expected="equidistant frames", got=got)
        return found

    def sample(self, states: Trajectories, frame: int = 0) -> Data:
        """One frame of some trajectories as the input of a trained model.

        Raises:
            InputError: no such frame, or no box.
        """
        count = states.positions.shape[1]
        if not -count <= frame < count:
            raise InputError("frame outside the trajectory", expected=f"0 to {count - 1}", got=frame)
        if states.cell is None:
            raise InputError("no box", where="states", expected="an array 'cell' [S, 3, 3]", got="none")
        samples = [state_sample(states, s, frame, self.cutoff) for s in range(len(states))]
        return joined(samples, torch.tensor(self.after(self.frames), dtype=torch.float64))


def relisted(sample: Data, cutoff: float) -> Data:
    """The same boxes with the graph of their present positions."""
    boxes = []
    scalars = sample.x[:, 1:] if sample.x.shape[1] > 1 else None
    for k, cell in enumerate(sample.cell):
        here = sample.batch == k
        own = None if scalars is None else scalars[here]
        boxes.append(periodic_sample(sample.pos[here], sample.vel[here], cell, cutoff, own))
    return joined(boxes, sample.times[0])


def _single(trajectories: Trajectories) -> Trajectories:
    """In float32, which samples are in."""
    names = ("positions", "velocities")
    return replace(trajectories, **{name: getattr(trajectories, name).astype(np.float32) for name in names})
