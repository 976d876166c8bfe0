"""The report: right numbers, nothing from outside, nothing injected, clear errors, and a picture that moves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from equidyn.core.errors import InputError
from equidyn.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# ---- Run folders that look like real ones ---------------------------------------------------------------------------


def charged_particles(samples: int, particles: int, times: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Charged particles in vacuum, by leapfrog with softened forces."""
    rng = np.random.default_rng(seed)
    charge = rng.choice([-1.0, 1.0], size=(samples, particles))
    pos = rng.normal(size=(samples, particles, 3))
    vel = rng.normal(size=(samples, particles, 3))
    vel *= 0.5 / np.linalg.norm(vel, axis=-1, keepdims=True)

    def force(pos: np.ndarray) -> np.ndarray:
        apart = pos[:, :, None] - pos[:, None]
        near = ((apart**2).sum(-1) + 0.1) ** 1.5
        return np.einsum("si,sj,sijk->sik", charge, charge, apart / near[..., None])

    initial, initial_vel, states, dt, steps = pos.copy(), vel.copy(), [], 0.01, 0
    for time in times:
        while steps < round(time / dt):
            vel = vel + dt * force(pos)
            pos = pos + dt * vel
            steps += 1
        states.append(pos.copy())
    true = np.stack(states, axis=1)
    return {"times": times, "initial": initial, "initial_vel": initial_vel, "true": true, "charge": charge}


def make_run(
    folder: Path, *, system: str = "egno", seed: int = 0, error: float = 0.06, name: str | None = None, points: int = 50
) -> Path:
    """A run folder as training and evaluation leave it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 3, points + 1)[1:]
    path = charged_particles(8, 5, times, seed=7)
    wander = np.cumsum(rng.normal(size=path["true"].shape), axis=1) / np.sqrt(points)
    predicted = path["true"] + error * (times / 3)[None, :, None, None] * wander
    np.savez(folder / "predictions.npz", **path, predicted=predicted)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(system, seed), sort_keys=False))
    (folder / "metrics.csv").write_text(metrics(rng, error))
    (folder / "evaluation.json").write_text(json.dumps(evaluation(name or system, system, error, rng)))
    return folder


def config(system: str, seed: int) -> dict[str, Any]:
    return {
        "name": system,
        "system": system,
        "seed": seed,
        "model": {"hidden_dim": 64, "layers": 4, "modes": 2},
        "data": {"file": "data/charged.npz", "train": 3000, "validation": 2000, "test": 2000},
        "task": {"target": "trajectory", "points": 5},
        "train": {"epochs": 400, "batch_size": 100, "lr": 1e-3, "ema": 0.999},
    }


def metrics(rng: np.random.Generator, error: float) -> str:
    lines = ["epoch,step,seconds,train_loss,val_f_mse,val_a_mse,lr"]
    for epoch in range(0, 400, 5):
        fall = 1.5 * error**2 + 0.09 * np.exp(-epoch / 45) + 0.02 * np.exp(-epoch / 160)
        loss, f_mse = fall * np.exp(0.08 * rng.normal(size=2))
        val = "" if epoch == 15 else f"{f_mse:.6g}"
        lines.append(f"{epoch},{30 * epoch},{0.3 * epoch:.1f},{0.8 * loss:.6g},{val},{0.4 * f_mse:.6g},0.001")
    return "\n".join(lines) + "\n"


def evaluation(name: str, system: str, error: float, rng: np.random.Generator) -> dict[str, Any]:
    times = np.linspace(0.6, 3, 5)
    dense = np.linspace(0.06, 3, 50)
    grow = lambda t, scale, power: (scale * (t / 3) ** power).tolist()  # noqa: E731
    f_mse = 1.5 * error**2
    unseen = np.array(grow(dense, f_mse, 1.8)) * np.exp(0.05 * rng.normal(size=50))
    return {
        "name": name,
        "system": system,
        "parameters": 201672 if system == "egno" else 134020,
        "split": "test",
        "samples": 2000,
        "f_mse": f_mse,
        "a_mse": 0.41 * f_mse,
        "times": times.tolist(),
        "horizon_mse": grow(times, f_mse, 1.8),
        "baselines": {
            "constant": {"f_mse": 1.0213, "a_mse": 0.4012, "horizon_mse": grow(times, 1.0213, 2.0)},
            "ballistic": {"f_mse": 0.0742, "a_mse": 0.0241, "horizon_mse": grow(times, 0.0742, 3.4)},
            "linear": {"f_mse": 0.0261, "a_mse": 0.0112, "horizon_mse": grow(times, 0.0261, 2.6)},
        },
        "unseen_times": {"times": dense.tolist(), "mse": unseen.tolist(), "trained_at": times.tolist()}
        if system == "egno"
        else None,
        "drift": {
            "energy": grow(times, 0.5 * error, 1.2),
            "momentum": grow(times, 0.2 * error, 0.8),
            "energy_true": grow(times, 0.0004, 0.5),
            "momentum_true": grow(times, 1e-6, 0.1),
        },
        "symmetry": {
            "rotation": 3.1e-7,
            "reflection": 2.8e-7,
            "translation": 4.4e-7,
            "permutation": 1.2e-7,
            "batching": 0.0 if system == "egno" else 6.1e-3,
        },
        "symmetry_dtype": "float32",
        "published": {
            "EGNO (paper)": {"f_mse": 0.0054, "a_mse": 0.0022},
            "SEGNO (paper)": {"f_mse": 0.0043},
        },
        "seconds_train": 120.3,
        "seconds_per_step": 0.0312,
        "machine": "2 cores, torch 2.13.0",
        "citation": f"@inproceedings{{{system},\n  title = {{A paper on {system}}},\n  year = {{2024}},\n}}",
    }


def change(folder: Path, **entries: Any) -> Path:
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


def change_arrays(folder: Path, drop: tuple[str, ...] = (), **arrays: Any) -> Path:
    with np.load(folder / "predictions.npz") as archive:
        kept = {name: archive[name] for name in archive.files if name not in drop}
    np.savez(folder / "predictions.npz", **(kept | arrays))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "runs" / "egno"),
        make_run(tmp_path / "runs" / "egnn", system="egnn", seed=1, error=0.11),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "egno")


def page_of(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "report.html").read_text(encoding="utf-8")
