"""Simulate charged particles, train EGNO on them, and compare it with simple baselines.

    python examples/01_simulate_and_train.py [--samples 1200] [--epochs 20] [--out example]

The run folder it leaves, `example/egno`, is what 02 and 04 start from.
"""

import argparse
import shutil
from pathlib import Path

from equidyn.data.trajectories import write_trajectories
from equidyn.simulate import simulate
from equidyn.train import evaluate, read_recipe, train


def recipe(data: Path, samples: int, epochs: int) -> dict:
    """What a recipe file would hold: from frame 30, predict frames 32 to 40 (one unit of time)."""
    held_out = samples // 6
    return {
        "name": "egno",
        "system": "egno",
        "seed": 1,
        "model": {"node_dim": 1, "edge_dim": 2, "hidden_dim": 32, "times": [0.2, 0.4, 0.6, 0.8, 1.0]},
        "data": {
            "dataset": "nbody",
            "path": str(data),
            "start": 30,
            "frames": [32, 34, 36, 38, 40],
            "train": samples - 2 * held_out,
            "val": held_out,
            "test": held_out,
        },
        "task": {"name": "trajectory"},
        "train": {"epochs": epochs, "batch_size": 50, "schedule": "cosine", "clip": 1.0, "threads": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate, train, evaluate.")
    parser.add_argument("--samples", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("example"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    data = options.out / "charged.npz"
    write_trajectories(data, simulate("charged", options.samples, seed=43))

    folder = options.out / "egno"
    shutil.rmtree(folder, ignore_errors=True)  # a run never overwrites another
    train(read_recipe(recipe(data, options.samples, options.epochs)), folder)

    result = evaluate(folder)
    for name, row in {"EGNO": result, **result["baselines"]}.items():
        print(f"{name:10}  F-MSE {row['f_mse']:.5f}  A-MSE {row['a_mse']:.5f}")


if __name__ == "__main__":
    main()
