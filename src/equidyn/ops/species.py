"""The elements that a model knows, numbers and matrices that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from equidyn.core.errors import InputError, unknown_name
from equidyn.ops.tracing import exporting, traced

PerSpecies = float | Mapping[str, float]
"""One number for all species, or one for each by chemical symbol."""


class Species(nn.Module):
    """A list of elements; called with atomic numbers it gives their places in the list.

    Args:
        symbols: chemical symbols.

    Raises:
        InputError: no or repeated symbols, or no such element.
    """

    table: Tensor

    def __init__(self, symbols: Sequence[str]) -> None:
        super().__init__()
        self.symbols = tuple(symbols)
        for symbol in self.symbols:
            if atomic_numbers.get(symbol, 0) < 1:
                raise unknown_name("element", symbol, atomic_numbers, where="species")
        if not self.symbols or len(set(self.symbols)) < len(self.symbols):
            raise InputError("species", expected="different elements", got=list(symbols))
        self.numbers = [atomic_numbers[symbol] for symbol in self.symbols]
        table = torch.full((max(self.numbers) + 2,), -1)  # the last row stands for all that are heavier
        table[torch.tensor(self.numbers)] = torch.arange(len(self.numbers))
        self.register_buffer("table", table, persistent=False)

    def __len__(self) -> int:
        return len(self.symbols)

    def forward(self, z: Tensor) -> Tensor:
        """Places in the list [N] of atomic numbers z [N].

        Raises:
            InputError: an element that is not in the list (not looked for while traced).
        """
        place = self.table[z.clamp(0, self.table.shape[0] - 1)]
        if not traced() and bool((place < 0).any()):
            unknown = int(z[place < 0][0])
            raise InputError("unknown element", where="z", expected=f"one of {', '.join(self.symbols)}", got=unknown)
        return place

    def values(self, given: PerSpecies, where: str) -> Tensor:
        """One number per species [S], float64.

        Raises:
            InputError: the species of `given` are not these.
        """
        if not isinstance(given, Mapping):
            return torch.full((len(self),), float(given), dtype=torch.float64)
        if set(given) != set(self.symbols):
            raise InputError("values per species", where=where, expected=sorted(self.symbols), got=sorted(given))
        return torch.tensor([given[symbol] for symbol in self.symbols], dtype=torch.float64)

    def pair_cutoffs(self, cutoff: float, given: Mapping[str, PerSpecies]) -> Tensor:
        """Cutoffs [S, S] by receiver and sender; pairs that are not given have the largest, `cutoff`.

        Raises:
            InputError: a species that is not known, or a cutoff that is not above zero and at most the largest.
        """
        if not 0 < cutoff < float("inf"):
            raise InputError("cutoff", expected="a positive distance", got=cutoff)
        table = torch.full((len(self), len(self)), float(cutoff), dtype=torch.float64)
        for receiver, row in given.items():
            for sender, value in (row if isinstance(row, Mapping) else dict.fromkeys(self.symbols, row)).items():
                for symbol in (receiver, sender):
                    if symbol not in self.symbols:
                        raise unknown_name("species", symbol, self.symbols, where="pair cutoffs")
                if not 0 < value <= cutoff:
                    expected = f"above 0, at most {cutoff}"
                    raise InputError("pair cutoff", where=f"{receiver}-{sender}", expected=expected, got=value)
                table[self.symbols.index(receiver), self.symbols.index(sender)] = value
        return table


class Kinds(NamedTuple):
    """Atoms sorted by kind, so that what depends on the kind is a few matrix products.

    Attributes:
        order: [N] atoms sorted by kind; exported, with rows to spare.
        inverse: [N] place of each atom in `order`.
        present: numbers of the kinds that occur, rising.
        counts: atoms of each of them.
        example: one atom of each of them.
    """

    order: Tensor
    inverse: Tensor
    present: Tensor
    counts: list[int]
    example: Tensor

    @staticmethod
    def sort(kind: Tensor, number: int) -> Kinds:
        """From the kind of each atom [N], from 0 to number - 1."""
        if exporting():
            return Kinds._open(kind, number)
        present, counts = torch.unique(kind, return_counts=True)
        order = torch.argsort(kind, stable=True)
        return Kinds(order, torch.argsort(order), present, counts.tolist(), order[counts.cumsum(0) - counts])

    @staticmethod
    def _open(kind: Tensor, number: int) -> Kinds:
        """For an exported program, which has a part for each kind.

        A compiler must know of a size that is read from data that it is neither 0 nor 1. So each kind has two rows
        more than atoms, after them: what they hold, copies of atom 0, is computed and not read.
        """
        present = torch.arange(number, device=kind.device)
        counts = torch.zeros_like(present).scatter_add(0, kind, torch.ones_like(kind))
        order = torch.argsort(torch.cat([kind, present, present]), stable=True)
        inverse, atom = torch.argsort(order)[: kind.shape[0]], torch.where(order < kind.shape[0], order, 0)
        counts = counts + 2
        sizes = counts.tolist()
        for size in sizes:  # noted in the graph
            torch.ops.aten.sym_constrain_range.default(size, min=2)
        return Kinds(atom, inverse, present, sizes, atom[counts.cumsum(0) - counts])

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Sorted rows times the matrix of their kind: [N, M, C] and [present kinds, C, C'] to [N, M, C']."""
        return torch.cat([part @ matrix for part, matrix in zip(x.split(self.counts), matrices.unbind(), strict=True)])
