"""Forms of the models whose every shape follows from the numbers of atoms, edges and graphs, for export.

The models sort atoms by element and edges by receiver, and cut them into pieces whose sizes depend on which elements
there are and who neighbours whom. An exported program wants sizes that follow from the shapes of its inputs alone: here
each element, and each receiver, has a whole number of equal slots, as many in all as there can ever be; slots to spare
hold nothing. The numbers that come out are the same.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.models.mace import MACE, Graph
from equidyn.models.nequip import NequIP, SelfConnection
from equidyn.ops.edges import Edges, Ends
from equidyn.ops.symmetric_contraction import SymmetricContraction
from equidyn.ops.tensor_convolution import TILE, Tiles
from equidyn.ops.tensor_product import split_irreps

ROWS = 32
"""Rows of one element in a slot."""


def static(model: nn.Module) -> nn.Module:
    """A copy of a model in its static form; it trusts its input.

    Raises:
        InputError: there is none.
    """
    model = copy.deepcopy(model)
    if isinstance(model, MACE):
        return _static_mace(model)
    if isinstance(model, NequIP):
        return _static_nequip(model)
    raise InputError("no static form of this system", expected="mace or nequip", got=type(model).__name__)


# Slots ---------------------------------------------------------------------------------------------------------------


def _count(keys: Tensor, size: int) -> Tensor:
    return keys.new_zeros(size).scatter_add(0, keys, torch.ones_like(keys))


def _slots(key: Tensor, keys: int, width: int, slots: int) -> tuple[Tensor, Tensor]:
    """Place items [M] with keys 0 .. keys - 1 in slots of `width` items of one key.

    Returns:
        place [M] of each item among slots * width, in order of the keys; key [slots] of each slot, any where empty.
    """
    order = torch.argsort(key, stable=True)
    count = _count(key, keys)
    need = (count + width - 1) // width
    # Place of each item: its rank among all, plus the empty places of all keys before its own.
    empty = width * (need.cumsum(0) - need) - (count.cumsum(0) - count)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(key.shape[0], device=key.device))
    owner = torch.searchsorted(need.cumsum(0), torch.arange(slots, device=key.device), right=True)
    return rank + empty[key], owner.clamp(max=keys - 1)


def _ends(node: Tensor, num_nodes: int) -> Ends:
    count = _count(node, num_nodes)
    return Ends(node, torch.argsort(node, stable=True), count.cumsum(0) - count)


# MACE ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlottedGraph(Graph):
    """A batch whose rows are slots of `ROWS` atoms of one element.

    Attributes:
        owner: element of each slot.
    """

    owner: Tensor

    def by_species(self, x: Tensor, weight: Tensor) -> Tensor:
        """As of `Graph`."""
        rows = x.reshape(self.owner.shape[0], ROWS * x.shape[1], x.shape[2])
        return torch.bmm(rows, weight[self.owner]).view(x.shape[0], x.shape[1], weight.shape[2])


def _static_mace(model: MACE) -> MACE:
    layers: Any = model.layers
    model._prepare = MethodType(_prepare, model)
    for layer in layers:
        layer.product = SlottedContraction(layer.product)
    return model


def _prepare(model: MACE, sample: Data) -> tuple[Graph, Tensor]:
    """As of `MACE`, for the head given by number."""
    kinds, atoms = model.embedding.shape[0], sample.z.shape[0]
    table = model.species.like(sample.pos).long()
    slots, edges = atoms // ROWS + kinds, sample.edge_index.shape[1]
    row, owner = _slots(table[sample.z], kinds, ROWS, slots)
    order = torch.zeros(slots * ROWS, dtype=torch.long, device=row.device)
    order = order.scatter(0, row, torch.arange(atoms, device=row.device))
    species = owner[:, None].expand(-1, ROWS).reshape(-1)
    tiles = _tiles(row[sample.edge_index[0]], row[sample.edge_index[1]], slots * ROWS, edges // TILE + atoms)
    ends = (species[tiles.receiver], species[tiles.senders.node])
    # `blocks` is read by the contraction alone, which here wants the elements of the slots.
    graph = SlottedGraph(order, row, owner, species, tiles, ends, owner)  # type: ignore[arg-type]
    return graph, torch.full_like(species, sample.head)


def _tiles(sender: Tensor, receiver: Tensor, rows: int, tiles: int) -> Tiles:
    place, node = _slots(receiver, rows, TILE, tiles)
    edge = torch.zeros(tiles * TILE, dtype=torch.long, device=place.device)
    edge = edge.scatter(0, place, torch.arange(receiver.shape[0], device=place.device))
    used = torch.zeros_like(edge).scatter(0, place, torch.ones_like(place)) > 0
    slot_receiver = node[:, None].expand(-1, TILE).reshape(-1)
    slot_sender = torch.where(used, sender[edge], slot_receiver)
    return Tiles(edge, used, _ends(slot_sender, rows), slot_receiver, _ends(node, rows))


class SlottedContraction(nn.Module):
    """The symmetric contraction over slots of rows of one element."""

    def __init__(self, product: SymmetricContraction) -> None:
        super().__init__()
        self.product = product

    def forward(self, a: Tensor, owner: Any) -> Tensor:
        """[R, D, C] with the elements of the slots to [R, outputs, C]."""
        product = self.product
        rows, size, channels = a.shape
        weight = product.weight.permute(0, 2, 1) @ product.basis.like(a)  # [S, C, F * G * outputs]
        if weight.shape[0] > 1:
            a, weight = a.view(-1, ROWS, size, channels), weight[owner]
        else:  # one set of weights for all elements
            a = a[None]
        a = a.permute(0, 3, 1, 2)  # [slots, C, rows of a slot, D]
        pairs = product._pairs(a) if product.degree > 2 else None
        right = [torch.ones_like(a[..., :1]), *([a] if product.degree > 1 else []), *([] if pairs is None else [pairs])]
        f = torch.cat(right, dim=-1)
        g = torch.cat([a, pairs], dim=-1) if product.degree > 3 and pairs is not None else a
        kernel = weight.unflatten(2, (f.shape[-1], -1))
        made = (f @ kernel).unflatten(3, (-1, product.outputs)) * g.unsqueeze(-1)
        return made.sum(3).permute(0, 2, 3, 1).reshape(rows, product.outputs, channels)


# NequIP --------------------------------------------------------------------------------------------------------------


def _static_nequip(model: NequIP) -> NequIP:
    if model.options.graph_fields:
        raise InputError(
            "graph fields in an exported program", expected="a model without", got=list(model.options.graph_fields)
        )
    model.species = _Table(model.species)  # type: ignore[assignment]
    model._edges = _edges  # type: ignore[assignment]
    model._embed = MethodType(_embed, model)  # type: ignore[method-assign]
    layers: Any = model.layers
    for layer in layers:
        if layer.conv.self_connection is not None:
            layer.conv.self_connection = _PerAtom(layer.conv.self_connection)
    return model


class _Table(nn.Module):
    """Places of elements in the list of a model."""

    table: Tensor

    def __init__(self, species: Any) -> None:
        super().__init__()
        self.register_buffer("table", species.table.clamp(min=0))
        self.size = len(species)

    def __len__(self) -> int:
        return self.size

    def forward(self, z: Tensor) -> Tensor:
        """[N] to [N]."""
        return self.table[z]


def _edges(edge_index: Tensor, num_nodes: int, dtype: torch.dtype, copies: int) -> Edges:
    send, receive = edge_index[0], edge_index[1]
    degree = _count(receive, num_nodes).clamp(min=1)
    pairs = torch.stack([2 * receive, 2 * send + 1], dim=1).flatten()
    return Edges(_ends(receive, num_nodes), _ends(send, num_nodes), degree.to(dtype).reciprocal()[:, None], pairs)


def _embed(model: NequIP, sample: Data, species: Tensor, batch: Tensor) -> tuple[Tensor, Any]:
    return model.type_embedding[species], (model.type_embedding, species)


class _PerAtom(nn.Module):
    """The self-connection with the matrices of each atom's element gathered."""

    def __init__(self, connection: SelfConnection) -> None:
        super().__init__()
        self.connection = connection

    def forward(self, h: Tensor, kinds: tuple[Tensor, Tensor]) -> Tensor:
        """As of `SelfConnection`."""
        connection, (attributes, species), found = self.connection, kinds, {}
        blocks = split_irreps(h, connection.irreps)
        for n, weight in zip(connection.kept, connection.weights, strict=True):
            scale = (weight.shape[0] * weight.shape[1]) ** -0.5
            matrices = torch.einsum("kf,afb->kab", attributes, weight) * scale
            found[connection.irreps[n][:2]] = (blocks[n] @ matrices[species]).flatten(1)
        sums = [found[b[:2]] if b[:2] in found else h.new_zeros(h.shape[0], b.width) for b in connection.out]
        return torch.cat(sums, dim=1)
