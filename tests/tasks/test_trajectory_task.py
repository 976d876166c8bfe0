"""The trajectory task by hand: losses, errors per time, state to state, roll-out."""

import pytest
import torch
from torch import nn

from equidyn.core.errors import InputError
from equidyn.data.nbody import complete_graph, particle_sample
from equidyn.tasks import TrajectoryTask
from equidyn.tasks.trajectory import roll_out


@pytest.fixture
def sample():
    made = particle_sample(torch.zeros(2, 3, 3), torch.ones(2, 3, 3), torch.ones(2, 3), complete_graph(3))
    made.times = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    made.trajectory = torch.zeros(2, 3, 2, 3)
    made.trajectory_vel = torch.zeros(2, 3, 2, 3)
    return made


def test_loss_and_errors(sample):
    predicted = torch.zeros(2, 3, 2, 3)
    predicted[..., 1, :] = 2.0
    out = {"trajectory": predicted, "trajectory_vel": torch.full_like(predicted, 3.0)}
    assert TrajectoryTask().loss(out, sample) == {"positions": torch.tensor(2.0)}
    terms = TrajectoryTask(velocity_weight=0.5).loss(out, sample)
    assert {name: float(term) for name, term in terms.items()} == {"positions": 2.0, "velocities": 4.5}
    assert TrajectoryTask().errors(out, sample).tolist() == [0.0, 4.0]


def test_the_huber_loss_is_quadratic_near_zero_linear_far_out_and_knows_no_axes(sample):
    torch.manual_seed(0)
    error, task = torch.randn(2, 3, 2, 3, dtype=torch.float64), TrajectoryTask(huber=0.5)
    loss = lambda error, task=task: float(task.loss({"trajectory": error}, sample)["positions"])  # noqa: E731
    assert loss(1e-6 * error) == pytest.approx(loss(1e-6 * error, TrajectoryTask()), rel=1e-6)
    far = 1e9 * error
    assert loss(far) == pytest.approx(2 * 0.5 / 3 * float(far.norm(dim=-1).mean()), rel=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    assert loss(error @ turn) == pytest.approx(loss(error), rel=1e-12)


def test_state_to_state_compares_the_last_time_and_a_step_the_first(sample):
    sample.trajectory[..., 1, :] = 1.0
    out = {"pos": torch.zeros(2, 3, 3)}
    assert TrajectoryTask().errors(out, sample).tolist() == [1.0]
    assert TrajectoryTask(rollout=True).errors(out, sample).tolist() == [0.0]


def test_what_does_not_fit_is_refused(sample):
    with pytest.raises(InputError, match="time points of the prediction, in task, expected 2, got 3"):
        TrajectoryTask().loss({"trajectory": torch.zeros(2, 3, 3, 3)}, sample)
    with pytest.raises(InputError, match="velocity_weight needs velocities"):
        TrajectoryTask(velocity_weight=1.0).loss({"trajectory": torch.zeros(2, 3, 2, 3)}, sample)


class Step(nn.Module):
    """Half a time unit straight on, with the charge pushing to the side."""

    def forward(self, sample):
        side = torch.tensor([0.0, 0.0, 1.0]) * sample.charge[..., None]
        return {"pos": sample.pos + 0.5 * sample.vel + side}


def test_roll_out_by_hand(sample):
    rolled = roll_out(Step(), sample)
    assert rolled.shape == (2, 3, 2, 3)
    # From rest at 0 with velocity 1: 0.5, then velocity (1, 1, 3) from the displacement over the step.
    assert rolled[0, 0].tolist() == [[0.5, 0.5, 1.5], [1.0, 1.0, 4.0]]
    assert torch.equal(sample.pos, torch.zeros(2, 3, 3))
