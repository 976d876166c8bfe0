"""Structures with energies, forces and stresses: the data of interatomic potentials.

    data:
      dataset: structures
      path: train.xyz            # extxyz (.gz), any format of ASE, .db or .lmdb
      val: 0.1                   # a share, a number of structures, or a file
      test: {300K: test.xyz}     # likewise, or several files by name
      cutoff: 5.0                # Å
      reference: auto            # energies of the isolated atoms

Arguments of a model that a recipe leaves out and that `fitted` offers are taken from here, once, and stay with the run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from equidyn.core.errors import DataWarning, InputError
from equidyn.data.frames import Frame, of_head, read_frames, weighted
from equidyn.data.references import (
    References,
    Statistics,
    isolated_energies,
    least_squares,
    named_energies,
    nearest_pairs,
    statistics,
)
from equidyn.data.splits import random_split, read_split
from equidyn.data.structure_checks import check_frame, findings, lone_atoms
from equidyn.data.structure_dataset import StructureDataset
from equidyn.data.structure_store import StructureStore

_STATISTICS_FROM = 10_000  # structures at most, evenly spread


@dataclass
class Structures:
    """The structures of an experiment.

    Attributes:
        path: file of the structures to learn from.
        val: validation structures: a share of them, a number of them, or another file.
        test: test structures, likewise; or several files, by the name they are reported under; null to test on the
            validation structures.
        split: JSON or .npz file with indices `train`, `val` and perhaps `test` into `path`, instead of shares.
        cutoff: largest distance of neighbours, Å; the `cutoff` of the model.
        reference: energies of the isolated atoms: "isolated" (single atoms of config type IsolatedAtom in `path`, or
            those of the file `isolated`), "least_squares", "none", or energies by chemical symbol; "auto" takes
            isolated atoms where there are any, else least squares.
        isolated: file with the isolated atoms.
        shift: energy added per atom by the model: "mean" (over the training structures, beyond the isolated atoms) or
            "none", for an isolated atom to keep its own energy.
        keys: names of labels in the files that differ from the usual ones, `{energy: dft_energy}`.
        config_weights: weights in the loss by config type.
        head: keep only structures of this head (level of theory); null for all.
        cache: keep neighbour lists in memory; false to find them anew for each batch.
        replay: file of structures to train on besides, when a trained model learns something new.
        replay_weight: their weight in the loss.
        replay_head: give them a head of their own, for energies of another level of theory than the new ones: head 0
            learns the new structures, head 1 keeps what the model knew (MACE, with `train.init_from`).
        seed: of the random shares.

    Raises:
        InputError: (from `part`) unusable files or values.
    """

    path: str
    val: float | str = 0.1
    test: float | str | dict[str, str] | None = None
    split: str | None = None
    cutoff: float = 5.0
    reference: str | dict[str, float] = "auto"
    isolated: str | None = None
    shift: Literal["mean", "none"] = "mean"
    keys: dict[str, str] = field(default_factory=dict)
    config_weights: dict[str, float] = field(default_factory=dict)
    head: str | None = None
    cache: bool = True
    replay: str | None = None
    replay_weight: float = 1.0
    replay_head: bool = False
    seed: int = 0

    FITTED = ("elements", "species", "cutoff", "neighbours", "mean_neighbors", "scale", "shift", "reference")
    """Arguments of models that `fitted` offers."""

    def __post_init__(self) -> None:
        self._files: dict[str, Sequence[Frame]] = {}
        self._atoms: dict[int, float] = {}
        self._parts: dict[str, StructureDataset] = {}
        if self.replay_head and not self.replay:
            raise InputError("a head for replay", where="data.replay_head", expected="data.replay, the structures")

    def part(self, name: str) -> StructureDataset:
        """The structures of one part: "train", "val" or "test" (all test files in one)."""
        if name == "test":
            return self._dataset([frame for part in self.tests().values() for frame in part.frames])
        if not self._parts:
            self._divide()
        return self._parts[name]

    def tests(self) -> dict[str, StructureDataset]:
        """The test sets by name; the validation structures if there are no others."""
        if not self._parts:
            self._divide()
        return {name: part for name, part in self._parts.items() if name not in ("train", "val")} or {
            "validation": self._parts["val"]
        }

    def references(self, elements: Sequence[int] = ()) -> References:
        """Energies of the isolated atoms, by the rule of the recipe.

        Args:
            elements: for which elements; those of the training structures if not given.

        Raises:
            InputError: an element without one, or an unknown rule.
        """
        train = _new(_some(self.part("train").frames))
        present = sorted({int(z) for frame in train for z in np.unique(frame.numbers)})
        if unknown := [chemical_symbols[z] for z in present if elements and z not in elements]:
            expected = f"among {', '.join(chemical_symbols[z] for z in elements)}"
            raise InputError("element that the model does not know", where=self.path, expected=expected, got=unknown)
        elements = elements or present
        if isinstance(self.reference, Mapping):
            return _complete(References(named_energies(self.reference), "from the recipe"), elements, "data.reference")
        if self.reference not in ("auto", "isolated", "least_squares", "none"):
            expected = "auto, isolated, least_squares, none, or energies by chemical symbol"
            raise InputError("reference", where="data.reference", expected=expected, got=self.reference)
        if self.isolated:
            self._atoms = isolated_energies(read_frames(self.isolated, self.keys))
        if self.reference == "none":
            return References(dict.fromkeys(elements, 0.0), "none")
        if self._atoms and self.reference != "least_squares":
            known = References(self._atoms, f"from {Path(self.isolated or self.path).name}")
            return _complete(known, elements, self.isolated or self.path)
        if self.reference == "isolated":
            expected = "single atoms with config_type=IsolatedAtom, or data.isolated"
            raise InputError("no isolated atoms", where=self.path, expected=expected)
        found = References(least_squares(train), "least squares over the training energies")
        return _complete(found, elements, "least squares over the training energies")

    def fitted(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Values for arguments of models, by their names, from the training structures: `FITTED`.

        Args:
            given: arguments that the recipe gives; `elements` or `species` among them say for which elements.

        Raises:
            InputError: see `references`.
        """
        given = given or {}
        asked = given.get("elements") or sorted(atomic_numbers.get(s, 0) for s in given.get("species") or ())
        part, references = self.part("train"), self.references(asked)
        chosen = [i for i in _spread(len(part)) if not self.replay_head or _new([part.frames[i]])]
        degrees = [
            torch.bincount(part.tensors(i)["edge_index"][1], minlength=len(part.frames[i])).numpy() for i in chosen
        ]
        found = statistics([part.frames[i] for i in chosen], degrees, references)
        if any((degree == 0).any() for degree in degrees):
            for finding in lone_atoms([part.frames[i] for i in chosen], self.cutoff, self.path):
                warnings.warn(DataWarning(finding), stacklevel=2)
        print_fit(references, found)
        shift = found.energy_mean if self.shift == "mean" else 0.0
        elements = sorted(references.energies)
        return {
            "elements": elements,
            "species": [chemical_symbols[z] for z in elements],
            "cutoff": self.cutoff,
            "neighbours": found.neighbours,
            "mean_neighbors": found.neighbours,
            "scale": {chemical_symbols[z]: found.force_rms_of[z] for z in elements},
            "shift": {chemical_symbols[z]: references.energies[z] + shift for z in elements},
            "reference": {
                "atoms": [references.energies[z] for z in elements],
                "scale": found.force_rms,
                "shift": shift,
            },
        }

    def facts(self) -> dict[str, Any]:
        """What a run keeps of its training structures: the smallest distance of each pair of elements."""
        part = self.part("train")
        return {"nearest": nearest_pairs(part.tensors(i) for i in _spread(len(part)))}

    # ---- From files to parts ----

    def _divide(self) -> None:
        frames = self._read(self.path)
        indices = self._indices(len(frames))
        parts = {name: _pick(frames, which) for name, which in indices.items()}
        if isinstance(self.val, str):
            parts["val"] = self._read(self.val)
        if isinstance(self.test, str):
            parts["test"] = self._read(self.test)
        elif isinstance(self.test, Mapping):
            if clash := {"train", "val"} & self.test.keys():
                raise InputError("name of a test set", where="data.test", expected="another name", got=min(clash))
            parts |= {name: self._read(path) for name, path in self.test.items()}
        for name in ("train", "val"):
            if not len(parts[name]):
                raise InputError(f"no {name} structures", where=self.path, expected="at least one", got=len(frames))
        for finding in findings(_some(parts["train"]), self.path):
            warnings.warn(DataWarning(finding), stacklevel=2)
        known = {int(z) for frame in _some(parts["train"]) for z in np.unique(frame.numbers)}
        for name, part in parts.items():
            _refuse_new_elements(part if name != "train" else [], known, name)
        if self.replay:
            extra = [weighted(frame, self.replay_weight) for frame in self._read(self.replay)]
            if self.replay_head:
                parts = {name: [of_head(frame, 0) for frame in part] for name, part in parts.items()}
                extra = [of_head(frame, 1) for frame in extra]
            parts["train"] = [*parts["train"], *extra]
        self._parts = {name: self._dataset(part) for name, part in parts.items()}

    def _dataset(self, frames: Sequence[Frame]) -> StructureDataset:
        inside = isinstance(frames, list)  # in memory
        names = list(dict.fromkeys(frame.config_type for frame in frames)) if inside else []
        return StructureDataset(frames, self.cutoff, cache=self.cache and inside, names=names)

    def _read(self, path: str) -> Sequence[Frame]:
        """The structures of a file, checked, without isolated atoms (whose energies are kept)."""
        if path in self._files:
            return self._files[path]
        frames = read_frames(path, self.keys)
        if isinstance(frames, list):
            alone = [frame for frame in frames if frame.isolated]
            if alone and path == self.path:
                self._atoms = isolated_energies(alone)
            kept = [frame for frame in frames if not frame.isolated and (self.head is None or frame.head == self.head)]
            if not kept:
                raise InputError("no structures", where=path, expected=f"some of head {self.head}, beside lone atoms")
            frames = [self._weighted(frame) for frame in kept]
            for frame in frames:
                check_frame(frame)
        else:
            if self.head is not None or self.config_weights:
                where = "data.head or data.config_weights"
                raise InputError("option for files in memory", where=where, expected="none with an LMDB", got=path)
            if path == self.path and isinstance(frames, StructureStore):
                self._atoms = named_energies(frames.isolated)
        self._files[path] = frames
        return frames

    def _weighted(self, frame: Frame) -> Frame:
        factor = self.config_weights.get(frame.config_type, 1.0)
        return frame if factor == 1.0 else weighted(frame, factor)

    def _indices(self, count: int) -> dict[str, list[int]]:
        if self.split:
            return read_split(Path(self.split), count)
        asked = {"val": self.val, "test": self.test}
        wanted = {name: value for name, value in asked.items() if isinstance(value, int | float)}
        return {"val": [], **random_split(count, wanted, self.seed)}


def print_fit(references: References, found: Statistics) -> None:
    """Say what was taken from the data."""
    print(references)
    print(
        f"mean number of neighbours {found.neighbours:.3f}, force RMS {found.force_rms:.4f} eV/Å, "
        f"mean energy per atom beyond the isolated atoms {found.energy_mean:.4f} eV"
    )


def _spread(count: int) -> list[int]:
    if count <= _STATISTICS_FROM:
        return list(range(count))
    return np.linspace(0, count - 1, _STATISTICS_FROM).round().astype(int).tolist()


def _some(frames: Sequence[Frame]) -> list[Frame]:
    """All structures, or as many as statistics are made of."""
    return [frames[i] for i in _spread(len(frames))]


def _new(frames: Sequence[Frame]) -> list[Frame]:
    """Those that are not replayed for a head of their own."""
    return [frame for frame in frames if not frame.fields.get("head", 0)]


class _Chosen(Sequence):
    """Some of the structures of a sequence that is read as needed."""

    def __init__(self, frames: Sequence[Frame], which: Sequence[int]) -> None:
        self.frames, self.which = frames, which

    @property
    def atom_counts(self) -> Any:
        """Atoms of each structure, where that is known without reading it."""
        known = getattr(self.frames, "atom_counts", None)
        return None if known is None else known[list(self.which)]

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: Any) -> Any:
        return self.frames[self.which[index]]


def _pick(frames: Sequence[Frame], which: Sequence[int]) -> Sequence[Frame]:
    return [frames[i] for i in which] if isinstance(frames, list) else _Chosen(frames, which)


def _complete(known: References, elements: Sequence[int], where: str) -> References:
    missing = [chemical_symbols[z] for z in elements if z not in known.energies]
    if missing:
        raise InputError("no energy of the isolated atom", where=where, expected="one per element", got=missing)
    return References({z: known.energies[z] for z in elements}, known.source)


def _refuse_new_elements(frames: Sequence[Frame], known: set[int], name: str) -> None:
    for frame in _some(frames):
        new = sorted({int(z) for z in np.unique(frame.numbers)} - known)
        if new:
            symbols = ", ".join(chemical_symbols[z] for z in sorted(known))
            expected = f"the elements of the training structures ({symbols})"
            raise InputError(
                f"unknown element in the {name} structures",
                where=frame.where,
                expected=expected,
                got=chemical_symbols[new[0]],
            )
