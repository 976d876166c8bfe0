"""What the library says about a published system: paper, symmetry, needs, outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Citation:
    """A paper, as `equidyn cite` prints it."""

    key: str
    authors: str
    title: str
    venue: str
    year: int
    arxiv: str

    def bibtex(self) -> str:
        """The BibTeX entry."""
        rows = {
            "author": self.authors,
            "title": self.title,
            "booktitle": self.venue,
            "year": str(self.year),
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
        }
        return f"@inproceedings{{{self.key},\n" + "".join(f"  {k} = {{{v}}},\n" for k, v in rows.items()) + "}"


@dataclass(frozen=True)
class Entry:
    """One system of the catalogue.

    Attributes:
        name: name on the command line and in recipes.
        title: full name.
        model: the class a recipe builds.
        citation: the paper.
        symmetry: the group the outputs are equivariant under.
        needs: fields of a sample that the model reads.
        gives: named outputs of `forward`.
    """

    name: str
    title: str
    model: type[nn.Module]
    citation: Citation
    symmetry: str
    needs: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(frozen=True)
class Backbone:
    """An equivariant layer that a temporal operator can lift to trajectories.

    Attributes:
        layer: its class, with a frozen dataclass `Options`.
        features: from `hidden_dim` and the options to (components, channels) of each block of features; the first are
            scalars, (1, C).
        symmetry: from the options to the group the layer is equivariant under, in three dimensions.
    """

    layer: Any
    features: Callable[[int, Any], tuple[tuple[int, int], ...]]
    symmetry: Callable[[Any], str]


BACKBONES: dict[str, Backbone] = {}
"""Layers that a temporal operator can lift, by name; see `backbone`."""


def backbone(
    name: str,
    *,
    features: Callable[[int, Any], tuple[tuple[int, int], ...]] = lambda hidden_dim, options: ((1, hidden_dim),),
    symmetry: Callable[[Any], str] = lambda options: "E(3)",
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: offer a layer as a backbone under a name, so that systems need not import each other.

    A backbone is built as `Layer(hidden_dim, edge_dim, update_features=..., options=Layer.Options(...))` and called as
    `layer(h, x, v, edges, edge_attr, *tensors)` with rows of nodes h [R, C], x [R, 3], v [R, 3], the `Edges` of those
    rows, edge scalars [E, A], where the rows of `edges` may be several copies of E, and the blocks of features after
    the scalars, [R, components, channels] each, that turn with the points; it returns the new (h, x, v, *tensors).
    """

    def register(layer: type[nn.Module]) -> type[nn.Module]:
        BACKBONES[name] = Backbone(layer, features, symmetry)
        return layer

    return register
