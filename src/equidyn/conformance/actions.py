"""What a symmetry does to a named tensor, the same for the fields of a sample and for a model's outputs.

An action is a function `act(name, tensor) -> tensor`. How a tensor is turned is told by its kind (`Field.transforms`),
how it is reordered by the axis that counts nodes or edges.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.core.fields import FIELDS, Transforms

Action = Callable[[str, Tensor], Tensor]
Kinds = Mapping[str, Transforms]
GEOMETRIC: tuple[Transforms, ...] = ("position", "vector", "tensor")


@dataclass(frozen=True)
class Rows:
    """What an axis of a tensor counts."""

    of: Literal["nodes", "edges"]
    axis: int


def kind_of(name: str, kinds: Kinds) -> Transforms:
    """How a field or output behaves: as `kinds` says, else as the field of that name does, else invariant."""
    if name in kinds:
        return kinds[name]
    return FIELDS[name].transforms if name in FIELDS else "invariant"


def rows_of(name: str, value: Tensor, nodes: int, edges: int) -> Rows | None:
    """The axis of a tensor that counts nodes or edges; None for what belongs to the whole graph."""
    if name == "edge_index":
        return Rows("edges", 1)
    first = value.shape[0] if value.dim() else None
    if name.startswith("edge_"):
        return Rows("edges", 0) if first == edges else None
    if name in FIELDS:
        axis = FIELDS[name].node_axis
        return None if axis is None else Rows("nodes", axis)
    return Rows("nodes", 0) if first == nodes else None


def tensors(sample: Data) -> dict[str, Tensor]:
    """The tensor fields of a sample, by name."""
    return {name: value for name, value in sample.to_dict().items() if isinstance(value, Tensor)}


def apply(act: Action, sample: Data) -> Data:
    """A new sample whose tensors went through the action; the given one is left as it is."""
    result = copy.copy(sample)
    for name, value in tensors(sample).items():
        result[name] = act(name, value.detach().clone())
    return result


def copied(sample: Data) -> Data:
    """A copy that shares no tensor with the sample."""
    return apply(lambda name, value: value, sample)


def rigid_motion(matrix: Tensor, shift: Tensor, kinds: Kinds) -> Action:
    """x -> R x + t for positions, R v for vectors, R T Rᵀ for tensors; the space axes are the last ones."""

    def act(name: str, value: Tensor) -> Tensor:
        kind = kind_of(name, kinds)
        if kind not in GEOMETRIC:
            return value
        if value.dim() == 0 or value.shape[-1] != len(matrix):
            raise InputError(f"a {kind} has the wrong last axis", where=name, expected=len(matrix), got=value.shape)
        turn = matrix.to(value)
        if kind == "tensor":
            return turn @ value @ turn.T
        turned = value @ turn.T
        return turned + shift.to(value) if kind == "position" else turned

    return act


def node_permutation(order: Tensor, edges: int) -> Action:
    """The old node order[k] becomes node k; edges keep their order and point to the new numbers."""
    new_number = torch.argsort(order)

    def act(name: str, value: Tensor) -> Tensor:
        if name.endswith("_index"):
            return new_number.to(value.device)[value]
        rows = rows_of(name, value, len(order), edges)
        if rows is None or rows.of != "nodes":
            return value
        return value.index_select(rows.axis, order.to(value.device))

    return act


def edge_permutation(order: Tensor, nodes: int) -> Action:
    """The old edge order[k] becomes edge k, with all fields of the edge."""

    def act(name: str, value: Tensor) -> Tensor:
        rows = rows_of(name, value, nodes, len(order))
        if rows is None or rows.of != "edges":
            return value
        return value.index_select(rows.axis, order.to(value.device))

    return act


def perturbation(kinds: Kinds, moved: tuple[Transforms, ...], generator: torch.Generator) -> Action:
    """Noise of a tenth of its own spread on every field of the given kinds."""

    def act(name: str, value: Tensor) -> Tensor:
        if kind_of(name, kinds) not in moved or not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        return value + 0.1 * spread(value) * noise

    return act


def companion(sample: Data, factor: float, nodes: int, kinds: Kinds) -> Data:
    """Another graph to share a batch with: the first nodes of the sample, elsewhere, with every number scaled.

    Both a factor above and one below 1 are needed to show a maximum or minimum taken over the whole batch.
    """
    total, edges = sample.num_nodes, sample.num_edges
    keep_edges = torch.ones(edges, dtype=torch.bool)
    if "edge_index" in sample:
        keep_edges = (sample.edge_index < nodes).all(dim=0)

    def act(name: str, value: Tensor) -> Tensor:
        rows = rows_of(name, value, total, edges)
        if value.is_floating_point():
            # A model may know times only up to those of the sample, so they never grow.
            value = value * (min(factor, 1 / factor) if name == "times" else factor)
            if kind_of(name, kinds) == "position":
                value = value + 3 * spread(value)
        if name in ("bone_index", "bond_index"):
            return value[:, (value < nodes).all(dim=0)]
        if rows is None:
            return value
        if rows.of == "nodes":
            return value.narrow(rows.axis, 0, nodes)
        return value[:, keep_edges] if rows.axis == 1 else value[keep_edges]

    result = apply(act, sample)
    if "num_nodes" in sample:
        result.num_nodes = nodes
    return result


def random_orthogonal(dimensions: int, determinant: int, generator: torch.Generator) -> Tensor:
    """A random rotation (determinant 1) or rotation with reflection (-1), [D, D] in float64."""
    gaussian = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    matrix, _ = torch.linalg.qr(gaussian)
    if torch.det(matrix) * determinant < 0:
        matrix[:, 0] *= -1
    return matrix


def spread(value: Tensor) -> float:
    """Root mean square deviation of all entries from their mean."""
    return math.sqrt(float((value.double() - value.double().mean()).square().mean())) if value.numel() else 0.0
