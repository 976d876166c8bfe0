"""A random sample with the fields that a model needs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from equidyn.core.errors import InputError, unknown_name

_DEFAULT_FIELDS = ("pos", "vel", "x", "edge_index", "edge_attr", "times")


def random_sample(
    nodes: int = 6,
    edges: Literal["complete"] | float = "complete",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    fields: Collection[str] = _DEFAULT_FIELDS,
    *,
    time_points: int = 5,
    node_features: int = 2,
    edge_features: int = 2,
    dimensions: int = 3,
) -> Data:
    """One random graph for tests, off-centre, on the CPU.

    Args:
        nodes: number of nodes N.
        edges: "complete" (all ordered pairs), or a radius within which nodes are joined.
        dtype: of all floating fields.
        seed: fixes every number; no global generator is used.
        fields: fields to make, as `Entry.needs` lists them.
        time_points: P of `times` [1, P].
        node_features: F of `x` [N, F].
        edge_features: A of `edge_attr` [E, A].
        dimensions: D of `pos` and `vel` [N, D].

    Returns:
        A sample with exactly these fields, shapes as in `equidyn.core.fields`. With `edge_shift` each pair is joined
        through a random neighbouring image of the lattice in `cell`.

    Raises:
        InputError: fewer than one node, an unknown word for `edges`, or a field that is no input.
    """
    if nodes < 1:
        raise InputError("number of nodes", where="random_sample", expected="at least 1", got=nodes)
    if isinstance(edges, str) and edges != "complete":
        raise unknown_name("edges", edges, ("complete",), where="random_sample")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    pos = normal(nodes, dimensions) * nodes ** (1 / dimensions) + 0.5
    cell = (
        3
        * nodes ** (1 / dimensions)
        * (torch.eye(dimensions, dtype=torch.float64) + 0.1 * normal(dimensions, dimensions))
    )
    images = integers(0, 2, nodes, nodes, dimensions).double()
    # The way from j to i goes back through the image that the way from i to j came from.
    shifts = (images - images.transpose(0, 1)) @ cell if "edge_shift" in fields else torch.zeros_like(images)
    joined = ~torch.eye(nodes, dtype=torch.bool)
    if not isinstance(edges, str):
        joined &= (pos[None] + shifts.transpose(0, 1) - pos[:, None]).norm(dim=-1) < edges
    target, source = joined.nonzero(as_tuple=True)

    make: dict[str, Callable[[], Tensor]] = {
        "pos": lambda: pos,
        "vel": lambda: 0.5 * normal(nodes, dimensions),
        "x": lambda: normal(nodes, node_features),
        "z": lambda: integers(1, 10, nodes),
        "charge": lambda: 2.0 * integers(0, 2, nodes).double() - 1.0,
        "mass": lambda: 1.0 + normal(nodes).abs(),
        "edge_index": lambda: torch.stack([source, target]),
        "edge_attr": lambda: normal(len(source), edge_features),
        "edge_shift": lambda: shifts[source, target],
        "cell": lambda: cell[None],
        "pbc": lambda: torch.ones(1, dimensions, dtype=torch.bool),
        "gravity": lambda: torch.nn.functional.normalize(normal(1, dimensions)),
        "bond_index": lambda: torch.stack([torch.arange(1, nodes), torch.arange(1, nodes) // 2]),
        "bone_index": lambda: torch.stack([torch.arange(1, nodes), torch.arange(1, nodes) // 2]),
        "batch": lambda: torch.zeros(nodes, dtype=torch.long),
        "times": lambda: torch.arange(1, time_points + 1, dtype=torch.float64)[None] / time_points,
    }
    sample = Data()
    for name in fields:
        if name not in make:
            raise unknown_name("input field", name, make, where="random_sample")
        value = make[name]()
        sample[name] = value.to(dtype) if value.is_floating_point() else value
    return sample
