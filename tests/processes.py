"""Start the processes of tests so that none outlives its test, whatever becomes of that.

Each carries a mark in its environment, and so do all that it starts, in whatever session or group (torch's launcher makes
one for each rank): by the mark they are found and killed. Run as a program, this is the watcher that does so for a pytest
that was itself killed.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psutil

MARK = "ANIMA_TEST_PROCESS"
HANGS = 900.0  # seconds, on the slowest machine: no test decides by the clock, this ends what never would
SHELLS_IGNORE = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def started(command: list, **options: Any) -> Iterator[subprocess.Popen]:
    """Start a process, as `subprocess.Popen` does, that ends with all of its own when the block is left."""
    name, _ = watcher()
    mark = f"{name}-{uuid.uuid4().hex}"
    environment = {**os.environ, **options.pop("env", {}), MARK: mark}
    with signals_not_ignored():
        process = subprocess.Popen([str(part) for part in command], env=environment, start_new_session=True, **options)
    with process:
        try:
            yield process
        finally:
            process.kill()
            kill_marked(mark)


def run(command: list, timeout: float = HANGS, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a process to its end; what it writes is captured as text."""
    captured = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
    with started(command, **(captured | options)) as process:
        out, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen | None = None, every: float = 0.02) -> None:
    """Look every so many seconds until something is so; fail at once when the process that should make it so has ended."""
    last_resort = time.monotonic() + HANGS
    while True:
        ended = process is not None and process.poll() is not None
        if condition():
            return
        assert not ended, f"it ended before, with status {process.returncode}"
        assert time.monotonic() < last_resort, f"not within {HANGS:.0f} seconds"
        time.sleep(every)


@contextlib.contextmanager
def signals_not_ignored() -> Iterator[None]:
    """Let what is started here begin with the system's own signal handlers, as from a terminal.

    nohup, and a shell that starts a background job, have some ignored, and a child inherits that; a handler it does not.
    """
    ignored = [number for number in SHELLS_IGNORE if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


@functools.cache
def watcher() -> tuple[str, subprocess.Popen]:
    """Start what kills the processes that this one leaves: it waits for the other end of its pipe to close.

    Returns what all their marks begin with, and the watcher, which must be kept: its pipe closes with it.
    """
    name = uuid.uuid4().hex
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    return name, subprocess.Popen([sys.executable, __file__, name], stdin=subprocess.PIPE, **silent)


def kill_marked(mark: str) -> None:
    """Kill every process whose mark begins so, until twice none is found: a process has no environment while it execs."""
    looks = 2
    while looks:
        found = [process for process in psutil.process_iter() if mark_of(process).startswith(mark)]
        looks = 2 if found else looks - 1
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.01)


def mark_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARK, "")
    except (psutil.Error, OSError):  # another user's, or gone
        return ""


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows sends Ctrl-C to all processes of a console
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1])
