"""What our training step costs: seconds, pictures a second, memory, FLOPs, launches, and its share of the bare floor.

    python -m benchmarks.step [--network lora lokr lokr_full --px 512 1024 --batch 1 4 8 --level keep checkpoint]
On CUDA the real model is timed, of random weights. On the CPU all cases are counted, on the meta device at the real shapes in
bf16 with the kernels that CUDA has, and those of one picture of at most 512 px are timed, in fp32 on a model of fewer blocks.
"""

import argparse
import gc
import itertools
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from anima_core.demo.random_transformer import REAL, TINY
from anima_core.models.checkpoint import DTYPES
from anima_core.speed.forms import LEVELS

from .floor import Floor, analytic_flops
from .machine import RESULTS, best_device, environment, peaks_of, seconds_of, write_report
from .training_step import META, NETWORKS, Case, OurStep, batch_of, count, first_step, random_weights

CPU_TOKENS = 1024  # of a micro-batch, at most, that the CPU is made to compute


def counted(case: Case) -> dict:
    """The whole model in bf16 on the meta device. u: what a block keeps, in tensors of N x D."""
    whole = replace(case, blocks=case.sizes.blocks, dtype="bf16")
    step = OurStep(whole, random_weights(whole, META), batch_of(whole, META))
    found = count(step)
    u = whole.batch * whole.tokens * whole.sizes.width * DTYPES[whole.dtype].itemsize
    return {**found, "kept_u_per_block": found["kept"] / u / whole.blocks, "analytic_flops": analytic_flops(whole)}


def timed(case: Case, device: torch.device, repeats: int) -> dict:
    """Seconds of the step and of its bare floor in turn. On CUDA also peak bytes, with all that is resident."""
    step, build_s, first_s = first_step(case, device)
    peaks = peaks_of(step, device)
    floor = Floor(case, device)
    floor()
    pairs = [(seconds_of(step, device), seconds_of(floor, device)) for _ in range(repeats)]
    median = statistics.median(seconds for seconds, _ in pairs)
    return {
        "timed_blocks": case.blocks,
        "timed_dtype": case.dtype,
        "build_s": build_s,
        "first_step_s": first_s,
        "seconds": [seconds for seconds, _ in pairs],
        "floor_seconds": [seconds for _, seconds in pairs],
        "median_s": median,
        "pictures_per_s": case.batch / median,
        "share_of_floor": statistics.median(floor / seconds for seconds, floor in pairs),
        **peaks,
    }


def measure(case: Case, device: torch.device, repeats: int) -> dict:
    row = {**case.facts(), **counted(case)}
    if device.type == "cuda" or case.batch * case.tokens <= CPU_TOKENS:
        try:
            row |= timed(case, device, repeats)
        except torch.OutOfMemoryError as error:
            row["error"] = str(error).partition("\n")[0]
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return row


HEAD = (
    f"{'network':>10} {'rank':>4} {'px':>5} {'b':>2} {'level':>10} {'TFLOP':>7} {'floor T':>7} {'launches':>8} {'GB moved':>8}"
    f" {'u kept':>6} {'peak GB':>7} {'s':>8} {'pic/s':>7} {'of floor':>8} {'first s':>8} {'alloc.':>7} {'reserved':>8}"
)


def line(row: dict) -> str:
    case = f"{row['network']:>10} {row['rank']:4} {row['px']:5} {row['batch']:2} {row['level']:>10}"
    work = f"{row['flops'] / 1e12:7.2f} {row['analytic_flops'] / 1e12:7.2f} {row['launches']:8,} {row['moved'] / 1e9:8.1f}"
    text = f"{case} {work} {row['kept_u_per_block']:6.2f} {row['peak'] / 1e9:7.2f}"
    if "error" in row:
        return f"{text} {row['error']}"
    if "median_s" not in row:
        return text
    first = row["build_s"] + row["first_step_s"]
    text += f" {row['median_s']:8.3f} {row['pictures_per_s']:7.3f} {row['share_of_floor']:8.0%} {first:8.2f}"
    return f"{text} {row['allocated'] / 1e9:7.2f} {row['reserved'] / 1e9:8.2f}" if "allocated" in row else text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=best_device())
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=["lora", "lokr", "lokr_full"])
    parser.add_argument("--rank", type=int, nargs="+", default=[32])
    parser.add_argument("--px", type=int, nargs="+", default=[512, 1024], help="side of the square pictures")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--level", nargs="+", choices=LEVELS, default=list(LEVELS), help="what all blocks keep")
    parser.add_argument("--blocks", type=int, help="that are timed; all 28 on CUDA, else 2")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of what is timed; bf16 on CUDA, else fp32")
    parser.add_argument("--plain", action="store_true", help="ours in the slow obvious forms that the fast ones are tested by")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a model of toy size, to try this command out")
    parser.add_argument("--out", type=Path, help="JSON; default benchmarks/results/step_<device>.json")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    cuda, sizes = args.device.type == "cuda", TINY if args.tiny else REAL
    blocks, dtype = args.blocks or (sizes.blocks if cuda else 2), args.dtype or ("bf16" if cuda else "fp32")
    report: dict = {"environment": environment(args.device), "cases": []}
    out = args.out or RESULTS / f"step_{args.device.type}.json"
    print(HEAD, flush=True)
    for network, rank, px, batch, level in itertools.product(args.network, args.rank, args.px, args.batch, args.level):
        case = Case(network, rank, px, batch, level, blocks, dtype, args.plain, sizes)
        row = measure(case, args.device, args.repeats)
        report["cases"].append(row)
        print(line(row), flush=True)
        write_report(report, out)  # after each case: one that ends the process costs no other


if __name__ == "__main__":
    main()
