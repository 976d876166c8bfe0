"""Structures with their neighbours as samples: batches are one large graph, as PyTorch Geometric builds them.

Positions and labels are in float64; the task casts what the model sees. A label that a structure lacks is zero with
weight zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.data.frames import Frame
from equidyn.ops.neighbors import neighbor_list


class StructureDataset(Dataset):
    """Structures with their neighbours; a list of indices gives one batch.

    Args:
        frames: the structures, in memory or read as needed.
        cutoff: largest distance of neighbours, Å.
        cache: keep neighbours once they are found; otherwise find them again each time.
        names: config types, in the order in which `config` counts them.

    `at_once` structures are evaluated together.
    """

    at_once = 250

    def __init__(
        self, frames: Sequence[Frame], cutoff: float, *, cache: bool = True, names: Sequence[str] = ()
    ) -> None:
        self.frames, self.cutoff, self.cache = frames, cutoff, cache
        self.config_types = list(names)
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Data:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Data:
        return collate([self.tensors(int(index)) for index in indices])

    def tensors(self, index: int) -> dict[str, Tensor]:
        """One structure as the fields of a sample."""
        if index in self._kept:
            return self._kept[index]
        frame = self.frames[index]
        names = self.config_types
        found = frame_tensors(frame, self.cutoff, names.index(frame.config_type) if frame.config_type in names else 0)
        if self.cache:
            self._kept[index] = found
        return found

    def sizes(self, kind: Literal["atoms", "edges"]) -> list[int]:
        """Atoms or edges of each structure."""
        if kind == "atoms":
            known = getattr(self.frames, "atom_counts", None)
            return [len(frame) for frame in self.frames] if known is None else known.tolist()
        return [self.tensors(index)["edge_index"].shape[1] for index in range(len(self))]


def frame_tensors(frame: Frame, cutoff: float, config: int = 0) -> dict[str, Tensor]:
    """A structure, its neighbours and its labels as the fields of a sample, in float64.

    Raises:
        InputError: its neighbours cannot be found.
    """
    pos, cell = torch.from_numpy(frame.pos), torch.from_numpy(frame.cell)
    pbc = torch.from_numpy(frame.pbc)
    try:
        edge_index, edge_shift = neighbor_list(pos, cutoff, cell, pbc)
    except InputError as error:
        raise InputError(str(error), where=frame.where) from None
    periodic = bool(frame.pbc.any())
    solid = periodic and bool(np.linalg.det(frame.cell))  # stress needs a volume
    forces, stress = frame.forces, frame.stress if solid else None
    one = lambda value: torch.tensor([value], dtype=torch.float64)  # noqa: E731
    found = {
        "pos": pos,
        "z": torch.from_numpy(frame.numbers),
        "edge_index": edge_index,
        "edge_shift": edge_shift,
        "cell": (cell if periodic else torch.zeros_like(cell))[None],
        "pbc": pbc[None],
        "config": torch.tensor([config]),
        "energy": one(frame.energy or 0.0),
        "forces": torch.zeros_like(pos) if forces is None else torch.from_numpy(forces),
        "stress": (torch.zeros_like(cell) if stress is None else torch.from_numpy(stress))[None],
        "energy_weight": one(frame.weight("energy")),
        "forces_weight": one(frame.weight("forces")),
        "stress_weight": one(frame.weight("stress") if solid else 0.0),
    }
    return found | {name: torch.tensor([value]) for name, value in frame.fields.items()}


def collate(parts: Sequence[Mapping[str, Tensor]]) -> Data:
    """One large graph of several structures; a field that only some of them have is left out."""
    sizes = torch.tensor([len(part["pos"]) for part in parts])
    begins = sizes.cumsum(0) - sizes
    shared = set.intersection(*(set(part) for part in parts)) - {"edge_index"}
    fields = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name in shared}
    fields["edge_index"] = torch.cat(
        [part["edge_index"] + begin for part, begin in zip(parts, begins, strict=True)], dim=1
    )
    fields["batch"] = torch.repeat_interleave(torch.arange(len(parts)), sizes)
    return Data(**fields, num_nodes=int(sizes.sum()))
