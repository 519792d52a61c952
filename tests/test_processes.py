"""What tests start is gone afterwards, and begins as if from a terminal."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from . import processes
from .conftest import needs_signals

ROOT = Path(__file__).resolve().parents[1]
SLEEP = "import time; time.sleep(10**6)"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
PYTEST = f"""
import os, sys
from tests.processes import started
with started([sys.executable, "-c", {SLEEP!r}]) as child:
    print(child.pid, flush=True)
    os._exit(9)
"""


def runs(pid: int) -> bool:
    try:
        return processes.mark_of(psutil.Process(pid)) != ""
    except psutil.NoSuchProcess:
        return False


def test_a_process_ends_with_all_that_it_started_when_a_test_fails():
    with pytest.raises(KeyboardInterrupt):
        with processes.started([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
            child = int(parent.stdout.readline())
            processes.wait_until(lambda: runs(parent.pid) and runs(child), parent)
            raise KeyboardInterrupt
    assert not runs(parent.pid) and not runs(child)


def test_what_a_killed_pytest_leaves_is_killed():
    with processes.started([sys.executable, "-c", PYTEST], cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        child = int(killed.stdout.readline())
        assert killed.wait(processes.HANGS) == 9
        processes.wait_until(lambda: not runs(child))


@needs_signals
def test_no_signal_is_ignored_in_what_is_started():
    for number in processes.SHELLS_IGNORE:
        signal.signal(number, signal.SIG_IGN)
    look = "import signal; print([s.name for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN])"
    ignored = processes.run([sys.executable, "-c", look]).stdout
    assert not any(number.name in ignored for number in processes.SHELLS_IGNORE), ignored
    assert all(signal.getsignal(number) == signal.SIG_IGN for number in processes.SHELLS_IGNORE)


def test_waiting_fails_when_the_process_has_ended():
    with processes.started([sys.executable, "-c", "raise SystemExit(3)"]) as ended:
        with pytest.raises(AssertionError, match="it ended before, with status 3"):
            processes.wait_until(lambda: False, ended)
