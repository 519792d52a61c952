"""Everything that can be refused before a model is loaded: files, folders, packages, targets, pictures.

Returns the plan that the loop follows. Of model files it interprets the headers only.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import seeds
from ..adapters.adapter_type import Layer
from ..adapters.dropouts import Dropouts
from ..adapters.formats import check_blocks, load_into, notes_of
from ..adapters.network import AdapterNetwork, linear
from ..adapters.targets import select_targets
from ..adapters.types import ADAPTER_TYPES
from ..data.cache_folder import CACHE, cache_beside
from ..data.check import check_datasets, may_be_long
from ..data.class_captions import check_prior, class_caption
from ..data.folder import Picture
from ..data.held_out import NOTHING_HELD_OUT, HeldOut, Holding
from ..data.picture_files import small_jpeg
from ..data.report import DataReport
from ..errors import FileError, SettingError
from ..files import longest_path
from ..models.llm_adapter import MIN_TEXT_ROWS
from ..models.qwen import check_qwen, qwen_tokenizer_dir
from ..models.tokenizers import load_t5_tokenizer
from ..models.transformer import AnimaTransformer, TransformerConfig, check_transformer
from ..models.vae import check_vae
from ..settings import TrainConfig
from ..speed.attention import check_usable
from . import flow, optimizers, storage
from .events import Events, Listener
from .memory import pick_device, pick_dtype
from .model_files import hash_models, in_their_folders, recall_digests
from .previews import check_samples, too_few
from .ranks import Ranks
from .resume import compare_with, contents
from .state import find_checkpoint

Pictures = tuple[tuple[Picture, ...], ...]  # of each dataset


@dataclass(frozen=True)
class Plan:
    """A checked run: the config, and what was learnt while checking it."""

    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    transformer: TransformerConfig
    pictures: Pictures
    reports: tuple[DataReport, ...]
    cache_dir: Path
    run_dir: Path
    resume_from: Path | None
    warnings: tuple[str, ...]
    text_rows: int = MIN_TEXT_ROWS  # of the longest caption
    world: int = 1  # processes that train together
    held_out: HeldOut = NOTHING_HELD_OUT

    @property
    def batches_per_step(self) -> int:
        """Micro-batches of a step, over all processes."""
        return self.config.gradient_accumulation_steps * self.world

    @property
    def adapter_path(self) -> Path:
        output = self.config.output
        return Path(output.adapter_dir or output.dir) / f"{output.name}.safetensors"


def preflight(config: TrainConfig, ranks: Ranks | None = None, on_event: Listener | None = None) -> Plan:
    """Check `config` against the machine and the disk. Raises SettingError or FileError with the way out.

    on_event: hears how far the scan of the pictures is, and may answer "cancel": Interrupted.
    """
    device = pick_device(config.device) if ranks is None else ranks.device(config.device)
    warnings = (*optimizers.preflight(config.optimizer, device, config.network.train_norm), *check_samples(config.samples))
    config = in_their_folders(config)
    sizes = check_models(config)
    dtype = pick_dtype(config.model.dtype, device)
    if not config.plain:
        check_usable(config.attention, device, dtype, sizes.head_dim)
    warnings += (*storage.warnings(config.model), *check_network(config, sizes), *flow.warnings(config))
    run_dir = config.output.run_dir
    resume_from, passed_over = find_checkpoint(config.output.resume, run_dir) if config.output.resume else (None, [])
    if config.metadata.picture:
        small_jpeg(Path(config.metadata.picture), side=64)
    cache_dir = cache_folder(config)
    check_folders(config, run_dir, cache_dir)
    pictures, reports, held_out = check_data(config, cache_dir, on_event)
    recall_digests(config, cache_dir)
    if resume_from is not None:
        hash_models(config, cache_dir, on_event)
        warnings += (*passed_over, *compare_with(resume_from, config, contents(config, pictures, held_out.pictures)))
    return Plan(
        config=config,
        device=device,
        dtype=dtype,
        transformer=sizes,
        pictures=pictures,
        reports=reports,
        cache_dir=cache_dir,
        run_dir=run_dir,
        resume_from=resume_from,
        warnings=(*warnings, *told(config, pictures, held_out)),
        text_rows=text_rows(config, pictures),
        world=ranks.world if ranks else 1,
        held_out=held_out,
    )


def check_data(
    config: TrainConfig, cache_dir: Path, on_event: Listener | None
) -> tuple[Pictures, tuple[DataReport, ...], HeldOut]:
    """Return the pictures of each dataset, what there is to say about them, and the pictures that are held out.

    In strict mode any warning is an error.
    """
    events, t5 = Events(None, on_event), load_t5_tokenizer(config.model.t5_tokenizer_dir)
    holding = Holding(config.held_out)
    try:
        found = check_datasets(config.datasets, cache_dir, t5, events.progress, holding)
    finally:
        events.close()
    held_out = holding.result(config.datasets)
    warned = [*(line for _, report in found for line in report.warnings()), *held_out.warnings]
    if config.strict_data and warned:
        way_out = "repair it, or leave `train.strict_data` off"
        raise SettingError(f"`train.strict_data`: {len(warned)} warnings about the data ({'; '.join(warned)}); {way_out}")
    return tuple(tuple(pictures) for pictures, _ in found), tuple(report for _, report in found), held_out


def told(config: TrainConfig, pictures: Pictures, held_out: HeldOut) -> list[str]:
    """Say which settings have no effect on these pictures, and what the folder of held-out ones has. Raises SettingError."""
    found = [*held_out.warnings, *config.held_out.warnings(bool(held_out))]
    return [*found, *check_prior(config.prior, pictures), *too_few(config.samples, held_out)]


def text_rows(config: TrainConfig, pictures: Pictures) -> int:
    """Return how many rows the text embeddings of the longest caption have, all its tags and choices in it."""
    captions = {caption for group in pictures for picture in group for caption in picture.whole_captions}
    captions |= {class_caption(caption, config.prior) or "" for caption in captions}
    captions = {caption for caption in captions if may_be_long(caption)}
    ids = load_t5_tokenizer(config.model.t5_tokenizer_dir).encode([*captions]) if captions else []
    return max([MIN_TEXT_ROWS, *map(len, ids)])


def check_models(config: TrainConfig) -> TransformerConfig:
    """Check that the model files are what their slots say, and fit one another. Raises FileError."""
    paths = config.model
    sizes = check_transformer(paths.transformer, paths.llm_adapter)
    check_vae(paths.vae)
    hidden = check_qwen(paths.qwen).hidden
    if hidden != sizes.llm_adapter.source_dim:
        wanted = sizes.llm_adapter.source_dim
        raise FileError(f"{paths.qwen}: hidden size {hidden}, the transformer was made for {wanted}; use Qwen3-0.6B")
    qwen_tokenizer_dir(paths.qwen, paths.qwen_tokenizer_dir)
    load_t5_tokenizer(paths.t5_tokenizer_dir)
    return sizes


def check_network(config: TrainConfig, sizes: TransformerConfig) -> list[str]:
    """Check that every pattern matches something, that the adapter's type takes its settings, and a file to start from fits.

    Return what there is to say of that file. Raises SettingError, FileError.
    """
    network = config.network
    if network.weights:
        check_blocks(network.weights, sizes.blocks)
    with torch.device("meta"):
        model = AnimaTransformer(sizes)
    targets = select_targets(model, network)
    if not targets:
        way_out = "loosen `network.exclude` or `network.ranks`"
        raise SettingError(f"`network.targets`={network.targets!r}: no module is left to train; {way_out}")
    name, rank = max(targets.items(), key=lambda item: item[1])
    base, dropouts = linear(model, name), Dropouts.of(network, config.seed)
    layer = Layer(base.in_features, base.out_features, rank, 0, dropouts, seeds.generator(config.seed, "init", name))
    ADAPTER_TYPES[network.type].build(layer, network)
    if not network.weights:
        return []
    load_into(AdapterNetwork.inject(model, network, config.seed), network.weights)  # on the meta device: only checked
    return notes_of(network.weights)


def check_folders(config: TrainConfig, run_dir: Path, cache_dir: Path) -> None:
    """Check that what the run writes can be written where it belongs. Raises SettingError, FileError."""
    for folder in (config.output.dir, config.output.adapter_dir or config.output.dir, cache_dir):
        check_writable(Path(folder))
    check_path_lengths(config, run_dir, cache_dir)


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None


def check_path_lengths(config: TrainConfig, run_dir: Path, cache_dir: Path) -> None:
    """Check the longest paths that the run will write against what the system takes. Raises SettingError."""
    limit, adapters = longest_path(), Path(config.output.adapter_dir or config.output.dir)
    folders = {
        "output.dir": (config.output.dir, run_dir / "checkpoints" / ".step-00000000.replaced" / "state.safetensors"),
        "output.adapter_dir": (adapters, adapters / f".{config.output.name}-step00000000.00000000.tmp"),
        "train.cache_dir": (cache_dir, cache_dir / "latents" / "00" / f".{'0' * 32}.00000000.tmp"),
    }
    for setting, (folder, longest) in folders.items():
        length = len(str(longest.absolute()))
        if length > limit:
            problem = f"paths in it have {length} characters, the system takes {limit}"
            way_out = "use a shorter folder or `output.name`, or allow Windows long paths (LongPathsEnabled)"
            raise SettingError(f"`{setting}`={folder}: {problem}; {way_out}")


def cache_folder(config: TrainConfig) -> Path:
    """Return where latents and text are kept: `cache_dir`, else beside the first pictures, else beside the output."""
    if config.cache_dir:
        return Path(config.cache_dir)
    return cache_beside(config.datasets) or Path(config.output.dir) / CACHE
