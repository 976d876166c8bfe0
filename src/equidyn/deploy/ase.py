"""ASE: a calculator, so that everything ASE does with a potential works with a trained one.

    from equidyn import Calculator

    atoms.calc = Calculator("runs/mine")
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()

One backward pass gives all properties.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as ASECalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from equidyn.core.errors import DataWarning, InputError
from equidyn.deploy.neighbors import SkinNeighbors
from equidyn.deploy.potential import Potential, Structure, join, load_potential


class Calculator(ASECalculator):
    """An ASE calculator.

    Stress is dE/d(strain) over the volume |det cell| of the cell as it is given, vacuum of a slab included, which does
    not depend on where in it the atoms are. A cell without volume (a molecule without one, a slab without a third
    vector) has no stress: asking for it raises ASE's PropertyNotImplementedError.

    Args:
        potential: run folder, or a loaded potential.
        device: where the model runs.
        dtype: of the network, "float32" or "float64"; that of its weights if not given. Results are float64.
        skin: Å beyond the cutoff that neighbour lists reach, so that they last for some steps.
        head: level of theory, for models of several.
        nearer: what happens where atoms are nearer than any of their elements in the training: "warn" (once for each
            pair of elements), "error" or "ignore". Runs of before this was kept, and imported models, do not know.

    Raises:
        InputError: no such potential; later atoms of elements that it does not know, at the same place, or periodic
            along vectors without volume; with `nearer="error"` nearer than any in the training.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    default_parameters: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        potential: str | Path | Potential,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        skin: float = 1.0,
        head: int = 0,
        nearer: Literal["warn", "error", "ignore"] = "warn",
    ) -> None:
        super().__init__()
        if nearer not in ("warn", "error", "ignore"):
            raise InputError("nearer", where="Calculator", expected="warn, error or ignore", got=nearer)
        self.nearer = nearer
        self._warned: set[str] = set()
        if not isinstance(potential, Potential):
            potential = load_potential(potential, device=device, dtype=dtype, head=head)
        self.potential = potential
        self.neighbors = SkinNeighbors(potential, skin)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """All properties at once, as one backward pass gives them all."""
        super().calculate(atoms, properties, system_changes)
        here: Any = self.atoms  # ASE's copy
        self.potential.check_elements(here.numbers, "atoms")
        out = self.potential(self._structure(here, self.neighbors(*_box(here))))
        self.results = _results(here, {name: value.cpu().numpy() for name, value in out.items()}, 0)
        if "stress" in properties and "stress" not in self.results:
            raise PropertyNotImplementedError("stress of atoms in a cell without volume")

    def evaluate_many(self, structures: Sequence[Atoms], *, batch_atoms: int = 2000) -> list[dict[str, Any]]:
        """Results of many structures, several in one pass; none of them is changed.

        Args:
            structures: any mixture of molecules and crystals.
            batch_atoms: atoms in one pass, at most, unless a single structure has more.

        Returns:
            For each structure the properties of the calculator; `stress` only where the cell has a volume.
        """
        for number, atoms in enumerate(structures):
            self.potential.check_elements(atoms.numbers, f"structure {number}")
        results = []
        for batch in _batches(structures, batch_atoms):
            made = [self._structure(atoms, self.potential.edges(*_box(atoms))) for atoms in batch]
            out = {name: value.cpu().numpy() for name, value in self.potential(join(made)).items()}
            stops = np.cumsum([len(atoms) for atoms in batch])[:-1]
            per_atom = {name: np.split(out[name], stops) for name in ("energies", "forces")}
            for number, atoms in enumerate(batch):
                parts = out | {name: values[number] for name, values in per_atom.items()}
                results.append(_results(atoms, parts, number))
        return results

    def _structure(self, atoms: Atoms, edges: tuple[Tensor, Tensor]) -> Structure:
        pos = torch.from_numpy(atoms.positions.copy())
        made = self.potential.structure(atoms.numbers, pos, edges, "atoms")
        if self.nearer != "ignore":
            for pair, words in self.potential.too_near(atoms.numbers, pos, edges).items():
                if self.nearer == "error":
                    raise InputError(f"{pair} nearer than in the training", where="atoms", got=words)
                if pair not in self._warned:
                    warnings.warn(DataWarning(f"{pair} nearer than in the training: {words}"), stacklevel=2)
                self._warned.add(pair)
        return made


def _box(atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, cell and directions of repetition."""
    positions, cell, pbc = atoms.positions.copy(), np.array(atoms.cell), np.array(atoms.pbc)
    return torch.from_numpy(positions), torch.from_numpy(cell), torch.from_numpy(pbc)


def _results(atoms: Atoms, out: dict[str, Any], number: int) -> dict[str, Any]:
    """ASE's names for the outputs of one structure."""
    energy = float(out["energy"][number])
    results = {"energy": energy, "free_energy": energy, "energies": out["energies"], "forces": out["forces"]}
    volume = abs(np.linalg.det(np.array(atoms.cell)))
    if volume > 0:
        results["stress"] = full_3x3_to_voigt_6_stress(-out["virial"][number] / volume)
    return results


def _batches(structures: Sequence[Atoms], most: int) -> Iterator[list[Atoms]]:
    batch: list[Atoms] = []
    for atoms in structures:
        if batch and sum(map(len, batch)) + len(atoms) > most:
            yield batch
            batch = []
        batch.append(atoms)
    if batch:
        yield batch
