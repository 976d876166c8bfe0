"""Bones keep their lengths exactly, at little motion, whatever the frame and the numbering."""

import pytest
import torch

from equidyn.ops.skeleton import keep_bone_lengths

BONES = torch.tensor([[1, 2, 3, 4, 5, 6, 8], [0, 1, 2, 2, 0, 5, 7]])  # a tree of 7 joints, and one of 2


def lengths(pos, bones=BONES):
    return (pos[..., bones[0], :] - pos[..., bones[1], :]).norm(dim=-1)


@pytest.fixture
def joints():
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(4, 1, 9, 3, generator=generator, dtype=torch.float64)
    return right, right + 0.1 * torch.randn(4, 5, 9, 3, generator=generator, dtype=torch.float64)


def test_lengths_are_exact_and_errors_shrink(joints):
    right, noisy = joints
    kept = keep_bone_lengths(noisy, right, BONES)
    torch.testing.assert_close(lengths(kept), lengths(right).expand(4, 5, 7), rtol=1e-14, atol=1e-14)
    assert (kept - right).square().mean() < 0.85 * (noisy - right).square().mean()
    # Each tree stays where it was.
    for part in (slice(0, 7), slice(7, 9)):
        torch.testing.assert_close(kept[..., part, :].mean(-2), noisy[..., part, :].mean(-2))
    single = keep_bone_lengths(noisy.float(), right.float(), BONES)
    torch.testing.assert_close(lengths(single), lengths(right.float()).expand(4, 5, 7), rtol=1e-6, atol=1e-6)


def test_what_is_right_stays(joints):
    right, noisy = joints
    kept = keep_bone_lengths(noisy, right, BONES)
    torch.testing.assert_close(keep_bone_lengths(kept, right, BONES), kept, rtol=1e-12, atol=1e-12)


def test_one_bone_by_hand():
    pos = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    reference = torch.tensor([[5.0, 5.0, 5.0], [5.0, 6.0, 5.0]])
    kept = keep_bone_lengths(pos, reference, torch.tensor([[1], [0]]))
    torch.testing.assert_close(kept, torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))


def test_motions_and_numbering_go_through(joints):
    right, noisy = joints
    kept = keep_bone_lengths(noisy, right, BONES)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    moved = keep_bone_lengths(noisy @ turn.T + 7, right @ turn.T - 2, BONES)
    torch.testing.assert_close(moved, kept @ turn.T + 7, rtol=1e-11, atol=1e-11)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    renumbered = torch.argsort(order)[BONES][:, torch.tensor([3, 1, 0, 6, 2, 5, 4])]
    other = keep_bone_lengths(noisy[..., order, :], right[..., order, :], renumbered)
    torch.testing.assert_close(other, kept[..., order, :], rtol=1e-11, atol=1e-11)


def test_gradients(joints):
    right, noisy = (t[:1, :1] for t in joints)
    noisy.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: keep_bone_lengths(x, right, BONES), noisy)


def test_joints_that_meet_and_bones_of_no_length(joints):
    right, noisy = joints
    right, noisy = right.clone(), noisy.clone()
    noisy[..., 3, :] = noisy[..., 2, :]  # a bone without a direction takes that of the reference
    right[..., 6, :] = right[..., 5, :]  # a bone without length
    noisy[0, 0] = 0.0
    noisy.requires_grad_()
    kept = keep_bone_lengths(noisy, right, BONES)
    torch.testing.assert_close(lengths(kept), lengths(right).expand(4, 5, 7), rtol=1e-12, atol=1e-12)
    kept.square().sum().backward()
    assert torch.isfinite(noisy.grad).all()


def test_nothing_to_keep():
    pos = torch.randn(2, 3)
    assert keep_bone_lengths(pos, pos, torch.zeros(2, 0, dtype=torch.long)) is pos
