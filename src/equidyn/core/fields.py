"""The fields of a sample: one name, one meaning, one shape, one unit each.

A sample is a `torch_geometric.data.Data`. Shapes use N nodes, E edges, P time points. Where all graphs of a batch share
one topology, node and edge fields may carry a leading batch axis ([B, N, 3] for `pos`) beside one shared `edge_index`;
otherwise a batch is one large graph with `batch [N]`, as PyG's loaders build it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Transforms = Literal["invariant", "vector", "position", "tensor", "index"]


@dataclass(frozen=True)
class Field:
    """One field of a sample or of a model's outputs.

    Attributes:
        name: attribute of the sample.
        shape: axes, in words.
        unit: "" where the system is unitless (particles).
        transforms: behaviour under x -> R x + t; a position moves with both, a vector with R alone.
        meaning: one sentence.
        node_axis: axis that counts nodes in an unbatched sample, or None.
    """

    name: str
    shape: str
    unit: str
    transforms: Transforms
    meaning: str
    node_axis: int | None = None


_FIELDS = (
    Field("pos", "[N, 3]", "Å, or unitless", "position", "Position of each node.", 0),
    Field("vel", "[N, 3]", "length of pos per unit of times", "vector", "Velocity of each node.", 0),
    Field("centre", "[N, 3]", "unit of pos", "position", "Reference point of each node's graph; absent: its mean.", 0),
    Field("x", "[N, F]", "", "invariant", "Scalar input features of each node.", 0),
    Field("z", "[N]", "", "invariant", "Atomic number of each node.", 0),
    Field("charge", "[N]", "e, or unitless", "invariant", "Charge of each node.", 0),
    Field("mass", "[N]", "u, or unitless", "invariant", "Mass of each node.", 0),
    Field("edge_index", "[2, E]", "", "index", "Row 0 the source (sender) j, row 1 the target (receiver) i."),
    Field("edge_attr", "[E, A]", "", "invariant", "Scalar input features of each edge."),
    Field("bone_index", "[2, K]", "", "index", "Bones of a skeleton: row 0 the child joint, row 1 its parent."),
    Field("bond_index", "[2, K]", "", "index", "Bonds of a molecule, each once."),
    Field("gravity", "[1, 3]", "", "vector", "Direction in which things fall, of length 1."),
    Field("height_unit", "[1]", "unit of pos", "invariant", "What heights among the node features are divided by."),
    Field("edge_type", "[E]", "", "index", "Kind of each edge: bond type, or 22 + s - 1 for atoms s > 1 bonds apart."),
    Field("edge_shift", "[E, 3]", "Å", "vector", "Cartesian image offset: r_ij = pos[j] + edge_shift - pos[i]."),
    Field("cell", "[1, 3, 3]", "Å", "vector", "Lattice vectors in rows."),
    Field("pbc", "[1, 3]", "", "invariant", "Whether the box repeats along each lattice vector."),
    Field("total_charge", "[1]", "e", "invariant", "Total charge of the graph, a whole number."),
    Field("spin", "[1]", "", "invariant", "Spin multiplicity of the graph, a whole number."),
    Field("batch", "[N]", "", "index", "Graph each node belongs to.", 0),
    Field("sigma", "[1]", "Å", "invariant", "Width of the noise on the positions of the graph."),
    Field("head", "[1]", "", "invariant", "Level of theory the graph asks a model of several for, from 0."),
    Field("times", "[1, P]", "time", "invariant", "Time points of the trajectory, counted from the input state."),
    Field("trajectory", "[N, P, 3]", "unit of pos", "position", "Positions at `times`.", 0),
    Field("trajectory_vel", "[N, P, 3]", "unit of vel", "vector", "Velocities at `times`.", 0),
    Field("trajectory_std", "[N, P]", "unit of pos", "invariant", "Uncertainty of `trajectory`, per coordinate.", 0),
    Field("energy", "[1]", "eV", "invariant", "Total energy of the graph."),
    Field("atom_energy", "[N]", "eV", "invariant", "Part of the energy that belongs to each node.", 0),
    Field("forces", "[N, 3]", "eV/Å", "vector", "Force on each node.", 0),
    Field("energy_weight", "[1]", "", "invariant", "Weight of the energy in the loss; 0 where it is not known."),
    Field("forces_weight", "[1]", "", "invariant", "Weight of the forces in the loss; 0 where they are not known."),
    Field("stress_weight", "[1]", "", "invariant", "Weight of the stress in the loss; 0 where it is not known."),
    Field("config", "[1]", "", "index", "Group the structure is reported under, a number in the data set's list."),
    Field("y", "[1]", "of the property", "invariant", "Number of the graph to predict, or the number of its class."),
    Field("prediction", "[1]", "", "invariant", "What a model gives for `y`: scaled, or one score per class [1, C]."),
    Field("virial", "[1, 3, 3]", "eV", "tensor", "Minus the derivative of the energy by strain."),
    Field("stress", "[1, 3, 3]", "eV/Å³", "tensor", "Stress; positive is tension (the sign of ASE)."),
)

FIELDS: dict[str, Field] = {field.name: field for field in _FIELDS}
