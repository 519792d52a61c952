"""python -m anima_core train | check | demo | inspect | convert

Exit status: 0 success, 1 a failure in the run, 2 a refused setting or file, 130 interrupted (state saved first).
"""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .compat.arguments import Parser, add_arguments, data_request_from, parse, request_from, write_config
from .errors import AnimaError, Interrupted, SettingError

SHOWN, EVERY = 3, 10**9  # names beside a count


def main(argv: list[str] | None = None) -> int:
    end_like_ctrl_c(signal.SIGTERM)
    end_like_ctrl_c(signal.SIGINT)  # a shell starts background jobs with Ctrl-C ignored
    try:
        args = parse(build_parser(), argv)
        args.run(args)
        return 0
    except AnimaError as error:
        print(f"anima: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("anima: interrupted", file=sys.stderr)
        return Interrupted.exit_status


def end_like_ctrl_c(number: int) -> None:
    """A polite kill saves the state as Ctrl-C does. Only the main thread may say so."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.default_int_handler)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="anima_core", description="Train LoRA and LoKr adapters for Anima.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="train | check | demo | inspect | convert")
    train = commands.add_parser("train", help="train an adapter", allow_abbrev=False)
    add_arguments(train)
    train.set_defaults(run=run_train)
    check = commands.add_parser("check", help="look through the pictures and captions of a training", allow_abbrev=False)
    check.add_argument("folder", nargs="?", default="", help="a folder of captioned pictures; or give training's data flags")
    check.add_argument("--all", action="store_true", help="name every file, not the first three of each kind")
    add_arguments(check)
    check.set_defaults(run=run_check)
    demo = commands.add_parser("demo", help="tiny random models, drawn pictures, a real training, in two minutes")
    demo.add_argument("--output_dir", default="demo", help="where everything is written")
    demo.add_argument("--steps", type=int, default=0, help="0: as many as the demo needs")
    demo.set_defaults(run=run_demo)
    inspect = commands.add_parser("inspect", help="what is in an adapter file")
    inspect.add_argument("adapter")
    inspect.set_defaults(run=run_inspect)
    convert = commands.add_parser("convert", help="rename an adapter's keys between the two families")
    convert.add_argument("adapter")
    convert.add_argument("--to", required=True, choices=("diffusion_model", "lora_unet"))
    convert.add_argument("--output", required=True, help="the file to write")
    convert.set_defaults(run=run_convert)
    return parser


def run_train(args: argparse.Namespace) -> None:
    request = request_from(args)
    for note in request.notes:
        print(f"note: {note}", file=sys.stderr)
    if request.output_config:
        path = Path(request.config.output.dir) / f"{request.config.output.name}.toml"
        write_config(request.config, path)
        print(f"settings written: {path}")
        return
    from .training.loop import train  # after the settings are known to be good: importing torch takes seconds

    with ProgressBar() as bar, tensorboard(request.tensorboard) as board:
        result = train(request.config, lambda event: bar.on_event(event) or board(event))
    print(f"{result.stop_reason} after {result.steps} steps: {result.adapter_path}")


def run_check(args: argparse.Namespace) -> None:
    """Exit status 2 when nothing can be trained on, or in strict mode when there is any warning."""
    if args.folder:
        args.train_data_dir = args.folder
    request = data_request_from(args)
    for note in request.notes:
        print(f"note: {note}", file=sys.stderr)
    from .data.doctor import cache_beside, check_datasets, sheet
    from .models.tokenizers import comfyui_tokenizers, load_t5_tokenizer
    from .training.events import Events

    t5_folder = request.t5_tokenizer_dir or (comfyui_tokenizers() or ("", ""))[1]
    if not t5_folder:
        print("note: captions are not measured in tokens: set --t5_tokenizer_dir", file=sys.stderr)
    cache_dir = Path(request.cache_dir) if request.cache_dir else cache_beside(request.datasets)
    t5 = load_t5_tokenizer(t5_folder) if t5_folder else None
    with ProgressBar() as bar, closing(Events(None, bar.on_event)) as events:
        checked = check_datasets(request.datasets, cache_dir, t5, events.progress)
    reports = [report for _, report in checked]
    print("\n".join(sheet(reports, request.per_step, shown=EVERY if args.all else SHOWN)))
    warnings = sum(len(report.warnings()) for report in reports)
    if request.strict and warnings:
        raise SettingError(f"strict: {warnings} warnings about the data, see above; repair it, or leave --strict off")


@contextmanager
def tensorboard(folder: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A listener that writes each step's numbers as TensorBoard files; without a folder it does nothing."""
    if not folder:
        yield lambda event: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingError("log_with=tensorboard needs the package tensorboard: pip install tensorboard") from None
    writer = SummaryWriter(folder)

    def listener(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            for name in ("loss", "lr", "grad_norm", "seconds", "peak_gb"):
                if event[name] is not None:
                    writer.add_scalar(name, event[name], event["step"])

    try:
        yield listener
    finally:
        writer.close()


def run_demo(args: argparse.Namespace) -> None:
    from .demo import run

    run(Path(args.output_dir), steps=args.steps)


def run_inspect(args: argparse.Namespace) -> None:
    from .adapters.formats import summarise

    for name, value in summarise(args.adapter).items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key}: {item}")
        else:
            print(f"{name}: {value}")


def run_convert(args: argparse.Namespace) -> None:
    from .adapters.formats import convert_file

    count = convert_file(args.adapter, args.output, args.to)
    print(f"{count} tensors renamed to {args.to}: {args.output}")


class ProgressBar:
    """Shows the event stream in the terminal: one bar for each stage, loss, lr, s/step, ETA and memory on the last."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._mean: float | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def on_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self._advance(event["stage"], event["done"], event["total"], unit="it")
        elif kind == "step":
            self._step(event)
        elif kind in ("note", "warning"):
            self._line(f"warning: {event['text']}" if kind == "warning" else event["text"])
        elif kind in ("sample", "checkpoint", "saved"):
            self._line(f"{kind} at step {event['step']}: {event['path']}")

    def _step(self, event: dict[str, Any]) -> None:
        self._advance("training", event["step"], event["total"], unit="step")
        loss = event["loss"]
        if loss is not None:
            self._mean = loss if self._mean is None else 0.98 * self._mean + 0.02 * loss
        shown = {"loss": f"{self._mean:.4f}" if self._mean is not None else "nan", "lr": f"{event['lr']:.2e}"}
        if event["peak_gb"]:
            shown["memory"] = f"{event['peak_gb']:.1f}GB"
        self._bar.set_postfix(shown, refresh=False)

    def _advance(self, stage: str, done: int, total: int, unit: str) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage = stage
            initial = done - 1 if unit == "step" else 0
            self._bar = tqdm(total=total, desc=stage, unit=unit, initial=initial, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def _line(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""
