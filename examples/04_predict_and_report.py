"""Use a trained run: predict new trajectories into a file, and write the report page.

    python examples/04_predict_and_report.py [--run example/egno] [--out example]

Run 01 first. The same on the command line:

    equidyn predict example/egno example/new.npz example/predicted.npz --frame 30 --times 0.25 0.5 0.75 1.0
    equidyn report example/egno --out example/report.html
"""

import argparse
from pathlib import Path

from equidyn.cli import main as equidyn
from equidyn.data.trajectories import read_trajectories, write_trajectories
from equidyn.report import write_report
from equidyn.simulate import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict and report.")
    parser.add_argument("--run", type=Path, default=Path("example/egno"))
    parser.add_argument("--out", type=Path, default=Path("example"))
    options = parser.parse_args()

    # Initial states from anywhere: here new simulations (another seed), of which frame 30 is the state to start from.
    states, predicted = options.out / "new.npz", options.out / "predicted.npz"
    write_trajectories(states, simulate("charged", 20, seed=7))
    times = ["0.25", "0.5", "0.75", "1.0"]
    equidyn(["predict", str(options.run), str(states), str(predicted), "--frame", "30", "--times", *times])

    trajectories = read_trajectories(predicted)
    print(f"positions {trajectories.positions.shape}: trajectories, times, bodies, x y z")

    print(f"report: {write_report([options.run], options.out / 'report.html')}")


if __name__ == "__main__":
    main()
