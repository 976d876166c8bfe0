"""Blocks of trajectories spread over processes that write into one shared array."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from equidyn.simulate.systems import Array

Job = TypeVar("Job")
Advance = Callable[[int], None]
"""Called with the number of frames stored since the last call."""
Progress = Callable[[int, int], None]
"""Called with the number of frames stored so far and the number of frames in all."""
Work = Callable[[Job, Array, Advance], None]

# Set in worker processes only: the array to fill, and the number of frames stored so far by all workers.
_out: Array
_counter: Any


def available_workers() -> int:
    """Processes that can run at once: the cores this process may use, or 1 where forking is unsafe or forbidden.

    Workers call NumPy alone, so forking is safe beside PyTorch's threads; elsewhere than on Linux it is not, and
    starting fresh interpreters would run an unguarded user script again.
    """
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0))


def run_blocks(
    work: Work[Job], jobs: Sequence[Job], shape: tuple[int, ...], workers: int, progress: Callable[[int], None]
) -> Array:
    """Let every job fill its part of an array; the result does not depend on the number of workers.

    Args:
        work: module-level function of a job, the array and a callback that counts stored frames.
        jobs: picklable descriptions of the blocks.
        shape: of the array, float64.
        workers: number of processes; 1 works in this one.
        progress: called with the number of frames stored so far by all blocks.
    """
    if workers > 1 and len(jobs) > 1:
        return _run_forked(work, jobs, shape, workers, progress)
    out, stored = np.empty(shape), 0

    def advance(frames: int) -> None:
        nonlocal stored
        stored += frames
        progress(stored)

    for job in jobs:
        work(job, out, advance)
    return out


def _run_forked(
    work: Work[Job], jobs: Sequence[Job], shape: tuple[int, ...], workers: int, progress: Callable[[int], None]
) -> Array:
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    # Forked workers write where we read: sending the frames back through a pipe would cost a fifth of the time.
    shared = np.frombuffer(mmap.mmap(-1, 8 * math.prod(shape)), dtype=np.float64).reshape(shape)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_inherit, initargs=(shared, counter))
    try:
        pending = {pool.submit(_work_in_child, work, job) for job in jobs}
        while pending:
            done, pending = wait(pending, timeout=0.1, return_when="FIRST_COMPLETED")
            progress(counter.value)
            for future in done:
                future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return shared.copy()  # memory of this process alone, as any other array


def _inherit(shared: Array, counter: Any) -> None:
    global _out, _counter
    _out, _counter = shared, counter


def _work_in_child(work: Work[Job], job: Job) -> None:
    def advance(frames: int) -> None:
        with _counter.get_lock():
            _counter.value += frames

    work(job, _out, advance)
