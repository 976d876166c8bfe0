"""Particle data: the three file forms give the same samples; graphs, features, baselines by hand; broken files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.data.nbody import NBody, complete_graph, initial_states, particle_sample
from equidyn.data.trajectories import read_trajectories, write_trajectories
from equidyn.tasks.trajectory import ballistic, constant, fit_linear, horizon_error, linear

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "nbody" / "benchmark_3000_2000_2000.npz"


@pytest.fixture
def arrays():
    """The benchmark's arrays: 4 samples of 5 charges a part, frames 30 to 40."""
    rng = np.random.default_rng(0)
    made = {}
    for part in ("train", "val", "test"):
        made[f"{part}_pos"] = rng.normal(size=(4, 11, 5, 3)).astype(np.float32)
        made[f"{part}_vel30"] = rng.normal(size=(4, 5, 3)).astype(np.float32)
        made[f"{part}_charge"] = rng.choice([-1, 1], size=(4, 5)).astype(np.int8)
    return made


def packed(path, arrays, **options):
    np.savez(path, **arrays)
    return NBody(str(path), train=4, val=3, test=2, **options)


def test_the_benchmark_file(arrays, tmp_path):
    part = packed(tmp_path / "b.npz", arrays).part("train")
    assert len(part) == 4
    sample = part.__getitems__([2, 0])
    assert np.array_equal(sample.pos, arrays["train_pos"][[2, 0], 0])
    assert np.array_equal(sample.vel, arrays["train_vel30"][[2, 0]])
    assert np.array_equal(sample.charge, arrays["train_charge"][[2, 0]].astype(np.float32))
    assert sample.trajectory.shape == (2, 5, 5, 3)
    assert np.array_equal(sample.trajectory[1, :, 3], arrays["train_pos"][0, 8])
    assert sample.get("trajectory_vel") is None
    assert torch.allclose(sample.times, torch.tensor([[0.2, 0.4, 0.6, 0.8, 1.0]], dtype=torch.float64))
    assert part.pos.dtype == torch.float32
    assert torch.equal(part[1].pos, part.__getitems__([1]).pos)


def test_all_frames_of_the_benchmark_and_frames_of_training_alone(arrays, tmp_path):
    rng = np.random.default_rng(1)
    arrays = {name: array for name, array in arrays.items() if "vel30" not in name}
    for part in ("train", "val", "test"):
        arrays[f"{part}_pos"] = rng.normal(size=(4, 49, 5, 3))
        arrays[f"{part}_vel"] = rng.normal(size=(4, 49, 5, 3))
    data = packed(tmp_path / "b.npz", arrays, train_frames=(31, 48))
    train, val = data.part("train"), data.part("val")
    assert len(val) == 3
    assert train.times.tolist() == pytest.approx([0.1, 1.8])
    assert torch.equal(train.trajectory[1, :, 1], torch.tensor(arrays["train_pos"][1, 48]).float())
    assert torch.equal(val.trajectory_vel[0, :, 0], torch.tensor(arrays["val_vel"][0, 32]).float())
    assert torch.equal(val.vel[0], torch.tensor(arrays["val_vel"][0, 30]).float())


def test_the_original_folder_of_npy_files(arrays, tmp_path):
    rng = np.random.default_rng(2)
    loc, vel = rng.normal(size=(2, 4, 49, 3, 5))
    charges = rng.choice([-1.0, 1.0], size=(4, 5, 1))
    for part in ("train", "valid", "test"):
        np.save(tmp_path / f"loc_{part}_charged5_initvel1small.npy", loc)
        np.save(tmp_path / f"vel_{part}_charged5_initvel1small.npy", vel)
        np.save(tmp_path / f"charges_{part}_charged5_initvel1small.npy", charges)
    part = NBody(str(tmp_path), train=4, val=4, test=4).part("val")
    assert torch.equal(part.pos[2], torch.tensor(loc[2, 30].T).float())
    assert torch.equal(part.vel[2], torch.tensor(vel[2, 30].T).float())
    assert torch.equal(part.trajectory[1, 4, 0], torch.tensor(loc[1, 32, :, 4]).float())
    assert torch.equal(part.trajectory_vel[1, 4, 4], torch.tensor(vel[1, 40, :, 4]).float())
    assert torch.equal(part.charge, torch.tensor(charges[..., 0]).float())

    (tmp_path / "loc_test_charged5_initvel1small.npy").unlink()
    with pytest.raises(InputError, match=r"loc_test_\*.npy, got 0 files"):
        NBody(str(tmp_path), train=4, val=4, test=4).part("test")
    np.save(tmp_path / "loc_valid_charged5_initvel1small.npy", loc.swapaxes(2, 3))
    with pytest.raises(InputError, match=r"expected \[S, F, 3, N\]"):
        NBody(str(tmp_path), train=4, val=4, test=4).part("val")
    np.save(tmp_path / "loc_train_charged5_initvel1small.npy", np.array([{}], dtype=object))
    with pytest.raises(InputError, match="pickled array"):
        NBody(str(tmp_path), train=4, val=4, test=4).part("train")
    np.save(tmp_path / "loc_train_charged5_initvel1small.npy", np.array(["text"]))
    with pytest.raises(InputError, match="wrong dtype"):
        NBody(str(tmp_path), train=4, val=4, test=4).part("train")


def test_a_trajectory_file_is_cut_in_order(tiny_data):
    made = read_trajectories(tiny_data)
    data = NBody(str(tiny_data), start=0, frames=(1, 5, 10), train=15, val=7, test=8)
    test = data.part("test")
    assert torch.equal(test.pos, torch.tensor(made.positions[22:30, 0]).float())
    assert torch.equal(test.trajectory[:, :, 2], torch.tensor(made.positions[22:30, 10]).float())
    assert torch.equal(test.trajectory_vel[:, :, 2], torch.tensor(made.velocities[22:30, 10]).float())
    assert torch.equal(data.part("val").pos, torch.tensor(made.positions[15:22, 0]).float())
    assert test.times.tolist() == pytest.approx([0.1, 0.5, 1.0])
    start = data.start_states(3)
    assert np.array_equal(start.positions[:, 0], made.positions[22:25, 0])
    assert np.array_equal(start.charges, made.charges[22:25])
    with pytest.raises(InputError, match="at most 30 samples in all, got 15 \\+ 8 \\+ 8"):
        replace(data, val=8).part("train")


def test_springs_carry_their_couplings(tmp_path):
    rng = np.random.default_rng(3)
    coupling = rng.normal(size=(3, 4, 4))
    coupling = coupling + coupling.swapaxes(1, 2)
    coupling[:, range(4), range(4)] = 0
    positions = rng.normal(size=(3, 3, 4, 3))
    made = Trajectories(positions, positions, np.arange(3.0), couplings=coupling, meta={"kind": "springs"})
    write_trajectories(tmp_path / "s.npz", made)
    data = NBody(str(tmp_path / "s.npz"), start=0, frames=(1, 2), train=1, val=1, test=1)
    sample = data.part("val")[0]
    j, i = complete_graph(4)
    assert torch.equal(sample.edge_attr[0, :, 0], torch.tensor(coupling[1, i, j]).float())
    assert torch.equal(sample.coupling[0], torch.tensor(coupling[1]).float())
    assert np.array_equal(data.start_states(1).couplings, coupling[2:])
    assert torch.equal(initial_states(made, 1).edge_attr[1, :, 0], sample.edge_attr[0, :, 0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_pos": lambda a: a[:, :, :, :2]}, r"expected \[S, F, N, 3\]"),
        ({"train_pos": lambda a: a[0]}, r"expected \[S, F, N, 3\]"),
        ({"train_pos": lambda a: a.astype(int)}, "dtype, in .*, expected float32 or float64, got int64"),
        ({"train_pos": lambda a: a[:, :, :0], "train_vel30": lambda a: a[:, :0]}, "zero particles"),
        ({"train_pos": lambda a: np.where(a > 1, np.nan, a)}, "positions hold NaN or infinity"),
        ({"train_pos": lambda a: np.where(a > 1, np.inf, a)}, "positions hold NaN or infinity"),
        ({"train_vel30": lambda a: np.where(a > 1, np.inf, a)}, "velocities hold NaN or infinity"),
        ({"train_vel30": lambda a: a[:, :4]}, "velocities do not match the positions"),
        ({"train_vel30": lambda a: a[:3]}, "velocities do not match the positions"),
        ({"train_charge": lambda a: a[:3]}, "charges do not match the positions"),
        ({"train_charge": lambda a: a[:, :3]}, "charges do not match the positions"),
        ({"train_charge": lambda a: np.array(["text"] * 4)}, "corrupt"),
    ],
)
def test_broken_arrays_are_refused(change, words, arrays, tmp_path):
    for name, function in change.items():
        arrays[name] = function(arrays[name])
    with pytest.raises(InputError, match=words):
        packed(tmp_path / "b.npz", arrays).part("train")


def test_broken_files_are_refused(arrays, tmp_path):
    path = tmp_path / "b.npz"
    packed(path, arrays)
    whole = path.read_bytes()
    for content, words in (
        (whole[: len(whole) // 2], "truncated"),
        (b"", "truncated"),
        (b"\x80\x04text", "pickle"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            NBody(str(path)).part("train")
    np.savez(path, **(arrays | {"train_pos": np.array([{}], dtype=object)}))
    with pytest.raises(InputError, match="allow_pickle=False"):
        NBody(str(path)).part("train")
    with pytest.raises(InputError, match="no such file"):
        NBody(str(tmp_path / "none.npz")).part("train")
    with pytest.raises(InputError, match=r"number of train samples, in .*, expected 1 to 4, got 5"):
        replace(packed(path, arrays), train=5).part("train")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": (32, 41)}, "expected 30 to 40, got 41"),
        ({"frames": (31,), "start": 29}, "expected 30 to 40, got 29"),
        ({"frames": ()}, "frames to predict"),
        ({"frames": (34, 32)}, "rising"),
        ({"frames": (30, 32)}, "after start = 30"),
    ],
)
def test_frames_outside_the_trajectory_are_refused(options, words, arrays, tmp_path):
    with pytest.raises(InputError, match=words):
        packed(tmp_path / "b.npz", arrays, **options).part("train")


@pytest.mark.parametrize(
    ("count", "edges"),
    [(0, [[], []]), (1, [[], []]), (2, [[1, 0], [0, 1]])],
)
def test_complete_graph_of_few_nodes(count, edges):
    assert complete_graph(count).tolist() == edges
    assert complete_graph(count).shape == (2, count * max(count - 1, 0))


def test_complete_graph_of_five_nodes():
    pairs = [(j, i) for i in range(5) for j in range(5) if i != j]
    assert list(map(tuple, complete_graph(5).T.tolist())) == pairs


def test_particle_sample_by_hand():
    pos = torch.tensor([[[0.0, 0, 0], [3.0, 4.0, 0]]])
    vel = torch.tensor([[[1.0, 2.0, 2.0], [0.0, 0, 0]]])
    charge = torch.tensor([[-1.0, 2.0]])
    sample = particle_sample(pos, vel, charge, complete_graph(2))
    assert sample.x.tolist() == [[[3.0], [0.0]]]
    assert sample.edge_attr.tolist() == [[[-2.0, 25.0], [-2.0, 25.0]]]
    assert sample.pos is pos
    strings = torch.tensor([[[0.0, 7.0], [7.0, 0.0]]])
    sample = particle_sample(pos, vel, charge, complete_graph(2), strings)
    assert sample.edge_attr[..., 0].tolist() == [[7.0, 7.0]]


def test_initial_states_refuses_other_frames(tiny_data):
    made = read_trajectories(tiny_data)
    assert torch.equal(initial_states(made, 4).pos, torch.tensor(made.positions[:, 4]).float())
    with pytest.raises(InputError, match="0 to 10, got 11"):
        initial_states(made, 11)


def test_baselines_by_hand():
    sample = particle_sample(
        torch.tensor([[[1.0, 0, 0]], [[0.0, 0, 0]]]),
        torch.tensor([[[2.0, 0, 0]], [[0.0, 1.0, 0]]]),
        torch.ones(2, 1),
        complete_graph(1),
    )
    sample.times = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    sample.trajectory = torch.tensor([[[[2.0, 0, 0], [3.0, 0, 0]]], [[[0.0, 0.5, 3.0], [0.0, 3.0, 0]]]])
    assert constant(sample)[:, 0, 1].tolist() == [[1.0, 0, 0], [0.0, 0, 0]]
    assert ballistic(sample)[:, 0].tolist() == [[[2.0, 0, 0], [3.0, 0, 0]], [[0.0, 0.5, 0], [0.0, 1.0, 0]]]
    # Best factors: (2·1 + 1·0.5) / 5 at the first time, (2·2 + 1·3) / 5 at the second.
    factors = fit_linear([sample])
    assert factors.tolist() == pytest.approx([0.5, 1.4])
    assert linear(sample, factors)[0, 0, 1].tolist() == pytest.approx([3.8, 0, 0])
    assert horizon_error(ballistic(sample), sample) == pytest.approx([9 / 6, 4 / 6])
    assert horizon_error(sample.trajectory, sample) == [0.0, 0.0]


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="the official benchmark data is not beside the repository")
def test_reference_errors_of_the_official_data():
    data = NBody(str(OFFICIAL))
    train, test = (part.__getitems__(range(len(part))) for part in map(data.part, ("train", "test")))
    assert test.pos.shape == (2000, 5, 3)
    for predicted, f_mse, a_mse in (
        (constant(test), 0.2714, 0.1223),
        (ballistic(test), 0.1100, 0.0452),
        (linear(test, fit_linear([train])), 0.0845, 0.0355),
    ):
        errors = horizon_error(predicted, test)
        assert errors[-1] == pytest.approx(f_mse, abs=1e-4)
        assert np.mean(errors) == pytest.approx(a_mse, abs=1e-4)
