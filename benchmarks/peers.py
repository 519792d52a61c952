"""One training step, ours beside others', in one process: ComfyUI's class, the way of sd-scripts, and the bare floor.

Run it with ComfyUI's interpreter, in this repository's folder:
    <ComfyUI>/.venv/bin/python -m benchmarks.peers [--px 1024 --network lora lokr lokr_full --level keep checkpoint]
ComfyUI is looked for in $COMFYUI_PATH, else in comfy-cli's default place; without one that form is left out. Repeats go round
all forms, so that a machine with other work slows all of them: the ratios are what to look at. Seconds on the CPU are of
processor time; with OMP_NUM_THREADS=1 they hold on a machine that is shared. Bytes, FLOPs and launches are counted on the meta
device, at all 28 blocks and in bf16, whatever is timed.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

from anima_core.demo.random_transformer import REAL, TINY
from anima_core.models.checkpoint import DTYPES
from anima_core.speed.forms import LEVELS

from .floor import ADAPTERS, Floor
from .machine import RESULTS, best_device, environment, find_checkout, peaks_of, seconds_of, write_report
from .peer_forms import ComfyStep, PeerStep, SdScriptsStep, prepare_comfyui
from .training_step import META, Case, OurStep, batch_of, count, leave_zero, random_weights

Form = Floor | OurStep | PeerStep


def forms_of(case: Case, levels: list[str], device: torch.device, comfyui: bool) -> dict[str, Form]:
    """The floor first; all others share one set of weights and one batch."""
    weights, batch = random_weights(case, device), batch_of(case, device)
    forms: dict[str, Form] = {Floor.name: Floor(case, device)}
    for level in levels:
        forms[f"ours, {level}"] = OurStep(replace(case, level=level), weights, batch)
    forms["ours, slow forms"] = OurStep(replace(case, plain=True), weights, batch)
    if comfyui:
        forms[ComfyStep.name] = ComfyStep(case, weights, batch, device)
    forms[SdScriptsStep.name] = SdScriptsStep(case, weights, batch, device)
    steps = {name: form for name, form in forms.items() if not isinstance(form, Floor)}
    if device != META:
        check_agreement({name: step.forward().item() for name, step in steps.items()})
    for step in steps.values():
        leave_zero(step.zeros())
    return forms


def check_agreement(losses: dict[str, float]) -> None:
    """Before training all forms are the same model, and must answer alike."""
    if max(losses.values()) > 1.01 * min(losses.values()):
        sys.exit(f"the forms do not compute the same: losses {losses}")


def timed(forms: dict[str, Form], device: torch.device, repeats: int) -> dict[str, dict]:
    """Seconds of each form after a warm-up, which also tells its peak bytes; the order turns with each round."""
    names = list(forms)
    peaks = {name: peaks_of(forms[name], device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(seconds_of(forms[name], device))
    return {name: {"seconds": seconds[name], **times(seconds, name), **peaks[name]} for name in names}


def times(seconds: dict[str, list[float]], name: str) -> dict[str, float]:
    """Median, and the median over the rounds of its ratio to the floor in the same round."""
    ratios = [mine / floor for mine, floor in zip(seconds[name], seconds[Floor.name])]
    return {"median_s": statistics.median(seconds[name]), "min_s": min(seconds[name]), "to_floor": statistics.median(ratios)}


def line(name: str, row: dict) -> str:
    work = f"{row['flops'] / 1e12:8.2f} {row['launches']:9,} {row['moved'] / 1e9:9.1f} {row['peak'] / 1e9:8.2f}"
    measured = f"{row['above'] / 1e9:9.2f}" if "above" in row else ""
    return f"{name:20} {row['median_s']:9.3f} {row['min_s']:9.3f} {row['to_floor']:8.2f} {work} {measured}"


HEAD = (
    f"{'':20} {'median s':>9} {'min s':>9} {'x floor':>8} {'TFLOP':>8} {'launches':>9} {'GB moved':>9} {'peak GB':>8}"
    f" {'above GB':>9}"
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=best_device())
    parser.add_argument("--network", nargs="+", choices=list(ADAPTERS), default=["lora", "lokr", "lokr_full"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--px", type=int, default=None, help="side; 1024 on CUDA, else 512")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--level", nargs="+", choices=LEVELS, default=["keep", "cheap", "checkpoint"], help="of our blocks, a row each"
    )
    parser.add_argument("--blocks", type=int, help="that are timed; all 28 on CUDA, else 2")
    parser.add_argument("--dtype", choices=list(DTYPES), help="bf16 on CUDA, else fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-comfyui", action="store_true", help="leave out ComfyUI's class, and need no ComfyUI")
    parser.add_argument("--tiny", action="store_true", help="a model of toy size, to try this command out")
    parser.add_argument("--out", type=Path, help="JSON; default benchmarks/results/peers_<device>.json")
    return parser.parse_args()


def case_of(args: argparse.Namespace, network: str) -> Case:
    cuda, sizes = args.device.type == "cuda", TINY if args.tiny else REAL
    return Case(
        network=network,
        rank=args.rank,
        px=args.px or (1024 if cuda else 512),
        batch=args.batch,
        blocks=args.blocks or (sizes.blocks if cuda else 2),
        dtype=args.dtype or ("bf16" if cuda else "fp32"),
        sizes=sizes,
    )


def compare(case: Case, args: argparse.Namespace) -> dict[str, dict]:
    whole = replace(case, blocks=case.sizes.blocks, dtype="bf16")
    comfyui = not args.no_comfyui
    work = {name: count(form) for name, form in forms_of(whole, args.level, META, comfyui).items()}
    measured = timed(forms_of(case, args.level, args.device, comfyui), args.device, args.repeats)
    return {name: {**work[name], **measured[name]} for name in work}


def main() -> None:
    args = arguments()
    checkout = None if args.no_comfyui else find_checkout()
    if checkout is not None:
        prepare_comfyui(checkout, args.device)
    report: dict = {"environment": environment(args.device, checkout), "cases": []}
    for network in args.network:
        case = case_of(args, network)
        print(f"\n{network}, {case.px} px, batch {case.batch}, {case.blocks} blocks timed in {case.dtype}\n{HEAD}", flush=True)
        rows = compare(case, args)
        for name, row in rows.items():
            print(line(name, row), flush=True)
        report["cases"].append({**case.facts(), "counted": {"blocks": case.sizes.blocks, "dtype": "bf16"}, "forms": rows})
    write_report(report, args.out or RESULTS / f"peers_{args.device.type}.json")


if __name__ == "__main__":
    main()
