"""Neighbour lists that last for some steps of a simulation."""

from __future__ import annotations

import torch
from torch import Tensor

from equidyn.core.errors import InputError
from equidyn.deploy.potential import Potential


class SkinNeighbors:
    """Neighbour lists that are made a little too large, so that they last for some steps.

    The list holds all pairs within cutoff + skin. As long as no atom has moved more than skin / 2 and the cell is the
    same, no pair outside it can have come within the cutoff; those beyond the cutoff are left out each time. What comes
    out has the same edges as a list made anew.

    Args:
        potential: whose cutoff holds.
        skin: Å; 0 makes a new list for each step.

    Raises:
        InputError: a negative skin.
    """

    def __init__(self, potential: Potential, skin: float = 1.0) -> None:
        if not 0 <= skin < float("inf"):
            raise InputError("skin", expected="a distance, at least 0", got=skin)
        self.potential, self.skin = potential, skin
        self.built = 0
        self._last: tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]] | None = None

    def __call__(self, pos: Tensor, cell: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
        """edge_index and edge_shift of pos [N, 3] in cell [3, 3], periodic along pbc [3]: see `neighbor_list`."""
        if self._last is None or not self._holds(self._last[0], pos, cell, pbc):
            edges = self.potential.edges(pos, cell, pbc, self.skin)
            self._last, self.built = ((pos.clone(), cell.clone(), pbc.clone()), edges), self.built + 1
        edge_index, shift = self._last[1]
        if not self.skin:
            return edge_index, shift
        distance = torch.linalg.vector_norm(pos[edge_index[0]] + shift - pos[edge_index[1]], dim=1)
        within = torch.nonzero(distance < self.potential.cutoff)[:, 0]
        return edge_index[:, within], shift[within]

    def _holds(self, last: tuple[Tensor, ...], pos: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        if last[0].shape != pos.shape or not (torch.equal(last[1], cell) and torch.equal(last[2], pbc)):
            return False
        return bool((pos - last[0]).norm(dim=1).max() <= self.skin / 2)  # false for NaN
