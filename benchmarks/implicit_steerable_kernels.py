"""The training step of implicit steerable kernels against the plain formulation, in one run.

python -m benchmarks.implicit_steerable_kernels [--quick] [--json FILE] [--threads N]
"""

import argparse
from pathlib import Path

import torch

from benchmarks.egno import batch_of
from benchmarks.harness import compare_ways, show, write
from benchmarks.plain_implicit_steerable_kernels import PlainKernels
from equidyn.models.implicit_steerable_kernels import ImplicitSteerableKernels, KernelOptions


def compare(batch: int, nodes: int, *, channels: int = 16, repeats: int) -> list[dict]:
    """One row per way: milliseconds of a forward pass and of a step, its peak memory, ratios to plain.

    Both have the same weights, and are seen to give the same positions first.
    """
    torch.manual_seed(0)
    sample = batch_of(batch, nodes, 1)
    target = sample.trajectory[..., 0, :]
    options = KernelOptions(width=2.0, scale=2.0)
    ours = ImplicitSteerableKernels(1, 2, channels, 2, velocity=True, readout="position", options=options)
    plain = PlainKernels(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(sample)["pos"], plain(sample), rtol=1e-4, atol=1e-4)
    ways = {
        "plain": (plain, lambda: (plain(sample) - target).square().mean()),
        "equidyn": (ours, lambda: (ours(sample)["pos"] - target).square().mean()),
    }
    return compare_ways(ways, {"batch": batch, "N": nodes, "channels": channels}, repeats=repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the recipe's size only, few repeats")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = compare(100, 5, repeats=3 if options.quick else 7)
    show("batch 100, 5 bodies, 16 scalars and vectors, 2 blocks (the recipe's N-body size)", recipe)
    sweep = []
    if not options.quick:
        for batch, nodes, channels in ((100, 5, 8), (8, 20, 16), (1, 60, 16)):
            sweep += compare(batch, nodes, channels=channels, repeats=3)
        show("other sizes, complete graphs", sweep)
    write(options.json, {"recipe": recipe, "sweep": sweep})


if __name__ == "__main__":
    main()
