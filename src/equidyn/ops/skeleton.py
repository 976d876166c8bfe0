"""Skeletons: positions close by in which every bone has its length.

A bone joins a child joint to its parent; the bones of one graph form a forest. Predicted joints x are moved to joints y
with |y_child - y_parent| = l for every bone, by Newton steps of least total motion,

    y <- y - J^T (J J^T)^-1 (|b| - l),      b = y_child - y_parent,  J = d|b| / dy,

and then exactly: the joints of each tree are put together again from bones of the right length and the directions
reached, at the mean position they had. Rotations, reflections, translations and the numbering of joints go through.
Setting the lengths from the root outwards alone would add up the errors of all directions along a limb.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equidyn.ops.vectors import length


def keep_bone_lengths(pos: Tensor, reference: Tensor, bone_index: Tensor, steps: int = 2) -> Tensor:
    """Move joints as little as needed for all bones to have their reference length.

    Args:
        pos: [..., N, 3] joints; two or more leading axes are fine, one small matrix is solved for each.
        reference: [..., N, 3] joints whose bones have the right lengths; axes of size 1 are shared.
        bone_index: [2, K] child and parent of each bone, a forest.
        steps: Newton steps before the exact one.

    Returns:
        [..., N, 3], with the lengths of the reference to rounding. A bone of length zero in `pos` takes the direction
        it has in `reference`.
    """
    child, parent = bone_index
    joints, bones = pos.shape[-2], len(child)
    if not bones:
        return pos
    with torch.autocast(pos.device.type, enabled=False):
        pos = pos if pos.dtype == torch.float64 else pos.float()
        reference = reference.to(pos)
        given = reference[..., child, :] - reference[..., parent, :]
        lengths, fallback = length(given), _unit(given)
        # Motion of the two ends of each bone: [K, N].
        ends = pos.new_zeros(bones, joints)
        row = torch.arange(bones, device=pos.device)
        ends[row, child], ends[row, parent] = 1.0, -1.0
        overlap, small = ends @ ends.T, 1e-6 * torch.eye(bones, dtype=pos.dtype, device=pos.device)
        for _ in range(steps):
            bone = pos[..., child, :] - pos[..., parent, :]
            unit = _unit(bone, fallback)
            excess = length(bone) - lengths
            shares, _ = torch.linalg.solve_ex(overlap * (unit @ unit.mT) + small, excess)
            pos = pos - ends.T @ (shares * unit)
        unit = _unit(pos[..., child, :] - pos[..., parent, :], fallback)
        return _assemble(pos, lengths * unit, child, parent)


def _assemble(pos: Tensor, bone: Tensor, child: Tensor, parent: Tensor) -> Tensor:
    """Joints with exactly these bones [..., K, 3], each tree at the mean position it has in pos."""
    joints = pos.shape[-2]
    above = torch.arange(joints, device=pos.device)
    above = above.index_copy(0, child, parent)
    offset = torch.zeros_like(pos).index_copy(-2, child, bone)  # from the joint above
    for _ in range(max(joints - 1, 1).bit_length()):  # twice as far up each time, until all offsets start at a root
        offset = offset + offset[..., above, :]
        above = above[above]
    count = torch.bincount(above, minlength=joints).clamp(min=1).to(pos)[:, None]
    place = torch.zeros_like(pos).index_add(-2, above, pos - offset) / count
    return offset + place[..., above, :]


def _unit(r: Tensor, fallback: Tensor | None = None) -> Tensor:
    """r / |r|, or the fallback (zero if there is none) where r = 0."""
    size = length(r)
    unit = r / torch.where(size > 0, size, 1.0)
    return unit if fallback is None else torch.where(size > 0, unit, fallback)
