"""Do forces and energies of a file belong together? A comparison of energy differences with the work of the forces.

Between two similar structures a and b of the same atoms, E_b - E_a is about -(F_a + F_b) / 2 · (x_b - x_a), with b
turned onto a where nothing repeats. Over many pairs, a line through the origin tells the ratio: 1 if all is well, -1
for gradients in place of forces, 27.2 for energies in eV with forces in Hartree/Å, and so on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equidyn.core.units import HARTREE, KCAL_MOL
from equidyn.data.frames import Floats, Frame

_MOST = 200  # structures of one kind that are compared with each other
_EXPLAINED = 0.5  # share of the energy differences that the line must explain to say something
_KNOWN = {
    -1.0: "forces have the wrong sign (gradients?)",
    HARTREE: "forces in Hartree/Å beside energies in eV?",
    51.422067: "forces in Hartree/Bohr beside energies in eV?",
    KCAL_MOL: "energies in kcal/mol beside forces in eV/Å?",
    1 / HARTREE: "energies in Hartree beside forces in eV/Å?",
    1 / 51.422067: "forces in eV/Å seen as Hartree/Bohr?",
    1 / KCAL_MOL: "forces in kcal/mol/Å beside energies in eV?",
    0.529177: "energies in Hartree, forces in Hartree/Bohr?",
}


@dataclass(frozen=True)
class Consistency:
    """The outcome.

    Attributes:
        pairs: how many pairs of structures were compared.
        slope: energy differences over the work of the forces.
        explained: share of the (squared) energy differences that the line explains.
        displacement: root mean square distance of an atom between the two structures of a pair, Å.
    """

    pairs: int
    slope: float
    explained: float
    displacement: float

    @property
    def conclusive(self) -> bool:
        """Whether the pairs are similar enough to say something."""
        return self.pairs >= 3 and self.explained >= _EXPLAINED

    @property
    def consistent(self) -> bool:
        """Whether forces are minus the slope of the energy, as far as the pairs can tell.

        What the line leaves unexplained is curvature of the energy between the two structures, which flattens it too.
        """
        return self.conclusive and abs(self.slope - 1) < 0.05 + (1 - self.explained)

    def __str__(self) -> str:
        if self.pairs < 3:
            return "forces against energies: fewer than 3 pairs of similar structures, nothing can be said"
        numbers = f"slope {self.slope:.3g} over {self.pairs} pairs ({100 * self.explained:.0f} % explained)"
        if self.consistent:
            return f"forces agree with energies: {numbers}"
        if not self.conclusive:
            what = "structures too different, or forces that are not the slope of the energy"
            return f"forces against energies: {numbers}, nothing can be said: {what}"
        near = min(_KNOWN, key=lambda known: abs(self.slope / known - 1))
        reason = f"; {_KNOWN[near]}" if abs(self.slope / near - 1) < 0.2 else ""
        return f"forces do not agree with energies: {numbers}, expected 1{reason}"


def check_consistency(frames: Sequence[Frame]) -> Consistency:
    """Compare each structure with the most similar other one of the same atoms in the same order."""
    kinds: dict[tuple[bytes, bytes], list[Frame]] = defaultdict(list)
    for frame in frames:
        if frame.energy is not None and frame.forces is not None and len(frame) > 1:
            cell = frame.cell.round(6).tobytes() if frame.pbc.any() else b""
            kinds[frame.numbers.tobytes(), cell].append(frame)
    rows = [row for same in kinds.values() if len(same) > 1 for row in _pairs(same)]
    if not rows:
        return Consistency(0, float("nan"), 0.0, float("nan"))
    energy, work, square = np.array(rows).T
    weight = 1 / np.maximum(square, 1e-12)  # the error of the work grows with the distance
    slope = float((weight * energy * work).sum() / max((weight * work**2).sum(), 1e-300))
    left = (weight * (energy - slope * work) ** 2).sum() / max((weight * energy**2).sum(), 1e-300)
    return Consistency(len(rows), slope, float(1 - left), float(np.sqrt(square.mean())))


def _pairs(frames: Sequence[Frame]) -> list[tuple[float, float, float]]:
    """Energy difference, work and mean squared displacement of each structure and its nearest one."""
    if len(frames) > _MOST:
        frames = [frames[i] for i in np.linspace(0, len(frames) - 1, _MOST).round().astype(int)]
    pos = np.stack([frame.pos for frame in frames])
    forces = np.stack([frame.forces for frame in frames])  # type: ignore[misc]
    energy = np.array([frame.energy for frame in frames])
    rows = {}
    for a in range(len(frames)):
        moved, turned = _onto(frames[a], pos, forces)
        square = np.square(moved).sum(-1).mean(1)
        square[a] = np.inf
        square[square < 1e-16] = np.inf  # the same structure once more
        b = int(np.argmin(square))
        if np.isfinite(square[b]):
            work = -0.5 * ((forces[a] + turned[b]) * moved[b]).sum()
            rows[min(a, b), max(a, b)] = (energy[b] - energy[a], work, square[b])
    return list(rows.values())


def _onto(frame: Frame, others: Floats, forces: Floats) -> tuple[Floats, Floats]:
    """Displacements from one structure to the others, and their forces, turned onto it where nothing repeats."""
    one = frame.pos
    if frame.pbc.any():
        moved = others - one
        if np.linalg.det(frame.cell):
            fractional = moved @ np.linalg.inv(frame.cell)
            moved = (fractional - np.where(frame.pbc, np.round(fractional), 0)) @ frame.cell
        return moved - moved.mean(1, keepdims=True), forces
    here, there = one - one.mean(0), others - others.mean(1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("sni,nj->sij", there, here))
    u[..., -1] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation = u @ vt
    return there @ rotation - here, forces @ rotation
