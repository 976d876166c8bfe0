"""The same samples in another state: what the next window starts from, or an input with noise on it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch_geometric.data import Data

_TARGETS = ("trajectory", "trajectory_vel")


def with_state(sample: Data, pos: Tensor, vel: Tensor, *, targets: bool = False) -> Data:
    """A sample with other positions and velocities, and the input features that follow from them.

    As in all trajectory data here, the first column of `x` is the speed and the last one of `edge_attr` the squared
    distance; with `gravity` and `height_unit` the second column of `x` is a height. The graph stays as it is.

    Args:
        sample: one or many, as a data family makes them; not changed.
        pos, vel: as in the sample.
        targets: keep what is to be predicted.
    """
    result = copy.copy(sample)
    if not targets:
        for name in _TARGETS:
            if name in result:
                del result[name]
    x = sample.x.clone()
    x[..., 0] = vel.norm(dim=-1)
    if sample.get("gravity") is not None and sample.get("height_unit") is not None:
        x[..., 1] = -(pos @ sample.gravity[0]) / sample.height_unit
    result.pos, result.vel, result.x = pos, vel, x
    send, receive = sample.edge_index
    r = pos.index_select(-2, send) - pos.index_select(-2, receive)
    if sample.get("edge_shift") is not None:
        r = r + sample.edge_shift
        result.centre = pos
    if sample.get("edge_attr") is not None:
        result.edge_attr = torch.cat([sample.edge_attr[..., :-1], r.square().sum(-1, keepdim=True)], dim=-1)
    return result


def state_noise(sample: Data, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normal noise for the positions and velocities of a sample.

    Args:
        sample: with `times`.
        share: deviation of the velocities' noise over their own root mean square; that of the positions is the way at
            the noise's speed to the first time.
        generator: of the CPU.
    """
    size = share * sample.vel.square().mean().sqrt()
    dx, dv = (torch.randn(sample.pos.shape, generator=generator).to(sample.pos) * size for _ in range(2))
    return dx * sample.times.flatten()[0].to(sample.pos), dv


def noisy(sample: Data, share: float, generator: torch.Generator) -> Data:
    """A sample with `state_noise` on its input; what is to be predicted stays as it is."""
    dx, dv = state_noise(sample, share, generator)
    return with_state(sample, sample.pos + dx, sample.vel + dv, targets=True)
