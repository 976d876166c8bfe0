"""Which samples of a data set are to learn from, to validate and to test on: at random, or as a file says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equidyn.core.errors import InputError

_PARTS = ("train", "val", "test")


def random_split(count: int, wanted: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Parts drawn at random, and `train`, the rest; each in rising order.

    Args:
        count: samples in all.
        wanted: by part, a share of the samples (below 1) or a number of them.
        seed: of the draw.

    Raises:
        InputError: a part of no samples or of all.
    """
    order = np.random.default_rng(seed).permutation(count).tolist()
    parts: dict[str, list[int]] = {}
    left = count
    for name, value in wanted.items():
        number = round(value * count) if value < 1 else int(value)
        if not 0 < number < left:
            got = f"{value} of {count}"
            raise InputError(f"{name} samples", where=f"data.{name}", expected="fewer than all, at least 1", got=got)
        parts[name] = sorted(order[left - number : left])
        left -= number
    return {"train": sorted(order[:left]), **parts}


def read_split(path: Path, count: int) -> dict[str, list[int]]:
    """The indices `train`, `val` and perhaps `test` of a JSON or `.npz` file; in the latter also `idx_train` and so on.

    Args:
        path: the file.
        count: samples in all.

    Raises:
        InputError: no such file, another content, an index that does not exist or is in two parts.
    """
    expected = "JSON or .npz with the indices train and val"
    if not path.is_file():
        raise InputError("no such file", where=path, expected=expected)
    try:
        content = _content(path)
        parts = {name: [int(i) for i in content[name]] for name in _PARTS if name in content}
    except Exception as error:  # NumPy raises whatever it meets in a broken file
        raise InputError("not a split", where=path, expected=expected, got=error) from None
    for name in ("train", "val"):
        if not parts.get(name):
            raise InputError(f"no indices {name}", where=path, expected="at least one")
    every = [i for part in parts.values() for i in part]
    if min(every) < 0 or max(every) >= count:
        got = f"{min(every)} to {max(every)}"
        raise InputError("index outside the file", where=path, expected=f"0 to {count - 1}", got=got)
    if len(set(every)) < len(every):
        raise InputError("an index in two parts", where=path, expected="each sample in one part")
    return parts


def _content(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".npz":
        return json.loads(path.read_text(encoding="utf-8"))
    other = {"idx_train": "train", "idx_val": "val", "idx_valid": "val", "idx_test": "test"}
    with np.load(path, allow_pickle=False) as archive:
        return {other.get(name, name): archive[name].tolist() for name in archive.files}
