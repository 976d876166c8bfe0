"""The simulator against official data, a plain reference loop and the laws of motion."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equidyn.core.errors import InputError
from equidyn.core.trajectories import Trajectories
from equidyn.simulate import (
    KINDS,
    Charged,
    Gravity,
    Springs,
    continue_from,
    drift,
    get_system,
    kinetic_energy,
    momentum,
    potential_energy,
    simulate,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "nbody"


@pytest.fixture(scope="module")
def official():
    with np.load(GOLDEN / "official_frames.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize(("part", "skip"), [("train", 0), ("val", 10_000)])
def test_reproduces_the_official_charged_data(official, part, skip):
    """Draws, force, clamp, integrator and frames; the trajectories that are chaotic beyond round-off are few."""
    positions, velocities = official[f"{part}_pos"], official[f"{part}_vel"]
    ours = simulate("charged", len(positions), seed=43, skip=skip)
    assert np.array_equal(ours.charges, official[f"{part}_charge"])
    assert ours.positions.shape == positions.shape
    np.testing.assert_allclose(ours.times, 0.1 * np.arange(1, 50), atol=1e-12)
    error = np.maximum(np.abs(ours.positions - positions), np.abs(ours.velocities - velocities)).max((1, 2, 3))
    assert (error < 1e-6).mean() >= 0.85, error
    # The file holds float32: where ours rounds to the same numbers, the deviation is far below 1e-7.
    same = (ours.positions.astype(np.float32) == positions).mean((1, 2, 3))
    assert np.median(same) == 1.0, same


@pytest.mark.parametrize(("kind", "bodies"), [("charged", 5), ("springs", 5), ("gravity", 12)])
def test_reproduces_float64_records(kind, bodies):
    with np.load(GOLDEN / "segnn_nbody_sim.npz") as archive:
        positions, velocities = archive[f"out/{kind}/loc"], archive[f"out/{kind}/vel"]
    if kind != "gravity":
        positions, velocities = positions.transpose(0, 2, 1), velocities.transpose(0, 2, 1)
    ours = simulate(kind, 1, bodies=bodies, steps=800, seed=7)
    np.testing.assert_allclose(ours.positions[0], positions, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.velocities[0], velocities, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "bodies"), [("charged", 5), ("springs", 5), ("gravity", 12)])
def test_takes_as_many_numbers_as_the_original_generator(kind, bodies):
    """Else the second trajectory of a data set would differ."""
    ours, original = np.random.RandomState(7), np.random.RandomState(7)
    frames = 8 if kind == "gravity" else 7
    get_system(kind).draw(ours, bodies, frames)
    with np.load(GOLDEN / "segnn_nbody_sim.npz") as archive:
        for name in sorted(name for name in archive.files if name.startswith(f"in/{kind}/draw")):
            shape = archive[name].shape
            drawn = original.randn(*shape) if name.endswith("randn") else original.random_sample(shape)
            if name.endswith("randn"):
                assert np.array_equal(drawn, archive[name])
    assert ours.randn() == original.randn()


def reference_loop(seed, num, bodies, steps, store_every, dt=1e-3):
    """The published algorithm for charges, one trajectory after the other, in plain NumPy."""
    rng = np.random.RandomState(seed)
    frames = (steps - 1) // store_every
    out = np.empty((2, num, frames, bodies, 3))
    for s in range(num):
        charges = rng.choice([-1.0, 0.0, 1.0], size=(bodies, 1), p=[0.5, 0.0, 0.5])
        x = rng.randn(3, bodies) * (bodies / 5.0) ** (1 / 3)
        v = rng.randn(3, bodies)
        v = v * 0.5 / np.sqrt((v**2).sum(0))
        outside = np.abs(x) > 5
        v = np.where(outside, -np.sign(x) * np.abs(v), v)
        x = np.where(outside, np.sign(x) * 10 - x, x)

        def force(x, products=charges * charges.T):
            norm = (x**2).sum(0)
            square = norm[:, None] + norm[None] - 2 * (x.T @ x)
            np.fill_diagonal(square, 1.0)
            weight = products / (square * np.sqrt(square))
            return np.clip((weight * (x[:, :, None] - x[:, None, :])).sum(-1), -100, 100)

        v = v + dt * force(x)
        for step in range(1, steps):
            x = x + dt * v
            if step % store_every == 0:
                out[:, s, step // store_every - 1] = x.T, v.T
            v = v + dt * force(x)
        rng.randn(frames, 3, bodies)
        rng.randn(frames, 3, bodies)
    return out


@pytest.mark.parametrize("bodies", [2, 5, 9])
def test_equals_a_plain_loop(bodies):
    reference = reference_loop(seed=11, num=4, bodies=bodies, steps=300, store_every=60)
    ours = simulate("charged", 4, bodies=bodies, steps=300, store_every=60, seed=11)
    error = np.abs(np.stack([ours.positions, ours.velocities]) - reference).max((0, 2, 3, 4))
    assert np.median(error) < 1e-12, error
    assert error.max() < 1e-10, error


@pytest.mark.parametrize("accurate", [False, True])
def test_a_trajectory_does_not_depend_on_its_block(accurate):
    """Bit for bit: one alone, several in this process, several in two processes."""
    options = {"bodies": 4, "steps": 200, "store_every": 50, "seed": 3, "accurate": accurate}
    many = simulate("charged", 7, workers=1, **options)
    spread = simulate("charged", 7, workers=2, **options)
    alone = simulate("charged", 1, skip=5, **options)
    for name in ("positions", "velocities", "charges"):
        assert np.array_equal(getattr(many, name), getattr(spread, name))
        assert np.array_equal(getattr(many, name)[5:6], getattr(alone, name))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_accurate_mode_conserves_energy_and_momentum(kind):
    made = simulate(kind, 24, steps=2000, store_every=500, seed=5, accurate=True)
    np.testing.assert_allclose(made.times, [0, 0.5, 1, 1.5, 2], atol=1e-12)
    strayed = drift(made)
    assert np.median(strayed.energy) < 1e-10
    assert strayed.energy.max() < 1e-6
    assert strayed.momentum.max() < 1e-10
    assert made.meta["drift"]["energy_max"] == strayed.energy.max()
    moved = np.abs(kinetic_energy(made) - kinetic_energy(made)[:, :1]).max()
    assert moved > 1e-3, "nothing moved: energy was conserved for nothing"


FIELDS = [{"uniform": 0.098}, {"magnetic": 0.5}, {"fixed": 0.1}, {"uniform": -0.3, "magnetic": 0.2, "fixed": -2.0}]


@pytest.mark.parametrize("fields", FIELDS)
def test_outside_fields_conserve_energy(fields):
    system = Charged(softening=0.1, **fields)
    made = simulate(system, 20, steps=2000, store_every=500, seed=5, accurate=True)
    assert drift(made).energy.max() < 1e-9
    free = simulate(Charged(softening=0.1), 20, steps=2000, store_every=500, seed=5, accurate=True)
    assert np.abs(made.positions - free.positions).max() > 1e-3


def test_one_charge_in_outside_fields_moves_as_it_must():
    """Free fall, and a circle of angular frequency |q| |B| about (1, 1, 1)."""
    start = Trajectories(
        np.zeros((1, 1, 1, 3)),
        np.array([[[[0.3, -0.3, 0.0]]]]),
        np.zeros(1),
        charges=np.full((1, 1), -1.0),
        meta={"kind": "charged", "constants": {"uniform": 0.4}},
    )
    options = {"steps": 2000, "store_every": 1000}
    fallen = continue_from(start, accurate=True, **options)
    t = fallen.times[:, None]
    expected = t * [0.3, -0.3, 0] + 0.2 * t**2 * [0, 0, 1.0]
    np.testing.assert_allclose(fallen.positions[0, :, 0], expected, atol=1e-12)
    turned = continue_from(replace(start, meta={"kind": "charged", "constants": {"magnetic": 0.5}}), **options)
    exact = continue_from(
        replace(start, meta={"kind": "charged", "constants": {"magnetic": 0.5}}), accurate=True, **options
    )
    angle, v = 0.5 * np.sqrt(3.0) * exact.times[1], np.array([0.3, -0.3, 0])
    side = np.cross([1, 1, 1], v) / np.sqrt(3)  # q = -1: it turns to the left of v seen along B
    np.testing.assert_allclose(exact.velocities[0, 1, 0], v * np.cos(angle) + side * np.sin(angle), atol=1e-10)
    np.testing.assert_allclose(turned.velocities[0, 0, 0], exact.velocities[0, 1, 0], atol=1e-3)


@pytest.mark.parametrize("accurate", [False, True])
def test_outside_fields_act_alike_in_any_block(accurate):
    system = Charged(**FIELDS[-1])
    options = {"bodies": 4, "steps": 200, "store_every": 50, "seed": 3, "accurate": accurate}
    many, alone = simulate(system, 7, workers=2, **options), simulate(system, 1, skip=5, **options)
    assert np.array_equal(many.positions[5:6], alone.positions)


def test_accurate_mode_follows_a_known_orbit():
    """Two unit masses on a circle of radius ½: ω² = 2 G / d³ = 2."""
    omega = np.sqrt(2.0)
    start = Trajectories(
        positions=np.array([[[[0.5, 0, 0], [-0.5, 0, 0]]]]),
        velocities=np.array([[[[0, omega / 2, 0], [0, -omega / 2, 0]]]]),
        times=np.zeros(1),
        masses=np.ones((1, 2)),
        meta={"kind": "gravity", "constants": {"softening": 0.0}},
    )
    orbit = continue_from(start, steps=5000, store_every=1000, accurate=True)
    angle = omega * orbit.times
    expected = 0.5 * np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
    np.testing.assert_allclose(orbit.positions[0, :, 0], expected, atol=1e-10)
    np.testing.assert_allclose(potential_energy(orbit), -1.0, atol=1e-10)


@pytest.mark.parametrize("start_near", [False, True])
def test_accurate_mode_resolves_close_encounters(start_near):
    """A Kepler orbit of eccentricity 0.999 (closest approach 0.001) is at its far end after each period."""
    near, far = 0.001, 1.999  # of the relative motion, with G m = 2 and semi-major axis 1
    distance, other = (near, far) if start_near else (far, near)
    speed = np.sqrt(2 * other / distance)
    x = np.array([[[[distance / 2, 0, 0], [-distance / 2, 0, 0]]]])
    v = np.array([[[[0, speed / 2, 0], [0, -speed / 2, 0]]]])
    meta = {"kind": "gravity", "constants": {"softening": 0.0}}
    start = Trajectories(x, v, np.zeros(1), masses=np.ones((1, 2)), meta=meta)
    half_period = np.pi / np.sqrt(2)
    orbit = continue_from(start, steps=6, dt=half_period, store_every=1, accurate=True)
    at_far_end = orbit.positions[0, 1::2, 0] if start_near else orbit.positions[0, ::2, 0]
    expected = np.zeros_like(at_far_end)
    expected[:, 0] = -far / 2 if start_near else far / 2
    np.testing.assert_allclose(at_far_end, expected, atol=1e-6)


def test_official_distances_are_expanded_and_accurate_ones_are_not():
    """Two charges close together and far from the origin: a² + b² - 2ab loses digits that Σ (a - b)² keeps."""
    x = np.array([[[[1000.0, 0, 0], [1000.0 + 2e-5, 0, 0]]]])
    meta = {"kind": "charged", "constants": {"strength": 1e-10}}
    start = Trajectories(x, np.zeros_like(x), np.zeros(1), charges=np.ones((1, 2)), meta=meta)
    gap = x[0, 0, 1, 0] - x[0, 0, 0, 0]
    expanded = x[0, 0, 0, 0] ** 2 + x[0, 0, 1, 0] ** 2 - 2 * x[0, 0, 0, 0] * x[0, 0, 1, 0]
    assert abs(expanded / gap**2 - 1) > 0.01
    dt = 1e-6
    kicked = continue_from(start, steps=2, dt=dt, store_every=1).velocities[0, 0, 1, 0]
    np.testing.assert_allclose(kicked, dt * 1e-10 * gap / expanded**1.5, rtol=1e-9)
    true = continue_from(start, steps=1, dt=dt, store_every=1, accurate=True).velocities[0, 1, 1, 0]
    np.testing.assert_allclose(true, dt * 1e-10 / gap**2, rtol=1e-3)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_accurate_and_official_modes_follow_the_same_motion(kind):
    """Same draws, same forces: the official integrator comes close to the accurate one as its step shrinks."""
    system = get_system(kind) if kind == "springs" else get_system(kind, softening=0.5)
    errors = []
    for steps in (200, 800):
        coarse = simulate(system, 6, steps=steps, dt=0.4 / steps, store_every=steps // 4, seed=8)
        exact = continue_from(coarse, frame=0, steps=steps // 2, dt=0.4 / steps, store_every=steps // 2, accurate=True)
        errors.append(np.abs(coarse.positions[:, 2] - exact.positions[:, 1]).max())
    assert errors[1] < 0.3 * errors[0] < 1e-3


@pytest.mark.parametrize("system", [Springs(), Springs(strength=2.0), Gravity(), Gravity(mass_low=0.5, mass_high=2.0)])
def test_pair_forces_conserve_momentum(system):
    made = simulate(system, 8, bodies=6, steps=400, store_every=100, seed=2)
    p = momentum(made)
    assert np.abs(p - p[:, :1]).max() < 1e-12
    if isinstance(system, Gravity):
        assert np.abs(p).max() < 1e-12  # the centre of mass starts at rest


def test_forces_are_gradients_of_the_potential_energy():
    """Accelerations of one official kick against central differences of potential_energy, for all three laws."""
    for system in (Charged(softening=0.3), Springs(), Gravity(mass_low=0.5, mass_high=2.0)):
        start = simulate(system, 3, bodies=4, steps=2, store_every=1, seed=4, accurate=True)
        dt = 1e-6
        kicked = continue_from(start, frame=0, steps=2, dt=dt, store_every=1, accurate=True)
        acceleration = (kicked.velocities[:, 1] - kicked.velocities[:, 0]) / dt
        for body, axis in ((0, 0), (2, 1), (3, 2)):
            shift = np.zeros_like(start.positions)
            shift[:, :, body, axis] = 1e-5
            up, down = (potential_energy(replace(start, positions=start.positions + s * shift)) for s in (1, -1))
            mass = 1.0 if start.masses is None else start.masses[:, body]
            gradient = (up - down)[:, 0] / 2e-5 / mass
            np.testing.assert_allclose(acceleration[:, body, axis], -gradient, atol=1e-4)


def test_continue_from_a_frame_is_the_same_trajectory():
    for kind in KINDS:
        whole = simulate(kind, 3, steps=1000, store_every=100, seed=1)
        rest = continue_from(whole, frame=3, steps=501, store_every=100)
        first = 0 if kind == "gravity" else 1  # velocity Verlet stores its initial state
        part = whole.positions[:, 3 + first : 9]
        np.testing.assert_allclose(rest.positions[:, : part.shape[1]], part, rtol=0, atol=1e-11)


def test_drift_is_that_of_each_trajectory():
    made = simulate("gravity", 205, bodies=3, steps=200, store_every=100, seed=12)
    total = kinetic_energy(made) + potential_energy(made)
    strayed = drift(made)
    expected = np.abs(total[:, 1] - total[:, 0]) / (kinetic_energy(made) - potential_energy(made))[:, 0]
    np.testing.assert_allclose(strayed.energy, expected, rtol=1e-9, atol=1e-15)
    assert strayed.momentum.shape == (205,)


def test_one_particle_moves_straight():
    for kind in KINDS:
        for accurate in (False, True):
            made = simulate(kind, 2, bodies=1, steps=500, store_every=100, accurate=accurate)
            path = made.positions[:, :1] + made.velocities[:, :1] * (made.times - made.times[0])[None, :, None, None]
            np.testing.assert_allclose(made.positions, path, atol=1e-12)


def test_box_reflects_the_start_only():
    free = simulate(Charged(box=None), 30, steps=2, store_every=1, seed=6)
    boxed = simulate(Charged(box=0.7), 30, steps=2, store_every=1, seed=6)
    assert (np.abs(free.positions) > 0.75).any()
    inside = np.abs(free.positions) < 0.65
    assert np.abs(boxed.positions[inside] - free.positions[inside]).max() < 1e-3
    once = (np.abs(free.positions) > 0.75) & (np.abs(free.positions) < 1.9)
    reflected = np.sign(free.positions) * 1.4 - free.positions
    assert np.abs(boxed.positions - reflected)[once].max() < 1e-2


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_reaches_the_total(workers):
    seen = []
    simulate("springs", 6, steps=50, store_every=10, workers=workers, progress=lambda *step: seen.append(step))
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_result_is_checked_float64_and_described():
    made = simulate(Gravity(softening=0.2), 2, steps=20, store_every=5, seed=9)
    made.check()
    assert made.positions.dtype == np.float64
    assert made.meta["kind"] == "gravity"
    assert made.meta["constants"]["softening"] == 0.2
    assert (made.meta["seed"], made.meta["steps"], made.meta["dt"]) == (9, 20, 1e-3)
    assert len(made.subset(slice(1, 2))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "charge"}, "'charged'"),
        ({"num": 0}, "num is too small"),
        ({"num": -3}, "num is too small"),
        ({"num": 2.5}, "num is not a whole number"),
        ({"bodies": 0}, "bodies is too small"),
        ({"steps": -1}, "steps is too small"),
        ({"store_every": 0}, "store_every is too small"),
        ({"store_every": 30}, "store_every leaves no frame"),
        ({"store_every": 31, "accurate": True}, "store_every leaves no frame"),
        ({"dt": 0.0}, "dt is out of range"),
        ({"dt": float("nan")}, "dt is out of range"),
        ({"seed": -1}, "seed is too small"),
        ({"seed": 2**32}, "seed is too large"),
        ({"skip": -1}, "skip is too small"),
        ({"workers": 0}, "workers is too small"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"system": "charged", "num": 2, "steps": 30, "store_every": 10, **change}
    with pytest.raises(InputError, match=message) as caught:
        simulate(arguments.pop("system"), arguments.pop("num"), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Charged(box=-1.0), "box is out of range"),
        (lambda: Charged(softening=-0.1), "softening is out of range"),
        (lambda: Charged(clamp=0.0), "clamp is out of range"),
        (lambda: Springs(strength=float("nan")), "strength is no number"),
        (lambda: Gravity(mass_low=0.0), "mass_low is out of range"),
        (lambda: Gravity(mass_low=2.0, mass_high=1.0), "mass_high is below"),
        (lambda: get_system("gravity", sofening=0.1), "'softening'"),
    ],
)
def test_bad_constants_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def coincident(softening):
    x = np.zeros((2, 1, 2, 3))
    x[0, 0, 1] = 1.0
    meta = {"kind": "charged", "constants": {"softening": softening}}
    return Trajectories(x, np.zeros_like(x), np.zeros(1), charges=np.ones((2, 2)), meta=meta)


@pytest.mark.parametrize("accurate", [False, True])
def test_two_bodies_at_one_place(accurate):
    options = {"steps": 20, "store_every": 10, "accurate": accurate}
    with pytest.raises(InputError, match="trajectory 1"):
        continue_from(coincident(softening=0.0), **options)
    softened = continue_from(coincident(softening=0.1), **options)
    assert np.array_equal(softened.positions[1], np.zeros_like(softened.positions[1]))


def test_a_head_on_collision_is_an_error_not_a_nan():
    x = np.array([[[[0.5, 0, 0], [-0.5, 0, 0]]]])
    start = Trajectories(
        x,
        np.zeros_like(x),
        np.zeros(1),
        masses=np.ones((1, 2)),
        meta={"kind": "gravity", "constants": {"softening": 0.0}},
    )
    with pytest.raises(InputError, match=r"two bodies meet, in trajectory 0, time 0\.78"):
        continue_from(start, steps=1000, store_every=500, accurate=True)


def test_energy_needs_to_know_the_system():
    made = simulate("charged", 1, steps=20, store_every=10)
    with pytest.raises(InputError, match="no kind of system"):
        potential_energy(replace(made, meta={}))
    with pytest.raises(InputError, match="no charges"):
        potential_energy(replace(made, charges=None))
    with pytest.raises(InputError, match="no such frame"):
        continue_from(made, frame=5)
