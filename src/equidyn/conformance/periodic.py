"""Checks for models of periodic boxes: what stands for the same infinite arrangement of nodes gives the same answer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch_geometric.data import Data

from equidyn.core.errors import InputError

from .actions import apply
from .probe import Model, Outputs, Probe, evaluating, make_probe
from .results import Check, Report, measured, skipped


def check_periodic(model: Model, sample: Data, *, tolerance: float | None = None, seed: int = 0) -> Report:
    """A periodic box has no preferred origin, no preferred image of a node and no preferred size.

    `lattice_translation` moves all nodes by lattice vectors, `wrapping` each node by lattice vectors of its own (with
    the image offsets of its edges), `supercell` doubles the box along each of its vectors in turn; of the last, outputs
    of nodes are compared and those of graphs are not.

    Args:
        model: any callable `model(sample) -> dict[str, Tensor]`.
        sample: one graph with `pos`, `edge_index`, `edge_shift` and `cell`, periodic along all lattice vectors.
        tolerance: largest relative error; by dtype if not given.
        seed: fixes all random numbers.

    Raises:
        InputError: a field is missing, or the cell has no volume.
    """
    missing = [name for name in ("pos", "edge_index", "edge_shift", "cell") if name not in sample]
    if missing:
        raise InputError("a sample without a box", where="check_periodic", expected="periodic", got=f"no {missing[0]}")
    cell = sample.cell.reshape(3, 3).double()
    if not bool(cell.det().abs() > 1e-12 * cell.abs().max() ** 3):
        raise InputError("a box without volume", where="field cell", expected="independent lattice vectors")
    with evaluating(model):
        probe = make_probe(model, sample, {}, tolerance, seed)
        images = torch.randint(-2, 3, (probe.nodes, 3), generator=probe.generator).double()
        checks = [
            _moved("lattice_translation", probe, images[:1].expand(probe.nodes, 3) @ cell),
            _moved("wrapping", probe, images @ cell),
            _supercells(probe, cell),
        ]
    return Report(tuple(checks))


def _moved(name: str, probe: Probe, by: Tensor) -> Check:
    """The same arrangement with node k named by its image `by[k]` away."""
    sample, nodes = probe.sample, probe.nodes
    send, receive = sample.edge_index

    def act(key: str, value: Tensor) -> Tensor:
        if key == "edge_shift":
            return value + (by[receive] - by[send]).to(value)
        rows = probe.rows(key, value)
        if rows is None or rows.of != "nodes" or probe.kind(key) != "position":
            return value
        return value + by.to(value).view(nodes, *[1] * (value.dim() - 2), 3)

    moved = apply(act, sample)
    expected: Outputs = {key: act(key, value) for key, value in probe.base.items()}
    error, where = probe.distance(expected, probe.run(moved))
    return measured(name, error, probe.tolerance, where)


def _supercells(probe: Probe, cell: Tensor) -> Check:
    compared = [name for name, value in probe.base.items() if (r := probe.rows(name, value)) and r.of == "nodes"]
    if not compared:
        return skipped("supercell", "no output belongs to nodes")
    worst = (0.0, "")
    for axis in range(3):
        expected: Outputs = {}
        for name in compared:
            value = probe.base[name]
            step = cell[axis].to(value) if probe.kind(name) == "position" else 0
            expected[name] = torch.cat([value, value + step])
        doubled = probe.run(_doubled(probe, cell, axis))
        two = replace(probe, base={k: torch.cat([v, v]) for k, v in probe.base.items() if k in compared})
        worst = max(worst, two.distance(expected, doubled))
    return measured("supercell", worst[0], probe.tolerance, worst[1])


def _doubled(probe: Probe, cell: Tensor, axis: int) -> Data:
    """The box twice along one lattice vector; an edge that leaves one half ends in the other, or in its image."""
    sample, nodes = probe.sample, probe.nodes
    steps = torch.round(sample.edge_shift.double() @ torch.linalg.inv(cell))

    def act(name: str, value: Tensor) -> Tensor:
        if name == "cell":
            factors = torch.ones(3, 1).index_fill(0, torch.tensor(axis), 2.0)
            return value * factors.to(value)
        rows = probe.rows(name, value)
        if rows is None or name in ("edge_index", "edge_shift"):
            return value
        other = value + cell[axis].to(value) if probe.kind(name) == "position" else value
        return torch.cat([value, other], dim=rows.axis)

    result = apply(act, sample)
    send, receive = sample.edge_index
    edges, shifts = [], []
    for half in (0, 1):
        reached = steps[:, axis] + half
        images = steps.clone()
        images[:, axis] = torch.div(reached, 2, rounding_mode="floor") * 2
        edges.append(torch.stack([send + nodes * (reached % 2).long(), receive + nodes * half]))
        shifts.append((images @ cell).to(sample.edge_shift))
    result.edge_index, result.edge_shift = torch.cat(edges, 1), torch.cat(shifts)
    if "num_nodes" in sample:
        result.num_nodes = 2 * nodes
    return result
