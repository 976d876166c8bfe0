"""Motion capture samples: the paper's protocol by its published facts, features, gravity, and all around them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch_geometric.data import Batch, Data

from equidyn import conformance
from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.data import Mocap
from equidyn.data.mocap import skeleton_graph, skeleton_sample
from equidyn.data.recordings import Recordings, read_recordings, write_recordings
from equidyn.data.trajectories import read_trajectories
from equidyn.models.egnn import EGNN
from equidyn.models.egno import EGNO
from equidyn.tasks import TrajectoryTask
from equidyn.tasks.trajectory import ballistic, constant, horizon_error, translation
from equidyn.train import load_model, predict_trajectories, read_recipe, read_states

# The first 121 frames of each of the 11 runs of CMU's subject 9, in float32 (mocap.cs.cmu.edu; free for any use).
RUN = Path(__file__).parent / "excerpts" / "cmu_run.npz"
RECIPES = Path(__file__).parents[2] / "recipes" / "mocap"


@pytest.fixture(scope="module")
def parts():
    return {name: Mocap(str(RUN)).part(name) for name in ("train", "val", "test")}


def test_counts_and_trivial_errors_of_the_paper_protocol(parts):
    assert {name: len(part) for name, part in parts.items()} == {"train": 200, "val": 240, "test": 240}
    expected = {
        "test": {constant: (89.80, 79.00), ballistic: (19.80, 16.26), translation: (13.00, 11.85)},
        "val": {constant: (94.49, 83.14), ballistic: (20.77, 17.06), translation: (13.60, 12.41)},
    }
    for name, baselines in expected.items():
        whole = parts[name].__getitems__(range(240))
        for baseline, (last, mean) in baselines.items():
            error = horizon_error(baseline(whole), whole)
            assert error[-1] == pytest.approx(last, abs=5e-3)
            assert np.mean(error) == pytest.approx(mean, abs=5e-3)


def test_samples_by_hand(parts):
    with np.load(RUN) as file:
        positions, offsets = file["positions"].astype(np.float64), file["trial_offsets"]
        trial, start = file["test_trials"][1], file["test_starts"][1, 7]
    frame = offsets[trial] + start
    sample = parts["test"][87]
    assert torch.equal(sample.pos[0], torch.tensor(positions[frame]).float())
    assert torch.equal(sample.vel[0], torch.tensor(positions[frame + 1] - positions[frame]).float())
    for k in range(5):
        later = positions[frame + 26 + k]
        assert torch.equal(sample.trajectory[0, :, k], torch.tensor(later).float())
        velocity = torch.tensor(positions[frame + 27 + k] - later).float()
        assert torch.equal(sample.trajectory_vel[0, :, k], velocity)
    assert sample.times.tolist() == [[26.0, 27.0, 28.0, 29.0, 30.0]]
    assert sample.gravity.tolist() == [[0.0, -1.0, 0.0]]
    torch.testing.assert_close(sample.x[0], torch.stack([sample.vel[0].norm(dim=-1), sample.pos[0, :, 1] / 30], -1))


def test_graph(parts):
    sample = parts["train"][0]
    (send, receive), kind = sample.edge_index, sample.edge_attr[0, :, 0]
    assert sample.edge_index.shape == (2, 130)
    assert [(kind == k).sum().item() for k in (1, 2)] == [60, 70]
    assert torch.equal(receive, receive.sort().values)
    squared = (sample.pos[0, receive] - sample.pos[0, send]).square().sum(-1)
    torch.testing.assert_close(sample.edge_attr[0, :, 1], squared)
    # A chain of four and a joint at its second one.
    edges, kind = skeleton_graph(torch.tensor([[1, 0], [2, 1], [3, 2], [4, 1]]), 5)
    found = {(int(j), int(i)): int(k) for j, i, k in zip(*edges, kind, strict=True) if j < i}
    assert found == {(0, 1): 1, (1, 2): 1, (2, 3): 1, (1, 4): 1, (0, 2): 2, (1, 3): 2, (0, 4): 2, (2, 4): 2}


@pytest.mark.parametrize("options", [{}, {"gravity": True, "basis": "cosine", "lift": "ballistic", "num_modes": 5}])
def test_a_turned_world_gives_a_turned_answer(options):
    """Rotating joints, velocities and gravity together; the features are computed anew."""
    torch.manual_seed(0)
    model = EGNO(2, 2, 16, 2, times=(26, 27, 28, 29, 30), **options).double()
    states = read_recordings(RUN)
    bones, (a, b) = torch.as_tensor(states.bones), torch.tensor(states.trials[3][:2]).double()
    down = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    out = model(skeleton_sample(a[None], (b - a)[None], bones, down))["trajectory"]
    turned = model(skeleton_sample((a @ turn.T)[None], ((b - a) @ turn.T)[None], bones, turn @ down))["trajectory"]
    torch.testing.assert_close(turned, out @ turn.T, rtol=1e-11, atol=1e-11)
    if options:  # gravity is not ignored: another direction, another answer
        sample = skeleton_sample(a[None], (b - a)[None], bones, down)
        sample.gravity = sample.gravity.flip(1).roll(1, 1)
        assert not torch.allclose(model(sample)["trajectory"], out)


class Rigid(torch.nn.Module):
    """A model with the bone lengths that its task keeps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, sample):
        task = TrajectoryTask(bone_lengths=True)
        return {"trajectory": task.predicted(self.model(sample), sample)}


@pytest.mark.parametrize("rigid", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gravity_and_bones_conform(rigid, dtype):
    torch.manual_seed(0)
    model = EGNO(2, 2, 16, 3, gravity=True, basis="cosine", lift="ballistic").to(dtype)
    fields = ["pos", "vel", "x", "edge_index", "edge_attr", "times", "gravity", *(["bone_index"] if rigid else [])]
    sample = conformance.random_sample(7, dtype=dtype, fields=fields)
    # Joints that coincide have bones without a direction: there the lengths are not smooth.
    optional = ["coincident", "gradients"] if rigid else []
    checked = Rigid(model) if rigid else model
    conformance.assert_conforms(checked, sample, group="E(3)", optional=optional)


def test_gravity_of_flat_and_stacked_batches(parts):
    torch.manual_seed(0)
    model = EGNO(2, 2, 8, 2, times=(26, 27, 28, 29, 30), gravity=True)
    stacked = parts["val"].__getitems__([3, 100])
    flat = []
    for k in range(2):
        own = {name: stacked[name][k] for name in ("pos", "vel", "x", "edge_attr")}
        shared = {name: stacked[name] for name in ("edge_index", "gravity", "times", "bone_index")}
        flat.append(Data(**own, **shared))
    out = model(stacked)["trajectory"].flatten(0, 1)
    torch.testing.assert_close(model(Batch.from_data_list(flat))["trajectory"], out, rtol=1e-5, atol=1e-5)
    del stacked.gravity
    with pytest.raises(InputError, match="no gravity, in field gravity"):
        model(stacked)


def test_bone_lengths_of_the_task(parts):
    sample = parts["val"].__getitems__(range(4))
    noisy = sample.trajectory + 0.3 * torch.randn(sample.trajectory.shape, generator=torch.Generator().manual_seed(0))
    task = TrajectoryTask(bone_lengths=True)
    kept = task.predicted({"trajectory": noisy}, sample)
    child, parent = sample.bone_index
    of = lambda joints: (joints[:, child] - joints[:, parent]).norm(dim=-1)  # noqa: E731
    torch.testing.assert_close(of(kept), of(sample.pos)[..., None].expand(4, 30, 5), rtol=1e-5, atol=1e-5)
    raw = TrajectoryTask().errors({"trajectory": noisy}, sample)
    assert (task.errors({"trajectory": noisy}, sample) < 0.7 * raw).all()
    assert task.predicted({"pos": noisy[..., 0, :]}, sample).shape == (4, 31, 1, 3)
    del sample.bone_index
    with pytest.raises(InputError, match="bone_lengths needs a skeleton"):
        task.loss({"trajectory": noisy}, sample)


def walk(frames, seed=0, joints=5):
    """A chain that drifts, its bones of constant length."""
    rng = np.random.default_rng(seed)
    bones = np.stack([np.arange(1, joints), np.arange(joints - 1)], axis=1)
    angle = 0.05 * np.arange(frames)[:, None] + rng.normal(size=(1, joints))
    links = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1)
    root = np.arange(frames)[:, None, None] * np.array([0.0, 0.0, 0.3])
    return np.cumsum(links, axis=1) + root, bones


def test_own_recordings_are_split_by_trial(tmp_path):
    trials = [walk(40 + k, seed=k)[0] for k in range(6)]
    write_recordings(tmp_path / "own.npz", Recordings(trials, walk(2)[1]))
    data = Mocap(str(tmp_path / "own.npz"), frames=(2, 4), train=9, val=3, test=36)
    train, val, test = (data.part(name) for name in ("train", "val", "test"))
    assert [len(part) for part in (train, val, test)] == [9, 3, 36]
    last = len(trials[4]) - 2 - 4  # the last window, with a frame after it
    assert torch.equal(val.states.pos[-1], torch.tensor(trials[4][last]).float())
    assert len({tuple(pos.flatten().tolist()) for pos in test.states.pos}) == 36
    assert torch.equal(train.states.pos[0], torch.tensor(trials[0][0]).float())
    up = replace(data, up=(0.0, 0.0, 2.0), height_unit=3.0).part("val")
    torch.testing.assert_close(up.states.x[..., 1], up.states.pos[..., 2] / 3)
    assert up.states.gravity.tolist() == [[-0.0, -0.0, -1.0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": 0}, "number of train samples, in .*, expected at least 1, got 0"),
        ({"test": 241}, "number of test samples, in .*, expected 1 to 240, got 241"),
        ({"frames": ()}, "frames to predict"),
        ({"frames": (0, 5)}, "expected one or more, 1 or later, rising, got \\[0, 5\\]"),
        ({"frames": (5, 5)}, "rising"),
        ({"frames": (31,)}, "frame outside the trial, in .*, expected at most 30 for trial 3 from frame 89, got 31"),
        ({"up": (0.0, 0.0, 0.0)}, "direction, in data.up"),
        ({"height_unit": 0.0}, "unit, in data.height_unit, expected more than 0"),
        ({"path": "none.npz"}, "no such file, in none.npz"),
    ],
)
def test_options_that_cannot_be(change, words):
    with pytest.raises(InputError, match=words):
        replace(Mocap(str(RUN)), **change).part("test")


SMALL = [
    *("--train.epochs=3", "--train.eval_every=1", "--train.threads=1", "--train.accelerator=cpu"),
    *("--train.lr=0.003", "--train.warmup=0", "--train.ema=0", "--model.hidden_dim=12", "--model.num_layers=2"),
    *("--data.train=36", "--data.val=6", "--data.test=6", "--train.compile=false"),
]


@pytest.fixture(scope="module", params=["egno_paper", "egno", "egnn"])
def trained(request, tmp_path_factory):
    """A small run of a shipped recipe, with its evaluation."""
    runs = tmp_path_factory.mktemp("mocap")
    recipe = RECIPES / f"{request.param}.yaml"
    changes = SMALL + (["--data.frames=[10, 20, 30]", "--model.times=[10, 20, 30]"] if request.param == "egno" else [])
    changes += ["--model.num_modes=3", "--train.lr=0.03"] if request.param == "egno" else []  # soap starts slowly
    assert main(["train", str(recipe), "--runs", str(runs), f"--data.path={RUN}", *changes]) == 0
    return runs / read_recipe(recipe).name


def test_shipped_recipes_train_evaluate_and_report(trained):
    rows = csv.DictReader((trained / "metrics.csv").read_text().splitlines())
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < losses[0]
    result = json.loads((trained / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert result["baselines"].keys() == {"constant", "ballistic", "translation", "linear"}
    assert max(result["symmetry"].values()) < 1e-5
    assert result["f_mse"] < result["baselines"]["constant"]["f_mse"]
    if trained.name == "mocap-egno":  # there are recorded frames that it has not seen
        assert result["unseen_times"]["times"] == [float(t) for t in range(10, 31)]
        assert result["unseen_times"]["mse"][-1] == pytest.approx(result["f_mse"], rel=1e-4)
    else:
        assert result["unseen_times"] is None
    with np.load(trained / "predictions.npz") as arrays:
        assert arrays["bonds"].shape == (30, 2)
        assert arrays["up"].tolist() == [0.0, 1.0, 0.0]
        if trained.name == "mocap-egno":  # bones keep their lengths, to float32
            child, parent = arrays["bonds"].T
            of = lambda joints: np.linalg.norm(joints[..., child, :] - joints[..., parent, :], axis=-1)  # noqa: E731
            assert np.abs(of(arrays["predicted"]) - of(arrays["initial"])[:, None]).max() < 1e-4
    assert main(["report", str(trained)]) == 0
    assert "bonds" in (trained / "report.html").read_text(encoding="utf-8")


def test_prediction_from_a_recording_and_from_a_prediction(trained, tmp_path):
    assert main(["predict", str(trained), str(RUN), str(tmp_path / "out.npz"), "--frame", "7"]) == 0
    made = read_trajectories(tmp_path / "out.npz")
    own = {"mocap-egno": [10, 20, 30], "mocap-egno-paper": [26, 27, 28, 29, 30], "mocap-egnn": [30]}[trained.name]
    assert made.positions.shape == (11, len(own), 31, 3)
    assert made.times.tolist() == own
    assert len(made.meta["bones"]) == 30
    assert main(["predict", str(trained), str(tmp_path / "out.npz"), str(tmp_path / "on.npz")]) == 0
    model = load_model(trained)
    states = read_states(model, RUN)
    again = predict_trajectories(model, states, frame=7)
    np.testing.assert_allclose(again.positions, made.positions, rtol=1e-6, atol=1e-5)
    with pytest.raises(InputError, match="trajectories without a skeleton"):
        predict_trajectories(model, replace(states, meta={}))
    with pytest.raises(InputError, match="wrong skeleton, in meta"):
        predict_trajectories(model, replace(states, meta={"bones": states.meta["bones"][:-1]}))
    with pytest.raises(InputError, match="frame outside the trajectory, expected 0 to 119, got 120"):
        predict_trajectories(model, states, frame=120)


def spoiled(tmp_path, **changes):
    """The excerpt with some arrays changed, without any check."""
    with np.load(RUN) as file:
        arrays = {name: file[name] for name in file.files}
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    np.savez(tmp_path / "bad.npz", **arrays)
    return tmp_path / "bad.npz"


def with_nan(array):
    array = array.copy()
    array[121 * 2 + 5, 7, 1] = np.nan
    return array


BROKEN = {
    "nan": ({"positions": with_nan}, "NaN or infinity, in .*trial 2, got frame 5, joint 7"),
    "missing joints": ({"positions": lambda a: a[:, :30]}, r"wrong skeleton, .*one bone for each of the 30 joints"),
    "missing bones": ({"bones": lambda a: a[:29]}, r"wrong skeleton, .*integers \[30, 2\], .*got int64 \[29, 2\]"),
    "no such joint": ({"bones": lambda a: np.where(a == 30, 31, a)}, "a joint that is not there, .*0 to 30, got 31"),
    "two parents": ({"bones": lambda a: np.where(a == [[30, -1]], 29, a)}, "one parent for each joint"),
    "a ring": ({"bones": lambda a: np.where((a[:, :1] == 1) & [[False, True]], 2, a)}, "hang on themselves"),
    "one frame": (
        {"positions": lambda a: a[:1], "trial_offsets": lambda a: np.array([0, 1])},
        "no velocity, .*trial 0, expected 2 or more frames, got 1",
    ),
    "time step 0": ({"frame_time": lambda a: np.float64(0)}, "time step, .*expected more than 0 seconds, got 0"),
    "offsets": ({"trial_offsets": lambda a: a[:-1]}, "wrong trial_offsets, .*integers from 0 up to the 1331 frames"),
    "no such trial": ({"val_trials": lambda a: a + 9}, "a trial of val that is not there, .*0 to 10"),
    "no such start": ({"test_starts": lambda a: a + 90}, "a start of test outside its trial"),
    "pickle": ({"positions": lambda a: np.array([{}], dtype=object)}, "pickled array"),
    "integers": ({"positions": lambda a: a.astype(int)}, "positions have the wrong dtype"),
    "plane": ({"positions": lambda a: a[..., :2]}, "positions have the wrong shape"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recordings_are_one_line(name, tmp_path, capfd, monkeypatch):
    changes, words = BROKEN[name]
    path = spoiled(tmp_path, **changes)
    with pytest.raises(InputError, match=words):
        Mocap(str(path)).part("test")
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(RECIPES / "egnn.yaml"), f"--data.path={path}", *SMALL]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("equidyn: error: ")
    assert not (tmp_path / "runs").exists()


def test_cut_and_foreign_files(tmp_path, capfd):
    (tmp_path / "cut.npz").write_bytes(RUN.read_bytes()[:200_000])
    (tmp_path / "text.npz").write_text("no numbers")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name, words in {
        "cut.npz": "truncated or corrupt file",
        "text.npz": "pickled array|truncated or corrupt file",
        "other.npz": "no array 'positions'",
        "one.npy": "truncated or corrupt file",
        ".": "recordings, in .*, expected files .amc, or files .bvh, got none",
    }.items():
        with pytest.raises(InputError, match=words):
            Mocap(str(tmp_path / name)).part("train")


def test_few_trials_and_too_short_ones(tmp_path):
    path = tmp_path / "few.npz"
    write_recordings(path, Recordings([walk(40)[0]] * 2, walk(2)[1]))
    with pytest.raises(InputError, match=r"trials, in .*, expected 3 trials of at least 32 frames.* got 2 of 2"):
        Mocap(str(path)).part("train")
    write_recordings(path, Recordings([walk(31)[0]] * 4, walk(2)[1]))
    with pytest.raises(InputError, match="got 0 of 4"):
        Mocap(str(path)).part("train")


def test_a_roll_out_is_refused_in_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load((RECIPES / "egnn.yaml").read_text())
    recipe["task"]["rollout"] = True
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "recipe.yaml", f"--data.path={RUN}", *SMALL]) == 2
    assert "rollout needs particles" in capfd.readouterr().err


def test_one_joint(tmp_path):
    path = tmp_path / "one.npz"
    write_recordings(path, Recordings([walk(40, joints=1)[0]] * 3, np.zeros((0, 2), dtype=int)))
    sample = Mocap(str(path), train=5, val=2, test=2).part("train").__getitems__(range(5))
    out = EGNN(2, 2, 8, 2)(sample)
    assert TrajectoryTask(bone_lengths=True).errors(out, sample).isfinite().all()
