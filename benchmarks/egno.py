"""EGNO's training step against the plain formulation, in one run.

python -m benchmarks.egno [--quick] [--json FILE] [--threads N]
"""

import argparse
from pathlib import Path

import torch
from torch_geometric.data import Data

from benchmarks.harness import peak_of_saved_tensors, show, side_by_side, write
from benchmarks.plain_egno import PlainEGNO
from equidyn.data.nbody import complete_graph, particle_sample
from equidyn.models.egno import EGNO
from equidyn.simulate import simulate


def batch_of(batch: int, nodes: int, points: int) -> Data:
    """Simulated charged particles as a training batch; the targets follow the first `points` frames."""
    steps = 20 * (points + 1) + 1
    made = simulate("charged", batch, bodies=nodes, steps=steps, store_every=20)
    tensor = lambda array: torch.as_tensor(array, dtype=torch.float32)  # noqa: E731
    pos, vel = tensor(made.positions), tensor(made.velocities)
    sample = particle_sample(pos[:, 0], vel[:, 0], tensor(made.charges), complete_graph(nodes))
    sample.trajectory = pos[:, 1 : points + 1].transpose(1, 2).contiguous()
    return sample


def _step(forward, model):
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return step


def _losses(sample: Data, points: int, hidden: int, layers: int, *, compiled: bool):
    """Models and loss closures of each way."""
    modes = min(2, points // 2 + 1)
    plain = PlainEGNO(hidden=hidden, layers=layers, points=points, modes=modes)
    ours = EGNO(1, 2, hidden, layers, times=[0.02 * (p + 1) for p in range(points)], num_modes=modes)
    target = sample.trajectory.movedim(-2, 0).flatten(1, 2)
    ways = {
        "plain": (plain, lambda: (plain(sample) - target).square().mean()),
        "equidyn": (ours, lambda: (ours(sample)["trajectory"] - sample.trajectory).square().mean()),
    }
    if compiled:
        for name, dtype in (("equidyn, compiled", None), ("equidyn, compiled, bfloat16", torch.bfloat16)):
            model = EGNO(1, 2, hidden, layers, times=ours.times, num_modes=modes)
            model.compile()

            def loss(model=model, dtype=dtype):
                with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                    out = model(sample)["trajectory"]
                return (out - sample.trajectory).square().mean()

            ways[name] = (model, loss)
    return ways


def compare(batch: int, nodes: int, points: int, *, compiled: bool, repeats: int) -> list[dict]:
    """One row per way: milliseconds of a forward pass and of a step, ratios to plain, kept memory."""
    torch.manual_seed(0)
    sample = batch_of(batch, nodes, points)
    ways = _losses(sample, points, 64, 4, compiled=compiled)
    with torch.no_grad():
        forward = side_by_side({name: loss for name, (_, loss) in ways.items()}, repeats=repeats)
    step = side_by_side({name: _step(loss, model) for name, (model, loss) in ways.items()}, repeats=repeats)
    kept = {name: peak_of_saved_tensors(loss) for name, (_, loss) in ways.items() if "compiled" not in name}
    return [
        {
            "batch": batch,
            "N": nodes,
            "P": points,
            "way": name,
            "forward ms": 1e3 * forward[name],
            "ratio": forward[name] / forward["plain"],
            "step ms": 1e3 * step[name],
            "step ratio": step[name] / step["plain"],
            "kept MB": kept[name] / 1e6 if name in kept else "",
            "kept ratio": kept[name] / kept["plain"] if name in kept else "",
        }
        for name in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the paper's size only, few repeats, nothing compiled")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repeats = 3 if options.quick else 7
    paper = compare(100, 5, 5, compiled=not options.quick, repeats=repeats)
    show("batch 100, 5 bodies, P = 5, H = 64, 4 layers (the paper's N-body size)", paper)
    sweep = []
    if not options.quick:
        for batch, nodes, points in ((100, 5, 1), (20, 5, 64), (8, 20, 5), (1, 100, 5), (1, 300, 1)):
            sweep += compare(batch, nodes, points, compiled=False, repeats=3)
        show("other sizes, complete graphs", sweep)
    write(options.json, {"paper": paper, "sweep": sweep})


if __name__ == "__main__":
    main()
