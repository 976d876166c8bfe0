"""Settings of the process that trains."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._functorch import config as functorch

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt, from malloc.h
_LARGE = 1 << 30
_MEMORY_BUDGET = 0.7  # of what the compiler would keep for the backward pass; it computes the cheapest rest again


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


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` through torch.compile, with a backward pass that keeps less in memory."""
    fast = torch.compile(forward)

    def call(*args: Any) -> Any:
        low = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled(
            "cuda"
        )  # half the room, and no need to save
        with functorch.patch(activation_memory_budget=1.0 if low else _MEMORY_BUDGET):
            return fast(*args)

    return call
