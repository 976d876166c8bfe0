"""Implicit steerable kernels: golden records of the original, and of a plain reference for its other options."""

import shutil
from pathlib import Path

import numpy as np
import plain_kernels as plain
import pytest

from equidyn.core.errors import InputError
from equidyn.interop import verify

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "implicit_steerable_kernels").glob("*.npz"))


def assert_exact(path, tolerance=1e-10):
    outcomes = verify(path)
    with np.load(path) as archive:
        assert len(outcomes) == sum(name.startswith("out/") for name in archive.files)
    for outcome in outcomes:
        assert outcome.error <= tolerance, outcome


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_records_of_the_original(path):
    assert_exact(path)


@pytest.mark.parametrize(
    ("group", "options"),
    [
        ("O(3)", {}),
        ("O(3)", {"attributes": ("pseudo", "vector", "scalar", "pseudo")}),  # nothing leads from a pseudoscalar
        ("SO(3)", {"layers": 1, "attributes": ()}),
        ("SO(3)", {"layers": 2, "attributes": ("scalar", "scalar"), "hubs": True}),
        ("SO(2)", {"attributes": ("scalar",), "down": True}),  # about z
        ("O(2)", {"attributes": ("vector", "scalar"), "copies": (1, 3)}),
        ("O(2)", {"dimension": 2, "layers": 4}),
        ("SO(2)", {"dimension": 2, "attributes": (), "hubs": True}),
        ("C2", {"dimension": 2, "attributes": ("scalar",)}),  # ReLU of the regular representation
        ("C2", {"attributes": (), "layers": 1, "copies": (1, 1)}),
    ],
)
def test_points(group, options, tmp_path):
    assert_exact(plain.point_record(tmp_path / "record.npz", group, **options))


def test_float32(tmp_path):
    assert_exact(plain.point_record(tmp_path / "record.npz", "O(3)", dtype="float32"), 1e-4)


@pytest.mark.parametrize(
    ("group", "options"),
    [
        ("SO(2)", {"stride": 2, "padding": 1, "dilation": 2}),
        ("SO(2)", {"scalars": 0, "cached": True, "kernel_size": 5}),
        ("O(2)", {"scalars": 0, "layers": 3}),
        ("C2", {"kernel_size": 1}),
        ("SO(3)", {"dimension": 3, "size": 4, "copies": (1, 2)}),
    ],
)
def test_grids(group, options, tmp_path):
    assert_exact(plain.grid_record(tmp_path / "record.npz", group, **options))


@pytest.mark.parametrize(
    "options", [{}, {"order": 1, "scalars": 0}, {"order": 3, "layers": 2}, {"copies": (1, 1), "layers": 1}]
)
def test_version_1(options, tmp_path):
    assert_exact(plain.version_1_record(tmp_path / "record.npz", **options))


@pytest.mark.parametrize(
    ("name", "part", "change", "words"),
    [
        ("point_o3", "param/implicit_kernel.mlp.mlp.3.matrix", lambda a: a + 0.1, "linear map"),
        ("point_o3", "meta", lambda a: np.array(str(a).replace('"c_out"', '"c_aus"')), "c_out"),
        ("v1_point_o3", "param/implicit_kernel.hp.harmonics_generator.cob_2", lambda a: a * 2, "cob_2"),
    ],
)
def test_what_is_not_equivariant_or_unknown_is_refused(name, part, change, words, tmp_path):
    source = next(path for path in GOLDEN if path.stem == name)
    path = tmp_path / "record.npz"
    with np.load(source) as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays[part] = change(arrays[part])
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=words):
        verify(path)
    shutil.copy(source, path)
    assert all(outcome.passed for outcome in verify(path))
