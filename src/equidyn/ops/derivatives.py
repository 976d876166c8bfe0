"""Forces, virial and stress: the derivatives of an energy with respect to positions and strain.

    F = -dE/dr,    virial = -dE/d(eps),    stress = (1 / V) dE/d(eps)    at eps = 0,

where a symmetric strain eps moves everything at once: r -> r + r eps, edge shifts and cell alike. One backward pass
gives all of them, for any model that maps a sample to an `energy`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch_geometric.data import Data

from equidyn.core.errors import InputError


def graph_of_nodes(sample: Data) -> tuple[Tensor, int]:
    """The graph each node belongs to [N], and the number of graphs G."""
    nodes = sample.pos.shape[0]
    batch = sample.get("batch")
    if batch is None:
        return torch.zeros(nodes, dtype=torch.long, device=sample.pos.device), 1
    if sample.get("cell") is not None:
        return batch, sample.cell.shape[0]
    return batch, int(batch.max()) + 1 if nodes else 0


class WithForces(nn.Module):
    """A model of an energy that also gives its derivatives.

    Args:
        model: gives `energy` [G] for a sample.
        stress: give `virial` too, and `stress` for samples with a cell: zero for a graph whose cell has no volume.
        create_graph: keep what is needed to differentiate the derivatives again, as training on forces does; by
            default in training mode. Without it, all outputs are plain numbers.
    """

    def __init__(
        self, model: Callable[[Data], dict[str, Tensor]], *, stress: bool = False, create_graph: bool | None = None
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.stress, self.create_graph = stress, create_graph

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """The outputs of the model, `forces` [N, 3], and where asked for `virial`, `stress` [G, 3, 3].

        Raises:
            InputError: the model gives no energy.
        """
        create_graph = self.training if self.create_graph is None else self.create_graph
        with torch.enable_grad():
            moved, leaves = _movable(sample, strained=self.stress)
            free = create_graph or not isinstance(self.model, nn.Module)
            out = dict(self.model(moved) if free else _with_fixed_weights(self.model, moved))
            if "energy" not in out:
                raise InputError("a model without an energy", where="WithForces", expected="energy", got=sorted(out))
            gradients = _gradients(out["energy"], leaves, create_graph)
        out["forces"] = -gradients[0]
        if self.stress:
            out["virial"] = -gradients[1]
        if self.stress and sample.get("cell") is not None:
            volume = torch.linalg.det(sample.cell.detach()).abs()[:, None, None]
            out["stress"] = torch.where(volume > 0, gradients[1] / torch.where(volume > 0, volume, 1.0), 0.0)
        return out if create_graph else {name: value.detach() for name, value in out.items()}


def _with_fixed_weights(model: nn.Module, sample: Data) -> dict[str, Tensor]:
    """The outputs, that cannot be differentiated by the weights: nothing is kept or computed for that."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return functional_call(model, weights, (sample,))


def _movable(sample: Data, strained: bool) -> tuple[Data, list[Tensor]]:
    """A copy of the sample that depends on free positions, and on a free strain of each graph."""
    moved = copy.copy(sample)
    pos = sample.pos if sample.pos.requires_grad else sample.pos.detach().requires_grad_()
    moved.pos = pos
    if not strained:
        return moved, [pos]
    batch, graphs = graph_of_nodes(sample)
    strain = pos.new_zeros(graphs, 3, 3).requires_grad_()
    symmetric = 0.5 * (strain + strain.mT)
    per_node = symmetric[batch]
    moved.pos = pos + torch.einsum("ni,nij->nj", pos, per_node)
    if sample.get("cell") is not None:
        moved.cell = sample.cell + sample.cell @ symmetric
    if sample.get("edge_shift") is not None:
        shift = sample.edge_shift
        moved.edge_shift = shift + torch.einsum("ei,eij->ej", shift, per_node[sample.edge_index[1]])
    return moved, [pos, strain]


def _gradients(energy: Tensor, leaves: list[Tensor], create_graph: bool) -> list[Tensor]:
    if not energy.requires_grad:  # no edges, and nothing to learn
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(energy.sum(), leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
