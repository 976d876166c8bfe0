"""Proteins in motion: from the backbone at one frame of a long simulation to where it is some frames later.

Reads what MDAnalysis reads, a topology (PSF, PDB, PRMTOP, GRO, TPR ...) and a trajectory (DCD, XTC, TRR ...); the extra
`MDAnalysis` installs it. A sample is read from disk when it is asked for, two frames and the predicted ones, so that
memory does not grow with the trajectory.

The protocol is that of the EGNO paper's experiment on adenylate kinase (AdK): atoms N, CA, C, O of the backbone; a
velocity is the way to the next frame, times count in frames; nodes carry their speed and their partial charge, divided
by the largest of the selection; edges join atoms closer than a cutoff at the input frame and carry that distance and
its square. The graph differs from sample to sample: a batch is one large graph. Where a topology has no charges, nodes
carry their atomic number over that of oxygen instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data.md_frames import Frames, read_frames
from equidyn.data.md_trajectories import as_trajectories, check_frames, state_of, tensor
from equidyn.data.trajectories import is_trajectories, read_trajectories
from equidyn.data.windows import choose_starts
from equidyn.ops.neighbors import neighbor_list

OXYGEN = 8


def contact_sample(pos: Tensor, vel: Tensor, scalar: Tensor, cutoff: float) -> Data:
    """States of one protein as one large graph, each with the contacts of its own positions.

    Args:
        pos, vel: [B, N, 3] in Å, Å per frame.
        scalar: [N] feature of the atoms beside their speed.
        cutoff: largest distance of a contact, in Å.

    Returns:
        Data with `pos`, `vel` [B N, 3], `x [B N, 2]` (speed, scalar), `edge_index [2, E]`, `edge_attr [E, 2]` (distance
        and its square at the input), `batch [B N]`.
    """
    graphs, atoms = pos.shape[:2]
    lists = [neighbor_list(p, cutoff)[0] + number * atoms for number, p in enumerate(pos)]
    edge_index = torch.cat(lists, dim=1)
    pos, vel = pos.flatten(0, 1), vel.flatten(0, 1)
    send, receive = edge_index
    squared = (pos[receive] - pos[send]).square().sum(-1)
    x = torch.stack([vel.norm(dim=-1), scalar.to(pos).repeat(graphs)], dim=-1)
    edge_attr = torch.stack([squared.sqrt(), squared], dim=-1)
    batch = torch.arange(graphs).repeat_interleave(atoms)
    return Data(pos=pos, vel=vel, x=x, edge_index=edge_index, edge_attr=edge_attr, batch=batch)


class ProteinDataset(Dataset):
    """State-to-trajectory samples that are read when asked for; a list of indices gives one batch.

    Args:
        frames: the trajectory.
        starts: [S] frames of the states.
        steps: [P + 2] frames of a window, counted from its start: 0, 1 and the predicted ones.
        scalar: [N], see `contact_sample`.
        cutoff: in Å.

    `at_once` samples are evaluated together.
    """

    at_once = 8

    def __init__(self, frames: Frames, starts: np.ndarray, steps: np.ndarray, scalar: Tensor, cutoff: float) -> None:
        self.frames, self.starts, self.steps, self.scalar, self.cutoff = frames, starts, steps, scalar, cutoff
        self.times = torch.as_tensor(steps[2:], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: Sequence[int]) -> Data:
        positions = self.frames.read(self.starts[np.asarray(indices), None] + self.steps)
        pos, vel = tensor(positions[:, 0]), tensor(positions[:, 1] - positions[:, 0])
        sample = contact_sample(pos, vel, self.scalar, self.cutoff)
        sample.times = self.times[None]
        sample.trajectory = tensor(positions[:, 2:].swapaxes(1, 2)).flatten(0, 1)
        return sample

    def __getitem__(self, index: int) -> Data:
        return self.__getitems__([index])


@dataclass
class Protein:
    """The trajectory of a protein as the data of an experiment.

    Attributes:
        path: trajectory.
        topology: file with its atoms.
        selection: of MDAnalysis. The atoms that move and are predicted.
        frames: frames to predict, counted from the input; the last one gives F-MSE, all of them A-MSE.
        train_frames: frames the training sees; null for the same.
        split: "ordered" (the paper's), "separate", "random" or an .npz (`equidyn.data.windows`).
        train, val, test: number of samples of each part; 0 for all there are.
        cutoff: contacts are closer than this at the input frame, in Å.

    Raises:
        InputError: (from `part`) trajectory or topology are missing, broken, too short or do not match, an empty
            selection, residues that MDAnalysis does not know, no contacts.
    """

    path: str
    topology: str
    selection: str = "backbone"
    frames: tuple[int, ...] = (3, 7, 11, 15)
    train_frames: tuple[int, ...] | None = None
    split: str = "ordered"
    train: int = 0
    val: int = 0
    test: int = 0
    cutoff: float = 8.0

    def part(self, name: str) -> ProteinDataset:
        """The samples of one part: "train", "val" or "test"."""
        asked = self.train_frames if name == "train" and self.train_frames else self.frames
        steps = check_frames(asked, self.path)
        frames = read_frames(self.path, self.topology, self.selection)
        window = np.union1d(steps, check_frames(self.frames, self.path))
        starts = choose_starts(frames, name, getattr(self, name), self.split, window)
        return ProteinDataset(frames, starts, steps, self._scalar(frames), self._cutoff(frames))

    def _cutoff(self, frames: Frames) -> float:
        if not 0 < self.cutoff < float("inf"):
            raise InputError("cutoff", where="data.cutoff", expected="more than 0 Å", got=self.cutoff)
        first = tensor(frames.read(np.array([0]))[0])
        if not neighbor_list(first, self.cutoff)[0].numel():
            got = f"cutoff {self.cutoff:g} Å"
            raise InputError("no contacts", where=frames.where, expected="atoms closer than the cutoff", got=got)
        return self.cutoff

    def _scalar(self, frames: Frames) -> Tensor:
        charges = frames.charges
        if charges is None or not charges.any():
            return tensor(frames.numbers / OXYGEN)
        if not np.isfinite(charges).all():
            raise InputError("charges hold NaN or infinity", where=self.topology, expected="finite numbers")
        return tensor(charges / np.abs(charges).max())

    def every_frame(self) -> None:
        """No denser samples: a protein at many times at once takes much memory."""

    def after(self, frames: Sequence[int]) -> list[float]:
        """Times of frames: frames count from the input."""
        return [float(frame) for frame in frames]

    def read(self, path: str | Path) -> Trajectories:
        """States to predict from: another trajectory of these atoms, all frames, or a file of `equidyn predict`."""
        if is_trajectories(path):
            return read_trajectories(path)
        frames = read_frames(path, self.topology, self.selection)
        meta = {"kind": "protein", "scalar": self._scalar(frames).tolist()}
        return as_trajectories(frames, meta, 1.0)

    def sample(self, states: Trajectories, frame: int = 0) -> Data:
        """One frame of some trajectories, as `read` gives them, as the input of a trained model.

        Raises:
            InputError: no such frame, or nothing says which atoms these are.
        """
        pos, vel = state_of(states, frame)
        scalar = torch.tensor(states.meta.get("scalar", []))
        if scalar.shape != pos.shape[1:2]:
            expected = f"scalar [{pos.shape[1]}]"
            raise InputError("trajectories without a protein", where="meta", expected=expected, got=list(scalar.shape))
        return contact_sample(pos, vel, scalar, self.cutoff)
