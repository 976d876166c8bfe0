"""The published systems, one file each; `SYSTEMS` lists their catalogue entries by name."""

from __future__ import annotations

import importlib
import pkgutil

from equidyn.core.catalogue import Entry

SYSTEMS: dict[str, Entry] = {}

for _module in pkgutil.iter_modules(__path__):
    _entry: Entry = importlib.import_module(f"{__name__}.{_module.name}").ENTRY
    SYSTEMS[_entry.name] = _entry

__all__ = ["SYSTEMS"]
