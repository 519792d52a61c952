"""The command line: python -m anima_core train | check | plan | sweep | report | demo | inspect | convert | merge | ….

Exit status: 0 success, 1 a failure in the run, 2 a refused setting or file, 130 interrupted (state saved first).
"""

import argparse
import os
import signal
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from .compat.arguments import Parser, add_arguments, data_request_from, parse, request_from, write_config
from .compat.flags import setting_words
from .errors import AnimaError, FileError, Interrupted, SettingError, in_words, printable
from .files import unused, write_whole
from .grid.command import add_grid_command
from .progress_bar import ProgressBar
from .settings.train import KEY_FORMATS
from .version import __version__
from .workshop_commands import NAMES as WORKSHOP
from .workshop_commands import add_workshop_commands

EVERY_NAME = 10**9  # beside a count in a report
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch 2.9 and newer, all others
MOST_SHOWN = 1000  # characters of one metadata entry


def main(argv: list[str] | None = None) -> int:
    end_like_ctrl_c(signal.SIGTERM)
    end_like_ctrl_c(signal.SIGINT)  # a shell starts background jobs with Ctrl-C ignored
    try:
        args = parse(build_parser(), argv)
        args.run(args)
        return 0
    except AnimaError as error:
        print(f"anima: {error.said(setting_words())}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("anima: interrupted", file=sys.stderr)
        return Interrupted.exit_status


def end_like_ctrl_c(number: int) -> None:
    """Let a signal save the state as Ctrl-C does. Only the main thread may say so."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.default_int_handler)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="anima_core", description="Train adapters for Anima, and work on them.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"anima_core {__version__}")
    own = "train | check | plan | sweep | report | grid | demo | inspect | convert | analyse"
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{own} | {WORKSHOP}")
    train = commands.add_parser("train", help="train an adapter", allow_abbrev=False)
    add_arguments(train)
    train.set_defaults(run=run_train)
    check = commands.add_parser("check", help="scan the pictures and captions of a training", allow_abbrev=False)
    check.add_argument("folder", nargs="?", default="", help="a folder of captioned pictures; or give training's data flags")
    check.add_argument("--all", action="store_true", help="name every file, not the first three of each kind")
    check.add_argument(
        "--captions", type=int, default=0, metavar="N", help="show the captions of N pictures as the first epochs train them"
    )
    add_arguments(check)
    check.set_defaults(run=run_check)
    plan = commands.add_parser("plan", help="how much memory a training would take, and how long a step", allow_abbrev=False)
    plan.add_argument(
        "--card", default="", help='on which card, such as "rtx 3060 12gb", or only "12gb"; without it on this machine'
    )
    add_arguments(plan)
    plan.set_defaults(run=run_plan)
    report = commands.add_parser("report", help="one page about a run: curves, samples, settings, data, how to continue")
    report.add_argument("folder", metavar="run", help="the run's folder, or its name, here or in a folder below")
    report.add_argument("--output", default="", help="the file to write; without it report.html in the run's folder")
    report.set_defaults(run=run_report)
    demo = commands.add_parser("demo", help="tiny random models, drawn pictures, a real training, in two minutes")
    demo.add_argument("--output_dir", default="demo", help="folder of everything that the demo writes")
    demo.add_argument("--steps", type=int, default=0, help="training steps; 0: as many as the demo needs")
    demo.set_defaults(run=run_demo)
    sweep = commands.add_parser("sweep", help="train a grid or a list of settings, and compare them", allow_abbrev=False)
    add_sweep_arguments(sweep)
    add_arguments(sweep)
    sweep.set_defaults(run=run_sweep)
    add_adapter_commands(commands)
    add_workshop_commands(commands)
    add_grid_command(commands)
    return parser


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", nargs="?", default="", help="a sweep file: [sweep] has lists of values, [[points]] single ones")
    vary = "a setting and its values, as network.rank=4,16; several make a grid. Flags of train serve as names, too"
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=A,B", help=vary)
    pick = "the winner: held_out, smoothed_loss, or a point's label; auto: by held-out loss where all points have one"
    parser.add_argument("--pick", default="auto", help=pick)


def add_adapter_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    inspect = commands.add_parser("inspect", help="what is in an adapter file of any trainer")
    inspect.add_argument("adapter")
    inspect.set_defaults(run=run_inspect)
    convert = commands.add_parser("convert", help="rename an adapter's keys between the two families")
    convert.add_argument("adapter")
    convert.add_argument("--to", required=True, choices=KEY_FORMATS)
    convert.add_argument("--output", required=True, help="the file to write")
    convert.set_defaults(run=run_convert)
    analyse = commands.add_parser("analyse", help="how strongly an adapter changes what, and with how much of its rank")
    analyse.add_argument("adapter")
    analyse.add_argument("--with", dest="other", default="", metavar="OTHER", help="another adapter to compare with")
    analyse.add_argument("--base", default="", help="the model's file: strength is then told relative to its weights")
    analyse.add_argument("--output", default="", help="the picture to write; without it <adapter>-analysis.png in this folder")
    analyse.set_defaults(run=run_analyse)


def run_train(args: argparse.Namespace) -> None:
    request = request_from(args)
    for note in request.notes:
        print(f"note: {note}", file=sys.stderr)
    if request.output_config:
        path = Path(request.config.output.dir) / f"{request.config.output.name}.toml"
        write_config(request.config, path)
        print(f"settings written: {path}")
        return
    let_segments_grow()
    from .loggers.listening import listening
    from .training.loop import train  # after the settings are known to be good: importing torch takes seconds

    with ProgressBar(setting_words()) as bar, listening(request.logging, request.config, bar.on_event) as log:

        def listen(event: dict[str, Any]) -> None:
            bar.on_event(event)
            log(event)

        result = train(request.config, listen)
    print(f"{result.stop_reason} after {result.steps} steps: {result.adapter_path}")


def let_segments_grow() -> None:
    """Let torch's memory on the card grow in place, before it takes any: less of it becomes gaps. The user's own setting wins.

    Only on Linux does it know how; in ComfyUI the memory is ComfyUI's to set up.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        os.environ.update(dict.fromkeys(ALLOCATOR, "expandable_segments:True"))


def run_check(args: argparse.Namespace) -> None:
    """Report on the data. Exit status 2 when nothing can be trained on, or in strict mode when there is any warning."""
    if args.folder:
        args.train_data_dir = args.folder
    request = data_request_from(args)
    for note in request.notes:
        print(f"note: {note}", file=sys.stderr)
    from .data.cache_folder import cache_beside
    from .data.check import check_datasets, report_lines
    from .data.held_out import Holding
    from .data.likeness import find_alike
    from .data.report import NAMES_SHOWN
    from .data.tags import tag_lines
    from .models.tokenizers import comfyui_tokenizers, load_t5_tokenizer
    from .training.events import Events

    t5_folder = request.t5_tokenizer_dir or (comfyui_tokenizers() or ("", ""))[1]
    if not t5_folder:
        print("note: captions are not measured in tokens: set --t5_tokenizer_dir", file=sys.stderr)
    cache_dir = Path(request.cache_dir) if request.cache_dir else cache_beside(request.datasets)
    t5 = load_t5_tokenizer(t5_folder) if t5_folder else None
    holding = Holding(request.held_out)
    with ProgressBar(setting_words()) as bar, closing(Events(None, bar.on_event)) as events:
        checked = check_datasets(request.datasets, cache_dir, t5, events.progress, holding)
        find_alike(checked, cache_dir, events.progress)
    held_out, reports = holding.result(request.datasets), [report for _, report in checked]
    lines = report_lines(reports, request.per_step, EVERY_NAME if args.all else NAMES_SHOWN)
    lines += [*held_out.notes, *(f"warning: {line}" for line in held_out.warnings)]
    print("\n".join([*lines, *tag_lines(picture for pictures, _ in checked for picture in pictures)]))
    if args.captions > 0:
        from .data.drawn_captions import example_lines  # loads torch

        pictures = [group for group, _ in checked]
        drawn_by = (request.seed, request.caption_variants, t5)
        print("\n".join(example_lines(request.datasets, pictures, args.captions, *drawn_by)))
    warnings = sum(len(report.warnings()) for report in reports) + len(held_out.warnings)
    if request.strict and warnings:
        raise SettingError(f"strict: {warnings} warnings about the data, see above; repair it, or leave --strict off")


def run_plan(args: argparse.Namespace) -> None:
    """Say how a training would fit a card. No model is loaded; of its files the headers are read."""
    request = request_from(args)
    for note in request.notes:
        print(f"note: {note}", file=sys.stderr)
    from .speed.cards import card_of_text
    from .training.forecast import forecast

    card = card_of_text(args.card, "--card") if args.card else None
    with ProgressBar(setting_words()) as bar:
        lines = forecast(request.config, card, bar.on_event)
    print(in_words("\n".join(lines), setting_words()))


def run_sweep(args: argparse.Namespace) -> None:
    """Train every point of a sweep. Exit status 1 when one of them failed."""
    let_segments_grow()
    from .sweep.command import run

    run(args)


def run_report(args: argparse.Namespace) -> None:
    from .report import find_run, read_story, write_report

    run = read_story(find_run(args.folder, Path()))
    print(f"report: {write_report(run, Path(args.output) if args.output else None)}")


def run_demo(args: argparse.Namespace) -> None:
    from .demo.run import run

    run(Path(args.output_dir), steps=args.steps)


def run_inspect(args: argparse.Namespace) -> None:
    from .adapters.inspection import summarise

    for name, value in summarise(args.adapter).items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key}: {cut(item)}")
        else:
            print(f"{name}: {value}")


def cut(text: str) -> str:
    """Return a text as one line, and a long one shortened: other trainers write tag counts of whole datasets into a file."""
    shown = printable(text[:MOST_SHOWN])
    return shown if len(text) <= MOST_SHOWN else f"{shown}… ({len(text):,} characters)"


def run_convert(args: argparse.Namespace) -> None:
    from .adapters.formats import convert_file

    own, text_encoder = convert_file(args.adapter, args.output, args.to)
    kept = f", {text_encoder} of the text encoder kept as they are" if text_encoder else ""
    print(f"{own} tensors renamed to {args.to}{kept}: {args.output}")


def run_analyse(args: argparse.Namespace) -> None:
    """Print a table and a sentence, and draw the same as a heat-map. A picture that is there already stays."""
    path = analysis_picture(args.adapter, args.output)
    from .adapters.analysis import analyse
    from .adapters.findings import sentence, table
    from .report.heat_map import heat_map

    found = analyse(args.adapter, args.other, args.base)
    print("\n".join([*table(found), *found.left_out, sentence(found)]))
    try:
        write_whole(path, lambda temporary: heat_map(found).save(temporary, format="PNG"))
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None
    print(f"picture: {path}")


def analysis_picture(adapter: str, output: str) -> Path:
    """Return where the picture of an analysis goes. Raises SettingError for another ending, FileError for what is there."""
    if not output:
        free = unused(Path(f"{Path(adapter).stem}-analysis"), lambda path: Path(f"{path}.png").exists())
        return Path(f"{free}.png")
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise SettingError(f"--output {path}: the picture is a PNG; name it so")
    if path.exists():
        raise FileError(f"{path}: is there already; choose another name")
    return path
