"""What the first and the second look at a large folder cost: `python -m benchmarks.scan --pictures 100000`.

Draws distinct JPEGs with captions, then scans and buckets them in fresh processes: time, peak memory, and what an
interruption in the middle keeps. Writes JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = [(1.0, 1.0), (1.25, 0.75), (0.75, 1.25)]


def write_pictures(folder: Path, count: int, side: int = 64) -> None:
    """JPEGs, each a cut-out of one coloured ground that no other has, and captions; an hour old."""
    folder.mkdir(parents=True, exist_ok=True)
    then = time.time() - 3600
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    ground = Image.fromarray(colours).resize((4 * side + 400, 4 * side + 400), Image.Resampling.BICUBIC)
    for number in range(count):
        width, height = (round(side * part) for part in SHAPES[number % len(SHAPES)])
        left, top = number % 397, number // 397
        path = folder / f"{number:06d}.jpg"
        ground.crop((left, top, left + width, top + height)).save(path, "JPEG", quality=80)
        path.with_suffix(".txt").write_text(f"1girl, solo, number {number}, blue eyes, standing, outdoors", encoding="utf-8")
        os.utime(path, (then, then))
        os.utime(path.with_suffix(".txt"), (then, then))


def look(folder: Path, cache: Path, stop_after: int = 0) -> dict:
    """Scan and bucket in this process -> seconds, peak memory. stop_after: so many files read, interrupt it."""
    from anima_core.data.batches import Batches, build_items
    from anima_core.data.check import check_datasets
    from anima_core.settings import DatasetConfig, SubsetConfig

    datasets = (DatasetConfig((SubsetConfig(str(folder)),), ((64, 64),), min_bucket_reso=32, bucket_reso_steps=16),)
    before, started, told = peak_mb(), time.perf_counter(), []

    def stage(name):
        def progress(done: int, total: int) -> None:
            told.append(done)
            if stop_after and done >= stop_after:
                raise KeyboardInterrupt

        return progress

    result = {}
    try:
        ((pictures, report),) = check_datasets(datasets, cache, None, stage)
        result = {"pictures": report.pictures, "buckets": len(report.tables), "scan_seconds": time.perf_counter() - started}
        Batches(build_items(datasets, (pictures,)), datasets, seed=0)
    except KeyboardInterrupt:
        result["interrupted_after_files"] = told[-1]
    return result | {
        "seconds": time.perf_counter() - started,
        "progress_reports": len(told),
        "files_read": told[-1] if told else 0,
        "peak_mb": peak_mb(),
        "peak_mb_before": before,
    }


def peak_mb() -> float:
    import resource  # Windows has none, and draws the pictures only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def in_a_fresh_process(folder: Path, cache: Path, stop_after: int = 0) -> dict:
    command = [sys.executable, "-m", "benchmarks.scan", "--look", str(folder), str(cache), str(stop_after)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(count: int, side: int) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache, other = (Path(temporary) / name for name in ("pictures", "cache", "cache2"))
        write_pictures(folder, count, side)
        first = in_a_fresh_process(folder, cache)
        second = in_a_fresh_process(folder, cache)
        cut = in_a_fresh_process(folder, other, stop_after=first["files_read"] // 2)
        rest = in_a_fresh_process(folder, other)
    quicker = first["seconds"] / second["seconds"]
    return {
        "pictures": count,
        "side": side,
        "first": first,
        "second": second,
        "second_is_quicker_by": quicker,
        "interrupted": cut,
        "after_interruption": rest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256, 512], help="px; the smaller, the harder to beat")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--look", nargs=3, metavar=("FOLDER", "CACHE", "STOP_AFTER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.look:
        print(json.dumps(look(Path(args.look[0]), Path(args.look[1]), int(args.look[2]))))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}"
    text = json.dumps({"machine": machine, "runs": [measure(args.pictures, side) for side in args.sides]}, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
