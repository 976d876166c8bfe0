"""Activations scaled to unit second moment for standard normal input; the factors are those of e3nn, from samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SCALES = {
    "silu": 1.6791767923989418,
    "tanh": 1.5937334472592695,
    "sigmoid": 1.8467055342154763,
    "abs": 1.001110600838467,
    "none": 1.0,
}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "abs": torch.abs,
    "none": lambda x: x,
}


def activate(name: str, x: Tensor) -> Tensor:
    """The activation of that name (a key of `SCALES`), scaled."""
    return _FUNCTIONS[name](x) * SCALES[name]
