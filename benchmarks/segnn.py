"""SEGNN's training step against the plain formulation in e3nn, in one run.

python -m benchmarks.segnn [--quick] [--json FILE] [--threads N]
"""

import argparse
from pathlib import Path

import torch

from benchmarks.egno import batch_of
from benchmarks.harness import compare_ways, show, write
from benchmarks.plain_segnn import PlainSEGNN
from equidyn.models.segnn import SEGNN


def compare(batch: int, nodes: int, *, lmax: int, lmax_attr: int, compiled: bool, repeats: int) -> list[dict]:
    """One row per way: milliseconds of a forward pass and of a step, its peak memory, ratios to plain.

    Both networks start from the sample's ready-made attributes and have the same parameters in number; the time to make
    attributes and couplings, which training spends on every batch, is in "equidyn, from the sample".
    """
    torch.manual_seed(0)
    sample = batch_of(batch, nodes, 1)
    target = sample.trajectory[:, :, 0].flatten(0, 1) - sample.pos.flatten(0, 1)
    make = lambda: SEGNN(1, 1, lmax=lmax, lmax_attr=lmax_attr)  # noqa: E731
    ours = make()
    network = ours.network
    plain = PlainSEGNN(
        *(layout.irreps for layout in (network.source, network.hidden, network.target)),
        lmax_attr=lmax_attr,
        scalars=network.scalars,
        num_layers=len(network.layers),
    )
    given = ours.inputs(sample)
    edge_index = torch.stack([given.edges.senders.node, given.edges.receivers.node])
    attributes = given.edge_attributes.values, given.node_attributes.values
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in ours.parameters())

    def squared(y: torch.Tensor) -> torch.Tensor:
        return (y - target).square().mean()

    def whole(model: SEGNN) -> torch.Tensor:
        return (model(sample)["pos"] - sample.trajectory[:, :, 0]).square().mean()

    ways = {
        "plain e3nn": (plain, lambda: squared(plain(given.x, given.scalars, edge_index, *attributes))),
        "equidyn": (ours, lambda: squared(network(given))),
        "equidyn, from the sample": (ours, lambda: whole(ours)),
    }
    if compiled:
        fused = make()
        fused.compile()
        ways["equidyn, from the sample, compiled"] = (fused, lambda: whole(fused))
    return compare_ways(ways, {"batch": batch, "N": nodes, "lmax": lmax, "lmax_attr": lmax_attr}, repeats=repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the paper's size only, few repeats, nothing compiled")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repeats = 3 if options.quick else 7
    paper = compare(100, 5, lmax=1, lmax_attr=1, compiled=not options.quick, repeats=repeats)
    show("batch 100, 5 bodies, lmax 1, 4 layers (the paper's N-body size)", paper)
    sweep = []
    if not options.quick:
        for batch, nodes, lmax, lmax_attr in (
            (100, 5, 1, 2),
            (100, 5, 2, 2),
            (20, 5, 2, 3),
            (8, 20, 1, 1),
            (1, 100, 1, 1),
        ):
            sweep += compare(batch, nodes, lmax=lmax, lmax_attr=lmax_attr, compiled=False, repeats=3)
        show("other sizes, complete graphs", sweep)
    write(options.json, {"paper": paper, "sweep": sweep})


if __name__ == "__main__":
    main()
