"""Whether a model is being traced, by a compiler or for export: then shapes alone may decide what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_exporting: ContextVar[bool] = ContextVar("exporting", default=False)


def exporting() -> bool:
    """Whether within `for_export`."""
    # Dynamo cannot look into a context variable, and never runs within `for_export`.
    return not torch.compiler.is_dynamo_compiling() and _exporting.get()


def traced() -> bool:
    """Whether a compiler looks, or `for_export` is on."""
    return torch.compiler.is_compiling() or exporting()


@contextmanager
def for_export() -> Iterator[None]:
    """Let models take the steps that an exported program can have: no look at values, no operators of this library."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)
