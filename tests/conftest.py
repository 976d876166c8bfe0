"""Fixtures that several rooms share: a tiny simulated data set, a recipe for it, a trained run."""

import copy

import pytest

from equidyn.data.trajectories import write_trajectories
from equidyn.simulate import simulate
from equidyn.train import read_recipe, train


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A trajectory file of 30 systems of 3 charges, 11 frames 0.1 apart."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    write_trajectories(path, simulate("charged", 30, bodies=3, steps=1101, seed=3))
    return path


@pytest.fixture
def content(tiny_data):
    """The content of a recipe that trains in a second; tests change it as they like."""
    recipe = {
        "name": "tiny",
        "system": "egno",
        "seed": 1,
        "model": {
            "node_dim": 1,
            "edge_dim": 2,
            "hidden_dim": 8,
            "num_layers": 2,
            "time_dim": 8,
            "times": [0.2, 0.4, 0.6, 0.8, 1.0],
        },
        "data": {
            "dataset": "nbody",
            "path": str(tiny_data),
            "start": 0,
            "frames": [2, 4, 6, 8, 10],
            "train": 16,
            "val": 6,
            "test": 8,
        },
        "task": {"name": "trajectory"},
        "train": {"epochs": 4, "batch_size": 4, "lr": 1e-3, "eval_every": 2, "threads": 1, "accelerator": "cpu"},
    }
    return copy.deepcopy(recipe)


@pytest.fixture
def tiny_train(content, tmp_path):
    """Train the tiny recipe with other training options (and other sections) in a folder of its own."""

    def run(folder="run", *, resume=False, sections=None, **options):
        recipe = copy.deepcopy(content)
        for section, values in (sections or {}).items():
            recipe[section] = recipe[section] | values if isinstance(values, dict) else values
        recipe["train"] |= options
        return train(read_recipe(recipe), tmp_path / folder, resume=resume, progress=False)

    return run


@pytest.fixture(scope="session")
def trained_run(tiny_data, tmp_path_factory):
    """A trained run folder; only to be read or copied."""
    recipe = {
        "name": "trained",
        "system": "egno",
        "seed": 1,
        "model": {"node_dim": 1, "edge_dim": 2, "hidden_dim": 8, "num_layers": 2, "time_dim": 8},
        "data": {
            "dataset": "nbody",
            "path": str(tiny_data),
            "start": 0,
            "frames": [2, 4, 6, 8, 10],
            "train": 16,
            "val": 6,
            "test": 8,
        },
        "task": {"name": "trajectory"},
        "train": {"epochs": 2, "batch_size": 4, "eval_every": 1, "threads": 1, "accelerator": "cpu"},
    }
    return train(read_recipe(recipe), tmp_path_factory.mktemp("runs") / "trained", progress=False)
