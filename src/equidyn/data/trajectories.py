"""The trajectory file: one `.npz`, no pickles, written atomically.

| array | shape | dtype | meaning |
|---|---|---|---|
| `positions` | [S, F, N, 3] | float32 or float64 | positions of N particles of S trajectories at F frames |
| `velocities` | [S, F, N, 3] | float32 or float64 | velocities at the same frames |
| `times` | [F] | float64 | times of the frames, counted from the initial state |
| `charges` | [S, N] | float64 | if the particles have charges |
| `masses` | [S, N] | float64 | if they have masses; without this array all masses are 1 |
| `couplings` | [S, N, N] | float64 | if springs join them: strength between i and j, symmetric, zero diagonal |
| `cell` | [S, 3, 3] | float64 | if they move in periodic boxes: lattice vectors in rows; positions may lie outside |
| `deviations` | [S, F, N] | float64 | of predictions: standard deviation of each position, per coordinate |
| `meta` | [] | text | JSON: `format_version`, `kind`, `constants`, `seed`, `integrator`, `equidyn` (version) ... |

Everything is unitless. Any tool that reads npz can read it; a file made elsewhere needs the first three arrays only.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories

FORMAT_VERSION = 1
_ARRAYS = tuple(f.name for f in fields(Trajectories) if f.name != "meta")
_REQUIRED = ("positions", "velocities", "times")
_READ_ERRORS = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that nothing can be written to; call it before long work.

    Raises:
        InputError: the folder does not exist or does not take files, or the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError("cannot write trajectories", where=path, expected="a file name", got="a folder")
    if not path.parent.is_dir():
        raise InputError("cannot write trajectories", where=path, expected="an existing folder", got=path.parent)
    temporary = _temporary(path)
    try:
        temporary.open("xb").close()
        temporary.unlink()
    except OSError as error:
        raise InputError("cannot write trajectories", where=path, got=error.strerror or error) from None


def write_trajectories(path: str | os.PathLike[str], trajectories: Trajectories) -> None:
    """Write the file described above, whole or not at all: an interrupted run leaves an older file as it was.

    Args:
        path: file to write, replaced if it exists.
        trajectories: what to write; checked first.

    Raises:
        InputError: the path cannot be written, or the trajectories fail `Trajectories.check`.
    """
    path = Path(path)
    check_writable(path)
    trajectories.check(where=path)
    arrays = {name: getattr(trajectories, name) for name in _ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    meta = json.dumps({**trajectories.meta, "format_version": FORMAT_VERSION}, allow_nan=False)
    try:
        with _atomic(path) as file:
            np.savez(file, meta=np.array(meta), **arrays)
    except OSError as error:
        raise InputError("cannot write trajectories", where=path, got=error.strerror or error) from None


def is_trajectories(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a trajectory file, as `equidyn predict` writes it; what else it may be is for others to say."""
    if Path(path).suffix != ".npz":
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {*_REQUIRED} <= {*archive.files}
    except Exception:
        return False


def read_trajectories(path: str | os.PathLike[str]) -> Trajectories:
    """Read and check a file that `write_trajectories` or another tool made in the format above.

    Raises:
        InputError: one line that says what is wrong: missing, truncated or foreign file, pickled, missing or
            mismatched arrays, wrong shape or dtype, NaN or infinite values (with trajectory and frame), no particles.
    """
    path = Path(path)
    arrays = _load(path)
    for name in _REQUIRED:
        if name not in arrays:
            raise InputError(f"no array {name!r}", where=path, expected=", ".join(_REQUIRED), got=", ".join(arrays))
    meta = _parse_meta(arrays.get("meta"), path)
    trajectories = Trajectories(**{name: arrays[name] for name in _ARRAYS if name in arrays}, meta=meta)
    trajectories.check(where=path)
    return trajectories


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError("no such file", where=path, expected="a trajectory file (.npz)")
    try:
        if not zipfile.is_zipfile(path):
            raise InputError("not a whole .npz file", where=path, expected="a trajectory file", got=_describe(path))
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in (*_ARRAYS, "meta")}
    except InputError:
        raise
    except _READ_ERRORS as error:
        what = "pickled array" if "allow_pickle" in str(error) else "truncated or corrupt file"
        raise InputError(what, where=path, expected="a trajectory file (.npz without pickles)", got=error) from None


def _describe(path: Path) -> str:
    """What a file that is no zip archive seems to be; an npz loses its table of contents, at the end, when cut."""
    with path.open("rb") as file:
        head = file.read(6)
    return "a cut .npz" if head.startswith(b"PK") else "a .npy" if head == b"\x93NUMPY" else "something else"


def _parse_meta(text: Any, path: Path) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        meta = json.loads(str(text))
    except ValueError as error:
        raise InputError("meta is not JSON", where=path, expected="a JSON object", got=error) from None
    if not isinstance(meta, dict):
        raise InputError("meta is not a JSON object", where=path, expected="{...}", got=type(meta).__name__)
    version = meta.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError("unknown format version", where=path, expected=f"at most {FORMAT_VERSION}", got=version)
    return meta


def _temporary(path: Path) -> Path:
    """A name of our own beside `path`: only within one folder is the final rename atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name `path` only once it is complete and on disk."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
