"""Check the symmetries of a model of your own.

    python examples/03_conformance_of_your_own_model.py

A model is anything that is called with a sample (a `torch_geometric.data.Data`) and gives a dictionary of tensors. The
first one below is equivariant. The second has one innocent-looking line that is not; the suite says which promises it
breaks.
"""

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.conformance import ConformanceError, assert_conforms, check, random_sample


class Attraction(nn.Module):
    """Each node moves along its edges, by a learned weight of the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, sample: Data) -> dict[str, Tensor]:
        source, target = sample.edge_index
        r = sample.pos[source] - sample.pos[target]
        force = r * self.weight(r.square().sum(-1, keepdim=True))
        return {"pos": sample.pos + self.bound(torch.zeros_like(sample.pos).index_add(0, target, force))}

    def bound(self, shift: Tensor) -> Tensor:
        """Keep shifts below 0.1 in length: equivariant, for the length does not depend on the axes."""
        length = shift.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
        return shift * (0.1 / length.clamp(min=0.1))


class Boxed(Attraction):
    """The same with a bound on each component, which depends on how the axes lie."""

    def bound(self, shift: Tensor) -> Tensor:
        return shift.clamp(-0.1, 0.1)


def main() -> None:
    torch.manual_seed(0)
    sample = random_sample(nodes=6, fields=("pos", "edge_index"))

    print(check(Attraction().double(), sample, group="E(3)"))
    print()
    print(check(Boxed().double(), sample, group="E(3)"))

    # In a test of your own:
    assert_conforms(Attraction().double(), sample, group="E(3)")
    try:
        assert_conforms(Boxed().double(), sample, group="E(3)")
    except ConformanceError as error:
        print(f"\nas a test, Boxed fails with one line:\n{error}")


if __name__ == "__main__":
    main()
