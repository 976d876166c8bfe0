"""Bad input: one line on stderr, exit code 2, no traceback, and the folder as it was."""

import json
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from equidyn.cli import main
from equidyn.data.trajectories import read_trajectories, write_trajectories


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_data, content, trained_run):
    """A working folder with a recipe, data, initial states and a trained run."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_data, "data.npz")
    content["data"]["path"] = "data.npz"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(trained_run, "runs/trained")
    return tmp_path


@pytest.fixture
def refused(place, capfd):
    """Run a command that must fail with one line, and give that line."""

    def run(*arguments):
        before = listing(place)
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("equidyn: error: ")
        assert listing(place) == before
        return lines[0]

    return run


def listing(folder):
    return {path: path.stat().st_size for path in sorted(folder.rglob("*")) if not path.is_dir()} | {
        path: None for path in folder.rglob("*") if path.is_dir()
    }


def change_data(**changes):
    """Write data.npz anew with some arrays changed, without any check."""
    with np.load("data.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez("data.npz", **(arrays | {name: change(arrays[name]) for name, change in changes.items()}))


def with_bad(value):
    def change(array):
        array = array.copy()
        array[2, 5, 1, 0] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": with_bad(np.nan)}, "positions hold NaN or infinity, in data.npz, .*trajectory 2, frame 5"),
        ({"positions": with_bad(np.inf)}, "positions hold NaN or infinity"),
        ({"velocities": with_bad(-np.inf)}, "velocities hold NaN or infinity"),
        ({"positions": lambda a: a[..., :2]}, r"wrong shape, in data.npz, expected \[S, F, N, 3\]"),
        (
            {"positions": lambda a: a.astype(np.int32)},
            "wrong dtype, in data.npz, expected float32 or float64, got int32",
        ),
        ({"positions": lambda a: a.astype("U8")}, "wrong dtype"),
        ({"positions": lambda a: a[:, :, :0], "velocities": lambda a: a[:, :, :0]}, "zero particles"),
        ({"velocities": lambda a: a[:-1]}, "velocities do not match the positions"),
        ({"charges": lambda a: a[:, :2]}, "charges do not match the positions"),
        ({"times": lambda a: a[:-1]}, "times do not match the positions"),
        ({"times": lambda a: a[::-1]}, "times do not increase"),
        ({"positions": lambda a: np.array([{}], dtype=object)}, "pickled array"),
    ],
)
def test_broken_data(changes, words, refused):
    change_data(**changes)
    for command in (
        ("train", "recipe.yaml"),
        ("predict", "runs/trained", "data.npz", "out.npz"),
        ("evaluate", "runs/trained", "--data", "data.npz"),
    ):
        line = refused(*command)
        assert "data.npz" in line
        assert re.search(words, line), line


def test_missing_and_cut_data(refused, place):
    whole = (place / "data.npz").read_bytes()
    (place / "data.npz").write_bytes(whole[: len(whole) // 2])
    assert "a cut .npz" in refused("predict", "runs/trained", "data.npz", "out.npz")
    assert "truncated" in refused("train", "recipe.yaml")
    (place / "data.npz").write_bytes(pickle.dumps({"a": 1}))
    assert "data.npz" in refused("train", "recipe.yaml")
    (place / "data.npz").unlink()
    assert "no such file, in data.npz" in refused("train", "recipe.yaml")
    assert "no such file, in data.npz" in refused("predict", "runs/trained", "data.npz", "out.npz")
    assert "no such file" in refused("evaluate", "runs/trained", "--data", "none.npz")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--data.train_frames=[2, 11]", "frame outside the trajectory, in data.npz, expected 0 to 10, got 11"),
        ("--data.frames=[2, 11]", "frame outside the trajectory, in data.npz, expected 0 to 10, got 11"),
        ("--data.start=30", "in data.npz, expected one or more after start = 30, rising"),
        ("--data.start=-1", "expected 0 to 10, got -1"),
        ("--data.train=50", "expected at most 30 samples in all, got 50"),
        ("--data.val=0", "number of val samples, in data.npz"),
        ("--train.batch_size=17", "batch_size, in tiny, expected 1 to 16, got 17"),
        ("--model.hiddn_dim=3", "unknown recipe key 'model.hiddn_dim', in recipe.yaml, expected 'model.hidden_dim'"),
        ("--modl.hidden_dim=3", "unknown recipe key 'modl', in recipe.yaml, expected 'model'"),
        ("--model.hidden_dim=wide", "wide"),
        ("--system=egnoo", "unknown system 'egnoo', in recipe.yaml, expected 'egno'"),
        ("--model.node_dim=2", "node features"),
        ("--train.accelerator=abacus", "abacus"),
        ("--train.devices=17", "batch_size, in tiny, expected 1 to 0, got 4"),
        ("--model.edge_dim=3", "the model does not fit the data"),
        ("--model.times=[0.4, 0.8]", "time outside the window, in field times, expected between 0 and 0.8"),
        ("--data.test=-2", "number of test samples, in data.npz, expected at least 1, got -2"),
    ],
)
def test_wrong_recipes(override, words, refused):
    assert words in refused("train", "recipe.yaml", override)


def test_missing_recipes(refused, place):
    line = refused("train", "nowhere/none")
    assert "recipe" in line
    assert "nowhere/none" in line
    assert "unknown recipe 'nbody/egnoo'" in refused("train", "nbody/egnoo")
    (place / "recipe.yaml").write_text("a: [")
    assert "not a YAML file, in recipe.yaml" in refused("train", "recipe.yaml")


def test_folders_that_cannot_be_written(refused, place):
    assert "cannot write" in refused("train", "recipe.yaml", "--runs", "data.npz/runs")
    assert "data.npz/out.npz" in refused("predict", "runs/trained", "data.npz", "data.npz/out.npz")
    assert "none/out.npz" in refused("simulate", "charged", "none/out.npz", "--num", 1)
    assert "a folder" in refused("simulate", "charged", "runs", "--num", 1)
    assert main(["evaluate", "runs/trained"]) == 0
    assert "cannot write" in refused("report", "runs/trained", "--out", "data.npz/report.html")


def test_runs_that_exist_or_do_not(refused):
    assert "the folder holds a run, in runs/trained" in refused("train", "recipe.yaml", "--name", "trained")
    assert "nothing to resume, in runs/tiny" in refused("train", "recipe.yaml", "--resume")
    assert "of another run" in refused("train", "recipe.yaml", "--resume", "--name", "trained")
    for verb in (["evaluate"], ["report"]):
        assert "not a run folder, in runs/none" in refused(*verb, "runs/none")
        assert "got a file" in refused(*verb, "data.npz")
    assert "not a run folder" in refused("predict", "runs/none", "data.npz", "out.npz")


def test_pickles_and_broken_checkpoints(refused, place, content):
    run = place / "runs" / "trained"
    canary = place / "canary"

    class Trap:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    whole = (run / "model.safetensors").read_bytes()
    for write in (
        lambda: (run / "model.safetensors").write_bytes(pickle.dumps(Trap())),
        lambda: torch.save({"weights": Trap()}, run / "model.safetensors"),
        lambda: (run / "model.safetensors").write_bytes(whole[:-40]),
    ):
        write()
        line = refused("predict", "runs/trained", "data.npz", "out.npz")
        assert "corrupt weights, in runs/trained/model.safetensors, expected a safetensors file" in line
    (run / "model.safetensors").write_bytes(whole)

    recipe = yaml.safe_load((run / "config.yaml").read_text())
    recipe["train"]["epochs"] += 1
    (place / "longer.yaml").write_text(yaml.safe_dump(recipe))
    for write in (
        lambda path: path.write_bytes(pickle.dumps(Trap())),
        lambda path: torch.save({"state_dict": Trap()}, path),
        lambda path: path.write_bytes(path.read_bytes()[:700]),
    ):
        write(run / "checkpoints" / "last.ckpt")
        line = refused("train", "longer.yaml", "--resume")
        assert "corrupt checkpoint, in runs/trained/checkpoints/last.ckpt, expected a training state" in line
    assert not canary.exists()


def test_a_checkpoint_of_another_model(refused, place):
    path = place / "runs" / "trained" / "model.json"
    description = json.loads(path.read_text())
    description["config"]["model"]["hidden_dim"] = 4
    path.write_text(json.dumps(description))
    line = refused("predict", "runs/trained", "data.npz", "out.npz")
    assert "checkpoint of another model, in runs/trained/model.safetensors, expected " in line
    path.write_text(path.read_text()[:100])
    assert "corrupt description, in runs/trained/model.json" in refused("evaluate", "runs/trained")


def test_wrong_commands(refused):
    assert "'charged'" in refused("simulate", "chargd", "out.npz")
    assert "num is too small, expected at least 1, got 0" in refused("simulate", "charged", "out.npz", "--num", 0)
    assert "expected NAME=VALUE, got box" in refused("simulate", "charged", "out.npz", "--set", "box")
    assert "a number or none, got big" in refused("simulate", "charged", "out.npz", "--set", "box=big")
    assert "bx" in refused("simulate", "charged", "out.npz", "--set", "bx=3")
    assert "unknown system 'egn', expected 'egn" in refused("cite", "egn")
    assert "no such file, in none.npz" in refused("verify", "none.npz")
    assert "0 to 10, got 99" in refused("predict", "runs/trained", "data.npz", "out.npz", "--frame", 99)
    for times in (["2.5"], ["-0.5"], ["nan"], ["0.5", "0.5"]):
        line = refused("predict", "runs/trained", "data.npz", "out.npz", "--times", *times)
        assert "time" in line


def few_particles(count):
    made = read_trajectories("data.npz")
    names = ("positions", "velocities", "charges")
    arrays = {
        name: getattr(made, name)[..., :count, :] if name != "charges" else made.charges[:, :count] for name in names
    }
    write_trajectories("data.npz", replace(made, **arrays))


def test_one_particle_works(place):
    few_particles(1)
    assert main(["train", "recipe.yaml"]) == 0
    result = json.loads((place / "runs/tiny/evaluation.json").read_text(), parse_constant=pytest.fail)
    assert np.isfinite(result["f_mse"])
    assert main(["predict", "runs/tiny", "data.npz", "out.npz"]) == 0
    assert read_trajectories("out.npz").positions.shape == (30, 5, 1, 3)


@pytest.mark.parametrize("system", ["egno", "egnn"])
def test_two_particles_at_the_same_place(system, place, content):
    def meet(array):
        array = array.copy()
        array[:, 0, 1] = array[:, 0, 0]
        return array

    change_data(positions=meet)
    if system == "egnn":
        content |= {"system": "egnn", "model": {"node_dim": 1, "edge_dim": 2, "hidden_dim": 8, "num_layers": 2}}
        content["model"]["layer"] = {"normalize": "plus_one"}
        (place / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "recipe.yaml"]) == 0
    result = json.loads((place / "runs/tiny/evaluation.json").read_text(), parse_constant=pytest.fail)
    assert np.isfinite(result["f_mse"])
    assert np.isfinite(json.loads((place / "runs/tiny/model.json").read_text())["info"]["val_f_mse"])
    if system == "egno":
        assert main(["predict", "runs/tiny", "data.npz", "out.npz"]) == 0
        assert np.isfinite(read_trajectories("out.npz").positions).all()
