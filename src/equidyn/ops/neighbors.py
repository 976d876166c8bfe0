"""Neighbour lists: the directed edges between all points, and their periodic images, within a cutoff.

The search is vesin's: linear in the number of points, any cell (skewed, or smaller than the cutoff), any directions of
repetition. Edges come sorted by their receiver.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import vesin
from torch import Tensor
from torch_geometric.data import Batch, Data

from equidyn.core.errors import InputError


def neighbor_list(
    pos: Tensor, cutoff: float, cell: Tensor | None = None, pbc: Tensor | bool = False
) -> tuple[Tensor, Tensor]:
    """All ordered pairs (j, i), j an image of a point, with |r_ij| < cutoff; a point may neighbour its own images.

    Args:
        pos: [N, 3].
        cutoff: largest distance, in the unit of `pos`.
        cell: [3, 3] or [1, 3, 3], lattice vectors in rows. Those along which nothing repeats may be zero.
        pbc: [3] or [1, 3], whether the box repeats along each lattice vector; or one bool for all.

    Returns:
        edge_index [2, E] (row 0 the senders j, row 1 the receivers i, in order), edge_shift [E, 3], so that
        r_ij = pos[j] + edge_shift - pos[i]; on the device of `pos`, the shifts in its dtype and, where the cell carries
        a gradient, as a function of it.

    Raises:
        InputError: the cutoff is not positive, positions are not finite [N, 3], or the box repeats along lattice
            vectors that span no volume.
    """
    if not 0 < cutoff < float("inf"):
        raise InputError("cutoff", where="neighbor_list", expected="a positive distance", got=cutoff)
    if pos.dim() != 2 or pos.shape[1] != 3 or not bool(torch.isfinite(pos).all()):
        raise InputError("positions", where="neighbor_list", expected="finite [N, 3]", got=_describe(pos))
    periodic = torch.as_tensor(pbc).detach().cpu().flatten().expand(3).tolist()
    lattice = pos.new_zeros(3, 3) if cell is None else cell.reshape(3, 3).to(pos)
    box = _complete(lattice.detach().double().cpu().numpy(), periodic)
    points = pos.detach().double().cpu().numpy()
    if not len(points):
        return torch.zeros(2, 0, dtype=torch.long, device=pos.device), pos.new_zeros(0, 3)
    search = vesin.NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)
    i, j, images, distance = search.compute(points, box, periodic, "ijSd")
    keep = distance < cutoff
    edge_index = torch.from_numpy(np.stack([j[keep], i[keep]]).astype(np.int64)).to(pos.device)
    return edge_index, torch.from_numpy(images[keep]).to(pos) @ lattice


class Neighbors:
    """A transform (as of `torch_geometric.transforms`) that gives a sample the edges within a cutoff.

    Args:
        cutoff: largest distance, in the unit of `pos`.
    """

    def __init__(self, cutoff: float) -> None:
        self.cutoff = cutoff

    def __call__(self, sample: Data) -> Data:
        """A new sample with `edge_index`, and `edge_shift` where it has a `cell`; the given one is left as it is.

        Raises:
            InputError: see `neighbor_list`; or a batch, whose graphs each have a list of their own.
        """
        if isinstance(sample, Batch):
            raise InputError("a batch of graphs", where="Neighbors", expected="one graph at a time", got="a Batch")
        cell, pbc = sample.get("cell"), sample.get("pbc")
        repeats = cell is not None if pbc is None else pbc
        result = copy.copy(sample)
        result.edge_index, shift = neighbor_list(sample.pos, self.cutoff, cell, repeats)
        if cell is not None:
            result.edge_shift = shift
        return result

    def __repr__(self) -> str:
        return f"Neighbors(cutoff={self.cutoff})"


def _complete(cell: np.ndarray, periodic: list[bool]) -> np.ndarray:
    """The cell with vectors along which nothing repeats replaced by unit vectors across the others."""
    kept = cell[periodic]
    if len(kept) and np.linalg.svd(kept, compute_uv=False)[-1] <= 1e-12 * max(np.abs(kept).max(), 1e-300):
        got = np.array2string(cell, precision=3).replace("\n", "")
        raise InputError("a periodic box without volume", where="cell", expected="independent lattice vectors", got=got)
    if all(periodic):
        return cell
    # Right singular vectors beyond the rank span what the repeating vectors leave free.
    free = np.linalg.svd(kept, full_matrices=True)[2][len(kept) :] if len(kept) else np.eye(3)
    completed = cell.copy()
    completed[[not p for p in periodic]] = free
    return completed


def _describe(pos: Tensor) -> str:
    return f"shape {list(pos.shape)}" if pos.dim() != 2 or pos.shape[1] != 3 else "NaN or infinity"
