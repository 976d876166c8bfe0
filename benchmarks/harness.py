"""Time several ways of doing the same thing side by side: in turn, several repeats, medians, ratios to the first."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from equidyn.train.process import keep_memory


def side_by_side(
    ways: Mapping[str, Callable[[], Any]], *, repeats: int = 7, seconds: float = 0.5, warm: int = 2
) -> dict[str, float]:
    """Median seconds of one call of each way; the ways take turns, so that a slow spell of the machine hits all.

    Before that each way is called `warm` times, to compile and to allocate, and once to see how long it takes.
    """
    keep_memory()
    counts = {}
    for name, way in ways.items():
        for _ in range(warm):
            way()
        start = time.perf_counter()
        way()
        counts[name] = max(1, round(seconds / (time.perf_counter() - start)))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                way()
            found[name].append((time.perf_counter() - start) / counts[name])
    return {name: statistics.median(times) for name, times in found.items()}


def training_step(loss: Callable[[], torch.Tensor], model: torch.nn.Module) -> Callable[[], None]:
    """Forward, backward and Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def peak_memory(step: Callable[[], Any], *, warm: int = 1) -> int:
    """Bytes that one call, after `warm` others, has allocated at its fullest moment beyond what was there before."""
    for _ in range(warm):
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(size for _, size in changes), default=0)


def compare_ways(
    ways: Mapping[str, tuple[torch.nn.Module, Callable[[], torch.Tensor]]], size: Mapping[str, Any], *, repeats: int
) -> list[dict[str, Any]]:
    """One row per way (model and loss): forward pass, training step, its peak memory; ratios to the first way."""
    with torch.no_grad():
        forward = side_by_side({name: loss for name, (_, loss) in ways.items()}, repeats=repeats)
    steps = {name: training_step(loss, model) for name, (model, loss) in ways.items()}
    step = side_by_side(steps, repeats=repeats)
    memory = {name: peak_memory(way) for name, way in steps.items()}
    base = next(iter(ways))
    return [
        {
            **size,
            "way": name,
            "forward ms": 1e3 * forward[name],
            "forward ratio": forward[name] / forward[base],
            "step ms": 1e3 * step[name],
            "step ratio": step[name] / step[base],
            "peak MB": memory[name] / 1e6,
            "peak ratio": memory[name] / memory[base],
        }
        for name in ways
    ]


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys as a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)


def write(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write the results and the machine as JSON."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
