"""The trajectory file: round trip, atomic writing, one-line errors for every kind of bad file."""

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data import trajectories as module
from equidyn.data.trajectories import check_writable, read_trajectories, write_trajectories


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    return Trajectories(
        positions=rng.normal(size=(3, 4, 5, 3)),
        velocities=rng.normal(size=(3, 4, 5, 3)).astype(np.float32),
        times=np.array([0.0, 0.1, 0.2, 0.4]),
        charges=rng.choice([-1.0, 1.0], size=(3, 5)),
        meta={"kind": "charged", "seed": 43, "constants": {"softening": 0.0}},
    )


def arrays_of(made):
    names = ("positions", "velocities", "times", "charges")
    return {**{name: getattr(made, name) for name in names}, "meta": np.array(json.dumps(dict(made.meta)))}


def test_round_trip(made, tmp_path):
    path = tmp_path / "some.name"  # the name is kept as given
    write_trajectories(path, made)
    back = read_trajectories(path)
    for name in ("positions", "velocities", "times", "charges"):
        assert np.array_equal(getattr(back, name), getattr(made, name))
        assert getattr(back, name).dtype == getattr(made, name).dtype
    assert back.masses is None
    assert back.couplings is None
    assert back.meta == {**made.meta, "format_version": 1}
    assert os.listdir(tmp_path) == ["some.name"]
    write_trajectories(path, back)  # what was read can be written again
    assert read_trajectories(path).meta == back.meta


def test_masses_and_couplings_travel(made, tmp_path):
    full = replace(made, charges=None, masses=np.full((3, 5), 2.0), couplings=np.ones((3, 5, 5)))
    write_trajectories(tmp_path / "t.npz", full)
    back = read_trajectories(tmp_path / "t.npz")
    assert np.array_equal(back.masses, full.masses)
    assert np.array_equal(back.couplings, full.couplings)
    assert back.charges is None


def test_a_plain_npz_of_three_arrays_is_enough(made, tmp_path):
    np.savez_compressed(
        tmp_path / "t.npz", positions=made.positions, velocities=made.velocities, times=made.times, note=np.array(1)
    )
    assert read_trajectories(tmp_path / "t.npz").meta == {}


@pytest.mark.parametrize("crash", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("older", [True, False])
def test_an_interrupted_write_leaves_no_trace(made, tmp_path, monkeypatch, crash, older):
    path = tmp_path / "t.npz"
    if older:
        write_trajectories(path, made.subset(slice(0, 1)))
    before = path.read_bytes() if older else None

    def half(file, **arrays):
        file.write(b"PK half of a file")
        raise crash

    monkeypatch.setattr(module.np, "savez", half)
    with pytest.raises(crash):
        write_trajectories(path, made)
    assert os.listdir(tmp_path) == (["t.npz"] if older else [])
    if older:
        assert path.read_bytes() == before


def test_a_full_disk_is_one_line(made, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_trajectories(tmp_path / "t.npz", made)
    assert os.listdir(tmp_path) == []


def test_unwritable_places_are_refused_before_work(made, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="existing folder"):
        check_writable(tmp_path / "missing" / "t.npz")
    with pytest.raises(InputError, match="got a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="existing folder"):
        write_trajectories(tmp_path / "file" / "t.npz", made)

    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.Path, "open", denied)  # a mode would not stop the superuser
    with pytest.raises(InputError, match="Permission denied"):
        check_writable(tmp_path / "t.npz")


def test_nothing_bad_is_written(made, tmp_path):
    made.positions[1, 2, 0, 0] = np.inf
    with pytest.raises(InputError, match="trajectory 1, frame 2"):
        write_trajectories(tmp_path / "t.npz", made)
    assert os.listdir(tmp_path) == []


def bad_array(name, value):
    return lambda arrays: {**arrays, name: value(arrays[name]) if callable(value) else value}


def with_nan(index):
    def change(array):
        array = array.copy()
        array[index] = np.nan
        return array

    return change


BAD_ARRAYS = [
    (lambda a: {k: v for k, v in a.items() if k != "velocities"}, "no array 'velocities'"),
    (bad_array("positions", lambda x: x[0]), r"positions have the wrong shape.*\[S, F, N, 3\]"),
    (bad_array("positions", lambda x: x[..., :2]), "positions have the wrong shape"),
    (bad_array("positions", lambda x: x.astype(np.int64)), "positions have the wrong dtype.*int64"),
    (bad_array("positions", lambda x: x.astype(np.complex128)), "positions have the wrong dtype.*complex128"),
    (bad_array("positions", lambda x: x.astype(str)), "positions have the wrong dtype"),
    (bad_array("positions", lambda x: x[:, :, :0]), "zero particles"),
    (bad_array("positions", lambda x: x[:0]), "zero trajectories"),
    (bad_array("positions", lambda x: x[:, :0]), "zero frames"),
    (bad_array("velocities", lambda v: v[:2]), "velocities do not match"),
    (bad_array("times", lambda t: t[:3]), r"times do not match.*\[4\]"),
    (bad_array("charges", lambda c: c[:, :4]), "charges do not match"),
    (bad_array("masses", np.ones((3, 4))), "masses do not match"),
    (bad_array("couplings", np.ones((3, 5))), "couplings do not match"),
    (bad_array("positions", with_nan((2, 1, 0, 0))), "positions hold NaN or infinity.*trajectory 2, frame 1"),
    (bad_array("velocities", with_nan((0, 3, 4, 2))), "velocities hold NaN or infinity.*trajectory 0, frame 3"),
    (bad_array("charges", with_nan((1, 0))), "charges hold NaN.*trajectory 1"),
    (bad_array("times", with_nan(2)), "times hold NaN.*frame 2"),
    (bad_array("times", lambda t: t[::-1].copy()), "times do not increase"),
    (bad_array("meta", np.array("{")), "meta is not JSON"),
    (bad_array("meta", np.array("[1]")), "meta is not a JSON object"),
    (bad_array("meta", np.array('{"format_version": 99}')), "unknown format version"),
    (bad_array("charges", np.array([{"a": 1}], dtype=object)), "pickled array"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ARRAYS, ids=[message for _, message in BAD_ARRAYS])
def test_bad_arrays_are_one_line(made, tmp_path, change, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **change(arrays_of(made)))
    refused(path, message)


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        read_trajectories(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_one_line(made, tmp_path, share):
    path = tmp_path / "cut.npz"
    write_trajectories(path, made)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "not a whole .npz file")


def test_a_flipped_byte_is_noticed(made, tmp_path):
    path = tmp_path / "flipped.npz"
    write_trajectories(path, made)
    data = bytearray(path.read_bytes())
    data[400] ^= 0xFF
    path.write_bytes(data)
    refused(path, "truncated or corrupt")


def test_other_files_are_one_line(tmp_path):
    refused(tmp_path / "missing.npz", "no such file")
    refused(tmp_path, "no such file")
    (tmp_path / "text.npz").write_text("hello")
    refused(tmp_path / "text.npz", "not a whole .npz file")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "array.npz").write_bytes(buffer.getvalue())
    refused(tmp_path / "array.npz", "a .npy")
