"""ClofNet's training step against the plain formulation, in one run.

python -m benchmarks.clofnet [--quick] [--json FILE] [--threads N]
"""

import argparse
from pathlib import Path

import torch

from benchmarks.egno import batch_of
from benchmarks.harness import compare_ways, show, write
from benchmarks.plain_clofnet import PlainClofNet
from equidyn.models.clofnet import ClofNet
from equidyn.train.process import compiled as compiled_forward


def compare(batch: int, nodes: int, *, compiled: bool, repeats: int) -> list[dict]:
    """One row per way: milliseconds of a forward pass and of a step, its peak memory, ratios to plain."""
    torch.manual_seed(0)
    sample = batch_of(batch, nodes, 1)
    target = sample.trajectory[..., 0, :]
    plain, ours = PlainClofNet(), ClofNet(1, 2)
    ways = {
        "plain": (plain, lambda: (plain(sample) - target).square().mean()),
        "equidyn": (ours, lambda: (ours(sample)["pos"] - target).square().mean()),
    }
    if compiled:
        fused = ClofNet(1, 2)
        forward = compiled_forward(fused.forward)  # as `train.compile: true` does
        ways["equidyn, compiled"] = (fused, lambda: (forward(sample)["pos"] - target).square().mean())
    return compare_ways(ways, {"batch": batch, "N": nodes}, repeats=repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the paper's size only, few repeats, nothing compiled")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repeats = 3 if options.quick else 7
    paper = compare(128, 5, compiled=not options.quick, repeats=repeats)
    show("batch 128, 5 bodies, H = 64, 4 layers (the paper's N-body size)", paper)
    sweep = []
    if not options.quick:
        for batch, nodes in ((128, 20), (8, 50), (1, 150)):
            sweep += compare(batch, nodes, compiled=False, repeats=3)
        show("other sizes, complete graphs", sweep)
    write(options.json, {"paper": paper, "sweep": sweep})


if __name__ == "__main__":
    main()
