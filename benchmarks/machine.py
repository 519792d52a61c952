"""What all benchmarks need of the machine: its name, its clock, its memory, the ComfyUI on it."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from anima_core.files import write_whole

RESULTS = Path(__file__).parent / "results"


def environment(device: torch.device, checkout: Path | None = None) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    found = {
        "device": name,
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if checkout is not None:
        found["comfyui"] = (checkout / "comfyui_version.py").read_text(encoding="utf-8").split('"')[-2]
    return found


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_checkout() -> Path:
    checkout = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    if not (checkout / "comfy" / "ldm" / "wan" / "vae.py").is_file():
        sys.exit(f"{checkout}: no ComfyUI there; set COMFYUI_PATH to its checkout")
    return checkout


def start_comfyui(checkout: Path, device: torch.device, *options: str) -> None:
    """Make ComfyUI's packages importable. It reads its options when it is imported, and needs its own interpreter."""
    sys.argv = [sys.argv[0], *(["--cpu"] if device.type == "cpu" else []), *options]
    sys.path.insert(0, str(checkout))
    import comfy.options

    comfy.options.enable_args_parsing()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it; on the CPU of processor time, all threads together, whatever else runs there."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronise(device)
    begin = clock()
    work()
    synchronise(device)
    return clock() - begin


def peaks_of(work: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Bytes that torch allocated and reserved at most, and allocated above what was there; nothing where it does not tell."""
    if device.type != "cuda":
        work()
        return {}
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    most = torch.cuda.max_memory_allocated(device)
    return {"allocated": most, "reserved": torch.cuda.max_memory_reserved(device), "above": most - before}


def write_report(report: dict, out: Path) -> None:
    write_whole(out, json.dumps(report, indent=1) + "\n", durable=False)
