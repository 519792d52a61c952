"""What is in the model files: their digests, remembered in the cache's index, so that a file is hashed once in its life.

Nothing of a run needs a digest before the file is loaded, which tells it on the way, but two: what a checkpoint is compared
with, and what finished and unfinished runs are found by.
"""

from dataclasses import replace
from pathlib import Path

from .. import files
from ..data.cache_folder import INDEX
from ..data.index import FileIndex
from ..models.diffusers_names import LLM_ADAPTER
from ..models.loading import part_folder
from ..models.qwen import LAYOUT as QWEN
from ..models.transformer_files import LAYOUT, adapter_beside
from ..models.vae import LAYOUT as VAE
from ..settings import TrainConfig, walk
from .events import Events, Listener

MB = 1_000_000
NOT_ASKED = (-1, -1)  # the stamp of files whose findings stay in the index, which are not looked at: one may vanish meanwhile


def in_their_folders(config: TrainConfig) -> TrainConfig:
    """Name the folder of each model, where diffusers' folder of all models is given, and that of the LLM adapter.

    So each is known by its own files: what a cache was made with does not change when another model does. Raises FileError.
    """
    model = config.model
    vae, qwen = str(part_folder(model.vae, VAE.folder)), str(part_folder(model.qwen, QWEN.folder))
    beside = "" if model.llm_adapter else adapter_beside(model.transformer)
    other = str(part_folder(model.llm_adapter, LLM_ADAPTER)) if model.llm_adapter else str(beside or "")
    transformer = str(part_folder(model.transformer, LAYOUT.folder))
    return replace(config, model=replace(model, transformer=transformer, vae=vae, qwen=qwen, llm_adapter=other))


def model_files(config: TrainConfig) -> list[Path]:
    """List every file that a run is made from, but for pictures, captions and masks."""
    read = [found for found in walk(config) if found.facts.path == "read" and found.value]
    paths = [Path(found.value) for found in read if not found.name.startswith(("subset.", "held_out."))]
    return [file for path in paths for file in files.files_in(path)]


def recall_digests(config: TrainConfig, cache_dir: Path) -> None:
    """Learn the digests of model files that an earlier run has remembered, and that have not changed since."""
    wanted = model_files(config)
    with FileIndex(cache_dir / INDEX) as index:
        for folder in sorted({file.parent for file in wanted}):
            others = {file.name: NOT_ASKED for file in files.files_in(folder)}
            stamps = others | {file.name: files.stamp(file) for file in wanted if file.parent == folder}
            for name, digest in index.known(folder, stamps).items():
                files.learn(folder / name, stamps[name], digest)


def remember_digests(config: TrainConfig, cache_dir: Path) -> None:
    """Remember the digests of model files that this process has learnt."""
    with FileIndex(cache_dir / INDEX) as index:
        for file in model_files(config):
            if (digest := files.known(file)) is not None:
                index.remember(file.parent, [(file.name, files.stamp(file), digest)])


def hash_models(config: TrainConfig, cache_dir: Path, on_event: Listener | None) -> None:
    """Hash the model files that are not known and tell how far it is: gigabytes take seconds."""
    unknown = [file for file in model_files(config) if files.known(file) is None]
    if not unknown:
        return
    events, done, total = Events(None, on_event), 0, sum(file.stat().st_size for file in unknown)
    progress = events.progress("reading model files (MB)")

    def on_read(count: int) -> None:
        nonlocal done
        done += count
        progress(done // MB, total // MB)

    try:
        for path in unknown:
            files.identity(path, on_read)
    finally:
        events.close()
        remember_digests(config, cache_dir)
