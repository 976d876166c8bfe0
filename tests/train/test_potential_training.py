"""Potentials from a file of structures to a report, by the same training as trajectories."""

import csv
import json

import ase.io
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator

from emt_structures import crystals, molecules
from equidyn import Calculator
from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.deploy import load_potential
from equidyn.report import write_report
from equidyn.train import evaluate, load_model, read_recipe, train
from equidyn.train.fit import BoundedBatches
from equidyn.train.module import parameter_groups


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structures")
    ase.io.write(folder / "set.xyz", molecules(24))
    ase.io.write(folder / "test.xyz", molecules(6, seed=9))
    ase.io.write(folder / "cu.xyz", crystals(10))
    return folder


def recipe(files, **sections):
    content = {
        "name": "tiny",
        "system": "mace",
        "seed": 1,
        "model": {"channels": 4, "hidden_l": 1, "sh_l": 1, "correlation": 2, "options": {"radial_hidden": [8]}},
        "data": {"dataset": "structures", "path": str(files / "set.xyz"), "val": 4, "cutoff": 3.0},
        "task": {"name": "potential"},
        "train": {"epochs": 4, "batch_size": 5, "lr": 0.01, "eval_every": 1, "threads": 1, "accelerator": "cpu"},
    }
    for name, values in sections.items():
        content[name] = content[name] | values if isinstance(values, dict) else values
    return content


NEQUIP = {
    "system": "nequip",
    "model": {"num_layers": 2, "l_max": 1, "num_features": 4, "options": {"radial": [8]}},
}


def run(folder, content, **more):
    return train(read_recipe(content), folder, progress=False, **more)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """Ten epochs of NequIP; only to be read."""
    content = recipe(files, train={"epochs": 10}, data={"test": {"near": str(files / "test.xyz")}}) | NEQUIP
    return run(tmp_path_factory.mktemp("runs") / "nequip", content)


def test_from_file_to_report(finished, files, tmp_path, capsys):
    errors = [float(row["val_f_mae"]) for row in rows(finished)]
    assert errors[-1] < 0.7 * errors[0]
    stored = yaml.safe_load((finished / "config.yaml").read_text())["model"]
    assert stored["species"] == ["H", "C", "O"]  # left to the data, kept in the run
    assert stored["cutoff"] == 3.0
    result = evaluate(finished)
    assert result["errors"].keys() == {"near"}
    assert result["errors"]["near"].keys() == {"all", "water", "methanol"}
    counts = [row["structures"] for row in result["errors"]["near"].values()]
    assert counts == [6, 3, 3]
    assert max(result["symmetry"].values()) < 1e-4
    with np.load(finished / "predictions.npz") as pairs:
        force = np.abs(np.diff(pairs["near/forces"], axis=1)).mean()
    assert result["errors"]["near"]["all"]["f_mae"] == pytest.approx(1000 * force)
    page = write_report([finished], tmp_path / "report.html").read_text()
    for words in ("methanol", "force MAE", "Predicted against true", "Measured symmetry"):
        assert words in page
    assert main(["evaluate", str(finished), "--data", str(files / "set.xyz")]) == 0
    out = capsys.readouterr().out
    assert "set.xyz" in out
    assert "F RMSE" in out
    assert json.loads((finished / "evaluation.json").read_text())["samples"] == 24


def test_the_model_needs_no_data_again(finished, files):
    model = load_model(finished).model
    assert [round(v, 6) for v in model.scale_shift.scale.tolist()] != [1.0, 1.0, 1.0]
    moved = yaml.safe_load((finished / "config.yaml").read_text())
    moved["data"]["path"] = "gone.xyz"
    assert read_recipe(moved).build_model() is not None


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_two_stages_resume_bit_for_bit(schedule, files, tmp_path):
    options = {
        "epochs": 6,
        "schedule": schedule,
        "plateau": {"factor": 0.5, "patience": 0, "threshold": 0.5},
        "stage_two": {"epoch": 4, "lr": 1e-3, "task": {"energy": 1000.0}},
        "amsgrad": True,
        "weight_decay": 1e-4,
        "decay_only": ["layers.*.product.*"],
        "ema": 0.9,
        "clip": 10.0,
    }
    whole = run(tmp_path / "whole", recipe(files, train=options))
    part = recipe(files, train=options | {"epochs": 5 if schedule == "plateau" else 6})
    if schedule == "cosine":
        with pytest.MonkeyPatch.context() as patch:  # break off in the middle
            stop_at(patch, 4)
            with pytest.raises(RuntimeError, match="power cut"):
                run(tmp_path / "cut", part)
    else:
        run(tmp_path / "cut", part)
    run(tmp_path / "cut", recipe(files, train=options), resume=True)
    assert rows(tmp_path / "cut") == rows(whole)
    assert weights(tmp_path / "cut") == weights(whole)
    assert all(torch.equal(a, b) for a, b in zip(last(whole).values(), last(tmp_path / "cut").values(), strict=True))
    rates = [float(row["lr"]) for row in rows(whole)]
    assert rates[4:] == pytest.approx([1e-3, 1e-3])
    assert rates[3] < 0.01
    assert json.loads((whole / "model.json").read_text())["info"]["epoch"] > 4


def stop_at(patch, epoch):
    from equidyn.train.module import TrainingModule

    right = TrainingModule.training_step

    def step(self, batch, index):
        if self.current_epoch == epoch:
            raise RuntimeError("power cut")
        return right(self, batch, index)

    patch.setattr(TrainingModule, "training_step", step)


def test_stress_is_learned_in_float64(files, tmp_path):
    content = recipe(
        files,
        data={"path": str(files / "cu.xyz"), "val": 2},
        task={"stress": 100.0, "penalty": "huber"},
        train={"precision": "64", "batch_size": 2},
    )
    folder = run(tmp_path / "run", content | NEQUIP)
    assert safetensors.torch.load_file(folder / "model.safetensors")["readout.weights.0"].dtype == torch.float64
    errors = [float(row["val_s_mae"]) for row in rows(folder)]
    assert all(np.isfinite(errors))
    assert evaluate(folder)["errors"]["validation"]["all"]["s_mae"] == pytest.approx(min(errors), rel=0.5)
    assert "stress MAE" in write_report([folder], tmp_path / "report.html").read_text()


def test_fine_tuning_starts_from_a_run_and_replays(finished, files, tmp_path):
    content = recipe(
        files,
        data={"path": str(files / "test.xyz"), "val": 2, "replay": str(files / "set.xyz"), "replay_weight": 0.5},
        train={"epochs": 1, "batch_size": 4, "init_from": str(finished), "lr": 1e-9, "lr_factors": {"layers.0.*": 0}},
    ) | {"system": "nequip", "model": {}}
    folder = run(tmp_path / "tuned", content)
    before, after = (safetensors.torch.load_file(f / "model.safetensors") for f in (finished, folder))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("layers.0."))
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert load_model(folder).config["model"] == load_model(finished).config["model"]
    with pytest.raises(InputError, match=r"weights of another system.*expected mace, got nequip"):
        run(tmp_path / "other", recipe(files, train={"init_from": str(finished)}))


def test_replay_with_a_head_of_its_own(files, tmp_path):
    other = [atoms.copy() for atoms in molecules(8, seed=5)]
    for atoms, old in zip(other, molecules(8, seed=5), strict=True):  # another level of theory: other zeros of energy
        shifted = old.get_potential_energy() - 7.0 * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=shifted, forces=old.get_forces())
    ase.io.write(tmp_path / "other.xyz", other)
    before = run(tmp_path / "before", recipe(files, train={"epochs": 2}))
    tuning = {"epochs": 1, "batch_size": 4, "init_from": str(before), "lr": 1e-9}
    data = {"path": str(tmp_path / "other.xyz"), "val": 2, "replay": str(files / "set.xyz"), "replay_head": True}
    content = recipe(files, data=data, train=tuning) | {"model": {}}
    after = run(tmp_path / "after", content)
    assert run(tmp_path / "after", content, resume=True) == after
    old, new = load_potential(before), load_potential(after, head=1)
    atoms = molecules(1, seed=3)
    first, second = (Calculator(one, nearer="ignore").evaluate_many(atoms)[0] for one in (old, new))
    np.testing.assert_allclose(second["energies"], first["energies"], atol=1e-4)
    np.testing.assert_allclose(second["forces"], first["forces"], atol=1e-4)
    reference = load_model(after).config["model"]["reference"]
    assert reference["atoms"][1] == load_model(before).config["model"]["reference"]["atoms"]
    shift = np.array(reference["atoms"][0]) - reference["atoms"][1]
    assert shift @ [2, 0, 1] == pytest.approx(-21.0, abs=1.0)  # of water
    assert load_model(after).info["nearest"].keys() >= {"H-H", "H-C", "H-O"}
    assert evaluate(after)["errors"]["validation"]["all"]["e_mae"] < 7000
    with pytest.raises(InputError, match=r"data.replay_head.*expected a model with one head"):
        run(tmp_path / "again", content | {"train": content["train"] | {"init_from": str(after)}})
    with pytest.raises(InputError, match=r"a head for replay, in data.replay_head, expected data.replay"):
        run(tmp_path / "none", recipe(files, data={"replay_head": True}))


def test_batches_bounded_by_atoms(files, tmp_path):
    sizes = [3, 6, 3, 6, 3]
    batches = list(BoundedBatches(range(5), [4, 10], [[1] * 5, sizes], drop_last=False))
    assert batches == [[0, 1], [2, 3], [4]]
    assert list(BoundedBatches(range(5), [2], [[1] * 5], drop_last=True)) == [[0, 1], [2, 3]]
    with pytest.raises(InputError, match=r"larger than a batch may be.*expected 6, got 5"):
        BoundedBatches(range(5), [5], [sizes], drop_last=False)
    folder = run(tmp_path / "run", recipe(files, train={"batch_atoms": 12, "batch_edges": 80, "epochs": 2}))
    assert int(rows(folder)[0]["step"]) > 5


def test_parameter_groups():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    options = lambda **kw: read_recipe(MINIMAL | {"train": kw}).train  # noqa: E731
    groups = parameter_groups(
        model, options(lr=1.0, weight_decay=0.1, decay_only=["*.weight"], lr_factors={"0.*": 0.5})
    )
    assert sorted((g["lr"], g["weight_decay"], len(g["params"])) for g in groups) == [
        (0.5, 0.0, 1),
        (0.5, 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 0.1, 1),
    ]
    with pytest.raises(InputError, match=r"no such parameter, in train.decay_only, .* got 2\.\*"):
        parameter_groups(model, options(decay_only=["2.*"]))


MINIMAL = {"system": "mace", "data": {"dataset": "structures", "path": "x.xyz"}, "task": {"name": "potential"}}


def test_wrong_combinations_are_refused(files, tmp_path):
    for content, words in (
        (recipe(files, model={"cutoff": 4.0}), "cutoff, in tiny, expected at most data.cutoff 3.0, got model.cutoff 4"),
        (recipe(files, task={"name": "trajectory"}), "the task does not fit the data"),
        (recipe(files, train={"schedule": "plateau", "warmup": 1.0}), "train.warmup, expected 0 with"),
        (
            recipe(files, model={"elements": [1, 8]}),
            r"element that the model does not know, in .*set.xyz, expected among H, O, got \['C'\]",
        ),
    ):
        with pytest.raises(InputError, match=words):
            run(tmp_path / "run", content)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="arguments left to the data"):
        read_recipe(recipe(files)).build_model()


def test_runs_of_two_tasks_do_not_share_a_page(finished, trained_run, tmp_path):
    evaluate(finished)
    evaluate(trained_run)
    with pytest.raises(InputError, match="different tasks on one page"):
        write_report([finished, trained_run], tmp_path / "report.html")


def test_data_verbs(files, tmp_path, capsys):
    assert main(["data", "check", str(files / "set.xyz")]) == 0
    assert "forces agree with energies" in capsys.readouterr().out
    assert main(["data", "pack", str(files / "set.xyz"), str(files / "set.xyz")]) == 2
    assert "the file exists" in capsys.readouterr().err


def test_forces_are_learned_without_the_compiler(files, tmp_path):
    plain = run(tmp_path / "plain", recipe(files, train={"epochs": 1}))
    with pytest.warns(UserWarning, match=r"torch.compile does not work here.*cannot differentiate twice"):
        asked = run(tmp_path / "asked", recipe(files, train={"epochs": 1, "compile": True}))
    before, after = (safetensors.torch.load_file(f / "model.safetensors") for f in (plain, asked))
    assert all(torch.equal(before[name], after[name]) for name in before)
