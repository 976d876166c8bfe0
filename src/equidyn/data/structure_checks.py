"""What can be wrong with labelled structures: refused where nothing can be learned from it, else a finding in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from ase.data import chemical_symbols

from equidyn.core.errors import InputError
from equidyn.core.units import HARTREE, KCAL_MOL, KJ_MOL
from equidyn.data.frames import LABELS, Frame
from equidyn.ops.neighbors import neighbor_list

_COINCIDENT = 0.1  # Å; no two nuclei come closer
_USUAL_FORCE = 1.0  # eV/Å, root mean square of thermal structures
UNITS = {"Hartree": 1 / HARTREE, "kcal/mol": KCAL_MOL, "kJ/mol": KJ_MOL}
"""How large the number is that stands for 1 eV in other units."""


def check_frame(frame: Frame) -> None:
    """Refuse a structure that no potential can be learned from.

    Raises:
        InputError: no atoms, no such element, numbers that are not finite, a periodic box without cell or volume, two
            atoms in one place.
    """
    if not len(frame):
        raise InputError("a structure without atoms", where=frame.where)
    if frame.numbers.min() < 1 or frame.numbers.max() >= len(chemical_symbols):
        bad = int(frame.numbers[(frame.numbers < 1) | (frame.numbers >= len(chemical_symbols))][0])
        raise InputError("no such element", where=frame.where, expected="atomic numbers 1 to 118", got=bad)
    for name in ("pos", "cell", "forces", "stress", "energy"):
        value = getattr(frame, name)
        if value is not None and not np.isfinite(value).all():
            per_atom = name in ("pos", "forces")
            row = f" at atom {int(np.argwhere(~np.isfinite(value))[0][0])}" if per_atom else ""
            raise InputError(f"NaN or infinity in {name}{row}", where=frame.where, expected="finite numbers")
    if frame.pbc.any() and not frame.cell[frame.pbc].any(1).all():
        got = f"pbc {frame.pbc.tolist()}, cell {frame.cell.tolist()}"
        raise InputError("pbc without a cell", where=frame.where, expected="a lattice vector per direction", got=got)
    edges, shift = _edges(frame, _COINCIDENT)
    if edges.shape[1]:
        j, i = edges[:, 0].tolist()
        distance = float(np.linalg.norm(frame.pos[j] + shift[0] - frame.pos[i]))
        what = f"atoms {i} and {j} in one place"
        raise InputError(what, where=frame.where, expected=f"more than {_COINCIDENT} Å apart", got=f"{distance:.3g} Å")


def _edges(frame: Frame, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    try:
        cell, pbc = torch.from_numpy(frame.cell), torch.from_numpy(frame.pbc)
        edges, shift = neighbor_list(torch.from_numpy(frame.pos), cutoff, cell, pbc)
    except InputError as error:
        raise InputError(str(error), where=frame.where) from None
    return edges.numpy(), shift.numpy()


def findings(frames: Sequence[Frame], where: str) -> list[str]:
    """What is unlikely in a set of structures, one line each: labels that some lack, cells, units.

    Args:
        frames: structures that `check_frame` accepts.
        where: the file, for the messages.
    """
    found = []
    for label in LABELS:
        able = [frame for frame in frames if label != "stress" or frame.pbc.any()]
        missing = [frame for frame in able if getattr(frame, label) is None]
        if 0 < len(missing) < len(able):
            first = missing[0].where.rpartition(", ")[2]
            found.append(f"{where}: {len(missing)} of {len(able)} structures have no {label} ({first} ...): weight 0")
    if frames and all(frame.energy is None for frame in frames):
        found.append(f"{where}: no structure has an energy")
    left = [frame for frame in frames if np.linalg.det(frame.cell) < 0]
    if left:
        found.append(f"{where}: {len(left)} cells are left-handed, first in {left[0].where}; volumes count positive")
    repeated = [where for where, count in Counter(map(_geometry, frames)).items() if count > 1]
    if repeated:
        found.append(f"{where}: {len(repeated)} structures occur more than once; parts of a split may share them")
    return found + _units(frames, where)


def _geometry(frame: Frame) -> bytes:
    return frame.numbers.tobytes() + frame.pos.tobytes() + frame.cell.tobytes()


def _units(frames: Sequence[Frame], where: str) -> list[str]:
    """Energies of all electrons grow as 13.6 eV Z^2.4, within 8 %; forces of thermal structures are about 1 eV/Å."""
    found = []
    ratios = [f.energy / -(13.6057 * f.numbers.astype(float) ** 2.4).sum() for f in frames if f.energy is not None]
    ratio = float(np.median(ratios)) if ratios else 1.0
    for unit, size in UNITS.items():
        if abs(ratio / size - 1) < 0.08:
            found.append(
                f"{where}: energies look like {unit}: {ratio:.3g} times those of all electrons in eV; expected eV"
            )
    forces = [frame.forces for frame in frames if frame.forces is not None]
    if forces:
        rms = float(np.sqrt(np.mean(np.square(np.concatenate(forces)))))
        if rms > 12 * _USUAL_FORCE:
            found.append(
                f"{where}: forces of {rms:.3g} eV/Å (root mean square) are {rms / _USUAL_FORCE:.3g} times the usual: "
                f"kcal/mol/Å would be {UNITS['kcal/mol']:.3g} times, Hartree/Å {1 / UNITS['Hartree']:.3g} times smaller"
            )
    return found


def lone_atoms(frames: Sequence[Frame], cutoff: float, where: str) -> list[str]:
    """Atoms that have no neighbour within the cutoff, in one line if there are any."""
    lone = []
    for frame in frames:
        degree = np.bincount(_edges(frame, cutoff)[0][1], minlength=len(frame))
        lone += [(int(atom), frame.where) for atom in np.flatnonzero(degree == 0)]
    if not lone:
        return []
    atom, first = lone[0]
    return [
        f"{where}: {len(lone)} atoms have no neighbour within {cutoff} Å, first atom {atom} in {first}; "
        "mark single atoms that are there for their energy with config_type=IsolatedAtom"
    ]
