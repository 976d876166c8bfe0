"""Molecules and crystals, each with a number to predict: QM9, or structures in a file of yours.

    data:
      dataset: properties
      path: molecules.xyz        # any format of ASE with the number in it, or the folder of QM9
      target: gap                # its name there
      unit: eV                   # of the number; QM9 knows its own
      split: cormorant           # of QM9; or a file of indices; null for random shares
      val: 0.1
      test: 0.1
      cutoff: 5.0                # Å
      edges: radius              # or bonds, of QM9

Arguments of a model that a recipe leaves out and that `fitted` offers are taken from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from equidyn.core.errors import InputError, unknown_name
from equidyn.data.frames import Frame, from_atoms, read_each
from equidyn.data.graphs import GraphDataset
from equidyn.data.qm9 import SPLITS, TARGETS, Molecules, is_qm9, read_qm9, read_sdf, split_qm9
from equidyn.data.splits import random_split, read_split
from equidyn.data.structure_checks import check_frame
from equidyn.ops.neighbors import neighbor_list

_BOND_TYPES = 4


class Structured(GraphDataset):
    """Structures and their property: `pos` (Å), `z`, `x` (which of the elements), `edge_index`, `y`; and `edge_attr`,
    the type of the bond, or in a box `edge_shift`, `cell`, `pbc`.

    Args:
        family: how samples are made.
        frames: the structures.
        index: those of this part.
        values: the property of all structures.
        unit: its unit.
    """

    def __init__(
        self, family: Properties, frames: Sequence[Frame], index: Sequence[int], values: NDArray, unit: str
    ) -> None:
        super().__init__(cache=family.cache)
        self.family, self.frames, self.index, self.values = family, frames, index, values
        self.name, self.unit = family.target, unit
        self.elements = [atomic_numbers[symbol] for symbol in family.elements]
        # A batch is of one kind: in a file with periodic boxes all structures have the fields of one.
        self.periodic = not isinstance(frames, Molecules) and any(frame.pbc.any() for frame in frames)

    def __len__(self) -> int:
        return len(self.index)

    def targets(self) -> Tensor:
        """The property of every structure [S]."""
        return torch.from_numpy(self.values[np.asarray(self.index, dtype=np.int64)])

    def atoms(self) -> Sequence[NDArray]:
        """Atomic numbers of every structure."""
        return [self.frames[i].numbers for i in self.index]

    def made(self, index: int) -> dict[str, Tensor]:
        """The fields of one sample; geometry and property in float64."""
        number = self.index[index]
        frame = self.frames[number]
        z, pos = torch.from_numpy(frame.numbers), torch.from_numpy(frame.pos)
        x = (z[:, None] == torch.tensor(self.elements)).float()
        if not bool(x.any(1).all()):
            got = chemical_symbols[int(z[~x.any(1)][0])]
            expected = f"one of data.elements ({', '.join(self.family.elements)})"
            raise InputError("an element of no feature", where=frame.where, expected=expected, got=got)
        found = {"pos": pos, "z": z, "x": x, "y": torch.tensor([self.values[number]], dtype=torch.float64)}
        if self.family.edges == "bonds":
            return found | self._bonds(number)
        cell, pbc = torch.from_numpy(frame.cell), torch.from_numpy(frame.pbc)
        try:
            found["edge_index"], shift = neighbor_list(pos, self.family.cutoff, cell, pbc)
        except InputError as error:
            raise InputError(str(error), where=frame.where) from None
        return found | ({"edge_shift": shift, "cell": cell[None], "pbc": pbc[None]} if self.periodic else {})

    def _bonds(self, number: int) -> dict[str, Tensor]:
        if not isinstance(self.frames, Molecules):
            raise InputError("bonds", where="data.edges", expected="radius, as the file has no bonds", got="bonds")
        bonds = torch.from_numpy(self.frames.bonds_of(number))
        ends = torch.cat([bonds[:, :2], bonds[:, [1, 0]]])
        order = (ends[:, 1] * (1 << 16) + ends[:, 0]).argsort()  # by receiver, then sender
        kinds = torch.eye(_BOND_TYPES)[bonds[:, 2].repeat(2)[order]]
        return {"edge_index": ends[order].T.contiguous(), "edge_attr": kinds}


@dataclass
class Properties:
    """The structures of an experiment and the number to predict.

    Attributes:
        path: a file with structures of any format of ASE, each with the number in its comment line, key-value pairs or
            results; or the folder of QM9 (see `equidyn.data.qm9`).
        target: name of the number.
        unit: its unit, for reports; QM9 knows its own.
        split: "cormorant" or "torchmd" (of QM9), or a JSON or .npz file with indices `train`, `val` and perhaps `test`;
            null for random shares.
        val, test: shares of the structures or numbers of them, where there is no `split`; or other files like `path`.
        train: learn from so many of the training structures, drawn at random; 0 for all.
        cutoff: atoms nearer than this are joined, Å.
        edges: "radius" joins by the cutoff, "bonds" by the chemical bonds, whose type (single, double, triple,
            aromatic) messages then see.
        elements: which there are; a node's features say which it is.
        cache: keep neighbours in memory; false to find them anew for each batch.
        seed: of the random shares.

    Raises:
        InputError: no such element or target, a cutoff that joins nothing; (from `part` and `read`) unusable files.
    """

    path: str
    target: str
    unit: str = ""
    split: str | None = None
    val: float | str = 0.1
    test: float | str = 0.1
    train: int = 0
    cutoff: float = 5.0
    edges: Literal["radius", "bonds"] = "radius"
    elements: tuple[str, ...] = ("H", "C", "N", "O", "F")
    cache: bool = True
    seed: int = 0

    FITTED = ("node_dim", "edge_dim", "elements", "species", "cutoff")
    """Arguments of models that `fitted` offers."""

    def __post_init__(self) -> None:
        for symbol in self.elements:
            if atomic_numbers.get(symbol, 0) < 1:
                raise unknown_name("element", symbol, atomic_numbers, where="data.elements")
        if not 0 < self.cutoff < math.inf:
            raise InputError("cutoff", where="data.cutoff", expected="more than 0", got=self.cutoff)
        if self.train < 0:
            raise InputError("number of train samples", where="data.train", expected="0 or more", got=self.train)
        self._parts: dict[str, Structured] = {}

    def fitted(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Values for arguments of models, by their names: `FITTED`."""
        return {
            "node_dim": len(self.elements),
            "edge_dim": _BOND_TYPES if self.edges == "bonds" else 0,
            "elements": sorted(atomic_numbers[symbol] for symbol in self.elements),
            "species": list(self.elements),
            "cutoff": self.cutoff,
        }

    def part(self, name: str) -> Structured:
        """The structures of one part: "train", "val" or "test"."""
        files = {"val": self.val, "test": self.test}
        if name not in self._parts and isinstance(path := files.get(name), str):
            frames, values, unit = self._known(path)
            self._parts[name] = Structured(self, frames, range(len(frames)), values, unit)
        elif name not in self._parts:
            self._parts = self._divided() | self._parts
        if name not in self._parts:
            raise unknown_name("part of the data", name, ("train", "val", "test"))
        if not len(self._parts[name]):
            raise InputError(f"no {name} structures", where=self.path, expected="at least one", got=0)
        return self._parts[name]

    def read(self, path: str | Path) -> Structured:
        """Structures of another file (any format of ASE, or SDF with its bonds), whose number need not be known."""
        frames: Sequence[Frame]
        if Path(path).suffix == ".sdf":
            frames = read_sdf(Path(path))
        else:
            frames = read_each(Path(path), lambda atoms, where: _checked(from_atoms(atoms, where=where)))
        return Structured(self, frames, range(len(frames)), np.full(len(frames), math.nan), self.unit)

    def _divided(self) -> dict[str, Structured]:
        frames, values, unit = self._known(self.path)
        count, asked = len(frames), {"val": self.val, "test": self.test}
        if self.split in SPLITS:
            if not isinstance(frames, Molecules):
                expected = "a file of indices, or null"
                raise InputError("split of QM9", where="data.split", expected=expected, got=self.split)
            parts = split_qm9(count, self.split)
        elif self.split:
            parts = read_split(Path(self.split), count)
        else:
            shares = {name: value for name, value in asked.items() if not isinstance(value, str)}
            parts = random_split(count, shares, self.seed)
        if self.train > len(parts["train"]):
            expected = f"at most {len(parts['train'])}"
            raise InputError("number of train samples", where=self.path, expected=expected, got=self.train)
        if self.train:
            order = np.random.default_rng(self.seed).permutation(len(parts["train"]))[: self.train]
            parts["train"] = [parts["train"][i] for i in order]
        return {name: Structured(self, frames, index, values, unit) for name, index in parts.items()}

    def _known(self, path: str) -> tuple[Sequence[Frame], NDArray, str]:
        """Structures, their property and its unit."""
        if is_qm9(path):
            if self.target not in TARGETS:
                raise unknown_name("property of QM9", self.target, TARGETS, where="data.target")
            molecules = read_qm9(path)
            return molecules, molecules.targets[:, list(TARGETS).index(self.target)], TARGETS[self.target]
        if Path(path).is_dir():
            raise InputError("no data", where=path, expected="a file of structures, or the folder of QM9")
        pairs = read_each(Path(path), lambda atoms, where: (_checked(from_atoms(atoms, where=where)), atoms))
        values = [_number(atoms, self.target, frame.where) for frame, atoms in pairs]
        return [frame for frame, _ in pairs], np.array(values), self.unit


def _checked(frame: Frame) -> Frame:
    check_frame(frame)
    return frame


def _number(atoms: Atoms, name: str, where: str) -> float:
    """A number that comes with a structure, by its name."""
    known = dict(atoms.info.get("key_value_pairs", {})) | dict(atoms.info.get("data", {})) | atoms.info
    known |= atoms.calc.results if atoms.calc is not None else {}
    if name not in known:
        numbers = [key for key, value in known.items() if isinstance(value, int | float | np.number)]
        raise unknown_name("property", name, numbers or ["(none)"], where=where)
    try:
        value = float(known[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"property {name}", where=where, expected="a finite number", got=str(known[name])[:60])
    return value
