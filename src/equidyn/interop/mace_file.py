"""Models of mace-torch 0.3 from their files, without mace-torch and without running anything in the file."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, is_dataclass
from itertools import count
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from equidyn.core.errors import InputError
from equidyn.core.files import make_folder
from equidyn.interop.inert_pickle import Inert, read_inert
from equidyn.interop.mace import ARGUMENTS, load, our_arguments
from equidyn.models.mace import MACE
from equidyn.train.checkpoint import save_model

_LIBRARIES = ("mace", "e3nn", "torch", "numpy", "opt_einsum_fx")
_BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}


def read_model(path: str | Path) -> MACE:
    """The potential in a `.model` file, in the dtype of the file: see `read_file`."""
    return read_file(path)[0]


def import_model(path: str | Path, folder: str | Path) -> Path:
    """Convert a `.model` file once to a folder that `load_model`, `Calculator` and every engine read.

    Args:
        path: file of mace-torch.
        folder: to make; gets `model.json` and `model.safetensors`.

    Raises:
        InputError: see `read_file`; or a folder that holds a model already, or cannot be written to.
    """
    path, folder = Path(path), Path(folder)
    model, arguments = read_file(path)
    if (folder / "model.json").exists():
        raise InputError("a model is there already", where=folder, expected="a new folder (--out)")
    make_folder(folder)
    config = {
        "name": path.stem,
        "system": "mace",
        "model": {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in arguments.items()},
        "data": {},
        "task": {"name": "potential"},
        "train": {},
    }
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    save_model(folder, model, config, {"imported_from": path.name, "sha256": digest})
    return folder


def read_file(path: str | Path) -> tuple[MACE, dict[str, Any]]:
    """The potential in a `.model` file, in the dtype of the file, and the arguments it was built with.

    What the model is made of is read from the names of its parts, its plain attributes and the shapes of its tensors;
    what older files lack has its value of that time.

    Raises:
        InputError: not such a file, a name in it that no model needs, or an option that we do not have.
    """
    module = read_inert(path, _LIBRARIES)
    if module.name not in ("MACE", "ScaleShiftMACE"):
        raise InputError("kind of model", where=path, expected="MACE or ScaleShiftMACE", got=module.name)
    state = dict(module.tensors())
    try:
        arguments = our_arguments(ARGUMENTS | _arguments(module, state), path)
        model = MACE(**arguments)
        load(model.to(state["node_embedding.linear.weight"].dtype), state)
    except InputError:
        raise
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise InputError("file without a part of MACE", where=path, got=f"{type(error).__name__}: {error}") from None
    return model.eval(), arguments


def _arguments(module: Inert, state: dict[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments that give such a module."""
    layers = int(state["num_interactions"])
    contraction = "products.{}.symmetric_contractions.contractions.{}"
    weight = state[contraction.format(0, 0) + ".weights_max"]
    hidden = _length(state, contraction.format(0, "{}") + ".weights_max")
    readouts = list(module.child("readouts").state["_modules"].values())
    given: dict[str, Any] = {
        "class": module.name,
        "r_max": float(state["r_max"]),
        "num_bessel": int(module.child("radial_embedding").state["out_dim"]),
        "num_polynomial_cutoff": int(state["radial_embedding.cutoff_fn.p"]),
        "max_ell": isqrt(len(state[contraction.format(0, 0) + ".U_matrix_1"])) - 1,
        "interaction_cls_first": module.child("interactions.0").name,
        "interaction_cls": module.child(f"interactions.{layers - 1}").name,
        "num_interactions": layers,
        "hidden_irreps": " + ".join(f"{weight.shape[2]}x{ell}{'eo'[ell % 2]}" for ell in range(hidden)),
        "atomic_energies": state["atomic_energies_fn.atomic_energies"].tolist(),
        "avg_num_neighbors": float(module.child("interactions.0").state["avg_num_neighbors"]),
        "atomic_numbers": state["atomic_numbers"].tolist(),
        "correlation": [_length(state, contraction.format(t, 0) + ".U_matrix_{}", first=1) for t in range(layers)],
        "pair_repulsion": module.child("pair_repulsion_fn") is not None,
        "use_agnostic_product": len(weight) == 1 and len(state["atomic_numbers"]) > 1,
        "use_last_readout_only": len(readouts) < layers,
        "distance_transform": _transform(module),
        "radial_MLP": _radial_widths(state),
        "radial_type": _BASES[module.child("radial_embedding.bessel_fn").name],
        "heads": module.state.get("heads") or ["Default"],
        "edge_irreps": _irreps(module.state.get("edge_irreps")),
    }
    for name in ("apply_cutoff", "use_so3", "use_edge_irreps_first"):  # absent from older files
        given[name] = module.state.get(name, ARGUMENTS[name])
    if layers > 1:
        given |= _last_readout(readouts[-1], len(given["heads"]))
    if "scale_shift.scale" in state:
        given |= {f"atomic_inter_{name}": state[f"scale_shift.{name}"].tolist() for name in ("scale", "shift")}
    return given


def _length(state: dict[str, Tensor], name: str, first: int = 0) -> int:
    """How many tensors there are with this name and a running number."""
    return next(n for n in count(first) if name.format(n) not in state) - first


def _transform(module: Inert) -> str:
    transform = module.child("radial_embedding.distance_transform")
    return "None" if transform is None else transform.name.removesuffix("Transform")


def _radial_widths(state: dict[str, Tensor]) -> list[int]:
    """Hidden widths of the radial network, either of its forms."""
    stem = "interactions.0.conv_tp_weights"
    widths: list[int] = []
    while (plain := f"{stem}.layer{len(widths)}.weight") in state:
        widths.append(state[plain].shape[1])
    while (normed := f"{stem}.net.{3 * len(widths)}.weight") in state:
        widths.append(len(state[normed]))
    return widths[:-1]


def _last_readout(readout: Inert, heads: int) -> dict[str, Any]:
    """Kind, width and activation of the last readout."""
    weight = readout.child("linear_2").state["_parameters"]["weight"]
    function: Any = readout.child("non_linearity").child("acts").child("0")
    if isinstance(function, Inert) and "f" in function.state:  # rescaled to unit second moment
        function = function.state["f"]
    name = "None" if function is None else str(getattr(function, "name", function)).lower()
    return {"readout_cls": readout.name, "MLP_irreps": f"{weight.numel() // heads**2}x0e", "gate": name}


def _irreps(given: Any) -> str | None:
    """Irreps of e3nn, a tuple of (channels, (l, parity)), as text."""
    if not isinstance(given, Inert):
        return given
    parts = [(mul, *irrep.args[0]) if len(irrep.args) == 1 else (mul, *irrep.args) for mul, irrep in _pairs(given)]
    return " + ".join(f"{mul}x{ell}{'e' if parity == 1 else 'o'}" for mul, ell, parity in parts)


def _pairs(irreps: Inert) -> list[tuple[int, Inert]]:
    return [part.args[0] if len(part.args) == 1 else part.args for part in irreps.args[0]]
