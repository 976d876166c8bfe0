"""Trajectories of molecules: readers, features and splits of the MD17 experiment, and what is refused."""

import json
from itertools import pairwise
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
import yaml

from equidyn import conformance
from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.data import MolecularDynamics
from equidyn.data.md_frames import read_frames, write_md17
from equidyn.data.md_trajectories import find_bonds, molecule_sample
from equidyn.data.trajectories import read_trajectories
from equidyn.data.windows import choose_starts, md17_split
from equidyn.models.egno import EGNO
from equidyn.train import load_model, predict_trajectories, read_recipe, read_states

# 201 frames, 1 fs apart, of `equidyn simulate md ethanol.npz --molecule ethanol`, in float32.
ETHANOL = Path(__file__).parent / "excerpts" / "md_ethanol.npz"
SPLIT = Path(__file__).parent / "excerpts" / "md17_split_ethanol.npz"
RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = {"frames": (5, 10, 15, 20), "train": 20, "val": 10, "test": 10}


@pytest.fixture(scope="module")
def ethanol():
    with np.load(ETHANOL) as file:
        return file["R"].astype(np.float64), file["z"].astype(np.int64)


def md17(path, frames=30, atoms=None, **arrays):
    """A file with the keys of MD17: a shaken chain of carbon with hydrogens."""
    z = np.array([6, 1, 6, 8] if atoms is None else atoms)
    rng = np.random.default_rng(0)
    start = np.stack([1.4 * np.arange(len(z)), np.zeros(len(z)), np.zeros(len(z))], axis=-1)
    positions = start + 0.01 * rng.normal(size=(frames, len(z), 3)).cumsum(0)
    np.savez(path, **{"R": positions, "z": z.astype(np.uint8), "E": np.zeros((frames, 1))} | arrays)
    return positions


def test_samples_by_hand(ethanol):
    positions, z = ethanol
    heavy = positions[:, z > 1]
    part = MolecularDynamics(str(ETHANOL), **SHORT).part("val")
    starts = np.linspace(120, 160 - 21, 10).round().astype(int)  # frames 120 to 159, windows inside
    sample = part.__getitems__(range(10))
    assert sample.z.tolist() == [6, 6, 8]
    torch.testing.assert_close(sample.pos, torch.tensor(heavy[starts]).float())
    torch.testing.assert_close(sample.vel, torch.tensor(heavy[starts + 1] - heavy[starts]).float())
    for k, later in enumerate(SHORT["frames"]):
        torch.testing.assert_close(sample.trajectory[:, :, k], torch.tensor(heavy[starts + later]).float())
    assert sample.times.tolist() == [[5.0, 10.0, 15.0, 20.0]]
    torch.testing.assert_close(sample.x[..., 0], sample.vel.norm(dim=-1))
    assert sample.x[0, :, 1].tolist() == [0.75, 0.75, 1.0]


def test_features_of_the_paper():
    part = MolecularDynamics(str(ETHANOL), sticks=((0, 1),), **SHORT).part("train")
    sample = part[3]
    # Sender and receiver: the bonds C-C and C-O, and C and O two bonds apart.
    edges = list(zip(*sample.edge_index.tolist(), strict=True))
    assert edges == [(1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2)]
    attributes = dict(zip(edges, sample.edge_attr[0].tolist(), strict=True))
    assert attributes[1, 0][:4] == [6, 6, 1, 1]
    assert attributes[2, 0][:4] == [6, 8, 2, 0]  # of the receiver, of the sender, two-hop, no stick
    assert attributes[1, 2][:4] == [8, 6, 1, 0]
    send, receive = sample.edge_index
    squared = (sample.pos[0, send] - sample.pos[0, receive]).square().sum(-1)
    torch.testing.assert_close(sample.edge_attr[0, :, 4], squared)
    everything = MolecularDynamics(str(ETHANOL), selection="all", **SHORT).part("train")
    assert everything[0].pos.shape == (1, 9, 3)
    assert len(everything[0].bond_index.T) == 8


def test_a_sample_does_not_depend_on_its_batch():
    part = MolecularDynamics(str(ETHANOL), **SHORT).part("test")
    together, alone = part.__getitems__([4, 0, 9]), part[9]
    for name in ("pos", "vel", "x", "edge_attr", "trajectory"):
        assert torch.equal(together[name][2:], alone[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_egno_conforms_on_a_molecule(dtype):
    torch.manual_seed(0)
    sample = MolecularDynamics(str(ETHANOL), **SHORT).part("test")[0]
    for name in ("pos", "vel", "x", "edge_attr"):
        sample[name] = sample[name][0].to(dtype)
    del sample.trajectory
    model = EGNO(2, 5, 16, 2, times=SHORT["frames"]).to(dtype)
    conformance.assert_conforms(model, sample, group="E(3)")


def test_the_draw_of_the_published_split():
    """The stored indices, by the recipe; a file of them and the draw give the same samples."""
    with np.load(SPLIT) as stored:
        drawn = md17_split(int(stored["n_frames"]))
        for name in ("train", "val", "test"):
            assert np.array_equal(drawn[name][: len(stored[name])], stored[name])


def test_split_files(tmp_path):
    path, split = tmp_path / "md.npz", tmp_path / "split.npz"
    positions = md17(path)[:, [0, 2, 3]]
    np.savez(split, train=np.array([7, 3, 20], np.int32), val=[0, 1], test=[24])
    data = MolecularDynamics(str(path), frames=(2, 5), split=str(split), train=2, val=0, test=0)
    torch.testing.assert_close(data.part("train").states.pos, torch.tensor(positions[[7, 3]]).float())
    assert [len(data.part(name)) for name in ("val", "test")] == [2, 1]
    np.savez(split, train=[7], val=[0], test=[25])
    with pytest.raises(
        InputError, match=r"a start of test beyond the trajectory, in .*expected starts up to 24 .*got 25"
    ):
        data.part("test")


def test_parts_share_no_frame():
    """Unless asked for: the ordered split of the AdK experiment has F - last starts."""
    frames = read_frames(ETHANOL)
    steps = np.array([0, 1, 5, 20])
    parts = [choose_starts(frames, name, 0, "separate", steps) for name in ("train", "val", "test")]
    spans = [(part[0], part[-1] + 20) for part in parts]
    assert all(a < b for (_, a), (b, _) in pairwise(spans))
    assert spans[2][1] == len(frames) - 1
    ordered = [choose_starts(frames, name, 0, "ordered", steps) for name in ("train", "val", "test")]
    assert np.concatenate(ordered).tolist() == list(range(len(frames) - 20))
    assert [len(part) for part in ordered] == [108, 36, 37]  # 60, 20, 20 % of 181


def test_revised_md17_is_put_in_order(tmp_path):
    """rMD17 has some frames of MD17, in another order; windows with a gap are left out."""
    old = md17(tmp_path / "old.npz")
    kept = np.random.default_rng(1).permutation(np.delete(np.arange(30), [4, 17]))
    new = {"coords": old[kept], "nuclear_charges": np.array([6, 1, 6, 8]), "old_indices": kept}
    np.savez(tmp_path / "new.npz", **new)
    frames = read_frames(tmp_path / "new.npz")
    assert (len(frames), frames.present.sum()) == (30, 28)
    np.testing.assert_array_equal(frames.read(np.array([7, 0])), old[[7, 0]][:, [0, 2, 3]])
    starts = choose_starts(frames, "train", 0, "ordered", np.array([0, 1, 3]))
    assert starts.tolist() == [
        0,
        2,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        15,
    ]  # of 0 to 15; 1, 3 and 4 touch frame 4; 14 frame 17
    with pytest.raises(InputError, match="frames are missing"):
        MolecularDynamics(str(tmp_path / "new.npz")).read(tmp_path / "new.npz")


@pytest.mark.parametrize("name", ["ethanol.extxyz", "ethanol.traj", "ethanol.xyz"])
def test_formats_of_ase(tmp_path, ethanol, name):
    positions, z = ethanol
    ase.io.write(tmp_path / name, [ase.Atoms(z, p) for p in positions])
    options = {"split": "separate", **SHORT}
    a = MolecularDynamics(str(tmp_path / name), **options).part("train")
    b = MolecularDynamics(str(ETHANOL), **options).part("train")
    torch.testing.assert_close(a.trajectory, b.trajectory, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.states.edge_attr, b.states.edge_attr, atol=1e-5, rtol=0)


def recipe(tmp_path, system="egno", **data):
    times = list(SHORT["frames"])
    egno = {"times": times, "num_layers": 2, "time_dim": 8}
    return {
        "name": "md",
        "system": system,
        "model": {"node_dim": 2, "edge_dim": 5, "hidden_dim": 8} | (egno if system == "egno" else {}),
        "data": {"dataset": "md", "path": str(ETHANOL), **SHORT, "frames": times, **data},
        "train": {"epochs": 2, "batch_size": 10, "eval_every": 2, "threads": 1, "accelerator": "cpu"},
    }


@pytest.mark.parametrize("system", ["egno", "egnn"])
def test_from_recipe_to_report(tmp_path, monkeypatch, system, capfd):
    monkeypatch.chdir(tmp_path)
    Path("md.yaml").write_text(yaml.safe_dump(recipe(tmp_path, system)))
    assert main(["train", "md.yaml"]) == 0
    result = json.loads(Path("runs/md/evaluation.json").read_text())
    assert result["samples"] == 10
    assert result["baselines"]["ballistic"]["f_mse"] > result["baselines"]["constant"]["f_mse"] > 0
    assert max(result["symmetry"].values()) < 1e-4
    assert (result["unseen_times"] is None) == (system == "egnn")
    assert main(["predict", "runs/md", str(ETHANOL), "out.npz", "--frame", "170"]) == 0
    predicted = read_trajectories("out.npz")
    assert predicted.positions.shape == (1, 4 if system == "egno" else 1, 3, 3)
    assert predicted.meta["z"] == [6, 6, 8]
    trained = load_model("runs/md")
    again = predict_trajectories(trained, read_states(trained, "out.npz"), frame=0)  # a prediction is a state
    assert again.positions.shape == predicted.positions.shape
    assert main(["report", "runs/md"]) == 0
    with np.load("runs/md/predictions.npz") as file:
        assert file["bonds"].tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("md*/*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_right(path):
    made = read_recipe(path)
    data = made.build_data()
    assert data.after(data.frames) == made.config["model"].get("times", data.after(data.frames))
    made.build_model()


def test_bad_trajectories(tmp_path):
    path = tmp_path / "md.npz"
    data = lambda **options: MolecularDynamics(str(path), **{"frames": (2, 5), "train": 4} | options)  # noqa: E731

    def refused(message, part="train", **options):
        with pytest.raises(InputError, match=message) as error:
            data(**options).part(part)
        assert "\n" not in str(error.value)

    refused("no such file")
    md17(path, 1)
    refused("no velocity, in .*expected 2 or more frames, got 1")
    md17(path, 20)
    refused("trajectory too short, in .*expected more than 30 frames", "val")
    refused("number of train samples, in .*expected at most 9, got 30", split="ordered", train=30)
    refused("trajectory too short, in .*expected frames to predict up to 19, got 40", frames=(40,))
    refused("trajectory too short, in .*20020 frames; or split: separate", split="random")
    refused("no such split", split="seperate")
    positions = md17(path, 60)
    positions[7, 2, 1] = np.nan
    md17(path, 60, R=positions)
    refused("positions hold NaN or infinity, in .*got frame 7, atom 1", split="ordered", train=0)
    md17(path, 60, dt=np.float64(0))
    refused("time step, in .*expected more than 0 fs, got 0.0")
    md17(path, 60, atoms=[1, 1])
    refused("empty selection, in .*got selection 'heavy'")
    md17(path, 60, z=np.array([6, 1, 6]))
    refused("z does not match, in .*expected 4 atomic numbers")
    md17(path, 60)
    refused("no bonds, in .*bond_length = 1 Å", bond_length=1.0)
    refused("a stick that is no bond", sticks=((0, 2),), bond_length=1.5)
    refused("frames to predict", train_frames=(3, 3))
    refused("selection, in .*others need a topology, got backbone", selection="backbone")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("truncated or corrupt file")
    np.savez(path, positions=np.zeros(3))
    refused("no array 'coords', in .*expected R and z")
    np.savez(path, R=np.array([{}], dtype=object), z=[6])
    refused("pickled array")
    for name, text in (("a.dcd", "no topology"), ("a.xyz", "cannot read the trajectory")):
        (tmp_path / name).write_text("nothing")
        with pytest.raises(InputError, match=text):
            read_frames(tmp_path / name)
    two = [ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), ase.Atoms("CC", [[0, 0, 0], [0, 0, 1.1]])]
    ase.io.write(tmp_path / "two.extxyz", two)
    with pytest.raises(InputError, match="other atoms in frame 1"):
        read_frames(tmp_path / "two.extxyz")


def test_lengths_in_nanometres_are_noticed(ethanol):
    positions, _ = ethanol
    with pytest.raises(InputError, match="every atom is bonded to every other"):
        find_bonds(positions[0] / 10, 1.6)


def test_written_files_are_those_of_md17(tmp_path, ethanol):
    positions, z = ethanol
    write_md17(tmp_path / "out.npz", z, positions[:5], np.full(5, -1.0), 0 * positions[:5], 0.5, {"seed": 1})
    with np.load(tmp_path / "out.npz") as file:
        assert file["E"].shape == (5, 1)
        assert file["E"][0, 0] == pytest.approx(-23.0605, abs=1e-4)
        assert json.loads(str(file["meta"])) == {"seed": 1}
    frames = read_frames(tmp_path / "out.npz", selection="all")
    assert frames.frame_time == 0.5
    np.testing.assert_array_equal(frames.read(np.arange(5)), positions[:5])


def test_one_molecule_as_a_flat_sample(ethanol):
    positions, _ = ethanol
    pos = torch.tensor(positions[:1, :3])
    sample = molecule_sample(pos, 0 * pos, torch.tensor([6, 6, 8]), torch.tensor([[0, 1], [1, 2]]))
    assert sample.edge_attr.shape == (1, 6, 5)


def test_a_unit_of_time():
    """Velocities and times in a longer unit, the same trajectory."""
    a = MolecularDynamics(str(ETHANOL), **SHORT).part("val")[2]
    b = MolecularDynamics(str(ETHANOL), time_unit=5, **SHORT).part("val")[2]
    torch.testing.assert_close(b.vel, 5 * a.vel)
    assert b.times.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert torch.equal(a.trajectory, b.trajectory)
    states = MolecularDynamics(str(ETHANOL), time_unit=5, **SHORT).read(ETHANOL)
    torch.testing.assert_close(
        MolecularDynamics(str(ETHANOL), time_unit=5).sample(states, 7).vel,
        torch.tensor(states.velocities[:, 7]).float(),
    )
    with pytest.raises(InputError, match="unit, in data"):
        MolecularDynamics(str(ETHANOL), time_unit=0, **SHORT).part("val")
