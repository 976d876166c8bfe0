"""EGNO in a periodic liquid as it grows: time and memory per particle, up to 20,000 particles.

    python -m benchmarks.liquid --json benchmarks/results/liquid.json

Each size is a cubic lattice of density 0.8, shaken, with the pairs within 1.8: about 20 neighbours per particle. Timed
are the neighbour list, and one forward pass of EGNO (P = 5, H = 32, 3 layers) without gradients.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.harness import peak_memory, show, side_by_side, write
from equidyn.data.periodic import periodic_sample
from equidyn.models.egno import EGNO

SIZES = (500, 1000, 2000, 5000, 10_000, 20_000)
CUTOFF, DENSITY = 1.8, 0.8


def box(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions, velocities and cell of a shaken lattice."""
    torch.manual_seed(count)
    edge = (count / DENSITY) ** (1 / 3)
    side = round(count ** (1 / 3) + 0.4999)
    axis = (torch.arange(side) + 0.5) * edge / side
    sites = torch.cartesian_prod(axis, axis, axis)[torch.randperm(side**3)[:count]]
    return sites + 0.1 * torch.randn(count, 3), torch.randn(count, 3), edge * torch.eye(3)


def measure(count: int, model: EGNO, repeats: int) -> dict[str, float]:
    """One row of the curve."""
    pos, vel, cell = box(count)
    sample = periodic_sample(pos, vel, cell, CUTOFF)
    ways = {"list": lambda: periodic_sample(pos, vel, cell, CUTOFF), "forward": lambda: model(sample)}
    seconds = side_by_side(ways, repeats=repeats, seconds=0.2)
    return {
        "particles": count,
        "edges": sample.num_edges,
        "list ms": 1e3 * seconds["list"],
        "forward ms": 1e3 * seconds["forward"],
        "forward us per edge": 1e6 * seconds["forward"] / sample.num_edges,
        "peak MB": peak_memory(lambda: model(sample)) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the three smallest sizes, one repeat")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = EGNO(1, 1, 32, 3, options={"residual": True, "cutoff": CUTOFF}).eval()
    with torch.no_grad():
        rows = [measure(n, model, 1 if options.quick else 5) for n in (SIZES[:3] if options.quick else SIZES)]
    for row in rows:
        row["time per edge, ratio to the first"] = row["forward us per edge"] / rows[0]["forward us per edge"]
        row["memory per edge, ratio to the first"] = (
            row["peak MB"] / row["edges"] / (rows[0]["peak MB"] / rows[0]["edges"])
        )
    show("EGNO in a periodic liquid, forward pass", rows)
    write(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
