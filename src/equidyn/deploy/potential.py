"""A trained potential as every engine needs it: atoms in, energy and its derivatives out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.ops.derivatives import WithForces
from equidyn.ops.neighbors import neighbor_list
from equidyn.train.checkpoint import load_model

_ROUNDING = 1e-6  # Å
COINCIDENT = 1e-3
"""Atoms closer than this (Å) are taken for one that is there twice."""


class Structure(NamedTuple):
    """One structure, or several as one with `batch`.

    Attributes:
        z: [N] atomic numbers.
        pos: [N, 3] Å, float64.
        edge_index: [2, E] senders and receivers.
        edge_shift: [E, 3] Å.
        batch: [N] structure of each atom, in order.
    """

    z: Tensor
    pos: Tensor
    edge_index: Tensor
    edge_shift: Tensor
    batch: Tensor


class Potential(nn.Module):
    """An energy model on a device, in a precision, for one head.

    Args:
        model: gives `energy` [G] and the energy of each atom; knows its `elements` and its `cutoff`.
        device: where it runs.
        dtype: precision of the network; positions, energies and forces are float64 always. That of the weights if not
            given.
        head: level of theory, for models of several.
        nearest: smallest distance (Å) of each pair of elements ("H-C", the lighter first) in the training; None where
            that is not known.

    Raises:
        InputError: not such a model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        head: int = 0,
        nearest: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        missing = [name for name in ("elements", "cutoff", "layers") if not hasattr(model, name)]
        if missing:
            raise InputError("not a potential", where=type(model).__name__, expected="a model of energies such as MACE")
        self.device, self.head = torch.device(device), head
        self.elements, self.cutoff = tuple(map(int, model.elements)), float(model.cutoff)  # type: ignore[arg-type]
        self.layers = len(model.layers)  # type: ignore[arg-type]
        self._nearest = None if nearest is None else _table(nearest)
        model = model.to(self.device) if dtype is None else model.to(self.device, dtype)
        self.derivatives = WithForces(model.eval().requires_grad_(False), stress=True, create_graph=False)

    def forward(self, atoms: Structure) -> dict[str, Tensor]:
        """`energy` [G] eV, `energies` [N] eV, `forces` [N, 3] eV/Å and `virial` [G, 3, 3] eV, detached, in float64."""
        sample = Data(
            pos=atoms.pos, z=atoms.z, edge_index=atoms.edge_index, edge_shift=atoms.edge_shift, batch=atoms.batch
        )
        sample.head = torch.full((int(atoms.batch[-1]) + 1,), self.head, device=self.device)
        out = self.derivatives(sample)
        return {
            "energy": out["energy"].double(),
            "energies": out["atom_energy"].double(),
            "forces": out["forces"].double(),
            "virial": out["virial"].double(),
        }

    def structure(self, numbers: Sequence[int], pos: Tensor, edges: tuple[Tensor, Tensor], where: object) -> Structure:
        """One structure on the device.

        Args:
            numbers: [N] atomic numbers.
            pos: [N, 3] Å.
            edges: edge_index and edge_shift, see `neighbor_list`.
            where: what error messages name.

        Raises:
            InputError: no atoms, an element that the model does not know, two atoms at the same place.
        """
        self.check_elements(numbers, where)
        edge_index, edge_shift = edges
        refuse_coincident(pos, edge_index, edge_shift, where)
        z = torch.as_tensor(numbers, dtype=torch.long)
        on_device = (t.to(self.device) for t in (z, pos, edge_index, edge_shift, torch.zeros_like(z)))
        return Structure(*on_device)

    def check_elements(self, numbers: Sequence[int], where: object) -> None:
        """Refuse atoms that the model has not learned.

        Raises:
            InputError: no atoms, or such ones.
        """
        if not len(numbers):
            raise InputError("no atoms", where=where, expected="at least one")
        unknown = sorted({int(z) for z in numbers} - set(self.elements))
        if unknown:
            expected, got = (", ".join(chemical_symbols[z] for z in some) for some in (self.elements, unknown))
            raise InputError("unknown element", where=where, expected=f"among {expected}", got=got)

    def too_near(self, numbers: Sequence[int], pos: Tensor, edges: tuple[Tensor, Tensor]) -> dict[str, str]:
        """Pairs of elements of which two atoms are nearer than any in the training.

        Returns:
            By pair what there is and what has been seen, in words; empty where the training is not known.
        """
        (sender, receiver), shift = edges
        if self._nearest is None or not len(sender):
            return {}
        z = torch.as_tensor(numbers, dtype=torch.long)
        distance = torch.linalg.vector_norm(pos[sender] + shift - pos[receiver], dim=1)
        seen = self._nearest[z[sender], z[receiver]]
        near = torch.nonzero(distance < torch.clamp(seen, max=self.cutoff) - _ROUNDING)[:, 0]
        found: dict[str, str] = {}
        for edge in near[distance[near].argsort()].tolist():
            a, b = sorted((int(sender[edge]), int(receiver[edge])), key=lambda atom: int(z[atom]))
            limit = f"{float(seen[edge]):.3f} Å" if seen[edge] < float("inf") else f"none within {self.cutoff} Å"
            words = f"atoms {a} and {b} are {float(distance[edge]):.3f} Å apart, nearest in the training {limit}"
            found.setdefault("-".join(chemical_symbols[int(z[atom])] for atom in (a, b)), words)
        return found

    def edges(
        self, pos: Tensor, cell: Tensor | None = None, pbc: Tensor | bool = False, skin: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """All pairs within the cutoff, and a skin beyond it: see `neighbor_list`."""
        return neighbor_list(pos, self.cutoff + skin, cell, pbc)


def load_potential(
    run: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | str | None = None, head: int = 0
) -> Potential:
    """The potential in a run folder, trained here or made by `equidyn import`.

    Args:
        run: folder with `model.json` and `model.safetensors`.
        device: where it runs.
        dtype: of the network, such as "float32"; that of its weights if not given.
        head: level of theory, for models of several.

    Raises:
        InputError: no such folder, or a model of something else than energies.
    """
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and kind not in (torch.float32, torch.float64):
        raise InputError("dtype", where="load_potential", expected="float32 or float64", got=dtype)
    trained = load_model(run)
    return Potential(trained.model, device=device, dtype=kind, head=head, nearest=trained.info.get("nearest"))


def _table(nearest: Mapping[str, float]) -> Tensor:
    """Smallest distances [Z, Z] by atomic numbers, infinite for pairs that were not seen."""
    table = torch.full((len(chemical_symbols), len(chemical_symbols)), float("inf"), dtype=torch.float64)
    for pair, distance in nearest.items():
        a, b = (chemical_symbols.index(symbol) for symbol in pair.split("-"))
        table[a, b] = table[b, a] = distance
    return table


def join(structures: Sequence[Structure]) -> Structure:
    """Several structures as one, numbered in order."""
    offsets = [0]
    for one in structures:
        offsets.append(offsets[-1] + len(one.z))
    return Structure(
        torch.cat([one.z for one in structures]),
        torch.cat([one.pos for one in structures]),
        torch.cat([one.edge_index + offset for one, offset in zip(structures, offsets, strict=False)], dim=1),
        torch.cat([one.edge_shift for one in structures]),
        torch.cat([torch.full_like(one.z, number) for number, one in enumerate(structures)]),
    )


def refuse_coincident(pos: Tensor, edge_index: Tensor, edge_shift: Tensor, where: object) -> None:
    """Refuse two atoms at the same place.

    Raises:
        InputError: there are such.
    """
    distance = torch.linalg.vector_norm(pos[edge_index[0]] + edge_shift - pos[edge_index[1]], dim=1)
    if len(distance) and float(distance.min()) < COINCIDENT:
        pair = sorted(edge_index[:, int(distance.argmin())].tolist())
        got = f"atoms {pair[0]} and {pair[1]}, {float(distance.min()):.1e} Å apart"
        raise InputError("two atoms at the same place", where=where, expected=f"{COINCIDENT} Å or more", got=got)
