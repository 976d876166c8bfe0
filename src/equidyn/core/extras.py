"""Packages that only some uses need: the extras of the installation."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from equidyn.core.errors import InputError


class MissingExtraError(InputError, ImportError):
    """A package that is not installed, or does not load."""


def require(module: str, extra: str, what: str, *, where: object = None, note: str = "") -> Any:
    """Import a package of an extra.

    Args:
        module: its name.
        extra: the extra of Equidyn that installs it.
        what: the use that needs it, at the beginning of a sentence ("reading .bvh").
        where: file or option that asks for it.
        note: what else it needs of the system.

    Raises:
        MissingExtraError: it is not there or does not load.
    """
    try:
        found: ModuleType = importlib.import_module(module)
    except (ImportError, OSError) as error:
        package = module.partition(".")[0]
        expected = f"pip install 'equidyn[{extra}]'" + (f"; {note}" if note else "")
        raise MissingExtraError(f"{what} needs {package}", where=where, expected=expected, got=error) from None
    return found
