"""Doing many small jobs at once, in threads or processes, so that one that ends its process stops no other."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

__all__ = ["closing_pool", "drain", "open_processes", "run_jobs", "work_ahead"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# starting a process costs about a second, as much as a few dozen files
_FEW_JOBS = 64


def open_processes(workers: int) -> ProcessPoolExecutor:
    """Return a pool of fresh processes that leave Ctrl-C to this one and end with it."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)


def run_jobs(
    jobs: Mapping[str, tuple[Any, ...]],
    work: Callable[..., Any],
    *,
    workers: int,
    collect: Callable[[str, Any], None],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Call `work(*arguments)` for every job, in threads where there are few, else in processes.

    Args:
        jobs: Arguments by the job's key; they, `work` and its result can be pickled.
        work: Does one job, and returns something else than None.
        workers: How many at once, at least 1.
        collect: Told in this thread each key and result, in the order in which they end; the result is
            None where the job ended its process (a decoder that crashed, no memory left).
        progress: Called in this thread with the number of jobs done and the number of all.

    Raises:
        Exception: Whatever `work` raises.
    """
    pending = dict(jobs)

    def finish(key: str, result: Any) -> None:
        del pending[key]
        collect(key, result)
        if progress is not None:
            progress(len(jobs) - len(pending), len(jobs))

    few = len(jobs) < _FEW_JOBS
    try:
        with closing_pool(ThreadPoolExecutor(workers) if few else open_processes(workers)) as pool:
            keys = {pool.submit(work, *arguments): key for key, arguments in jobs.items()}
            for future in as_completed(keys):
                finish(keys[future], future.result())
    except BrokenExecutor:
        _one_by_one(pending, work, finish)


def _one_by_one(pending: Mapping[str, tuple[Any, ...]], work: Callable[..., Any], finish: Callable[..., None]) -> None:
    """Do what is left when a job broke the pool: which one it was shows when each is alone."""
    while pending:
        with closing_pool(open_processes(1)) as pool:
            for key, arguments in list(pending.items()):
                try:
                    result = pool.submit(work, *arguments).result()
                except BrokenExecutor:
                    finish(key, None)
                    break
                finish(key, result)


def work_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, name: str
) -> Generator[Result, None, None]:
    """Call `work` for every item in threads, a few ahead of their use.

    Args:
        work: Does one item.
        items: What to do, in order.
        threads: How many at once, at least 1; twice as many are begun ahead.
        name: Of the threads.

    Yields:
        The results in order. Closing the iterator early ends the threads.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        waiting = iter(items)
        ahead: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(waiting, 2 * threads))
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(work, item) for item in islice(waiting, 1))
                yield result
        finally:
            for future in ahead:
                future.cancel()


@contextmanager
def closing_pool(pool: Executor) -> Iterator[Executor]:
    """Close the pool at the end; when interrupted, drop what it has not begun."""
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def drain(futures: list[Future[Any]], progress: Callable[[int, int], None] | None) -> list[Any]:
    """Wait for all futures, report how many are done, and return their results in order."""
    for i, future in enumerate(as_completed(futures)):
        future.result()
        if progress is not None:
            progress(i + 1, len(futures))
    return [future.result() for future in futures]


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()
