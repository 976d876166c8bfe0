"""Training that starts from a trained model: its arguments and weights, and a head of its own for what is replayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ase.data import chemical_symbols
from torch import Tensor

from equidyn.core.errors import InputError
from equidyn.train.checkpoint import Trained, load_model
from equidyn.train.recipe import Recipe


def origin_of(recipe: Recipe) -> Trained:
    """The model that a training starts from.

    Raises:
        InputError: no such run, or one of another system.
    """
    where = recipe.train.init_from or ""
    origin = load_model(where)
    if origin.config["system"] != recipe.system.name:
        got = origin.config["system"]
        raise InputError("weights of another system", where=where, expected=recipe.system.name, got=got)
    return origin


def arguments(recipe: Recipe, data: Any) -> dict[str, Any]:
    """The arguments of the model to start with: those of the origin, with a second head where the data replay on one.

    Head 0 has the reference of the new structures, head 1 that of the origin; elements that the new structures lack
    keep their energies.

    Raises:
        InputError: see `origin_of`; a second head for a model that has none, or two already.
    """
    known = origin_of(recipe).config["model"]
    if not getattr(data, "replay_head", False):
        return known
    reference = known.get("reference")
    rows = [] if reference is None else [*reference["atoms"], reference["scale"], reference["shift"]]
    if not rows or any(isinstance(value, list | tuple) for value in rows):
        where, expected = recipe.train.init_from, "a model with one head (MACE)"
        raise InputError("data.replay_head", where=where, expected=expected, got=recipe.system.name)
    found = data.fitted()
    new = dict(zip(found["elements"], found["reference"]["atoms"], strict=True))
    if unknown := [chemical_symbols[z] for z in new if z not in known["elements"]]:
        expected = f"among {', '.join(chemical_symbols[z] for z in known['elements'])}"
        raise InputError("element that the model does not know", where=data.path, expected=expected, got=unknown)
    atoms = [new.get(z, energy) for z, energy in zip(known["elements"], reference["atoms"], strict=True)]
    shifts = [found["reference"]["shift"], reference["shift"]]
    return known | {"reference": {"atoms": [atoms, reference["atoms"]], "scale": reference["scale"], "shift": shifts}}


def widened(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model for one with more heads, each of which then gives what the one gave.

    The channels of the readouts repeat, head after head. Matrices [in, out] are divided by the root of their inputs
    where they are used, which is made up for.
    """
    found = dict(weights)
    for name, value in weights.items():
        if name.startswith("readouts.") and own[name].shape != value.shape:
            times = [a // b for a, b in zip(own[name].shape, value.shape, strict=True)]
            inputs = times[0] if value.dim() == 2 else 1
            found[name] = value.repeat(times) * inputs**0.5
    return found


def facts(recipe: Recipe, data: Any) -> dict[str, Any]:
    """What the run keeps of its data; distances that the origin has seen count as seen."""
    found = data.facts() if hasattr(data, "facts") else {}
    if "nearest" in found and recipe.train.init_from:
        before = origin_of(recipe).info.get("nearest", {})
        either = {**before, **found["nearest"]}
        found["nearest"] = {pair: min(value, before.get(pair, value)) for pair, value in either.items()}
    return found
