"""Read the tensors and plain values of a pickled PyTorch module without running anything that the file names.

A `.model` file (torch.save of a whole module) is a zip archive of raw storages and a pickle that rebuilds the module by
calling functions and classes by name. Here each name stands for an inert record of what it was called with; tensors are
cut from the storages by this file. A name from outside the libraries a module consists of is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equidyn.core.errors import InputError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_BUILTINS = {"set", "frozenset", "slice", "complex", "range", "bytearray"}


class Inert:
    """What a file would have built: the name of its class or function, its arguments and its state."""

    name = ""

    args: tuple
    state: dict[str, Any]
    items: list

    def __new__(cls, *args: Any) -> Inert:
        """Keep the arguments; a pickle may create without initialising."""
        made = super().__new__(cls)
        made.args, made.state, made.items = args, {}, []
        return made

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"": state}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """An element of a list subclass."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """Elements of a list subclass."""
        self.items.extend(values)

    def child(self, path: str) -> Any:
        """A submodule by its dotted name, or None."""
        here: Any = self
        for part in path.split("."):
            here = here.state.get("_modules", {}).get(part) if isinstance(here, Inert) else None
        return here

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and persistent buffers of the module and of its submodules, by dotted name."""
        hidden = self.state.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers"):
            for name, value in self.state.get(kind, {}).items():
                if isinstance(value, Tensor) and not (kind == "_buffers" and name in hidden):
                    yield prefix + name, value
        for name, module in self.state.get("_modules", {}).items():
            if isinstance(module, Inert):
                yield from module.tensors(f"{prefix}{name}.")


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str, libraries: tuple[str, ...]) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive, self.folder, self.libraries = archive, folder, libraries
        self.storages: dict[str, Tensor] = {}
        self.known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,
            "builtins.getattr": lambda _owner, name: _named(name),  # how functions of torch are pickled
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
        }

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # as Python 2 called it
        full = f"{module}.{name}"
        if full not in self.known:
            harmless = module == "builtins" and name in _BUILTINS
            if not harmless and full != "_codecs.encode" and module.split(".")[0] not in self.libraries:
                raise InputError("name that no model needs", expected=f"of {', '.join(self.libraries)}", got=full)
            self.known[full] = _named(name)
        return self.known[full]

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, count = pid
        if key not in self.storages:
            raw = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
            dtype = _DTYPES[kind.name]
            if len(raw) != count * dtype.itemsize:
                raise InputError("storage", expected=f"{count} numbers of {dtype}", got=f"{len(raw)} bytes")
            self.storages[key] = torch.frombuffer(raw, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _named(name: str) -> type[Inert]:
    return type("Inert", (Inert,), {"name": str(name)})


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def read_inert(path: str | Path, libraries: tuple[str, ...]) -> Inert:
    """The module of a file, as inert records.

    Args:
        path: file written by torch.save.
        libraries: top-level packages whose names may appear.

    Raises:
        InputError: no such file, not a saved module, or one with names from elsewhere.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", where=path)
    try:
        with zipfile.ZipFile(path) as archive:
            folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).rsplit("/", 1)[0]
            order = f"{folder}/byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise InputError("byte order", expected="little", got=archive.read(order))
            module = _Unpickler(archive, folder, libraries).load()
    except InputError as error:
        raise InputError("refused", where=path, got=error) from None
    except Exception as error:
        raise InputError("not a saved module", where=path, got=f"{type(error).__name__}: {error}") from None
    if not isinstance(module, Inert) or "_modules" not in module.state:
        raise InputError("not a saved module", where=path, got=type(module).__name__)
    return module
