"""Structures in an LMDB: for sets larger than memory, read one by one as they are needed, without pickles.

| key | value |
|---|---|
| `meta` | JSON: `format` "equidyn-structures", `version` 1, `count`, `isolated` (energies of isolated atoms by symbol) |
| `atoms` | int32, the number of atoms of each structure |
| `0` ... `count - 1`, in decimal | one structure as safetensors: `numbers [N]`, `pos [N, 3]`, `cell [3, 3]`, `pbc [3]`, and where known `energy [1]`, `forces [N, 3]`, `stress [3, 3]`, in float64; the header's metadata have `config_type`, `head`, and as JSON `weights` and `fields` |
"""  # noqa: E501

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from ase.data import chemical_symbols

from equidyn.core.errors import InputError
from equidyn.core.extras import require
from equidyn.data.frames import LABELS, Frame
from equidyn.data.references import isolated_energies
from equidyn.data.structure_checks import check_frame

FORMAT, VERSION = "equidyn-structures", 1
_MAP_SIZE = 1 << 40  # address space, not memory or disk


def _lmdb() -> Any:
    return require("lmdb", "lmdb", "LMDB")


_opened: dict[tuple[str, int], Any] = {}


def _environment(path: Path) -> Any:
    """The LMDB, opened once in each process, which is all that LMDB allows."""
    key = (str(path.resolve()), os.getpid())
    if key not in _opened:
        folder = path.is_dir()
        _opened[key] = _lmdb().open(str(path), subdir=folder, readonly=True, lock=False, readahead=False)
    return _opened[key]


class StructureStore(Sequence):
    """The structures of an LMDB that `write_store` has written.

    Args:
        path: the LMDB.

    Raises:
        InputError: no such file, another format, or the package `lmdb` is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = self._get("meta")
        try:
            meta = json.loads(content or b"")
            if (meta["format"], meta["version"]) != (FORMAT, VERSION):
                raise ValueError(f"{meta['format']} {meta['version']}")
            self.size, self.isolated = int(meta["count"]), dict(meta["isolated"])
        except (ValueError, KeyError, TypeError) as error:
            expected = f"{FORMAT}, version {VERSION} (see `equidyn data pack`)"
            raise InputError("not an LMDB of structures", where=path, expected=expected, got=error) from None
        self.atom_counts = np.frombuffer(self._get("atoms") or b"", dtype=np.int32)

    def _get(self, key: str) -> bytes | None:
        lmdb = _lmdb()
        try:
            with _environment(self.path).begin() as transaction:
                return transaction.get(key.encode())
        except lmdb.Error as error:
            raise InputError("unreadable LMDB", where=self.path, got=error) from None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        number = index % self.size
        where = f"{self.path}, structure {number}"
        content = self._get(str(number))
        try:
            length = int.from_bytes((content or b"")[:8], "little")
            text = json.loads((content or b"")[8 : 8 + length])["__metadata__"]
            arrays = safetensors.numpy.load(content or b"")
            labels: dict[str, Any] = {name: arrays[name] for name in LABELS if name in arrays}
            if "energy" in labels:
                labels["energy"] = float(labels["energy"][0])
            return Frame(
                arrays["numbers"],
                arrays["pos"],
                arrays["cell"],
                arrays["pbc"],
                **labels,
                weights=json.loads(text["weights"]),
                config_type=text["config_type"],
                head=text["head"],
                fields=json.loads(text["fields"]),
                where=where,
            )
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError("corrupt structure", where=where, got=error) from None


def write_store(path: str | Path, frames: Iterable[Frame]) -> int:
    """Write structures to a new LMDB (a single file); isolated atoms go into its `meta`. Gives how many there are.

    Raises:
        InputError: the file exists, a structure cannot be learned from, or the package `lmdb` is missing.
    """
    lmdb, path = _lmdb(), Path(path)
    if path.exists():
        raise InputError("the file exists", where=path, expected="a new one")
    partial = path.with_name(f".{path.name}.tmp")
    partial.unlink(missing_ok=True)
    sizes: list[int] = []
    alone: list[Frame] = []
    try:
        with lmdb.open(str(partial), subdir=False, map_size=_MAP_SIZE, lock=False) as store:
            for frame in frames:
                if frame.isolated:
                    alone.append(frame)
                    continue
                check_frame(frame)
                with store.begin(write=True) as transaction:
                    transaction.put(str(len(sizes)).encode(), _record(frame))
                sizes.append(len(frame))
            if not sizes:
                raise InputError("no structures", where=path, expected="at least one")
            isolated = {chemical_symbols[z]: energy for z, energy in isolated_energies(alone).items()}
            meta = {"format": FORMAT, "version": VERSION, "count": len(sizes), "isolated": isolated}
            with store.begin(write=True) as transaction:
                transaction.put(b"meta", json.dumps(meta).encode())
                transaction.put(b"atoms", np.array(sizes, dtype=np.int32).tobytes())
        partial.rename(path)
    except (lmdb.Error, OSError) as error:
        raise InputError("cannot write", where=path, got=error) from None
    finally:
        partial.unlink(missing_ok=True)
    return len(sizes)


def _record(frame: Frame) -> bytes:
    arrays = {"numbers": frame.numbers, "pos": frame.pos, "cell": frame.cell, "pbc": frame.pbc}
    arrays |= {name: np.array(value) for name in LABELS if (value := getattr(frame, name)) is not None}
    text = {
        "weights": json.dumps(dict(frame.weights)),
        "config_type": frame.config_type,
        "head": frame.head,
        "fields": json.dumps(dict(frame.fields)),
    }
    return safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata=text)
