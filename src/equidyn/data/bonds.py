"""Molecular graphs from bonds: pairs of atoms a few bonds apart as edges of their own types.

Shi et al., "Learning Gradient Fields for Molecular Conformation Generation", ICML 2021, arXiv 2105.03902: bonds fix
lengths, pairs two bonds apart angles, pairs three bonds apart torsions.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from equidyn.core.errors import InputError

BOND_TYPES = 22
"""Number of bond types of RDKit; a pair s bonds apart has type BOND_TYPES + s - 1."""


def extend_bonds(
    bond_index: Tensor, bond_type: Tensor, num_nodes: int, order: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Join all atoms that lie up to `order` bonds apart.

    Time and memory grow with the number of edges, not with the square of the number of atoms: a whole batch can be
    extended at once, but once per molecule is enough.

    Args:
        bond_index: [2, M], each bond in both directions.
        bond_type: [M] type of each bond, below `BOND_TYPES`.
        num_nodes: N.
        order: largest number of bonds on the shortest way.

    Returns:
        `edge_index [2, E]`, sorted by its first row, then its second; `edge_type [E]`; and the number of bonds
        between the ends [E].

    Raises:
        InputError: no positive order, or bonds that point outside the molecule.
    """
    if order < 1:
        raise InputError("order", where="extend_bonds", expected="at least 1", got=order)
    if bond_index.numel() and not 0 <= int(bond_index.min()) <= int(bond_index.max()) < num_nodes:
        got = f"{int(bond_index.min())} to {int(bond_index.max())}"
        raise InputError("bonds", where="bond_index", expected=f"atoms 0 to {num_nodes - 1}", got=got)
    row, col = bond_index.cpu().numpy().astype(np.int64)
    bonds, first = np.unique((row * num_nodes + col)[row != col], return_index=True)
    types = bond_type.cpu().numpy()[row != col][first]
    own = np.arange(num_nodes) * (num_nodes + 1)
    adjacency = csr_array((np.ones(len(bonds), bool), divmod(bonds, max(num_nodes, 1))), (num_nodes, num_nodes))
    pairs, kinds, hops, walk = [bonds], [types], [np.ones_like(bonds)], adjacency
    for step in range(2, order + 1):
        walk = walk @ adjacency
        start, end = walk.nonzero()
        new = np.setdiff1d(start.astype(np.int64) * num_nodes + end, np.concatenate([own, *pairs]))
        pairs.append(new)
        kinds.append(np.full_like(new, BOND_TYPES + step - 1))
        hops.append(np.full_like(new, step))
    place = np.argsort(np.concatenate(pairs))
    edges, kind, hop = (torch.from_numpy(np.concatenate(a)[place]).long() for a in (pairs, kinds, hops))
    edge_index = torch.stack([edges // max(num_nodes, 1), edges % max(num_nodes, 1)])
    return tuple(t.to(bond_index.device) for t in (edge_index, kind, hop))  # type: ignore[return-value]
