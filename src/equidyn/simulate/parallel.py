"""Blocks of trajectories spread over processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]

_counter: Any = None  # frames stored so far, shared with the worker processes


def available_workers() -> int:
    """Processes that can run at once: the cores this process may use, or 1 where forking is unsafe or forbidden.

    Workers call NumPy alone, so forking is safe beside PyTorch's threads; elsewhere than on Linux it is not, and
    starting fresh interpreters would run an unguarded user script again.
    """
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0))


def run_blocks(
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Sequence[Job],
    workers: int,
    progress: Callable[[int], None],
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as blocks finish; the results do not depend on the number of workers.

    Args:
        work: module-level function of a job and a callback that counts stored frames.
        jobs: picklable descriptions of the blocks.
        workers: number of processes; 1 works in this one.
        progress: called with the number of frames stored so far by all blocks.
    """
    if workers == 1 or len(jobs) == 1:
        yield from _run_here(work, jobs, progress)
        return
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_share, initargs=(counter,))
    try:
        pending: dict[Future[Result], Job] = {pool.submit(_work_counted, work, job): job for job in jobs}
        while pending:
            done, _ = wait(pending, timeout=0.1, return_when="FIRST_COMPLETED")
            progress(counter.value)
            for future in done:
                yield pending.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_here(
    work: Callable[[Job, Callable[[int], None]], Result], jobs: Sequence[Job], progress: Callable[[int], None]
) -> Iterator[tuple[Job, Result]]:
    stored = 0

    def advance(frames: int) -> None:
        nonlocal stored
        stored += frames
        progress(stored)

    for job in jobs:
        yield job, work(job, advance)


def _share(counter: Any) -> None:
    global _counter
    _counter = counter


def _work_counted(work: Callable[[Job, Callable[[int], None]], Result], job: Job) -> Result:
    def advance(frames: int) -> None:
        with _counter.get_lock():
            _counter.value += frames

    return work(job, advance)
