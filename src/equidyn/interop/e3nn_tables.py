"""Tables of the conventions that stored weights depend on: 3j symbols, spherical harmonics, scales of activations.

They come as `w3j/L1_L2_L3`, `sh/vectors`, `sh/component_l0_to_4` and `normalize2mom/NAME` and the
version of e3nn in `meta`. Version 0.4 has the opposite sign for (1, l, l), (l, 1, l) and (l, l, 1) with l = 2, 3, 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equidyn.ops.activations import SCALES
from equidyn.ops.so3 import spherical_harmonics, wigner_3j

if TYPE_CHECKING:
    from equidyn.interop.golden import Record

SYSTEM = "e3nn conventions"


def _coupling(name: str, version: str) -> Tensor:
    degrees = sorted(map(int, name.split("_")))
    flipped = degrees[0] == 1 and degrees[1] == degrees[2] >= 2 and version.startswith("0.4.")
    table = wigner_3j(*map(int, name.split("_")))
    return -table if flipped else table


def replay(record: Record) -> dict[str, Tensor]:
    """Our value of every table of the record."""
    tables = {}
    for name in record.outputs:
        kind, _, rest = name.partition("/")
        if kind == "w3j":
            tables[name] = _coupling(rest, record.meta["e3nn"])
        elif kind == "sh":
            unit = torch.nn.functional.normalize(record.inputs["vectors"], dim=1)
            tables[name] = spherical_harmonics(unit, int(rest.removeprefix("component_l0_to_")))
        elif rest in SCALES:
            tables[name] = torch.tensor(SCALES[rest], dtype=torch.float64)
    return tables
