"""What a base of 8 bits costs in exactness: `python -m benchmarks.eight_bit`, on any machine. No time is measured.

- Layers: what rounding takes from the weights of each kind of layer, of the real shapes with random numbers, of a tiny model
  after it was trained, or of a checkpoint that is named.
- Gradients: those of all adapters beside the ones on float weights, and beside what bf16 arithmetic alone does to them.
- Curves: the demo's training on each base over seeds, and each adapter's loss on the bf16 base, which people draw with.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from anima_core.adapters.formats import load_into
from anima_core.adapters.network import AdapterNetwork, merge
from anima_core.compat.arguments import config_of
from anima_core.demo.charts import running_mean
from anima_core.demo.files import DemoFiles, write_demo
from anima_core.demo.random_transformer import REAL, TINY, write_random_transformer
from anima_core.demo.run import FLAGS
from anima_core.models.checkpoint import strip_prefix
from anima_core.models.frozen import FloatWeight
from anima_core.models.int8 import error, quantised
from anima_core.models.kept import FREEZABLE
from anima_core.models.llm_adapter import MIN_TEXT_ROWS
from anima_core.models.quantised import read_weights
from anima_core.models.transformer import AnimaTransformer, load_transformer
from anima_core.settings import NetworkConfig, TrainConfig
from anima_core.training.loop import train

from .machine import RESULTS, environment, write_report
from .training_step import Case, in_8_bits, leave_zero, model_of, random_weights

CPU = torch.device("cpu")
BASES = ("fp32", "bf16", "int8")
COLOURS = {"fp32": (120, 120, 120), "bf16": (40, 90, 200), "int8": (200, 60, 40)}
DEMO_BLOCKS = 4  # of which the outer two stay floats


def layer_errors(weights: Iterator[tuple[str, Tensor]]) -> dict[str, dict]:
    """Return, by kind of layer, the share of the norm that rounding takes, and how many rows need finer scales."""
    found = defaultdict(list)
    for name, weight in weights:
        stored = quantised(weight)
        kind = name.partition(".")[2].partition(".")[2].removesuffix(".weight")
        found[kind].append((error(stored, weight.float()), stored.scale.shape[1]) if stored else (None, 0))
    return {kind: summary(rows) for kind, rows in sorted(found.items())}


def summary(rows: list[tuple[float | None, int]]) -> dict:
    errors = [lost for lost, _ in rows if lost is not None]
    return {
        "layers": len(rows),
        "mean_error": statistics.fmean(errors) if errors else None,
        "worst_error": max(errors, default=None),
        "in_groups": sum(groups > 1 for _, groups in rows),
        "left_as_floats": len(rows) - len(errors),
    }


def of_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the float weights of a checkpoint that may be kept in 8 bits."""
    for key, weight in read_weights(path):
        name = strip_prefix(key)
        if FREEZABLE.fullmatch(name) and weight.kind == FloatWeight.kind:
            yield name, weight.numbers(torch.float32, CPU)


def adapter_gradient(model: AnimaTransformer, side: int) -> list[Tensor]:
    """Return the gradients of adapters of random numbers on a random picture, fp32, of each layer."""
    network = AdapterNetwork.inject(model, NetworkConfig(rank=32, alpha=32), 0).train()
    torch.manual_seed(0)
    leave_zero([parameter for _, parameter in network.zero_init_parameters()])
    latents, text = torch.randn(1, 16, side, side), torch.randn(1, MIN_TEXT_ROWS, model.config.context_dim)
    with network.micro_batch(0):
        velocity = model(latents.to(model.dtype), torch.tensor([0.5]), text.to(model.dtype))
        (velocity.float() - torch.randn(velocity.shape)).square().mean().backward()
    gradients = [parameter.grad.float() for parameter in network.parameters()]
    network.eject()
    return gradients


def cosines(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    """Return the cosine of all gradients together, and of the parameter where it is least."""
    products = [(a.double().flatten() @ b.double().flatten()).item() for a, b in zip(ours, theirs, strict=True)]
    sizes = [(a.double().norm() * b.double().norm()).item() for a, b in zip(ours, theirs)]
    norms = [sum(t.double().square().sum().item() for t in tensors) ** 0.5 for tensors in (ours, theirs)]
    return {"all": sum(products) / (norms[0] * norms[1]), "least": min(p / s for p, s in zip(products, sizes))}


def gradients(case: Case, side: int) -> dict:
    """Compare, in fp32 arithmetic, 8 bits with the bf16 numbers that a checkpoint holds; beside it, arithmetic in bf16."""
    weights = {name: weight.float() for name, weight in random_weights(case, CPU).items()}
    reference = adapter_gradient(model_of(case, weights), side)
    ours = adapter_gradient(in_8_bits(model_of(case, weights)), side)
    found = {"int8": cosines(ours, reference)}
    del ours
    half = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    del weights
    return found | {"bf16_arithmetic": cosines(adapter_gradient(model_of(case, half), side), reference)}


def demo_config(files: DemoFiles, folder: Path, base: str, seed: int, steps: int, **more: str) -> TrainConfig:
    places = {"train_data_dir": str(files.pictures), "output_dir": str(folder), "cache_dir": str(folder / "cache")}
    precision = {"mixed_precision": {"fp32": "no"}.get(base, base), "seed": str(seed), "max_train_steps": str(steps)}
    names = {"output_name": f"{base}-{seed}"}
    flags = {n: str(path) for n, path in files.models.items()} | FLAGS | places | precision | names | more
    return config_of([text for name, value in flags.items() for text in (f"--{name}", value)])


def loss_on_bf16(files: DemoFiles, folder: Path, adapter: Path) -> float:
    """Return the mean loss of an adapter on the bf16 base, over the same draws for all: a training at a rate next to zero."""
    still = {"network_weights": str(adapter), "learning_rate": "1e-30", "output_name": f"judged-{adapter.stem}"}
    return statistics.fmean(train(demo_config(files, folder, "bf16", 1000, 60, **still)).losses)


def curves(folder: Path, files: DemoFiles, seeds: list[int], steps: int) -> list[dict]:
    found = []
    for seed in seeds:
        for base in BASES:
            result = train(demo_config(files, folder, base, seed, steps))
            third = steps // 3
            row = {"base": base, "seed": seed, "last_third": statistics.fmean(result.losses[-third:])}
            row |= {"on_bf16": loss_on_bf16(files, folder, result.adapter_path), "losses": result.losses}
            found.append(row)
            print(
                f"{base} seed {seed}: last third {row['last_third']:.4f}, its adapter on bf16 {row['on_bf16']:.4f}", flush=True
            )
    return found


def trained_base(files: DemoFiles, folder: Path, steps: int) -> Path:
    """Write the demo's model after training: an adapter of high rank on all layers, merged."""
    config = demo_config(files, folder, "fp32", 0, steps, output_name="base")
    adapter = train(config).adapter_path
    model = load_transformer(config.model.transformer)
    network = AdapterNetwork.inject(model, config.network, 0)
    load_into(network, adapter)
    path = folder / "trained.safetensors"
    save_file({f"net.{name}": tensor.bfloat16() for name, tensor in merge(network).state_dict().items()}, path)
    return path


def draw(rows: list[dict], path: Path, size: tuple[int, int] = (720, 360)) -> None:
    """Draw the running means of all seeds, a colour for each base."""
    width, height = size
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    smooth = {(row["base"], row["seed"]): running_mean(row["losses"], 0.97) for row in rows}
    values = [value for line in smooth.values() for value in line[20:]]
    low, high = min(values), max(values)
    for (base, _), line in smooth.items():
        places = [
            (56 + (width - 72) * i / len(line), 16 + (height - 44) * (high - v) / (high - low)) for i, v in enumerate(line)
        ]
        pen.line(places[20:], fill=COLOURS[base], width=1)
    for number, (base, colour) in enumerate(COLOURS.items()):
        pen.text((width - 80, 16 + 14 * number), base, fill=colour)
    for value, y in ((high, 16), (low, height - 28)):
        pen.text((6, y - 6), f"{value:.3f}", fill=(90, 90, 90))
    pen.text(
        (56, height - 18), f"loss over {len(rows[0]['losses'])} steps, {len(smooth) // len(COLOURS)} seeds", fill=(90, 90, 90)
    )
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="an Anima checkpoint of floats, whose layers are looked at too")
    parser.add_argument("--blocks", type=int, default=REAL.blocks, help="of the model of real widths")
    parser.add_argument("--px", type=int, default=256, help="side of its picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600, help="of the demo's trainings")
    parser.add_argument("--out", type=Path, default=RESULTS / "eight_bit.json")
    args = parser.parse_args()
    report: dict = {"environment": environment(CPU)}
    case = Case(px=args.px, blocks=args.blocks, dtype="bf16")
    some = random_weights(dataclasses.replace(case, blocks=2), CPU)
    report["layers"] = {"random": layer_errors((name, w) for name, w in some.items() if FREEZABLE.fullmatch(name))}
    if args.checkpoint:
        report["layers"][args.checkpoint.name] = layer_errors(of_file(args.checkpoint))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = write_demo(folder)
        tiny = dataclasses.replace(TINY, blocks=DEMO_BLOCKS)
        write_random_transformer(files.models["anima_transformer"], tiny, dtype=torch.bfloat16)
        trained = trained_base(files, folder, args.steps)
        report["layers"]["tiny, trained"] = layer_errors(of_file(trained))
        model = load_transformer(trained)
        reference = adapter_gradient(model, 16)
        report["gradients"] = {"tiny, trained": {"int8": cosines(adapter_gradient(in_8_bits(model), 16), reference)}}
        report["curves"] = curves(folder, files, args.seeds, args.steps)
    draw(report["curves"], args.out.with_suffix(".png"))
    write_report(report, args.out)
    report["gradients"][f"real widths, {args.blocks} blocks, {args.px} px"] = gradients(case, args.px // 8)
    write_report(report, args.out)
    for name, kinds in report["layers"].items():
        for kind, row in kinds.items():
            print(f"{name:>16} {kind:>24} {row}")
    for name, found in report["gradients"].items():
        print(f"{name}: {found}")


if __name__ == "__main__":
    main()
