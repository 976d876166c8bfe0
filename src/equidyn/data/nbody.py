"""Particles in motion: from the state at one frame to the positions at later ones.

Reads, and tells apart by itself:

- the benchmark of EGNN, SEGNN, SEGNO and EGNO packed in one npz (`train_pos [S, K, N, 3]`, `train_charge [S, N]`, and
  `train_vel30 [S, N, 3]` or `train_vel [S, K, N, 3]`; likewise `val_*`, `test_*`),
- the same as the original's folder of `.npy` files (`loc_train_*.npy`, `vel_train_*.npy`, `charges_train_*.npy`;
  `valid`, `test`),
- a trajectory file of `equidyn simulate`, cut into train, validation and test in order.

Particle systems are unitless. Nodes carry their speed, edges the product of the charges and the squared distance, as in
the papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data.trajectories import read_trajectories

PARTS = ("train", "val", "test")


def complete_graph(num_nodes: int) -> Tensor:
    """All ordered pairs of different nodes, sorted by receiver: [2, N (N - 1)], row 0 the senders."""
    receiver = torch.arange(num_nodes).repeat_interleave(max(num_nodes - 1, 0))
    rank = torch.arange(num_nodes * max(num_nodes - 1, 0)) % max(num_nodes - 1, 1)
    return torch.stack([rank + (rank >= receiver), receiver])


def particle_sample(
    pos: Tensor, vel: Tensor, charge: Tensor, edge_index: Tensor, coupling: Tensor | None = None
) -> Data:
    """A batch of particle systems on one shared graph, with the papers' input features.

    Args:
        pos, vel: [B, N, 3].
        charge: [B, N] charges, or masses for gravity.
        edge_index: [2, E].
        coupling: [B, N, N] strength of the springs, in place of the products of the charges.

    Returns:
        Data with `pos`, `vel`, `charge`, `x [B, N, 1]` (speed), `edge_attr [B, E, 2]` (c_i c_j, squared distance).
    """
    send, receive = edge_index
    strength = charge[:, receive] * charge[:, send] if coupling is None else coupling[:, receive, send]
    edge_attr = torch.stack([strength, (pos[:, receive] - pos[:, send]).square().sum(-1)], dim=-1)
    speed = vel.norm(dim=-1, keepdim=True)
    sample = Data(pos=pos, vel=vel, charge=charge, x=speed, edge_index=edge_index, edge_attr=edge_attr)
    if coupling is not None:
        sample.coupling = coupling
    return sample


class ParticleDataset(Dataset):
    """State-to-trajectory samples in memory; a list of indices gives one batch on a shared graph.

    Args:
        pos, vel: [S, N, 3] initial states.
        charge: [S, N].
        times: [P] counted from the initial state.
        trajectory: [S, N, P, 3] positions at the times.
        trajectory_vel: [S, N, P, 3] velocities at the times, if known.
        coupling: [S, N, N], if springs join the particles.

    `at_once` samples are evaluated together.
    """

    at_once = 250

    def __init__(
        self,
        pos: Tensor,
        vel: Tensor,
        charge: Tensor,
        times: Tensor,
        trajectory: Tensor,
        trajectory_vel: Tensor | None = None,
        coupling: Tensor | None = None,
    ) -> None:
        self.pos, self.vel, self.charge, self.coupling = pos, vel, charge, coupling
        self.times, self.trajectory, self.trajectory_vel = times, trajectory, trajectory_vel
        self.edge_index = complete_graph(pos.shape[1])

    def __len__(self) -> int:
        return len(self.pos)

    def __getitems__(self, indices: Sequence[int]) -> Data:
        which = torch.as_tensor(indices)
        coupling = None if self.coupling is None else self.coupling[which]
        sample = particle_sample(self.pos[which], self.vel[which], self.charge[which], self.edge_index, coupling)
        sample.times, sample.trajectory = self.times[None], self.trajectory[which]
        if self.trajectory_vel is not None:
            sample.trajectory_vel = self.trajectory_vel[which]
        return sample

    def __getitem__(self, index: int) -> Data:
        return self.__getitems__([index])


@dataclass
class NBody:
    """The particle data of an experiment.

    Attributes:
        path: benchmark npz, folder of the original's npy files, or a trajectory file.
        start: frame of the input state.
        frames: frames to predict; the last one gives F-MSE, all of them A-MSE.
        train_frames: frames the training sees; null for the same.
        train, val, test: number of samples of each part.
        frame_time: time between two frames where the file does not tell.

    Raises:
        InputError: (from `part`) the file is missing or broken, or holds fewer frames or samples.
    """

    path: str
    start: int = 30
    frames: tuple[int, ...] = (32, 34, 36, 38, 40)
    train_frames: tuple[int, ...] | None = None
    train: int = 3000
    val: int = 2000
    test: int = 2000
    frame_time: float = 0.1

    def part(self, name: str) -> ParticleDataset:
        """The samples of one part: "train", "val" or "test"."""
        frames = self.train_frames if name == "train" and self.train_frames else self.frames
        counts = {"train": self.train, "val": self.val, "test": self.test}
        for part, count in counts.items():
            if count < 1:
                raise InputError(f"number of {part} samples", where=self.path, expected="at least 1", got=count)
        count = counts[name]
        if not frames or any(b <= a for a, b in pairwise((self.start, *frames))):
            expected = f"one or more after start = {self.start}, rising"
            raise InputError("frames to predict", where=self.path, expected=expected, got=list(frames))
        file = _read(Path(self.path), name, self)
        have = len(file.positions)
        if count > have:
            raise InputError(f"number of {name} samples", where=self.path, expected=f"1 to {have}", got=count)
        columns = [file.column(frame, self.path) for frame in (self.start, *frames)]
        tensor = lambda array: torch.as_tensor(np.ascontiguousarray(array[:count]), dtype=torch.float32)  # noqa: E731
        positions = tensor(file.positions[:count, columns])
        known = file.velocities.shape[1] > 1
        velocities = tensor(file.velocities[:count, columns] if known else file.velocities[:count])
        times = torch.tensor([(frame - self.start) * file.frame_time for frame in frames], dtype=torch.float64)
        return ParticleDataset(
            positions[:, 0],
            velocities[:, 0],
            tensor(file.charges),
            times,
            positions[:, 1:].transpose(1, 2).contiguous(),
            velocities[:, 1:].transpose(1, 2).contiguous() if known else None,
            None if file.couplings is None else tensor(file.couplings),
        )

    def after(self, frames: Sequence[int]) -> list[float]:
        """Times of frames, counted from the input state, where the file does not tell."""
        return [(frame - self.start) * self.frame_time for frame in frames]

    @staticmethod
    def read(path: str | Path) -> Trajectories:
        """States to predict from."""
        return read_trajectories(path)

    def sample(self, states: Trajectories, frame: int = 0) -> Data:
        """One frame of some trajectories as the input of a trained model."""
        return initial_states(states, frame)

    def start_states(self, count: int) -> Trajectories:
        """The first test samples at the input frame, with the `meta` that says which forces act; one frame each.

        Raises:
            InputError: as for `part`.
        """
        file = _read(Path(self.path), "test", self)
        column = file.column(self.start, self.path)
        velocity = column if file.velocities.shape[1] > 1 else 0
        name = {"springs": "couplings", "gravity": "masses"}.get(str(file.meta.get("kind")), "charges")
        array = file.couplings if name == "couplings" and file.couplings is not None else file.charges
        state = {name: array[:count].astype(np.float64)}
        return Trajectories(
            file.positions[:count, [column]].astype(np.float64),
            file.velocities[:count, [velocity]].astype(np.float64),
            np.zeros(1),
            **state,
            meta=file.meta,
        )


@dataclass(frozen=True)
class _File:
    """positions [S, K, N, 3], velocities [S, K or 1, N, 3], charges [S, N]; first_frame is the number of column 0."""

    positions: np.ndarray
    velocities: np.ndarray
    charges: np.ndarray
    frame_time: float
    first_frame: int = 0
    couplings: np.ndarray | None = None
    meta: Mapping[str, Any] = field(default_factory=lambda: {"kind": "charged"})  # the benchmark's

    def column(self, frame: int, where: str) -> int:
        last = self.first_frame + self.positions.shape[1] - 1
        if not self.first_frame <= frame <= last:
            raise InputError(
                "frame outside the trajectory", where=where, expected=f"{self.first_frame} to {last}", got=frame
            )
        return frame - self.first_frame


def _read(path: Path, name: str, options: NBody) -> _File:
    if path.is_dir():
        file = _read_folder(path, name, options.frame_time)
    elif not path.is_file():
        raise InputError("no such file", where=path, expected="particle data (.npz or a folder of .npy)")
    else:
        packed = _read_packed(path, name, options.frame_time)
        file = packed or _read_simulated(path, name, options)
    shape, velocities = file.positions.shape, file.velocities
    if len(shape) == 4 and velocities.shape == (shape[0], 1, *shape[2:]):  # known at the first frame alone
        velocities = np.broadcast_to(velocities, shape)
    steps = np.arange(1.0, 1 + (shape[1] if len(shape) == 4 else 0))
    Trajectories(file.positions, velocities, steps, file.charges).check(where=path)
    return file


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:
        what = "pickled array" if "allow_pickle" in str(error) else "truncated or corrupt file"
        raise InputError(what, where=path, expected="arrays without pickles", got=type(error).__name__) from None


def _read_packed(path: Path, name: str, frame_time: float) -> _File | None:
    """The benchmark npz, or None if the file is another kind."""
    archive = _load(path)
    if not hasattr(archive, "files") or f"{name}_pos" not in archive.files:
        return None
    try:
        positions, charges = archive[f"{name}_pos"], archive[f"{name}_charge"].astype(np.float32)
        if f"{name}_vel30" in archive.files:
            return _File(positions, archive[f"{name}_vel30"][:, None], charges, frame_time, first_frame=30)
        return _File(positions, archive[f"{name}_vel"], charges, frame_time)
    except Exception as error:
        raise InputError("truncated or corrupt file", where=path, got=f"{type(error).__name__}: {error}") from None


def _read_folder(path: Path, name: str, frame_time: float) -> _File:
    part = {"train": "train", "val": "valid", "test": "test"}[name]
    arrays = {}
    for kind in ("loc", "vel", "charges"):
        found = sorted(path.glob(f"{kind}_{part}_*.npy"))
        if len(found) != 1:
            raise InputError(
                "particle data", where=path, expected=f"one {kind}_{part}_*.npy", got=f"{len(found)} files"
            )
        arrays[kind] = _load(found[0])
        if arrays[kind].dtype.kind not in "fiu":
            raise InputError("wrong dtype", where=found[0], expected="numbers", got=arrays[kind].dtype)
    for kind in ("loc", "vel"):
        if arrays[kind].ndim != 4 or arrays[kind].shape[2] != 3:
            raise InputError(
                f"{kind} has the wrong shape", where=path, expected="[S, F, 3, N]", got=list(arrays[kind].shape)
            )
    charges = arrays["charges"].reshape(len(arrays["charges"]), -1).astype(np.float64)
    return _File(arrays["loc"].swapaxes(2, 3), arrays["vel"].swapaxes(2, 3), charges, frame_time)


def _read_simulated(path: Path, name: str, options: NBody) -> _File:
    whole = read_trajectories(path)
    counts = (options.train, options.val, options.test)
    if sum(counts) > len(whole):
        expected = f"at most {len(whole)} samples in all"
        raise InputError("train + val + test", where=path, expected=expected, got=" + ".join(map(str, counts)))
    begin = sum(counts[: PARTS.index(name)])
    chosen = whole.subset(slice(begin, begin + counts[PARTS.index(name)]))
    steps = np.diff(whole.times)
    if len(steps) and not np.allclose(steps, steps[0]):
        raise InputError(
            "times", where=path, expected="equidistant frames", got=f"steps of {steps.min():g} to {steps.max():g}"
        )
    charges = next((c for c in (chosen.charges, chosen.masses) if c is not None), np.ones(chosen.positions.shape[::2]))
    step = float(steps[0]) if len(steps) else options.frame_time
    return _File(chosen.positions, chosen.velocities, charges, step, 0, chosen.couplings, chosen.meta)


def initial_states(trajectories: Trajectories, frame: int = 0) -> Data:
    """One frame of some trajectories as the input of a trained model; float32.

    Raises:
        InputError: no such frame.
    """
    count = trajectories.positions.shape[1]
    if not -count <= frame < count:
        raise InputError("frame outside the trajectory", expected=f"0 to {count - 1}", got=frame)
    state = replace(trajectories, meta={})
    charges = next((c for c in (state.charges, state.masses) if c is not None), np.ones(state.positions.shape[::2]))
    tensor = lambda array: torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32)  # noqa: E731
    pos, vel = tensor(state.positions[:, frame]), tensor(state.velocities[:, frame])
    coupling = None if state.couplings is None else tensor(state.couplings)
    return particle_sample(pos, vel, tensor(charges), complete_graph(pos.shape[1]), coupling)
