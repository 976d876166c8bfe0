"""Public checks that anyone can run on any model: does it keep the promises its catalogue entry makes?

    import equidyn.conformance as conformance

    sample = conformance.random_sample(6)
    print(conformance.check(model, sample, group="E(3)"))

A model is any callable `model(sample) -> dict[str, Tensor]`; a sample is one graph, a `torch_geometric.data.Data` with
the field names of `equidyn.core.fields`. Nothing is moved between devices and nothing given is changed.
"""

from .periodic import check_periodic
from .potential import check_cutoff, check_extensivity
from .results import Check, ConformanceError, Report
from .samples import random_sample
from .suite import CHECKS, assert_conforms, check

__all__ = [
    "CHECKS",
    "Check",
    "ConformanceError",
    "Report",
    "assert_conforms",
    "check",
    "check_cutoff",
    "check_extensivity",
    "check_periodic",
    "random_sample",
]
