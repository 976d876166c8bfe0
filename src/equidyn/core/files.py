"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equidyn.core.errors import InputError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name and move it to its place when it is complete.

    Raises:
        InputError: the folder cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError("cannot write", where=path, got=error.strerror or error) from None


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as a compressed `.npz`, whole or not at all.

    Raises:
        InputError: the folder cannot be written to.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError("cannot write to the folder", where=path, got=error.strerror or error) from None
