"""EGNO's training step against the plain formulation and PINA's EGNO, in one run.

python -m benchmarks.egno [--quick] [--json FILE] [--threads N]
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from pina.model import EquivariantGraphNeuralOperator
from torch import Tensor, nn
from torch_geometric.data import Data

from benchmarks.harness import compare_ways, show, write
from benchmarks.plain_egno import PlainEGNO
from equidyn.data.nbody import complete_graph, particle_sample
from equidyn.models.egno import EGNO
from equidyn.simulate import simulate
from equidyn.train.process import compiled

HIDDEN, LAYERS, NEIGHBOURS = 64, 4, 20
SIZES = ((100, 5, 1), (100, 5, 5), (100, 5, 16), (25, 5, 64), (20, 20, 5), (1, 100, 5), (1, 500, 5), (1, 2000, 5))


def nearest(pos: Tensor, count: int) -> Tensor:
    """Edges from the nearest other nodes of pos [N, 3] to each: [2, count N]."""
    distance = torch.cdist(pos, pos).fill_diagonal_(torch.inf)
    senders = distance.topk(count, largest=False).indices.flatten()
    return torch.stack([senders, torch.arange(len(pos)).repeat_interleave(count)])


def batch_of(batch: int, nodes: int, points: int) -> Data:
    """Simulated charged particles as a training batch; complete graphs up to 100 bodies, then nearest neighbours."""
    steps = 20 * (points + 1) + 1
    made = simulate("charged", batch, bodies=nodes, steps=steps, store_every=20)
    tensor = partial(torch.as_tensor, dtype=torch.float32)
    pos, vel = tensor(made.positions), tensor(made.velocities)
    edge_index = complete_graph(nodes) if nodes <= 100 else nearest(pos[0, 0], NEIGHBOURS)
    sample = particle_sample(pos[:, 0], vel[:, 0], tensor(made.charges), edge_index)
    sample.trajectory = pos[:, 1 : points + 1].transpose(1, 2).contiguous()
    return sample


class PINA(nn.Module):
    """PINA's network at the same width and depth; it has no first map to that width, so it gets one."""

    def __init__(self, sample: Data, points: int, modes: int) -> None:
        super().__init__()
        self.lift = nn.Linear(1, HIDDEN)
        self.network = EquivariantGraphNeuralOperator(
            LAYERS, HIDDEN, 2, 3, modes, time_steps=points, hidden_dim=HIDDEN, time_emb_dim=32, aggr="mean"
        )
        batch, nodes, _ = sample.pos.shape
        offset = nodes * torch.arange(batch).repeat_interleave(sample.edge_index.shape[1])
        self.edge_index = sample.edge_index.repeat(1, batch) + offset

    def forward(self, sample: Data) -> Tensor:
        """Positions [P, B N, 3]."""
        pos, vel, x, edge_attr = (t.flatten(0, 1) for t in (sample.pos, sample.vel, sample.x, sample.edge_attr))
        graph = Data(x=self.lift(x), pos=pos, vel=vel, edge_index=self.edge_index, edge_attr=edge_attr)
        return self.network(graph).pos


def losses(sample: Data, *, compile: bool) -> dict[str, tuple[nn.Module, object]]:
    """Each way's model and loss closure; the first way is what the others are compared with."""
    points = sample.trajectory.shape[-2]
    modes = min(2, points // 2 + 1)
    target = sample.trajectory.movedim(-2, 0).flatten(1, 2)
    times = [0.02 * (p + 1) for p in range(points)]
    plain, pina = PlainEGNO(hidden=HIDDEN, layers=LAYERS, points=points, modes=modes), PINA(sample, points, modes)
    ours = lambda: EGNO(1, 2, HIDDEN, LAYERS, times=times, num_modes=modes)  # noqa: E731

    def rows(model):
        return (model(sample) - target).square().mean()

    def stacked(forward, dtype=None):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            out = forward(sample)["trajectory"]
        return (out - sample.trajectory).square().mean()

    eager = ours()
    ways = {"plain": (plain, partial(rows, plain)), "PINA": (pina, partial(rows, pina))}
    ways["equidyn"] = (eager, partial(stacked, eager))
    if compile:
        for name, dtype in (("equidyn, compiled", None), ("equidyn, compiled, bfloat16", torch.bfloat16)):
            model = ours()
            ways[name] = (model, partial(stacked, compiled(model.forward), dtype))
    return ways


def compare(batch: int, nodes: int, points: int, *, compile: bool, repeats: int) -> list[dict]:
    """One row per way: milliseconds of a forward pass and of a training step, its peak memory, ratios to plain."""
    torch.manual_seed(0)
    sample = batch_of(batch, nodes, points)
    ways = losses(sample, compile=compile)
    return compare_ways(ways, {"batch": batch, "N": nodes, "P": points}, repeats=repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the paper's size only, few repeats, nothing compiled")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paper = compare(100, 5, 5, compile=not options.quick, repeats=3 if options.quick else 9)
    show("training step, batch 100, 5 bodies, P = 5, H = 64, 4 layers (the paper's N-body size)", paper)
    sweep = []
    if not options.quick:
        for size in SIZES:
            sweep += compare(*size, compile=False, repeats=3)
        show(f"other sizes; above 100 bodies {NEIGHBOURS} nearest neighbours instead of complete graphs", sweep)
    write(options.json, {"paper": paper, "sweep": sweep})


if __name__ == "__main__":
    main()
