"""Labelled structures: one geometry with energy, forces and stress, from any file that ASE reads, or from LMDB.

The conventions of MACE, NequIP and ASE are understood side by side: `REF_energy` and the like before the results of a
calculator, these before plain keys; a key the caller names before all of them. Units are eV and Å.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from equidyn.core.errors import InputError

Floats = NDArray[np.float64]
T = TypeVar("T")

_NAMES = {
    "energy": ("REF_energy", "energy", "free_energy", "Energy", "total_energy"),
    "forces": ("REF_forces", "forces", "force"),
    "stress": ("REF_stress", "stress"),
    "virials": ("REF_virials", "virials", "virial"),
}
_VOIGT = (0, 5, 4, 5, 1, 3, 4, 3, 2)
LABELS = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Frame:
    """One structure.

    Attributes:
        numbers: [N] atomic numbers.
        pos: [N, 3] Å.
        cell: [3, 3] lattice vectors in rows, Å; zero without a cell.
        pbc: [3].
        energy: eV; None where it is not known.
        forces: [N, 3] eV/Å, or None.
        stress: [3, 3] eV/Å³, positive under tension, or None.
        weights: of energy, forces and stress in the loss, by name; 1 where nothing is said.
        config_type: the group it is reported under, "" for none.
        head: level of theory, "" for none.
        fields: whole-number fields of the graph (`total_charge`, `spin`).
        where: file and number of the frame, for messages.
    """

    numbers: NDArray[np.int64]
    pos: Floats
    cell: Floats
    pbc: NDArray[np.bool_]
    energy: float | None = None
    forces: Floats | None = None
    stress: Floats | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    config_type: str = ""
    head: str = ""
    fields: Mapping[str, int] = field(default_factory=dict)
    where: str = "a structure"

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def isolated(self) -> bool:
        """Whether the file says that this is an isolated atom, there for its energy alone."""
        return len(self) == 1 and self.config_type.lower().replace("_", "").replace(" ", "") == "isolatedatom"

    def weight(self, label: str) -> float:
        """Weight of a label in the loss: zero if it is not known."""
        return 0.0 if getattr(self, label) is None else self.weights.get(label, 1.0)


def read_frames(path: str | Path, keys: Mapping[str, str] | None = None) -> Sequence[Frame]:
    """All structures of a file: extxyz (gzipped or not), any other format of ASE, an ASE data base, or LMDB.

    Args:
        path: the file; a folder or a name that ends in `.lmdb` is an LMDB, which is read as needed.
        keys: names of labels that differ from the conventions, `{"energy": "dft_energy"}`; among `energy`, `forces`,
            `stress`, `virials`.

    Raises:
        InputError: no such file, one that cannot be read, no structures in it, labels of the wrong shape.
    """
    path = Path(path)
    for name in keys or {}:
        if name not in _NAMES:
            raise InputError("unknown label", where="data.keys", expected=f"one of {', '.join(_NAMES)}", got=name)
    if path.is_dir() or (path.suffix == ".lmdb" and path.exists()):
        from equidyn.data.structure_store import StructureStore

        return StructureStore(path)
    return read_each(path, lambda atoms, where: from_atoms(atoms, keys, where))


def read_each(path: Path, make: Callable[[Atoms, str], T]) -> list[T]:
    """What is made of each structure of a file of ASE's.

    Args:
        path: the file.
        make: of the structure and its place, for messages.

    Raises:
        InputError: no such file, one that cannot be read, no structures in it.
    """
    made: list[T] = []
    if not path.exists():
        raise InputError("no such file", where=path, expected="structures (extxyz, any format of ASE, .db, .lmdb)")
    try:
        for atoms in _rows(path) if path.suffix == ".db" else ase.io.iread(path, index=":"):
            made.append(make(atoms, f"{path}, frame {len(made)}"))
    except InputError:
        raise
    except Exception as error:  # ASE raises whatever its readers happen to run into
        got = f"{type(error).__name__}: {error}"
        raise InputError("unreadable structure", where=f"{path}, frame {len(made)}", got=got[:200]) from None
    if not made:
        raise InputError("no structures", where=path, expected="at least one")
    return made


def _rows(path: Path) -> Iterator[Atoms]:
    """An ASE data base with the key-value pairs of its rows, which `ase.io` leaves out."""
    with ase.db.connect(path) as data:
        for row in data.select():
            yield row.toatoms(add_additional_information=True)


def from_atoms(atoms: Atoms, keys: Mapping[str, str] | None = None, where: str = "a structure") -> Frame:
    """The structure and labels of ASE's `Atoms`; they are not changed.

    Raises:
        InputError: labels of the wrong shape.
    """
    info = dict(atoms.info.get("key_value_pairs", {})) | dict(atoms.info.get("data", {})) | atoms.info
    results: Mapping[str, Any] = atoms.calc.results if atoms.calc is not None else {}
    found = {name: _find(name, atoms, info, results, keys or {}) for name in _NAMES}
    count, cell = len(atoms), np.array(atoms.cell.array, dtype=np.float64)
    energy = None if found["energy"] is None else float(_shaped(found["energy"], (), where, "energy"))
    forces = None if found["forces"] is None else _shaped(found["forces"], (count, 3), where, "forces")
    return Frame(
        numbers=np.array(atoms.numbers, dtype=np.int64),
        pos=np.array(atoms.positions, dtype=np.float64),
        cell=cell,
        pbc=np.array(atoms.pbc, dtype=bool),
        energy=energy,
        forces=forces,
        stress=_stress(found["stress"], found["virials"], cell, where),
        weights=_weights(info, where),
        config_type=str(info.get("config_type", "")),
        head=str(info.get("head", "")),
        fields={k: int(info[k]) for k in ("total_charge", "spin") if k in info},
        where=where,
    )


def _find(name: str, atoms: Atoms, info: Mapping, results: Mapping, keys: Mapping[str, str]) -> Any:
    """A label by the caller's key, by REF_*, from the calculator, by other usual keys; None where there is none."""
    own = [keys[name]] if name in keys else []
    reference, *rest = _NAMES[name]
    for place, names in ((None, [*own, reference]), (results, rest), (None, rest)):
        for key in names:
            for source in (place,) if place is not None else (info, atoms.arrays):
                if key in source and source[key] is not None:
                    return source[key]
    if own and own[0] in results:
        return results[own[0]]
    return None


def _shaped(value: Any, shape: tuple[int, ...], where: str, name: str) -> Floats:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is not a number", where=where, got=repr(value)[:60]) from None
    if array.shape != shape:
        raise InputError(f"{name} has the wrong shape", where=where, expected=list(shape), got=list(array.shape))
    return array


def _matrix(value: Any, where: str, name: str) -> Floats:
    array = np.array(value, dtype=np.float64)
    if array.shape == (6,):  # xx, yy, zz, yz, xz, xy
        array = array[list(_VOIGT)]
    return _shaped(array.reshape(3, 3) if array.shape == (9,) else array, (3, 3), where, name)


def _stress(stress: Any, virials: Any, cell: Floats, where: str) -> Floats | None:
    if stress is not None:
        return _matrix(stress, where, "stress")
    if virials is None:
        return None
    volume = abs(float(np.linalg.det(cell)))
    if volume == 0:
        raise InputError("virials without a cell volume", where=where, expected="a cell")
    return -_matrix(virials, where, "virials") / volume


def _weights(info: Mapping[str, Any], where: str) -> dict[str, float]:
    """`config_weight` for all labels, times `config_energy_weight` and so on for one."""
    whole = {"": info.get("config_weight", 1.0)}
    weights = {}
    for label in LABELS:
        try:
            given = float(whole[""]) * float(info.get(f"config_{label}_weight", 1.0))
        except (TypeError, ValueError):
            given = math.nan
        if not 0 <= given < math.inf:
            raise InputError("config weight", where=where, expected="numbers, 0 or more", got=f"{label} {given}")
        if given != 1.0:
            weights[label] = given
    return weights


def weighted(frame: Frame, factor: float) -> Frame:
    """The same structure with all weights times a factor."""
    return replace(frame, weights={label: factor * frame.weights.get(label, 1.0) for label in LABELS})


def of_head(frame: Frame, head: int) -> Frame:
    """The same structure for one head of a model of several."""
    return replace(frame, fields={**frame.fields, "head": head})
