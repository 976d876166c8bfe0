"""Carry parameters between an original's names and layouts and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equidyn.core.errors import InputError
from equidyn.interop.golden import Record


@dataclass(frozen=True)
class Piece:
    """One parameter of the original.

    Attributes:
        theirs: its name.
        ours: our parameters; several are the original's, cut along the input axis, in this order.
        axes: their tensor permuted by these axes is ours.
    """

    theirs: str
    ours: tuple[str, ...]
    axes: tuple[int, ...] | None = None


def linear(theirs: str, *ours: str, bias: bool = True) -> list[Piece]:
    """Pieces of one linear map: its weight, cut over our maps, and its bias, held by the first of them."""
    pieces = [Piece(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours))]
    return [*pieces, Piece(f"{theirs}.bias", (f"{ours[0]}.bias",))] if bias else pieces


def load_weights(model: nn.Module, pieces: list[Piece], params: Mapping[str, Tensor]) -> None:
    """Fill the model with an original's parameters.

    Raises:
        InputError: a parameter is missing, left over, or has another shape.
    """
    ours = dict(model.named_parameters())
    wanted = {piece.theirs for piece in pieces}
    if wanted != set(params):
        missing, extra = sorted(wanted - set(params)), sorted(set(params) - wanted)
        raise InputError("parameters of the record", expected=f"also {missing[:3]}", got=f"in excess {extra[:3]}")
    with torch.no_grad():
        for piece in pieces:
            value = params[piece.theirs]
            value = value.permute(piece.axes) if piece.axes else value
            targets = [ours.pop(name) for name in piece.ours]
            parts = value.split([t.shape[1] for t in targets], dim=1) if len(targets) > 1 else [value]
            for target, part in zip(targets, parts, strict=True):
                if target.shape != part.shape:
                    raise InputError("shape", where=piece.theirs, expected=tuple(target.shape), got=tuple(part.shape))
                target.copy_(part)
    if ours:
        raise InputError("parameters without a counterpart", where="model", got=sorted(ours)[:3])


def weight_gradients(model: nn.Module, pieces: list[Piece]) -> dict[str, Tensor]:
    """The gradients of all parameters under the original's names and layouts."""
    ours = dict(model.named_parameters())
    gradients = {}
    for piece in pieces:
        parts = [torch.zeros_like(ours[n]) if (g := ours[n].grad) is None else g for n in piece.ours]
        value = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        if piece.axes:
            inverse = sorted(range(len(piece.axes)), key=piece.axes.__getitem__)
            value = value.permute(inverse)
        gradients[piece.theirs] = value
    return gradients


def refuse_activation(name: object, record: Record) -> None:
    """Refuse a record whose original used another activation than SiLU.

    Raises:
        InputError: it did.
    """
    if not str(name).lower().startswith(("silu", "swish")):
        raise InputError("activation", where=record.path, expected="SiLU", got=name)
