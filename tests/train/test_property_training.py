"""Properties and classes of graphs, from files to a report and a table of predictions."""

import copy
import csv
import json

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from safetensors.torch import load_file
from torch_geometric.io import write_off

import qm9_files
from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.data.shapes import solids
from equidyn.report import write_report
from equidyn.train import evaluate, load_model, predict_properties, read_recipe, train, write_ensemble
from equidyn.train.module import _factor

MOLECULES = qm9_files.molecules(60)
OPTIONS = {"pool": "sum", "harmonics": "component", "distance": "squared"}


@pytest.fixture(scope="module")
def qm9(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qm9")
    qm9_files.write_text(folder, MOLECULES)
    return folder


def recipe(qm9, **sections):
    content = {
        "name": "tiny",
        "system": "segnn",
        "seed": 1,
        "model": {"hidden_dim": 8, "num_layers": 1, "velocity": False, "readout": "graph", "options": OPTIONS},
        "data": {"dataset": "properties", "path": str(qm9), "target": "alpha", "split": "cormorant", "cutoff": 2.0},
        "task": {"name": "property"},
        "published": {"a paper": {"alpha": 0.1, "gap": 7.0}, "another": {"gap": 5.0}},
        "train": {"epochs": 12, "batch_size": 5, "lr": 0.01, "eval_every": 1, "threads": 1, "accelerator": "cpu"},
    }
    for name, values in sections.items():
        content[name] = content[name] | values if isinstance(values, dict) else values
    return content


def run(folder, content, **more):
    return train(read_recipe(content), folder, progress=False, **more)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(qm9, tmp_path_factory):
    """Only to be read."""
    return run(tmp_path_factory.mktemp("runs") / "segnn", recipe(qm9))


def test_from_files_to_a_report(finished, qm9, tmp_path, capsys):
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert stored["model"]["node_dim"] == 5
    assert stored["task"]["fit"]["unit"] == "a0³"
    result = evaluate(finished)
    assert (result["target"], result["unit"], result["samples"]) == ("alpha", "a0³", 6)
    assert result["mae"] < 0.7 * result["baselines"]["mean of the training samples"]["mae"]
    assert result["published"] == {"a paper": {"mae": 0.1}}
    assert max(result["symmetry"].values()) < 1e-4
    with np.load(finished / "predictions.npz") as kept:
        assert np.abs(kept["true"] - kept["predicted"]).mean() == pytest.approx(result["mae"])
    page = write_report([finished], tmp_path / "report.html").read_text()
    for words in ("alpha (a0³)", "Predicted against true", "mean of the training samples", "Measured symmetry"):
        assert words in page
    assert main(["evaluate", str(finished)]) == 0
    assert "alpha a0³" in capsys.readouterr().out


def test_predictions_for_other_molecules(finished, tmp_path, capsys):
    numbers, pos, _ = MOLECULES[2]
    ase.io.write(tmp_path / "two.xyz", [Atoms(numbers, pos), Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]])])
    out = tmp_path / "out.csv"
    assert main(["predict", str(finished), str(tmp_path / "two.xyz"), str(out)]) == 0
    with out.open() as file:
        first, second = csv.DictReader(file)
    assert second["formula"] == "H2O"
    right = qm9_files.polarisability(numbers, pos)
    assert float(first["alpha"]) == pytest.approx(right, abs=8.0)
    trained = load_model(finished)
    assert predict_properties(trained, tmp_path / "two.xyz")[0]["alpha"] == pytest.approx(float(first["alpha"]))
    labelled = [Atoms(numbers, pos), Atoms(numbers, pos)]
    for k, atoms in enumerate(labelled):
        atoms.info["alpha"] = right + k
    ase.io.write(tmp_path / "other.xyz", labelled)
    assert main(["evaluate", str(finished), "--data", str(tmp_path / "other.xyz")]) == 0
    assert "test, 2 samples" in capsys.readouterr().out
    assert main(["predict", str(finished), str(tmp_path / "none.xyz"), str(out)]) == 2
    assert "no such file, in" in capsys.readouterr().err


def test_a_resumed_run_is_the_same_run(qm9, tmp_path):
    energies = recipe(qm9, data={"target": "U0"}, task={"reference": "atoms"}, train={"epochs": 2})
    whole = run(tmp_path / "whole", energies)
    fit = load_model(whole).config["task"]["fit"]
    assert fit["atoms"].keys() == {"H", "C", "N", "O", "F"}
    assert fit["atoms"]["C"] == pytest.approx(27.2 * -38, rel=0.01)
    half = copy.deepcopy(energies)
    half["train"]["epochs"] = 1
    run(tmp_path / "cut", half)
    run(tmp_path / "cut", energies, resume=True)
    assert rows(tmp_path / "cut") == rows(whole)
    kept, same = (load_file(folder / "model.safetensors") for folder in (tmp_path / "cut", whole))
    assert all(torch.equal(kept[name], same[name]) for name in same)
    with pytest.raises(InputError, match=r"task.penalty of another run, .* expected mae, got mse"):
        run(tmp_path / "cut", recipe(qm9, data={"target": "U0"}, task={"penalty": "mse"}), resume=True)


def test_bonds_ensembles_and_a_run_that_starts_from_another(qm9, tmp_path):
    bonds = recipe(qm9, data={"edges": "bonds"}, train={"epochs": 2, "batch_size": 15}) | {
        "system": "egnn",
        "model": {"hidden_dim": 8, "num_layers": 1, "readout": "graph"},
    }
    first, second = (run(tmp_path / f"seed{seed}", bonds | {"seed": seed}) for seed in (1, 2))
    assert load_model(first).config["model"]["edge_dim"] == 4
    whole = evaluate(write_ensemble(tmp_path / "both", [first, second]))
    assert whole["mae"] <= max(evaluate(folder)["mae"] for folder in (first, second))
    tuned = copy.deepcopy(bonds)
    tuned["train"] |= {"init_from": str(first), "epochs": 1}
    tuned["data"] |= {"train": 20}
    assert load_model(run(tmp_path / "tuned", tuned)).config["task"] == load_model(first).config["task"]


def shapes(**sections):
    content = {
        "name": "shapes",
        "system": "implicit_steerable_kernels",
        "seed": 0,
        "model": {"channels": 2, "num_blocks": 1, "options": {"layers": 2, "channels": 2, "scale": 0.5}},
        "data": {"dataset": "shapes", "train": 20, "val": 10, "test": 10, "points": 16, "neighbours": 4},
        "task": {"name": "classification"},
        "train": {"epochs": 2, "batch_size": 10, "eval_every": 1, "threads": 1, "accelerator": "cpu"},
    }
    for name, values in sections.items():
        content[name] = content[name] | values
    return content


def test_classes_from_shapes_to_a_report(tmp_path):
    folder = run(tmp_path / "shapes", shapes(train={"precision": "64"}))
    assert load_model(folder).config["model"]["out_dim"] == 5
    assert load_model(folder).config["task"]["classes"][1] == "box"
    result = evaluate(folder)
    assert result["baselines"]["most frequent class"]["accuracy"] == pytest.approx(0.2)
    page = write_report([folder], tmp_path / "report.html").read_text()
    for words in ("What is taken for what", "octahedron", "cross-entropy", "most frequent class"):
        assert words in page
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    for k, mesh in enumerate(solids(2)):
        write_off(mesh, str(meshes / f"{k}.off"))
    table = predict_properties(load_model(folder), meshes)
    assert [row["number"] for row in table] == [0, 1]
    assert sum(table[0][f"p({name})"] for name in load_model(folder).config["task"]["classes"]) == pytest.approx(1)
    (meshes / "2.off").write_text("OFF\n1 2")
    with pytest.raises(InputError, match=r"unreadable mesh, in .*2.off"):
        predict_properties(load_model(folder), meshes)


def test_what_does_not_fit_is_refused_before_anything_is_written(qm9, tiny_data, tmp_path, content):
    heavy = {"elements": ["H", "C"]}
    trajectory = {"dataset": "nbody", "path": str(tiny_data), "train": 16, "val": 6, "test": 8, "start": 0}
    trajectory |= {"frames": [2, 4]}
    for given, words in (
        (recipe(qm9, task={"name": "trajectory"}, model={}) | {"task": {}}, "the task does not fit the data"),
        (recipe(qm9) | {"task": {"name": "classification"}}, "expected task: {name: property}"),
        (
            recipe(qm9, model={"node_dim": 1}) | {"data": trajectory},
            "the task does not fit the data, expected dataset: properties or shapes",
        ),
        (recipe(qm9, model={"readout": "node"}), "the model gives no number per graph"),
        (recipe(qm9, model={"out_dim": 2}), r"shape of the prediction, in model.out_dim, expected \[1\], got \[1, 2\]"),
        (recipe(qm9, data=heavy), "an element of no feature"),
        (recipe(qm9, data={"target": "mu"}), "nothing to learn, in property mu"),
        (recipe(qm9, train={"batch_size": 100}), "batch_size, in tiny, expected 1 to 45"),
        (recipe(qm9, train={"drop_at": [0]}), "train.drop_at, expected epochs above 0"),
        (shapes(model={"out_dim": 3}), r"shape of the prediction, in model.out_dim, expected \[1, 5\], got \[1, 3\]"),
        (shapes(data={"val": 0}), "number of val solids, in data.val, expected at least 1, got 0"),
        (shapes(task={"name": "property"}), "expected task: {name: classification}"),
        (shapes(data={"neighbours": 16}), "neighbours of a point"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            run(tmp_path / "run", given)
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_verbs_refuse_what_they_cannot(finished, trained_run, tmp_path, capsys):
    assert main(["evaluate", str(finished), "--windows", "2"]) == 2
    assert "windows and curvature" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"predictions per graph, in .*, expected a run of the task property"):
        predict_properties(load_model(trained_run), tmp_path / "a.xyz")
    evaluate(finished)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.yaml", "metrics.csv", "evaluation.json"):
        (broken / name).write_bytes((finished / name).read_bytes())
    np.savez(broken / "predictions.npz", true=np.zeros(3), predicted=np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"wrong shape of 'predicted', in .*, expected \[3\], got \[3, 2\]"):
        write_report([broken], tmp_path / "report.html")
    changed = json.loads((finished / "evaluation.json").read_text()) | {"task": "propery"}
    (broken / "evaluation.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="unknown task"):
        write_report([broken], tmp_path / "report.html")


def test_the_learning_rate_drops(qm9):
    options = read_recipe(recipe(qm9, train={"drop_at": [2, 3]})).train
    assert [_factor(options, 10, step) for step in (0, 19, 20, 29, 30)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
