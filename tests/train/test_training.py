"""Training: the same seed gives the same bytes, also through a kill; nan stops it; checkpoints are checked."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from equidyn.core.errors import InputError
from equidyn.data.trajectories import read_trajectories
from equidyn.tasks import TrajectoryTask
from equidyn.train import evaluate, load_model, read_recipe, train
from equidyn.train.fit import EpochSampler

EVERYTHING = {
    "epochs": 30,
    "eval_every": 1,
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "warmup": 2.5,
    "clip": 0.5,
    "ema": 0.9,
    "patience": 30,
}


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds")} for row in csv.DictReader(file)]


def last_state(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def same(a, b):
    """Whether two nests of plain values and tensors are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_the_seed_decides_every_bit(tiny_train):
    options = EVERYTHING | {"epochs": 3}
    first, again = tiny_train("first", **options), tiny_train("again", **options)
    other = tiny_train("other", sections={"seed": 2}, **options)
    assert weights(first) == weights(again)
    assert rows(first) == rows(again)
    assert weights(first) != weights(other)
    assert sorted(os.listdir(first)) == ["checkpoints", "config.yaml", "metrics.csv", "model.json", "model.safetensors"]


@pytest.mark.parametrize("optimizer", ["adamw", "soap"])
def test_a_killed_run_resumes_bit_for_bit(optimizer, content, tiny_train, tmp_path):
    options = EVERYTHING | {"optimizer": optimizer}
    whole = tiny_train("whole", **options)
    content["train"] |= options
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "equidyn.cli", "train", str(recipe), "--runs", str(tmp_path / "runs")]
    killed = tmp_path / "runs" / "tiny"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            if (killed / "metrics.csv").is_file() and len(rows(killed)) >= 5:
                break
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 5 <= len(rows(killed)) < 30
    assert 4 <= last_state(killed)["epoch"] + 1 < 30  # it does not start over
    with pytest.raises(InputError, match="the folder holds a run"):
        tiny_train("runs/tiny", **options)
    tiny_train("runs/tiny", resume=True, **options)
    assert rows(killed) == rows(whole)
    assert len(rows(whole)) == 30
    assert weights(killed) == weights(whole)
    (state, expected) = (last_state(folder) for folder in (killed, whole))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(state[part], expected[part]), part


def test_a_run_killed_before_its_first_checkpoint_starts_over(tiny_train):
    whole, cut = tiny_train("whole"), tiny_train("cut")
    shutil.rmtree(cut / "checkpoints")
    (cut / "metrics.csv").unlink()
    (cut / "model.safetensors").unlink()
    tiny_train("cut", resume=True)
    assert weights(cut) == weights(whole)


def test_resuming_with_more_epochs_continues(tiny_train):
    whole, longer = tiny_train("whole", epochs=6), tiny_train("longer", epochs=2)
    tiny_train("longer", resume=True, epochs=6)
    assert rows(longer) == rows(whole)
    assert same(last_state(longer)["state_dict"], last_state(whole)["state_dict"])


def test_early_stopping_stops_and_a_finished_run_stays_as_it_is(tiny_train, content):
    options = {"epochs": 50, "eval_every": 1, "patience": 2, "lr": 0.05}
    stopped = tiny_train("stopped", **options)
    errors = [float(row["val_f_mse"]) for row in rows(stopped)]
    best = int(np.argmin(errors))
    assert len(errors) == best + 3 < 50
    assert json.loads((stopped / "model.json").read_text())["info"]["epoch"] == best + 1
    assert load_model(stopped).info["val_f_mse"] == pytest.approx(min(errors))
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    tiny_train("stopped", resume=True, **options)
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before
    tiny_train("stopped", resume=True, **(options | {"patience": 4}))  # more patience: two more evaluations, or a best
    assert len(rows(stopped)) >= len(errors) + 2
    assert [float(row["val_f_mse"]) for row in rows(stopped)][: len(errors)] == errors


def test_a_resumed_run_counts_its_patience_on(tiny_train):
    options = {"eval_every": 1, "patience": 2, "lr": 0.05}
    whole = tiny_train("whole", epochs=50, **options)
    stopped_at = len(rows(whole))
    tiny_train("parts", epochs=stopped_at - 1, **options)
    assert rows(tiny_train("parts", resume=True, epochs=50, **options)) == rows(whole)


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run(epochs_before, tiny_train, monkeypatch, tmp_path):
    right, calls = TrajectoryTask.loss, []  # the first call is the rehearsal

    def broken(self, out, sample):
        calls.append(None)
        terms = right(self, out, sample)
        bad = float("nan") if epochs_before else float("inf")
        return {name: term * bad if len(calls) == 4 * epochs_before + 4 else term for name, term in terms.items()}

    monkeypatch.setattr(TrajectoryTask, "loss", broken)
    value = "nan" if epochs_before else "inf"
    with pytest.raises(InputError, match=f"not finite.*in epoch {epochs_before}, batch 2, got positions {value}"):
        tiny_train("broken", eval_every=1)
    assert (tmp_path / "broken" / "metrics.csv").exists() == bool(epochs_before)


def test_the_learning_rate_follows_the_schedule(tiny_train):
    run = tiny_train(schedule="cosine", warmup=1.0, epochs=4, eval_every=1)
    expected = [min(1, (s + 1) / 5) * 0.5 * (1 + np.cos(np.pi * s / 16)) * 1e-3 for s in (4, 8, 12, 16)]
    assert [float(row["lr"]) for row in rows(run)] == pytest.approx(expected, abs=1e-9)


def test_the_average_is_what_is_kept(tiny_train):
    run = tiny_train(ema=0.5, epochs=1, eval_every=1)
    state = last_state(run)["state_dict"]
    kept = safetensors.torch.load_file(run / "model.safetensors")
    name = "embedding.weight"
    assert torch.equal(kept[name], state[f"average.module.{name}"])
    assert not torch.equal(kept[name], state[f"model.{name}"])


@pytest.mark.parametrize(
    ("precision", "kept", "tolerance"), [("64", torch.float64, 1e-3), ("bf16", torch.float32, 0.1)]
)
def test_training_in_other_precisions(precision, kept, tolerance, tiny_train):
    single, other = tiny_train("single", clip=1.0), tiny_train("other", precision=precision, clip=1.0)
    assert {t.dtype for t in safetensors.torch.load_file(other / "model.safetensors").values()} == {kept}
    errors = [[float(row["val_f_mse"]) for row in rows(folder)] for folder in (single, other)]
    assert errors[1] == pytest.approx(errors[0], rel=tolerance)
    assert errors[1] != errors[0]


def test_it_learns(tiny_train):
    run = tiny_train(epochs=40, lr=3e-3, eval_every=5)
    errors = [float(row["train_loss"]) for row in rows(run)]
    assert errors[-1] < 0.4 * errors[0]


@pytest.mark.parametrize("rollout", [False, True])
def test_the_one_step_baselines_train_and_evaluate(rollout, content, tiny_train):
    content["system"] = "egnn"
    content["model"] = {"node_dim": 1, "edge_dim": 2, "hidden_dim": 8, "num_layers": 2}
    if rollout:
        content["task"]["rollout"] = True
        content["data"]["train_frames"] = [2]
    result = evaluate(tiny_train())
    assert np.isfinite(result["f_mse"])
    assert len(result["horizon_mse"]) == (5 if rollout else 1)


def test_the_order_of_samples_depends_on_seed_and_epoch_alone():
    sampler = EpochSampler(10, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert sorted(first) == list(range(10))
    assert list(sampler) == first != second
    assert list(EpochSampler(10, seed=4)) != first


@pytest.fixture
def finished(tiny_train):
    return tiny_train(epochs=2, eval_every=1)


class Canary:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickled_checkpoint_is_not_executed(finished, tiny_train, tmp_path):
    canary = tmp_path / "canary"
    last = finished / "checkpoints" / "last.ckpt"
    for write in (
        lambda: last.write_bytes(pickle.dumps({"state_dict": Canary(canary)})),
        lambda: torch.save({"state_dict": Canary(canary)}, last),
    ):
        write()
        with pytest.raises(InputError, match=r"corrupt checkpoint, in .*last.ckpt") as caught:
            tiny_train(resume=True, epochs=3, eval_every=1)
        assert len(str(caught.value).splitlines()) == 1
        assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # the trap itself works


def test_broken_checkpoints_are_refused(finished, tiny_train):
    last = finished / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    state = last_state(finished)
    other = {"state_dict": {name: value[..., :1] for name, value in state["state_dict"].items()}}
    before = weights(finished)
    for write, words in (
        (lambda: last.write_bytes(whole[: len(whole) // 2]), "corrupt checkpoint"),
        (lambda: last.write_bytes(b""), "corrupt checkpoint"),
        (lambda: torch.save({"a": 1}, last), "not a checkpoint of a run"),
        (lambda: torch.save(state | other, last), "checkpoint of another model"),
    ):
        write()
        with pytest.raises(InputError, match=words) as caught:
            tiny_train(resume=True, epochs=3, eval_every=1)
        assert len(str(caught.value).splitlines()) == 1
    assert weights(finished) == before


def test_a_run_is_not_resumed_with_another_recipe(finished, tiny_train, content):
    for sections, options, words in (
        ({}, {"lr": 1.0}, "train.lr of another run, in .*config.yaml, expected 0.001, got 1.0"),
        ({"seed": 7}, {}, "seed of another run"),
        ({"model": {"hidden_dim": 4}}, {}, "model.hidden_dim of another run"),
        ({}, {"ema": 0.5}, "train.ema of another run"),
    ):
        with pytest.raises(InputError, match=words):
            tiny_train(resume=True, sections=sections, **({"epochs": 3, "eval_every": 1} | options))
    with pytest.raises(InputError, match=r"nothing to resume, in .*none"):
        train(read_recipe(content), finished.parent / "none", resume=True)
    assert not (finished.parent / "none").exists()


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of a trained run that a test may break."""
    return shutil.copytree(trained_run, tmp_path / "copy")


def test_a_loaded_model_is_the_trained_one(run, tiny_data):
    trained = load_model(run)
    sample = read_trajectories(tiny_data)
    assert not trained.model.training
    assert trained.config["name"] == "trained"
    assert trained.info.keys() == {"epoch", "val_f_mse", "val_a_mse"}
    kept = safetensors.torch.load_file(run / "model.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in trained.model.state_dict().items())
    assert len(sample) == 30


def edit_description(run, change):
    path = run / "model.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda r: (r / "model.safetensors").write_bytes((r / "model.safetensors").read_bytes()[:500]),
            "corrupt weights",
        ),
        (lambda r: (r / "model.safetensors").write_bytes(b""), "corrupt weights"),
        (lambda r: torch.save({"embedding.weight": torch.ones(2)}, r / "model.safetensors"), "corrupt weights"),
        (lambda r: (r / "model.safetensors").unlink(), "no such file"),
        (lambda r: (r / "model.json").unlink(), "no such file"),
        (lambda r: (r / "model.json").write_text((r / "model.json").read_text()[:200]), "corrupt description"),
        (lambda r: (r / "model.json").write_bytes(b"\xff\xfe"), "corrupt description"),
        (lambda r: (r / "model.json").write_text("[]"), "corrupt description"),
        (lambda r: edit_description(r, lambda d: d.update(format_version=99)), "unknown format version"),
        (lambda r: edit_description(r, lambda d: d["config"].update(system="egnoo")), "'egno'"),
        (lambda r: edit_description(r, lambda d: d["config"]["model"].update(hidden_dim=4)), "another model"),
        (lambda r: edit_description(r, lambda d: d["config"]["model"].update(times=[1, 2, 3, 4, 5])), "another model"),
        (lambda r: edit_description(r, lambda d: d["config"]["model"].update(new=1)), "build no model"),
        (lambda r: edit_description(r, lambda d: d["config"]["model"].update(num_modes="x")), "build no model"),
        (lambda r: edit_description(r, lambda d: d["config"].update(model=3)), "corrupt description"),
        (
            lambda r: safetensors.torch.save_file({"a": torch.ones(1)}, r / "model.safetensors"),
            "checkpoint of another model",
        ),
    ],
)
def test_damaged_run_folders_are_refused(damage, words, run):
    damage(run)
    with pytest.raises(InputError, match=words) as caught:
        load_model(run)
    assert len(str(caught.value).splitlines()) == 1
    assert str(run) in str(caught.value)
