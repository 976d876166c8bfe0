"""What the output of a network is measured from, to be an energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equidyn.core.errors import InputError
from equidyn.ops.constant import Constant


@dataclass(frozen=True)
class EnergyReference:
    """What the network's output is measured from, one value for all heads or one per head (levels of theory).

    Attributes:
        atoms: energies of the isolated atoms (eV), in the order of the elements, or such a row per head; zero if empty.
        scale: eV per unit of the network's output.
        shift: eV added per atom.
    """

    atoms: Sequence[float] | Sequence[Sequence[float]] = ()
    scale: float | Sequence[float] = 1.0
    shift: float | Sequence[float] = 0.0


class Reference:
    """`EnergyReference` as tables [heads, S], in float64."""

    def __init__(self, given: EnergyReference, num_species: int) -> None:
        atoms, scale, shift = (torch.tensor(v, dtype=torch.float64) for v in (given.atoms, given.scale, given.shift))
        atoms = torch.zeros(num_species, dtype=torch.float64) if not atoms.numel() else atoms
        self.heads = max([len(v) for v, dim in ((atoms, 2), (scale, 1), (shift, 1)) if v.dim() == dim], default=1)
        try:
            self.atoms = Constant(atoms.expand(self.heads, num_species))
            self.scale, self.shift = Constant(scale.expand(self.heads)), Constant(shift.expand(self.heads))
        except RuntimeError:
            expected, got = (
                f"{num_species} energies, each for one head or all",
                [v.shape for v in (atoms, scale, shift)],
            )
            raise InputError("energy reference", where="reference", expected=expected, got=got) from None

    def __call__(self, energy: Tensor, head: Tensor, species: Tensor) -> Tensor:
        """Network outputs [N] as atomic energies in float64."""
        energy = energy.double()
        atoms, scale, shift = (v.like(energy) for v in (self.atoms, self.scale, self.shift))
        return atoms[head, species] + scale[head] * energy + shift[head]
