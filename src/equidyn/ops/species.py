"""The elements that a model knows, numbers and matrices that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from equidyn.core.errors import InputError, unknown_name

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
            InputError: an element that is not in the list (not looked for while compiling).
        """
        place = self.table[z.clamp(0, len(self.table) - 1)]
        if not torch.compiler.is_compiling() and bool((place < 0).any()):
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
        order: [N] atoms sorted by kind.
        inverse: [N] place of each atom in `order`.
        present: numbers of the kinds that occur, rising.
        counts: atoms of each of them.
    """

    order: Tensor
    inverse: Tensor
    present: Tensor
    counts: list[int]

    @staticmethod
    def sort(kind: Tensor) -> Kinds:
        """From the number of the kind of each atom [N]."""
        present, counts = torch.unique(kind, return_counts=True)
        order = torch.argsort(kind, stable=True)
        return Kinds(order, torch.argsort(order), present, counts.tolist())

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Sorted rows times the matrix of their kind: [N, M, C] and [present kinds, C, C'] to [N, M, C']."""
        return torch.cat([part @ matrix for part, matrix in zip(x.split(self.counts), matrices.unbind(), strict=True)])
