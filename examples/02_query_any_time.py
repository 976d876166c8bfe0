"""Ask a trained EGNO for times that it was not trained at, and compare with the simulator.

    python examples/02_query_any_time.py [--run example/egno]

Run 01 first. The model was trained at 0.2, 0.4, 0.6, 0.8 and 1.0; an answer at one time does not depend on which other
times are asked for in the same pass.
"""

import argparse
from pathlib import Path

import torch

from equidyn.data import NBody
from equidyn.data.nbody import initial_states
from equidyn.simulate import continue_from
from equidyn.train import load_model
from equidyn.train.recipe import build_arguments


def main() -> None:
    parser = argparse.ArgumentParser(description="Query a trained EGNO at any times.")
    parser.add_argument("--run", type=Path, default=Path("example/egno"))
    options = parser.parse_args()

    trained = load_model(options.run)
    settings = {key: value for key, value in trained.config["data"].items() if key != "dataset"}
    start = NBody(**build_arguments(NBody, settings)).start_states(50)

    # The truth at 0.05, 0.10 ... 1.00: the simulator continued from the same states.
    true = continue_from(start, steps=1001, dt=1e-3, store_every=50)
    sample = initial_states(start)
    sample.times = torch.from_numpy(true.times)[None]
    with torch.no_grad():
        predicted = trained.model(sample)["trajectory"]  # [B, N, P, 3]

    error = (predicted - torch.from_numpy(true.positions).transpose(1, 2)).square().mean((0, 1, 3))
    for time, value in zip(true.times, error.tolist(), strict=True):
        mark = "trained" if any(abs(time - t) < 1e-9 for t in trained.model.times) else ""
        print(f"t = {time:.2f}   mean squared error {value:.5f}   {mark}")

    # One irregular time alone gives the same answer as among many.
    sample.times = torch.tensor([[0.333, 0.35]], dtype=torch.float64)
    with torch.no_grad():
        alone = trained.model(sample)["trajectory"][..., 1, :]
    among = predicted[..., 6, :]
    print(f"t = 0.35 asked for beside other times: largest difference {(alone - among).abs().max():.1e}")


if __name__ == "__main__":
    main()
