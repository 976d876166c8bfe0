"""What can be wrong with labelled structures: refused where nothing can be learned from it, else a warning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols

from equidyn.core.errors import InputError
from equidyn.data.frames import Frame


def check_frame(frame: Frame) -> None:
    """Refuse a structure that no potential can be learned from.

    Raises:
        InputError: no atoms or no such element, numbers that are not finite, a periodic box without volume.
    """
    if not len(frame):
        raise InputError("a structure without atoms", where=frame.where)
    if frame.numbers.min() < 1 or frame.numbers.max() >= len(chemical_symbols):
        bad = int(frame.numbers[(frame.numbers < 1) | (frame.numbers >= len(chemical_symbols))][0])
        raise InputError("no such element", where=frame.where, expected="atomic numbers 1 to 118", got=bad)
    for name in ("pos", "cell", "forces", "stress", "energy"):
        value = getattr(frame, name)
        if value is not None and not np.isfinite(value).all():
            row = (
                ""
                if name in ("energy", "cell", "stress")
                else f" at atom {int(np.argwhere(~np.isfinite(value))[0][0])}"
            )
            raise InputError(f"{name} hold NaN or infinity{row}", where=frame.where, expected="finite numbers")


def check_set(frames: Sequence[Frame], where: str) -> None:
    """Warn of what is unlikely in a set of structures."""
