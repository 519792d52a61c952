"""The commands of the adapter workshop: merge | resize | scale | blocks | extract | bake."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .compat.arguments import Parser
from .compat.flags import setting_words
from .errors import SettingError
from .progress_bar import ProgressBar

if TYPE_CHECKING:  # importing torch takes seconds: only a command that is run does
    from .adapters.workshop.block_weights import BlockWeights
    from .adapters.workshop.loaded import LoadedAdapter
    from .adapters.workshop.merging import Part
    from .adapters.workshop.resizing import Keep

NAMES = "merge | resize | scale | blocks | extract | bake"
DTYPES = ("fp32", "bf16", "fp16")
WEIGHTS = 'a weight for each block: "0-9=0, 10-27=1", also llm_adapter=0 and other=0; or a list of numbers "0,0,1,…"'
Value = TypeVar("Value", float, str)


def add_workshop_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    merge = command(commands, "merge", run_merge, "make one adapter of several, that does what all do together")
    merge.add_argument("adapters", nargs="+", metavar="adapter")
    add_strengths(merge)
    add_keep(merge, "without it and --energy LoRAs are put side by side, exactly, and their ranks add up")
    merge.add_argument("--base", default="", help="the model's file, which the sum of a DoRA needs")
    resize = command(commands, "resize", run_resize, "bring an adapter to another rank, as LoRA")
    resize.add_argument("adapter")
    add_keep(resize, "layers that need fewer for --energy get fewer")
    scale = command(commands, "scale", run_scale, "make an adapter stronger or weaker, in all or in some blocks")
    scale.add_argument("adapter")
    scale.add_argument("--strength", type=float, default=1.0, help="what the whole adapter is multiplied by")
    scale.add_argument("--block_weights", default="", metavar="TEXT", help=WEIGHTS)
    blocks = command(commands, "blocks", run_blocks, "bring an adapter from Anima's 28 blocks to the 40 of Anima-2.9B, or back")
    blocks.add_argument("adapter")
    blocks.add_argument("--to", type=int, required=True, choices=(28, 40), help="blocks of the model that it shall be for")
    new = "what new blocks get: nothing, a copy of the block before, or half of it, which then keeps half"
    blocks.add_argument("--new", choices=("nothing", "copy", "half"), default="nothing", help=new)
    dropped = "what becomes of the layers of blocks that 28 lack: dropped, or added to the block before"
    blocks.add_argument("--dropped", choices=("drop", "add"), default="drop", help=dropped)
    extract = command(commands, "extract", run_extract, "make an adapter of what a trained model changes in its base")
    extract.add_argument("tuned", help="the trained model's file")
    extract.add_argument("base", help="the file of the model that it began as")
    add_keep(extract, "16 to 128 are usual")
    extract.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the adapter's numbers")
    bake = command(commands, "bake", run_bake, "write a model with adapters in its weights")
    bake.add_argument("model", help="the model's file, in bf16, fp16 or fp32")
    bake.add_argument("adapters", nargs="+", metavar="adapter")
    add_strengths(bake)


def command(
    commands: "argparse._SubParsersAction[Parser]", name: str, run: Callable[[argparse.Namespace], None], what: str
) -> Parser:
    """Add a command that writes a file."""
    parser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False)
    parser.add_argument("--output", required=True, help="the .safetensors file to write")
    parser.add_argument("--force", action="store_true", help="write over a file that is there already")
    parser.set_defaults(run=run)
    return parser


def add_keep(parser: Parser, without: str) -> None:
    parser.add_argument("--rank", type=int, default=0, help=f"rank of each layer by its singular values; {without}")
    share = "share of each layer's energy, the sum of its squares, that its ranks are to hold, such as 0.99"
    parser.add_argument("--energy", type=float, default=1.0, help=share)


def add_strengths(parser: Parser) -> None:
    parser.add_argument("--weights", nargs="+", type=float, metavar="WEIGHT", help="one for each adapter; without it all are 1")
    parser.add_argument("--block_weights", nargs="+", default=[], metavar="TEXT", help=f"for each adapter {WEIGHTS}")


def run_merge(args: argparse.Namespace) -> None:
    from .adapters.workshop.loaded import check_target
    from .adapters.workshop.merging import merge

    check_target(args.output, args.force)
    keep = keep_of(args) if args.rank or args.energy != 1 else None
    with progress("merging") as on_layer:
        found = merge(parts_of(args), keep, args.base, on_layer)
    write(args, found, f"{len(args.adapters)} adapters merged")


def run_resize(args: argparse.Namespace) -> None:
    from .adapters.workshop.loaded import check_target, load_adapter
    from .adapters.workshop.resizing import resize

    check_target(args.output, args.force)
    with progress("resizing") as on_layer:
        found = resize(load_adapter(args.adapter), keep_of(args), on_layer)
    write(args, found, "resized")


def run_scale(args: argparse.Namespace) -> None:
    from .adapters.workshop.loaded import load_adapter
    from .adapters.workshop.scaling import scale

    adapter = load_adapter(args.adapter)
    write(args, scale(adapter, args.strength, weights_of(args.block_weights, adapter)), "scaled")


def run_blocks(args: argparse.Namespace) -> None:
    from .adapters.workshop.conversion import convert_blocks
    from .adapters.workshop.loaded import load_adapter

    write(args, convert_blocks(load_adapter(args.adapter), args.to, args.new, args.dropped), f"converted to {args.to} blocks")


def run_extract(args: argparse.Namespace) -> None:
    from .adapters.workshop.extracting import extract
    from .adapters.workshop.loaded import check_target
    from .models.checkpoint import DTYPES as TORCH_DTYPES

    check_target(args.output, args.force)
    keep = keep_of(args)
    keep.check("extract")
    with progress("extracting") as on_layer:
        found = extract(args.tuned, args.base, keep, TORCH_DTYPES[args.dtype], on_layer)
    write(args, found, "extracted")


def run_bake(args: argparse.Namespace) -> None:
    from .adapters.workshop.baking import bake

    with progress("baking") as on_tensor:
        notes(bake(args.model, parts_of(args), args.output, args.force, on_tensor))
    print(f"baked: {args.output}")


def keep_of(args: argparse.Namespace) -> "Keep":
    from .adapters.workshop.resizing import Keep

    return Keep(args.rank, args.energy)


def parts_of(args: argparse.Namespace) -> "list[Part]":
    """Read the adapters of a command with their weights. Raises SettingError for another number of weights; FileError."""
    from .adapters.workshop.loaded import load_adapter
    from .adapters.workshop.merging import Part

    weights = each(args.weights or [], len(args.adapters), "--weights", 1.0)
    texts = each(args.block_weights, len(args.adapters), "--block_weights", "")
    adapters = [load_adapter(path) for path in args.adapters]
    return [Part(found, weight, weights_of(text, found)) for found, weight, text in zip(adapters, weights, texts)]


def each(values: Sequence[Value], count: int, flag: str, default: Value) -> Sequence[Value]:
    if values and len(values) != count:
        raise SettingError(f"{flag}: {len(values)} for {count} adapters; give one for each")
    return values or [default] * count


def weights_of(text: str, adapter: "LoadedAdapter") -> "BlockWeights":
    from .adapters.workshop.block_weights import read_block_weights

    return read_block_weights(text, adapter.blocks, "--block_weights")


def write(args: argparse.Namespace, adapter: "LoadedAdapter", what: str) -> None:
    from .adapters.workshop.loaded import write_adapter

    notes(adapter.said)
    write_adapter(args.output, adapter, args.force)
    size = Path(args.output).stat().st_size / 1e6
    print(f"{what}: {len(adapter.layers)} layers, {size:.1f} MB: {args.output}")


def notes(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"note: {line}", file=sys.stderr)


@contextmanager
def progress(stage: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what moves a bar: done, total."""
    from .training.events import Events

    with ProgressBar(setting_words()) as bar, closing(Events(None, bar.on_event)) as events:
        yield events.progress(stage)
