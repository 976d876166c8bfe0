"""EGNO in a periodic liquid as it grows: time and memory per particle, up to 20,000 particles.

    python -m benchmarks.liquid --json benchmarks/results/liquid.json

Each size is a cubic lattice of density 0.8, shaken, with the pairs within 1.8: about 20 neighbours per particle. Timed
are the neighbour list, and EGNO (P = 5, H = 32, 3 layers): one forward pass without gradients, and one training step.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.harness import peak_memory, show, side_by_side, training_step, write
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
    step = training_step(lambda: (model(sample)["trajectory"] - pos[:, None]).square().mean(), model)

    @torch.no_grad()
    def forward() -> None:
        model(sample)

    seconds = side_by_side(
        {"list": lambda: periodic_sample(pos, vel, cell, CUTOFF), "forward": forward, "step": step},
        repeats=repeats,
        seconds=0.2,
    )
    return {
        "particles": count,
        "edges": sample.num_edges,
        **{f"{name} ms": 1e3 * value for name, value in seconds.items()},
        **{f"{name} us per edge": 1e6 * seconds[name] / sample.num_edges for name in ("forward", "step")},
        **{f"{name} peak MB": peak_memory(way) / 1e6 for name, way in (("forward", forward), ("step", step))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the three smallest sizes, one repeat")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="leave out larger sizes")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = EGNO(1, 1, 32, 3, options={"residual": True, "cutoff": CUTOFF})
    sizes = SIZES[:3] if options.quick else [n for n in SIZES if n <= options.largest]
    rows = [measure(n, model, 1 if options.quick else options.repeats) for n in sizes]
    for row in rows:
        for name in ("forward", "step"):
            row[f"{name} time per edge, ratio"] = row[f"{name} us per edge"] / rows[0][f"{name} us per edge"]
            first = rows[0][f"{name} peak MB"] / rows[0]["edges"]
            row[f"{name} memory per edge, ratio"] = row[f"{name} peak MB"] / row["edges"] / first
    show("EGNO in a periodic liquid, ratios to the smallest", rows)
    write(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
