"""QM9: 130,831 small molecules with 19 properties, from the files that torch-geometric and DeepChem fetch.

| in the folder, or in its `raw` | |
|---|---|
| `gdb9.sdf`, `gdb9.sdf.csv`, `uncharacterized.txt` | the data set as text, properties in double precision |
| `qm9_v3.pt` | torch-geometric's copy for machines without rdkit, in single precision |

Nothing is fetched, and no pickle is run. Units are torch-geometric's: Å, and those of `TARGETS`.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers
from numpy.typing import NDArray

from equidyn.core.errors import InputError
from equidyn.data.frames import Frame

_HARTREE, _KCAL_MOL = 27.211386246, 0.04336414  # eV, the numbers torch-geometric has
_PROPERTIES = (  # name, unit, column of the table, its unit in ours
    ("mu", "D", "mu", 1.0),
    ("alpha", "a0³", "alpha", 1.0),
    ("homo", "eV", "homo", _HARTREE),
    ("lumo", "eV", "lumo", _HARTREE),
    ("gap", "eV", "gap", _HARTREE),
    ("r2", "a0²", "r2", 1.0),
    ("zpve", "eV", "zpve", _HARTREE),
    ("U0", "eV", "u0", _HARTREE),
    ("U", "eV", "u298", _HARTREE),
    ("H", "eV", "h298", _HARTREE),
    ("G", "eV", "g298", _HARTREE),
    ("Cv", "cal/(mol K)", "cv", 1.0),
    ("U0_atom", "eV", "u0_atom", _KCAL_MOL),
    ("U_atom", "eV", "u298_atom", _KCAL_MOL),
    ("H_atom", "eV", "h298_atom", _KCAL_MOL),
    ("G_atom", "eV", "g298_atom", _KCAL_MOL),
    ("A", "GHz", "A", 1.0),
    ("B", "GHz", "B", 1.0),
    ("C", "GHz", "C", 1.0),
)
TARGETS = {name: unit for name, unit, _, _ in _PROPERTIES}
"""The properties, in torch-geometric's order, and their units."""

_WHOLE = 130_831
_SPLITS = {"cormorant": (100_000, 17_748), "torchmd": (110_000, 10_000)}  # training, validation; the rest tests
SPLITS = tuple(_SPLITS)
"""Named divisions: of Cormorant, EGNN and SEGNN, and of TorchMD-NET and Equiformer."""


@dataclass(frozen=True)
class Molecules(Sequence):
    """Molecules, their bonds and properties, side by side.

    Attributes:
        begins: [M + 1] where each molecule's atoms begin.
        numbers: [A] atomic numbers.
        pos: [A, 3] Å.
        bond_begins: [M + 1] where each molecule's bonds begin.
        bonds: [B, 3] two atoms, counted from 0 in their molecule, and the type: 0 single, 1 double, 2 triple,
            3 aromatic.
        targets: [M, 19] the properties, in the order of `TARGETS`.
        path: where they come from.
    """

    begins: NDArray[np.int64]
    numbers: NDArray[np.int64]
    pos: NDArray[np.float64]
    bond_begins: NDArray[np.int64]
    bonds: NDArray[np.int64]
    targets: NDArray[np.float64]
    path: Path

    def __len__(self) -> int:
        return len(self.begins) - 1

    def __getitem__(self, index: Any) -> Any:
        atoms = slice(self.begins[index], self.begins[index + 1])
        return Frame(
            self.numbers[atoms],
            self.pos[atoms],
            np.zeros((3, 3)),
            np.zeros(3, dtype=bool),
            where=f"{self.path}, molecule {index}",
        )

    def bonds_of(self, index: int) -> NDArray[np.int64]:
        """The bonds of one molecule [B, 3], each once."""
        return self.bonds[self.bond_begins[index] : self.bond_begins[index + 1]]


def is_qm9(path: str | Path) -> bool:
    """Whether a folder holds one of the files above."""
    return _home(Path(path)) is not None


def _home(path: Path) -> Path | None:
    for folder in (path, path / "raw"):
        if any((folder / name).is_file() for name in ("gdb9.sdf", "qm9_v3.pt")):
            return folder
    return None


def read_qm9(path: str | Path) -> Molecules:
    """The molecules of QM9, without those whose geometry is known to be inconsistent.

    Args:
        path: the folder (see the module).

    Raises:
        InputError: a file is missing, truncated or of another kind.
    """
    home = _home(Path(path))
    if home is None:
        raise InputError("QM9 is not there", where=path, expected="gdb9.sdf, gdb9.sdf.csv and uncharacterized.txt")
    made = _from_text(home) if (home / "gdb9.sdf").is_file() else _from_tensors(home / "qm9_v3.pt")
    for name, values in (("positions", made.pos), ("properties", made.targets)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} hold NaN or infinity", where=home, expected="finite numbers")
    return made


def split_qm9(count: int, name: str) -> dict[str, list[int]]:
    """A named division (`SPLITS`), in its published order; of fewer molecules the same shares."""
    train, val = (number * count // _WHOLE for number in _SPLITS[name])
    if name == "cormorant":
        order = np.random.RandomState(0).permutation(count)
        val = count - count // 10 - train
    else:
        order = np.random.default_rng(1).permutation(count)
    cut = {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}
    return {part: indices.tolist() for part, indices in cut.items()}


# ---- The text files ------------------------------------------------------------------------------------------------


def _from_text(home: Path) -> Molecules:
    targets = _table(home / "gdb9.sdf.csv")
    left_out = _uncharacterized(home / "uncharacterized.txt")
    molecules = read_sdf(home / "gdb9.sdf", left_out)
    kept = [number for number in range(len(targets)) if number + 1 not in left_out]
    if len(molecules) != len(kept):
        expected = f"{len(kept)} molecules beside those to leave out, as in the table"
        raise InputError("molecules and properties", where=home, expected=expected, got=len(molecules))
    return replace(molecules, targets=targets[kept])


def read_sdf(path: Path, left_out: Collection[int] = ()) -> Molecules:
    """The molecules of an SDF file (V2000) and their bonds; their properties are not known (NaN).

    Args:
        path: the file.
        left_out: numbers, from 1, of molecules to leave out.

    Raises:
        InputError: a file that is missing, truncated or of another kind, no molecules.
    """
    if not path.is_file():
        raise InputError("no such file", where=path, expected="SDF (V2000)")
    parts = [record for number, record in enumerate(_records(path), start=1) if number not in left_out]
    if not parts:
        raise InputError("no molecules", where=path, expected="at least one")
    atoms, bonds = zip(*parts, strict=True)
    table = np.concatenate(atoms)
    return Molecules(
        _begins(atoms),
        table[:, 0].astype(np.int64),
        table[:, 1:].copy(),
        _begins(bonds),
        np.concatenate(bonds),
        np.full((len(parts), len(TARGETS)), np.nan),
        path,
    )


def _begins(parts: Sequence[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


def _records(path: Path) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Atoms [N, 4] (atomic number and position) and bonds [B, 3] of each record of an SDF file (V2000)."""
    number = 0
    with path.open(encoding="ascii", errors="replace") as file:
        while "".join(head := list(islice(file, 4))).strip():
            try:
                size, joined = int(head[3][:3]), int(head[3][3:6])
                lines = list(islice(file, size + joined))
                atoms = [
                    (atomic_numbers[row[31:34].strip()], float(row[:10]), float(row[10:20]), float(row[20:30]))
                    for row in lines[:size]
                ]
                bonds = [(int(row[:3]) - 1, int(row[3:6]) - 1, int(row[6:9]) - 1) for row in lines[size:]]
                if len(lines) < size + joined or not any(line.startswith("$$$$") for line in file):
                    raise ValueError("the file ends within it")
            except (ValueError, IndexError, KeyError) as error:
                where = f"{path}, molecule {number + 1}"
                raise InputError("truncated or corrupt file", where=where, expected="SDF (V2000)", got=error) from None
            yield np.array(atoms).reshape(-1, 4), np.array(bonds, dtype=np.int64).reshape(-1, 3)
            number += 1


def _table(path: Path) -> NDArray[np.float64]:
    """[M, 19], in the order and units of `TARGETS`."""
    if not path.is_file():
        raise InputError("no such file", where=path, expected="the properties of QM9 beside its molecules")
    columns = [column for _, _, column, _ in _PROPERTIES]
    try:
        with path.open(encoding="ascii", newline="") as file:
            rows = csv.reader(file)
            head = next(rows)
            order = [head.index(column) for column in columns]
            values = np.array([[float(row[k]) for k in order] for row in rows]).reshape(-1, len(order))
    except (ValueError, IndexError, StopIteration, UnicodeDecodeError, csv.Error) as error:
        expected = f"a table with the columns {', '.join(columns)}"
        raise InputError("truncated or corrupt file", where=path, expected=expected, got=error) from None
    return values * np.array([factor for _, _, _, factor in _PROPERTIES])


def _uncharacterized(path: Path) -> set[int]:
    """Numbers, from 1, of the molecules to leave out: the first word of each line but nine of heading and the last."""
    if not path.is_file():
        raise InputError("no such file", where=path, expected="the list of molecules of QM9 to leave out")
    lines = path.read_text(encoding="ascii", errors="replace").rstrip().splitlines()[9:-1]
    try:
        return {int(line.split()[0]) for line in lines}
    except (ValueError, IndexError) as error:
        expected = "a number first in each line after the ninth"
        raise InputError("truncated or corrupt file", where=path, expected=expected, got=error) from None


# ---- Torch-geometric's copy ----------------------------------------------------------------------------------------


def _from_tensors(path: Path) -> Molecules:
    try:
        made = torch.load(path, map_location="cpu", weights_only=True)
        pos = [one["pos"].double().numpy().reshape(-1, 3) for one in made]
        numbers = [one["z"].long().numpy() for one in made]
        bonds = [_bonds(one) for one in made]
        targets = torch.cat([one["y"].double().view(1, len(TARGETS)) for one in made]).numpy()
        return Molecules(
            _begins(pos),
            np.concatenate(numbers),
            np.concatenate(pos),
            _begins(bonds),
            np.concatenate(bonds),
            targets,
            path,
        )
    except Exception as error:  # PyTorch raises whatever it meets in a broken file
        got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError("truncated or corrupt file", where=path, expected="qm9_v3.pt", got=got) from None


def _bonds(molecule: dict[str, Any]) -> NDArray[np.int64]:
    """Each bond once; none where the file does not tell."""
    if "edge_index" not in molecule:
        return np.zeros((0, 3), dtype=np.int64)
    ends, kinds = molecule["edge_index"], molecule["edge_attr"].argmax(1)
    once = ends[0] < ends[1]
    return torch.cat([ends[:, once], kinds[None, once]]).T.numpy()
