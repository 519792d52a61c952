"""Work that threads do ahead of whoever needs it, in order: decoding pictures while a model is busy."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WORKERS = min(8, os.cpu_count() or 1)  # Pillow, hashlib and NumPy let go of Python's lock
JOBS_AHEAD = 64  # begun or waiting
BYTES_AHEAD = 1 << 30  # that these may take together

Job = TypeVar("Job")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    size: Callable[[Job], int] = lambda job: 0,
    workers: int = WORKERS,
) -> Generator[Result, None, None]:
    """Yield `function(job)` of each job, in order, made ahead of time by so many threads; 0 makes each when it is asked for.

    size: bytes that a job takes at most, until its result is asked for. At most BYTES_AHEAD and JOBS_AHEAD are ahead, but
    always one. What a job raises is raised in its turn. Closing the iterator drops what has not begun and waits for the rest.
    """
    if workers == 0:
        yield from map(function, jobs)
        return
    waiting: deque[tuple[int, Future[Result]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="anima-ahead")
    try:
        for job in jobs:
            needed = size(job)
            while waiting and (len(waiting) == JOBS_AHEAD or held + needed > BYTES_AHEAD):
                freed, future = waiting.popleft()
                held -= freed
                yield future.result()
            waiting.append((needed, pool.submit(function, job)))
            held += needed
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)
