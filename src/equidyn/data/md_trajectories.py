"""Molecular dynamics of one molecule: from its atoms at one frame to where they are later.

Reads what `equidyn.data.md_frames` reads. Time counts in frames and lengths are in Å; a velocity is the way to the next
frame, x(t + 1) - x(t). A longer unit of time gives velocities that are not tiny beside the distances: with `time_unit`
k a velocity is k (x(t + 1) - x(t)), and times are divided by k.

Features are those of the EGNO paper's MD17 experiment (and of GMN's). Nodes are the heavy atoms and carry their speed
and their atomic number, divided by the molecule's largest. Edges join bonded atoms (kind 1) and atoms with a common
bonded neighbour (kind 2) and carry both atomic numbers, the kind, whether the bond is one of the chosen `sticks`, and
the squared distance. Nothing is divided by a maximum over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data.md_frames import Frames, read_frames
from equidyn.data.mocap import skeleton_graph
from equidyn.data.trajectories import is_trajectories, read_trajectories
from equidyn.data.windows import choose_starts

DENSE = 50  # frames of `every_frame`


def find_bonds(pos: np.ndarray, longest: float, where: object = None) -> np.ndarray:
    """Pairs of atoms [K, 2], smaller index first, closer than `longest` in Å.

    Raises:
        InputError: there are none, or all are: lengths are in another unit, most likely.
    """
    distance = np.linalg.norm(pos[:, None] - pos, axis=-1)
    bonds = np.argwhere(np.triu(distance < longest, 1))
    if len(pos) > 1 and not len(bonds):
        nearest = distance[np.triu_indices(len(pos), 1)].min()
        expected = f"atoms closer than bond_length = {longest:g} Å"
        raise InputError("no bonds", where=where, expected=expected, got=f"{nearest:.3g} at least")
    if len(pos) > 4 and 2 * len(bonds) == len(pos) * (len(pos) - 1):
        expected = f"some atoms further apart than bond_length = {longest:g} Å (lengths in Å, not nm)"
        raise InputError("every atom is bonded to every other", where=where, expected=expected)
    return bonds


def molecule_sample(pos: Tensor, vel: Tensor, z: Tensor, bonds: Tensor, sticks: Sequence[tuple[int, int]] = ()) -> Data:
    """A batch of states of one molecule.

    Args:
        pos, vel: [B, N, 3] in Å, Å per frame.
        z: [N] atomic numbers.
        bonds: [K, 2].
        sticks: bonds marked by a feature of their own.

    Returns:
        Data with `pos`, `vel`, `z [N]`, `x [B, N, 2]` (speed, z over its maximum), `edge_index [2, E]`,
        `edge_attr [B, E, 5]` (z of receiver and sender, kind, stick, squared distance), `bond_index [2, K]`.
    """
    edge_index, kind = skeleton_graph(bonds, len(z))
    send, receive = edge_index
    stick = torch.zeros(len(z), len(z))
    for a, b in sticks:
        stick[a, b] = stick[b, a] = 1
    fixed = torch.stack([z[receive], z[send], kind, stick[receive, send]], dim=-1).to(pos)
    squared = (pos[:, receive] - pos[:, send]).square().sum(-1, keepdim=True)
    edge_attr = torch.cat([fixed.expand(len(pos), -1, -1), squared], dim=-1)
    relative = (z / z.max()).to(pos).expand(len(pos), -1)
    x = torch.stack([vel.norm(dim=-1), relative], dim=-1)
    given = {"pos": pos, "vel": vel, "z": z, "x": x, "edge_index": edge_index, "edge_attr": edge_attr}
    return Data(**given, bond_index=bonds.T.contiguous())


class MoleculeDataset(Dataset):
    """State-to-trajectory samples in memory; a list of indices gives one batch on a shared graph.

    Args:
        states: all samples as one batch, as `molecule_sample` makes them.
        times: [P] in frames, counted from the initial state.
        trajectory: [S, N, P, 3] at the times.

    `at_once` samples are evaluated together.
    """

    at_once = 250

    def __init__(self, states: Data, times: Tensor, trajectory: Tensor) -> None:
        self.states, self.times, self.trajectory = states, times, trajectory

    def __len__(self) -> int:
        return len(self.trajectory)

    def __getitems__(self, indices: Sequence[int]) -> Data:
        which = torch.as_tensor(indices)
        shared = {name: self.states[name] for name in ("z", "edge_index", "bond_index")}
        own = {name: self.states[name][which] for name in ("pos", "vel", "x", "edge_attr")}
        return Data(**own, **shared, times=self.times[None], trajectory=self.trajectory[which])

    def __getitem__(self, index: int) -> Data:
        return self.__getitems__([index])


@dataclass
class MolecularDynamics:
    """The trajectory of a molecule as the data of an experiment.

    Attributes:
        path: trajectory (`equidyn.data.md_frames`).
        topology: file with its atoms, for formats that have none (DCD, XTC ...).
        selection: "heavy", "all", or with a topology a selection of MDAnalysis.
        frames: frames to predict, counted from the input; the last one gives F-MSE, all of them A-MSE.
        train_frames: frames the training sees; null for the same.
        split: "separate", "ordered", "random" or an .npz (`equidyn.data.windows`).
        train, val, test: number of samples of each part; 0 for all there are.
        bond_length: atoms closer than this in the first frame are bonded, in Å.
        sticks: bonds that carry a feature of their own, by the numbers of the selected atoms.
        time_unit: frames in one unit of time, of `vel` and `times`; the paper's is one frame.

    Raises:
        InputError: (from `part`) the trajectory is missing, broken or too short.
    """

    path: str
    topology: str | None = None
    selection: str = "heavy"
    frames: tuple[int, ...] = (375, 750, 1125, 1500, 1875, 2250, 2625, 3000)
    train_frames: tuple[int, ...] | None = None
    split: str = "separate"
    train: int = 500
    val: int = 2000
    test: int = 2000
    bond_length: float = 1.6
    sticks: tuple[tuple[int, int], ...] = ()
    time_unit: float = 1.0

    def part(self, name: str) -> MoleculeDataset:
        """The samples of one part: "train", "val" or "test"."""
        asked = self.train_frames if name == "train" and self.train_frames else self.frames
        steps = check_frames(asked, self.path)
        frames = read_frames(self.path, self.topology, self.selection)
        z, bonds = self._molecule(frames)
        window = np.union1d(steps, check_frames(self.frames, self.path))
        starts = choose_starts(frames, name, getattr(self, name), self.split, window)
        positions = frames.read(starts[:, None] + steps)
        pos, vel = tensor(positions[:, 0]), tensor((positions[:, 1] - positions[:, 0]) * self._unit())
        states = molecule_sample(pos, vel, z, bonds, self.sticks)
        times = torch.tensor(self.after(asked), dtype=torch.float64)
        return MoleculeDataset(states, times, tensor(positions[:, 2:].swapaxes(1, 2)))

    def _molecule(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Atomic numbers and bonds."""
        if (frames.numbers < 1).any():
            got = f"none for atom {int(np.argmin(frames.numbers))} of the selection"
            raise InputError("unknown element", where=self.topology, expected="a topology with elements", got=got)
        if not 0 < self.bond_length < float("inf"):
            raise InputError("length", where="data.bond_length", expected="more than 0 Å", got=self.bond_length)
        first = int(np.argmax(frames.present))
        bonds = find_bonds(frames.read(np.array([first]))[0], self.bond_length, self.path)
        known = {tuple(bond) for bond in bonds.tolist()}
        for pair in self.sticks:
            if len(pair) != 2 or tuple(sorted(pair)) not in known:
                raise InputError("a stick that is no bond", where="data.sticks", expected=sorted(known), got=list(pair))
        return torch.as_tensor(frames.numbers), torch.as_tensor(bonds)

    def every_frame(self) -> MoleculeDataset | None:
        """Test samples with frames between the first and the last predicted one; None if there are no others."""
        low, high = self.frames[0], self.frames[-1]
        between = tuple(int(f) for f in np.unique(np.linspace(low, high, DENSE).round()))
        return None if set(between) <= set(self.frames) else replace(self, frames=between).part("test")

    def after(self, frames: Sequence[int]) -> list[float]:
        """Times of frames: frames count from the input."""
        return [frame / self._unit() for frame in frames]

    def _unit(self) -> float:
        if not 0 < self.time_unit < float("inf"):
            raise InputError("unit", where="data.time_unit", expected="more than 0 frames", got=self.time_unit)
        return self.time_unit

    def read(self, path: str | Path) -> Trajectories:
        """States to predict from: a trajectory of the same kind, or a file of `equidyn predict`."""
        if is_trajectories(path):
            return read_trajectories(path)
        frames = read_frames(path, self.topology, self.selection)
        z, bonds = replace(self, path=str(path))._molecule(frames)
        meta = {"kind": "md", "frames_per_time": self._unit(), "z": z.tolist(), "bonds": bonds.tolist()}
        return as_trajectories(frames, meta, self._unit())

    def sample(self, states: Trajectories, frame: int = 0) -> Data:
        """One frame of some trajectories, as `read` gives them, as the input of a trained model.

        Raises:
            InputError: no such frame, or nothing says which atoms these are.
        """
        pos, vel = state_of(states, frame)
        try:
            z = torch.tensor(states.meta["z"], dtype=torch.int64)
            bonds = torch.tensor(states.meta["bonds"], dtype=torch.int64).reshape(-1, 2)
        except (KeyError, ValueError, TypeError):
            expected = "z [N] and bonds [[i, j]]"
            raise InputError("trajectories without a molecule", where="meta", expected=expected) from None
        if z.shape != pos.shape[1:2] or (z < 1).any() or (bonds < 0).any() or (bonds >= len(z)).any():
            raise InputError(
                "a molecule that does not match the positions", where="meta", expected=f"{pos.shape[1]} atoms"
            )
        return molecule_sample(pos, vel, z, bonds, self.sticks)


def check_frames(frames: Sequence[int], where: object) -> np.ndarray:
    """Frames of a window, [0, 1, *frames]: the state, the next one for its velocity, the ones to predict.

    Raises:
        InputError: none, not positive, or not rising.
    """
    if not frames or any(b <= a for a, b in pairwise((0, *frames))):
        raise InputError("frames to predict", where=where, expected="one or more, 1 or later, rising", got=list(frames))
    return np.array([0, 1, *frames])


def as_trajectories(frames: Frames, meta: dict[str, Any], unit: float) -> Trajectories:
    """All frames but the last as one trajectory with velocities; `unit` frames are one unit of time."""
    if not frames.present.all():
        what = "frames are missing"
        raise InputError(what, where=frames.where, expected="consecutive frames", got=f"{frames.present.sum()} of them")
    positions = frames.read(np.arange(len(frames)))[None]
    velocities = unit * np.diff(positions, axis=1)
    return Trajectories(positions[:, :-1], velocities, np.arange(len(frames) - 1) / unit, meta=meta)


def state_of(states: Trajectories, frame: int) -> tuple[Tensor, Tensor]:
    """Positions and velocities [S, N, 3] of one frame.

    Raises:
        InputError: no such frame.
    """
    count = states.positions.shape[1]
    if not -count <= frame < count:
        raise InputError("frame outside the trajectory", expected=f"0 to {count - 1}", got=frame)
    return tensor(states.positions[:, frame]), tensor(states.velocities[:, frame])


def tensor(array: np.ndarray) -> Tensor:
    """In float32."""
    return cast(Tensor, torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32))
