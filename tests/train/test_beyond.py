"""Periodic data, ensembles, uncertainty, rolled windows, input noise and the leaderboard, from recipe to page."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from equidyn.cli import main
from equidyn.conformance import random_sample
from equidyn.core.errors import InputError
from equidyn.data import Periodic
from equidyn.data.mocap import skeleton_sample
from equidyn.data.nbody import particle_sample
from equidyn.data.states import noisy, with_state
from equidyn.data.trajectories import read_trajectories, write_trajectories
from equidyn.models.egno import EGNO
from equidyn.simulate import Liquid, simulate_liquid
from equidyn.tasks.trajectory import TrajectoryTask, roll_windows
from equidyn.train import evaluate, load_model, read_recipe, run_leaderboard, train, write_ensemble
from equidyn.train.calibration import _compare
from equidyn.train.checkpoint import Ensemble
from equidyn.train.leaderboard import _evaluated
from equidyn.train.rolling import _bonds

LAYER = {"residual": True, "shift_bias": False, "cutoff": 1.6}


@pytest.fixture(scope="module")
def liquid_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("liquid") / "liquid.npz"
    write_trajectories(path, simulate_liquid(Liquid(settle=0.4), 4, bodies=16, steps=200, store_every=5, seed=2))
    return path


@pytest.fixture(scope="module")
def liquid_recipe(liquid_file):
    return {
        "name": "liquid",
        "system": "egno",
        "model": {"node_dim": 1, "edge_dim": 1, "hidden_dim": 8, "num_layers": 2, "time_dim": 8, "options": LAYER}
        | {"times": [0.04, 0.08, 0.12], "lift": "ballistic"},
        "data": {"dataset": "periodic", "path": str(liquid_file), "cutoff": 1.6, "frames": [2, 4, 6], "stride": 8}
        | {"train": 2, "val": 1, "test": 1},
        "task": {"name": "trajectory", "velocity_weight": 0.1},
        "train": {"epochs": 3, "batch_size": 2, "eval_every": 1, "threads": 1, "accelerator": "cpu"},
    }


@pytest.fixture(scope="module")
def liquid_run(liquid_recipe, tmp_path_factory):
    return train(read_recipe(liquid_recipe), tmp_path_factory.mktemp("runs") / "liquid", progress=False)


def test_a_liquid_from_recipe_to_report(liquid_run, liquid_file, tmp_path):
    run = shutil.copytree(liquid_run, tmp_path / "run")
    assert main(["evaluate", str(run), "--windows", "3", "--curvature"]) == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert result["samples"] == 5
    assert set(result["baselines"]) == {"constant", "ballistic", "translation", "linear"}
    assert result["baselines"]["ballistic"]["f_mse"] < result["baselines"]["constant"]["f_mse"]
    for name in ("lattice_translation", "wrapping", "supercell", "rotation"):
        assert result["symmetry"][name] < 1e-4
    rolled = result["rolled"]
    np.testing.assert_allclose(rolled["times"], np.arange(1, 10) * 0.04)
    assert set(rolled["drift"]) == {"energy", "energy_true", "momentum", "momentum_true"}
    assert rolled["drift"]["energy_true"][-1] < 1e-2
    assert rolled["mse"][:3] == pytest.approx(result["horizon_mse"], rel=0.5)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    for words in ("Beyond the window", "Drift of energy, rolled", "Uncertainty", "Coverage", "wrapping"):
        assert words in page
    assert main(["predict", str(run), str(liquid_file), str(tmp_path / "out.npz")]) == 0
    predicted = read_trajectories(tmp_path / "out.npz")
    assert predicted.positions.shape == (4, 3, 16, 3)
    assert predicted.cell.shape == (4, 3, 3)


def test_samples_of_a_box(liquid_file):
    source = Periodic(str(liquid_file), 1.6, frames=(2, 4, 6), stride=8, train=2, val=1, test=1)
    part = source.part("train")
    assert len(part) == 2 * 5
    batch, one = part.__getitems__([0, 7]), part[7]
    assert batch.batch.tolist() == [0] * 16 + [1] * 16
    torch.testing.assert_close(batch.trajectory[16:], one.trajectory)
    j, i = one.edge_index
    q = (one.pos[j] + one.edge_shift - one.pos[i]).square().sum(-1)
    assert q.max() < 1.6**2
    torch.testing.assert_close(one.edge_attr[:, 0], q)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": (2, 50)}, "frame outside the trajectory.*up to 40"),
        ({"frames": ()}, "frames to predict"),
        ({"train": 9}, "train . val . test"),
        ({"test": 0}, "number of test trajectories"),
        ({"stride": 0}, "stride, in data.stride"),
        ({"cutoff": 0.0}, "cutoff, in neighbor_list"),
    ],
)
def test_bad_boxes_of_a_recipe(changes, words, liquid_file):
    given = {"cutoff": 1.6, "train": 2, "val": 1, "test": 1} | changes
    with pytest.raises(InputError, match=words):
        Periodic(str(liquid_file), **given).part("train")[0]


def test_bad_files_of_boxes(liquid_file, tiny_data, tmp_path):
    with pytest.raises(InputError, match=r"no box, in .*tiny.npz"):
        Periodic(str(tiny_data), 1.6).part("train")
    whole = read_trajectories(liquid_file)
    with np.load(liquid_file) as archive:
        arrays = dict(archive)
    for change, words in (
        ({"cell": arrays["cell"] * 0}, "a box without volume"),
        ({k: arrays[k][:, :1] for k in ("positions", "velocities")} | {"times": arrays["times"][:1]}, "of one frame"),
        ({"times": arrays["times"] ** 2 + arrays["times"]}, "equidistant frames"),
    ):
        np.savez(tmp_path / "bad.npz", **(arrays | change))
        with pytest.raises(InputError, match=words):
            Periodic.read(tmp_path / "bad.npz")
    source = Periodic(str(liquid_file), 1.6)
    with pytest.raises(InputError, match="frame outside the trajectory"):
        source.sample(whole, 99)
    with pytest.raises(InputError, match="no box, in states"):
        source.sample(read_trajectories(tiny_data))


# ---- Ensembles and uncertainty ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ensemble(tiny_data, tmp_path_factory):
    """Three seeds and their ensemble, made on the command line."""
    place = tmp_path_factory.mktemp("ensemble")
    recipe = {
        "name": "tiny",
        "system": "egno",
        "seed": 1,
        "model": {"node_dim": 1, "edge_dim": 2, "hidden_dim": 8, "num_layers": 2, "time_dim": 8},
        "data": {"dataset": "nbody", "path": str(tiny_data), "start": 0, "frames": [2, 4, 6, 8, 10]}
        | {"train": 16, "val": 6, "test": 8},
        "task": {"name": "trajectory", "velocity_weight": 0.1},
        "train": {"epochs": 2, "batch_size": 4, "eval_every": 1, "threads": 1, "accelerator": "cpu"},
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(place / "recipe.yaml"), "--runs", str(place), "--seeds", "3"]) == 0
    return place / "tiny-ensemble"


def members(ensemble):
    return sorted(ensemble.parent.glob("tiny-seed*"))


def test_an_ensemble_is_the_mean_of_its_members(ensemble, tiny_data, tmp_path):
    assert main(["predict", str(ensemble), str(tiny_data), str(tmp_path / "all.npz")]) == 0
    paths = []
    for member in members(ensemble):
        assert main(["predict", str(member), str(tiny_data), str(tmp_path / "one.npz")]) == 0
        paths.append(read_trajectories(tmp_path / "one.npz").positions)
    found = read_trajectories(tmp_path / "all.npz")
    np.testing.assert_allclose(found.positions, np.mean(paths, 0), atol=1e-5)
    std = np.sqrt(np.var(paths, axis=0, ddof=1).mean(-1))
    np.testing.assert_allclose(found.deviations, std, rtol=1e-3, atol=1e-6)


def test_an_ensemble_is_evaluated_like_a_run(ensemble):
    result = evaluate(ensemble, windows=2)
    (found,) = result["calibration"]
    assert found["method"] == "ensemble"
    assert len(found["predicted"]) == len(found["true"]) == 10
    assert found["predicted"] == sorted(found["predicted"])
    assert found["coverage"] == sorted(found["coverage"])
    assert all(0 <= share <= 1 for share in found["coverage"])
    each = [json.loads((m / "evaluation.json").read_text())["f_mse"] for m in members(ensemble)]
    assert result["f_mse"] < np.mean(each)  # squared errors of a mean
    assert result["symmetry"]["rotation"] < 1e-4
    assert main(["report", str(ensemble), str(members(ensemble)[0])]) == 0
    assert "tiny-ensemble, ensemble" in (ensemble / "report.html").read_text()


def test_an_ensemble_of_skeletons_is_the_mean_of_skeletons():
    """Before bones are given their lengths a member may put joints anywhere along them."""
    torch.manual_seed(0)
    task = TrajectoryTask(bone_lengths=True)
    models = [EGNO(2, 2, 8, 2, times=(1.0, 2.0)).double() for _ in range(2)]
    sample = random_sample(nodes=4)
    sample.times = None
    sample.bone_index = torch.tensor([[1, 2, 3], [0, 1, 1]])
    each = [task.predicted(model(sample), sample) for model in models]
    out = Ensemble(models, task)(sample)
    torch.testing.assert_close(out["trajectory"], (each[0] + each[1]) / 2, rtol=0, atol=1e-12)


def test_bad_ensembles(ensemble, trained_run, tmp_path):
    runs = members(ensemble)
    with pytest.raises(InputError, match="two runs or more"):
        write_ensemble(tmp_path / "e", runs[:1])
    with pytest.raises(InputError, match="members that differ in task"):
        write_ensemble(tmp_path / "e", [runs[0], trained_run])
    with pytest.raises(InputError, match="the folder holds a run"):
        write_ensemble(runs[0], runs)
    assert not (tmp_path / "e").exists()
    assert main(["train", "nbody/egno", "--seeds", "0"]) == 2
    broken = tmp_path / "broken"
    broken.mkdir()
    for text, words in (
        ("{", "corrupt description"),
        ("[]", "corrupt description"),
        ('{"members": ["a", "b"]}', "unknown format version"),
        ('{"format_version": 1, "members": ["a", "b"]}', "not a run folder"),
    ):
        (broken / "ensemble.json").write_text(text)
        with pytest.raises(InputError, match=words) as caught:
            load_model(broken)
        assert len(str(caught.value).splitlines()) == 1


def test_calibration_of_numbers_with_a_known_distribution():
    generator = torch.Generator().manual_seed(0)
    std = torch.rand(20_000, generator=generator, dtype=torch.float64) + 0.1
    error = std[:, None] * torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    found = _compare(std, error)
    np.testing.assert_allclose(found["coverage"], found["levels"], atol=0.01)
    np.testing.assert_allclose(found["predicted"], found["true"], rtol=0.05)
    assert found["rank_correlation"] > 0.6


# ---- Windows and noise -----------------------------------------------------------------------------------------------


def test_rolled_windows_of_straight_motion():
    pos, vel = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    sample = particle_sample(pos, vel, torch.ones(3, 4, dtype=torch.float64), torch.tensor([[0, 1], [1, 0]]))
    sample.times = torch.tensor([[0.5, 1.0]], dtype=torch.float64)

    def straight(state):
        x = state.pos.unsqueeze(-2) + state.vel.unsqueeze(-2) * state.times[0, :, None]
        return {"trajectory": x, "trajectory_vel": state.vel.unsqueeze(-2).expand_as(x)}

    for trained in (True, False):
        x, v = roll_windows(straight, sample, 3, with_state, trained_velocities=trained)
        t = torch.arange(1, 7, dtype=torch.float64)[:, None] / 2
        torch.testing.assert_close(x, pos.unsqueeze(-2) + vel.unsqueeze(-2) * t)
        torch.testing.assert_close(v, vel.unsqueeze(-2).expand_as(v))


def test_velocities_from_positions_follow_a_parabola():
    x0, v0, a = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    times = torch.tensor([[0.1, 0.3, 0.6]], dtype=torch.float64)
    sample = particle_sample(x0, v0, torch.ones(2, 3, dtype=torch.float64), torch.tensor([[0, 1], [1, 0]]))
    sample.times, t = times, times[0][:, None]

    def falling(state):
        x, v, g = (b.unsqueeze(-2) for b in (state.pos, state.vel, a))
        return {"trajectory": x + v * t + g * t**2 / 2}

    _, v = roll_windows(falling, sample, 1, with_state, trained_velocities=False)
    expected = (v0.unsqueeze(-2) + a.unsqueeze(-2) * t)[..., 1:, :]
    torch.testing.assert_close(v[..., 1:, :], expected)


def test_a_run_says_whether_velocities_were_trained(trained_run, ensemble, tmp_path, capsys):
    run = shutil.copytree(trained_run, tmp_path / "run")
    result = evaluate(run, windows=2)
    assert "not supervised" in result["rolled"]["velocities"]
    assert evaluate(ensemble, windows=2)["rolled"]["velocities"] == "trained"
    assert result["rolled"]["mse"][:5] == pytest.approx(result["horizon_mse"], rel=1e-3)
    assert result["rolled"]["drift"]["energy_true"][-1] < 0.05
    assert main(["evaluate", str(run), "--windows", "2"]) == 0
    assert "2 windows" in capsys.readouterr().out


def test_bad_windows(trained_run, liquid_run, tmp_path, content, tiny_train):
    run, liquid = shutil.copytree(trained_run, tmp_path / "a"), shutil.copytree(liquid_run, tmp_path / "b")
    with pytest.raises(InputError, match="windows, in --windows, expected 2 or more, got 0"):
        evaluate(run, windows=0)
    with pytest.raises(InputError, match="frame outside the trajectory"):
        evaluate(liquid, windows=50)
    content["system"], content["model"] = "egnn", {"node_dim": 1, "edge_dim": 2, "hidden_dim": 8, "num_layers": 1}
    with pytest.raises(InputError, match="expected a model that predicts a trajectory"):
        evaluate(tiny_train(epochs=1, eval_every=1), windows=2)


def test_noise_moves_the_input_and_not_the_target(liquid_file):
    source = Periodic(str(liquid_file), 1.6, frames=(2, 4), train=2, val=1, test=1)
    sample = source.part("train")[0]
    moved = noisy(sample, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(moved.trajectory, sample.trajectory)
    assert (moved.vel - sample.vel).std() == pytest.approx(0.1 * float(sample.vel.square().mean().sqrt()), rel=0.3)
    torch.testing.assert_close(moved.x[:, 0], moved.vel.norm(dim=-1))
    j, i = moved.edge_index
    torch.testing.assert_close(moved.edge_attr[:, 0], (moved.pos[j] + moved.edge_shift - moved.pos[i]).square().sum(-1))
    assert torch.equal(moved.centre, moved.pos)


def test_a_skeleton_in_another_state():
    torch.manual_seed(0)
    pos, vel, other, otherwise = torch.randn(4, 2, 4, 3)
    bones, down = torch.tensor([[1, 0], [2, 1], [3, 2]]), torch.tensor([0.0, -1.0, 0.0])
    first = skeleton_sample(pos, vel, bones, down, 7.0)
    expected = skeleton_sample(other, otherwise, bones, down, 7.0)
    found = with_state(first, other, otherwise)
    for name in ("pos", "vel", "x", "edge_attr"):
        torch.testing.assert_close(found[name], expected[name])
    assert torch.equal(first.pos, pos)
    first.trajectory = torch.stack([pos, 2 * pos], dim=-2)
    drift = _bonds(first, 1.5 * first.trajectory)
    assert drift["bonds"] == pytest.approx([0.5, 2.0], rel=1e-5)
    assert drift["bonds_true"] == pytest.approx([0.0, 1.0], abs=1e-5)


def test_noise_changes_the_training_and_resumes_bit_for_bit(tiny_train):
    plain, noise = tiny_train("plain"), tiny_train("noise", noise=0.1)
    tiny_train("parts", noise=0.1, epochs=2)
    parts = tiny_train("parts", noise=0.1, resume=True)
    model = [(folder / "model.safetensors").read_bytes() for folder in (plain, noise, parts)]
    assert model[0] != model[1]
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (noise, parts)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with pytest.raises(InputError, match=r"train.noise"):
        tiny_train("bad", noise=-1.0)


# ---- Leaderboard -----------------------------------------------------------------------------------------------------


def test_a_leaderboard_trains_once_and_goes_on(tiny_data, tmp_path, monkeypatch, capsys):
    from equidyn.train import leaderboard

    monkeypatch.setattr(leaderboard, "shipped_recipes", lambda name: ["nbody/egno", "nbody/egnn", "mocap/egnn"])
    small = [f"--data.path={tiny_data}", "--data.start=0", "--data.frames=[2,4,6,8,10]", "--data.train=16"]
    small += ["--data.val=6", "--data.test=8", "--model.hidden_dim=8", "--model.num_layers=1"]
    small += ["--train.compile=false", "--train.batch_size=8", "--train.threads=1", "--train.accelerator=cpu"]
    arguments = ["leaderboard", "nbody", "--epochs", "2", "--runs", str(tmp_path), *small]
    assert main(arguments) == 1  # recordings have no frame `start`
    printed = capsys.readouterr()
    assert "mocap/egnn: not trained" in printed.err
    place = tmp_path / "nbody-2"
    page = (place / "leaderboard.html").read_text()
    for words in ("nbody-egno", "nbody-egnn", "EGNO (paper)", "ballistic", "Not trained", "<circle"):
        assert words in page
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file() and p.suffix != ".html"}
    assert main(arguments) == 1
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file() and p.suffix != ".html"} == before
    shutil.rmtree(place / "nbody-egnn" / "checkpoints")  # one run is cut off, another not evaluated
    (place / "nbody-egnn" / "model.safetensors").unlink()
    (place / "nbody-egno" / "evaluation.json").unlink()
    weights = place / "nbody-egno" / "model.safetensors"
    assert main(arguments) == 1
    assert weights.stat().st_mtime_ns == before[weights]
    assert (place / "nbody-egno" / "evaluation.json").is_file()
    assert (place / "nbody-egnn" / "model.safetensors").is_file()
    assert (place / "leaderboard.html").read_text().count('<th scope="row">ballistic') == 1


def test_a_run_that_never_had_a_finite_error_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no model was kept.*a finite validation error"):
        _evaluated(tmp_path)


def test_bad_leaderboards(tmp_path):
    for given, words in (
        ({"dataset": "nbodi"}, "did you mean 'nbody'|'nbody'"),
        ({"dataset": "nbody", "epochs": 0}, "budget, in --epochs"),
        ({"dataset": "mocap", "epochs": 1, "overrides": ["--data.path=none.npz"]}, "no recipe could be trained"),
    ):
        with pytest.raises(InputError, match=words):
            run_leaderboard(**({"folder": tmp_path, "epochs": 1} | copy.deepcopy(given)))
