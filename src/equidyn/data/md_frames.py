"""Frames of molecular dynamics: positions of the same atoms at equidistant times, from the files people have.

| file | read by |
|---|---|
| `.npz` of MD17 and sGDML (`R [F, N, 3]`, `z [N]`), of rMD17 (`coords`, `nuclear_charges`, `old_indices`) | NumPy |
| with a topology: DCD, XTC, TRR, NetCDF ..., all that MDAnalysis reads | MDAnalysis (extra `MDAnalysis`), by frames |
| extxyz, xyz, `.traj`, XDATCAR ..., all else that ASE reads | ASE |

The frames of rMD17 are a part of those of MD17, in another order: `old_indices` says which, and frames that are not
there are missing here. Lengths are in Å.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.data
import ase.io
import numpy as np

from equidyn.core.errors import InputError
from equidyn.core.extras import require
from equidyn.core.files import write_arrays
from equidyn.core.units import KCAL_MOL

NEEDS_TOPOLOGY = (".dcd", ".xtc", ".trr", ".nc", ".ncdf", ".mdcrd", ".lammpsdump", ".h5md")


@dataclass(frozen=True)
class Frames:
    """N atoms at some of F equidistant times.

    Attributes:
        where: the file, for messages.
        numbers: [N] atomic numbers; 0 where nothing tells the element.
        charges: [N] in e, or None.
        present: [F] which frames are there.
        frame_time: fs between two frames, or None.
        source: what gives the positions of a frame.
    """

    where: Path
    numbers: np.ndarray
    charges: np.ndarray | None
    present: np.ndarray
    frame_time: float | None
    source: _InMemory | _Streamed

    def __len__(self) -> int:
        return len(self.present)

    def read(self, which: np.ndarray) -> np.ndarray:
        """Positions [..., N, 3] at frames [...], float64; each frame is read once.

        Raises:
            InputError: a frame that cannot be read, NaN or infinite positions.
        """
        frames, back = np.unique(which, return_inverse=True)
        positions = self.source.read(frames)
        bad = np.argwhere(~np.isfinite(positions).all(-1))
        if len(bad):
            got = f"frame {frames[bad[0, 0]]}, atom {bad[0, 1]}"
            raise InputError("positions hold NaN or infinity", where=self.where, expected="finite numbers", got=got)
        return positions[back.reshape(np.shape(which))]


@dataclass(frozen=True)
class _InMemory:
    positions: np.ndarray  # [rows, N, 3]
    rows: np.ndarray  # [F] row of each frame, -1 where it is missing

    def read(self, frames: np.ndarray) -> np.ndarray:
        return self.positions[self.rows[frames]].astype(np.float64)


@dataclass(frozen=True)
class _Streamed:
    """Frames on disk; one at a time is in memory."""

    atoms: Any  # MDAnalysis AtomGroup

    def read(self, frames: np.ndarray) -> np.ndarray:
        positions = np.empty((len(frames), len(self.atoms), 3))
        trajectory = self.atoms.universe.trajectory
        for row, frame in enumerate(frames):
            try:
                trajectory[int(frame)]
            except Exception as error:
                expected = f"{len(trajectory)} whole frames"
                what = "truncated or corrupt trajectory"
                raise InputError(
                    what, where=f"{trajectory.filename}, frame {frame}", expected=expected, got=error
                ) from None
            positions[row] = self.atoms.positions
        return positions


def read_frames(path: str | Path, topology: str | Path | None = None, selection: str = "heavy") -> Frames:
    """Open a trajectory.

    Args:
        path: the trajectory.
        topology: the file with the atoms (PSF, PDB, PRMTOP, GRO, TPR ...) of a trajectory that has none; opens `path`
            with MDAnalysis. It may be `path` itself (PDB with several models).
        selection: "heavy" (all but hydrogen), "all", or with a topology any selection of MDAnalysis ("backbone",
            "protein and name CA").

    Raises:
        InputError: no such file, a file that cannot be read or is cut short, fewer than two frames, a time step of
            zero, atoms of topology and trajectory that do not match, a selection that is wrong or empty.
    """
    path = Path(path)
    for file, what in ((path, "a trajectory"), (topology, "the topology of the trajectory")):
        if file is not None and not Path(file).is_file():
            raise InputError("no such file", where=file, expected=what)
    if topology is not None:
        frames = _read_streamed(path, Path(topology), selection)
    elif path.suffix.lower() in NEEDS_TOPOLOGY:
        raise InputError("no topology", where=path, expected="topology: the file with the atoms (.psf, .pdb ...)")
    else:
        if selection not in ("heavy", "all"):
            raise InputError("selection", where=path, expected="heavy or all; others need a topology", got=selection)
        frames = _read_npz(path, selection) if path.suffix == ".npz" else _read_ase(path, selection)
    if frames.present.sum() < 2:
        raise InputError("no velocity", where=path, expected="2 or more frames", got=int(frames.present.sum()))
    if frames.frame_time is not None and not 0 < frames.frame_time < float("inf"):
        raise InputError("time step", where=path, expected="more than 0 fs", got=frames.frame_time)
    return frames


def _chosen(numbers: np.ndarray, selection: str, where: Path) -> np.ndarray:
    """Indices of the selected atoms."""
    which = np.flatnonzero(numbers != 1) if selection == "heavy" else np.arange(len(numbers))
    if not len(which):
        raise InputError("empty selection", where=where, expected="atoms", got=f"selection {selection!r}")
    return which


def _read_npz(path: Path, selection: str) -> Frames:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = {"R": "R", "z": "z"} if "R" in archive.files else {"R": "coords", "z": "nuclear_charges"}
            for name in names.values():
                if name not in archive.files:
                    expected = "R and z (MD17), or coords and nuclear_charges (rMD17)"
                    raise InputError(f"no array {name!r}", where=path, expected=expected, got=", ".join(archive.files))
            positions, numbers = archive[names["R"]], archive[names["z"]]
            old = archive["old_indices"] if "old_indices" in archive.files else None
            frame_time = float(archive["dt"]) if "dt" in archive.files else None
    except InputError:
        raise
    except Exception as error:
        what = "pickled array" if "allow_pickle" in str(error) else "truncated or corrupt file"
        raise InputError(what, where=path, expected="an .npz without pickles", got=type(error).__name__) from None
    if positions.ndim != 3 or positions.shape[2] != 3 or positions.dtype.kind != "f":
        got = f"{positions.dtype} {list(positions.shape)}"
        raise InputError(f"{names['R']} has the wrong shape", where=path, expected="floats [F, N, 3]", got=got)
    if numbers.shape != positions.shape[1:2] or numbers.dtype.kind not in "iu" or (numbers < 1).any():
        expected = f"{positions.shape[1]} atomic numbers"
        raise InputError(f"{names['z']} does not match", where=path, expected=expected, got=list(numbers.shape))
    order = np.arange(len(positions)) if old is None else old
    if order.shape != (len(positions),) or order.dtype.kind not in "iu" or (len(order) and order.min() < 0):
        raise InputError("old_indices do not match", where=path, expected=f"{len(positions)} frame numbers")
    rows = np.full(int(order.max()) + 1 if len(order) else 0, -1)
    rows[order] = np.arange(len(order))
    which = _chosen(numbers, selection, path)
    return Frames(
        path, numbers[which].astype(np.int64), None, rows >= 0, frame_time, _InMemory(positions[:, which], rows)
    )


def _read_ase(path: Path, selection: str) -> Frames:
    positions: list[np.ndarray] = []
    numbers = which = np.zeros(0, dtype=np.int64)
    try:
        for atoms in ase.io.iread(path, index=":"):
            if not positions:
                numbers, which = atoms.numbers, _chosen(atoms.numbers, selection, path)
            elif not np.array_equal(atoms.numbers, numbers):
                expected = f"the {len(numbers)} atoms of frame 0"
                got = atoms.get_chemical_formula()
                raise InputError(f"other atoms in frame {len(positions)}", where=path, expected=expected, got=got)
            positions.append(atoms.positions[which])
    except InputError:
        raise
    except Exception as error:
        expected = "a trajectory that ASE reads, or a topology for MDAnalysis"
        got = f"{type(error).__name__}: {error}"
        raise InputError("cannot read the trajectory", where=path, expected=expected, got=got) from None
    if not positions:
        raise InputError("no velocity", where=path, expected="2 or more frames", got=0)
    rows = np.arange(len(positions))
    return Frames(path, numbers[which].astype(np.int64), None, rows >= 0, None, _InMemory(np.stack(positions), rows))


def _read_streamed(path: Path, topology: Path, selection: str) -> Frames:
    MDAnalysis = require("MDAnalysis", "MDAnalysis", "a trajectory with a topology", where=path)
    with warnings.catch_warnings(action="ignore"):
        try:
            universe = MDAnalysis.Universe(str(topology))
        except Exception as error:
            raise InputError(
                "cannot read the topology", where=topology, expected="a file MDAnalysis reads", got=error
            ) from None
        try:
            universe.load_new(str(path))
        except Exception as error:
            expected = f"a trajectory of the {len(universe.atoms)} atoms of {topology}"
            what = (
                "topology and trajectory do not match" if "atoms" in str(error) else "truncated or corrupt trajectory"
            )
            raise InputError(what, where=path, expected=expected, got=error) from None
        if len(universe.trajectory.ts.positions) != len(universe.atoms):  # some readers do not compare
            expected = f"the {len(universe.atoms)} atoms of {topology}"
            got = f"{len(universe.trajectory.ts.positions)} atoms"
            raise InputError("topology and trajectory do not match", where=path, expected=expected, got=got)
        numbers = _elements(universe)
        atoms = _select(universe, selection, numbers, path)
        count, frame_time = len(universe.trajectory), 1000 * float(universe.trajectory.dt)
        charges = atoms.charges.astype(np.float64) if hasattr(atoms, "charges") else None
    if path.suffix.lower() == ".dcd":
        _refuse_cut_dcd(path, count)
    return Frames(path, numbers[atoms.indices], charges, np.ones(count, dtype=bool), frame_time, _Streamed(atoms))


def _elements(universe: Any) -> np.ndarray:
    """Atomic numbers, from the topology or else guessed from types and names; 0 where that fails."""
    if not hasattr(universe.atoms, "elements") or not all(universe.atoms.elements):
        universe.guess_TopologyAttrs(to_guess=["elements"])
    symbols = [str(symbol).capitalize() for symbol in universe.atoms.elements]
    return np.array([ase.data.atomic_numbers.get(symbol, 0) for symbol in symbols], dtype=np.int64)


def _select(universe: Any, selection: str, numbers: np.ndarray, path: Path) -> Any:
    if selection in ("heavy", "all"):
        return universe.atoms[_chosen(numbers, selection, path)]
    try:
        atoms = universe.select_atoms(selection)
    except Exception as error:
        raise InputError(
            "selection", where=path, expected="MDAnalysis's selection language", got=f"{selection!r}: {error}"
        ) from None
    if "backbone" in selection or "protein" in selection:
        _refuse_unknown_residues(universe, path)
    if not len(atoms):
        raise InputError("empty selection", where=path, expected="atoms", got=f"selection {selection!r}")
    return atoms


def _refuse_unknown_residues(universe: Any, path: Path) -> None:
    """A residue with the backbone of an amino acid and a name that MDAnalysis does not know would be left out."""
    built = universe.select_atoms("name CA and not protein").residues
    for residue in built:
        if {"N", "CA", "C"} <= set(residue.atoms.names):
            expected = "an amino acid that MDAnalysis knows; or select by atom names: name N CA C O"
            raise InputError("unknown residue", where=path, expected=expected, got=f"{residue.resname} {residue.resid}")


def _refuse_cut_dcd(path: Path, count: int) -> None:
    """The header says how many frames were written; MDAnalysis counts what the size of the file has room for."""
    with path.open("rb") as file:
        head = file.read(12)
    for order in "<>":
        size, tag, said = struct.unpack(f"{order}i4si", head)
        if size == 84 and tag == b"CORD" and said > count:
            raise InputError("truncated trajectory", where=path, expected=f"the {said} frames of its header", got=count)


def write_md17(
    path: str | Path,
    numbers: np.ndarray,
    positions: np.ndarray,
    energies: np.ndarray,
    forces: np.ndarray,
    frame_time: float,
    meta: Mapping[str, Any],
) -> None:
    """Write a trajectory as MD17's files are: `R` (Å), `z`, `E` (kcal/mol), `F` (kcal/mol/Å); and `dt` (fs), `meta`.

    Args:
        path: the file, `.npz`; it appears whole or not at all.
        numbers: [N].
        positions: [F, N, 3] in Å.
        energies: [F] in eV.
        forces: [F, N, 3] in eV/Å.
        frame_time: fs.
        meta: what JSON can hold.
    """
    arrays: dict[str, Any] = {
        "R": positions,
        "z": numbers.astype(np.uint8),
        "E": energies[:, None] * KCAL_MOL,
        "F": forces * KCAL_MOL,
    }
    write_arrays(Path(path), arrays | {"dt": np.float64(frame_time), "meta": json.dumps(dict(meta))})
