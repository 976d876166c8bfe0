"""Errors a user can act on: one line that names what, where, expected and got."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EquidynError(Exception):
    """Base of every error that is the caller's to mend; the command line prints it and exits with 2."""


class DataWarning(UserWarning):
    """Data that can be used but are unlikely to be what was meant; one line, as of `InputError`."""


class InputError(EquidynError, ValueError):
    """A value, file or option that cannot be used.

    Args:
        what: what is wrong, in a few words ("positions hold NaN").
        where: file, field or option it was found in.
        expected: what would have been right.
        got: what was there.
    """

    def __init__(self, what: str, *, where: object = None, expected: object = None, got: object = None) -> None:
        parts = [what]
        if where is not None:
            parts.append(f"in {where}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if got is not None:
            parts.append(f"got {got}")
        super().__init__(", ".join(" ".join(part.split()) for part in map(str, parts)))


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: object = None) -> InputError:
    """The error for a name that does not exist, with the nearest one that does.

    Args:
        kind: what the name stands for ("system", "recipe key").
        name: the name given.
        known: the names that exist.
        where: file or option the name was found in.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    expected = f"{near[0]!r}" if near else f"one of {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}", where=where, expected=expected)
