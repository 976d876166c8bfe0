"""QM9: properties of small molecules, as torch-geometric has them (it fetches the data set if it is not there).

The split is that of Cormorant, EGNN and SEGNN: a permutation of all molecules by numpy's seed 0, the first 100,000 of
130,831 to train on, a tenth to test on, the rest between. Units are torch-geometric's: eV, Å, and their like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data
from torch_geometric.datasets import QM9

from equidyn.core.errors import InputError, unknown_name

_ENERGIES = ("U0", "U", "H", "G")
TARGETS = (
    "mu",
    "alpha",
    "homo",
    "lumo",
    "gap",
    "r2",
    "zpve",
    *_ENERGIES,
    "Cv",
    *(f"{e}_atom" for e in _ENERGIES),
    *"ABC",
)
"""Names of the properties, in torch-geometric's order."""

ELEMENTS = (1, 6, 7, 8, 9)
Part = Literal["train", "val", "test"]


class Molecules(Dataset):
    """One part of QM9 as samples: `pos`, `z`, `x [N, 5]` (which element), `edge_index` within a radius, `y [1]`."""

    def __init__(self, source: QM9, index: np.ndarray, target: int, radius: float) -> None:
        self.source, self.index, self.target, self.radius = source, index, target, radius

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Data:
        molecule = self.source[int(self.index[number])]
        x = (molecule.z[:, None] == torch.tensor(ELEMENTS)).to(molecule.pos.dtype)
        near = torch.cdist(molecule.pos, molecule.pos).fill_diagonal_(torch.inf) < self.radius
        receive, send = near.nonzero(as_tuple=True)
        edge_index, y = torch.stack([send, receive]), molecule.y[0, self.target].view(1)
        return Data(pos=molecule.pos, z=molecule.z, x=x, edge_index=edge_index, y=y)

    def values(self) -> Tensor:
        """The property of all molecules of the part [S]."""
        return self.source.y[torch.as_tensor(self.index), self.target]


@dataclass
class Properties:
    """One property of QM9.

    Attributes:
        path: folder of torch-geometric's QM9.
        target: one of `TARGETS`.
        radius: atoms nearer than this are joined, in Å.

    Raises:
        InputError: no such property, a radius that joins nothing; (from `part`) no such part, an empty one.
    """

    path: str
    target: str = "alpha"
    radius: float = 2.0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise unknown_name("property of QM9", self.target, TARGETS)
        if not self.radius > 0:
            raise InputError("radius of the graph", where="radius", expected="more than 0", got=self.radius)
        self._source: QM9 | None = None

    def part(self, name: Part) -> Molecules:
        """The molecules of a part."""
        self._source = self._source or QM9(self.path)
        order = np.random.RandomState(0).permutation(len(self._source))
        train, test = len(order) * 100_000 // 130_831, len(order) // 10
        parts = {"train": order[:train], "val": order[train : len(order) - test], "test": order[len(order) - test :]}
        if name not in parts:
            raise unknown_name("part of the data", name, parts)
        if not len(parts[name]):
            raise InputError(f"molecules of part {name}", where=self.path, expected="at least 1", got=0)
        return Molecules(self._source, parts[name], TARGETS.index(self.target), self.radius)

    def scale(self) -> tuple[float, float]:
        """Mean and mean absolute deviation of the property over the training molecules."""
        values = self.part("train").values().double()
        return float(values.mean()), float((values - values.mean()).abs().mean())
