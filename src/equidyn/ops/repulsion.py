"""The screened Coulomb repulsion of two nuclei (Ziegler, Biersack and Littmark 1985)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equidyn.ops.precision import Double


class Screening(NamedTuple):
    """Constants of the screening, as the codes round them.

    Attributes:
        exponent, length: the screening length is `length` / (Za^exponent + Zb^exponent), in Å.
        terms: (weight, decay) of each exponential.
    """

    exponent: float
    length: float
    terms: tuple[tuple[float, float], ...]


class Repulsion(Double):
    """Half the repulsion energy of each pair of atoms, for each of its two directed edges.

    Args:
        elements: atomic numbers of the species.
        coulomb: e^2 / (4 pi epsilon_0) in the unit of the energy times Å.
        screening: constants.
    """

    charge: Tensor

    def __init__(self, elements: Sequence[int], coulomb: float, screening: Screening) -> None:
        super().__init__()
        self.coulomb, self.screening = coulomb, screening
        self.register_buffer("charge", torch.tensor(list(elements), dtype=torch.float64), persistent=False)

    def forward(self, r: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """Distances [E, 1] in Å and species at both ends [E] to energies [E, 1]."""
        charge, screening = self.charge.to(r), self.screening
        a, b = charge[receiver, None], charge[sender, None]
        q = r * (a**screening.exponent + b**screening.exponent) / screening.length
        total = torch.stack([weight * torch.exp(-decay * q) for weight, decay in screening.terms]).sum(0)
        return 0.5 * self.coulomb * a * b / r * total
