"""What a potential is measured from: energies of isolated atoms, and averages over the training structures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from equidyn.core.errors import InputError, unknown_name
from equidyn.data.frames import Frame


@dataclass(frozen=True)
class References:
    """Energies of isolated atoms.

    Attributes:
        energies: eV by atomic number.
        source: where they come from, in words.
    """

    energies: Mapping[int, float]
    source: str

    def of(self, frame: Frame) -> float:
        """The sum over the atoms of a structure, in float64."""
        return float(sum(self.energies[int(z)] for z in frame.numbers))

    def __str__(self) -> str:
        rows = ", ".join(f"{chemical_symbols[z]} {energy:.6f}" for z, energy in sorted(self.energies.items()))
        return f"isolated-atom energies ({self.source}): {rows} eV"


def isolated_energies(frames: Sequence[Frame]) -> dict[int, float]:
    """Energies by atomic number of the single atoms among some structures.

    Raises:
        InputError: two different energies of one element.
    """
    found: dict[int, float] = {}
    for frame in frames:
        if len(frame) == 1 and frame.energy is not None:
            z = int(frame.numbers[0])
            if found.setdefault(z, frame.energy) != frame.energy:
                raise InputError(
                    f"two energies of an isolated {chemical_symbols[z]}", where=frame.where, got=frame.energy
                )
    return found


def named_energies(given: Mapping[str, float]) -> dict[int, float]:
    """Energies by atomic number from energies by chemical symbol.

    Raises:
        InputError: no such element.
    """
    for symbol in given:
        if atomic_numbers.get(symbol, 0) < 1:
            raise unknown_name("element", symbol, atomic_numbers, where="data.reference")
    return {atomic_numbers[symbol]: float(energy) for symbol, energy in given.items()}


def least_squares(frames: Sequence[Frame]) -> dict[int, float]:
    """The energies per element that explain the total energies best; the shortest ones where several do equally well.

    Raises:
        InputError: no structure has an energy.
    """
    known = [frame for frame in frames if frame.energy is not None]
    if not known:
        raise InputError("no energies", where=frames[0].where, expected="at least one structure with an energy")
    energies = np.array([frame.energy for frame in known], dtype=np.float64)
    found = per_element([frame.numbers for frame in known], energies)
    return {z: found.get(z, 0.0) for z in sorted({int(z) for frame in frames for z in np.unique(frame.numbers)})}


def per_element(numbers: Sequence[NDArray], values: ArrayLike) -> dict[int, float]:
    """What an atom of each element gives, so that the sums over the atoms come close to values, by least squares.

    Args:
        numbers: atomic numbers of each structure.
        values: of each structure.
    """
    counts = np.zeros((len(numbers), len(chemical_symbols)))
    for row, own in zip(counts, numbers, strict=True):
        np.add.at(row, own, 1.0)
    elements = np.flatnonzero(counts.any(0))
    found = np.linalg.lstsq(counts[:, elements], np.asarray(values, dtype=np.float64), rcond=None)[0]
    return dict(zip(elements.tolist(), found.tolist(), strict=True))


@dataclass(frozen=True)
class Statistics:
    """Averages over the training structures.

    Attributes:
        neighbours: mean number of neighbours within the cutoff, over atoms that have any.
        force_rms: root mean square of the force components, eV/Å; 1 without forces.
        force_rms_of: the same by element.
        energy_mean: mean energy per atom beyond the isolated atoms, eV.
    """

    neighbours: float
    force_rms: float
    force_rms_of: Mapping[int, float]
    energy_mean: float


def statistics(frames: Sequence[Frame], degrees: Sequence[np.ndarray], references: References) -> Statistics:
    """Averages over some structures, whose atoms have `degrees` neighbours."""
    degree = np.concatenate(list(degrees)).astype(np.float64)
    degree = degree[degree > 0]
    labelled = [frame for frame in frames if frame.forces is not None]
    forces = np.concatenate([frame.forces for frame in labelled] or [np.ones((1, 3))])
    numbers = np.concatenate([frame.numbers for frame in labelled] or [np.zeros(1, dtype=np.int64)])
    square = np.square(forces).mean(1)
    per_atom = [(f.energy - references.of(f)) / len(f) for f in frames if f.energy is not None]
    rms = float(np.sqrt(square.mean()))
    elements = sorted(references.energies)
    of = {z: float(np.sqrt(square[numbers == z].mean())) if (numbers == z).any() else rms for z in elements}
    usable = lambda value: value if value > 0 else 1.0  # noqa: E731 (all forces zero: single atoms, perfect crystals)
    return Statistics(
        neighbours=float(degree.mean()) if len(degree) else 1.0,
        force_rms=usable(rms),
        force_rms_of={z: usable(value) for z, value in of.items()},
        energy_mean=float(np.mean(per_atom)) if per_atom else 0.0,
    )


def nearest_pairs(samples: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Smallest distance (Å) of each pair of elements ("H-C", the lighter first) among structures with neighbours."""
    size = len(chemical_symbols)
    nearest = torch.full((size * size,), float("inf"), dtype=torch.float64)
    for sample in samples:
        (sender, receiver), z = sample["edge_index"], sample["z"]
        distance = (sample["pos"][sender] + sample["edge_shift"] - sample["pos"][receiver]).norm(dim=1)
        nearest.scatter_reduce_(0, z[receiver] * size + z[sender], distance, "amin")
    table = nearest.view(size, size)
    pairs = (table.isfinite() & torch.ones_like(table).triu().bool()).nonzero().tolist()
    return {f"{chemical_symbols[a]}-{chemical_symbols[b]}": float(table[a, b]) for a, b in pairs}
