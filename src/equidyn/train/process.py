"""Settings of the process that trains."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt, from malloc.h
_LARGE = 1 << 30


def keep_memory() -> None:
    """Let the C library keep freed memory for the next step.

    By default glibc gives every large array back when it is freed, and the next step pays for each of its pages again:
    a quarter of the time of a small model's step. Elsewhere than on glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(option, _LARGE)
