"""Graphs that each have one property: what regression and classification learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from equidyn.data.structure_dataset import collate


class GraphDataset(Dataset):
    """Graphs of different sizes; a list of indices gives one batch, as one large graph.

    A data family says in `made` what the fields of a sample are, `y [1]` among them, the property or the number of the
    class, and in `targets` all `y` without making the samples.

    Args:
        cache: keep samples once they are made.

    `at_once` graphs are evaluated together.
    """

    at_once = 100
    name, unit = "", ""  # of the property
    classes: tuple[str, ...] = ()  # by number, where `y` is one

    def __init__(self, *, cache: bool = True) -> None:
        self.cache = cache
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def made(self, index: int) -> dict[str, Tensor]:
        """The fields of one sample."""
        raise NotImplementedError

    def targets(self) -> Tensor:
        """The property or class of every graph [S]."""
        raise NotImplementedError

    def atoms(self) -> Sequence[Any]:
        """Atomic numbers of every graph, where nodes are atoms; else nothing."""
        return ()

    def tensors(self, index: int) -> dict[str, Tensor]:
        """The fields of one sample, made once."""
        if index in self._kept:
            return self._kept[index]
        found = self.made(index)
        if self.cache:
            self._kept[index] = found
        return found

    def __getitem__(self, index: int) -> Data:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index % len(self)])

    def __getitems__(self, indices: Sequence[int]) -> Data:
        return collate([self.tensors(int(index)) for index in indices])

    def sizes(self, kind: Literal["atoms", "edges"]) -> list[int]:
        """Nodes or edges of each graph."""
        parts = (self.tensors(index) for index in range(len(self)))
        return [len(part["pos"]) if kind == "atoms" else part["edge_index"].shape[1] for part in parts]
