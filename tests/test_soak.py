"""Nothing grows over many steps, saves, previews, stops and resumes; and a large folder is read once."""

import json
import os
import sys
from pathlib import Path

import pytest

from . import processes

pytestmark = [pytest.mark.faults, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc, which only Linux has")
def test_memory_files_threads_and_temporary_files_stay_flat():
    """1800 steps here; the long run's figures are in benchmarks/results/soak.json."""
    done = processes.run([sys.executable, "-m", "benchmarks.soak", "--steps", "1800"], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["steps"] >= 1800 and result["grew"] == []


@pytest.mark.skipif(os.name == "nt", reason="measures memory through the module resource, which Windows has not")
def test_a_large_folder_is_read_once_in_bounded_memory():
    """3000 pictures here; a hundred thousand are in benchmarks/results/scan.json."""
    done = processes.run([sys.executable, "-m", "benchmarks.scan", "--pictures", "3000", "--sides", "64"], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = json.loads(done.stdout)["runs"]
    assert result["first"]["files_read"] == 6000 and result["second"]["files_read"] == 0
    assert result["first"]["pictures"] == result["second"]["pictures"] == 3000
    assert result["first"]["progress_reports"] > 50
    assert result["first"]["peak_mb"] - result["first"]["peak_mb_before"] < 60
    cut, rest = result["interrupted"]["files_read"], result["after_interruption"]["files_read"]
    assert 0 < cut < 6000 and cut + rest == 6000
