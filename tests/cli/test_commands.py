"""Every verb once, end to end, on tiny data."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from equidyn import __version__
from equidyn.cli import main
from equidyn.data.trajectories import read_trajectories
from equidyn.models import SYSTEMS
from equidyn.train import load_model


def test_from_simulation_to_report(tmp_path, monkeypatch, content, capfd):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "mine"

    size = ("--num", "24", "--bodies", "3", "--steps", "1101", "--seed", "5")
    assert main(["simulate", "charged", "data.npz", *size, "--set", "box=none"]) == 0
    made = read_trajectories("data.npz")
    assert made.positions.shape == (24, 11, 3, 3)
    assert made.meta["seed"] == 5
    assert made.meta["constants"]["box"] is None
    assert "24 trajectories, 11 frames, 3 bodies" in capfd.readouterr().out

    content["data"] |= {"path": "data.npz", "train": 10, "test": 8}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert (
        main(["train", "recipe.yaml", "--name", "mine", "--model.hidden_dim", "4", "--train.lr=2e-3", "--seed", "3"])
        == 0
    )
    assert f"run folder: {run.relative_to(tmp_path)}" in capfd.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["name"], config["seed"], config["model"]["hidden_dim"], config["train"]["lr"]) == (
        "mine",
        3,
        4,
        2e-3,
    )
    with (run / "metrics.csv").open() as file:
        assert [(row["epoch"], row["step"]) for row in csv.DictReader(file)] == [("2", "4"), ("4", "8")]
    assert load_model(run).model.embedding.out_features == 4

    before = (run / "evaluation.json").read_text()
    assert main(["evaluate", "runs/mine"]) == 0
    result = json.loads((run / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert result == json.loads(before)
    assert result["samples"] == 8
    assert result["f_mse"] == result["horizon_mse"][-1]
    assert result["baselines"].keys() == {"constant", "ballistic", "translation", "linear"}
    assert max(result["symmetry"].values()) < 1e-4
    table = capfd.readouterr().out
    assert f"{result['f_mse']:.5f}" in table
    assert "ballistic" in table

    assert main(["predict", "runs/mine", "data.npz", "predicted.npz"]) == 0
    predicted = read_trajectories("predicted.npz")
    assert predicted.positions.shape == predicted.velocities.shape == (24, 5, 3, 3)
    assert predicted.times.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert predicted.meta["predicted_by"] == "mine"
    assert np.array_equal(predicted.charges, made.charges)
    # The test samples are the last eight: the prediction of the evaluation again.
    error = np.square(predicted.positions[16:, -1] - made.positions[16:, 10]).mean()
    assert error == pytest.approx(result["f_mse"], rel=1e-4)

    times = ("--times", "0.77", "0.05", "0.4")
    assert main(["predict", "runs/mine", "data.npz", "any.npz", "--frame", "0", *times]) == 0
    anywhere = read_trajectories("any.npz")
    assert anywhere.times.tolist() == [0.05, 0.4, 0.77]
    assert np.allclose(anywhere.positions[:, 1], predicted.positions[:, 1], atol=1e-5)
    assert main(["predict", "runs/mine", "data.npz", "later.npz", "--frame", "-1"]) == 0
    assert not np.allclose(read_trajectories("later.npz").positions, predicted.positions)

    assert main(["report", "runs/mine"]) == 0
    assert main(["report", "runs/mine", "runs/mine", "--out", "both.html"]) == 0
    for page in (run / "report.html", tmp_path / "both.html"):
        assert page.read_text().startswith("<!")
        assert "mine" in page.read_text()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_evaluate_on_other_data(trained_run, tiny_data, tmp_path, capfd):
    run = shutil.copytree(trained_run, tmp_path / "run")
    other = tmp_path / "other.npz"
    assert main(["simulate", "charged", str(other), "--num", "30", "--bodies", "4", "--steps", "1101"]) == 0
    assert main(["evaluate", str(run)]) == 0
    before = json.loads((run / "evaluation.json").read_text())["f_mse"]
    assert main(["evaluate", str(run), "--data", str(other)]) == 0
    assert json.loads((run / "evaluation.json").read_text())["f_mse"] != before


@pytest.mark.parametrize("system", ["springs", "gravity"])
def test_other_systems_go_the_whole_way(system, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", system, "data.npz", "--num", "16", "--bodies", "3", "--steps", "1101"]) == 0
    content["data"] |= {"path": "data.npz", "train": 8, "val": 4, "test": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "recipe.yaml"]) == 0
    assert main(["predict", "runs/tiny", "data.npz", "out.npz"]) == 0
    assert read_trajectories("out.npz").meta["kind"] == system
    json.loads((tmp_path / "runs/tiny/evaluation.json").read_text(), parse_constant=pytest.fail)


def test_list_and_cite(capfd):
    assert main(["list"]) == 0
    out = capfd.readouterr().out
    assert all(name in out for name in SYSTEMS)
    assert main(["cite", "egno", "egnn"]) == 0
    out = capfd.readouterr().out
    assert out.count("@inproceedings{") == 2
    assert "2401.11037" in out


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, time; begin = time.perf_counter()\n"
        "from equidyn.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(time.perf_counter() - begin, [m for m in ('torch', 'lightning', 'plotly', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, last = done.stdout.splitlines()
    seconds, _, modules = last.partition(" ")
    assert float(seconds) < 1.5
    assert modules == "[]"
    for verb in ("simulate", "train", "evaluate", "predict", "report", "leaderboard", "verify", "list", "cite"):
        assert any(line.split()[:1] == [verb] for line in text), verb


def test_both_ways_to_call_it():
    for command in (["-m", "equidyn.cli", "--version"], ["-c", "from equidyn.cli import main; main(['--version'])"]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
        assert done.stdout == f"equidyn {__version__}\n"
    done = subprocess.run([sys.executable, "-m", "equidyn.cli", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_quietly(monkeypatch, capfd):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("equidyn.interop.verify", interrupt)
    assert main(["verify", "any.npz"]) == 130
    assert capfd.readouterr().err == "equidyn: interrupted\n"


def test_a_state_to_state_model_predicts_its_one_time(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    content |= {"name": "step", "system": "egnn", "model": {"node_dim": 1, "edge_dim": 2, "hidden_dim": 8}}
    (tmp_path / "egnn.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "egnn.yaml"]) == 0
    states = content["data"]["path"]
    assert main(["predict", "runs/step", states, "out.npz", "--frame", "1"]) == 0
    before, predicted = read_trajectories(states), read_trajectories("out.npz")
    assert predicted.positions.shape[1] == 1
    moved = predicted.positions[:, 0] - before.positions[:, 1]
    np.testing.assert_allclose(predicted.velocities[:, 0], moved / predicted.times[0], atol=1e-5)
    assert main(["predict", "runs/step", states, "out.npz", "--times", "0.1"]) == 2
