"""Particles in surroundings that tell up from down; the original's numbers are checked by its golden record."""

import numpy as np
import pytest

from equidyn.core.errors import InputError
from equidyn.simulate.plane import FieldCharges, PlaneSprings, simulate_plane


@pytest.mark.parametrize("system", [PlaneSprings(5.0), FieldCharges(2.0)])
def test_each_trajectory_is_its_own(system):
    many = simulate_plane(system, 4, bodies=4, steps=301, seed=3)
    assert many.positions.shape == (4, 3, 4, 3)
    one = simulate_plane(system, 1, bodies=4, steps=301, seed=3)
    np.testing.assert_array_equal(many.positions[:1], one.positions)
    np.testing.assert_allclose(many.times, [0.1, 0.2, 0.3])


def test_springs_to_the_plane_break_rotations_but_not_about_z():
    state = {"charges": np.array([[0.3, 0.7]]), "couplings": np.array([[[0.0, 1.0], [1.0, 0.0]]])}
    x = np.random.default_rng(0).normal(size=(1, 3, 2))
    about_z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    about_x = about_z[np.ix_([2, 0, 1], [2, 0, 1])]
    for stiffness, turn, same in ((2.0, about_z, True), (2.0, about_x, False), (0.0, about_x, True)):
        system = PlaneSprings(stiffness)
        assert np.allclose(system.forces(turn @ x, state), turn @ system.forces(x, state)) == same


def test_without_a_plane_momentum_is_kept():
    run = simulate_plane(PlaneSprings(0.0), 3, steps=1001, seed=1)
    total = run.velocities.sum(2)
    np.testing.assert_allclose(total, np.broadcast_to(total[:, :1], total.shape), atol=1e-12)


@pytest.mark.parametrize("given", [{"num": 0}, {"bodies": 0}, {"steps": 100}, {"dt": 0.0}, {"store_every": 0}])
def test_arguments_out_of_range(given):
    with pytest.raises(InputError):
        simulate_plane(PlaneSprings(), **({"num": 1} | given))
