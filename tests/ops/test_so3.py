"""Spherical harmonics and coupling coefficients against the table of the records."""

from pathlib import Path

import numpy as np
import pytest
import torch

from equidyn.ops.so3 import spherical_harmonics, wigner_3j

TABLE = np.load(Path(__file__).parents[1] / "golden/nequip/e3nn_conventions.npz", allow_pickle=False)


@pytest.mark.parametrize("name", [name for name in TABLE.files if name.startswith("w3j/")])
def test_coupling_coefficients(name):
    ours = wigner_3j(*map(int, name.removeprefix("w3j/").split("_")))
    np.testing.assert_allclose(ours, TABLE[name], rtol=0, atol=1e-15)


@pytest.mark.parametrize("l_max", range(5))
def test_harmonics(l_max):
    vectors = torch.from_numpy(TABLE["sh/vectors"])
    ours = spherical_harmonics(vectors / vectors.norm(dim=1, keepdim=True), l_max)
    np.testing.assert_allclose(ours, TABLE["sh/component_l0_to_4"][:, : (l_max + 1) ** 2], rtol=0, atol=1e-14)


def test_harmonics_of_high_degree_keep_their_norm():
    unit = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=1)
    last = spherical_harmonics(unit, 8)[:, 64:]
    torch.testing.assert_close(last.square().sum(1), torch.full((20,), 17.0, dtype=torch.float64), rtol=1e-12, atol=0)
