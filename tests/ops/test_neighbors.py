"""Neighbour lists against all images, one by one."""

from itertools import product

import pytest
import torch
from torch_geometric.data import Batch, Data

from equidyn.core.errors import InputError
from equidyn.ops.neighbors import Neighbors, neighbor_list


def by_hand(pos, cutoff, cell, pbc):
    """Distances of all pairs (j, i), sorted: through every image within reach."""
    found = []
    images = product(*(range(-6, 7) if repeats else (0,) for repeats in pbc))
    for image in images:
        shift = torch.tensor(image, dtype=torch.float64) @ cell
        r = pos[:, None] + shift - pos[None]
        for j, i in (r.norm(dim=-1) < cutoff).nonzero().tolist():
            if i != j or any(image):
                found.append((j, i, *(round(float(x), 8) for x in r[j, i])))
    return sorted(found)


def as_found(pos, edge_index, shift):
    r = pos[edge_index[0]] + shift - pos[edge_index[1]]
    rows = zip(*edge_index.tolist(), r.tolist(), strict=True)
    return sorted((j, i, *(round(x, 8) for x in v)) for j, i, v in rows)


@pytest.mark.parametrize("pbc", list(product([True, False], repeat=3)))
@pytest.mark.parametrize(("size", "atoms", "cutoff"), [(5.0, 12, 3.0), (1.6, 2, 3.5), (2.0, 1, 3.0)])
def test_every_pair_once(pbc, size, atoms, cutoff):
    generator = torch.Generator().manual_seed(atoms)
    skew = 0.4 * torch.rand(3, 3, generator=generator, dtype=torch.float64)
    cell = size * (torch.eye(3, dtype=torch.float64) + skew)
    pos = 1.3 * size * torch.randn(atoms, 3, generator=generator, dtype=torch.float64)  # also outside the cell
    edge_index, shift = neighbor_list(pos, cutoff, cell[None], torch.tensor([pbc]))
    assert as_found(pos, edge_index, shift) == by_hand(pos, cutoff, cell, pbc)
    assert (edge_index[1].diff() >= 0).all()


def test_molecules_and_slabs_with_an_incomplete_cell():
    pos = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edge_index, shift = neighbor_list(pos, 1.5)
    assert as_found(pos, edge_index, shift) == by_hand(pos, 1.5, torch.zeros(3, 3, dtype=torch.float64), [False] * 3)
    assert not shift.any()
    slab = torch.tensor([[2.0, 0, 0], [0.5, 2.0, 0], [0, 0, 0]], dtype=torch.float64)
    flat = (True, True, False)
    found = neighbor_list(pos, 2.5, slab, torch.tensor(flat))
    assert as_found(pos, *found) == by_hand(pos, 2.5, slab, flat)


def test_the_transform_leaves_its_sample_as_it_is():
    sample = Data(pos=torch.randn(5, 3), z=torch.ones(5), cell=3 * torch.eye(3)[None])
    with_edges = Neighbors(2.0)(sample)
    assert "edge_index" not in sample
    assert with_edges.edge_shift.shape == (with_edges.num_edges, 3)
    assert with_edges.edge_shift.dtype == torch.float32
    assert "edge_shift" not in Neighbors(2.0)(Data(pos=sample.pos))
    assert repr(Neighbors(2.0)) == "Neighbors(cutoff=2.0)"


def test_no_neighbours():
    for count in (0, 1):
        edge_index, shift = neighbor_list(torch.zeros(count, 3), 2.0)
        assert edge_index.shape == (2, 0)
        assert shift.shape == (0, 3)


def test_wrong_input_is_named():
    pos = torch.randn(4, 3)
    for cutoff in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="cutoff"):
            neighbor_list(pos, cutoff)
    for bad in (torch.zeros(4, 2), torch.full((4, 3), float("nan"))):
        with pytest.raises(InputError, match="positions"):
            neighbor_list(bad, 1.0)
    flat = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]])
    for cell in (None, flat):
        with pytest.raises(InputError, match="without volume"):
            neighbor_list(pos, 1.0, cell, True)
    with pytest.raises(InputError, match="Batch"):
        Neighbors(1.0)(Batch.from_data_list([Data(pos=pos)]))
