"""The particle systems that can be simulated: initial states, pair forces, energies.

A system is its constants. All bodies act on each other in pairs, F_i = Σ_j w_ij (x_i - x_j), where w_ij is either
constant (springs) or falls with the distance as c_ij / (r² + ε²)^{3/2} (charges, gravity). Everything is unitless.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from equidyn.core.errors import InputError, unknown_name

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ExternalForces:
    """Forces on each body from outside; they break rotation symmetry. The data of ClofNet (Du et al., ICML 2022).

    Attributes:
        uniform: force along z on every body, whatever its charge.
        magnetic: each component of a magnetic field B, the same everywhere; the force is q v × B.
        fixed: charge at rest at (10, 10, 10).
    """

    uniform: float = 0.0
    magnetic: float = 0.0
    fixed: float = 0.0

    def add(self, x: Array, v: Array, charges: Array, force: Array) -> None:
        """Add the forces at positions x and velocities v to `force`, all [3, N, B]; charges [N, B]."""
        if self.uniform:
            force[2] += self.uniform
        if self.magnetic:
            q = self.magnetic * charges
            force[0] += q * (v[1] - v[2])
            force[1] += q * (v[2] - v[0])
            force[2] += q * (v[0] - v[1])
        if self.fixed:
            r = x - 10.0
            square = r[0] * r[0] + r[1] * r[1] + r[2] * r[2]
            force += (self.fixed * charges) * r / (square * np.sqrt(square))

    def potential(self, x: Array, charges: Array) -> Array:
        """Potential energy of the bodies at x [..., 3] with the given charges [...]; a magnetic field does no work."""
        distance = np.linalg.norm(x - 10.0, axis=-1)
        return -self.uniform * x[..., 2] + self.fixed * charges / distance


@dataclass(frozen=True)
class PairLaw:
    """How the weight w of a pair force F = w (x_i - x_j) follows from the pair's coupling c.

    Attributes:
        inverse_square: w = c / (r² + softening²)^{3/2} if true, w = c if not.
        softening: length ε that keeps close encounters finite.
        clamp: limit on each Cartesian component of a body's total force.
        expanded: r² = a² + b² - 2ab instead of Σ (a - b)²: less exact, but the order of the official charged data.
        external: forces beside those of the pairs.
    """

    inverse_square: bool
    softening: float = 0.0
    clamp: float = math.inf
    expanded: bool = False
    external: ExternalForces | None = None


@dataclass(frozen=True)
class System:
    """Base of the systems; see `Charged`, `Springs`, `Gravity`."""

    kind: ClassVar[str]
    official: ClassVar[str]
    """Integrator of the published data: "kick-drift" or "velocity Verlet"."""

    @property
    def law(self) -> PairLaw:
        """The pair force."""
        raise NotImplementedError

    def draw(self, rng: np.random.RandomState, bodies: int, frames: int) -> dict[str, Array]:
        """One initial state: positions and velocities [N, 3], and charges, masses or couplings.

        The numbers are taken from `rng` in the order of the original generators, down to draws they make and do not
        use, so that a whole data set follows from one seed.

        Args:
            rng: NumPy's legacy generator.
            bodies: number of bodies N.
            frames: number of frames the official protocol stores; sets the number of unused draws.
        """
        raise NotImplementedError

    def pair_coupling(self, state: dict[str, Array], i: NDArray[np.int_], j: NDArray[np.int_]) -> Array:
        """Coupling c of the body pairs (i, j), [S, pairs]; positive repels.

        Args:
            state: charges or masses [S, N], or couplings [S, N, N].
            i: first bodies, [pairs].
            j: second bodies, [pairs].
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Charged(System):
    """Unit masses with charges ±1 that attract and repel by Coulomb's law: the benchmark of EGNN, SEGNN, EGNO.

    Attributes:
        strength: factor of the force.
        softening: length ε in r² + ε².
        clamp: limit on each component of a force under the official integrator; unused by the accurate one.
        box: bodies that start beyond ±box are reflected into it once; None for no box.
        speed: initial speed of each body.
        uniform: force along z on every body.
        magnetic: each component of a magnetic field.
        fixed: charge at rest at (10, 10, 10). These three are the fields of ClofNet's data.
    """

    strength: float = 1.0
    softening: float = 0.0
    clamp: float = 100.0
    box: float | None = 5.0
    speed: float = 0.5
    uniform: float = 0.0
    magnetic: float = 0.0
    fixed: float = 0.0
    kind: ClassVar[str] = "charged"
    official: ClassVar[str] = "kick-drift"

    def __post_init__(self) -> None:
        _check_constants(self, positive=("clamp", "box"), not_negative=("softening", "speed"))

    @property
    def law(self) -> PairLaw:
        """Coulomb's law, and the fields if there are any."""
        external = ExternalForces(self.uniform, self.magnetic, self.fixed)
        return PairLaw(
            True, self.softening, self.clamp, expanded=True, external=None if external == ExternalForces() else external
        )

    def draw(self, rng: np.random.RandomState, bodies: int, frames: int) -> dict[str, Array]:
        """Charges ±1, positions normal with σ = (N/5)^{1/3}, velocities of fixed length and random direction."""
        # What choice([-1, 0, 1], p=[½, 0, ½]) makes of the same uniform numbers, without its cost.
        charges = np.where(rng.random_sample(bodies) < 0.5, -1.0, 1.0)
        positions, velocities = _draw_motion(rng, bodies, (bodies / 5.0) ** (1 / 3), self.speed, self.box)
        rng.standard_normal(2 * frames * 3 * bodies)  # the original's noise, times zero
        return {"positions": positions, "velocities": velocities, "charges": charges}

    def pair_coupling(self, state: dict[str, Array], i: NDArray[np.int_], j: NDArray[np.int_]) -> Array:
        """Product of the charges."""
        charges = state["charges"]
        return self.strength * (charges[:, i] * charges[:, j])


@dataclass(frozen=True)
class Springs(System):
    """Unit masses of which a random half of the pairs is joined by springs of rest length zero.

    Kipf et al., "Neural Relational Inference for Interacting Systems", ICML 2018.

    Attributes:
        strength: spring constant k in F_i = -k Σ_j s_ij (x_i - x_j), s_ij 0 or 1.
        box: bodies that start beyond ±box are reflected into it once; None for no box.
        speed: initial speed of each body.
    """

    strength: float = 0.1
    box: float | None = 5.0
    speed: float = 0.5
    kind: ClassVar[str] = "springs"
    official: ClassVar[str] = "kick-drift"

    def __post_init__(self) -> None:
        _check_constants(self, positive=("box",), not_negative=("speed",))

    @property
    def law(self) -> PairLaw:
        """Hooke's law."""
        return PairLaw(False)

    def draw(self, rng: np.random.RandomState, bodies: int, frames: int) -> dict[str, Array]:
        """Couplings 0 or 1, positions normal with σ = ½, velocities of fixed length and random direction."""
        lower = np.tril(np.where(rng.random_sample((bodies, bodies)) < 0.5, 0.0, 1.0), -1)
        positions, velocities = _draw_motion(rng, bodies, 0.5, self.speed, self.box)
        rng.standard_normal(2 * frames * 3 * bodies)  # the original's noise, times zero
        return {"positions": positions, "velocities": velocities, "couplings": lower + lower.T}

    def pair_coupling(self, state: dict[str, Array], i: NDArray[np.int_], j: NDArray[np.int_]) -> Array:
        """Minus the spring constants."""
        return -self.strength * state["couplings"][:, i, j]


@dataclass(frozen=True)
class Gravity(System):
    """Masses that attract by Newton's law, total momentum zero: the gravity data of SEGNN.

    Attributes:
        strength: gravitational constant G.
        softening: length ε in r² + ε².
        mass_low: masses are drawn evenly from mass_low to mass_high; if equal, none is drawn.
        mass_high: see mass_low.
    """

    strength: float = 1.0
    softening: float = 0.1
    mass_low: float = 1.0
    mass_high: float = 1.0
    kind: ClassVar[str] = "gravity"
    official: ClassVar[str] = "velocity Verlet"

    def __post_init__(self) -> None:
        _check_constants(self, positive=("mass_low",), not_negative=("softening",))
        if self.mass_high < self.mass_low:
            raise InputError("mass_high is below mass_low", expected=f"at least {self.mass_low}", got=self.mass_high)

    @property
    def law(self) -> PairLaw:
        """Newton's law of gravitation."""
        return PairLaw(True, self.softening)

    def draw(self, rng: np.random.RandomState, bodies: int, frames: int) -> dict[str, Array]:
        """Masses if they differ, then normal positions and velocities; the centre of mass is at rest."""
        masses = np.full(bodies, self.mass_low)
        if self.mass_high > self.mass_low:
            masses = rng.uniform(self.mass_low, self.mass_high, bodies)
        positions = rng.standard_normal((bodies, 3))
        velocities = rng.standard_normal((bodies, 3))
        velocities -= np.mean(masses[:, None] * velocities, 0) / np.mean(masses)
        rng.standard_normal(3 * frames * bodies * 3)  # the original's noise, times zero
        return {"positions": positions, "velocities": velocities, "masses": masses}

    def pair_coupling(self, state: dict[str, Array], i: NDArray[np.int_], j: NDArray[np.int_]) -> Array:
        """Minus G m_i m_j."""
        masses = state["masses"]
        return -self.strength * (masses[:, i] * masses[:, j])


KINDS: dict[str, type[System]] = {system.kind: system for system in (Charged, Springs, Gravity)}


def get_system(kind: str, **constants: Any) -> System:
    """The system of that name, with the given constants and defaults for the others.

    Raises:
        InputError: unknown kind or constant (with the nearest name), or a constant out of range.
    """
    if kind not in KINDS:
        raise unknown_name("kind of system", str(kind), KINDS)
    system = KINDS[kind]
    known = system.__dataclass_fields__
    for name in constants:
        if name not in known:
            raise unknown_name("constant", name, known, where=kind)
    return system(**constants)


def _draw_motion(
    rng: np.random.RandomState, bodies: int, sigma: float, speed: float, box: float | None
) -> tuple[Array, Array]:
    """Positions and velocities [N, 3]; drawn axis by axis, as the originals do."""
    x = rng.standard_normal((3, bodies)) * sigma
    v = rng.standard_normal((3, bodies))
    v = v * speed / np.sqrt((v**2).sum(0))
    if box is not None:
        v = np.where(x > box, -np.abs(v), np.where(x < -box, np.abs(v), v))
        x = np.where(x > box, 2 * box - x, np.where(x < -box, -2 * box - x, x))
    return x.T, v.T


def _check_constants(system: System, positive: tuple[str, ...], not_negative: tuple[str, ...]) -> None:
    for name, value in asdict(system).items():
        if value is None and name == "box":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise InputError(f"{name} is no number", where=system.kind, expected="a number", got=repr(value))
        if math.isinf(value) and name != "clamp":
            raise InputError(f"{name} is infinite", where=system.kind, expected="a finite number", got=value)
        if (name in positive and value <= 0) or (name in not_negative and value < 0):
            expected = "more than 0" if name in positive else "0 or more"
            raise InputError(f"{name} is out of range", where=system.kind, expected=expected, got=value)
