"""Charged-particle simulation: the batched simulator beside a plain NumPy loop, one trajectory at a time.

python benchmarks/simulator.py [--quick] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equidyn.simulate import simulate
from equidyn.simulate.parallel import available_workers


def plain_loop(seed: int, steps: int = 5000, bodies: int = 5, dt: float = 1e-3, store_every: int = 100) -> NDArray[Any]:
    """One trajectory as one would write it; frames [F, 3, N]."""
    rng = np.random.RandomState(seed)
    charges = rng.choice([-1.0, 0.0, 1.0], size=bodies, p=[0.5, 0.0, 0.5])
    x = rng.randn(3, bodies) * (bodies / 5.0) ** (1 / 3)
    v = rng.randn(3, bodies)
    v = v * 0.5 / np.linalg.norm(v, axis=0)
    v = np.where(x > 5, -np.abs(v), np.where(x < -5, np.abs(v), v))
    x = np.where(x > 5, 10 - x, np.where(x < -5, -10 - x, x))
    products = np.outer(charges, charges)
    np.fill_diagonal(products, 0)
    diagonal = np.eye(bodies)

    def force(x: NDArray[Any]) -> NDArray[Any]:
        norm = (x**2).sum(0)
        square = norm[:, None] + norm[None, :] - 2 * (x.T @ x) + diagonal
        weight = products / square**1.5
        return np.clip((weight * (x[:, :, None] - x[:, None, :])).sum(-1), -100, 100)

    frames = []
    v = v + dt * force(x)
    for step in range(1, steps):
        x = x + dt * v
        if step % store_every == 0:
            frames.append(x)
        v = v + dt * force(x)
    return np.stack(frames)


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Wall time of each of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps and of the trajectories")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    args = parser.parse_args()
    num, steps, repeats = (1000, 500, 3) if args.quick else (10_000, 5000, 5)

    check = np.abs(plain_loop(43, steps).transpose(0, 2, 1) - simulate("charged", 1, steps=steps).positions[0]).max()
    plain: list[float] = []
    batched: list[float] = []
    for _ in range(repeats):  # in turn, so that a busy moment of the machine meets both
        plain += seconds(lambda: plain_loop(43, steps), 3)
        batched += seconds(lambda: simulate("charged", num, steps=steps), 1)
    one_core = seconds(lambda: simulate("charged", num, steps=steps, workers=1), 1)

    per_plain, per_batched = statistics.median(plain), statistics.median(batched) / num
    result = {
        "trajectories": num,
        "steps": steps,
        "bodies": 5,
        "cores": available_workers(),
        "machine": platform.machine(),
        "numpy": np.__version__,
        "plain_seconds_per_trajectory": per_plain,
        "batched_seconds_per_trajectory": per_batched,
        "ratio": per_plain / per_batched,
        "ratio_one_core": per_plain / (one_core[0] / num),
        "batched_seconds": statistics.median(batched),
        "batched_seconds_all": batched,
        "batched_seconds_one_core": one_core[0],
        "largest_difference": float(check),
    }
    print(f"{num} trajectories of {steps} steps, 5 bodies, {result['cores']} cores, median of {repeats}")
    print(f"plain NumPy loop   {1 / per_plain:10.1f} trajectories/s")
    print(f"equidyn            {1 / per_batched:10.1f} trajectories/s, {result['batched_seconds']:.2f} s in all")
    print(f"ratio              {result['ratio']:10.0f}   (one core: {result['ratio_one_core']:.0f})")
    print(f"largest difference {check:10.1e}   (first trajectory)")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
