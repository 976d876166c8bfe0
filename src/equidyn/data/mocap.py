"""Motion capture: from a skeleton at one frame to its joints at later frames.

Reads what `equidyn.data.recordings` reads: packed recordings (`.npz`), CMU's `.asf` and `.amc`, `.bvh`, or a folder of
these. Time counts in frames and lengths are in the unit of the recording; a velocity is the way to the next frame.

Nodes carry their speed and their height; edges join bones (kind 1) and joints with a common neighbour (kind 2) and
carry the kind and the squared distance, as in the EGNO paper. There the height is a coordinate, divided by its maximum
over the batch. Here it is what it means, the height along gravity over the floor at the origin, divided by a fixed
number, and gravity is part of the sample: turned with the rest of the world it changes nothing, and a prediction does
not depend on its batch.
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
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data.recordings import PARTS, Recordings, Split, read_recordings
from equidyn.data.trajectories import is_trajectories, read_trajectories


def skeleton_graph(bones: Tensor, num_joints: int) -> tuple[Tensor, Tensor]:
    """Ordered pairs of joints that share a bone or a neighbour, sorted by receiver.

    Args:
        bones: [K, 2] child and parent.
        num_joints: N.

    Returns:
        edge_index [2, E] (row 0 the senders), and the kind [E] of each: 1 a bone, 2 a common neighbour.
    """
    bone = torch.zeros(num_joints, num_joints, dtype=torch.bool)
    bone[bones[:, 0], bones[:, 1]] = bone[bones[:, 1], bones[:, 0]] = True
    near = (bone.double() @ bone.double() > 0) & ~bone
    near.fill_diagonal_(False)
    receive, send = (bone | near).nonzero(as_tuple=True)
    return torch.stack([send, receive]), torch.where(bone[receive, send], 1, 2)


def skeleton_sample(pos: Tensor, vel: Tensor, bones: Tensor, gravity: Tensor, height_unit: float = 30.0) -> Data:
    """A batch of states of one skeleton.

    Args:
        pos, vel: [B, N, 3].
        bones: [K, 2] child and parent.
        gravity: [3] direction in which things fall, of length 1.
        height_unit: heights over the origin are divided by it.

    Returns:
        Data with `pos`, `vel`, `x [B, N, 2]` (speed, height), `edge_index [2, E]`, `edge_attr [B, E, 2]` (kind, squared
        distance), `bone_index [2, K]`, `gravity [1, 3]`, `height_unit [1]`.
    """
    edge_index, kind = skeleton_graph(bones, pos.shape[1])
    send, receive = edge_index
    squared = (pos[:, receive] - pos[:, send]).square().sum(-1)
    edge_attr = torch.stack([kind.to(pos).expand_as(squared), squared], dim=-1)
    x = torch.stack([vel.norm(dim=-1), -(pos @ gravity) / height_unit], dim=-1)
    given = {"pos": pos, "vel": vel, "x": x, "edge_index": edge_index, "edge_attr": edge_attr}
    unit = torch.tensor([height_unit], dtype=pos.dtype)
    return Data(**given, bone_index=bones.T.contiguous(), gravity=gravity[None], height_unit=unit)


class SkeletonDataset(Dataset):
    """State-to-trajectory samples in memory; a list of indices gives one batch on a shared graph.

    Args:
        states: all samples as one batch, as `skeleton_sample` makes them.
        times: [P] in frames, counted from the initial state.
        trajectory, trajectory_vel: [S, N, P, 3] at the times.

    `at_once` samples are evaluated together.
    """

    at_once = 250

    def __init__(self, states: Data, times: Tensor, trajectory: Tensor, trajectory_vel: Tensor) -> None:
        self.states, self.times, self.trajectory, self.trajectory_vel = states, times, trajectory, trajectory_vel

    def __len__(self) -> int:
        return len(self.trajectory)

    def __getitems__(self, indices: Sequence[int]) -> Data:
        which, all_of = torch.as_tensor(indices), self.states
        shared = {name: all_of[name] for name in ("edge_index", "bone_index", "gravity", "height_unit")}
        own = {name: all_of[name][which] for name in ("pos", "vel", "x", "edge_attr")}
        targets = {"trajectory": self.trajectory[which], "trajectory_vel": self.trajectory_vel[which]}
        return Data(**own, **shared, times=self.times[None], **targets)

    def __getitem__(self, index: int) -> Data:
        return self.__getitems__([index])


@dataclass
class Mocap:
    """The motion capture data of an experiment.

    A file that says how to split is split that way: the first start frames of each trial are used, as many of each
    trial of a part as make up the number of samples. Else the last fifth of the trials (at least one) is the test part,
    as many before are the validation part, and samples start at evenly spaced frames.

    Attributes:
        path: packed recordings (.npz), an .amc with its .asf, a .bvh, or a folder of .amc or .bvh.
        frames: frames to predict, counted from the input; the last one gives F-MSE, all of them A-MSE.
        train_frames: frames the training sees; null for the same.
        train, val, test: number of samples of each part.
        up: direction against gravity.
        height_unit: heights are divided by it: a fixed number, about the height of the skeleton.

    Raises:
        InputError: (from `part`) the recordings are missing or broken, or hold fewer frames or samples.
    """

    path: str
    frames: tuple[int, ...] = (26, 27, 28, 29, 30)
    train_frames: tuple[int, ...] | None = None
    train: int = 200
    val: int = 240
    test: int = 240
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)
    height_unit: float = 30.0

    def part(self, name: str) -> SkeletonDataset:
        """The samples of one part: "train", "val" or "test"."""
        frames = self.train_frames if name == "train" and self.train_frames else self.frames
        if not frames or any(b <= a for a, b in pairwise((0, *frames))):
            expected = "one or more, 1 or later, rising"
            raise InputError("frames to predict", where=self.path, expected=expected, got=list(frames))
        recordings = read_recordings(self.path)
        trials, starts = self._windows(name, recordings, max(*frames, *self.frames))
        # The state, the targets, and one frame after each of them for its velocity.
        steps = np.array([0, *frames])
        at = lambda shift: np.stack(  # noqa: E731
            [recordings.trials[k][s + steps + shift] for k, s in zip(trials, starts, strict=True)]
        ).astype(np.float64)
        positions = at(0)
        velocities = at(1) - positions
        tensor = lambda array: torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32)  # noqa: E731
        states = self._sample(tensor(positions[:, 0]), tensor(velocities[:, 0]), recordings.bones)
        later = (tensor(array[:, 1:].transpose(0, 2, 1, 3)) for array in (positions, velocities))
        return SkeletonDataset(states, torch.tensor(frames, dtype=torch.float64), *later)

    def _windows(self, name: str, recordings: Recordings, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Trial and start frame of each sample of a part."""
        for part, count in zip(PARTS, (self.train, self.val, self.test), strict=True):
            if count < 1:
                raise InputError(f"number of {part} samples", where=self.path, expected="at least 1", got=count)
        count = {"train": self.train, "val": self.val, "test": self.test}[name]
        lengths = [len(trial) for trial in recordings.trials]
        trials, starts = recordings.split.get(name) or self._own_split(name, lengths, last)
        share, more = divmod(count, len(trials))
        if share + (more > 0) > starts.shape[1]:
            raise InputError(f"number of {name} samples", where=self.path, expected=f"1 to {starts.size}", got=count)
        taken = [share + (k < more) for k in range(len(trials))]
        if not recordings.split:
            rows = [np.linspace(0, lengths[k] - 2 - last, n).round() for k, n in zip(trials, taken, strict=True)]
        else:
            rows = [row[:n] for row, n in zip(starts, taken, strict=True)]
        which, start = np.repeat(trials, taken), np.concatenate(rows).astype(np.int64)
        late = start + last + 1 >= np.array(lengths)[which]
        if late.any():
            trial = which[late][0]
            expected = f"at most {lengths[trial] - 2 - start[late][0]} for trial {trial} from frame {start[late][0]}"
            raise InputError("frame outside the trial", where=self.path, expected=expected, got=last)
        return which, start

    def _own_split(self, name: str, lengths: Sequence[int], last: int) -> Split:
        """Trials in order: training, validation, test; every frame with all its targets inside is a start."""
        usable = [k for k, length in enumerate(lengths) if length >= last + 2]
        if len(usable) < 3:
            expected = f"3 trials of at least {last + 2} frames, or a split in the file"
            raise InputError("trials", where=self.path, expected=expected, got=f"{len(usable)} of {len(lengths)}")
        fifth = max(len(usable) // 5, 1)
        cut = {"train": slice(-2 * fifth), "val": slice(-2 * fifth, -fifth), "test": slice(-fifth, None)}[name]
        trials = np.array(usable[cut])
        most = min(lengths[k] for k in trials) - 1 - last
        return Split(trials, np.broadcast_to(np.arange(most), (len(trials), most)))

    def _sample(self, pos: Tensor, vel: Tensor, bones: Any) -> Data:
        up = torch.tensor(self.up, dtype=torch.float64)
        if up.shape != (3,) or not torch.isfinite(up).all() or not up.any():
            raise InputError("direction", where="data.up", expected="three numbers, not all 0", got=list(self.up))
        if not 0 < self.height_unit < float("inf"):
            raise InputError("unit", where="data.height_unit", expected="more than 0", got=self.height_unit)
        down = (-up / up.norm()).float()
        return skeleton_sample(pos, vel, torch.as_tensor(bones), down, self.height_unit)

    def every_frame(self) -> SkeletonDataset | None:
        """Test samples with all frames between the first and the last predicted one; None if there are no others."""
        between = tuple(range(self.frames[0], self.frames[-1] + 1))
        return None if between == self.frames else replace(self, frames=between).part("test")

    def after(self, frames: Sequence[int]) -> list[float]:
        """Times of frames: frames count from the input."""
        return [float(frame) for frame in frames]

    @staticmethod
    def read(path: str | Path) -> Trajectories:
        """States to predict from: recordings, trials cut to the shortest one, or a file of `equidyn predict`."""
        if is_trajectories(path):
            return read_trajectories(path)
        recordings = read_recordings(path)
        frames = min(map(len, recordings.trials))
        positions = np.stack([np.asarray(trial[:frames], dtype=np.float64) for trial in recordings.trials])
        meta = {"kind": "mocap", "time": "frames", "bones": np.asarray(recordings.bones).tolist()}
        return Trajectories(positions[:, :-1], np.diff(positions, axis=1), np.arange(frames - 1.0), meta=meta)

    def sample(self, states: Trajectories, frame: int = 0) -> Data:
        """One frame of some trajectories, as `read` gives them, as the input of a trained model.

        Raises:
            InputError: no such frame, or nothing says which bones join the joints.
        """
        count = states.positions.shape[1]
        if not -count <= frame < count:
            raise InputError("frame outside the trajectory", expected=f"0 to {count - 1}", got=frame)
        try:
            bones = np.array(states.meta["bones"], dtype=np.int64).reshape(-1, 2)
        except (KeyError, ValueError, TypeError):
            raise InputError(
                "trajectories without a skeleton", where="meta", expected="bones [[child, parent]]"
            ) from None
        Recordings([states.positions[0, [0, 0]]], bones).check("meta")
        pos, vel = (torch.as_tensor(a[:, frame], dtype=torch.float32) for a in (states.positions, states.velocities))
        return self._sample(pos, vel, bones)
